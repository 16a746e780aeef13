//! Who waits for the end of a job: long polls (`?wait_s=`) and `Prefer: wait`.
//!
//! Called by `http::jobs` (waits), by whatever ends jobs in this process (wakes at once), and by
//! `engine::wake_waiters` (asks the database about ends that another process wrote). Holds no result: who is woken
//! reads the job.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::ids::{JobId, TenantId};

type Waiting = HashMap<(TenantId, JobId), (Arc<Notify>, usize)>;

/// The list of waiters. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Waiters {
    waiting: Arc<Mutex<Waiting>>,
}

/// A place in the list; leaves it when dropped.
#[derive(Debug)]
pub struct Waiter {
    waiters: Waiters,
    job: (TenantId, JobId),
    notify: Arc<Notify>,
}

impl Waiters {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters the list. Read the job after entering, or an end in between is missed.
    pub fn enter(&self, tenant: TenantId, job: JobId) -> Waiter {
        let mut waiting = self.lock();
        let (notify, count) = waiting.entry((tenant, job)).or_default();
        *count += 1;
        Waiter { waiters: self.clone(), job: (tenant, job), notify: notify.clone() }
    }

    /// Wakes all who wait for this job.
    pub fn wake(&self, tenant: TenantId, job: JobId) {
        if let Some((notify, _)) = self.lock().get(&(tenant, job)) {
            notify.notify_waiters();
        }
    }

    /// The jobs that someone waits for.
    pub fn jobs(&self) -> Vec<(TenantId, JobId)> {
        self.lock().keys().copied().collect()
    }
}

impl Waiter {
    /// Completes at the next wake-up after this call.
    pub fn woken(&self) -> tokio::sync::futures::Notified<'_> {
        self.notify.notified()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.waiters.lock();
        if let Some((_, count)) = waiting.get_mut(&self.job) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.job);
            }
        }
    }
}
