//! Stop 7 of a job's path: committed events get their positions in the log, and a delivery for each receiver: the callback
//! of a job, and every endpoint that is subscribed. Next: `engine::dispatch`.
//!
//! One transaction numbers a batch and creates its deliveries, so each event is fanned out exactly once, in the order of
//! the log, also across a crash. An event with very many receivers gets the first thousand there; the others are made in
//! pieces, each a transaction, between the batches that come meanwhile. A batch has fewer events the more receivers they
//! have (`Portion`), so that nobody waits long for one that is under way.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::jittered;
use crate::courtesy::Stream;
use crate::db::StoreError;
use crate::db::batch::rest_after;
use crate::deliveries::hand_off::Created;
use crate::deliveries::matched::{Matched, order_of};
use crate::deliveries::{self, Due, FailedDelivery, NewDelivery};
use crate::endpoints::expression::{EventContext, EventFacts};
use crate::endpoints::{DeliveryOrder, Endpoint, EndpointStatus};
use crate::events;
use crate::events::store::{Facts, Numbered, Rest};
use crate::ids::{DeliveryId, TenantId};
use crate::shared::Shared;
use crate::supervisor::Stop;

/// Deliveries of one event that are made together with its number.
const TOGETHER_MAX: usize = 1000;
/// Deliveries that are made in one transaction, when events with many receivers come unexpected; the others are left for
/// pieces. A statement with a million of them would run into its timeout, again and again.
const MADE_MAX: usize = 10_000;
/// The longest rest after a batch; somebody waits for what comes next.
const REST_MAX: Duration = Duration::from_millis(2);
/// An idle look: for events whose bell was not heard.
const POLL: Duration = Duration::from_secs(1);
/// The same for a while after there was something. Of publishers in SQL who commit at the same time one rings the bell,
/// perhaps a moment before the others have committed.
const POLL_SOON: Duration = Duration::from_millis(100);
const SOON_FOR: Duration = Duration::from_secs(1);

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    let mut soon_until = Instant::now();
    let (mut row, mut portion) = (Row::default(), Portion::default());
    let mut told = false;
    loop {
        let began = Instant::now();
        let done = match round(&shared, &mut row, &mut portion, told).await {
            Ok(done) => done,
            Err(error) => {
                tracing::warn!(%error, "cannot fan events out");
                Done::default()
            }
        };
        let way =
            shared.courtesy.pause_after(done.tenants.iter().copied().map(Stream::Live), began.elapsed());
        if let (Some(way), false) = (way, stop.drain.is_cancelled()) {
            // Of no use to wait for where a quiet tenant brings something.
            drop(tokio::time::timeout(way.time, shared.courtesy.came.notified()).await);
        }
        // Who pauses has more, most likely, and has rested enough.
        told = done.more || way.is_some();
        if told && !stop.drain.is_cancelled() {
            continue;
        }
        // What comes meanwhile shares the next commit.
        tokio::time::sleep(rest_after(done.tenants.len(), Portion::EVENTS_MAX).min(REST_MAX)).await;
        if !done.tenants.is_empty() {
            soon_until = Instant::now() + SOON_FOR;
        }
        let poll = if Instant::now() < soon_until { POLL_SOON } else { POLL };
        tokio::select! {
            () = stop.drain.cancelled() => return,
            () = shared.wakeups.events.notified() => told = true,
            () = tokio::time::sleep(jittered(poll)) => {}
        }
    }
}

/// Whether the batches that the dispatcher is handed follow each other without a gap.
#[derive(Debug, Default)]
struct Row {
    /// The position behind the last batch of this process.
    next: Option<i64>,
    /// Something was numbered since that the dispatcher was not handed.
    gap: bool,
}

impl Row {
    /// Notes a batch that was numbered here.
    fn note(&mut self, numbered: &[Numbered]) {
        if let (Some(first), Some(last)) = (numbered.first(), numbered.last()) {
            self.gap = self.gap || self.next != Some(first.position);
            self.next = Some(last.position + 1);
        }
    }
}

/// How many events are numbered together: as many as make about so many deliveries as one transaction should.
#[derive(Debug)]
struct Portion(usize);

impl Portion {
    const DELIVERIES: usize = 200;
    const EVENTS_MAX: usize = 1000;
    /// As many as keep nobody waiting for more than a few milliseconds.
    const CROWDED_MAX: usize = 16;

    /// `crowded`: somebody quiet may come while a loud one's are under way.
    fn events(&self, crowded: bool) -> i64 {
        let most = if crowded { Self::CROWDED_MAX } else { Self::EVENTS_MAX };
        self.0.min(most) as i64
    }

    /// Learns from a batch. It shrinks at once, and grows to the double at most.
    fn learn(&mut self, events: usize, deliveries: usize) {
        if events > 0 {
            let fitting = Self::DELIVERIES * events / deliveries.max(1);
            self.0 = fitting.clamp(1, (self.0 * 2).min(Self::EVENTS_MAX));
        }
    }
}

impl Default for Portion {
    fn default() -> Self {
        Self(Self::DELIVERIES)
    }
}

