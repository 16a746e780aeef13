//! How many transactions of the same sort run at a time: a few, and of one tenant fewer still.
//!
//! For what cannot share a commit, such as the batches that a request brings. Without it a tenant that sends many of
//! them fills the database's cores and the pool, and everybody's single job waits behind it. Who has a place of its tenant
//! stands in line for a place of all, so that nobody has more than its few before another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::ids::TenantId;

/// From so many tenants on, those that have nobody inside are forgotten.
const TENANTS_MAX: usize = 1000;

/// Lets a few in at a time.
#[derive(Debug)]
pub struct Gate {
    all: Arc<Semaphore>,
    each: usize,
    of_tenants: Mutex<HashMap<TenantId, Arc<Semaphore>>>,
}

/// Its holder is inside; the next one may enter when it is dropped.
#[derive(Debug)]
pub struct Pass {
    tenant: TenantId,
    since: Instant,
    _places: [Option<OwnedSemaphorePermit>; 2],
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
        Self { all: Arc::new(Semaphore::new(places)), each, of_tenants: Mutex::default() }
    }

    /// Waits for the tenant's turn.
    pub async fn enter(&self, tenant: TenantId) -> Pass {
        let of_tenant = self.of_tenant(tenant);
        // They are never closed, and would let everybody in if they were.
        let own = of_tenant.acquire_owned().await.ok();
        let place = self.all.clone().acquire_owned().await.ok();
        Pass { tenant, since: Instant::now(), _places: [own, place] }
    }

    fn of_tenant(&self, tenant: TenantId) -> Arc<Semaphore> {
        let mut of_tenants = self.of_tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if of_tenants.len() >= TENANTS_MAX {
            of_tenants.retain(|_, places| Arc::strong_count(places) > 1);
        }
        of_tenants.entry(tenant).or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone()
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
