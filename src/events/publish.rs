//! Publishes several events, or one with a key, in a transaction of their own. Single events without a key go through
//! the publish batcher instead, which shares its commits.
//!
//! Called by `http::publish`.
//!
//! Invariant: all events of a call, their dedup keys and the answer to its repetition are one commit.

use super::new_event::Publish;
use super::view::EventView;
use super::{NewEvent, read_store, store};
use crate::db::{Db, StoreError};
use crate::idempotency::{self, NewKey};

/// What became of a call.
#[derive(Debug, Clone)]
pub struct Published {
    /// The events in the order of the call, each as it was published, now or (with its dedup key) before.
    pub events: Vec<EventView>,
    /// Is the first of them an earlier one?
    pub first_is_earlier: bool,
}

/// Publishes what was not published under its dedup key within 24 h. `answer` makes the answer that is stored under the
/// request's key. `None`: that key is taken, and nothing was published.
/// # Errors
/// [`StoreError`]; nothing was published, or (unavailable) it is not known.
pub async fn publish(
    db: &Db,
    items: Vec<Publish>,
    key: Option<NewKey>,
    answer: impl FnOnce(&Published) -> (u16, Option<String>, String),
) -> Result<Option<Published>, StoreError> {
    let mut tx = db.begin().await?;
    let earlier = store::claim_dedup_keys(&mut tx, &items).await?;
    let fresh: Vec<&NewEvent> = items
        .iter()
        .zip(&earlier)
        .filter(|(_, earlier)| earlier.is_none())
        .map(|(item, _)| &item.event)
        .collect();
    store::append(&mut *tx, &fresh).await?;
    let found = match items.first() {
        Some(first) => {
            let wanted: Vec<_> = earlier.iter().copied().flatten().collect();
            read_store::get_many(&mut *tx, first.event.tenant, &wanted).await?
        }
        None => Vec::new(),
    };
    let view = |(item, earlier): (&Publish, &Option<crate::ids::EventId>)| {
        // An earlier event that the retention has dropped is told by what the caller sent, under its first id.
        earlier.map_or_else(
            || EventView::of(&item.event),
            |id| {
                found
                    .iter()
                    .find(|event| event.id == id)
                    .cloned()
                    .unwrap_or_else(|| EventView::of(&NewEvent { id, ..item.event.clone() }))
            },
        )
    };
    let published = Published {
        events: items.iter().zip(&earlier).map(view).collect(),
        first_is_earlier: earlier.first().is_some_and(Option::is_some),
    };
    if let (Some(key), Some(first)) = (key, items.first()) {
        let (status, location, body) = answer(&published);
        let key = NewKey { location, body: body.into_bytes(), ..key };
        if !idempotency::store::insert(&mut tx, first.event.tenant, &key, status).await? {
            return Ok(None);
        }
    }
    tx.commit().await?;
    Ok(Some(published))
}
