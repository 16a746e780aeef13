//! [pure] Whose turn is it: fair over tenants, then over the receivers of a tenant; caps, holds, order per key.
//!
//! Called by `engine::dispatch`, which fetches, sends and records; here is only the order. Time is a duration since the
//! dispatcher began and comes in as an argument; the rate limit is asked through a closure. `target` holds one receiver.
//!
//! Each tenant with something to send gets one delivery in turn, and within it each receiver that may be called now. A
//! receiver at its cap, on hold, or without anything to send stands in no ring and costs nothing. Receivers that have
//! not answered well yet share three quarters of the places, so that they cannot take the last ones from those that do,
//! and have one turn of four.
//! Replays share half of the places and a quarter of a receiver's window, and go where nothing live may.
//!
//! Invariants: no receiver has more in flight than its cap; of one order key at most one is in flight, and it is the one
//! that was published first (or, of what is replayed, the one that was queued first); whoever has work and may be called is reached within four rounds.

mod backlog;
mod ring;
mod suspects;
mod target;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use uuid::Uuid;

use super::{Due, DueCursor};
use crate::ids::{DeliveryId, TenantId};
use backlog::FLOOR;
pub use backlog::Kind;
use ring::Ring;
use suspects::Suspects;
use target::{HELD_MAX, Taken, Target};
pub use target::{HELD_PER_KEY_MAX, Landing, LandingAnswer, Policy};

/// A moment: time since the dispatcher began.
pub type Moment = Duration;
/// A receiver: whose, and which.
pub type TargetRef = (TenantId, Uuid);
/// What waits for a receiver without an order: the live, or the replayed.
pub type BacklogRef = (TargetRef, Kind);
/// What waits of an order key of a receiver: the live, or the replayed.
pub type KeyRef = (TargetRef, (i64, Kind));

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It waits in memory.
    Taken,
    /// It was there already.
    Known,
    /// It stays in the database; the receiver is refilled, or the key loaded, when there is room.
    Left,
}

/// What the schedule would like to have from the database.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// Receivers that have room again and more in the database, and where to go on from.
    pub refills: Vec<(BacklogRef, Option<DueCursor>)>,
    /// So many for each of them.
    pub refill: usize,
    /// Order keys whose first deliveries have to be looked up.
    pub keys: Vec<KeyRef>,
}

/// The waiting deliveries of the lanes that this process owns.
#[derive(Debug)]
pub struct Schedule {
    places: usize,
    held_max: usize,
    targets: HashMap<TargetRef, Target>,
    tenants: HashMap<TenantId, Ring>,
    ring: VecDeque<TenantId>,
    timers: BinaryHeap<Reverse<(Moment, TargetRef)>>,
    /// Waiting or in flight: what must not be taken from the database a second time.
    known: HashSet<DeliveryId>,
    in_flight: usize,
    replays_in_flight: usize,
    unproven_in_flight: usize,
    /// Receivers with order keys, perhaps.
    ordered: HashSet<TargetRef>,
    /// Unproven receivers that found no place.
    parked: VecDeque<TargetRef>,
    /// Receivers that failed, and wait for their turn.
    suspects: Suspects,
    /// Receivers whose replays found no place.
    parked_replays: VecDeque<TargetRef>,
    wants: Wants,
    targets_max: usize,
}

/// From so many receivers on, those without work are forgotten, their good or bad times with them.
const TARGETS_MAX: usize = 20_000;

impl Schedule {
    /// At most `places` in flight, at most `held_max` in memory and a few more for each receiver.
    pub fn new(places: usize, held_max: usize) -> Self {
        Self {
            places,
            held_max,
            targets: HashMap::new(),
            tenants: HashMap::new(),
            ring: VecDeque::new(),
            timers: BinaryHeap::new(),
            known: HashSet::new(),
            in_flight: 0,
            replays_in_flight: 0,
            unproven_in_flight: 0,
            ordered: HashSet::new(),
            parked: VecDeque::new(),
            suspects: Suspects::default(),
            parked_replays: VecDeque::new(),
            wants: Wants::default(),
            targets_max: TARGETS_MAX,
        }
    }

    /// How many are held, in flight included.
    pub fn held(&self) -> usize {
        self.known.len()
    }

