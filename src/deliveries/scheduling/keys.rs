//! [pure] The order keys of one receiver: the first deliveries of some keys in memory, the other keys in the database.
//!
//! What waits of a key is a line (`lines`), the live ones and the replayed ones each in their own, and only one of a key is
//! in flight. Of a kind so many lines are in memory at most (those in flight besides). When there is no room, lines whose
//! first delivery waits for its next try are forgotten: a sweep finds it when it is due, so what fails keeps nobody out.
//! Lines that find no room even so are left in the database, and a walk over the keys (`walk`) brings all in by turns.
//!
//! Invariants: what is in memory of a line is the beginning of what waits of it, in the order of the positions; nobody
//! looks a line up while one of its key is in flight, for its row would be taken for one that waits.

use std::collections::HashSet;

use super::Moment;
use super::backlog::Kind;
use super::lines::{Line, Lines, Place, State};
use super::target::{Landing, LandingAnswer};
use super::wants::LinesPage;
use crate::deliveries::Due;
use crate::ids::DeliveryId;

/// How much there is room for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Lines of live deliveries.
    pub(super) live: usize,
    /// Lines of replays.
    pub(super) replays: usize,
    /// The memory for all receivers is full.
    pub(super) full: bool,
}

impl Room {
    fn lines(self, kind: Kind) -> usize {
        match kind {
            Kind::Live => self.live,
            Kind::Replays => self.replays,
        }
    }
}

/// What a change leads to.
#[derive(Debug, Default)]
pub(super) struct Changed {
    /// To be looked up in the database: so many of this line.
    pub(super) asks: Vec<(Line, usize)>,
    /// Not in memory any more.
    pub(super) dropped: Vec<DeliveryId>,
    /// In memory from now on.
    pub(super) kept: Vec<DeliveryId>,
}

/// The order keys of a receiver.
#[derive(Debug, Default)]
pub(super) struct Keys {
    live: Lines,
    replays: Lines,
    /// Order keys of which one is in flight.
    busy: HashSet<i64>,
}

impl Keys {
    fn lines(&self, kind: Kind) -> &Lines {
        match kind {
            Kind::Live => &self.live,
            Kind::Replays => &self.replays,
        }
    }

    fn lines_mut(&mut self, kind: Kind) -> &mut Lines {
        match kind {
            Kind::Live => &mut self.live,
            Kind::Replays => &mut self.replays,
        }
    }

    /// So many lines are in memory.
    pub(super) fn count(&self) -> usize {
        self.live.known.len() + self.replays.known.len()
    }

    /// No line is in memory, and none known of in the database.
    pub(super) fn is_idle(&self) -> bool {
        Kind::BOTH
            .into_iter()
            .all(|kind| self.lines(kind).known.is_empty() && self.lines(kind).walk.is_idle())
    }

    /// Something may go.
    pub(super) fn has_ready(&self, kind: Kind) -> bool {
        !self.lines(kind).ready.is_empty()
    }

    /// Lists what has become due.
    pub(super) fn wake(&mut self, now: Moment) {
        for kind in Kind::BOTH {
            self.lines_mut(kind).wake(now);
        }
    }

    /// When the first delivery of a line is due again.
    pub(super) fn next_at(&self) -> Option<Moment> {
        Kind::BOTH.into_iter().filter_map(|kind| self.lines(kind).late.first()).map(|(when, _)| *when).min()
    }

