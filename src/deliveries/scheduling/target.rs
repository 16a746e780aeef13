//! [pure] One receiver: what waits for it, how much it may get at a time, and whether it is left alone for a while.
//!
//! Called by the schedule only. The window grows by one with each success up to the cap and is halved by timeouts, 429
//! and 503: it slows the receiver, not one message. After ten failures in a row the breaker opens: the receiver is left
//! alone for 1 s, 2 s, 4 s, … up to a minute, and then gets a single probe.

use std::time::Duration;

use super::Moment;
use super::backlog::{Backlog, FLOOR, Kind};
use super::keys::{Changed, Keys, Room};
use super::lines::Line;
use crate::deliveries::{Due, DueCursor};
use crate::ids::DeliveryId;

/// Deliveries of one receiver that are held in memory; the rest waits in the database.
pub(super) const HELD_MAX: usize = 512;
/// Replayed ones go a few at a time.
const REPLAYS_HELD_MAX: usize = 128;
/// The window of a receiver of which nothing is known yet.
const WINDOW_FIRST: usize = 2;
const BREAKER_FAILURES: u32 = 10;
const BREAKER_FIRST: Duration = Duration::from_secs(1);
const BREAKER_MAX: Duration = Duration::from_mins(1);
/// However long a receiver wishes to be left alone, after this time it gets a probe.
const HOLD_MAX: Duration = Duration::from_mins(1);
/// Who answers within this time has some loaded ahead.
const QUICK: Duration = Duration::from_millis(50);

/// What holds for a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// On the wire at most.
    pub cap: usize,
    /// So many more may be loaded ahead while the receiver answers well and soon, so that one goes the moment another has
    /// landed.
    pub ahead: usize,
    /// Nothing is sent.
    pub paused: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { cap: 32, ahead: 0, paused: false }
    }
}

/// What became of a delivery that was in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Landing {
    /// How the receiver did.
    pub answer: LandingAnswer,
    /// It is tried again after this time; `None`: it ended, or nothing is known of it here any more.
    pub again_in: Option<Duration>,
}

/// How a receiver did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LandingAnswer {
    /// 2xx.
    Well,
    /// An answer that is none, or an error.
    Badly,
    /// Too slow, or it says that it has too much to do; it may say for how long.
    Overloaded(Option<Duration>),
    /// It was not called.
    NotCalled,
}

/// One receiver.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent marks; an enum would have to hold their product"
)]
pub(super) struct Target {
    policy: Policy,
    live: Backlog,
    replays: Backlog,
    /// What waits in order.
    pub(super) keys: Keys,
    /// So many of its lines the schedule has counted.
    pub(super) lines_counted: usize,
    window: usize,
    /// Taken, and not on record yet: the database shows them as waiting.
    out: usize,
    /// Taken, and not on the wire yet.
    aboard: usize,
    /// On the wire.
    flying: usize,
    replays_in_flight: usize,
    unproven_in_flight: usize,
    /// Until its rate allows the next one.
    hold_until: Moment,
    /// Until it is called again after a failure.
    left_alone_until: Moment,
    failures: u32,
    opened: u32,
    /// A timer is set for this moment.
    pub(super) timer_at: Option<Moment>,
    /// Stands in a ring, or is parked.
    pub(super) listed: bool,
    /// It has replays only, and they wait for a place that replays may have.
    pub(super) replays_parked: bool,
    /// It has answered well, and not badly since.
    pub(super) proven: bool,
    /// It failed, and it is its turn to be tried again.
    pub(super) may_try: bool,
    /// It answered within moments, and what is loaded ahead for it does not wait long.
    quick: bool,
}

impl Default for Target {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            live: Backlog::new(HELD_MAX),
            replays: Backlog::new(REPLAYS_HELD_MAX),
            keys: Keys::default(),
            lines_counted: 0,
            window: WINDOW_FIRST,
            out: 0,
            aboard: 0,
            flying: 0,
            replays_in_flight: 0,
            unproven_in_flight: 0,
            hold_until: Moment::ZERO,
            left_alone_until: Moment::ZERO,
            failures: 0,
            opened: 0,
            timer_at: None,
            listed: false,
            replays_parked: false,
            proven: false,
            may_try: false,
            quick: false,
        }
    }
}

/// A delivery that goes off.
pub(super) struct Taken {
    pub(super) due: Due,
    pub(super) unproven: bool,
}