    /// How many are in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Sets what holds for a receiver; `default` holds for one that was never named.
    pub fn set_policy(&mut self, target: TargetRef, policy: Policy, now: Moment) {
        self.targets.entry(target).or_default().set_policy(policy);
        self.list(target, now);
    }

    /// Is anything known of this receiver?
    pub fn knows(&self, target: TargetRef) -> bool {
        self.targets.contains_key(&target)
    }

    /// Adds a delivery that is due. Those of an order key come in their order, and between the last one and this there is
    /// none that was not offered, unless [`Self::doubt`] said so.
    pub fn offer(&mut self, due: Due, now: Moment) -> Offer {
        self.add(due, now, false)
    }

    /// Adds a due delivery that was found in the database, in whatever order: earlier ones of its key may be there as well.
    pub fn offer_found(&mut self, due: Due, now: Moment) -> Offer {
        if let (Some(key), false) = (due.order, self.known.contains(&due.id)) {
            self.targets.entry((due.tenant, due.target)).or_default().doubt_line((key, Kind::of(&due)));
        }
        self.add(due, now, false)
    }

    /// What is offered next is perhaps not the next one of its key: some may be in the database that were not offered.
    pub fn doubt(&mut self) {
        self.ordered.retain(|at| self.targets.get_mut(at).is_some_and(Target::doubt));
    }

    /// Adds what a refill brought; `more`: there is still more in the database, behind the cursor.
    pub fn refill(
        &mut self,
        (at, kind): BacklogRef,
        rows: impl IntoIterator<Item = Due>,
        (more, mut cursor): (bool, Option<DueCursor>),
        now: Moment,
    ) {
        let mut left = false;
        for due in rows {
            left = self.add(due, now, true) == Offer::Left || left;
        }
        if left {
            cursor = None;
        }
        if let Some(target) = self.targets.get_mut(&at) {
            target.refilled(kind, more || left, cursor);
            self.list(at, now);
        }
    }

    fn add(&mut self, due: Due, now: Moment, refill: bool) -> Offer {
        if self.known.contains(&due.id) {
            return Offer::Known;
        }
        let full = self.is_full();
        let at = (due.tenant, due.target);
        let target = self.targets.entry(at).or_default();
        let taken = match due.order {
            Some(key) => {
                self.ordered.insert(at);
                let line = (key, Kind::of(&due));
                let taken = target.offer_ordered(line, due, full);
                if !taken && target.wants_key(line) {
                    self.wants.keys.push((at, line));
                }
                taken
            }
            None => target.offer_free(due, full, refill),
        };
        if !taken {
            return Offer::Left;
        }
        self.known.insert(due.id);
        self.list(at, now);
        Offer::Taken
    }

    /// Takes the first deliveries of an order key, in their order; `complete`: there are no others.
    pub fn key_loaded(&mut self, (at, line): KeyRef, rows: Vec<(Due, Moment)>, complete: bool, now: Moment) {
        let Some(target) = self.targets.get_mut(&at) else { return };
        for id in target.load_key(line, rows, complete) {
            self.known.insert(id);
        }
        if target.wants_key(line) {
            self.wants.keys.push((at, line));
        }
        self.list(at, now);
    }

    /// The load of a key failed: it is asked for again.
    pub fn key_not_loaded(&mut self, (at, line): KeyRef) {
        if let Some(target) = self.targets.get_mut(&at) {
            target.forget_load(line);
            if target.wants_key(line) {
                self.wants.keys.push((at, line));
            }
        }
    }

    /// What is wanted from the database, once.
    pub fn wants(&mut self) -> Wants {
        let mut wants = std::mem::take(&mut self.wants);
        if let Some(each) = self.held_max.saturating_sub(self.known.len()).checked_div(wants.refills.len()) {
            wants.refill = each.clamp(FLOOR, HELD_MAX);
        }
        wants
    }

    fn is_full(&self) -> bool {
        self.known.len() >= self.held_max
    }

