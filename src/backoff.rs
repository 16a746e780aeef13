//! Backoff, `[pure]`: how long to wait before the next try.
//!
//! Called by `deliveries::retry` and `jobs::outcome`, which decide whether there is a next try at all.
//! Holds no state and draws nothing: the number of the try and the sample come in as arguments.
//!
//! Invariant: a wait never exceeds the policy's maximum, and no number of tries and no policy, however odd, makes it
//! overflow, panic or turn into NaN.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// A longer `Retry-After` value is not looked at; the longest date has 29 bytes.
const RETRY_AFTER_LEN_MAX: usize = 64;
/// What a larger number of seconds means: ten years, which any date arithmetic survives.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(10 * 365 * 24);

/// When, and how often, something that failed is tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// The longest wait before the second try.
    pub initial: Duration,
    /// By what the wait grows from try to try.
    pub factor: f64,
    /// The longest wait of all.
    pub max: Duration,
    /// How many tries there are, the first one included.
    pub max_attempts: u32,
    /// The share of a wait that chance may take away, 0 to 1.
    pub jitter: f64,
}

impl RetryPolicy {
    /// The contract's default for deliveries: 14 tries over about three days.
    pub const DELIVERIES: Self = Self {
        initial: Duration::from_secs(5),
        factor: 4.0,
        max: Duration::from_hours(12),
        max_attempts: 14,
        jitter: 0.5,
    };

    /// The contract's default for jobs: 5 tries.
    pub const JOBS: Self = Self { max_attempts: 5, ..Self::DELIVERIES };

    /// The wait before try `n + 1`, after try `n` (1, 2, …) has failed.
    ///
    /// It is drawn evenly from [1 - jitter, 1] × min(initial × factor^(n-1), max); `draw` is a sample of 0.0..=1.0
    /// taken by the caller. Numbers out of their range are read as the nearest one within.
    pub fn backoff(&self, n: u32, draw: f64) -> Duration {
        let share = 1.0 - unit(self.jitter) * (1.0 - unit(draw));
        let wait_s = self.longest_wait(n).as_secs_f64() * share;
        Duration::try_from_secs_f64(wait_s).unwrap_or(self.max).min(self.max)
    }

    fn longest_wait(&self, n: u32) -> Duration {
        if self.initial.is_zero() {
            return Duration::ZERO; // zero times an infinite growth is NaN
        }
        let growth = self.factor.powf(f64::from(n.saturating_sub(1)));
        Duration::try_from_secs_f64(self.initial.as_secs_f64() * growth).unwrap_or(self.max).min(self.max)
    }
}

/// `value` within 0..=1; NaN is 0.
fn unit(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) }
}

/// Reads a `Retry-After` header (RFC 9110, section 10.2.3): seconds, or a date, of which the distance from `now` is
/// returned (zero for the past). Seconds beyond ten years are ten years; nonsense is `None`.
pub fn parse_retry_after(value: &[u8], now: DateTime<Utc>) -> Option<Duration> {
    if value.len() > RETRY_AFTER_LEN_MAX {
        return None;
    }
    let text = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Only too many digits can fail here.
        let seconds = text.parse::<u64>().map_or(RETRY_AFTER_MAX, Duration::from_secs);
        return Some(seconds.min(RETRY_AFTER_MAX));
    }
    let date = DateTime::<Utc>::from(httpdate::parse_http_date(text).ok()?);
    Some((date - now).to_std().unwrap_or(Duration::ZERO).min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone as _;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_default_policy_waits_as_the_contract_says() {
        let policy = RetryPolicy::DELIVERIES;
        let longest: Vec<u64> = (1..=13).map(|n| policy.backoff(n, 1.0).as_secs()).collect();
        let twelve_hours = 43_200;
        assert_eq!(longest[..7], [5, 20, 80, 320, 1_280, 5_120, 20_480]);
        assert!(longest[7..].iter().all(|wait| *wait == twelve_hours));
        assert_eq!(policy.backoff(2, 0.0), Duration::from_secs(10));
        assert_eq!(policy.backoff(2, 0.5), Duration::from_secs(15));
        assert_eq!((policy.max_attempts, RetryPolicy::JOBS.max_attempts), (14, 5));
    }

    #[test]
    fn odd_policies_are_harmless() {
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -4.0, 0.0, f64::MAX, f64::MIN_POSITIVE];
        for factor in odd {
            for jitter in odd {
                for draw in odd {
                    for initial in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
                        let policy = RetryPolicy { initial, factor, jitter, ..RetryPolicy::DELIVERIES };
                        for n in [0, 1, 2, 1_000, u32::MAX] {
                            assert!(policy.backoff(n, draw) <= policy.max);
                            let unbounded = RetryPolicy { max: Duration::MAX, ..policy };
                            let _ = unbounded.backoff(n, draw);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date() {
        let now = Utc.with_ymd_and_hms(1994, 11, 6, 8, 49, 0).single().expect("a time");
        let read = |value: &str| parse_retry_after(value.as_bytes(), now);
        assert_eq!(read("120"), Some(Duration::from_mins(2)));
        assert_eq!(read("0"), Some(Duration::ZERO));
        assert_eq!(read(" 007\t"), Some(Duration::from_secs(7)));
        assert_eq!(read(&"9".repeat(64)), Some(RETRY_AFTER_MAX));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(37)));
        assert_eq!(read("Sun, 06 Nov 1994 08:48:37 GMT"), Some(Duration::ZERO));
        assert_eq!(read("Fri, 31 Dec 9999 23:59:59 GMT"), Some(RETRY_AFTER_MAX));
        for nonsense in [
            "",
            " ",
            "-1",
            "+1",
            "1.5",
            "1e3",
            "soon",
            "٣",
            "0x10",
            "1, 2",
            "Sun, 06 Nov 1994",
            &"9".repeat(65),
        ] {
            assert_eq!(read(nonsense), None, "{nonsense:?}");
        }
        assert_eq!(parse_retry_after(b"\xff", now), None);
    }

    proptest! {
        #[test]
        fn a_backoff_lies_within_its_jitter_and_grows(
            n in 1u32..10_000,
            draw in 0.0..=1.0f64,
            initial_ms in 10u64..3_600_000,
            factor in 1.0..100.0f64,
            jitter in 0.0..=1.0f64,
        ) {
            let initial = Duration::from_millis(initial_ms);
            let policy = RetryPolicy { initial, factor, jitter, ..RetryPolicy::DELIVERIES };
            let longest = policy.backoff(n, 1.0);
            let wait = policy.backoff(n, draw);
            prop_assert!(longest <= policy.max);
            prop_assert!(wait <= longest);
            prop_assert!(wait.as_secs_f64() >= longest.as_secs_f64() * (1.0 - jitter) - 1e-6);
            prop_assert!(policy.backoff(n + 1, 1.0) >= longest);
        }

        #[test]
        fn no_retry_after_value_panics(value in prop::collection::vec(any::<u8>(), 0..80), at in any::<i32>()) {
            let now = Utc.timestamp_opt(i64::from(at), 0).single().expect("a time");
            let _ = parse_retry_after(&value, now);
        }
    }
}
