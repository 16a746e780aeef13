//! Rate limits of receivers, kept by the owner of their lane: exact, because there is one owner.
//!
//! The generic cell rate algorithm, by the crate `governor`: `burst` at once, then one each `1 / per_s` seconds. Called by
//! the dispatcher before a receiver is called. What an earlier owner of the lane has used up is not known here, so a new
//! one begins with what has come together since that one left.

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
    /// Sets or removes a limit; one that stays the same keeps its state. `quiet`: since so long nobody else has called the
    /// receiver; `None`: nobody ever has.
    pub(super) fn set(&mut self, at: TargetRef, rate: Option<Rate>, quiet: Option<Duration>) {
        let Some(rate) = rate else {
            self.limiters.remove(&at);
            return;
        };
        if self.limiters.get(&at).is_some_and(|(set, _)| *set == rate) {
            return;
        }
        let period = Duration::from_secs_f64((1.0 / rate.per_s).clamp(1e-6, 86_400.0));
        let Some(quota) = Quota::with_period(period) else { return };
        let limiter = RateLimiter::direct(quota.allow_burst(rate.burst));
        let used_up = quiet.map_or(0, |quiet| used_up(rate, quiet));
        if let Some(used_up) = NonZeroU32::new(used_up) {
            // It is at most the burst, so it fits.
            let _ = limiter.check_n(used_up);
        }
        self.limiters.insert(at, (rate, limiter));
    }

    /// Forgets the limits of receivers that others may have called meanwhile; they are set anew.
    pub(super) fn forget(&mut self, of: impl Fn(TargetRef) -> bool) {
        self.limiters.retain(|at, _| !of(*at));
    }

    /// Takes one call; or says how long to wait for it.
    pub(super) fn check(&self, at: TargetRef) -> Option<Duration> {
        let (_, limiter) = self.limiters.get(&at)?;
        limiter.check().err().map(|not_until| not_until.wait_time_from(self.clock.now()))
    }
}

/// How much of the burst may not have come together again after this time.
fn used_up(rate: Rate, quiet: Duration) -> u32 {
    let together = (quiet.as_secs_f64() * rate.per_s).min(f64::from(rate.burst.get()));
    rate.burst.get() - together as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TenantId;

    #[test]
    fn the_burst_goes_at_once_and_then_one_at_a_time() {
        let at = (TenantId::fresh(), uuid::Uuid::nil());
        let mut rates = Rates::default();
        rates.set(at, Some(Rate { per_s: 0.5, burst: NonZeroU32::new(3).expect("three") }), None);
        assert_eq!((0..3).filter(|_| rates.check(at).is_none()).count(), 3);
        let wait = rates.check(at).expect("a wait");
        assert!(wait > Duration::from_secs(1) && wait <= Duration::from_secs(2), "{wait:?}");
        rates.set(at, None, None);
        assert_eq!(rates.check(at), None);
    }

    #[test]
    fn a_new_owner_begins_with_what_has_come_together_since() {
        let at = (TenantId::fresh(), uuid::Uuid::nil());
        let rate = Some(Rate { per_s: 2.0, burst: NonZeroU32::new(10).expect("ten") });
        let at_once = |quiet: Option<Duration>| {
            let mut rates = Rates::default();
            rates.set(at, rate, quiet);
            (0..20).take_while(|_| rates.check(at).is_none()).count()
        };
        assert_eq!(at_once(None), 10);
        assert_eq!(at_once(Some(Duration::ZERO)), 0);
        assert_eq!(at_once(Some(Duration::from_millis(2600))), 5);
        assert_eq!(at_once(Some(Duration::MAX)), 10);
    }

    #[test]
    fn a_limit_that_was_forgotten_is_set_anew() {
        let at = (TenantId::fresh(), uuid::Uuid::nil());
        let rate = Some(Rate { per_s: 0.1, burst: NonZeroU32::new(1).expect("one") });
        let mut rates = Rates::default();
        rates.set(at, rate, None);
        rates.forget(|other| other != at);
        rates.set(at, rate, Some(Duration::ZERO));
        assert_eq!(rates.check(at), None, "it was not forgotten");
        rates.forget(|other| other == at);
        rates.set(at, rate, Some(Duration::ZERO));
        assert!(rates.check(at).is_some());
    }
}
