//! Jobs: work to do, from the POST that brings it to the event that says how it ended.
//!
//! Holds the noun, its statuses and the legal moves between them. `new_job` parses a request (stop 1 of a job's path),
//! `store` keeps and shows jobs (stop 2), `lines_store` holds those whose turn has not come, `claim_store` hands them out by `turns`
//! (stop 3), `outcome` decides what the end of a try means (stop 5), `finish` writes it together with the event (stop 6).
//! `explain` says why a job waits. Knows no HTTP, no loop, no network.
//!
//! Invariant: a job is in exactly one of `job_held`, `job_ready`, `job_scheduled`, `job_leases`, `job_ends`, and only the
//! holder of its lease writes its end.

pub mod after_store;
pub mod claim_store;
pub mod command_input;
pub mod create;
pub mod email_input;
pub mod explain;
pub mod explain_store;
pub mod finish;
pub mod http_input;
pub mod lease_store;
pub mod lines_store;
pub mod new_job;
pub mod outcome;
pub mod queue_limit;
pub mod queue_store;
pub mod read_store;
pub mod sql_input;
pub mod store;
pub mod turns;
pub mod view;
pub mod waiters;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::backoff::RetryPolicy;
use crate::clock::Timestamp;
use crate::ids::{JobId, ScheduleId, TenantId};
use crate::receivers::RetrySpec;

/// An input is at most this long, as JSON text.
pub const INPUT_MAX_BYTES: usize = 256 * 1024;
/// A result is at most this long, as JSON text.
pub const RESULT_MAX_BYTES: usize = 256 * 1024;
/// A job waits for at most this many others.
pub const AFTER_MAX: usize = 1000;
/// A batch has at most this many jobs.
pub const BATCH_MAX: usize = 1000;

/// The kinds that the service runs by itself.
pub const BUILT_IN: [&str; 4] = ["http", "command", "sql", "email"];

/// A kind's or a queue's name is at most this long.
pub const NAME_MAX: usize = 100;

/// Can a kind or a queue be called so?
pub fn is_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

/// Where a job stands. `queued → running → succeeded | failed | cancelled`; `retrying` between two tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// Waits for its first try.
    Queued,
    /// A try is under way.
    Running,
    /// Waits for another try.
    Retrying,
    /// Ended well.
    Succeeded,
    /// Ended badly; nothing more is tried.
    Failed,
    /// Ended because someone asked for it.
    Cancelled,
}

impl JobStatus {
    /// All of them by name.
    pub const WORDS: [(&'static str, Self); 6] = [
        ("queued", Self::Queued),
        ("running", Self::Running),
        ("retrying", Self::Retrying),
        ("succeeded", Self::Succeeded),
        ("failed", Self::Failed),
        ("cancelled", Self::Cancelled),
    ];

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(_, status)| *status == self).map_or("queued", |(word, _)| word)
    }

    /// Is nothing more to come?
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndStatus {
    /// Well.
    Succeeded,
    /// Badly.
    Failed,
    /// On request.
    Cancelled,
}

impl EndStatus {
    /// All of them by name.
    pub const WORDS: [(&'static str, Self); 3] =
        [("succeeded", Self::Succeeded), ("failed", Self::Failed), ("cancelled", Self::Cancelled)];

    /// The number in `job_ends.status`.
    pub fn code(self) -> i16 {
        match self {
            Self::Succeeded => 1,
            Self::Failed => 2,
            Self::Cancelled => 3,
        }
    }

    /// The end of a number in `job_ends.status`.
    pub fn of_code(code: i16) -> Option<Self> {
        Self::WORDS.iter().map(|(_, status)| *status).find(|status| status.code() == code)
    }

    /// The type of the event that tells of it.
    pub fn event_type(self) -> &'static str {
        match self {
            Self::Succeeded => "job.succeeded",
            Self::Failed => "job.failed",
            Self::Cancelled => "job.cancelled",
        }
    }
}

impl From<EndStatus> for JobStatus {
    fn from(end: EndStatus) -> Self {
        match end {
            EndStatus::Succeeded => Self::Succeeded,
            EndStatus::Failed => Self::Failed,
            EndStatus::Cancelled => Self::Cancelled,
        }
    }
}

/// Why a job or a try failed, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// A word for programs, such as `timeout` or `http_status`.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// The class of an exception in the worker's language.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub class: Option<String>,
    /// Its stack.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub traceback: Option<String>,
}

