//! What is loaded and waits for a place on the wire: it flies when the schedule says so, or is put back.
//!
//! Called by the dispatcher.
//!
//! Invariant: what is put back was never on the wire, and counts as waiting from then on.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::Dispatcher;
use super::flight::Boarded;
use crate::deliveries::scheduling::TargetRef;
use crate::deliveries::store::Loaded;

/// What finds no place on the wire for so long is put back.
const ABOARD_MAX: Duration = Duration::from_millis(250);

impl Dispatcher {
    pub(super) fn loaded(&mut self, flight: Uuid, loaded: Vec<Loaded>) {
        let mut of: HashSet<TargetRef> = HashSet::new();
        let since = Instant::now();
        for loaded in loaded {
            let at = (loaded.due.tenant, loaded.due.target);
            of.insert(at);
            self.aboard.entry(at).or_default().push_back(Boarded { flight, loaded, since });
        }
        for at in of {
            self.board(at);
        }
    }

    /// Lets those that are loaded for a receiver fly, as many as may.
    pub(super) fn board(&mut self, at: TargetRef) {
        let now = self.now();
        let Some(waiting) = self.aboard.get_mut(&at) else { return };
        let mut going = Vec::new();
        while !waiting.is_empty() && self.schedule.fly(at, now) {
            going.extend(waiting.pop_front());
        }
        if waiting.is_empty() {
            self.aboard.remove(&at);
        }
        for Boarded { flight, loaded, .. } in going {
            self.tasks.spawn(self.flight(flight).fly(loaded));
        }
    }

    /// Puts back what is loaded for receivers and did not fly.
    pub(super) fn ground(&mut self, of: impl Fn(TargetRef) -> bool) {
        let now = self.now();
        let grounded: Vec<TargetRef> = self.aboard.keys().copied().filter(|at| of(*at)).collect();
        for at in grounded {
            for Boarded { flight, loaded, .. } in self.aboard.remove(&at).into_iter().flatten().rev() {
                self.schedule.put_back(&loaded.due, now);
                self.left_lane(loaded.due.lane);
                self.forget(flight);
            }
        }
    }

    /// What waits too long for its place on the wire takes a place from others.
    pub(super) fn ground_late(&mut self) {
        let now = Instant::now();
        if now < self.ground_at || self.aboard.is_empty() {
            return;
        }
        self.ground_at = now + ABOARD_MAX / 2;
        let late: HashSet<TargetRef> = self
            .aboard
            .iter()
            .filter(|(_, waiting)| waiting.front().is_some_and(|first| first.since + ABOARD_MAX < now))
            .map(|(at, _)| *at)
            .collect();
        if !late.is_empty() {
            self.ground(|at| late.contains(&at));
        }
    }
}
