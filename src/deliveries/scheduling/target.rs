//! [pure] One receiver: what waits for it, how much it may get at a time, and whether it is left alone for a while.
//!
//! Called by the schedule only. The window grows by one with each success up to the cap and is halved by timeouts, 429
//! and 503: it slows the receiver, not one message. After ten failures in a row the breaker opens: the receiver is left
//! alone for 1 s, 2 s, 4 s, … up to a minute, and then gets a single probe.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::Moment;
use crate::deliveries::Due;
use crate::ids::DeliveryId;

/// Deliveries of one receiver that are held in memory; the rest waits in the database.
const HELD_MAX: usize = 512;
/// Deliveries of one order key that are held in memory.
pub const HELD_PER_KEY_MAX: usize = 16;
/// The window of a receiver of which nothing is known yet.
const WINDOW_FIRST: usize = 2;
const BREAKER_FAILURES: u32 = 10;
const BREAKER_FIRST: Duration = Duration::from_secs(1);
const BREAKER_MAX: Duration = Duration::from_mins(1);
/// However long a receiver wishes to be left alone, after this time it gets a probe.
const HOLD_MAX: Duration = Duration::from_mins(1);

/// What holds for a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// In flight at most.
    pub cap: usize,
    /// Nothing is sent.
    pub paused: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { cap: 32, paused: false }
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

#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent marks; an enum would have to hold their product"
)]
struct Key {
    waiting: VecDeque<(Due, Moment)>,
    busy: bool,
    /// All that waits in the database is here as well.
    complete: bool,
    loading: bool,
    /// Something came while it was loading.
    dirty: bool,
    listed: bool,
    /// What waited was forgotten while one was in flight, and nothing was offered since.
    forgotten: bool,
}

impl Key {
    /// There may be more in the database.
    fn doubt(&mut self) {
        if self.loading {
            self.dirty = true;
        } else {
            self.complete = false;
        }
    }
}

/// One receiver.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent marks; an enum would have to hold their product"
)]
pub(super) struct Target {
    policy: Policy,
    live: VecDeque<Due>,
    replays: VecDeque<Due>,
    keys: HashMap<i64, Key>,
    /// Keys whose first delivery may go, in their turn.
    ready_keys: VecDeque<i64>,
    /// Keys whose first delivery waits for its next try.
    late_keys: Vec<(Moment, i64)>,
    /// There is more in the database.
    more: bool,
    refilling: bool,
    window: usize,
    in_flight: usize,
    replays_in_flight: usize,
    unproven_in_flight: usize,
    hold_until: Moment,
    failures: u32,
    opened: u32,
    /// A timer is set for this moment.
    pub(super) timer_at: Option<Moment>,
    /// Stands in a ring, or is parked.
    pub(super) listed: bool,
    /// It has answered well, and not badly since.
    pub(super) proven: bool,
}

impl Default for Target {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            live: VecDeque::new(),
            replays: VecDeque::new(),
            keys: HashMap::new(),
            ready_keys: VecDeque::new(),
            late_keys: Vec::new(),
            more: false,
            refilling: false,
            window: WINDOW_FIRST,
            in_flight: 0,
            replays_in_flight: 0,
            unproven_in_flight: 0,
            hold_until: Moment::ZERO,
            failures: 0,
            opened: 0,
            timer_at: None,
            listed: false,
            proven: false,
        }
    }
}

/// A delivery that goes off.
pub(super) struct Taken {
    pub(super) due: Due,
    pub(super) unproven: bool,
}

/// What a landing leaves behind.
pub(super) struct Back {
    pub(super) unproven: bool,
    pub(super) kept: Option<DeliveryId>,
    pub(super) dropped: Vec<DeliveryId>,
}

impl Target {
    pub(super) fn set_policy(&mut self, policy: Policy) {
        // What came while nothing was sent may have been left in the database.
        self.more = self.more || (self.policy.paused && !policy.paused);
        self.policy = policy;
    }

    fn limit(&self) -> usize {
        if self.policy.paused {
            0
        } else if self.failures >= BREAKER_FAILURES {
            1
        } else {
            self.window.min(self.policy.cap)
        }
    }

