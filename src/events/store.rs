//! The SQL of events: append, number, forget.
//!
//! Called by `jobs::finish` (append), `engine::fan_out` (number) and `engine::maintain` (forget). Publishing stands in
//! `publish_store`, reading in `read_store`.
//!
//! Invariant: positions are given after commit, by one transaction at a time, without gaps.

use sqlx::Row;

use super::{CallbackRef, DEDUP_HOURS, NewEvent};
use crate::db::{Db, StoreError, Tx};
use crate::ids::{EventId, TenantId};

/// Appends events in the caller's transaction; they get their positions after its commit.
/// # Errors
/// [`StoreError`].
pub async fn append(tx: &mut Tx, events: &[&NewEvent]) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let metadata =
        |event: &&NewEvent| event.metadata.as_ref().and_then(|map| serde_json::to_string(map).ok());
    sqlx::query(
        "-- events::store::append
        WITH input AS MATERIALIZED (
          SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::text[], $8::uuid[], $9::uuid[])
          AS t(tenant_id, id, type, data, metadata, ordering_key, traceparent, job_id, target_id)
        ), waiting AS (
          INSERT INTO ringback.event_inbox (tenant_id, event_id, type, callback_job_id, callback_target)
          SELECT tenant_id, id, type, job_id, target_id FROM input
        )
        INSERT INTO ringback.events (tenant_id, id, type, data, metadata, ordering_key, traceparent)
        SELECT tenant_id, id, type, data, metadata::jsonb, ordering_key, traceparent FROM input",
    )
    .bind(events.iter().map(|event| event.tenant.uuid()).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.id.uuid()).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.event_type.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.data.as_bytes()).collect::<Vec<_>>())
    .bind(events.iter().map(metadata).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.ordering_key.as_deref()).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.traceparent.as_deref()).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.callback.map(|callback| callback.job.uuid())).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.callback.map(|callback| callback.target)).collect::<Vec<_>>())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// An event that just got its position.
#[derive(Debug, Clone)]
pub struct Numbered {
    /// Its place in the log.
    pub position: i64,
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub event: EventId,
    /// Its topic.
    pub event_type: String,
    /// The callback that is told.
    pub callback: Option<CallbackRef>,
}

/// Gives positions to up to `limit` committed events, by turns over tenants, in the caller's transaction; the lock
/// on the sequence makes it the only one. In the order of the positions.
/// # Errors
/// [`StoreError`].
pub async fn number(tx: &mut Tx, limit: i64) -> Result<Vec<Numbered>, StoreError> {
    let rows = sqlx::query(
        "-- events::store::number
        WITH RECURSIVE sequence AS MATERIALIZED (SELECT last FROM ringback.event_sequence FOR UPDATE),
        tenants AS (
          (SELECT tenant_id FROM ringback.event_inbox ORDER BY tenant_id LIMIT 1)
          UNION ALL
          SELECT n.tenant_id FROM tenants t CROSS JOIN LATERAL (
            SELECT i.tenant_id FROM ringback.event_inbox i WHERE i.tenant_id > t.tenant_id ORDER BY i.tenant_id LIMIT 1
          ) n
        ), shares AS MATERIALIZED (
          SELECT tenant_id, greatest(1, ceil($1::float8 / count(*) OVER ()))::int8 AS share FROM tenants
        ), picked AS MATERIALIZED (
          SELECT p.at FROM shares s CROSS JOIN LATERAL (
            SELECT i.ctid AS at FROM ringback.event_inbox i WHERE i.tenant_id = s.tenant_id ORDER BY i.event_id LIMIT s.share FOR UPDATE
          ) p
        ), taken AS (
          DELETE FROM ringback.event_inbox WHERE ctid = ANY(ARRAY(SELECT at FROM picked)) RETURNING *
        ), numbered AS MATERIALIZED (
          SELECT t.*, s.last + row_number() OVER (ORDER BY t.event_id) AS position FROM taken t CROSS JOIN sequence s
        ), logged AS (
          INSERT INTO ringback.event_log (tenant_id, position, event_id, type) SELECT tenant_id, position, event_id, type FROM numbered
        ), moved AS (
          UPDATE ringback.event_sequence SET last = last + (SELECT count(*) FROM numbered) WHERE EXISTS (SELECT FROM numbered)
        )
        SELECT position, tenant_id, event_id, type, callback_job_id, callback_target FROM numbered ORDER BY position",
    )
    .bind(limit)
    .fetch_all(&mut **tx)
    .await?;
    let read = |row: &sqlx::postgres::PgRow| Numbered {
        position: row.get("position"),
        tenant: row.get("tenant_id"),
        event: row.get("event_id"),
        event_type: row.get("type"),
        callback: match (row.get("callback_job_id"), row.get("callback_target")) {
            (Some(job), Some(target)) => Some(CallbackRef { job, target }),
            _ => None,
        },
    };
    Ok(rows.iter().map(read).collect())
}

/// Does any event wait for its position? A look that costs less than a transaction.
/// # Errors
/// [`StoreError`].
pub async fn is_any_waiting(db: &Db) -> Result<bool, StoreError> {
    let waiting = sqlx::query_scalar(
        "-- events::store::is_any_waiting\nSELECT EXISTS (SELECT FROM ringback.event_inbox)",
    )
    .fetch_one(db.pool())
    .await?;
    Ok(waiting)
}

/// Forgets `dedup_key`s that are old enough. Returns how many.
/// # Errors
/// [`StoreError`].
pub async fn purge_dedup(db: &Db, limit: i64) -> Result<u64, StoreError> {
    // One that someone takes over just now, maybe in a long transaction, is not waited for.
    let done = sqlx::query(
        "-- events::store::purge_dedup
        WITH old AS MATERIALIZED (
          SELECT ctid AS at FROM ringback.event_dedup WHERE created_at < now() - $1 * interval '1 hour'
          ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        DELETE FROM ringback.event_dedup WHERE ctid = ANY(ARRAY(SELECT at FROM old))",
    )
    .bind(DEDUP_HOURS)
    .bind(limit)
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}

/// Forgets positions whose events are older than this. Returns how many. Only tenants whose first entry is that old
/// are looked at any further.
/// # Errors
/// [`StoreError`].
pub async fn purge_log(db: &Db, age: std::time::Duration, limit: i64) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "-- events::store::purge_log
        WITH RECURSIVE firsts AS (
          (SELECT tenant_id, event_id FROM ringback.event_log ORDER BY tenant_id, position LIMIT 1)
          UNION ALL
          SELECT n.tenant_id, n.event_id FROM firsts f CROSS JOIN LATERAL (
            SELECT l.tenant_id, l.event_id FROM ringback.event_log l WHERE l.tenant_id > f.tenant_id ORDER BY l.tenant_id, l.position LIMIT 1
          ) n
        ), floor AS MATERIALIZED (
          SELECT ringback.uuid_floor(now() - $1 * interval '1 s') AS id
        ), old AS MATERIALIZED (
          SELECT o.tenant_id, o.position FROM firsts f CROSS JOIN floor CROSS JOIN LATERAL (
            SELECT l.tenant_id, l.position, l.event_id FROM ringback.event_log l WHERE l.tenant_id = f.tenant_id ORDER BY l.position LIMIT $2
          ) o
          WHERE f.event_id < floor.id AND o.event_id < floor.id LIMIT $2
        )
        DELETE FROM ringback.event_log l USING old o WHERE l.tenant_id = o.tenant_id AND l.position = o.position",
    )
    .bind(age.as_secs_f64())
    .bind(limit)
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}
