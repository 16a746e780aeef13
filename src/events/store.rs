//! The SQL of events: append, number.
//!
//! Called by `jobs::finish` (append) and `engine::fan_out` (number).
//!
//! Invariant: positions are given after commit, by one transaction at a time, without gaps.

use std::collections::{BTreeMap, HashMap};

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;

use super::new_event::Publish;
use super::{CallbackRef, NewEvent};
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

/// Claims dedup keys in the caller's transaction; one that is older than 24 h is taken over. Answers for each item the
/// event that was published under its key before, if one was.
/// # Errors
/// [`StoreError`].
pub async fn claim_dedup_keys(tx: &mut Tx, items: &[Publish]) -> Result<Vec<Option<EventId>>, StoreError> {
    let mut keyed: Vec<(TenantId, &str, EventId)> = items
        .iter()
        .filter_map(|item| Some((item.event.tenant, item.dedup_key.as_deref()?, item.event.id)))
        .collect();
    if keyed.is_empty() {
        return Ok(vec![None; items.len()]);
    }
    // One order for all transactions, or two of them could wait for each other.
    keyed.sort_unstable();
    let rows = sqlx::query(
        "-- events::store::claim_dedup_keys
        INSERT INTO ringback.event_dedup AS held (tenant_id, key, event_id)
        SELECT DISTINCT ON (tenant_id, key) tenant_id, key, event_id
        FROM unnest($1::uuid[], $2::text[], $3::uuid[]) AS t(tenant_id, key, event_id) ORDER BY tenant_id, key, event_id
        ON CONFLICT (tenant_id, key) DO UPDATE SET
          event_id = CASE WHEN held.created_at < now() - interval '24 hours' THEN EXCLUDED.event_id ELSE held.event_id END,
          created_at = CASE WHEN held.created_at < now() - interval '24 hours' THEN now() ELSE held.created_at END
        RETURNING tenant_id, key, event_id",
    )
    .bind(keyed.iter().map(|(tenant, _, _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(keyed.iter().map(|(_, key, _)| *key).collect::<Vec<_>>())
    .bind(keyed.iter().map(|(_, _, event)| event.uuid()).collect::<Vec<_>>())
    .fetch_all(&mut **tx)
    .await?;
    let holders: HashMap<(TenantId, String), EventId> =
        rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    let earlier = |item: &Publish| {
        let key = (item.event.tenant, item.dedup_key.clone()?);
        holders.get(&key).copied().filter(|event| *event != item.event.id)
    };
    Ok(items.iter().map(earlier).collect())
}

/// Forgets dedup keys that are old enough. Returns how many.
/// # Errors
/// [`StoreError`].
pub async fn purge_dedup(db: &Db, limit: i64) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "-- events::store::purge_dedup
        DELETE FROM ringback.event_dedup WHERE ctid = ANY(ARRAY(
          SELECT ctid FROM ringback.event_dedup WHERE created_at < now() - interval '24 hours' ORDER BY created_at LIMIT $1))",
    )
    .bind(limit)
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}

/// Forgets what stands in the log of events that the retention has dropped. Returns how many.
/// # Errors
/// [`StoreError`].
pub async fn purge_log(db: &Db, before: EventId, limit: i64) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "-- events::store::purge_log
        DELETE FROM ringback.event_log WHERE (tenant_id, position) IN (
          SELECT l.tenant_id, l.position FROM ringback.tenants t CROSS JOIN LATERAL (
            SELECT tenant_id, position FROM (
              SELECT tenant_id, position, event_id FROM ringback.event_log l WHERE l.tenant_id = t.id ORDER BY position LIMIT $2
            ) l WHERE l.event_id < $1
          ) l)",
    )
    .bind(before)
    .bind(limit)
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}
