//! The SQL that publishes: events with their keys, many in one statement.
//!
//! Called by `events::publish`. Events that tell of something of ours are appended by `events::store` in its transaction.
//!
//! Invariant: an event, its place in the inbox, its `dedup_key` and the stored answer are one commit.

use std::collections::{HashMap, HashSet};

use sqlx::postgres::PgRow;
use sqlx::{PgExecutor, Row};
use uuid::Uuid;

use super::publish::{Publish, Published};
use super::{DEDUP_HOURS, NewEvent};
use crate::db::StoreError;
use crate::ids::{EventId, TenantId};

/// Stores events in one statement: all of them, but for those whose request's key is taken and those whose `dedup_key`
/// another event of the last 24 hours has. Repeating it with the same ids changes nothing and answers the same.
/// # Errors
/// [`StoreError`]; nothing was stored, or (unavailable) it is not known.
pub(super) async fn publish(
    db: impl PgExecutor<'_>,
    items: &[&Publish],
) -> Result<Vec<Published>, StoreError> {
    let events = || items.iter().map(|item| &item.event);
    let keys = || items.iter().map(|item| item.key.as_ref());
    let metadata = |event: &NewEvent| event.metadata.as_ref().and_then(|map| serde_json::to_string(map).ok());
    let rows = sqlx::query(
        "-- events::publish_store::publish
        WITH input AS MATERIALIZED (
          SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::text[],
            $8::text[], $9::text[], $10::bytea[], $11::text[], $12::bytea[]) WITH ORDINALITY
          AS t(tenant_id, id, type, data, metadata, ordering_key, traceparent,
            dedup_key, idem_key, idem_print, idem_location, idem_body, place)
        ), keyed AS (
          INSERT INTO ringback.idempotency_keys (tenant_id, key, fingerprint, status, location, body)
          SELECT tenant_id, idem_key, idem_print, 202, idem_location, idem_body FROM input
          WHERE idem_key IS NOT NULL ORDER BY tenant_id, idem_key
          ON CONFLICT DO NOTHING
          RETURNING tenant_id, key
        ), chosen AS MATERIALIZED (
          SELECT * FROM input WHERE idem_key IS NULL OR (tenant_id, idem_key) IN (SELECT tenant_id, key FROM keyed)
        ), held AS (
          -- One order for all transactions, or two of them could wait for each other.
          INSERT INTO ringback.event_dedup AS d (tenant_id, key, event_id)
          SELECT DISTINCT ON (tenant_id, dedup_key) tenant_id, dedup_key, id FROM chosen
          WHERE dedup_key IS NOT NULL ORDER BY tenant_id, dedup_key, place
          ON CONFLICT (tenant_id, key) DO UPDATE SET
            event_id = CASE WHEN d.created_at < now() - $13 * interval '1 hour' THEN EXCLUDED.event_id ELSE d.event_id END,
            created_at = CASE WHEN d.created_at < now() - $13 * interval '1 hour' THEN EXCLUDED.created_at ELSE d.created_at END
          RETURNING tenant_id, key, event_id
        ), stored AS (
          INSERT INTO ringback.events (tenant_id, id, type, data, metadata, ordering_key, traceparent)
          SELECT tenant_id, id, type, data, metadata::jsonb, ordering_key, traceparent FROM chosen
          WHERE dedup_key IS NULL OR id IN (SELECT event_id FROM held)
          ON CONFLICT DO NOTHING
          RETURNING tenant_id, id, type
        ), waiting AS (
          INSERT INTO ringback.event_inbox (tenant_id, event_id, type) SELECT tenant_id, id, type FROM stored
        )
        SELECT id, NULL::uuid AS tenant_id, NULL::text AS key FROM chosen
        UNION ALL SELECT event_id, tenant_id, key FROM held",
    )
    .bind(events().map(|event| event.tenant.uuid()).collect::<Vec<_>>())
    .bind(events().map(|event| event.id.uuid()).collect::<Vec<_>>())
    .bind(events().map(|event| event.event_type.as_str()).collect::<Vec<_>>())
    .bind(events().map(|event| event.data.as_bytes()).collect::<Vec<_>>())
    .bind(events().map(metadata).collect::<Vec<_>>())
    .bind(events().map(|event| event.ordering_key.as_deref()).collect::<Vec<_>>())
    .bind(events().map(|event| event.traceparent.as_deref()).collect::<Vec<_>>())
    .bind(items.iter().map(|item| item.dedup_key.as_deref()).collect::<Vec<_>>())
    .bind(keys().map(|key| key.map(|key| key.key.as_str())).collect::<Vec<_>>())
    .bind(keys().map(|key| key.map(|key| key.fingerprint.as_slice())).collect::<Vec<_>>())
    .bind(keys().map(|key| key.and_then(|key| key.location.as_deref())).collect::<Vec<_>>())
    .bind(keys().map(|key| key.map(|key| key.body.as_slice())).collect::<Vec<_>>())
    .bind(DEDUP_HOURS)
    .fetch_all(db)
    .await?;
    Ok(answers(&rows, items))
}

/// What the rows of `publish` say of each item: who was chosen, and who holds which `dedup_key`.
fn answers(rows: &[PgRow], items: &[&Publish]) -> Vec<Published> {
    let (mut chosen, mut held) = (HashSet::<Uuid>::new(), HashMap::<(TenantId, String), EventId>::new());
    for row in rows {
        match (row.get(1), row.get(2)) {
            (Some(tenant), Some(key)) => drop(held.insert((tenant, key), row.get(0))),
            _ => drop(chosen.insert(row.get(0))),
        }
    }
    let answer = |item: &&Publish| {
        let key = item.dedup_key.clone().map(|key| (item.event.tenant, key));
        match key.and_then(|key| held.get(&key)) {
            _ if !chosen.contains(&item.event.id.uuid()) => Published::KeyTaken,
            Some(first) if *first != item.event.id => Published::Duplicate(*first),
            _ => Published::Stored,
        }
    };
    items.iter().map(answer).collect()
}
