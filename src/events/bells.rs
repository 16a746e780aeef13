//! Who waits for new events of a tenant: long polls and streams.
//!
//! Called by those who wait, by `engine::fan_out`, which rings after it has given positions, and by `engine::hear_nodes`
//! when another process has. Holds no event: who is woken reads the log. What another process tells may be lost, so who
//! waits looks by itself from time to time as well.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::ids::TenantId;

/// Bells, and how many listen to each.
type Listening = HashMap<TenantId, (Arc<Notify>, usize)>;

/// One bell for each tenant that someone waits for. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Bells(Arc<Mutex<Listening>>);

/// A place beside a bell; given up when dropped.
#[derive(Debug)]
pub struct Listener {
    bells: Bells,
    tenant: TenantId,
    bell: Arc<Notify>,
}

impl Bells {
    fn lock(&self) -> std::sync::MutexGuard<'_, Listening> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens for a tenant's events. Read the log after this, or an event in between is missed.
    pub fn listen(&self, tenant: TenantId) -> Listener {
        let mut bells = self.lock();
        let (bell, count) = bells.entry(tenant).or_default();
        *count += 1;
        Listener { bells: self.clone(), tenant, bell: bell.clone() }
    }

    /// Wakes all who wait for anybody's events.
    pub fn ring_all(&self) {
        for (bell, _) in self.lock().values() {
            bell.notify_waiters();
        }
    }

    /// Wakes all who wait for these tenants; each tenant may come many times in a row.
    pub fn ring(&self, tenants: impl Iterator<Item = TenantId>) {
        let bells = self.lock();
        let mut last = None;
        for tenant in tenants.filter(|_| !bells.is_empty()) {
            if last.replace(tenant) != Some(tenant)
                && let Some((bell, _)) = bells.get(&tenant)
            {
                bell.notify_waiters();
            }
        }
    }
}

impl Listener {
    /// Completes at the next ring after this call and `enable`.
    pub fn rung(&self) -> tokio::sync::futures::Notified<'_> {
        self.bell.notified()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut bells = self.bells.lock();
        if let Some((_, count)) = bells.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                bells.remove(&self.tenant);
            }
        }
    }
}
