//! [pure] What can be asked of a receiver, read the same way for callbacks and for endpoints: URL, headers, time limit,
//! retries.
//!
//! Called by `jobs::new_job` and `endpoints::new_endpoint`; `RetrySpec` is also how retries stand in the database.
//!
//! Invariant: a policy read here ends after a bounded number of tries, and its longest wait is not below its first.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backoff::RetryPolicy;
use crate::fields::{Faults, Fields};
use crate::target::{HeaderUse, OutboundPolicy, parse_custom_headers, parse_target};

/// How long an answer may take, seconds.
pub const TIMEOUT_RANGE_S: RangeInclusive<f64> = 0.1..=60.0;
/// … and how long it may where nothing else is said.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);

const URL_READ_MAX: usize = 8192;
/// A wait is at most thirty days.
const WAIT_RANGE_S: RangeInclusive<f64> = 0.01..=2_592_000.0;
const ATTEMPTS_RANGE: RangeInclusive<i64> = 1..=100;

/// A URL that may be called, in canonical form.
pub fn parse_url(
    fields: &mut Fields<'_>,
    name: &'static str,
    outbound: &OutboundPolicy,
    faults: &mut Faults,
) -> Option<String> {
    // Longer than allowed, so that the address rule says the length that is allowed.
    let text = fields.string(name, 0..=URL_READ_MAX, faults)?;
    match parse_target(&text, outbound) {
        Ok(target) => Some(target.as_str().to_owned()),
        Err(refusal) => {
            fields.fault(name, refusal.to_string(), faults);
            None
        }
    }
}

/// Headers that may be added to a delivery.
pub fn parse_headers(fields: &mut Fields<'_>, faults: &mut Faults) -> BTreeMap<String, String> {
    let headers = fields.strings("headers", faults).unwrap_or_default();
    let pairs = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    if let Err(wrong) = parse_custom_headers(pairs, HeaderUse::Delivery) {
        for fault in wrong {
            let mut pointer = fields.pointer("headers");
            if !fault.name.is_empty() {
                pointer = format!("{pointer}/{}", fault.name.replace('~', "~0").replace('/', "~1"));
            }
            faults.add(pointer, fault.kind.to_string());
        }
    }
    headers
}

/// When to try again, as far as it was said; the rest is as for all deliveries.
pub fn parse_retry(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<RetrySpec> {
    let raw = fields.raw("retry")?;
    let mut inner = Fields::open(fields.pointer("retry"), raw, faults)?;
    let max_attempts = inner.integer("max_attempts", ATTEMPTS_RANGE, faults);
    let backoff = Backoff::read(&mut inner, faults);
    inner.finish(faults);
    let mut policy = backoff.on(RetryPolicy::DELIVERIES);
    if let Some(number) = max_attempts.and_then(|number| u32::try_from(number).ok()) {
        policy.max_attempts = number;
    }
    Some(policy.into())
}

/// The waits between tries, as far as they were said.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    initial: Option<Duration>,
    factor: Option<f64>,
    max: Option<Duration>,
    jitter: Option<f64>,
}

impl Backoff {
    /// Reads the four fields; others stay for the caller.
    pub fn read(fields: &mut Fields<'_>, faults: &mut Faults) -> Self {
        Self {
            initial: fields.seconds("initial_s", WAIT_RANGE_S, faults),
            factor: fields.number("factor", 1.0..=100.0, faults),
            max: fields.seconds("max_s", WAIT_RANGE_S, faults),
            jitter: fields.number("jitter", 0.0..=1.0, faults),
        }
    }

    /// The policy that has these waits, and the rest from `base`.
    pub fn on(self, base: RetryPolicy) -> RetryPolicy {
        let initial = self.initial.unwrap_or(base.initial);
        RetryPolicy {
            initial,
            factor: self.factor.unwrap_or(base.factor),
            max: self.max.unwrap_or(base.max).max(initial),
            jitter: self.jitter.unwrap_or(base.jitter),
            max_attempts: base.max_attempts,
        }
    }
}

/// A retry policy as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RetrySpec {
    /// The first wait, seconds.
    pub initial_s: f64,
    /// By what it grows each time.
    pub factor: f64,
    /// The longest wait, seconds.
    pub max_s: f64,
    /// Tries at most.
    pub max_attempts: u32,
    /// 0: exact; 1: anywhere from nothing to the whole wait.
    pub jitter: f64,
}

impl RetrySpec {
    /// As the decision wants it.
    pub fn policy(self) -> RetryPolicy {
        RetryPolicy {
            initial: Duration::from_secs_f64(self.initial_s),
            factor: self.factor,
            max: Duration::from_secs_f64(self.max_s),
            max_attempts: self.max_attempts,
            jitter: self.jitter,
        }
    }
}

impl From<RetryPolicy> for RetrySpec {
    fn from(policy: RetryPolicy) -> Self {
        Self {
            initial_s: policy.initial.as_secs_f64(),
            factor: policy.factor,
            max_s: policy.max.as_secs_f64(),
            max_attempts: policy.max_attempts,
            jitter: policy.jitter,
        }
    }
}