/// What a round did.
#[derive(Debug, Clone, Default)]
struct Done {
    /// The tenants of the events that got their positions, one for each event.
    tenants: Vec<TenantId>,
    /// There is more.
    more: bool,
}

/// A batch, and a piece of a large fan-out. `told`: something waits, most likely.
async fn round(
    shared: &Shared,
    row: &mut Row,
    portion: &mut Portion,
    told: bool,
) -> Result<Done, StoreError> {
    let mut done = Done::default();
    // To find that nothing waits takes a lock that all processes share, so where nobody said so a look comes first.
    if told || events::store::is_waiting(&shared.db).await? {
        let asked = portion.events(shared.courtesy.is_asked_for());
        let (tenants, created) = fan_out(shared, row, portion, asked).await?;
        if !created.is_empty() {
            row.gap = !hand_over(shared, Created { due: created, gap: row.gap });
        }
        done = Done { more: tenants.len() as i64 >= asked, tenants };
    }
    let (rest, created) = rest_of(shared).await?;
    // None of these is ordered, so it does not matter where they stand.
    hand_over(shared, Created { due: created, gap: false });
    Ok(Done { more: done.more || rest, ..done })
}

/// `false`: the dispatcher is busy, or there is none here; they are found in the database.
pub(super) fn hand_over(shared: &Shared, created: Created) -> bool {
    if created.due.is_empty() {
        return true;
    }
    shared.wakeups.deliveries_elsewhere(shared.hand_off.foreign_lanes(&created.due));
    let given = shared.hand_off.give(created);
    if !given {
        shared.wakeups.deliveries.notify_here();
    }
    given
}

/// Numbers a batch, and makes its deliveries.
async fn fan_out(
    shared: &Shared,
    row: &mut Row,
    portion: &mut Portion,
    asked: i64,
) -> Result<(Vec<TenantId>, Vec<Due>), StoreError> {
    let mut tx = shared.db.begin().await?;
    let numbered = events::store::number(&mut tx, asked).await?;
    refresh(shared).await?;
    let plans: Vec<Plan<'_>> = numbered.iter().map(|event| Plan::of(shared, event)).collect();
    let wanted: Vec<_> = plans
        .iter()
        .filter(|plan| plan.needs_facts())
        .map(|plan| (plan.event.tenant, plan.event.event))
        .collect();
    let facts = events::store::facts_of(&mut tx, &wanted).await?;
    let (mut made, mut rests) = (Made::default(), Vec::new());
    for plan in &plans {
        rests.extend(plan.carry_out(facts.get(&plan.event.event), &mut made));
    }
    write(&mut tx, &made).await?;
    events::store::add_rests(&mut tx, &rests).await?;
    tx.commit().await?;
    row.note(&numbered);
    portion.learn(numbered.len(), made.count());
    shared.event_bells.ring(numbered.iter().map(|event| event.tenant));
    shared.wakeups.log_elsewhere(numbered.iter().map(|event| event.tenant.uuid()));
    Ok((numbered.iter().map(|event| event.tenant).collect(), made.due()))
}

/// One piece of a large fan-out. `true`: there may be more.
async fn rest_of(shared: &Shared) -> Result<(bool, Vec<Due>), StoreError> {
    if !events::store::has_rests(&shared.db).await? {
        return Ok((false, Vec::new()));
    }
    let mut tx = shared.db.begin().await?;
    let Some(rest) = events::store::take_rest(&mut tx).await? else {
        return Ok((false, Vec::new()));
    };
    refresh(shared).await?;
    let facts = events::store::facts_of(&mut tx, &[(rest.event.tenant, rest.event.event)]).await?;
    let mut plan = Plan::of(shared, &rest.event);
    // Those that were made after the event did not subscribe to it, and the ordered ones are done.
    plan.endpoints.retain(|endpoint| {
        endpoint.id > rest.after
            && endpoint.id.created_at() <= rest.event.event.created_at()
            && !is_ordered(endpoint)
    });
    plan.event_callback = false;
    let mut made = Made::default();
    let next = plan.carry_out(facts.get(&rest.event.event), &mut made);
    write(&mut tx, &made).await?;
    events::store::finish_rest(&mut tx, &rest, next.as_ref()).await?;
    tx.commit().await?;
    Ok((true, made.due()))
}

/// Reads what changed of the endpoints, and tells the dispatcher.
pub(super) async fn refresh(shared: &Shared) -> Result<(), StoreError> {
    match shared.endpoints.refresh(&shared.db, &shared.sealer).await {
        Ok(false) => Ok(()),
        Ok(true) => {
            shared.wakeups.endpoints.notify_here();
            Ok(())
        }
        Err(crate::secrets::SecretError::Store(error)) => Err(error),
        Err(error) => {
            tracing::error!(%error, "an endpoint cannot be read; its last known settings are used");
            Ok(())
        }
    }
}

fn is_ordered(endpoint: &Endpoint) -> bool {
    endpoint.settings.ordering != DeliveryOrder::Unordered
}

async fn write(tx: &mut crate::db::Tx, made: &Made) -> Result<(), StoreError> {
    if !made.new.is_empty() {
        deliveries::store::create(tx, &made.new).await?;
    }
    if !made.failed.is_empty() {
        deliveries::store::create_failed(tx, &made.failed).await?;
    }
    Ok(())
}

