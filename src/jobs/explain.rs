//! [pure] Why a job waits, or what became of it: one sentence and its facts.
//!
//! Called by `http::explain`; the facts come from `explain_store`. What holds a job up longest is named first: a paused queue
//! before the number of jobs before it.
//!
//! Invariant: every job has an explanation, whatever the facts are.

use serde::Serialize;

use super::JobStatus;
use super::read_store::StoredJob;
use crate::clock::{Timestamp, millis, rfc3339 as shown};
use crate::ids::JobId;

/// So many jobs before this one are counted, and no more.
pub const AHEAD_COUNTED_MAX: i64 = 1000;
/// So many of the jobs that it waits for are named.
pub const NAMED_MAX: i64 = 10;

/// A worker that has not asked for so long is gone: its longest poll takes 60 s.
const WORKER_GONE_AFTER: chrono::Duration = chrono::Duration::seconds(75);

/// Where a job stands, as far as an explanation needs it.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// It ended, or waits for a time: the job itself says all.
    Told,
    /// Its turn has not come, in its line or after others.
    Held(Held),
    /// It may be handed out.
    Ready(Ready),
    /// Someone runs it.
    Running(Running),
}

/// Of a held job.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Held {
    /// For so many jobs it waits.
    pub pending: i64,
    /// Some of them.
    pub waits_for: Vec<JobId>,
    /// Whose turn it is in its line.
    pub head: Option<JobId>,
    /// So many are before it in its line, the head not counted; counted up to one more than [`AHEAD_COUNTED_MAX`].
    pub ahead: i64,
}

/// Of a job that may be handed out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ready {
    /// Its queue is paused since.
    pub paused_at: Option<Timestamp>,
    /// What the operator's limit says of its queue.
    pub limit: Limit,
    /// Whether anybody is there to run it.
    pub workers: Workers,
    /// So many of its kind in its queue go before it; counted up to one more than [`AHEAD_COUNTED_MAX`].
    pub ahead: i64,
}

/// What the operator's file leaves to a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Limit {
    /// Something, or there is none.
    #[default]
    Open,
    /// So many run, and no more may.
    Full(i64),
    /// So many were handed out that the next one has to wait.
    TooFast,
}

/// Who runs jobs of a kind.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Workers {
    /// It is built in, or a worker asked for such jobs just now; or nobody knows.
    #[default]
    There,
    /// No worker ever asked for such jobs.
    NeverSeen,
    /// None has asked since.
    Gone(Timestamp),
}

impl Workers {
    /// By when one asked for such jobs the last time. A worker that waits for work asks at least once a minute.
    pub fn of_sighting(last: Option<Timestamp>, now: Timestamp) -> Self {
        match last {
            None => Self::NeverSeen,
            Some(at) if now - at > WORKER_GONE_AFTER => Self::Gone(at),
            Some(_) => Self::There,
        }
    }
}

/// Of a running job.
#[derive(Debug, Clone, PartialEq)]
pub struct Running {
    /// Who runs it.
    pub worker: String,
    /// Since when.
    pub since: Timestamp,
}

/// The reason, as a word for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Others are before it in its line.
    OrderingKey,
    /// Jobs in `after` have not ended.
    After,
    /// Its place is being given to it just now.
    BeingPlaced,
    /// Its time has not come: `run_at`, `delay_s`.
    Delayed,
    /// It waits between two tries.
    Retrying,
    /// Its queue is paused.
    QueuePaused,
    /// Its queue is at its limit.
    QueueAtLimit,
    /// There is no worker of its kind.
    NoWorker,
    /// It waits for its turn among others.
    Turn,
    /// It runs.
    Running,
    /// It runs, and is to stop.
    Cancelling,
    /// It ended well.
    Succeeded,
    /// It ended badly.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explained {
    job_id: JobId,
    status: JobStatus,
    code: Code,
    reason: String,
    #[serde(flatten)]
    facts: Facts,
}

/// What the sentence says, in fields; those that say nothing are left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
struct Facts {
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ordering_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    head_job_id: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ahead: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for: Option<Vec<JobId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for_count: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    #[serde(with = "millis", skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    #[serde(with = "millis", skip_serializing_if = "Option::is_none")]
    due_at: Option<Timestamp>,
}

/// Explains a job.
pub fn explain(stored: &StoredJob, standing: &Standing) -> Explained {
    let (code, reason, facts) = match standing {
        Standing::Held(held) => of_held(stored, held),
        Standing::Ready(ready) => of_ready(stored, ready),
        Standing::Running(running) => of_running(stored, running),
        Standing::Told => of_state(stored),
    };
    Explained { job_id: stored.job.id, status: stored.state.status, code, reason, facts }
}

type Parts = (Code, String, Facts);

