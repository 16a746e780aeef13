//! The walk of a replay: from a place in its window to the next page of what is to be sent.
//!
//! `failed` and `all` go over the tenant's deliveries by id and make them again with their bytes; `missing` goes over the
//! events by id and the endpoints that subscribe to them now, as the fan-out would. Called by `replays::count` and
//! `engine::feed_replays`, in their transaction. Writes nothing.
//!
//! Invariant: a page looks at a bounded number of rows and loads a bounded number of bytes, and its place lies behind
//! exactly what it looked at.

use std::collections::HashSet;
use std::sync::Arc;

use uuid::Uuid;

use super::{Ask, Place, What};
use crate::db::{StoreError, Tx};
use crate::deliveries::matched::{Matched, matched, order_of};
use crate::deliveries::replay_store::{self, Again, Ended, EndedAsk};
use crate::deliveries::{Due, FailedDelivery, NewDelivery};
use crate::endpoints::book::EndpointBook;
use crate::endpoints::expression::{EventContext, EventFacts};
use crate::endpoints::{Endpoint, EndpointStatus};
use crate::events::CallbackRef;
use crate::events::read_store::{self, StoredEvent};
use crate::events::window_store::{self, FanOut, Passed};
use crate::ids::{DeliveryId, EventId, ReplayId, TenantId, floor_of};
use crate::topics::matches;

/// Data of events that a page loads for filters and transforms.
const PAGE_MAX_BYTES: i64 = 4 * 1024 * 1024;

/// What is walked through.
#[derive(Debug, Clone, Copy)]
pub struct Walk<'a> {
    /// Whose.
    pub tenant: TenantId,
    /// For which replay; nil: for none.
    pub replay: ReplayId,
    /// What is asked for.
    pub ask: &'a Ask,
    /// All endpoints.
    pub book: &'a EndpointBook,
}

/// How far a page goes at most.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// So many rows are looked at.
    pub look: i64,
    /// So many deliveries are found.
    pub make: usize,
}

/// A page.
#[derive(Debug)]
pub struct Page {
    /// To be made once more.
    pub again: Vec<Again>,
    /// To be made.
    pub fresh: Vec<NewDelivery>,
    /// The filter or the transform failed.
    pub failed: Vec<FailedDelivery>,
    /// Behind all that was looked at.
    pub place: Place,
    /// There is nothing behind it.
    pub done: bool,
}

impl Page {
    fn new(place: Place) -> Self {
        Self { again: Vec::new(), fresh: Vec::new(), failed: Vec::new(), place, done: false }
    }

    /// How many.
    pub fn count(&self) -> i64 {
        (self.again.len() + self.fresh.len() + self.failed.len()) as i64
    }

    /// Something of it goes in an order.
    pub fn is_ordered(&self) -> bool {
        self.again.iter().any(|again| again.order.is_some())
            || self.fresh.iter().any(|new| new.order.is_some())
    }

    /// Moves the places in the order, which count from 0 in each page, behind those of earlier pages.
    pub fn move_behind(&mut self, first: i64) {
        self.again.iter_mut().for_each(|again| again.position += first);
        self.fresh.iter_mut().for_each(|new| new.position += first);
    }

    /// What waits, as it is held in memory.
    pub fn due(&self, tenant: TenantId) -> Vec<Due> {
        let again = self.again.iter().map(|again| again.due(tenant));
        again.chain(self.fresh.iter().map(NewDelivery::due)).collect()
    }
}

/// Something found, and the place behind it.
struct Step {
    place: Place,
    found: Found,
}

enum Found {
    /// A delivery that is made once more.
    Again(Again),
    /// An event and an endpoint, to be judged.
    Judge { event: EventId, event_type: String, order: Option<i64>, endpoint: Arc<Endpoint> },
}

impl Step {
    /// The event that has to be loaded for it.
    fn needs(&self) -> Option<EventId> {
        let Found::Judge { event, endpoint, .. } = &self.found else { return None };
        let subscription = &endpoint.settings.subscription;
        (subscription.filter.is_some() || subscription.transform.is_some()).then_some(*event)
    }
}

