//! [pure] Which times of a schedule fire now, and which one comes next.
//!
//! Called by `fire` with the row's lock held. A time is on time as long as some process was running when it came and it
//! is not older than a minute; anything else was missed, and `catch_up` says what becomes of it.

use super::timetable::Timetable;
use super::{CatchUp, Overlap};
use crate::clock::Timestamp;
use chrono::TimeDelta;

/// A busy moment, or a database that was away for a moment, makes a time late, not missed.
const LATE_AT_MOST: TimeDelta = TimeDelta::seconds(60);
/// One that came so shortly before this process started may have been meant for another that is just about to fire it.
const START_AT_MOST: TimeDelta = TimeDelta::seconds(2);
/// `all` makes up for at most so many times; the older ones are left out.
pub const MADE_UP_MAX: usize = 1000;

/// What is known in the moment of firing.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The database's time.
    pub now: Timestamp,
    /// Since when this process looks for what is due.
    pub running_since: Timestamp,
}

impl Moment {
    /// Times from here on are on time.
    fn on_time_from(self) -> Timestamp {
        (self.now - LATE_AT_MOST).max((self.running_since - START_AT_MOST).min(self.now))
    }
}

/// A time that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    /// As the pattern names it.
    pub at: Timestamp,
    /// One of those that `all` makes up for.
    pub made_up: bool,
}

impl Time {
    /// Does it make a job although another is not finished? What `all` makes up for is wanted in any case.
    pub fn runs_beside_others(self, overlap: Overlap) -> bool {
        overlap == Overlap::Allow || self.made_up
    }
}

/// The times that fire now, at most `limit`, in order; and the next one, which has come already where the limit was met.
pub fn decide(
    timetable: &Timetable,
    catch_up: CatchUp,
    next_at: Timestamp,
    moment: Moment,
    limit: usize,
) -> (Vec<Time>, Option<Timestamp>) {
    let on_time_from = moment.on_time_from();
    let first = match catch_up {
        _ if next_at >= on_time_from => Some(next_at),
        CatchUp::None => timetable.next_after(on_time_from - TimeDelta::microseconds(1)),
        CatchUp::Last => Some(timetable.last_before(next_at, on_time_from)),
        CatchUp::All => Some(timetable.first_of_last(MADE_UP_MAX, next_at, moment.now)),
    };
    let Some(first) = first else { return (Vec::new(), None) };
    let mut coming = std::iter::once(first).chain(timetable.after(first));
    let mut times = Vec::new();
    loop {
        match coming.next() {
            Some(at) if at <= moment.now && times.len() < limit => {
                times.push(Time { at, made_up: catch_up == CatchUp::All && at < on_time_from });
            }
            next => return (times, next),
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use proptest::prelude::*;

    use super::*;

    fn utc(text: &str) -> Timestamp {
        DateTime::parse_from_rfc3339(text).expect("a time").to_utc()
    }

    fn hourly() -> Timetable {
        Timetable::stored("0 * * * *", "UTC").expect("a timetable")
    }

    fn hours(times: &[Time]) -> Vec<String> {
        times.iter().map(|time| time.at.format("%H:%M").to_string()).collect()
    }

    fn at(now: &str, running_since: &str) -> Moment {
        Moment { now: utc(now), running_since: utc(running_since) }
    }

    #[test]
    fn a_time_that_comes_while_it_runs_fires() {
        for catch_up in [CatchUp::None, CatchUp::Last, CatchUp::All] {
            let moment = at("2027-01-01T12:00:00.004Z", "2027-01-01T00:00:00Z");
            let (times, next) = decide(&hourly(), catch_up, utc("2027-01-01T12:00:00Z"), moment, 100);
            assert_eq!(times, [Time { at: utc("2027-01-01T12:00:00Z"), made_up: false }]);
            assert_eq!(next, Some(utc("2027-01-01T13:00:00Z")));
        }
    }

    #[test]
    fn catch_up_says_what_becomes_of_what_was_missed() {
        let moment = at("2027-01-01T12:30:00Z", "2027-01-01T12:29:59Z");
        for (catch_up, wanted) in [
            (CatchUp::None, &[][..]),
            (CatchUp::Last, &["12:00"][..]),
            (CatchUp::All, &["09:00", "10:00", "11:00", "12:00"][..]),
        ] {
            let (times, next) = decide(&hourly(), catch_up, utc("2027-01-01T09:00:00Z"), moment, 100);
            assert_eq!(hours(&times), wanted);
            assert!(times.iter().all(|time| time.made_up == (catch_up == CatchUp::All)));
            assert_eq!(next, Some(utc("2027-01-01T13:00:00Z")));
        }
    }

    #[test]
    fn a_quick_start_and_a_busy_moment_miss_nothing() {
        let just_started = at("2027-01-01T12:00:01.5Z", "2027-01-01T12:00:01.4Z");
        let busy = at("2027-01-01T12:00:40Z", "2027-01-01T00:00:00Z");
        for moment in [just_started, busy] {
            let (times, _) = decide(&hourly(), CatchUp::None, utc("2027-01-01T12:00:00Z"), moment, 100);
            assert_eq!(hours(&times), ["12:00"]);
        }
        let down = at("2027-01-01T12:00:40Z", "2027-01-01T12:00:39Z");
        let (times, _) = decide(&hourly(), CatchUp::None, utc("2027-01-01T12:00:00Z"), down, 100);
        assert_eq!(hours(&times), Vec::<String>::new());
    }

    #[test]
    fn the_limit_leaves_the_rest_due() {
        let moment = at("2027-01-01T12:30:00Z", "2027-01-01T12:29:59Z");
        let (times, next) = decide(&hourly(), CatchUp::All, utc("2027-01-01T03:00:00Z"), moment, 2);
        assert_eq!(hours(&times), ["03:00", "04:00"]);
        assert_eq!(next, Some(utc("2027-01-01T05:00:00Z")));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        #[test]
        fn every_time_is_decided_once(
            every in 1_i64..50, missed_s in 0_i64..40_000, up_s in 0_i64..200, limit in 1_usize..80,
            which in proptest::sample::select(vec![CatchUp::None, CatchUp::Last, CatchUp::All]),
        ) {
            let table = Timetable::stored(&format!("*/{every} * * * * *"), "UTC").expect("a timetable");
            let first = table.next_after(utc("2027-01-01T00:00:00Z")).expect("one");
            let now = first + TimeDelta::seconds(missed_s);
            let moment = Moment { now, running_since: now - TimeDelta::seconds(up_s) };
            // In rounds, as the loop does it.
            let (mut all, mut next) = (Vec::new(), Some(first));
            while let Some(due) = next.filter(|due| *due <= now) {
                let (times, then) = decide(&table, which, due, moment, limit);
                prop_assert!(times.len() <= limit && then > Some(due));
                all.extend(times);
                next = then;
            }
            prop_assert!(all.windows(2).all(|pair| pair[0].at < pair[1].at));
            prop_assert_eq!(next, table.next_after(now));
            let due: Vec<_> = std::iter::once(first).chain(table.after(first)).take_while(|at| *at <= now).collect();
            let on_time = due.iter().filter(|at| **at >= moment.on_time_from()).count();
            let missed = due.len() - on_time;
            let wanted = match which {
                CatchUp::None => on_time,
                CatchUp::Last => on_time + missed.min(1),
                CatchUp::All => due.len().min(MADE_UP_MAX),
            };
            let fired: Vec<_> = all.iter().map(|time| time.at).collect();
            prop_assert_eq!(&fired[..], &due[due.len() - wanted..]);
        }
    }
}
