//! [pure] Whose turn is it: fair over tenants, then over the receivers of a tenant, with a cap for each receiver.
//!
//! Called by `engine::send_deliveries`, which fetches, sends and records; here is only the order. Each tenant with
//! something to send gets one delivery in turn, and within it each receiver that has room. A receiver at its cap is
//! passed over, so a slow one fills its own slots and nobody else's.
//!
//! Invariants: no receiver has more in flight than its cap; whoever has room and work is reached within one round.

use std::collections::{HashMap, HashSet, VecDeque};

use uuid::Uuid;

use super::Due;
use crate::ids::{DeliveryId, TenantId};

/// Deliveries of one receiver that are held in memory; the rest waits in the database.
const PER_TARGET_MAX: usize = 1000;

#[derive(Debug, Default)]
struct Target {
    waiting: VecDeque<Due>,
    in_flight: usize,
    /// Stands in its tenant's ring.
    listed: bool,
    /// More of its deliveries were offered than it may hold.
    turned_away: bool,
}

#[derive(Debug, Default)]
struct Tenant {
    ring: VecDeque<Uuid>,
}

/// The waiting deliveries of the lanes that this process owns.
#[derive(Debug)]
pub struct Schedule {
    cap: usize,
    held_max: usize,
    targets: HashMap<(TenantId, Uuid), Target>,
    tenants: HashMap<TenantId, Tenant>,
    ring: VecDeque<TenantId>,
    /// Waiting or in flight: what must not be taken from the database a second time.
    known: HashSet<DeliveryId>,
    /// More was offered than may be held in all.
    was_full: bool,
    /// A receiver that turned deliveries away has room again.
    hungry: bool,
}

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It waits in memory.
    Taken,
    /// It was there already.
    Known,
    /// No room: it stays in the database.
    Full,
}

impl Schedule {
    /// `cap` in flight for each receiver; at most `held_max` in memory in all.
    pub fn new(cap: usize, held_max: usize) -> Self {
        Self {
            cap,
            held_max,
            targets: HashMap::new(),
            tenants: HashMap::new(),
            ring: VecDeque::new(),
            known: HashSet::new(),
            was_full: false,
            hungry: false,
        }
    }

    /// How many are held, in flight included.
    pub fn held(&self) -> usize {
        self.known.len()
    }

    /// Is there room for more, enough to ask the database for?
    pub fn has_room(&self) -> bool {
        self.known.len() < self.held_max / 2
    }

    /// More waits in the database than was offered.
    pub fn note_more(&mut self) {
        self.was_full = true;
    }

    /// Is it time to ask the database again for what was turned away? Yes once for each time that there is room again:
    /// a receiver that stays full must not make its owner ask all the time.
    pub fn wants_more(&mut self) -> bool {
        let room = self.was_full && self.has_room();
        if room {
            self.was_full = false;
        }
        std::mem::take(&mut self.hungry) || room
    }

    /// Adds a delivery that is due.
    pub fn offer(&mut self, due: Due) -> Offer {
        if self.known.contains(&due.id) {
            return Offer::Known;
        }
        if self.known.len() >= self.held_max {
            self.was_full = true;
            return Offer::Full;
        }
        let target = self.targets.entry((due.tenant, due.target)).or_default();
        if target.waiting.len() >= PER_TARGET_MAX {
            target.turned_away = true;
            return Offer::Full;
        }
        target.waiting.push_back(due);
        self.known.insert(due.id);
        self.list(due.tenant, due.target);
        Offer::Taken
    }

    /// Puts a target with work and room into the rings.
    fn list(&mut self, tenant: TenantId, target_id: Uuid) {
        let Some(target) = self.targets.get_mut(&(tenant, target_id)) else { return };
        if target.listed || target.waiting.is_empty() || target.in_flight >= self.cap {
            return;
        }
        target.listed = true;
        let entry = self.tenants.entry(tenant).or_default();
        if entry.ring.is_empty() {
            self.ring.push_back(tenant);
        }
        entry.ring.push_back(target_id);
    }

    /// The next one to send; it counts as in flight from now on.
    pub fn take(&mut self) -> Option<Due> {
        let tenant_id = self.ring.pop_front()?;
        let tenant = self.tenants.get_mut(&tenant_id)?;
        let target_id = tenant.ring.pop_front()?;
        if tenant.ring.is_empty() {
            self.tenants.remove(&tenant_id);
        } else {
            self.ring.push_back(tenant_id);
        }
        let target = self.targets.get_mut(&(tenant_id, target_id))?;
        target.listed = false;
        let due = target.waiting.pop_front()?;
        target.in_flight += 1;
        if target.turned_away && target.waiting.len() < PER_TARGET_MAX / 2 {
            target.turned_away = false;
            self.hungry = true;
        }
        self.list(tenant_id, target_id);
        Some(due)
    }