/// What a fan-out makes.
#[derive(Default)]
struct Made {
    new: Vec<NewDelivery>,
    failed: Vec<FailedDelivery>,
}

impl Made {
    fn count(&self) -> usize {
        self.new.len() + self.failed.len()
    }

    fn due(&self) -> Vec<Due> {
        self.new.iter().map(NewDelivery::due).collect()
    }
}

/// An event and the endpoints whose types it matches.
struct Plan<'a> {
    event: &'a Numbered,
    event_callback: bool,
    endpoints: Vec<Arc<Endpoint>>,
}

impl<'a> Plan<'a> {
    fn of(shared: &Shared, event: &'a Numbered) -> Self {
        let mut endpoints = shared.endpoints.of(event.tenant);
        endpoints.retain(|endpoint| {
            endpoint.settings.status != EndpointStatus::Disabled
                && endpoint.settings.subscription.matches_type(&event.event_type)
        });
        // The ordered ones first: they are never left for a later piece, or their order would be lost.
        endpoints.sort_by_key(|endpoint| (!is_ordered(endpoint), endpoint.id));
        Self { event, event_callback: true, endpoints }
    }

    fn needs_facts(&self) -> bool {
        self.endpoints.iter().any(|endpoint| {
            let subscription = &endpoint.settings.subscription;
            subscription.filter.is_some() || subscription.transform.is_some() || is_ordered(endpoint)
        })
    }

    /// Makes the deliveries, a thousand at most but for the ordered ones, fewer where `made` is full. Answers what is left.
    fn carry_out(&self, facts: Option<&Facts>, made: &mut Made) -> Option<Rest> {
        if let (true, Some(callback)) = (self.event_callback, self.event.callback) {
            made.new.push(NewDelivery { job: Some(callback.job), ..self.delivery(callback.target) });
        }
        let context = facts.map(|facts| context_of(self.event, facts));
        let mut count = 0;
        for endpoint in &self.endpoints {
            if (count >= TOGETHER_MAX || made.count() >= MADE_MAX) && !is_ordered(endpoint) {
                return self.rest_before(endpoint);
            }
            count += usize::from(self.tell(endpoint, facts, context.as_ref(), made));
        }
        None
    }

    /// The rest begins with this endpoint.
    fn rest_before(&self, endpoint: &Endpoint) -> Option<Rest> {
        let place = self.endpoints.iter().position(|one| one.id == endpoint.id)?;
        let before = self.endpoints[..place].iter().rev().find(|one| !is_ordered(one));
        let after = before.map_or(crate::ids::EndpointId::from_uuid(uuid::Uuid::nil()), |one| one.id);
        Some(Rest { event: self.event.clone(), after })
    }

    fn tell(
        &self,
        endpoint: &Endpoint,
        facts: Option<&Facts>,
        context: Option<&Result<EventContext, String>>,
        made: &mut Made,
    ) -> bool {
        let matched = deliveries::matched::matched(&endpoint.settings.subscription, context);
        let ordering_key = facts.and_then(|facts| facts.ordering_key.as_deref());
        let order = order_of(endpoint.settings.ordering, ordering_key);
        let delivery =
            NewDelivery { endpoint: Some(endpoint.id), order, ..self.delivery(endpoint.id.uuid()) };
        match matched {
            Matched::No => return false,
            Matched::Yes { data } => made.new.push(NewDelivery { data, ..delivery }),
            Matched::Failed { code, message } => made.failed.push(FailedDelivery { delivery, code, message }),
        }
        true
    }

    fn delivery(&self, target: uuid::Uuid) -> NewDelivery {
        NewDelivery {
            tenant: self.event.tenant,
            id: DeliveryId::fresh(),
            event: self.event.event,
            event_type: self.event.event_type.clone(),
            job: None,
            endpoint: None,
            target,
            order: None,
            position: self.event.position,
            data: None,
            replay: None,
        }
    }
}

fn context_of(event: &Numbered, facts: &Facts) -> Result<EventContext, String> {
    EventContext::new(&EventFacts {
        id: event.event,
        event_type: &event.event_type,
        data: &facts.data,
        metadata: facts.metadata.as_ref(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portion_follows_the_number_of_receivers() {
        let mut portion = Portion::default();
        assert_eq!(portion.events(false), 200);
        portion.learn(200, 500_000);
        assert_eq!(portion.events(false), 1, "many receivers each: one event at a time");
        for expected in [2, 4, 8] {
            portion.learn(1, 1);
            assert_eq!(portion.events(false), expected);
        }
        (0..10).for_each(|_| portion.learn(8, 80));
        assert_eq!(portion.events(false), 20);
        (0..10).for_each(|_| portion.learn(20, 0));
        assert_eq!(portion.events(false), 1000, "nobody is told: only the log's work counts");
        assert_eq!(portion.events(true), 16, "somebody quiet may come meanwhile");
        portion.learn(0, 0);
        assert_eq!(portion.events(false), 1000);
    }
}
