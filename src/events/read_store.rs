//! Reading events: one, or the log from a position on.
//!
//! Called by `http::events`.
//!
//! Invariant: a walk by positions sees every event once, in one order, whatever is published meanwhile.

use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgExecutor, Row};

use super::view::EventView;
use crate::db::{Db, StoreError};
use crate::ids::{EventId, TenantId};

/// One event of this tenant.
/// # Errors
/// [`StoreError::NotFound`].
pub async fn get(db: &Db, tenant: TenantId, id: EventId) -> Result<EventView, StoreError> {
    let event = sqlx::query_as(
        "-- events::read_store::get
        SELECT id, type, data, metadata::text AS metadata, ordering_key FROM ringback.events WHERE tenant_id = $1 AND id = $2",
    )
    .bind(tenant)
    .bind(id)
    .fetch_one(db.pool())
    .await?;
    Ok(event)
}

/// Several events of this tenant, in no order.
/// # Errors
/// [`StoreError`].
pub async fn get_many(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    ids: &[EventId],
) -> Result<Vec<EventView>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let events = sqlx::query_as(
        "-- events::read_store::get_many
        SELECT e.id, e.type, e.data, e.metadata::text AS metadata, e.ordering_key
        FROM unnest($2::uuid[]) AS w(id) CROSS JOIN LATERAL (
          SELECT * FROM ringback.events e WHERE e.tenant_id = $1 AND e.id = w.id LIMIT 1
        ) e",
    )
    .bind(tenant)
    .bind(ids.iter().map(|id| id.uuid()).collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    Ok(events)
}

/// A place in the log, and what stands there.
#[derive(Debug, Clone)]
pub struct Logged {
    /// Its position.
    pub position: i64,
    /// Which event.
    pub event: EventId,
    /// Its topic.
    pub event_type: String,
}

/// What stands behind a position, in order.
/// # Errors
/// [`StoreError`].
pub async fn log_after(
    db: &Db,
    tenant: TenantId,
    position: i64,
    limit: i64,
) -> Result<Vec<Logged>, StoreError> {
    let rows = sqlx::query(
        "-- events::read_store::log_after
        SELECT position, event_id, type FROM ringback.event_log WHERE tenant_id = $1 AND position > $2 ORDER BY position LIMIT $3",
    )
    .bind(tenant)
    .bind(position)
    .bind(limit)
    .fetch_all(db.pool())
    .await?;
    let read = |row: &PgRow| Logged { position: row.get(0), event: row.get(1), event_type: row.get(2) };
    Ok(rows.iter().map(read).collect())
}

/// The last position that was given.
/// # Errors
/// [`StoreError`].
pub async fn last_position(db: &Db) -> Result<i64, StoreError> {
    let last =
        sqlx::query_scalar("-- events::read_store::last_position\nSELECT last FROM ringback.event_sequence")
            .fetch_one(db.pool())
            .await?;
    Ok(last)
}

impl<'r> FromRow<'r, PgRow> for EventView {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        let id: EventId = row.try_get("id")?;
        let metadata: Option<&str> = row.try_get("metadata")?;
        Ok(Self {
            id,
            r#type: row.try_get("type")?,
            data: crate::db::raw_json(row.try_get("data")?)?,
            metadata: metadata.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
            ordering_key: row.try_get("ordering_key")?,
            timestamp: id.created_at(),
            created_at: id.created_at(),
        })
    }
}