    /// It is no longer in flight, and its row tells what is next.
    pub fn finished(&mut self, due: &Due) {
        self.known.remove(&due.id);
        let key = (due.tenant, due.target);
        if let Some(target) = self.targets.get_mut(&key) {
            target.in_flight = target.in_flight.saturating_sub(1);
            if target.in_flight == 0 && target.waiting.is_empty() {
                self.targets.remove(&key);
            } else {
                self.list(due.tenant, due.target);
            }
        }
    }

    /// Forgets what waits (it is in the database); what is in flight stays.
    pub fn clear_waiting(&mut self) {
        for target in self.targets.values_mut() {
            for due in target.waiting.drain(..) {
                self.known.remove(&due.id);
            }
            target.listed = false;
        }
        self.targets.retain(|_, target| target.in_flight > 0);
        self.tenants.clear();
        self.ring.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn due(tenant: u128, target: u128) -> Due {
        Due {
            tenant: TenantId::from_uuid(Uuid::from_u128(tenant)),
            id: DeliveryId::fresh(),
            target: Uuid::from_u128(target),
        }
    }

    #[test]
    fn a_loud_tenant_takes_every_second_turn_only() {
        let mut schedule = Schedule::new(100, 10_000);
        for _ in 0..50 {
            schedule.offer(due(1, 1));
        }
        for _ in 0..3 {
            schedule.offer(due(2, 2));
        }
        let tenants: Vec<u128> =
            (0..6).filter_map(|_| schedule.take()).map(|due| due.tenant.uuid().as_u128()).collect();
        assert_eq!(tenants, [1, 2, 1, 2, 1, 2]);
    }

    #[test]
    fn what_is_known_is_not_taken_twice() {
        let mut schedule = Schedule::new(1, 10);
        let one = due(1, 1);
        assert_eq!(schedule.offer(one), Offer::Taken);
        assert_eq!(schedule.offer(one), Offer::Known);
        let taken = schedule.take().expect("one");
        assert_eq!(schedule.offer(one), Offer::Known);
        schedule.finished(&taken);
        assert_eq!(schedule.offer(one), Offer::Taken);
    }

    #[test]
    fn more_is_asked_for_once_there_is_room_again() {
        let mut schedule = Schedule::new(1, 10_000);
        for _ in 0..PER_TARGET_MAX {
            assert_eq!(schedule.offer(due(1, 1)), Offer::Taken);
        }
        assert_eq!(schedule.offer(due(1, 1)), Offer::Full);
        assert_eq!(schedule.offer(due(1, 2)), Offer::Taken, "another receiver has room");
        assert!(!schedule.wants_more(), "the receiver that is full hangs");
        let mut sent = 0;
        while !schedule.wants_more() {
            let one = schedule.take().expect("something waits");
            schedule.finished(&one);
            sent += 1;
        }
        assert!((PER_TARGET_MAX / 2..PER_TARGET_MAX).contains(&sent), "{sent}");
        assert!(!schedule.wants_more(), "once");
    }

    proptest! {
        /// Any sequence of arrivals and ends keeps the caps, loses nothing, and sends each delivery once.
        #[test]
        fn caps_hold_and_nothing_is_lost(steps in proptest::collection::vec((0u8..3, 0u128..3, 0u128..4), 1..400)) {
            let cap = 2;
            let mut schedule = Schedule::new(cap, 10_000);
            let mut flying: Vec<Due> = Vec::new();
            let (mut offered, mut sent) = (0usize, 0usize);
            for (step, tenant, target) in steps {
                match step {
                    0 => { offered += usize::from(schedule.offer(due(tenant, target)) == Offer::Taken); }
                    1 => if let Some(due) = schedule.take() { sent += 1; flying.push(due); },
                    _ => if !flying.is_empty() { let done = flying.remove(0); schedule.finished(&done); },
                }
                let mut counts: HashMap<(TenantId, Uuid), usize> = HashMap::new();
                for due in &flying { *counts.entry((due.tenant, due.target)).or_default() += 1; }
                prop_assert!(counts.values().all(|count| *count <= cap));
            }
            // Drain: whoever has room and work is reached.
            loop {
                while let Some(due) = schedule.take() { sent += 1; flying.push(due); }
                if flying.is_empty() { break; }
                for due in std::mem::take(&mut flying) { schedule.finished(&due); }
            }
            prop_assert_eq!(sent, offered);
            prop_assert_eq!(schedule.held(), 0);
        }
    }
}
