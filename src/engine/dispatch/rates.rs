//! Rate limits of receivers, kept by the owner of their lane: exact, because there is one owner.
//!
//! The generic cell rate algorithm, by the crate `governor`: `burst` at once, then one each `1 / per_s` seconds. Called by
//! the dispatcher before a receiver is called. A lane that changes its owner begins with a full burst.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use crate::deliveries::scheduling::TargetRef;

/// So many a second on average, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    /// On average; more than zero.
    pub per_s: f64,
    /// At once.
    pub burst: NonZeroU32,
}

/// The limits of this node's receivers.
#[derive(Debug, Default)]
pub(super) struct Rates {
    clock: DefaultClock,
    limiters: HashMap<TargetRef, (Rate, DefaultDirectRateLimiter)>,
}

impl Rates {
    /// Sets or removes a limit; one that stays the same keeps its state.
    pub(super) fn set(&mut self, at: TargetRef, rate: Option<Rate>) {
        let Some(rate) = rate else {
            self.limiters.remove(&at);
            return;
        };
        if self.limiters.get(&at).is_some_and(|(set, _)| *set == rate) {
            return;
        }
        let period = Duration::from_secs_f64((1.0 / rate.per_s).clamp(1e-6, 86_400.0));
        if let Some(quota) = Quota::with_period(period) {
            self.limiters.insert(at, (rate, RateLimiter::direct(quota.allow_burst(rate.burst))));
        }
    }

    /// Takes one call; or says how long to wait for it.
    pub(super) fn check(&self, at: TargetRef) -> Option<Duration> {
        let (_, limiter) = self.limiters.get(&at)?;
        limiter.check().err().map(|not_until| not_until.wait_time_from(self.clock.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TenantId;

    #[test]
    fn the_burst_goes_at_once_and_then_one_at_a_time() {
        let at = (TenantId::fresh(), uuid::Uuid::nil());
        let mut rates = Rates::default();
        rates.set(at, Some(Rate { per_s: 0.5, burst: NonZeroU32::new(3).expect("three") }));
        assert_eq!((0..3).filter(|_| rates.check(at).is_none()).count(), 3);
        let wait = rates.check(at).expect("a wait");
        assert!(wait > Duration::from_secs(1) && wait <= Duration::from_secs(2), "{wait:?}");
        rates.set(at, None);
        assert_eq!(rates.check(at), None);
    }
}
