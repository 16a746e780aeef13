//! Stop 6 of a job's path: the end of a try is written, and if the job ended, the event that says so, in one commit.
//! Next: `engine::fan_out`.
//!
//! Called by the finish batcher (`engine::run_jobs`, `engine::expire_leases`), by `http::jobs` (cancel) and by
//! `engine::place_held` (what waited for a job that did not succeed).
//!
//! Invariant: there is no end without its event, and no event without an end.

use std::sync::Arc;

use super::lease_store::{self, Ended, Then, TryEnd};
use super::outcome::{TryOutcome, Verdict};
use super::read_store::StoredJob;
use super::view::{JobEnd, JobView};
use super::{CallbackOptions, EndStatus, Job, JobError, Told, Tries, read_store, store};
use crate::clock::Timestamp;
use crate::db::batch::Tenanted;
use crate::db::{Db, StoreError, Tx};
use crate::events::{self, CallbackRef, NewEvent};
use crate::ids::{EventId, JobId, TenantId};
use uuid::Uuid;

/// The end of a try with all that follows from it, ready to be written.
#[derive(Debug, Clone)]
pub struct Finish {
    /// For the lease.
    pub end: TryEnd,
    /// For the log, if the job ended.
    pub event: Option<NewEvent>,
}

impl Tenanted for Finish {
    fn tenant(&self) -> TenantId {
        self.end.tenant
    }
}

/// What a try was.
#[derive(Debug)]
pub struct Try<'a> {
    /// The job.
    pub job: &'a Job,
    /// Its callback's options, opened.
    pub callback: Option<&'a CallbackOptions>,
    /// The right to end it.
    pub token: Uuid,
    /// The tries so far, this one counted.
    pub tries: Tries,
    /// Who ran it.
    pub worker: &'a str,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// What was told of it meanwhile.
    pub told: &'a Told,
    /// See [`TryEnd::fenced`].
    pub fenced: bool,
}

/// Puts together what a verdict writes.
pub fn prepare(one: &Try<'_>, outcome: TryOutcome, verdict: Verdict) -> Finish {
    let (then, try_error, event) = match verdict {
        Verdict::Retry { after, error } => (Then::Again(after), Some(error), None),
        Verdict::End { status, result, error } => {
            let end = JobEnd {
                status,
                result,
                error,
                attempt: one.tries.attempt,
                started_at: Some(one.started_at),
                finished_at: one.finished_at,
                progress: one.told.progress.clone(),
            };
            let event = ended_event(one.job, one.callback, &end);
            let result = end.result.map(|result| String::from(Box::<str>::from(result)));
            let then = Then::End { status, result, unique_key: one.job.unique_key.clone() };
            (then, end.error, Some(event))
        }
    };
    let end = TryEnd {
        tenant: one.job.tenant,
        job: one.job.id,
        token: one.token,
        tries: one.tries,
        worker: one.worker.to_owned(),
        outcome,
        error: try_error.map(|error| error.to_json()),
        started_at: one.started_at,
        finished_at: one.finished_at,
        in_line: one.job.ordering_key.is_some(),
        then,
        fenced: one.fenced,
    };
    Finish { end, event }
}

/// The event that tells of an end; its data is the whole job.
fn ended_event(job: &Job, callback: Option<&CallbackOptions>, end: &JobEnd) -> NewEvent {
    let state = end.clone().into_state();
    let told = job.callback.as_ref().filter(|_| callback.is_none_or(|options| options.wants(end.status)));
    NewEvent {
        tenant: job.tenant,
        id: EventId::fresh(),
        event_type: end.status.event_type().to_owned(),
        data: JobView::new(job, &state).to_json(),
        metadata: job.metadata.clone(),
        ordering_key: None,
        traceparent: job.traceparent.clone(),
        callback: told.map(|callback| CallbackRef::new(job.tenant, job.id, &callback.url)),
    }
}

/// Writes a batch: the finish batcher's flush.
/// # Errors
/// [`StoreError`]; nothing was written, or (unavailable) it is not known.
pub async fn write(db: Db, batch: Arc<Vec<Finish>>) -> Result<Ended, StoreError> {
    let ends: Vec<TryEnd> = batch.iter().map(|finish| finish.end.clone()).collect();
    let mut tx = db.begin().await?;
    let ended = lease_store::end(&mut tx, &ends).await?;
    let events: Vec<&NewEvent> = batch
        .iter()
        .zip(&ended.held)
        .filter(|(_, held)| **held)
        .filter_map(|(finish, _)| finish.event.as_ref())
        .collect();
    events::store::append(&mut *tx, &events).await?;
    tx.commit().await?;
    Ok(ended)
}

/// A job that was waiting or held, and is no more.
#[derive(Debug)]
pub struct Cancelled {
    /// As it stood.
    pub stored: StoredJob,
    /// Its callback's options, opened.
    pub options: Option<CallbackOptions>,
    /// Why.
    pub error: JobError,
}

/// Writes the ends of jobs that were taken from where they waited, in the same transaction.
/// # Errors
/// [`StoreError`].
pub async fn write_cancelled(tx: &mut Tx, jobs: &[Cancelled], now: Timestamp) -> Result<(), StoreError> {
    let ends: Vec<_> =
        jobs.iter().map(|one| (&one.stored.job, one.stored.state.attempt, one.error.to_json())).collect();
    lease_store::end_waiting(tx, &ends, now).await?;
    let event = |one: &Cancelled| {
        let end = JobEnd {
            status: EndStatus::Cancelled,
            result: None,
            error: Some(one.error.clone()),
            attempt: one.stored.state.attempt,
            started_at: one.stored.state.started_at,
            finished_at: now,
            progress: one.stored.state.progress.clone(),
        };
        ended_event(&one.stored.job, one.options.as_ref(), &end)
    };
    let events: Vec<NewEvent> = jobs.iter().map(event).collect();
    events::store::append(&mut **tx, &events.iter().collect::<Vec<_>>()).await
}

/// What a request to cancel came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelOutcome {
    /// It was waiting, and has ended now.
    Cancelled,
    /// It runs; its holder is asked to stop.
    Requested,
}

/// Ends a waiting job, or asks the holder of a running one to stop.
/// # Errors
/// [`StoreError::NotFound`]; [`StoreError::Conflict`] when it has ended.
pub async fn cancel(
    db: &Db,
    tenant: TenantId,
    id: JobId,
    options: Option<CallbackOptions>,
    now: Timestamp,
) -> Result<CancelOutcome, StoreError> {
    // The job may move from waiting to running and back while we look; each move is seen in the next round.
    for _ in 0..5 {
        let stored = read_store::get(db, tenant, id).await?;
        if stored.state.is_finished() {
            return Err(StoreError::Conflict(format!(
                "the job has ended: it {}",
                match stored.state.status {
                    super::JobStatus::Cancelled => "was cancelled",
                    status => status.as_str(),
                }
            )));
        }
        if store::request_cancel(db, tenant, id).await? {
            return Ok(CancelOutcome::Requested);
        }
        let mut tx = db.begin().await?;
        if store::take_waiting(&mut tx, tenant, id).await? {
            let error = JobError::new("cancelled", "the job was cancelled before it ran to its end");
            let cancelled = Cancelled { stored, options, error };
            write_cancelled(&mut tx, &[cancelled], now).await?;
            tx.commit().await?;
            return Ok(CancelOutcome::Cancelled);
        }
    }
    Err(StoreError::Conflict("the job changed its state again and again; try once more".to_owned()))
}
