//! The SQL that walks over a tenant's events by the time of their making.
//!
//! Called by `replays::walk`, page by page, in the caller's transaction.
//!
//! Invariant: one statement tells both, that an event is there and whether its fan-out is still to come, so that nobody
//! takes an event for forgotten whose deliveries are about to be made.

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::db::{StoreError, Tx};
use crate::ids::{EventId, TenantId};

/// How far the fan-out of an event has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FanOut {
    /// It has not begun: whoever is subscribed will be told.
    ToCome,
    /// A part of it is left: some endpoints that are older than the event will be told.
    Partly,
    /// Nobody else will be told.
    Done,
}

/// An event that was passed.
#[derive(Debug, Clone)]
pub struct Passed {
    /// Which.
    pub id: EventId,
    /// Its topic.
    pub event_type: String,
    /// With which others it goes in order.
    pub ordering_key: Option<String>,
    /// Its deliveries.
    pub fan_out: FanOut,
}

/// A page of events with ids from `from` on and before `until`, the oldest first; those that only an endpoint's test made
/// are left out.
/// # Errors
/// [`StoreError`].
pub async fn page(
    tx: &mut Tx,
    tenant: TenantId,
    (from, until): (Uuid, Uuid),
    limit: i64,
) -> Result<Vec<Passed>, StoreError> {
    let rows = sqlx::query(
        "-- events::window_store::page
        SELECT e.id, e.type, e.ordering_key, i.waits IS NOT NULL AS waits, r.waits IS NOT NULL AS rests FROM (
          SELECT id, type, ordering_key FROM ringback.events WHERE tenant_id = $1 AND id >= $2 AND id < $3 AND type <> 'ringback.test' ORDER BY id LIMIT $4
        ) e
        LEFT JOIN LATERAL (SELECT true AS waits FROM ringback.event_inbox i WHERE i.tenant_id = $1 AND i.event_id = e.id LIMIT 1) i ON true
        LEFT JOIN LATERAL (SELECT true AS waits FROM ringback.fan_out_rest r WHERE r.tenant_id = $1 AND r.event_id = e.id LIMIT 1) r ON true
        ORDER BY e.id",
    )
    .bind(tenant)
    .bind(from)
    .bind(until)
    .bind(limit)
    .fetch_all(&mut **tx)
    .await?;
    let read = |row: &PgRow| Passed {
        id: row.get("id"),
        event_type: row.get("type"),
        ordering_key: row.get("ordering_key"),
        fan_out: match (row.get("waits"), row.get("rests")) {
            (true, _) => FanOut::ToCome,
            (false, true) => FanOut::Partly,
            (false, false) => FanOut::Done,
        },
    };
    Ok(rows.iter().map(read).collect())
}
