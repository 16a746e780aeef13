//! Ends tries whose lease ran out or whose node is gone: the job is put back at once, and the try is on record.

use std::sync::Arc;
use std::time::Duration;

use super::{jittered, pause};
use crate::db::StoreError;
use crate::jobs::finish::{Try, prepare};
use crate::jobs::lease_store::{self, LostLease};
use crate::jobs::outcome::{TryResult, decide};
use crate::jobs::{CallbackOptions, Tries};
use crate::shared::Shared;
use crate::supervisor::Stop;

/// A lease ends within a second of its time.
const EVERY: Duration = Duration::from_millis(500);
const BATCH_MAX: i64 = 500;

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    loop {
        let mut again = false;
        match expire(&shared).await {
            Ok(0) => {}
            Ok(count) => {
                again = count as i64 == BATCH_MAX;
                tracing::warn!(
                    jobs = count,
                    "{count} jobs lost their process or their lease; they are handed out again"
                );
                shared.wakeups.jobs.notify_one();
            }
            Err(error) => tracing::warn!(%error, "cannot look for expired leases"),
        }
        if !again && !pause(&stop, Some(&shared.wakeups.leases), jittered(EVERY)).await {
            return;
        }
    }
}

async fn expire(shared: &Shared) -> Result<usize, StoreError> {
    let lost = lease_store::lost(&shared.db, BATCH_MAX).await?;
    let ends = lost.into_iter().map(|one| finish_of(shared, one)).collect();
    // A holder may have been quicker after all; then nothing changes here.
    let mut count = 0;
    for held in shared.finish.submit_all(ends).await {
        count += usize::from(held?);
    }
    Ok(count)
}

fn finish_of(shared: &Shared, lost: LostLease) -> crate::jobs::finish::Finish {
    let LostLease { lease, worker, cancel_requested, timed_out } = lost;
    let (crashes, result) = match (cancel_requested, timed_out) {
        (true, _) => (0, TryResult::Cancelled),
        (false, true) => (0, TryResult::TimedOut),
        (false, false) => (1, TryResult::Crashed),
    };
    let tries = Tries { crashes: lease.tries.crashes.saturating_add(crashes), ..lease.tries };
    let (outcome, verdict) = decide(&lease.job.retry, tries, result, rand::random());
    // Options that cannot be opened must not keep the job from ending; the callback goes out and fails visibly.
    let options = shared.open_options(lease.job.tenant, lease.job.id, lease.sealed_options.as_deref());
    let options: Option<CallbackOptions> = options.ok();
    let one = Try {
        job: &lease.job,
        callback: options.as_ref(),
        token: lease.token,
        tries,
        worker: &worker,
        started_at: lease.started_at,
        finished_at: crate::clock::now().max(lease.started_at),
        told: &lease.told,
        fenced: false,
    };
    prepare(&one, outcome, verdict)
}