fn of_held(stored: &StoredJob, held: &Held) -> Parts {
    let job = &stored.job;
    if held.pending > 0 {
        let facts = Facts {
            waits_for: Some(held.waits_for.clone()),
            waits_for_count: Some(held.pending),
            ordering_key: job.ordering_key.clone(),
            ..Facts::default()
        };
        let first = held.waits_for.first().map_or_else(String::new, |id| format!(", among them {id}"));
        let reason = match (held.pending, held.waits_for.first()) {
            (1, Some(id)) => format!("waits for the end of {id}, after which it is to run"),
            (count, _) => format!("waits for the end of {count} jobs, after which it is to run{first}"),
        };
        return (Code::After, reason, facts);
    }
    let Some(key) = job.ordering_key.as_deref().filter(|_| held.head.is_some() || held.ahead > 0) else {
        return (
            Code::BeingPlaced,
            "nothing holds it up; it is about to be given its place in the queue".to_owned(),
            Facts::default(),
        );
    };
    let facts = Facts {
        ordering_key: job.ordering_key.clone(),
        queue: Some(job.queue.clone()),
        head_job_id: held.head,
        ahead: Some(held.ahead + i64::from(held.head.is_some())),
        ..Facts::default()
    };
    let head = held.head.map_or_else(
        || "the first of them cannot run yet".to_owned(),
        |head| format!("it is the turn of {head}"),
    );
    let ahead = count(held.ahead + i64::from(held.head.is_some()), "job is", "jobs are");
    let reason =
        format!("{ahead} before it under the ordering_key {key:?} of the queue {}; {head}", job.queue);
    (Code::OrderingKey, reason, facts)
}

fn of_ready(stored: &StoredJob, ready: &Ready) -> Parts {
    let (queue, kind) = (&stored.job.queue, &stored.job.kind);
    let facts = Facts { queue: Some(queue.clone()), kind: Some(kind.clone()), ..Facts::default() };
    if let Some(since) = ready.paused_at {
        let reason =
            format!("the queue {queue} is paused; POST /v1/admin/queues/{queue}/resume lets it go on");
        return (Code::QueuePaused, reason, Facts { since: Some(since), ..facts });
    }
    match ready.workers {
        Workers::There => {}
        Workers::NeverSeen => {
            let reason = format!("no worker has asked for jobs of the kind {kind} yet; start one");
            return (Code::NoWorker, reason, facts);
        }
        Workers::Gone(since) => {
            let at = shown(since);
            let reason =
                format!("no worker has asked for jobs of the kind {kind} since {at}; is one running?");
            return (Code::NoWorker, reason, Facts { since: Some(since), ..facts });
        }
    }
    let facts = Facts { ahead: Some(ready.ahead), ..facts };
    let ahead = count(ready.ahead, "job goes", "jobs go");
    match ready.limit {
        Limit::Full(running) => {
            let reason = format!(
                "the queue {queue} is at its limit: {running} of its jobs run, as many as may; {ahead} before this one"
            );
            return (Code::QueueAtLimit, reason, facts);
        }
        Limit::TooFast => {
            let reason = format!("the queue {queue} is at its rate limit; {ahead} before this one");
            return (Code::QueueAtLimit, reason, facts);
        }
        Limit::Open => {}
    }
    let reason = format!(
        "waits for its turn: {ahead} before it in the queue {queue}, and other queues and tenants take turns"
    );
    (Code::Turn, reason, facts)
}

fn of_running(stored: &StoredJob, running: &Running) -> Parts {
    let facts =
        Facts { worker: Some(running.worker.clone()), since: Some(running.since), ..Facts::default() };
    let (worker, at, attempt) = (&running.worker, shown(running.since), stored.state.attempt);
    if stored.state.cancel_requested {
        return (Code::Cancelling, format!("runs on {worker} since {at} and was asked to stop"), facts);
    }
    (Code::Running, format!("runs on {worker} since {at}, try {attempt}"), facts)
}

fn of_state(stored: &StoredJob) -> Parts {
    let state = &stored.state;
    let due_at = state.due_at.unwrap_or(stored.job.run_at);
    let due = Facts { due_at: Some(due_at), ..Facts::default() };
    let (at, tries) = (shown(due_at), count(i64::from(state.attempt), "try", "tries"));
    let error = state.error.as_ref().map_or_else(String::new, |error| format!(": {}", error.message));
    let ended = Facts { since: state.finished_at, ..Facts::default() };
    match state.status {
        JobStatus::Succeeded => (Code::Succeeded, format!("succeeded after {tries}"), ended),
        JobStatus::Failed => (Code::Failed, format!("failed after {tries}{error}"), ended),
        JobStatus::Cancelled => (Code::Cancelled, format!("was cancelled after {tries}{error}"), ended),
        JobStatus::Retrying => (
            Code::Retrying,
            format!("{tries} failed; the next one is due at {at}. The last error{error}"),
            due,
        ),
        JobStatus::Queued if state.due_at.is_some() => {
            (Code::Delayed, format!("is due at {at}, as it was asked for"), due)
        }
        JobStatus::Queued => {
            (Code::BeingPlaced, "changes its place in this moment; ask again".to_owned(), Facts::default())
        }
        JobStatus::Running => (Code::Running, "runs".to_owned(), Facts::default()),
    }
}

/// A number and its noun.
fn count(number: i64, one: &str, many: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        number if number > AHEAD_COUNTED_MAX => format!("more than {AHEAD_COUNTED_MAX} {many}"),
        number => format!("{number} {many}"),
    }
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
