//! Publishing: events from outside are stored, once for each `dedup_key` within 24 hours. Next: `engine::fan_out`.
//!
//! Single events come through the publish batcher (`engine::batches`), which shares its commits; batches, and single events
//! with both keys, through [`publish_all`], because their stored answer depends on what is there already. Called by
//! `http::publish`.
//!
//! Invariant: a transaction of someone else that holds a `dedup_key` (`ringback.publish`, not committed yet) holds up
//! nobody but those with the same key, and these not for long.

use std::collections::HashSet;
use std::time::Duration;

use super::NewEvent;
use super::new_event::Draft;
use super::publish_store;
use super::read_store::{self, StoredEvent};
use crate::courtesy::Courtesy;
use crate::db::batch::Tenanted;
use crate::db::{Db, StoreError};
use crate::idempotency::{self, NewKey};
use crate::ids::{EventId, TenantId};

/// Where a key is held, so long are the others tried one by one; callers are answered within 5.5 s.
const ONE_BY_ONE_MAX: Duration = Duration::from_secs(2);

/// An event on its way into the database.
#[derive(Debug, Clone)]
pub struct Publish {
    /// The event.
    pub event: NewEvent,
    /// An event with the same key within 24 hours takes its place.
    pub dedup_key: Option<String>,
    /// The key of the request, with the answer that a repetition gets; never together with a `dedup_key`.
    pub key: Option<NewKey>,
}

impl Tenanted for Publish {
    fn tenant(&self) -> TenantId {
        self.event.tenant
    }
}

impl From<Draft> for Publish {
    fn from(draft: Draft) -> Self {
        Self { event: draft.event, dedup_key: draft.dedup_key, key: None }
    }
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It is on disk.
    Stored,
    /// This event has its `dedup_key`; nothing was stored.
    Duplicate(EventId),
    /// The request's key is taken; nothing was stored.
    KeyTaken,
    /// Someone's transaction holds its `dedup_key` and has not ended; nothing was stored.
    Busy,
}

/// Writes a batch: the publish batcher's flush.
/// # Errors
/// [`StoreError`]; nothing was stored, or (unavailable) it is not known.
pub async fn write(db: &Db, batch: &[Publish]) -> Result<Vec<Published>, StoreError> {
    let mut answers = vec![Published::Busy; batch.len()];
    let (keyed, plain): (Vec<usize>, Vec<usize>) =
        (0..batch.len()).partition(|place| batch[*place].dedup_key.is_some());
    let items = |places: &[usize]| places.iter().map(|place| &batch[*place]).collect::<Vec<_>>();
    if !plain.is_empty() {
        // Nobody holds what these need for longer than a commit takes.
        let published = publish_store::publish(db.pool(), &items(&plain)).await?;
        plain.iter().zip(published).for_each(|(place, one)| answers[*place] = one);
    }
    if let Some(published) = write_keyed(db, &items(&keyed)).await? {
        keyed.iter().zip(published).for_each(|(place, one)| answers[*place] = one);
    } else if keyed.len() > 1 {
        // One of the keys is held; who has another must not suffer.
        let give_up = tokio::time::Instant::now() + ONE_BY_ONE_MAX;
        let mut held = HashSet::new();
        for place in keyed {
            let item = &batch[place];
            let key = (item.event.tenant, item.dedup_key.as_deref());
            if held.contains(&key) || tokio::time::Instant::now() > give_up {
                continue;
            }
            match write_keyed(db, &[item]).await?.and_then(|mut one| one.pop()) {
                Some(one) => answers[place] = one,
                None => drop(held.insert(key)),
            }
        }
    }
    Ok(answers)
}

/// `None`: one of the keys is held, and nothing was stored.
async fn write_keyed(db: &Db, items: &[&Publish]) -> Result<Option<Vec<Published>>, StoreError> {
    if items.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let mut tx = db.begin_impatient().await?;
    match publish_store::publish(&mut *tx, items).await {
        Ok(published) => {
            tx.commit().await?;
            Ok(Some(published))
        }
        Err(error) if error.is_lock_timeout() => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the caller is told, and told again when it repeats its call under the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstAnswer {
    /// HTTP status.
    pub status: u16,
    /// The `Location`.
    pub location: Option<String>,
    /// The body.
    pub body: String,
}

/// Stores events of one tenant, their keys and the answer under the request's key in one commit. `answer` makes the
/// answer from the events that have the `dedup_key`s of those that were not stored, in the order of `drafts`. `None`:
/// the request's key is taken, and nothing was stored.
/// # Errors
/// [`StoreError`]; nothing was stored, or (unavailable) it is not known. [`StoreError::Conflict`]: see [`Published::Busy`].
pub async fn publish_all(
    db: &Db,
    courtesy: &Courtesy,
    drafts: Vec<Draft>,
    key: Option<NewKey>,
    answer: impl FnOnce(&[Option<StoredEvent>]) -> FirstAnswer,
) -> Result<Option<FirstAnswer>, StoreError> {
    let Some(tenant) = drafts.first().map(|draft| draft.event.tenant) else {
        return Ok(Some(answer(&[])));
    };
    let items: Vec<Publish> = drafts.into_iter().map(Publish::from).collect();
    let mut ordered: Vec<(usize, &Publish)> = items.iter().enumerate().collect();
    // One order over all pieces, as `publish` has it within one, or two requests could wait for each other.
    ordered.sort_by_key(|(_, item)| item.dedup_key.as_deref());
    let mut tx = db.begin_impatient().await?;
    let (mut placed, mut pieces) = (Vec::with_capacity(items.len()), courtesy.pieces(tenant, &ordered));
    while let Some(piece) = pieces.next().await {
        let items: Vec<&Publish> = piece.iter().map(|(_, item)| *item).collect();
        let stored = publish_store::publish(&mut *tx, &items).await;
        let stored = stored.map_err(|error| if error.is_lock_timeout() { busy() } else { error })?;
        placed.extend(piece.iter().map(|(place, _)| *place).zip(stored));
    }
    placed.sort_by_key(|(place, _)| *place);
    let published: Vec<Published> = placed.into_iter().map(|(_, published)| published).collect();
    let answer = answer(&first_events(&mut tx, tenant, &published).await?);
    if let Some(key) = key {
        let key = NewKey { location: answer.location.clone(), body: answer.body.clone().into_bytes(), ..key };
        if !idempotency::store::insert(&mut tx, tenant, &key, answer.status).await? {
            return Ok(None);
        }
    }
    tx.commit().await?;
    Ok(Some(answer))
}

/// Why an event with a held `dedup_key` is refused.
pub fn busy() -> StoreError {
    StoreError::Conflict(
        "a transaction that has not ended holds this dedup_key; try again when it has".to_owned(),
    )
}

async fn first_events(
    tx: &mut crate::db::Tx,
    tenant: TenantId,
    published: &[Published],
) -> Result<Vec<Option<StoredEvent>>, StoreError> {
    let first = |one: &Published| match one {
        Published::Duplicate(first) => Some(*first),
        _ => None,
    };
    let wanted: Vec<EventId> = published.iter().filter_map(first).collect();
    let found = read_store::get_several(&mut **tx, tenant, &wanted, i64::MAX).await?.events;
    let event = |one: &Published| {
        let id = first(one)?;
        found.iter().find(|event| event.id == id).cloned()
    };
    Ok(published.iter().map(event).collect())
}