    /// A delivery is there. It may be taken only where all earlier ones of its line are known. `true`: it is in memory.
    pub(super) fn offer(&mut self, due: Due, room: Room, now: Moment) -> (bool, Changed) {
        let mut changed = Changed::default();
        let Some(key) = due.order else { return (false, changed) };
        let (kind, busy) = (Kind::of(&due), self.busy.contains(&key));
        let lines = self.lines_mut(kind);
        if !lines.known.contains_key(&key) {
            lines.wake(now);
            if !lines.admits(room.lines(kind)) {
                lines.walk.leave();
                return (false, changed);
            }
            lines.admit(key, room.lines(kind), &mut changed.dropped);
        }
        let share = lines.share(room.full);
        let Some(state) = lines.known.get_mut(&key) else { return (false, changed) };
        let in_order = state.waiting.back().is_none_or(|(last, _)| last.position < due.position);
        let takes = !room.full && state.complete && in_order && state.waiting.len() < share;
        if takes {
            state.waiting.push_back((due, Moment::ZERO));
            lines.settle(key, busy, now);
        } else {
            state.doubt();
            changed.asks.extend(lines.wants_load(key, busy, room.full).map(|share| ((key, kind), share)));
        }
        (takes, changed)
    }

    /// Of no line all is known for sure any more. `false`: there is none.
    pub(super) fn doubt(&mut self) -> bool {
        for kind in Kind::BOTH {
            self.lines_mut(kind).known.values_mut().for_each(State::doubt);
        }
        self.count() > 0
    }

    /// Of this line not all is known for sure any more.
    pub(super) fn doubt_line(&mut self, (key, kind): Line) {
        self.lines_mut(kind).known.get_mut(&key).into_iter().for_each(State::doubt);
    }

    /// The first deliveries of a line that was asked for, in their order; `complete`: there are no others.
    pub(super) fn load(
        &mut self,
        line: Line,
        (rows, complete): (Vec<(Due, Moment)>, bool),
        room: Room,
        now: Moment,
    ) -> Changed {
        let mut changed = Changed::default();
        let ((key, kind), busy) = (line, self.busy.contains(&line.0));
        let lines = self.lines_mut(kind);
        let Some(state) = lines.known.get_mut(&key).filter(|state| state.loading) else { return changed };
        state.loading = false;
        let dirty = std::mem::take(&mut state.dirty);
        if !busy && state.waiting.is_empty() {
            changed.kept.extend(rows.iter().map(|(due, _)| due.id));
            state.complete = complete && !dirty;
            state.passed = false;
            state.waiting = rows.into();
        }
        lines.settle(key, busy, now);
        changed.asks.extend(lines.wants_load(key, busy, room.full).map(|share| (line, share)));
        lines.trim(room.lines(kind), &mut changed.dropped);
        changed
    }

    /// A line that was asked for could not be looked up.
    pub(super) fn load_again(&mut self, line: Line, room: Room) -> Changed {
        let ((key, kind), busy) = (line, self.busy.contains(&line.0));
        let lines = self.lines_mut(kind);
        if let Some(state) = lines.known.get_mut(&key) {
            state.loading = false;
        }
        let asks = lines.wants_load(key, busy, room.full).map(|share| (line, share));
        Changed { asks: asks.into_iter().collect(), ..Changed::default() }
    }

    /// There is room for more lines than are in memory. Asked for once.
    pub(super) fn wants_walk(&mut self, kind: Kind, room: Room, now: Moment) -> bool {
        let (lines, room) = (self.lines_mut(kind), room.lines(kind));
        if !lines.walk.is_wanted() {
            return false;
        }
        lines.wake(now);
        let wants = lines.active() * 4 <= room * 3;
        if wants {
            lines.walk.ask();
        }
        wants
    }

    /// Where that goes on from, in the order of the keys.
    pub(super) fn walk_from(&self, kind: Kind) -> Option<Line> {
        self.lines(kind).walk.from()
    }

    /// A page of the walk, which began behind `from`: the lines whose first delivery is due are taken in, as many as there
    /// is room for.
    pub(super) fn walked(
        &mut self,
        kind: Kind,
        from: Option<Line>,
        page: &LinesPage,
        (room, now): (Room, Moment),
    ) -> Changed {
        let mut changed = Changed::default();
        let (mut last, mut more) = (from, page.more);
        if !self.lines_mut(kind).walk.hears(from) {
            return changed;
        }
        self.lines_mut(kind).wake(now);
        for (line, due) in &page.lines {
            let (key, busy) = (line.0, self.busy.contains(&line.0));
            let lines = self.lines_mut(kind);
            if line.1 == kind && *due && !lines.known.contains_key(&key) {
                if lines.active() >= room.lines(kind) {
                    more = true;
                    break;
                }
                lines.admit(key, room.lines(kind), &mut changed.dropped);
                changed.asks.extend(lines.wants_load(key, busy, room.full).map(|share| (*line, share)));
            }
            last = Some(*line);
        }
        self.lines_mut(kind).walk.goes(last, more);
        changed
    }

