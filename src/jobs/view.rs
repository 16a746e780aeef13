//! [pure] A job as the API shows it, and as the event of its end carries it: one shape for both.
//!
//! Called by `http::jobs` and `jobs::finish`. Input and result are written as they came, byte for byte.
//!
//! Invariant: no header value or secret of a callback is ever shown, only its URL.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::after_store::AfterResult;
use super::{AfterFailure, EndStatus, Job, JobError, JobStatus};
use crate::clock::{Timestamp, millis};
use crate::ids::{JobId, ScheduleId};

/// What changes while a job lives.
#[derive(Debug, Clone)]
pub struct JobState {
    /// Where it stands.
    pub status: JobStatus,
    /// The highest attempt number so far.
    pub attempt: i32,
    /// What it gave.
    pub result: Option<Box<RawValue>>,
    /// Why it failed, or why the last try did.
    pub error: Option<JobError>,
    /// When it is due, where that is later than `run_at`.
    pub due_at: Option<Timestamp>,
    /// When the last try began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Someone asked to stop it.
    pub cancel_requested: bool,
    /// What its worker last told of it.
    pub progress: Option<Box<RawValue>>,
}

impl JobState {
    /// As it stands in the moment of acceptance.
    pub fn accepted() -> Self {
        Self {
            status: JobStatus::Queued,
            attempt: 0,
            result: None,
            error: None,
            due_at: None,
            started_at: None,
            finished_at: None,
            cancel_requested: false,
            progress: None,
        }
    }

    /// Is nothing more to come?
    pub fn is_finished(&self) -> bool {
        self.status.is_final()
    }
}

/// The end of a job.
#[derive(Debug, Clone)]
pub struct JobEnd {
    /// How.
    pub status: EndStatus,
    /// With what.
    pub result: Option<Box<RawValue>>,
    /// Or why not.
    pub error: Option<JobError>,
    /// The number of the last attempt.
    pub attempt: i32,
    /// When that began; `None`: there was none.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
    /// What its worker last told of it.
    pub progress: Option<Box<RawValue>>,
}

impl JobEnd {
    /// The state that this end leads to.
    pub fn into_state(self) -> JobState {
        JobState {
            status: self.status.into(),
            attempt: self.attempt,
            result: self.result,
            error: self.error,
            started_at: self.started_at,
            finished_at: Some(self.finished_at),
            progress: self.progress,
            ..JobState::accepted()
        }
    }
}

/// The JSON of a job.
#[derive(Debug, Serialize)]
pub struct JobView<'a> {
    id: JobId,
    kind: &'a str,
    status: JobStatus,
    input: &'a RawValue,
    result: Option<&'a RawValue>,
    error: Option<&'a JobError>,
    attempt: i32,
    max_attempts: u32,
    queue: &'a str,
    priority: i16,
    progress: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<&'a RawValue>,
    timeout_s: f64,
    callback_url: Option<&'a str>,
    unique_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ordering_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<&'a [JobId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after_failure: Option<AfterFailure>,
    /// `Some(None)`: not all of them have ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[expect(clippy::option_option, reason = "not there, null, and a list are three answers")]
    after_results: Option<Option<&'a [AfterResult]>>,
    metadata: &'a BTreeMap<String, String>,
    schedule_id: Option<ScheduleId>,
    #[serde(with = "millis")]
    scheduled_for: Option<Timestamp>,
    cancel_requested: bool,
    #[serde(with = "millis")]
    created_at: Timestamp,
    #[serde(with = "millis")]
    run_at: Timestamp,
    #[serde(with = "millis")]
    started_at: Option<Timestamp>,
    #[serde(with = "millis")]
    finished_at: Option<Timestamp>,
    #[serde(with = "millis")]
    updated_at: Timestamp,
}

static NO_METADATA: BTreeMap<String, String> = BTreeMap::new();

impl<'a> JobView<'a> {
    /// Puts what is fixed and what changes together.
    pub fn new(job: &'a Job, state: &'a JobState) -> Self {
        let created_at = job.id.created_at();
        Self {
            id: job.id,
            kind: &job.kind,
            status: state.status,
            input: &job.input,
            result: state.result.as_deref(),
            error: state.error.as_ref(),
            attempt: state.attempt,
            max_attempts: job.retry.max_attempts,
            queue: &job.queue,
            priority: job.priority,
            progress: state.progress.as_deref(),
            checkpoint: None,
            timeout_s: job.timeout.as_secs_f64(),
            callback_url: job.callback.as_ref().map(|callback| callback.url.as_str()),
            unique_key: job.unique_key.as_deref(),
            ordering_key: job.ordering_key.as_deref(),
            after: job.after.as_ref().map(|after| after.jobs.as_slice()),
            after_failure: job.after.as_ref().map(|after| after.on_failure),
            after_results: None,
            metadata: job.metadata.as_ref().unwrap_or(&NO_METADATA),
            schedule_id: job.scheduled.map(|scheduled| scheduled.by),
            scheduled_for: job.scheduled.and_then(|scheduled| scheduled.at),
            cancel_requested: state.cancel_requested,
            created_at,
            run_at: state.due_at.unwrap_or(job.run_at),
            started_at: state.started_at,
            finished_at: state.finished_at,
            updated_at: state.finished_at.or(state.started_at).unwrap_or(created_at),
        }
    }

    /// With what the job's last worker left for the next one; only a hand-out shows it.
    #[must_use]
    pub fn with_checkpoint(self, checkpoint: Option<&'a RawValue>) -> Self {
        Self { checkpoint, ..self }
    }

    /// With what became of the jobs that this one waited for; `None`: they have not all ended.
    #[must_use]
    pub fn with_after_results(self, results: Option<&'a [AfterResult]>) -> Self {
        Self { after_results: self.after.map(|_| results), ..self }
    }

    /// As text.
    pub fn to_json(&self) -> String {
        // Serializing strings, numbers and validated raw JSON into memory cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}
