//! Schedules: jobs that come again and again, at the times of a cron pattern.
//!
//! Holds the noun. `new_schedule` reads a request or a merge patch, `timetable` knows the times, `due` decides which of
//! them fire now, `fire` accepts their jobs, `change` is what `http::schedules` calls, `store` the only SQL on
//! `schedules`, `stored` opens its rows. Knows no HTTP, no loop, no network.
//!
//! Invariant: a job of a schedule and the step to the next time are one commit, made by whoever holds the row's lock; so
//! each time fires once, however many processes look.

pub mod change;
pub mod cron;
pub mod due;
pub mod fire;
pub mod merge;
pub mod new_schedule;
pub mod store;
pub mod stored;
pub mod template;
pub mod timetable;
pub mod view;

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use self::timetable::Timetable;
use crate::clock::Timestamp;
use crate::ids::{JobId, ScheduleId, TenantId};

/// What happens at a time at which a job of this schedule is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// The time is left out.
    Skip,
    /// Another one runs beside it.
    Allow,
}

impl Overlap {
    /// All of them by name.
    pub const WORDS: [(&'static str, Self); 2] = [("skip", Self::Skip), ("allow", Self::Allow)];

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Allow => "allow",
        }
    }
}

/// What becomes of the times that passed while nothing ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatchUp {
    /// They are left out.
    None,
    /// The last one is made up for.
    Last,
    /// Each is made up for, in order.
    All,
}

impl CatchUp {
    /// All of them by name.
    pub const WORDS: [(&'static str, Self); 3] =
        [("none", Self::None), ("last", Self::Last), ("all", Self::All)];

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Last => "last",
            Self::All => "all",
        }
    }
}

/// Whether a schedule fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleStatus {
    /// At its times.
    Active,
    /// Not at all.
    Paused,
}

impl ScheduleStatus {
    /// All of them by name.
    pub const WORDS: [(&'static str, Self); 2] = [("active", Self::Active), ("paused", Self::Paused)];

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Paused => "paused",
        }
    }
}

/// All that a tenant says about a schedule.
#[derive(Debug, Clone)]
pub struct Settings {
    /// When.
    pub timetable: Timetable,
    /// What: the text of a `POST /v1/jobs`. May hold secrets of a callback.
    pub job: Template,
    /// Beside one that is not finished?
    pub overlap: Overlap,
    /// What of the times that were missed?
    pub catch_up: CatchUp,
    /// Does it fire?
    pub status: ScheduleStatus,
    /// For people.
    pub description: String,
    /// Free strings.
    pub metadata: BTreeMap<String, String>,
}

/// The text of a job, which may hold secrets; `Debug` shows none of it.
#[derive(Clone)]
pub struct Template(pub Box<RawValue>);

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[a job of {} bytes]", self.0.get().len())
    }
}

/// What Ringback remembers of a schedule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// When it fires next; `None`: it does not.
    pub next_at: Option<Timestamp>,
    /// When it fired last.
    pub last_fired_at: Option<Timestamp>,
    /// The job that it made last, by a time or by hand.
    pub last_job: Option<JobId>,
    /// The last time that was left out because a job was not finished.
    pub last_skipped_at: Option<Timestamp>,
    /// How many were.
    pub skipped: i64,
    /// Why the last time that should have made a job did not.
    pub last_error: Option<String>,
    /// Its newest jobs that were not finished when the row was locked, the last ones made at the end. Empty where it was
    /// read only to be shown.
    pub open_jobs: Vec<JobId>,
}

/// A job that comes again and again.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Whose.
    pub tenant: TenantId,
    /// Its id.
    pub id: ScheduleId,
    /// What its owner says.
    pub settings: Settings,
    /// What became of it.
    pub record: Record,
    /// Grows with each change by its owner; the `ETag`.
    pub version: i64,
    /// When its owner changed it last.
    pub updated_at: Timestamp,
}

impl Schedule {
    /// A new one.
    pub fn new(tenant: TenantId, settings: Settings, now: Timestamp) -> Self {
        let id = ScheduleId::fresh();
        let record = Record { next_at: first_time(&settings, now), ..Record::default() };
        Self { tenant, id, settings, record, version: 1, updated_at: id.created_at() }
    }

    /// With other settings. What is due stays due, unless the times are others now, or it was paused or had stopped: those
    /// are counted from now.
    #[must_use]
    pub fn with(&self, settings: Settings, now: Timestamp) -> Self {
        let same = self.settings.timetable == settings.timetable && self.settings.status == settings.status;
        let next_at = self.record.next_at.filter(|_| same).or_else(|| first_time(&settings, now));
        Self {
            settings,
            record: Record { next_at, ..self.record.clone() },
            version: self.version + 1,
            updated_at: now.max(self.updated_at),
            ..self.clone()
        }
    }
}

fn first_time(settings: &Settings, now: Timestamp) -> Option<Timestamp> {
    match settings.status {
        ScheduleStatus::Active => settings.timetable.next_after(now),
        ScheduleStatus::Paused => None,
    }
}