/// The page behind a place.
/// # Errors
/// [`StoreError`].
pub async fn page(tx: &mut Tx, walk: &Walk<'_>, after: Place, pace: Pace) -> Result<Page, StoreError> {
    let mut page = Page::new(after);
    let steps = match walk.ask.what {
        What::Failed | What::All => walk.ended(tx, pace, &mut page).await?,
        What::Missing => walk.missing(tx, pace, &mut page).await?,
    };
    judge(tx, walk, steps, &mut page).await?;
    Ok(page)
}

impl Walk<'_> {
    fn wants(&self, event_type: &str) -> bool {
        matches(self.ask.event_types.as_deref(), event_type)
    }

    /// An endpoint that can be told. The one that was named is counted even while it is disabled.
    fn may_tell(&self, endpoint: &Endpoint) -> bool {
        endpoint.settings.status != EndpointStatus::Disabled || self.ask.endpoint == Some(endpoint.id)
    }

    /// Over deliveries that have ended.
    async fn ended(&self, tx: &mut Tx, pace: Pace, page: &mut Page) -> Result<Vec<Step>, StoreError> {
        let ask = EndedAsk {
            tenant: self.tenant,
            replay: self.replay,
            endpoint: self.ask.endpoint,
            failed: self.ask.what == What::Failed,
            until: floor_of(self.ask.until),
        };
        let looked = replay_store::ended_page(tx, &ask, page.place.at, pace.look).await?;
        page.done = looked.is_empty();
        let mut steps = Vec::new();
        for one in looked {
            if steps.len() == pace.make {
                break;
            }
            page.place = Place { at: one.id.uuid(), endpoint: None };
            let found = one.ended.and_then(|ended| self.again(one.id, ended));
            steps.extend(found.map(|found| Step { place: page.place, found }));
        }
        Ok(steps)
    }

    fn again(&self, original: DeliveryId, ended: Ended) -> Option<Found> {
        if !self.wants(&ended.event_type) {
            return None;
        }
        let again = |target, order| {
            Found::Again(Again { id: DeliveryId::fresh(), original, target, order, position: 0 })
        };
        let Some(id) = ended.endpoint else {
            let callback = CallbackRef::new(self.tenant, ended.job?, &ended.callback_url?);
            return Some(again(callback.target, None));
        };
        let endpoint = self.book.get(self.tenant, id).filter(|endpoint| self.may_tell(endpoint))?;
        let order = order_of(endpoint.settings.ordering, ended.ordering_key.as_deref());
        if ended.bodiless {
            return Some(Found::Judge { event: ended.event, event_type: ended.event_type, order, endpoint });
        }
        Some(again(id.uuid(), order))
    }

    /// Over events and those who subscribe to them now.
    async fn missing(&self, tx: &mut Tx, pace: Pace, page: &mut Page) -> Result<Vec<Step>, StoreError> {
        let mut endpoints = match self.ask.endpoint {
            Some(id) => self.book.get(self.tenant, id).into_iter().collect(),
            None => self.book.of(self.tenant),
        };
        endpoints.retain(|endpoint| self.may_tell(endpoint));
        let from = match page.place.endpoint {
            Some(_) => page.place.at,
            None => Uuid::from_u128(page.place.at.as_u128().saturating_add(1)),
        };
        let window = (from, floor_of(self.ask.until));
        let events = window_store::page(tx, self.tenant, window, pace.look).await?;
        page.done = events.is_empty();
        let mut steps = Vec::new();
        'page: for event in events {
            let behind = page.place.endpoint.filter(|_| page.place.at == event.id.uuid());
            for endpoint in endpoints.iter().filter(|endpoint| self.is_asked(&event, endpoint)) {
                if behind.is_some_and(|behind| endpoint.id <= behind) {
                    continue;
                }
                if steps.len() == pace.make {
                    break 'page;
                }
                page.place = Place { at: event.id.uuid(), endpoint: Some(endpoint.id) };
                let order = order_of(endpoint.settings.ordering, event.ordering_key.as_deref());
                let (event_type, endpoint) = (event.event_type.clone(), endpoint.clone());
                let found = Found::Judge { event: event.id, event_type, order, endpoint };
                steps.push(Step { place: page.place, found });
            }
            page.place = Place { at: event.id.uuid(), endpoint: None };
        }
        self.without_told(tx, steps).await
    }

    /// Does the endpoint's subscription match the type, and will nobody else tell it?
    fn is_asked(&self, event: &Passed, endpoint: &Endpoint) -> bool {
        let will_be_told = match event.fan_out {
            FanOut::Done => false,
            FanOut::ToCome => true,
            FanOut::Partly => endpoint.id.created_at() <= event.id.created_at(),
        };
        !will_be_told
            && self.wants(&event.event_type)
            && endpoint.settings.subscription.matches_type(&event.event_type)
    }

    async fn without_told(&self, tx: &mut Tx, mut steps: Vec<Step>) -> Result<Vec<Step>, StoreError> {
        let pair = |step: &Step| match &step.found {
            Found::Judge { event, endpoint, .. } => Some((*event, endpoint.id)),
            Found::Again(_) => None,
        };
        let pairs: Vec<_> = steps.iter().filter_map(pair).collect();
        let told = replay_store::told(tx, self.tenant, &pairs).await?;
        steps.retain(|step| pair(step).is_none_or(|pair| !told.contains(&pair)));
        Ok(steps)
    }

    fn delivery(&self, event: EventId, event_type: String, endpoint: &Endpoint) -> NewDelivery {
        NewDelivery {
            tenant: self.tenant,
            id: DeliveryId::fresh(),
            event,
            event_type,
            job: None,
            endpoint: Some(endpoint.id),
            target: endpoint.id.uuid(),
            order: None,
            position: 0,
            data: None,
            replay: Some(self.replay),
        }
    }
}

