//! The SQL of a tenant's latest events, with all that expressions look at.
//!
//! Called by `http::endpoint_preview`.

use std::collections::BTreeMap;

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;

use crate::db::{Db, StoreError};
use crate::ids::{EventId, TenantId};

/// An event as it was accepted.
#[derive(Debug, Clone)]
pub struct RecentEvent {
    /// Which.
    pub id: EventId,
    /// Its topic.
    pub event_type: String,
    /// Its data's bytes.
    pub data: Vec<u8>,
    /// Free strings.
    pub metadata: Option<BTreeMap<String, String>>,
}

/// The last events in the log, the newest first.
/// # Errors
/// [`StoreError`].
pub async fn recent(db: &Db, tenant: TenantId, limit: i64) -> Result<Vec<RecentEvent>, StoreError> {
    let rows = sqlx::query(
        "-- events::recent_store::recent
        SELECT e.id, e.type, e.data, e.metadata FROM (
          SELECT event_id, position FROM ringback.event_log WHERE tenant_id = $1 ORDER BY position DESC LIMIT $2
        ) l CROSS JOIN LATERAL (
          SELECT * FROM ringback.events e WHERE e.tenant_id = $1 AND e.id = l.event_id LIMIT 1
        ) e ORDER BY l.position DESC",
    )
    .bind(tenant)
    .bind(limit)
    .fetch_all(db.pool())
    .await?;
    let read = |row: &PgRow| {
        let metadata: Option<Json<BTreeMap<String, String>>> = row.try_get("metadata")?;
        Ok(RecentEvent {
            id: row.try_get("id")?,
            event_type: row.try_get("type")?,
            data: row.try_get("data")?,
            metadata: metadata.map(|Json(metadata)| metadata),
        })
    };
    Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
}
