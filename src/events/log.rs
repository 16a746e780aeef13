//! The log, read page by page: oldest first, nothing skipped, nothing twice.
//!
//! Called by `http::events` and the streams. A page ends where its events are enough, or where enough was looked at: a
//! sparse filter then answers with few events or none, and a cursor behind all it looked at, so nobody looks there again.
//!
//! Invariant: between two cursors that follow each other lie exactly the events of the page.

use std::time::Duration;

use super::cursor::Cursor;
use super::read_store::{self, Entry, StoredEvent};
use crate::db::{Db, StoreError};
use crate::ids::{EventId, TenantId};
use crate::topics::{Pattern, matches};

/// So many positions are looked at for one page.
const LOOK_MAX: usize = 5000;
/// So many in one statement, where a filter may pass many of them by.
const LOOK_STEP: usize = 1000;
/// A page's data is not much longer than this: 250 events of 256 KiB would be 64 MiB.
const PAGE_MAX_BYTES: i64 = 4 * 1024 * 1024;
/// `after=now` waits so long for what was accepted before to get its position.
const NOW_MAX: Duration = Duration::from_secs(1);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Whose log.
    pub tenant: TenantId,
    /// Only these types; `None`: all.
    pub types: Option<Vec<Pattern>>,
    /// So many events at most.
    pub limit: usize,
}

/// What was found.
#[derive(Debug)]
pub struct LogPage {
    /// In the order of the log.
    pub events: Vec<StoredEvent>,
    /// Behind all that was looked at.
    pub next: Cursor,
    /// There is nothing more for now.
    pub at_end: bool,
}

/// The page after a cursor.
/// # Errors
/// [`StoreError`].
pub async fn page(db: &Db, reading: &Reading, after: Cursor) -> Result<LogPage, StoreError> {
    let (mut wanted, mut position, mut looked) = (Vec::<Entry>::new(), after.position(), 0);
    let mut at_end = false;
    while !at_end && looked < LOOK_MAX && wanted.len() < reading.limit {
        let step = if reading.types.is_some() { LOOK_STEP } else { reading.limit };
        let entries = read_store::look(db, reading.tenant, position, step as i64).await?;
        let (count, mut used) = (entries.len(), 0);
        for entry in entries {
            used += 1;
            position = entry.position;
            if matches(reading.types.as_deref(), &entry.event_type) {
                wanted.push(entry);
            }
            if wanted.len() == reading.limit {
                break;
            }
        }
        looked += used;
        at_end = count < step && used == count;
    }
    let ids: Vec<EventId> = wanted.iter().map(|entry| entry.event).collect();
    let several = read_store::get_several(db.pool(), reading.tenant, &ids, PAGE_MAX_BYTES).await?;
    if let (true, Some(last)) = (several.found > several.events.len() as i64, several.events.last()) {
        // Not all fit: the next page goes on behind the last one that did.
        at_end = false;
        let place = wanted.iter().find(|entry| entry.event == last.id);
        position = place.map_or(position, |entry| entry.position);
    }
    Ok(LogPage { events: several.events, next: Cursor::after(position), at_end })
}

/// The end of the log: behind every event that was accepted before this call, in front of all that come after it.
/// # Errors
/// [`StoreError`].
pub async fn now(db: &Db, tenant: TenantId) -> Result<Cursor, StoreError> {
    let before = EventId::fresh();
    let give_up = tokio::time::Instant::now() + NOW_MAX;
    loop {
        let (last, waiting) = read_store::end_of_log(db, tenant, before).await?;
        if !waiting || tokio::time::Instant::now() >= give_up {
            return Ok(Cursor::after(last));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