impl Target {
    pub(super) fn set_policy(&mut self, policy: Policy) {
        // What came while nothing was sent may have been left in the database.
        if self.policy.paused && !policy.paused {
            self.live.look_again();
            self.replays.look_again();
        }
        self.policy = policy;
    }

    /// On the wire at most, for now.
    fn limit(&self) -> usize {
        if self.policy.paused {
            0
        } else if self.failures >= BREAKER_FAILURES {
            1
        } else {
            self.window.min(self.policy.cap)
        }
    }

    /// May one of those aboard go on the wire?
    pub(super) fn may_fly(&self, now: Moment) -> bool {
        self.aboard > 0 && self.flying < self.limit() && now >= self.left_alone_until
    }

    /// One of those aboard goes.
    pub(super) fn fly(&mut self) {
        self.aboard = self.aboard.saturating_sub(1);
        self.flying += 1;
    }

    /// It has failed since it answered well for the last time.
    pub(super) fn is_suspect(&self) -> bool {
        self.failures > 0
    }

    /// When one of its deliveries may go; `None`: only a landing or an arrival can change that.
    pub(super) fn ready_at(&mut self, now: Moment) -> Option<Moment> {
        let limit = self.limit();
        let ahead = if self.proven && self.quick && limit > 0 { self.policy.ahead } else { 0 };
        if self.aboard + self.flying >= limit + ahead {
            return None;
        }
        self.keys.wake(now);
        if self.has_live() || (self.replays_may() && !self.replays_parked && self.has_replays()) {
            return Some(self.held_until().max(now));
        }
        self.keys.next_at().map(|when| when.max(self.held_until()))
    }

    /// Something live may go, if the receiver may be called.
    pub(super) fn has_live(&self) -> bool {
        !self.live.is_empty() || self.keys.has_ready(Kind::Live)
    }

    fn has_replays(&self) -> bool {
        !self.replays.is_empty() || self.keys.has_ready(Kind::Replays)
    }

    /// A quarter of the window is for replays, and none is loaded ahead: it might be cancelled.
    fn replays_may(&self) -> bool {
        let limit = self.limit();
        self.replays_in_flight < (limit / 4).max(1) && self.aboard + self.flying < limit
    }

    pub(super) fn hold(&mut self, until: Moment) {
        self.hold_until = self.hold_until.max(until);
    }

    fn leave_alone(&mut self, until: Moment) {
        self.left_alone_until = self.left_alone_until.max(until);
    }

    fn held_until(&self) -> Moment {
        self.hold_until.max(self.left_alone_until)
    }

    fn backlog(&mut self, kind: Kind) -> &mut Backlog {
        match kind {
            Kind::Live => &mut self.live,
            Kind::Replays => &mut self.replays,
        }
    }

    /// How many are held, of each kind: as many as it takes in a few rounds. What hangs needs no memory.
    fn room(&self, full: bool) -> usize {
        (self.window * if full { 4 } else { 16 }).clamp(FLOOR, HELD_MAX)
    }

    /// A delivery without an order.
    pub(super) fn offer_free(&mut self, due: Due, full: bool, refill: bool) -> bool {
        let room = self.room(full);
        self.backlog(Kind::of(&due)).offer(due, room, refill)
    }

    /// A refill came; `more`: there is still more in the database, behind `cursor`.
    pub(super) fn refilled(&mut self, kind: Kind, more: bool, cursor: Option<DueCursor>) {
        self.backlog(kind).refilled(more, cursor);
    }

    /// What a refill is asked for, if it is wanted; once. Among the rows that it finds are those that are out.
    pub(super) fn refill(&mut self, kind: Kind, full: bool) -> Option<(Option<DueCursor>, usize)> {
        let (room, out) = (self.room(full), self.out);
        let backlog = self.backlog(kind);
        backlog.wants_refill(room).then(|| (backlog.cursor(), room + out))
    }

    /// Refills begin at the beginning again.
    pub(super) fn rewind(&mut self) {
        self.live.rewind();
        self.replays.rewind();
    }

    pub(super) fn take(&mut self, now: Moment) -> Option<Taken> {
        self.keys.wake(now);
        let due = self.take_next()?;
        self.may_try = false;
        self.out += 1;
        self.aboard += 1;
        self.replays_in_flight += usize::from(due.replay);
        let unproven = !self.proven;
        self.unproven_in_flight += usize::from(unproven);
        Some(Taken { due, unproven })
    }

    fn take_next(&mut self) -> Option<Due> {
        // Lines and free deliveries of one receiver do not mix but while its ordering is changed.
        if let Some(due) = self.keys.take(Kind::Live).or_else(|| self.live.pop()) {
            return Some(due);
        }
        if !self.replays_may() || self.replays_parked {
            return None;
        }
        self.keys.take(Kind::Replays).or_else(|| self.replays.pop())
    }

