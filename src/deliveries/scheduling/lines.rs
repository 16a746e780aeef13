//! [pure] The lines of one kind of a receiver: which are in memory, whose turn it is, which are forgotten. Called by `keys`
//! only.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::Moment;
use super::backlog::Kind;
use super::target::HELD_MAX;
use super::walk::Walk;
use crate::deliveries::Due;
use crate::ids::DeliveryId;

/// Lines of live deliveries that are in memory for a receiver; of replays a quarter as many.
pub const LINES_MAX: usize = 512;
/// Deliveries of one line that are in memory; fewer where there are many lines.
const HELD_PER_KEY_MAX: usize = 16;

/// What waits of an order key: the live, or the replayed. Each goes in its own order, and only one of them all is in
/// flight.
pub type Line = (i64, Kind);

/// Where a line stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// It has nothing in memory, or another delivery of its key is in flight.
    #[default]
    Nowhere,
    /// Its first delivery may go, or waits for its next try.
    Listed,
    /// Its first delivery is in flight.
    Flying,
}

#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent marks; an enum would have to hold their product"
)]
pub(super) struct State {
    pub(super) waiting: VecDeque<(Due, Moment)>,
    pub(super) place: Place,
    /// All that waits in the database is here as well.
    pub(super) complete: bool,
    pub(super) loading: bool,
    /// Something came while it was loading.
    pub(super) dirty: bool,
    /// The first one waits here only; by its row it is due, and sweeps have passed it by.
    pub(super) passed: bool,
}

impl State {
    /// There may be more in the database.
    pub(super) fn doubt(&mut self) {
        if self.loading {
            self.dirty = true;
        } else {
            self.complete = false;
        }
    }

    /// Nothing is here, and there may be something in the database.
    pub(super) fn is_used_up(&self) -> bool {
        self.waiting.is_empty() && !self.complete && !self.loading
    }
}

/// The lines of one kind.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) known: HashMap<i64, State>,
    /// Those whose first delivery may go, in their turn.
    pub(super) ready: VecDeque<i64>,
    /// Those whose first delivery waits for its next try.
    pub(super) late: BTreeSet<(Moment, i64)>,
    pub(super) flying: usize,
    pub(super) walk: Walk,
}

impl Lines {
    pub(super) fn wake(&mut self, now: Moment) {
        while let Some((when, key)) = self.late.first().copied().filter(|(when, _)| *when <= now) {
            self.late.remove(&(when, key));
            self.ready.push_back(key);
        }
    }

    /// So many take a place: they are neither in flight, nor could they be forgotten until they are due.
    pub(super) fn active(&self) -> usize {
        self.known.len().saturating_sub(self.late.len() + self.flying)
    }

    /// While some were left in the database, half of the places are theirs: those that come later do not keep them out.
    pub(super) fn admits(&self, room: usize) -> bool {
        let active = self.active();
        if self.walk.has_left() { (active + 1) * 2 <= room } else { active < room }
    }

    /// Others have a better claim to the place of a line that is used up. Those in flight count as well: if they did not,
    /// the lines that land first would stay for ever.
    pub(super) fn is_crowded(&self, room: usize) -> bool {
        self.walk.has_left() && (self.active() + self.flying) * 2 > room
    }

    /// Adds a line, of which nothing is known yet.
    pub(super) fn admit(&mut self, key: i64, room: usize, dropped: &mut Vec<DeliveryId>) {
        self.trim(room.saturating_sub(1), dropped);
        self.known.entry(key).or_default();
    }

    /// Forgets lines whose first delivery is not due, those that are due last first, until so many are left.
    pub(super) fn trim(&mut self, room: usize, dropped: &mut Vec<DeliveryId>) {
        while self.known.len().saturating_sub(self.flying) > room
            && let Some((_, key)) = self.late.pop_last()
            && let Some(state) = self.known.remove(&key)
        {
            if state.passed {
                self.walk.leave();
            }
            dropped.extend(state.waiting.iter().map(|(due, _)| due.id));
        }
    }

    /// So many deliveries of a line are held: with few lines more, with many fewer.
    pub(super) fn share(&self, full: bool) -> usize {
        if full { 1 } else { (HELD_MAX / self.known.len().max(1)).clamp(1, HELD_PER_KEY_MAX) }
    }

    /// Whether the first deliveries of the line have to be looked up, and how many; asked for once.
    pub(super) fn wants_load(&mut self, key: i64, busy: bool, full: bool) -> Option<usize> {
        let share = self.share(full);
        let state = self.known.get_mut(&key).filter(|state| state.is_used_up() && !busy)?;
        state.loading = true;
        Some(share)
    }

    /// Forgets a line with nothing in it; the first delivery of any other may go now or later. While another of its key is
    /// in flight it waits until that has landed.
    pub(super) fn settle(&mut self, key: i64, busy: bool, now: Moment) {
        let Some(state) = self.known.get_mut(&key) else { return };
        match state.waiting.front() {
            None if state.complete && state.place != Place::Flying => {
                self.known.remove(&key);
            }
            Some((_, when)) if !busy && state.place == Place::Nowhere => {
                state.place = Place::Listed;
                if *when <= now {
                    self.ready.push_back(key);
                } else {
                    self.late.insert((*when, key));
                }
            }
            None | Some(_) => {}
        }
    }

    /// The line's delivery is not in flight any more.
    pub(super) fn ground(&mut self, key: i64) -> Option<&mut State> {
        let state = self.known.get_mut(&key)?;
        if state.place == Place::Flying {
            state.place = Place::Nowhere;
            self.flying = self.flying.saturating_sub(1);
        }
        Some(state)
    }
}