    /// The first delivery of the line whose turn it is.
    pub(super) fn take(&mut self, kind: Kind) -> Option<Due> {
        loop {
            let key = self.lines_mut(kind).ready.pop_front()?;
            let busy = self.busy.contains(&key);
            let lines = self.lines_mut(kind);
            let Some(state) = lines.known.get_mut(&key) else { continue };
            state.place = Place::Nowhere;
            // The other line of the key is in flight; this one is listed again when that has landed.
            if !busy && let Some((due, _)) = state.waiting.pop_front() {
                state.place = Place::Flying;
                lines.flying += 1;
                self.busy.insert(key);
                return Some(due);
            }
        }
    }

    /// The last one that was taken of its line does not go after all.
    pub(super) fn put_back(&mut self, due: &Due, now: Moment) {
        let Some(key) = due.order else { return };
        self.busy.remove(&key);
        let lines = self.lines_mut(Kind::of(due));
        lines.ground(key);
        lines.known.entry(key).or_default().waiting.push_front((*due, Moment::ZERO));
        for kind in Kind::BOTH {
            self.lines_mut(kind).settle(key, false, now);
        }
    }

    /// What came of one that was in flight is on record.
    pub(super) fn land(&mut self, due: &Due, landing: Landing, room: Room, now: Moment) -> Changed {
        let mut changed = Changed::default();
        let Some(key) = due.order else { return changed };
        self.busy.remove(&key);
        let own = Kind::of(due);
        let called = landing.answer != LandingAnswer::NotCalled;
        let lines = self.lines_mut(own);
        lines.wake(now);
        if let Some(state) = lines.ground(key) {
            match landing.again_in {
                Some(wait) => {
                    state.waiting.push_front((*due, now + wait));
                    state.passed = !called;
                    changed.kept.push(due.id);
                }
                None if !called => {
                    // Something else happened to it: what is in memory may not be true any more.
                    changed.dropped.extend(state.waiting.drain(..).map(|(due, _)| due.id));
                    state.complete = false;
                }
                None => {}
            }
            if state.is_used_up() && lines.is_crowded(room.lines(own)) {
                lines.known.remove(&key);
                lines.walk.leave();
            }
        }
        for kind in Kind::BOTH {
            let lines = self.lines_mut(kind);
            lines.settle(key, false, now);
            changed.asks.extend(lines.wants_load(key, false, room.full).map(|share| ((key, kind), share)));
            lines.trim(room.lines(kind), &mut changed.dropped);
        }
        changed
    }

    /// What is being looked up: the question was withdrawn, and is put again.
    pub(super) fn ask_again(&mut self, room: Room) -> Vec<(Line, usize)> {
        let mut asks = Vec::new();
        for kind in Kind::BOTH {
            let lines = self.lines_mut(kind);
            lines.walk.ask_again();
            let share = lines.share(room.full);
            let loading = lines.known.iter().filter(|(_, state)| state.loading);
            asks.extend(loading.map(|(key, _)| ((*key, kind), share)));
        }
        asks
    }

    /// Forgets what waits; it is in the database. What is in flight keeps its key busy.
    pub(super) fn clear(&mut self) -> Vec<DeliveryId> {
        let mut ids = Vec::new();
        for kind in Kind::BOTH {
            let known = std::mem::take(self.lines_mut(kind)).known;
            ids.extend(known.into_values().flat_map(|state| state.waiting).map(|(due, _)| due.id));
        }
        ids
    }
}
