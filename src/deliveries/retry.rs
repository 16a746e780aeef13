//! [pure] Stop 9 of a job's path: what a receiver's answer means, and when to try again. Next: `deliveries::store`.
//!
//! The contract's table "What a receiver gets", row by row. Called by `engine::dispatch`; the random draw and the
//! time are arguments.
//!
//! Invariant: every sequence of tries ends, at the latest after `max_attempts`; a try that our own stop interrupted
//! does not end it.

use std::time::Duration;

use crate::backoff::RetryPolicy;

/// What came of one POST.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A complete head.
    Status {
        /// HTTP status.
        code: u16,
        /// How long the receiver asks us to wait.
        retry_after: Option<Duration>,
    },
    /// The address is not allowed. Asking again would not change that.
    Blocked,
    /// No answer: network, TLS, time.
    NoAnswer,
    /// The process stopped before the answer came.
    Interrupted,
}

/// What is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing more.
    Succeeded,
    /// Another try, so long from now.
    TryAgain(Duration),
    /// Nothing more; it is lost unless someone replays it.
    Failed,
}

impl Verdict {
    /// The number in `delivery_attempts.verdict`.
    pub fn code(self) -> i16 {
        match self {
            Self::TryAgain(_) => 0,
            Self::Succeeded => 1,
            Self::Failed => 2,
        }
    }
}

/// The error code of an answer, in the words of the API; `None`: it is a success.
pub fn status_error(code: u16) -> Option<&'static str> {
    match code {
        200..=299 => None,
        300..=399 => Some("redirect"),
        410 => Some("gone"),
        _ => Some("status"),
    }
}

/// What the answer to try `n` (1, 2, …) means. `draw` is a sample of 0.0..=1.0 taken by the caller.
pub fn decide(policy: &RetryPolicy, n: u32, answer: &Answer, draw: f64) -> Verdict {
    match answer {
        Answer::Status { code: 200..=299, .. } => Verdict::Succeeded,
        Answer::Status { code: 410, .. } | Answer::Blocked => Verdict::Failed,
        // Our stop is no fault of the receiver's, so it may not be what ends the delivery.
        Answer::Interrupted => Verdict::TryAgain(Duration::ZERO),
        _ if n >= policy.max_attempts => Verdict::Failed,
        Answer::Status { code: 429 | 503, retry_after: Some(wait) } => {
            // At least as long as was asked; and no longer than the policy's maximum.
            Verdict::TryAgain(policy.backoff(n, draw).max((*wait).min(policy.max)))
        }
        Answer::Status { .. } | Answer::NoAnswer => Verdict::TryAgain(policy.backoff(n, draw)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn status(code: u16, retry_after: Option<u64>) -> Answer {
        Answer::Status { code, retry_after: retry_after.map(Duration::from_secs) }
    }
    const POLICY: RetryPolicy = RetryPolicy::DELIVERIES;

    #[test]
    fn the_table_of_the_contract_holds() {
        assert_eq!(decide(&POLICY, 1, &status(204, None), 0.5), Verdict::Succeeded);
        assert_eq!(decide(&POLICY, 1, &status(410, None), 0.5), Verdict::Failed);
        assert_eq!(decide(&POLICY, 1, &Answer::Blocked, 0.5), Verdict::Failed);
        assert!(matches!(decide(&POLICY, 1, &status(302, None), 0.5), Verdict::TryAgain(_)));
        assert!(matches!(decide(&POLICY, 1, &Answer::NoAnswer, 0.5), Verdict::TryAgain(_)));
        assert_eq!(
            decide(&POLICY, 1, &status(429, Some(600)), 0.5),
            Verdict::TryAgain(Duration::from_mins(10))
        );
        // Other statuses do not speak for the receiver's load.
        assert!(
            matches!(decide(&POLICY, 1, &status(500, Some(600)), 0.5), Verdict::TryAgain(wait) if wait < Duration::from_secs(6))
        );
    }

    #[test]
    fn a_stop_of_ours_does_not_use_up_the_last_try() {
        let last = POLICY.max_attempts;
        assert_eq!(decide(&POLICY, last, &Answer::Interrupted, 0.5), Verdict::TryAgain(Duration::ZERO));
        assert_eq!(decide(&POLICY, last + 1, &Answer::NoAnswer, 0.5), Verdict::Failed);
    }

    proptest! {
        #[test]
        fn tries_end_and_waits_are_bounded(n in 1u32..100, code in 100u16..600, wait in proptest::option::of(0u64..10_000_000), draw in 0.0..=1.0f64) {
            match decide(&POLICY, n, &status(code, wait), draw) {
                Verdict::TryAgain(after) => { prop_assert!(n < POLICY.max_attempts); prop_assert!(after <= POLICY.max); }
                Verdict::Succeeded => prop_assert!((200..300).contains(&code)),
                Verdict::Failed => prop_assert!(code == 410 || n >= POLICY.max_attempts),
            }
        }
    }
}