    /// When one of its deliveries may go; `None`: only a landing or an arrival can change that.
    pub(super) fn ready_at(&mut self, now: Moment) -> Option<Moment> {
        if self.in_flight >= self.limit() {
            return None;
        }
        self.wake_keys(now);
        let replays_may = !self.replays.is_empty() && self.replays_in_flight < (self.limit() / 4).max(1);
        if !self.live.is_empty() || !self.ready_keys.is_empty() || replays_may {
            return Some(self.hold_until.max(now));
        }
        self.late_keys.iter().map(|(when, _)| (*when).max(self.hold_until)).min()
    }

    fn wake_keys(&mut self, now: Moment) {
        let Self { late_keys, ready_keys, .. } = self;
        late_keys.retain(|(when, key)| {
            let due = *when <= now;
            if due {
                ready_keys.push_back(*key);
            }
            !due
        });
    }

    pub(super) fn hold(&mut self, until: Moment) {
        self.hold_until = self.hold_until.max(until);
    }

    /// A delivery without an order. While some were left in the database, those that come later are left there too,
    /// but for a refill, or they would overtake them again and again.
    pub(super) fn offer_free(&mut self, due: Due, full: bool, refill: bool) -> bool {
        if !refill && (self.more || self.refilling) {
            self.more = true;
            return false;
        }
        if full || self.live.len() + self.replays.len() >= HELD_MAX {
            self.more = true;
            return false;
        }
        if due.replay {
            self.replays.push_back(due);
        } else {
            self.live.push_back(due);
        }
        true
    }

    /// A refill came; `more`: there is still more in the database.
    pub(super) fn refilled(&mut self, more: bool) {
        self.refilling = false;
        self.more = self.more || more;
    }

    pub(super) fn wants_refill(&mut self) -> bool {
        let wants = self.more && !self.refilling && self.live.len() + self.replays.len() < HELD_MAX / 4;
        if wants {
            self.refilling = true;
            self.more = false;
        }
        wants
    }

    /// A delivery of an ordered receiver. It may be taken only where all earlier ones of its key are known.
    pub(super) fn offer_ordered(&mut self, key: i64, due: Due, full: bool) -> bool {
        let state = self.keys.entry(key).or_default();
        state.forgotten = false;
        let in_order = state.waiting.back().is_none_or(|(last, _)| last.position < due.position);
        if !full && state.complete && in_order && state.waiting.len() < HELD_PER_KEY_MAX {
            state.waiting.push_back((due, Moment::ZERO));
            self.list_key(key);
            return true;
        }
        state.doubt();
        false
    }

    /// Of no key all is known for sure any more. `false`: there is none.
    pub(super) fn doubt(&mut self) -> bool {
        self.keys.values_mut().for_each(Key::doubt);
        !self.keys.is_empty()
    }

    /// Of this key not all is known for sure any more.
    pub(super) fn doubt_key(&mut self, key: i64) {
        self.keys.get_mut(&key).into_iter().for_each(Key::doubt);
    }

    /// Whether the first deliveries of the key have to be looked up; asked for once.
    pub(super) fn wants_key(&mut self, key: i64) -> bool {
        let Some(state) = self.keys.get_mut(&key) else { return false };
        let wants = !state.complete && !state.loading && !state.busy && state.waiting.is_empty();
        state.loading = state.loading || wants;
        wants
    }

    pub(super) fn forget_load(&mut self, key: i64) {
        if let Some(state) = self.keys.get_mut(&key) {
            state.loading = false;
        }
    }

    pub(super) fn load_key(&mut self, key: i64, rows: Vec<(Due, Moment)>, complete: bool) -> Vec<DeliveryId> {
        let state = self.keys.entry(key).or_default();
        state.loading = false;
        if state.busy || !state.waiting.is_empty() {
            return Vec::new();
        }
        let ids = rows.iter().map(|(due, _)| due.id).collect();
        state.complete = complete && !std::mem::take(&mut state.dirty);
        state.waiting = rows.into();
        if state.waiting.is_empty() && state.complete {
            self.keys.remove(&key);
        } else {
            self.list_key(key);
        }
        ids
    }

    /// The key's first delivery may go now or later.
    fn list_key(&mut self, key: i64) {
        let Some(state) = self.keys.get_mut(&key) else { return };
        if state.busy || state.listed {
            return;
        }
        if let Some((_, when)) = state.waiting.front() {
            state.listed = true;
            self.late_keys.push((*when, key));
        }
    }

    pub(super) fn take(&mut self, now: Moment) -> Option<Taken> {
        self.wake_keys(now);
        let due = self.take_next()?;
        self.in_flight += 1;
        self.replays_in_flight += usize::from(due.replay);
        let unproven = !self.proven;
        self.unproven_in_flight += usize::from(unproven);
        Some(Taken { due, unproven })
    }

