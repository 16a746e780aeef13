//! [pure] Stop 5 of a job's path: what the end of a try means. Next: `jobs::finish`.
//!
//! Called by `engine::run_jobs` and `engine::expire_leases`. The random draw is an argument.
//!
//! Invariant: every sequence of tries ends, at the latest after `max_attempts` counted ones.

use std::time::Duration;

use serde_json::value::RawValue;

use super::{EndStatus, JobError, RESULT_MAX_BYTES, Tries};
use crate::backoff::RetryPolicy;

/// A job that took its process with it this often is not handed out again.
pub const CRASHES_MAX: i16 = 3;

/// What an executor or a worker has to say about a try.
#[derive(Debug, Clone)]
pub enum TryResult {
    /// Done; the result's JSON.
    Succeeded(Box<RawValue>),
    /// Not done.
    Failed {
        /// Why.
        error: JobError,
        /// Is another try of use?
        retryable: bool,
        /// Not before this has passed.
        retry_after: Option<Duration>,
    },
    /// `timeout_s` was over.
    TimedOut,
    /// Someone asked to stop it, and it stopped.
    Cancelled,
    /// The process that ran it is gone, or its lease ran out.
    Crashed,
}

/// How a try is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryOutcome {
    /// Done.
    Succeeded,
    /// Not done.
    Failed,
    /// Stopped on request.
    Cancelled,
    /// Took too long.
    TimedOut,
    /// Lost with its process.
    Crashed,
}

impl TryOutcome {
    const WORDS: [(&'static str, Self, i16); 5] = [
        ("succeeded", Self::Succeeded, 1),
        ("failed", Self::Failed, 2),
        ("cancelled", Self::Cancelled, 3),
        ("timed_out", Self::TimedOut, 4),
        ("crashed", Self::Crashed, 5),
    ];
    /// The number in `job_attempts.outcome`.
    pub fn code(self) -> i16 {
        Self::WORDS.iter().find(|(_, outcome, _)| *outcome == self).map_or(2, |(_, _, code)| *code)
    }
    /// The word of the API for a number of the database.
    pub fn word_of(code: i16) -> &'static str {
        Self::WORDS.iter().find(|(_, _, number)| *number == code).map_or("failed", |(word, _, _)| word)
    }
}

/// What becomes of the job.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// It ended.
    End {
        /// How.
        status: EndStatus,
        /// With what.
        result: Option<Box<RawValue>>,
        /// Or why not.
        error: Option<JobError>,
    },
    /// It is tried again.
    Retry {
        /// So long from now.
        after: Duration,
        /// Why this try was not the last one.
        error: JobError,
    },
}

