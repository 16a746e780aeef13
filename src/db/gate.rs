//! How many transactions of the same sort run at a time: a few, by turns over tenants, and of one tenant fewer still.
//!
//! For what cannot share a commit, such as the batches that a request brings. Without it a tenant that sends many of
//! them fills the database's cores and the pool, and everybody's single job waits behind it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::turns::Turns;
use crate::ids::TenantId;

/// Lets a few in at a time. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    each: usize,
    inside: HashMap<TenantId, usize>,
    waiting: Turns<oneshot::Sender<Pass>>,
}

/// Its holder is inside; the next one may enter when it is dropped.
#[derive(Debug)]
pub struct Pass {
    gate: Gate,
    tenant: TenantId,
    since: Instant,
}

impl Pass {
    /// Whose it is.
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// Inside since then.
    pub fn since(&self) -> Instant {
        self.since
    }
}

impl Gate {
    /// At most `places` at a time, at most `each` of one tenant.
    pub fn new(places: usize, each: usize) -> Self {
        let waiting = Turns::default();
        Self(Arc::new(Mutex::new(State { free: places, each, inside: HashMap::new(), waiting })))
    }

    /// Waits for the tenant's turn.
    pub async fn enter(&self, tenant: TenantId) -> Pass {
        let (sender, entered) = oneshot::channel();
        self.change(|state| state.waiting.push(tenant, sender));
        match entered.await {
            Ok(pass) => pass,
            // Unreachable while the gate, which holds the sender, is there.
            Err(_) => self.let_in(tenant),
        }
    }

    fn let_in(&self, tenant: TenantId) -> Pass {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.free = state.free.saturating_sub(1);
        *state.inside.entry(tenant).or_default() += 1;
        Pass { gate: self.clone(), tenant, since: Instant::now() }
    }

    /// Changes the state, and lets in who may enter now.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut entering = Vec::new();
        {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut state);
            while state.free > 0 {
                let State { each, inside, waiting, .. } = &mut *state;
                let may = |tenant| inside.get(&tenant).is_none_or(|count| count < each);
                let Some((tenant, sender)) = waiting.pop(may) else { break };
                state.free -= 1;
                *state.inside.entry(tenant).or_default() += 1;
                entering.push((sender, Pass { gate: self.clone(), tenant, since: Instant::now() }));
            }
        }
        for (sender, pass) in entering {
            // Who does not wait any more gives its pass back by dropping it.
            drop(sender.send(pass));
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let tenant = self.tenant;
        self.gate.change(|state| {
            state.free += 1;
            if let Some(count) = state.inside.get_mut(&tenant) {
                *count -= 1;
                if *count == 0 {
                    state.inside.remove(&tenant);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tenant(number: u128) -> TenantId {
        TenantId::from_uuid(uuid::Uuid::from_u128(number))
    }

    async fn enters(gate: &Gate, of: TenantId) -> Option<Pass> {
        tokio::time::timeout(Duration::ZERO, gate.enter(of)).await.ok()
    }

    #[tokio::test]
    async fn a_loud_tenant_leaves_places_to_the_others() {
        let gate = Gate::new(3, 2);
        let first = enters(&gate, tenant(1)).await.expect("free");
        let second = enters(&gate, tenant(1)).await.expect("free");
        assert!(enters(&gate, tenant(1)).await.is_none(), "two of a tenant");
        let other = enters(&gate, tenant(2)).await.expect("another tenant's place");
        assert!(enters(&gate, tenant(3)).await.is_none(), "three in all");
        drop((first, other));
        assert!(enters(&gate, tenant(3)).await.is_some(), "who gave up waiting takes no place");
        drop(second);
        assert!(enters(&gate, tenant(1)).await.is_some());
    }
}
