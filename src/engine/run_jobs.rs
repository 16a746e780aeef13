//! Stop 3 of a job's path: waiting jobs of the built-in kinds are claimed in batches and run. Next: `executors`.
//!
//! Claims only as many as there are free permits, so nothing claimed waits. A try ends by its result, by `timeout_s`, by a
//! wish to cancel, or by the end of the grace at a stop: then its lease is given back and the try does not count.
//!
//! Invariant: every lease that is claimed is ended, given back, or (if the process dies) expires.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::heartbeat::LEASE;
use super::{jittered, pause};
use crate::executors::Executor;
use crate::jobs::claim_store::{self, Claim, Claimed, Slot};
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
    let mut handed_out = 0_usize;
    loop {
        while running.try_join_next().is_some() {}
        // One permit is waited for; the claim then asks for as many as are free.
        let first = tokio::select! {
            () = stop.drain.cancelled() => break,
            permit = permits.clone().acquire_owned() => permit,
        };
        let Ok(first) = first else { break };
        let free = (permits.available_permits() + 1).min(CLAIM_MAX);
        let claimed = claim(&shared, &kinds, free, handed_out).await;
        handed_out = handed_out.wrapping_add(claimed.leases.len());
        let wait = claimed.next.map_or(POLL, |next| next.min(POLL));
        start_all(&shared, &stop, claimed.leases, (first, &permits), &mut running).await;
        if !claimed.more && !pause(&stop, Some(&shared.wakeups.jobs), jittered(wait)).await {
            break;
        }
    }
    while running.join_next().await.is_some() {}
}

async fn claim(shared: &Shared, kinds: &[&str], free: usize, handed_out: usize) -> Claimed {
    let slots = vec![Slot { worker: &shared.node.name, lease: LEASE }; free];
    let claim =
        Claim { node: Some(shared.node_id()), tenant: None, kinds, queues: None, slots: &slots, handed_out };
    claim_store::claim(&shared.db, &claim, &shared.queue_limits).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot claim jobs");
        Claimed::default()
    })
}

async fn start_all(
    shared: &Arc<Shared>,
    stop: &Stop,
    claimed: Vec<(usize, Lease)>,
    permits: (OwnedSemaphorePermit, &Arc<Semaphore>),
    running: &mut JoinSet<()>,
) {
    let (first, permits) = permits;
    let mut first = Some(first);
    for (_, lease) in claimed {
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
        told: &lease.told,
        fenced: false,
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