    fn take_next(&mut self) -> Option<Due> {
        // Keys and free deliveries of one receiver do not mix but while its ordering is changed.
        if let Some(key) = self.ready_keys.pop_front() {
            if let Some(state) = self.keys.get_mut(&key) {
                state.listed = false;
                if let Some((due, _)) = state.waiting.pop_front() {
                    state.busy = true;
                    return Some(due);
                }
            }
            return self.take_next();
        }
        self.live.pop_front().or_else(|| self.replays.pop_front())
    }

    pub(super) fn land(&mut self, due: &Due, landing: Landing, now: Moment) -> Back {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.replays_in_flight = self.replays_in_flight.saturating_sub(usize::from(due.replay));
        // Which of those in flight set off unproven is not remembered one by one: the count is what matters.
        let unproven = self.unproven_in_flight > 0;
        self.unproven_in_flight = self.unproven_in_flight.saturating_sub(1);
        self.judge(landing.answer, now);
        let mut back = Back { unproven, kept: None, dropped: Vec::new() };
        if due.order.is_some() {
            self.land_ordered(due, landing, now, &mut back);
        }
        back
    }

    fn land_ordered(&mut self, due: &Due, landing: Landing, now: Moment, back: &mut Back) {
        let Some(key) = due.order else { return };
        let Some(state) = self.keys.get_mut(&key) else { return };
        if state.forgotten {
            // It is another's now, or is found again.
            self.keys.remove(&key);
            return;
        }
        state.busy = false;
        match landing.again_in {
            Some(wait) => {
                state.waiting.push_front((*due, now + wait));
                back.kept = Some(due.id);
            }
            None if landing.answer == LandingAnswer::NotCalled => {
                // Something else happened to it: what is in memory may not be true any more.
                back.dropped = state.waiting.drain(..).map(|(due, _)| due.id).collect();
                state.complete = false;
            }
            None => {}
        }
        if state.waiting.is_empty() && state.complete {
            self.keys.remove(&key);
        } else {
            self.list_key(key);
        }
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
                    self.hold(now + wait.min(HOLD_MAX));
                }
            }
        }
        self.proven = false;
        self.failures = self.failures.saturating_add(1);
        // Those that were in flight when the breaker opened do not open it again.
        if self.failures == BREAKER_FAILURES || (self.failures > BREAKER_FAILURES && now >= self.hold_until) {
            let open = BREAKER_FIRST.saturating_mul(1 << self.opened.min(6)).min(BREAKER_MAX);
            self.opened = self.opened.saturating_add(1);
            self.window = 1;
            self.hold(now + open);
        }
    }

    /// Until when the breaker is open; a moment that is past: it waits for the probe's answer. `None`: closed.
    pub(super) fn open_until(&self) -> Option<Moment> {
        (self.failures >= BREAKER_FAILURES).then_some(self.hold_until)
    }

    /// Nothing to remember: no work, and no memory of a bad time.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0
            && self.live.is_empty()
            && self.replays.is_empty()
            && self.keys.is_empty()
            && !self.more
            && !self.refilling
    }

    /// Worth remembering while there is no work: it answered well, or it has a bad time.
    pub(super) fn is_memorable(&self) -> bool {
        self.proven || self.failures > 0 || self.policy != Policy::default()
    }

    /// The keys that are being looked up: the question was withdrawn, and is put again.
    pub(super) fn ask_again(&mut self) -> Vec<i64> {
        if std::mem::take(&mut self.refilling) {
            self.more = true;
        }
        self.keys.iter().filter(|(_, state)| state.loading).map(|(key, _)| *key).collect()
    }

    /// Forgets what waits. Of a key with one in flight that much is remembered, or a second one would take off.
    pub(super) fn clear(&mut self) -> Vec<DeliveryId> {
        let mut ids: Vec<DeliveryId> =
            self.live.drain(..).chain(self.replays.drain(..)).map(|due| due.id).collect();
        self.keys.retain(|_, state| {
            ids.extend(state.waiting.drain(..).map(|(due, _)| due.id));
            *state = Key { busy: state.busy, forgotten: true, ..Key::default() };
            state.busy
        });
        self.ready_keys.clear();
        self.late_keys.clear();
        self.more = false;
        self.refilling = false;
        self.timer_at = None;
        self.listed = false;
        ids
    }
}
