//! [pure] A pattern in a time zone: which moments it names.
//!
//! Called by `due` (what fires now) and `view` (the next times). croner walks the calendar; what happens where a clock is
//! put forward or back is decided here:
//!
//! - A pattern with `*` in its second, minute or hour means "again and again": a local time that does not exist is left
//!   out, one that exists twice counts twice.
//! - Any other pattern names times on the face of a clock: each comes once. One that does not exist comes at the first
//!   moment after the gap, one that exists twice comes the first time.
//!
//! Invariant: [`Timetable::next_after`] is strictly later than its argument, a whole second, and leaves nothing out.

use std::fmt;

use chrono::{DateTime, MappedLocalTime, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

use super::cron::{self, Pattern};
use crate::clock::Timestamp;

const SECOND: TimeDelta = TimeDelta::seconds(1);

/// When a schedule is due.
#[derive(Clone)]
pub struct Timetable {
    pattern: Pattern,
    zone: Tz,
}

impl fmt::Debug for Timetable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.pattern.text, self.zone)
    }
}

impl PartialEq for Timetable {
    fn eq(&self, other: &Self) -> bool {
        self.pattern.text == other.pattern.text && self.zone == other.zone
    }
}

impl Timetable {
    /// Puts both together.
    pub fn new(pattern: Pattern, zone: Tz) -> Self {
        Self { pattern, zone }
    }

    /// From what was accepted before.
    /// # Errors
    /// A sentence: this version does not know the pattern or the zone.
    pub fn stored(cron: &str, zone: &str) -> Result<Self, String> {
        let zone: Tz = zone.parse().map_err(|_| format!("the time zone {zone} is not known"))?;
        Ok(Self::new(cron::parse(cron)?, zone))
    }

    /// The pattern as it was written.
    pub fn cron(&self) -> &str {
        &self.pattern.text
    }

    /// The zone's IANA name.
    pub fn zone(&self) -> &'static str {
        self.zone.name()
    }

    /// The first moment after this one; `None`: there is none.
    pub fn next_after(&self, at: Timestamp) -> Option<Timestamp> {
        if self.pattern.recurs { self.next_recurring(at) } else { self.next_on_the_clock(at) }
    }

    /// All moments after this one.
    pub fn after(&self, at: Timestamp) -> impl Iterator<Item = Timestamp> + '_ {
        std::iter::successors(self.next_after(at), |at| self.next_after(*at))
    }

    /// The last moment before `end` among those not before `first`, which is one of them.
    pub fn last_before(&self, first: Timestamp, end: Timestamp) -> Timestamp {
        let found = turning_point(first, end, |at| self.next_after(at).is_none_or(|next| next >= end));
        // Just before the turning point the next moment is the last one.
        self.next_after(found - SECOND).filter(|at| *at >= first && *at < end).unwrap_or(first)
    }

    /// The first of the last `count` moments up to `end`, none before `first`, which is one of them.
    pub fn first_of_last(&self, count: usize, first: Timestamp, end: Timestamp) -> Timestamp {
        let few = |at: Timestamp| self.after(at).take_while(|at| *at <= end).take(count + 1).count() <= count;
        if few(first - SECOND) {
            return first;
        }
        let found = turning_point(first, end, few);
        self.next_after(found).filter(|at| *at >= first && *at <= end).unwrap_or(first)
    }

    /// Every moment whose local time fits.
    fn next_recurring(&self, at: Timestamp) -> Option<Timestamp> {
        let found = self.pattern.cron.find_next_occurrence(&at.with_timezone(&self.zone), false).ok()?;
        Some(found.to_utc()).filter(|found| *found > at)
    }

    /// Every local time that fits, once.
    fn next_on_the_clock(&self, at: Timestamp) -> Option<Timestamp> {
        let mut local: NaiveDateTime = at.with_timezone(&self.zone).naive_local();
        // Local times within an hour that exists a second time lie behind us: they are passed by.
        loop {
            local = self.pattern.cron.find_next_occurrence(&local, false).ok()?;
            let moment = self.moment_of(local);
            if moment > at {
                return Some(moment);
            }
        }
    }

    fn moment_of(&self, local: NaiveDateTime) -> Timestamp {
        match self.zone.from_local_datetime(&local) {
            MappedLocalTime::Single(moment) | MappedLocalTime::Ambiguous(moment, _) => moment.to_utc(),
            MappedLocalTime::None => self.end_of_gap(local),
        }
    }

    /// The moment at which the clock was put forward over this local time.
    fn end_of_gap(&self, local: NaiveDateTime) -> Timestamp {
        let offset = |moment: Timestamp| {
            i64::from(self.zone.offset_from_utc_datetime(&moment.naive_utc()).fix().local_minus_utc())
        };
        let around = local.and_utc();
        // No zone is further than a day from UTC, and none was put forward twice within two days.
        let (before, after) = (offset(around - TimeDelta::days(1)), offset(around + TimeDelta::days(2)));
        let low = around - TimeDelta::seconds(after.max(before));
        let high: DateTime<Utc> = around - TimeDelta::seconds(after.min(before));
        turning_point(low, high, |moment| offset(moment) == after)
    }
}

/// The first whole second from `low` on for which `holds`, where it does not hold before and always after.
fn turning_point(low: Timestamp, high: Timestamp, holds: impl Fn(Timestamp) -> bool) -> Timestamp {
    let (mut no, mut yes) = (-1, (high - low).num_seconds() + 1);
    while yes - no > 1 {
        let middle = no + (yes - no) / 2;
        if holds(low + TimeDelta::seconds(middle)) {
            yes = middle;
        } else {
            no = middle;
        }
    }
    low + TimeDelta::seconds(yes)
}

#[cfg(test)]
#[path = "timetable_tests.rs"]
mod tests;
