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
//! Of a receiver's order keys a bounded number is in memory (`keys`); the others have their turns from the database.
//!
//! Invariants: no receiver has more on the wire than its cap; of one order key at most one is in flight, and it is the one
//! that was published first (or, of what is replayed, the one that was queued first); whoever has work and may be called is reached within four rounds.

mod backlog;
mod keys;
mod lines;
mod ring;
mod suspects;
mod target;
#[cfg(test)]
mod tests;
mod walk;
mod wants;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use uuid::Uuid;

use super::{Due, DueCursor};
use crate::ids::{DeliveryId, TenantId};
use backlog::FLOOR;
pub use backlog::Kind;
use keys::{Changed, Room};
pub use lines::{LINES_MAX, Line};
use ring::Ring;
use suspects::Suspects;
pub use target::{Landing, LandingAnswer, Policy};
use target::{Taken, Target};
pub use wants::{LinesPage, Refill, Wants};

/// A moment: time since the dispatcher began.
pub type Moment = Duration;
/// A receiver: whose, and which.
pub type TargetRef = (TenantId, Uuid);
/// What waits for a receiver without an order: the live, or the replayed.
pub type BacklogRef = (TargetRef, Kind);
/// What waits of an order key of a receiver: the live, or the replayed.
pub type KeyRef = (TargetRef, Line);

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
    /// Lines in memory, of all receivers.
    lines: usize,
    lines_max: usize,
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
            lines: 0,
            lines_max: LINES_MAX,
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
            self.targets.entry((due.tenant, due.target)).or_default().keys.doubt_line((key, Kind::of(&due)));
        }
        self.add(due, now, false)
    }

    /// What is offered next is perhaps not the next one of its key: some may be in the database that were not offered.
    pub fn doubt(&mut self) {
        self.ordered.retain(|at| self.targets.get_mut(at).is_some_and(|target| target.keys.doubt()));
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
            // An ordered one that is left comes by its key: the walk behind the cursor is not for it.
            left = (self.add(due, now, true) == Offer::Left && due.order.is_none()) || left;
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
        let room = self.room();
        let at = (due.tenant, due.target);
        let target = self.targets.entry(at).or_default();
        let taken = if due.order.is_some() {
            self.ordered.insert(at);
            let (taken, changed) = target.keys.offer(due, room, now);
            self.follow(at, changed);
            self.list(at, now);
            taken
        } else {
            target.offer_free(due, room.full, refill)
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
        let room = self.room();
        let Some(target) = self.targets.get_mut(&at) else { return };
        let changed = target.keys.load(line, (rows, complete), room, now);
        self.follow(at, changed);
        self.list(at, now);
    }

    /// The load of a key failed: it is asked for again.
    pub fn key_not_loaded(&mut self, (at, line): KeyRef) {
        let room = self.room();
        if let Some(target) = self.targets.get_mut(&at) {
            let changed = target.keys.load_again(line, room);
            self.follow(at, changed);
        }
    }

    /// Takes in what a walk over the order keys of a receiver found, behind the line that was named when it was asked for.
    pub fn walked(&mut self, (at, kind): BacklogRef, from: Option<Line>, page: &LinesPage, now: Moment) {
        let room = self.room();
        let Some(target) = self.targets.get_mut(&at) else { return };
        let changed = target.keys.walked(kind, from, page, (room, now));
        self.follow(at, changed);
        self.list(at, now);
    }

    fn follow(&mut self, at: TargetRef, changed: Changed) {
        self.known.extend(changed.kept);
        for id in changed.dropped {
            self.known.remove(&id);
        }
        self.wants.keys.extend(changed.asks.into_iter().map(|(line, heads)| ((at, line), heads)));
    }

    /// What is wanted from the database, once.
    pub fn wants(&mut self) -> Wants {
        self.wants.piece()
    }

    /// A line takes a place in memory as well.
    fn filled(&self) -> usize {
        self.known.len() + self.lines
    }

    fn room(&self) -> Room {
        let full = self.filled() >= self.held_max;
        let lines = |max: usize| if full { max.min(FLOOR) } else { max };
        Room { live: lines(self.lines_max), replays: lines((self.lines_max / 4).max(1)), full }
    }

    /// Puts a receiver that may be called now into the rings, or sets a timer for it.
    fn list(&mut self, at: TargetRef, now: Moment) {
        let room = self.room();
        let Some(target) = self.targets.get_mut(&at) else { return };
        let lines = target.keys.count();
        self.lines = self.lines + lines - std::mem::replace(&mut target.lines_counted, lines);
        for kind in Kind::BOTH {
            if let Some((from, limit)) = target.refill(kind, room.full) {
                self.wants.refills.push(Refill { of: (at, kind), from, limit });
            }
            if target.keys.wants_walk(kind, room, now) {
                self.wants.walks.push(((at, kind), target.keys.walk_from(kind)));
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

    /// The next one to send; it counts as in flight from now on, and may fly when [`Self::fly`] says so. `rate` is asked
    /// before a receiver is called, and says how long it has to wait, if it has to.
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
        let unproven = self.targets.get_mut(&at).is_some_and(|target| target.put_back(due, now));
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

    /// What came of it is on record, and its row tells what is next. Follows [`Self::answered`]. `true`: it waits in memory;
    /// if it waits at all else, it has to be looked for when it is due.
    pub fn recorded(&mut self, due: &Due, landing: Landing, now: Moment) -> bool {
        let (at, room) = ((due.tenant, due.target), self.room());
        self.known.remove(&due.id);
        let Some(target) = self.targets.get_mut(&at) else { return false };
        let changed = target.recorded(due, landing, room, now);
        self.follow(at, changed);
        self.list(at, now);
        if self.targets.get(&at).is_some_and(|target| target.is_idle() && !target.is_memorable()) {
            self.targets.remove(&at);
        }
        if self.targets.len() > self.targets_max {
            self.targets.retain(|_, target| !target.is_idle());
            self.targets_max = (self.targets.len() * 2).max(TARGETS_MAX);
        }
        self.known.contains(&due.id)
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
        self.lines = 0;
        let room = self.room();
        let all: Vec<TargetRef> = self.targets.keys().copied().collect();
        for at in all {
            if let Some(target) = self.targets.get_mut(&at) {
                target.listed = false;
                target.replays_parked = false;
                target.timer_at = None;
                target.lines_counted = 0;
                let asks = target.ask_again(room);
                self.wants.keys.extend(asks.into_iter().map(|(line, heads)| ((at, line), heads)));
            }
            self.list(at, now);
        }
    }
}