    /// It is not in flight any more. `true`: it had set off unproven.
    fn leave(&mut self, due: &Due) -> bool {
        self.replays_in_flight = self.replays_in_flight.saturating_sub(usize::from(due.replay));
        // Which of those in flight set off unproven is not remembered one by one: the count is what matters.
        let unproven = self.unproven_in_flight > 0;
        self.unproven_in_flight = self.unproven_in_flight.saturating_sub(1);
        unproven
    }

    /// It was loaded, and does not go after all: it waits again, before all others. `true`: it had set off unproven.
    pub(super) fn put_back(&mut self, due: &Due, now: Moment) -> bool {
        self.out = self.out.saturating_sub(1);
        self.aboard = self.aboard.saturating_sub(1);
        self.quick = false;
        if due.order.is_some() {
            self.keys.put_back(due, now);
        } else {
            self.backlog(Kind::of(due)).put_back(*due);
        }
        self.leave(due)
    }

    /// The receiver answered, or was not called. `true`: it had set off unproven.
    pub(super) fn answered(
        &mut self,
        due: &Due,
        (answer, took): (LandingAnswer, Duration),
        now: Moment,
    ) -> bool {
        self.flying = self.flying.saturating_sub(1);
        self.quick = answer == LandingAnswer::Well && took < QUICK;
        self.judge(answer, now);
        self.leave(due)
    }

    /// What came of it is on record.
    pub(super) fn recorded(&mut self, due: &Due, landing: Landing, room: Room, now: Moment) -> Changed {
        self.out = self.out.saturating_sub(1);
        if landing.answer == LandingAnswer::NotCalled && landing.again_in.is_some() {
            // It waits where refills have passed by.
            self.backlog(Kind::of(due)).rewind();
        }
        self.keys.land(due, landing, room, now)
    }

    fn judge(&mut self, answer: LandingAnswer, now: Moment) {
        match answer {
            LandingAnswer::NotCalled => return,
            LandingAnswer::Well => {
                self.failures = 0;
                self.opened = 0;
                self.proven = true;
                self.window = (self.window + 1).min(self.policy.cap.max(1));
                return;
            }
            LandingAnswer::Badly => {}
            LandingAnswer::Overloaded(wait) => {
                self.window = (self.window / 2).max(1);
                if let Some(wait) = wait {
                    self.leave_alone(now + wait.min(HOLD_MAX));
                }
            }
        }
        self.proven = false;
        self.failures = self.failures.saturating_add(1);
        // Those that were in flight when the breaker opened do not open it again.
        if self.failures == BREAKER_FAILURES
            || (self.failures > BREAKER_FAILURES && now >= self.left_alone_until)
        {
            let open = BREAKER_FIRST.saturating_mul(1 << self.opened.min(6)).min(BREAKER_MAX);
            self.opened = self.opened.saturating_add(1);
            self.window = 1;
            self.leave_alone(now + open);
        }
    }

    /// Until when the breaker is open; a moment that is past: it waits for the probe's answer. `None`: closed.
    pub(super) fn open_until(&self) -> Option<Moment> {
        (self.failures >= BREAKER_FAILURES).then_some(self.left_alone_until)
    }

    /// Nothing to remember: no work, and no memory of a bad time.
    pub(super) fn is_idle(&self) -> bool {
        self.out == 0 && self.live.is_idle() && self.replays.is_idle() && self.keys.is_idle()
    }

    /// Worth remembering while there is no work: it answered well, or it has a bad time.
    pub(super) fn is_memorable(&self) -> bool {
        self.proven || self.failures > 0 || self.policy != Policy::default()
    }

    /// The lines that are being looked up, and how many of each: the question was withdrawn, and is put again.
    pub(super) fn ask_again(&mut self, room: Room) -> Vec<(Line, usize)> {
        self.live.ask_again();
        self.replays.ask_again();
        self.keys.ask_again(room)
    }

    /// Forgets what waits. What is in flight stays, and keeps its order key busy.
    pub(super) fn clear(&mut self) -> Vec<DeliveryId> {
        let keyed = self.keys.clear();
        let ids = self.live.drain().chain(self.replays.drain()).map(|due| due.id).chain(keyed).collect();
        self.replays_parked = false;
        self.timer_at = None;
        self.listed = false;
        self.may_try = false;
        ids
    }
}
