//! The SQL that reads events: one, several, and the log after a position.
//!
//! Called by `events::log`, `events::publish` and `http::events`. The way from a position to its event goes by the primary
//! keys of both tables.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgExecutor, Row};

use crate::db::{Db, StoreError};
use crate::ids::{EventId, TenantId};

/// An event as it was read.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    /// Its id; the time of its making is in it.
    pub id: EventId,
    /// Its topic.
    pub event_type: String,
    /// Its data's text, as it came.
    pub data: Box<RawValue>,
    /// Free strings.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Events that share it are delivered in order where an endpoint asks for it.
    pub ordering_key: Option<String>,
}

impl<'r> FromRow<'r, PgRow> for StoredEvent {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        let data = std::str::from_utf8(row.try_get("data")?)
            .map_err(|error| sqlx::Error::Decode(Box::new(error)))?
            .to_owned();
        let metadata: Option<&str> = row.try_get("metadata")?;
        Ok(Self {
            id: row.try_get("id")?,
            event_type: row.try_get("type")?,
            data: RawValue::from_string(data).map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
            metadata: metadata.and_then(|text| serde_json::from_str(text).ok()),
            ordering_key: row.try_get("ordering_key")?,
        })
    }
}

/// One event of this tenant.
/// # Errors
/// [`StoreError::NotFound`].
pub async fn get(db: &Db, tenant: TenantId, id: EventId) -> Result<StoredEvent, StoreError> {
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

/// Events in the order that was asked for, as many as fit into `bytes_max` (but one at least), and how many there are of
/// those that were asked for.
#[derive(Debug, Clone, Default)]
pub struct Several {
    /// From the first one on.
    pub events: Vec<StoredEvent>,
    /// With those that did not fit.
    pub found: i64,
}

/// Several events of this tenant; from a pool or in the caller's transaction. One that is not kept any more is left out.
/// # Errors
/// [`StoreError`].
pub async fn get_several(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    ids: &[EventId],
    bytes_max: i64,
) -> Result<Several, StoreError> {
    if ids.is_empty() {
        return Ok(Several::default());
    }
    let rows = sqlx::query(
        "-- events::read_store::get_several
        SELECT id, type, data, metadata::text AS metadata, ordering_key, found FROM (
          SELECT w.place, e.*, count(*) OVER () AS found,
            sum(octet_length(e.data)) OVER (ORDER BY w.place) - octet_length(e.data) AS bytes_before
          FROM unnest($2::uuid[]) WITH ORDINALITY AS w(id, place)
          CROSS JOIN LATERAL (SELECT * FROM ringback.events e WHERE e.tenant_id = $1 AND e.id = w.id LIMIT 1) e
        ) f
        WHERE bytes_before = 0 OR bytes_before < $3 ORDER BY place",
    )
    .bind(tenant)
    .bind(ids.iter().map(|id| id.uuid()).collect::<Vec<_>>())
    .bind(bytes_max)
    .fetch_all(db)
    .await?;
    let found = rows.first().map_or(0, |row| row.get("found"));
    let events = rows.iter().map(StoredEvent::from_row).collect::<Result<Vec<_>, _>>()?;
    Ok(Several { events, found })
}

/// One place in the log.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where.
    pub position: i64,
    /// What stands there.
    pub event: EventId,
    /// Its topic.
    pub event_type: String,
}

/// The tenant's places in the log after a position, in their order. What is committed later stands behind them.
/// # Errors
/// [`StoreError`].
pub async fn look(db: &Db, tenant: TenantId, after: i64, limit: i64) -> Result<Vec<Entry>, StoreError> {
    let rows = sqlx::query(
        "-- events::read_store::look
        SELECT position, event_id, type FROM ringback.event_log WHERE tenant_id = $1 AND position > $2 ORDER BY position LIMIT $3",
    )
    .bind(tenant)
    .bind(after)
    .bind(limit)
    .fetch_all(db.pool())
    .await?;
    let read = |row: &PgRow| Entry { position: row.get(0), event: row.get(1), event_type: row.get(2) };
    Ok(rows.iter().map(read).collect())
}

/// The last position that was given, and whether an event of this tenant that is older than `before` still waits for its.
/// # Errors
/// [`StoreError`].
pub async fn end_of_log(db: &Db, tenant: TenantId, before: EventId) -> Result<(i64, bool), StoreError> {
    let row = sqlx::query(
        "-- events::read_store::end_of_log
        SELECT last, EXISTS (SELECT FROM ringback.event_inbox WHERE tenant_id = $1 AND event_id < $2) FROM ringback.event_sequence",
    )
    .bind(tenant)
    .bind(before)
    .fetch_one(db.pool())
    .await?;
    Ok((row.get(0), row.get(1)))
}
