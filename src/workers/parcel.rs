//! What a worker is handed: leases on their way into an answer, and the receipt that says whether they got there.
//!
//! Made by `engine::lend_jobs`, opened by `http::leases`, settled by `engine::settle_parcels`.
//!
//! Invariant: a parcel that is dropped before its answer was handed to the connection is reported as undelivered, wherever that
//! happens: its jobs are given back at once and no try is counted.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::LeaseKey;
use crate::clock::{Timestamp, rfc3339};
use crate::ids::TenantId;
use crate::jobs::JobStatus;
use crate::jobs::lease_store::Lease;
use crate::jobs::view::{JobState, JobView};

/// A lease is no longer than this until its answer was handed over: when the service dies in between, nobody knows of the
/// lease, and the job waits for its end.
pub const FIRST_LEASE_MAX: Duration = Duration::from_secs(30);

/// A job that is lent.
#[derive(Debug)]
pub struct Lent {
    lease: Lease,
    expires_at: Timestamp,
}

impl Lent {
    /// For so long, or as long as the job may run.
    pub fn new(lease: Lease, wanted: Duration) -> Self {
        let expires_at = lease.started_at + wanted.min(lease.job.timeout);
        Self { lease, expires_at }
    }

    fn key(&self) -> LeaseKey {
        LeaseKey { job: self.lease.job.id, token: self.lease.token }
    }

    /// As the worker sees it.
    fn write_json(&self, json: &mut String) {
        use std::fmt::Write;
        let Lease { job, tries, started_at, told, after_results, .. } = &self.lease;
        let state = JobState {
            status: JobStatus::Running,
            attempt: tries.attempt,
            started_at: Some(*started_at),
            progress: told.progress.clone(),
            ..JobState::accepted()
        };
        let view = JobView::new(job, &state)
            .with_checkpoint(told.checkpoint.as_deref())
            .with_after_results(Some(after_results));
        // Writing to a String cannot fail.
        let _ = write!(
            json,
            "{{\"lease\":\"{}\",\"expires_at\":\"{}\",\"job\":{}}}",
            self.key(),
            rfc3339(self.expires_at),
            view.to_json()
        );
    }
}

/// What became of a parcel.
#[derive(Debug)]
pub struct Receipt {
    /// Whose jobs.
    pub tenant: TenantId,
    /// Which leases.
    pub leases: Vec<LeaseKey>,
    /// Delivered: the leases are to last so long from their beginning. `None`: undelivered.
    pub delivered: Option<Duration>,
}

/// Where receipts go.
#[derive(Debug, Clone)]
pub struct Receipts {
    sender: UnboundedSender<Receipt>,
    receiver: Arc<Mutex<Option<UnboundedReceiver<Receipt>>>>,
}

impl Default for Receipts {
    fn default() -> Self {
        let (sender, receiver) = unbounded_channel();
        Self { sender, receiver: Arc::new(Mutex::new(Some(receiver))) }
    }
}

impl Receipts {
    /// The end from which they are read; it is there once, and comes back by [`Self::put_back`].
    pub fn take(&self) -> Option<UnboundedReceiver<Receipt>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// For the next reader.
    pub fn put_back(&self, receiver: UnboundedReceiver<Receipt>) {
        *self.receiver.lock().unwrap_or_else(PoisonError::into_inner) = Some(receiver);
    }
}

/// Leases on their way.
#[derive(Debug)]
pub struct Parcel {
    tenant: TenantId,
    lent: Vec<Lent>,
    wanted: Duration,
    delivered: bool,
    receipts: Receipts,
}

impl Parcel {
    /// All for the same worker.
    pub fn new(tenant: TenantId, lent: Vec<Lent>, wanted: Duration, receipts: Receipts) -> Self {
        Self { tenant, lent, wanted, delivered: false, receipts }
    }

    /// `{"leases": […]}`.
    pub fn to_json(&self) -> String {
        let mut json = String::from("{\"leases\":[");
        for (index, lent) in self.lent.iter().enumerate() {
            if index > 0 {
                json.push(',');
            }
            lent.write_json(&mut json);
        }
        json.push_str("]}");
        json
    }

    /// The answer was handed to the connection. Whether it arrives cannot be known.
    pub fn delivered(&mut self) {
        self.delivered = true;
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        let delivered = self.delivered.then_some(self.wanted);
        // The first lease is what was wanted: nothing to do.
        let settled = self.delivered && self.wanted <= FIRST_LEASE_MAX;
        if settled || self.lent.is_empty() {
            return;
        }
        let leases = self.lent.iter().map(Lent::key).collect();
        // Without a reader the process is ending, and the leases with their first time.
        let _ = self.receipts.sender.send(Receipt { tenant: self.tenant, leases, delivered });
    }
}
