//! [pure] How many jobs a limited queue may hand out now.
//!
//! Called by `jobs::claim_store` under the lock of the queue's row, so that the answer holds over all processes.
//!
//! Invariant: never more than `concurrency` run, and within any time span t no more than `burst + t × per_s` are handed out
//! (the generic cell rate algorithm, ITU-T I.371).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Timestamp;

/// What the operator's file says of a queue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueueLimit {
    /// So many of its jobs run at the same time, at most.
    pub concurrency: Option<u32>,
    /// So many are handed out, at most.
    pub rate: Option<QueueRate>,
}

/// Steady hand-outs, with a number of them at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueueRate {
    /// For each second; above zero.
    pub per_s: f64,
    /// At once; at least one.
    pub burst: u32,
}

/// All limits, by queue.
pub type QueueLimits = BTreeMap<String, QueueLimit>;

/// What may be handed out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Allowance {
    /// So many now.
    pub jobs: usize,
    /// If that is fewer than wanted for the rate's sake: the next one after this.
    pub next: Option<Duration>,
}

impl QueueLimit {
    /// How many of `wanted` may be handed out, when `running` are out and the rate is used up until `next_at`.
    pub fn allow(
        &self,
        wanted: usize,
        running: usize,
        next_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Allowance {
        let free = self.concurrency.map_or(wanted, |cap| (cap as usize).saturating_sub(running).min(wanted));
        let Some(rate) = self.rate else { return Allowance { jobs: free, next: None } };
        let ahead = next_at.map_or(0.0, |at| seconds(at - now).max(0.0));
        let by_rate = f64::from(rate.burst) - ahead * rate.per_s;
        // A hair of tolerance, or rounding to the database's microseconds would cost each job a turn.
        let jobs = (by_rate + 1e-4).floor().clamp(0.0, free as f64) as usize;
        let next = (jobs < free).then(|| {
            let missing = (jobs as f64 + 1.0 - by_rate).max(0.0) / rate.per_s;
            Duration::try_from_secs_f64(missing).unwrap_or(Duration::MAX)
        });
        Allowance { jobs, next }
    }

    /// Until when the rate is used up after `jobs` more.
    pub fn used_until(&self, jobs: usize, next_at: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        let rate = self.rate?;
        let from = next_at.unwrap_or(now).max(now);
        let used = (jobs as f64 / rate.per_s * 1e6).round();
        Some(from + chrono::Duration::microseconds(used.min(1e15) as i64))
    }
}

fn seconds(span: chrono::Duration) -> f64 {
    span.num_microseconds().map_or(f64::MAX, |micros| micros as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn at(micros: i64) -> Timestamp {
        chrono::DateTime::from_timestamp_micros(1_700_000_000_000_000 + micros).expect("a time")
    }

    #[test]
    fn concurrency_counts_what_runs() {
        let limit = QueueLimit { concurrency: Some(4), rate: None };
        assert_eq!(limit.allow(10, 1, None, at(0)).jobs, 3);
        assert_eq!(limit.allow(10, 9, None, at(0)).jobs, 0);
        assert_eq!(limit.allow(2, 0, None, at(0)).jobs, 2);
    }

    proptest! {
        #[test]
        fn no_span_sees_more_than_burst_and_rate(
            per_s in 0.1f64..200.0, burst in 1u32..50,
            asks in prop::collection::vec((0i64..2_000_000, 1usize..40), 1..60),
        ) {
            let limit = QueueLimit { concurrency: None, rate: Some(QueueRate { per_s, burst }) };
            let (mut now, mut next_at, mut out) = (0, None, Vec::new());
            for (wait, wanted) in asks {
                now += wait;
                let allowed = limit.allow(wanted, 0, next_at, at(now));
                prop_assert!(allowed.jobs <= wanted);
                prop_assert_eq!(allowed.next.is_some(), allowed.jobs < wanted);
                next_at = limit.used_until(allowed.jobs, next_at, at(now));
                out.push((now, allowed.jobs));
            }
            for from in 0..out.len() {
                let mut sum = 0;
                for (when, jobs) in &out[from..] {
                    sum += jobs;
                    let span = (when - out[from].0) as f64 / 1e6;
                    prop_assert!(sum as f64 <= f64::from(burst) + span * per_s + 0.01, "{sum} within {span} s");
                }
            }
        }

        #[test]
        fn after_the_wait_it_named_there_is_one(per_s in 0.1f64..200.0, burst in 1u32..50, used in 0usize..100) {
            let limit = QueueLimit { concurrency: None, rate: Some(QueueRate { per_s, burst }) };
            let next_at = limit.used_until(used.min(burst as usize), None, at(0));
            if let Some(wait) = limit.allow(100, 0, next_at, at(0)).next {
                let used = limit.used_until(limit.allow(100, 0, next_at, at(0)).jobs, next_at, at(0));
                prop_assert!(limit.allow(100, 0, used, at(wait.as_micros() as i64 + 1)).jobs >= 1);
            }
        }
    }
}