    /// Puts a receiver that may be called now into the rings, or sets a timer for it.
    fn list(&mut self, at: TargetRef, now: Moment) {
        let full = self.is_full();
        let Some(target) = self.targets.get_mut(&at) else { return };
        for kind in Kind::BOTH {
            if target.wants_refill(kind, full) {
                self.wants.refills.push(((at, kind), target.refill_from(kind)));
            }
        }
        if target.listed {
            return;
        }
        match target.ready_at(now) {
            Some(when) if when <= now => {
                target.listed = true;
                let ring = self.tenants.entry(at.0).or_default();
                if ring.is_empty() {
                    self.ring.push_back(at.0);
                }
                ring.push(at.1, target.proven);
            }
            Some(when) if target.timer_at.is_none_or(|set| when < set) => {
                target.timer_at = Some(when);
                self.timers.push(Reverse((when, at)));
            }
            Some(_) | None => {}
        }
    }

    /// When something may be ready that is not now.
    pub fn next_timer(&self) -> Option<Moment> {
        let timer = self.timers.peek().map(|Reverse((when, _))| *when);
        timer.into_iter().chain(self.suspects.next_at()).min()
    }

    /// Lists what became ready by the passing of time.
    fn tick(&mut self, now: Moment) {
        for at in self.suspects.due(now) {
            if let Some(target) = self.targets.get_mut(&at) {
                target.listed = false;
                target.may_try = true;
            }
            self.list(at, now);
        }
        while let Some(Reverse((when, at))) = self.timers.peek().copied() {
            if when > now {
                return;
            }
            self.timers.pop();
            if let Some(target) = self.targets.get_mut(&at).filter(|target| target.timer_at == Some(when)) {
                target.timer_at = None;
            }
            self.list(at, now);
        }
    }

    /// Refills begin at the beginning again: what became visible late may be behind the place where they stand.
    pub fn rewind(&mut self) {
        self.targets.values_mut().for_each(Target::rewind);
    }

    /// Has a tenant something to send that is none of these?
    pub fn has_others(&self, than: &HashSet<TenantId>) -> bool {
        self.ring.iter().any(|tenant| !than.contains(tenant))
    }

    /// The next one to send; it counts as in flight from now on, and may fly when [`Self::fly`] says so. `rate` is asked before a receiver is called, and says
    /// how long it has to wait, if it has to.
    pub fn take(&mut self, now: Moment, mut rate: impl FnMut(TargetRef) -> Option<Duration>) -> Option<Due> {
        self.tick(now);
        // Each round takes one receiver out of a ring or returns, so this ends.
        while self.in_flight < self.places {
            let tenant_id = self.ring.pop_front()?;
            let target_id = match self.tenants.get_mut(&tenant_id) {
                Some(ring) => {
                    let first = ring.pop();
                    if ring.is_empty() {
                        self.tenants.remove(&tenant_id);
                    } else {
                        self.ring.push_back(tenant_id);
                    }
                    first
                }
                None => None,
            };
            let (Some(target_id), unproven_full) =
                (target_id, self.unproven_in_flight * 4 >= self.places * 3)
            else {
                continue;
            };
            let at = (tenant_id, target_id);
            let Some(target) = self.targets.get_mut(&at) else { continue };
            target.listed = false;
            if target.ready_at(now).is_none_or(|when| when > now) {
                self.list(at, now);
                continue;
            }
            if target.is_suspect() && !target.may_try {
                target.may_try = self.suspects.goes(at, now);
                target.listed = !target.may_try;
                if target.listed {
                    continue;
                }
            }
            if !target.proven && unproven_full {
                target.listed = true;
                self.parked.push_back(at);
                continue;
            }
            if self.replays_in_flight * 2 >= self.places && !target.has_live() {
                target.replays_parked = true;
                self.parked_replays.push_back(at);
                self.list(at, now);
                continue;
            }
            if let Some(wait) = rate(at) {
                target.hold(now + wait.max(Duration::from_micros(100)));
                self.list(at, now);
                continue;
            }
            let Some(Taken { due, unproven }) = target.take(now) else {
                self.list(at, now);
                continue;
            };
            self.in_flight += 1;
            self.replays_in_flight += usize::from(due.replay);
            self.unproven_in_flight += usize::from(unproven);
            self.list(at, now);
            return Some(due);
        }
        None
    }

    /// Until when the receiver's breaker is open; a moment that is past: one is let through to try. `None`: closed.
    pub fn open_until(&self, target: TargetRef) -> Option<Moment> {
        self.targets.get(&target).and_then(Target::open_until)
    }