impl JobError {
    /// Without class and stack.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), class: None, traceback: None }
    }
    /// As it stands in the database.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| r#"{"code":"unknown","message":""}"#.to_owned())
    }
}

/// Who is told of the end, and how. `url` stands in its own column; the rest is sealed, for it may hold secrets.
#[derive(Debug, Clone, PartialEq)]
pub struct Callback {
    /// Where to POST.
    pub url: String,
    /// What is not as usual.
    pub options: CallbackOptions,
}

/// All that a callback can say beside its URL; every field absent: the defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CallbackOptions {
    /// Headers to add.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub headers: BTreeMap<String, String>,
    /// Of which ends to tell.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub on: Option<Vec<EndStatus>>,
    /// A secret of its own, `whsec_…`, in place of the tenant's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub secret: Option<String>,
    /// When to try again.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry: Option<RetrySpec>,
    /// How long an answer may take.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub timeout_s: Option<f64>,
}

impl CallbackOptions {
    /// Is this end to be told?
    pub fn wants(&self, end: EndStatus) -> bool {
        self.on.as_ref().is_none_or(|on| on.contains(&end))
    }
}

/// What becomes of a job when one of those it waits for does not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterFailure {
    /// It is cancelled.
    Cancel,
    /// It runs as soon as all have ended, however.
    Run,
}

impl AfterFailure {
    /// All of them by name.
    pub const WORDS: [(&'static str, Self); 2] = [("cancel", Self::Cancel), ("run", Self::Run)];

    /// The number in `jobs.after_failure`.
    pub fn code(self) -> i16 {
        match self {
            Self::Cancel => 0,
            Self::Run => 1,
        }
    }
}

/// The jobs that another one waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct After {
    /// Each once, in the order given; at least one.
    pub jobs: Vec<JobId>,
    /// Where each of them stood in the request, to name one that is not there; empty for a stored job.
    pub positions: Vec<usize>,
    /// If one of them does not succeed.
    pub on_failure: AfterFailure,
}

/// A job as it was accepted: all that never changes.
#[derive(Debug, Clone)]
pub struct Job {
    /// Whose.
    pub tenant: TenantId,
    /// Its id; the time of acceptance is in it.
    pub id: JobId,
    /// What to do.
    pub kind: String,
    /// In which queue it stands.
    pub queue: String,
    /// -100…100, higher first.
    pub priority: i16,
    /// Not before.
    pub run_at: Timestamp,
    /// How long a try may take.
    pub timeout: Duration,
    /// When to try again, and how often.
    pub retry: RetryPolicy,
    /// Whether `retry` is not the default, and so is kept.
    pub backoff_json: Option<String>,
    /// While such a job is not finished there is no second one.
    pub unique_key: Option<String>,
    /// Jobs of its queue that share it run one after another, in the order accepted.
    pub ordering_key: Option<String>,
    /// What it waits for.
    pub after: Option<After>,
    /// The input's text, as it came.
    pub input: Box<RawValue>,
    /// Free strings.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Who is told of the end.
    pub callback: Option<Callback>,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// The schedule that made it, if one did.
    pub scheduled: Option<Scheduled>,
}

/// Which schedule made a job, and for which of its times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduled {
    /// The schedule.
    pub by: ScheduleId,
    /// The time that its pattern names; `None`: it was triggered by hand.
    pub at: Option<Timestamp>,
}

impl Job {
    /// Is it held until its turn comes, in a line or after others?
    pub fn is_held(&self) -> bool {
        self.ordering_key.is_some() || self.after.is_some()
    }
}

/// What workers told of a job while it ran.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// How far it is: an object of `percent` and `message`.
    pub progress: Option<Box<RawValue>>,
    /// Where to go on.
    pub checkpoint: Option<Box<RawValue>>,
}

/// The tries so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tries {
    /// The highest attempt number.
    pub attempt: i32,
    /// How many of them count against `max_attempts`.
    pub counted: i32,
    /// How many ended with their process.
    pub crashes: i16,
}
