//! [pure] What waits, by tenants in turn: first come, first served within a tenant, and one of each tenant before the
//! second of any, so that who brings a hundred thousand delays nobody by more than one.
//!
//! Called by `batch`. What a turn leads to does not belong here.

use std::collections::{HashMap, VecDeque};

use crate::ids::TenantId;

/// A queue for each tenant, and whose turn it is.
#[derive(Debug)]
pub(super) struct Turns<T> {
    waiting: HashMap<TenantId, VecDeque<T>>,
    ring: VecDeque<TenantId>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), ring: VecDeque::new() }
    }
}

impl<T> Turns<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    pub(super) fn push(&mut self, tenant: TenantId, item: T) {
        let queue = self.waiting.entry(tenant).or_default();
        if queue.is_empty() {
            self.ring.push_back(tenant);
        }
        queue.push_back(item);
    }

    /// The next one of the tenant whose turn it is; its next turn comes behind the others.
    pub(super) fn pop(&mut self) -> Option<(TenantId, T)> {
        let tenant = self.ring.pop_front()?;
        let queue = self.waiting.get_mut(&tenant)?;
        let item = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&tenant);
        } else {
            self.ring.push_back(tenant);
        }
        Some((tenant, item))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(number: u8) -> TenantId {
        TenantId::from_uuid(uuid::Uuid::from_u128(number.into()))
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_each_tenant_has_its_turn(steps in proptest::collection::vec((any::<bool>(), 0u8..4), 1..200)) {
            let (mut turns, mut model) = (Turns::default(), HashMap::<TenantId, VecDeque<usize>>::new());
            // How many others went since a tenant that waits had its turn.
            let mut passed = HashMap::<TenantId, usize>::new();
            for (number, (push, of)) in steps.into_iter().enumerate() {
                if push {
                    turns.push(tenant(of), number);
                    model.entry(tenant(of)).or_default().push_back(number);
                    continue;
                }
                let popped = turns.pop();
                prop_assert_eq!(popped.is_none(), model.values().all(VecDeque::is_empty));
                let Some((from, item)) = popped else { continue };
                prop_assert_eq!(model.entry(from).or_default().pop_front(), Some(item), "first come, first served");
                passed.remove(&from);
                for waiting in model.iter().filter(|(one, queue)| **one != from && !queue.is_empty()) {
                    let count = passed.entry(*waiting.0).or_default();
                    *count += 1;
                    prop_assert!(*count <= 3, "a turn came late");
                }
            }
        }
    }
}