    /// May one that was taken and is loaded go on the wire now? It counts as flying from then on.
    pub fn fly(&mut self, at: TargetRef, now: Moment) -> bool {
        let Some(target) = self.targets.get_mut(&at).filter(|target| target.may_fly(now)) else {
            return false;
        };
        target.fly();
        true
    }

    /// One that was taken could not be loaded; [`Self::answered`] follows.
    pub fn fly_unasked(&mut self, at: TargetRef) {
        if let Some(target) = self.targets.get_mut(&at) {
            target.fly();
        }
    }

    /// One that was taken does not go after all: it waits again, before the others. Of several the last comes first.
    pub fn put_back(&mut self, due: &Due, now: Moment) {
        let at = (due.tenant, due.target);
        let unproven = self.targets.get_mut(&at).is_some_and(|target| target.put_back(due));
        self.lands(due, unproven, now);
        self.list(at, now);
    }

    /// The receiver answered, or was not called. What it is about to be told next depends on how it did.
    pub fn answered(&mut self, due: &Due, answer: (LandingAnswer, Duration), now: Moment) {
        let at = (due.tenant, due.target);
        let unproven = self.targets.get_mut(&at).is_some_and(|target| target.answered(due, answer, now));
        self.lands(due, unproven, now);
        self.list(at, now);
    }

    fn lands(&mut self, due: &Due, unproven: bool, now: Moment) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.replays_in_flight = self.replays_in_flight.saturating_sub(usize::from(due.replay));
        self.unproven_in_flight = self.unproven_in_flight.saturating_sub(usize::from(unproven));
        self.unpark_replays(now);
        self.unpark(now);
    }

    /// What came of it is on record, and its row tells what is next. Follows [`Self::answered`].
    pub fn recorded(&mut self, due: &Due, landing: Landing, now: Moment) {
        let at = (due.tenant, due.target);
        self.known.remove(&due.id);
        let Some(target) = self.targets.get_mut(&at) else { return };
        let back = target.recorded(due, landing, now);
        if let Some(id) = back.kept {
            // The head of a key that waits for its next try stays in memory: it blocks the key.
            self.known.insert(id);
        }
        for id in back.dropped {
            self.known.remove(&id);
        }
        for line in due.order.into_iter().flat_map(|key| Kind::BOTH.map(|kind| (key, kind))) {
            if target.wants_key(line) {
                self.wants.keys.push((at, line));
            }
        }
        if target.is_idle() && !target.is_memorable() {
            self.targets.remove(&at);
        } else {
            self.list(at, now);
        }
        if self.targets.len() > self.targets_max {
            self.targets.retain(|_, target| !target.is_idle());
            self.targets_max = (self.targets.len() * 2).max(TARGETS_MAX);
        }
    }

    fn unpark(&mut self, now: Moment) {
        if self.unproven_in_flight * 4 >= self.places * 3 {
            return;
        }
        if let Some(at) = self.parked.pop_front() {
            if let Some(target) = self.targets.get_mut(&at) {
                target.listed = false;
            }
            self.list(at, now);
        }
    }

    fn unpark_replays(&mut self, now: Moment) {
        if self.replays_in_flight * 2 >= self.places {
            return;
        }
        if let Some(at) = self.parked_replays.pop_front() {
            if let Some(target) = self.targets.get_mut(&at) {
                target.replays_parked = false;
            }
            self.list(at, now);
        }
    }

    /// Forgets what waits in lanes that are not kept (it is in the database); what is in flight stays.
    pub fn keep_lanes(&mut self, keep: impl Fn(TargetRef) -> bool, now: Moment) {
        for (at, target) in &mut self.targets {
            if !keep(*at) {
                for id in target.clear() {
                    self.known.remove(&id);
                }
            }
        }
        self.targets.retain(|_, target| !target.is_idle() || target.is_memorable());
        self.tenants.clear();
        self.ring.clear();
        self.timers.clear();
        self.parked.clear();
        self.suspects = Suspects::default();
        self.parked_replays.clear();
        self.wants = Wants::default();
        let all: Vec<TargetRef> = self.targets.keys().copied().collect();
        for at in all {
            if let Some(target) = self.targets.get_mut(&at) {
                target.listed = false;
                target.replays_parked = false;
                target.timer_at = None;
                self.wants.keys.extend(target.ask_again().into_iter().map(|key| (at, key)));
            }
            self.list(at, now);
        }
    }
}