/// Evaluates filters and transforms, as far as the events' data fit; the page ends where they do not.
async fn judge(tx: &mut Tx, walk: &Walk<'_>, steps: Vec<Step>, page: &mut Page) -> Result<(), StoreError> {
    let mut seen = HashSet::new();
    let needed: Vec<EventId> =
        steps.iter().filter_map(Step::needs).filter(|event| seen.insert(*event)).collect();
    let several = read_store::get_several(&mut **tx, walk.tenant, &needed, PAGE_MAX_BYTES).await?;
    let later = not_loaded(&needed, &several);
    let mut context: Option<(EventId, Option<Result<EventContext, String>>)> = None;
    let mut before = None;
    for (position, step) in (0..).zip(steps) {
        if step.needs().is_some_and(|event| later.contains(&event)) {
            // The first event is always loaded, so there is one before.
            page.place = before.unwrap_or(page.place);
            page.done = false;
            return Ok(());
        }
        before = Some(step.place);
        let (event, event_type, order, endpoint) = match step.found {
            Found::Again(again) => {
                page.again.push(Again { position, ..again });
                continue;
            }
            Found::Judge { event, event_type, order, endpoint } => (event, event_type, order, endpoint),
        };
        if context.as_ref().is_none_or(|(of, _)| *of != event) {
            context = Some((event, several.events.iter().find(|one| one.id == event).map(context_of)));
        }
        let facts = context.as_ref().and_then(|(_, facts)| facts.as_ref());
        let delivery = NewDelivery { order, position, ..walk.delivery(event, event_type, &endpoint) };
        match matched(&endpoint.settings.subscription, facts) {
            Matched::No => {}
            Matched::Yes { data } => page.fresh.push(NewDelivery { data, ..delivery }),
            Matched::Failed { code, message } => {
                page.failed.push(FailedDelivery { delivery, code, message });
            }
        }
    }
    Ok(())
}

/// The events that are there, but did not fit. What is there at all is loaded in the order that was asked for.
fn not_loaded(needed: &[EventId], several: &read_store::Several) -> HashSet<EventId> {
    if several.found <= several.events.len() as i64 {
        return HashSet::new();
    }
    let loaded: HashSet<EventId> = several.events.iter().map(|event| event.id).collect();
    let last = needed.iter().rposition(|event| loaded.contains(event)).map_or(0, |last| last + 1);
    needed[last..].iter().copied().collect()
}

fn context_of(event: &StoredEvent) -> Result<EventContext, String> {
    EventContext::new(&EventFacts {
        id: event.id,
        event_type: &event.event_type,
        data: event.data.get().as_bytes(),
        metadata: event.metadata.as_ref(),
    })
}
