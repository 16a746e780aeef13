//! The SQL of events: append, number, forget.
//!
//! Called by `jobs::finish` (append), `engine::fan_out` (number) and `engine::maintain` (forget). Publishing stands in
//! `publish_store`, reading in `read_store`.
//!
//! Invariant: positions are given after commit, by one transaction at a time, so nothing becomes visible behind a cursor.

use std::collections::{BTreeMap, HashMap};

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;

use super::{CallbackRef, DEDUP_HOURS, NewEvent};
use crate::db::{Db, StoreError, Tx};
use crate::ids::{EndpointId, EventId, TenantId};

/// Appends events, in the caller's transaction if it has one; they get their positions after the commit. Repeating it with
/// the same ids changes nothing.
/// # Errors
/// [`StoreError`].
pub async fn append(db: impl sqlx::PgExecutor<'_>, events: &[&NewEvent]) -> Result<(), StoreError> {
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
        ), stored AS (
          INSERT INTO ringback.events (tenant_id, id, type, data, metadata, ordering_key, traceparent)
          SELECT tenant_id, id, type, data, metadata::jsonb, ordering_key, traceparent FROM input
          ON CONFLICT DO NOTHING
          RETURNING id
        )
        INSERT INTO ringback.event_inbox (tenant_id, event_id, type, callback_job_id, callback_target)
        SELECT tenant_id, id, type, job_id, target_id FROM input WHERE id = ANY(ARRAY(SELECT id FROM stored))",
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
    .execute(db)
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
            SELECT i.ctid AS at FROM ringback.event_inbox i WHERE i.tenant_id = s.tenant_id ORDER BY i.txid, i.event_id LIMIT s.share FOR UPDATE
          ) p
        ), taken AS (
          DELETE FROM ringback.event_inbox WHERE ctid = ANY(ARRAY(SELECT at FROM picked)) RETURNING *
        ), numbered AS MATERIALIZED (
          SELECT t.*, s.last + row_number() OVER (ORDER BY t.txid, t.event_id) AS position FROM taken t CROSS JOIN sequence s
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

/// Takes a position that no event has: behind all that have one, before all that are still to get one.
/// # Errors
/// [`StoreError`].
pub async fn take_position(db: &Db) -> Result<i64, StoreError> {
    let sql =
        "-- events::store::take_position\nUPDATE ringback.event_sequence SET last = last + 1 RETURNING last";
    Ok(sqlx::query_scalar(sql).fetch_one(db.pool()).await?)
}

/// Is there an event without a position? A look that takes no lock.
/// # Errors
/// [`StoreError`].
pub async fn is_waiting(db: &Db) -> Result<bool, StoreError> {
    let waiting =
        sqlx::query_scalar("-- events::store::is_waiting\nSELECT EXISTS (SELECT FROM ringback.event_inbox)")
            .fetch_one(db.relaxed())
            .await?;
    Ok(waiting)
}

/// What expressions and orders look at.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The data's bytes.
    pub data: Vec<u8>,
    /// Free strings.
    pub metadata: Option<BTreeMap<String, String>>,
    /// What it is kept in order with.
    pub ordering_key: Option<String>,
}

/// The facts of events.
/// # Errors
/// [`StoreError`].
pub async fn facts_of(
    tx: &mut Tx,
    events: &[(TenantId, EventId)],
) -> Result<HashMap<EventId, Facts>, StoreError> {
    if events.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query(
        "-- events::store::facts_of
        SELECT e.id, e.data, e.metadata, e.ordering_key FROM unnest($1::uuid[], $2::uuid[]) AS w(tenant_id, id) CROSS JOIN LATERAL (
          SELECT * FROM ringback.events e WHERE e.tenant_id = w.tenant_id AND e.id = w.id LIMIT 1
        ) e",
    )
    .bind(events.iter().map(|(tenant, _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(events.iter().map(|(_, event)| event.uuid()).collect::<Vec<_>>())
    .fetch_all(&mut **tx)
    .await?;
    let read = |row: &PgRow| {
        let metadata: Option<Json<BTreeMap<String, String>>> = row.get("metadata");
        let facts = Facts {
            data: row.get("data"),
            metadata: metadata.map(|Json(map)| map),
            ordering_key: row.get("ordering_key"),
        };
        (row.get("id"), facts)
    };
    Ok(rows.iter().map(read).collect())
}

/// An event whose deliveries are not all made yet.
#[derive(Debug, Clone)]
pub struct Rest {
    /// The event; its callback is done.
    pub event: Numbered,
    /// Deliveries to the endpoints behind this one are to be made.
    pub after: EndpointId,
}

/// Notes what is left of fan-outs, in the caller's transaction.
/// # Errors
/// [`StoreError`].
pub async fn add_rests(tx: &mut Tx, rests: &[Rest]) -> Result<(), StoreError> {
    for rest in rests {
        sqlx::query(
            "-- events::store::add_rests
            INSERT INTO ringback.fan_out_rest (tenant_id, event_id, position, after_endpoint) VALUES ($1, $2, $3, $4)",
        )
        .bind(rest.event.tenant)
        .bind(rest.event.event)
        .bind(rest.event.position)
        .bind(rest.after)
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

/// Is anything left of fan-outs?
/// # Errors
/// [`StoreError`].
pub async fn has_rests(db: &Db) -> Result<bool, StoreError> {
    let left =
        sqlx::query_scalar("-- events::store::has_rests\nSELECT EXISTS (SELECT FROM ringback.fan_out_rest)")
            .fetch_one(db.relaxed())
            .await?;
    Ok(left)
}

/// Takes one of them for the caller's transaction; others pass it over.
/// # Errors
/// [`StoreError`].
pub async fn take_rest(tx: &mut Tx) -> Result<Option<Rest>, StoreError> {
    let row = sqlx::query(
        "-- events::store::take_rest
        SELECT r.tenant_id, r.event_id, r.position, r.after_endpoint, e.type
        FROM (SELECT * FROM ringback.fan_out_rest ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED) r
        CROSS JOIN LATERAL (SELECT type FROM ringback.events e WHERE e.tenant_id = r.tenant_id AND e.id = r.event_id LIMIT 1) e",
    )
    .fetch_optional(&mut **tx)
    .await?;
    Ok(row.map(|row| Rest {
        event: Numbered {
            position: row.get("position"),
            tenant: row.get("tenant_id"),
            event: row.get("event_id"),
            event_type: row.get("type"),
            callback: None,
        },
        after: row.get("after_endpoint"),
    }))
}

/// Notes how far it came, or that it is done, in the same transaction.
/// # Errors
/// [`StoreError`].
pub async fn finish_rest(tx: &mut Tx, rest: &Rest, next: Option<&Rest>) -> Result<(), StoreError> {
    sqlx::query(
        "-- events::store::finish_rest
        WITH done AS (DELETE FROM ringback.fan_out_rest WHERE tenant_id = $1 AND event_id = $2 AND $3::uuid IS NULL)
        UPDATE ringback.fan_out_rest SET after_endpoint = $3 WHERE tenant_id = $1 AND event_id = $2 AND $3::uuid IS NOT NULL",
    )
    .bind(rest.event.tenant)
    .bind(rest.event.event)
    .bind(next.map(|next| next.after))
    .execute(&mut **tx)
    .await?;
    Ok(())
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
