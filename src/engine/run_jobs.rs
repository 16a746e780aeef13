//! Stop 3 of a job's path: waiting jobs of the built-in kinds are claimed in batches and run. Next: `executors`.
//!
//! Claims only as many as there are free permits, so nothing claimed waits. A try ends by its result, by `timeout_s`, by a
//! wish to cancel, or by the end of the grace at a stop: then its lease is given back and the try does not count.
//!
//! Invariant: every lease that is claimed is ended, given back, or (if the process dies) expires.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::heartbeat::LEASE;
use super::{jittered, pause};
use crate::executors::Executor;
use crate::jobs::finish::{Try, prepare};
use crate::jobs::lease_store::{self, Lease};
use crate::jobs::outcome::{TryResult, decide};
use crate::jobs::{JobError, Tries};
use crate::shared::Shared;
use crate::supervisor::Stop;

/// More than this at once would hold row locks longer than it saves round trips.
const CLAIM_MAX: usize = 256;
const POLL: Duration = Duration::from_secs(1);

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    let permits = Arc::new(Semaphore::new(shared.config.executor_concurrency));
    let kinds = shared.executors.kinds();
    let mut running = JoinSet::new();
    loop {
        while running.try_join_next().is_some() {}
        // One permit is waited for; the claim then asks for as many as are free.
        let first = tokio::select! {
            () = stop.drain.cancelled() => break,
            permit = permits.clone().acquire_owned() => permit,
        };
        let Ok(first) = first else { break };
        let free = (permits.available_permits() + 1).min(CLAIM_MAX);
        let claimed = match lease_store::claim(&shared.db, shared.node_id(), &kinds, free as i64, LEASE).await
        {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::warn!(%error, "cannot claim jobs");
                Vec::new()
            }
        };
        let more = may_have_more(&claimed, free);
        start_all(&shared, &stop, claimed, (first, &permits), &mut running).await;
        if !more && !pause(&stop, Some(&shared.wakeups.jobs), jittered(POLL)).await {
            break;
        }
    }
    while running.join_next().await.is_some() {}
}

/// Did the claim leave jobs behind that could run now? Each line has an equal share of the free places, so one line may
/// have more than its share while another did not need its own.
fn may_have_more(claimed: &[Lease], free: usize) -> bool {
    let mut lines: HashMap<_, usize> = HashMap::new();
    for lease in claimed {
        *lines.entry((lease.job.tenant, &lease.job.queue, &lease.job.kind)).or_default() += 1;
    }
    share_used_up(&lines.into_values().collect::<Vec<_>>(), free)
}

fn share_used_up(claimed_by_line: &[usize], free: usize) -> bool {
    let share = free.div_ceil(claimed_by_line.len().max(1));
    claimed_by_line.iter().any(|claimed| *claimed >= share)
}

async fn start_all(
    shared: &Arc<Shared>,
    stop: &Stop,
    claimed: Vec<Lease>,
    permits: (OwnedSemaphorePermit, &Arc<Semaphore>),
    running: &mut JoinSet<()>,
) {
    let (first, permits) = permits;
    let mut first = Some(first);
    for lease in claimed {
        let permit = match first.take() {
            Some(permit) => permit,
            // At most `free` were claimed, so this one is there.
            None => match permits.clone().acquire_owned().await {
                Ok(permit) => permit,
                Err(_) => return,
            },
        };
        let (shared, stop) = (shared.clone(), stop.clone());
        running.spawn(async move {
            run_one(&shared, &stop, lease).await;
            drop(permit);
        });
    }
}

async fn run_one(shared: &Shared, stop: &Stop, lease: Lease) {
    let job = &lease.job;
    let running = shared.running_jobs.begin(job.tenant, job.id);
    let result = tokio::select! {
        biased;
        () = running.cancelled.cancelled() => TryResult::Cancelled,
        () = stop.hurry.cancelled() => {
            give_back(shared, &lease).await;
            return;
        }
        result = execute(shared.executors.get(&job.kind), &lease) => result,
    };
    let tries: Tries = lease.tries;
    let finished_at = crate::clock::now().max(lease.started_at);
    let (outcome, verdict) = decide(&job.retry, tries, result, rand::random());
    let options = match shared.open_options(job.tenant, job.id, lease.sealed_options.as_deref()) {
        Ok(options) => Some(options),
        Err(error) => {
            tracing::error!(job.id = %job.id, %error, "the callback's options cannot be opened; its delivery will fail");
            None
        }
    };
    let one = Try {
        job,
        callback: options.as_ref(),
        token: lease.token,
        tries,
        worker: &shared.node.name,
        started_at: lease.started_at,
        finished_at,
    };
    let finish = prepare(&one, outcome, verdict);
    let duration_ms = (finished_at - lease.started_at).num_milliseconds();
    match shared.finish.submit_patiently(finish).await {
        Ok(true) => {
            tracing::debug!(job.id = %job.id, attempt = tries.attempt, ?outcome, duration_ms, "job {} tried", job.id);
        }
        Ok(false) => {
            tracing::warn!(job.id = %job.id, attempt = tries.attempt, "job {} lost its lease; its result is dropped", job.id);
        }
        Err(error) => {
            tracing::error!(job.id = %job.id, %error, "the end of a try cannot be written; its lease will expire");
        }
    }
}

async fn execute(executor: Option<&dyn Executor>, lease: &Lease) -> TryResult {
    let Some(executor) = executor else {
        let error = JobError::new("unknown_kind", "this process does not run jobs of this kind");
        return TryResult::Failed { error, retryable: true, retry_after: None };
    };
    tokio::time::timeout(lease.job.timeout, executor.run(&lease.job)).await.unwrap_or(TryResult::TimedOut)
}

async fn give_back(shared: &Shared, lease: &Lease) {
    match lease_store::release(&shared.db, &[lease.token]).await {
        Ok(_) => tracing::info!(job.id = %lease.job.id, "job {} is given back", lease.job.id),
        Err(error) => {
            tracing::warn!(job.id = %lease.job.id, %error, "a job cannot be given back; its lease will expire");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::share_used_up;

    #[test]
    fn a_line_that_used_up_its_share_may_have_more() {
        assert!(!share_used_up(&[], 256), "nothing waits");
        assert!(!share_used_up(&[255], 256), "all that waited was claimed");
        assert!(share_used_up(&[256], 256));
        assert!(share_used_up(&[128, 1], 256), "the second line did not need its share");
        assert!(!share_used_up(&[100, 1], 256));
        assert!(share_used_up(&[1], 1));
    }
}