/// Judges a try. `tries` counts it already; `draw` is a sample of 0.0..=1.0 taken by the caller.
pub fn decide(policy: &RetryPolicy, tries: Tries, result: TryResult, draw: f64) -> (TryOutcome, Verdict) {
    let (outcome, error, retryable, retry_after) = match result {
        TryResult::Succeeded(result) if result.get().len() > RESULT_MAX_BYTES => {
            let text =
                format!("the result is {} bytes long; {RESULT_MAX_BYTES} are the most", result.get().len());
            (TryOutcome::Failed, JobError::new("result_too_large", text), false, None)
        }
        TryResult::Succeeded(result) => {
            let verdict = Verdict::End { status: EndStatus::Succeeded, result: Some(result), error: None };
            return (TryOutcome::Succeeded, verdict);
        }
        TryResult::Cancelled => {
            let error = JobError::new("cancelled", "the job was cancelled while it ran");
            let verdict = Verdict::End { status: EndStatus::Cancelled, result: None, error: Some(error) };
            return (TryOutcome::Cancelled, verdict);
        }
        TryResult::Failed { error, retryable, retry_after } => {
            (TryOutcome::Failed, error, retryable, retry_after)
        }
        TryResult::TimedOut => {
            (TryOutcome::TimedOut, JobError::new("timeout", "the try took longer than timeout_s"), true, None)
        }
        TryResult::Crashed if tries.crashes >= CRASHES_MAX => {
            let text = format!(
                "the job ended with the process that ran it {CRASHES_MAX} times; it is not handed out again"
            );
            (TryOutcome::Crashed, JobError::new("crashed", text), false, None)
        }
        // The job did nothing wrong that we know of: it is put back at once.
        TryResult::Crashed => {
            let error = JobError::new("crashed", "the process that ran the job ended, or its lease ran out");
            (TryOutcome::Crashed, error, true, Some(Duration::ZERO))
        }
    };
    let used_up = u32::try_from(tries.counted).unwrap_or(u32::MAX) >= policy.max_attempts;
    if !retryable || used_up {
        return (outcome, Verdict::End { status: EndStatus::Failed, result: None, error: Some(error) });
    }
    let after = match retry_after {
        Some(Duration::ZERO) => Duration::ZERO,
        Some(wait) => policy.backoff(tries.counted.unsigned_abs(), draw).max(wait).min(policy.max.max(wait)),
        None => policy.backoff(tries.counted.unsigned_abs(), draw),
    };
    (outcome, Verdict::Retry { after, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn failed(retryable: bool) -> TryResult {
        TryResult::Failed { error: JobError::new("x", "y"), retryable, retry_after: None }
    }
    fn tries(counted: i32) -> Tries {
        Tries { attempt: counted, counted, crashes: 0 }
    }

    #[test]
    fn a_third_crash_parks_the_job() {
        let crashed = |crashes| {
            decide(&RetryPolicy::JOBS, Tries { attempt: 1, counted: 1, crashes }, TryResult::Crashed, 0.5)
        };
        assert!(matches!(crashed(2).1, Verdict::Retry { after: Duration::ZERO, .. }));
        assert!(matches!(crashed(3).1, Verdict::End { status: EndStatus::Failed, .. }));
    }

    #[test]
    fn what_is_not_retryable_fails_at_once() {
        assert!(matches!(
            decide(&RetryPolicy::JOBS, tries(1), failed(false), 0.5).1,
            Verdict::End { status: EndStatus::Failed, .. }
        ));
    }

    #[test]
    fn a_result_beyond_the_limit_fails_the_job_by_name() {
        let of = |length: usize| serde_json::value::to_raw_value(&"x".repeat(length)).expect("JSON");
        let judged = |length| decide(&RetryPolicy::JOBS, tries(1), TryResult::Succeeded(of(length)), 0.5).1;
        assert!(matches!(judged(RESULT_MAX_BYTES - 2), Verdict::End { status: EndStatus::Succeeded, .. }));
        let Verdict::End { status: EndStatus::Failed, error: Some(error), .. } = judged(RESULT_MAX_BYTES - 1)
        else {
            panic!("it must fail for good")
        };
        assert_eq!(error.code, "result_too_large");
    }

    proptest! {
        #[test]
        fn tries_end_at_max_attempts(counted in 1i32..2000, max_attempts in 1u32..1000, draw in 0.0..=1.0f64) {
            let policy = RetryPolicy { max_attempts, ..RetryPolicy::JOBS };
            let (_, verdict) = decide(&policy, tries(counted), failed(true), draw);
            let ended = matches!(verdict, Verdict::End { .. });
            prop_assert_eq!(ended, counted.unsigned_abs() >= max_attempts);
        }

        #[test]
        fn a_wait_that_was_asked_for_is_kept(counted in 1i32..4, wait_s in 1u64..100_000, draw in 0.0..=1.0f64) {
            let wait = Duration::from_secs(wait_s);
            let result = TryResult::Failed { error: JobError::new("x", "y"), retryable: true, retry_after: Some(wait) };
            if let (_, Verdict::Retry { after, .. }) = decide(&RetryPolicy::JOBS, tries(counted), result, draw) {
                prop_assert!(after >= wait);
            }
        }
    }
}
