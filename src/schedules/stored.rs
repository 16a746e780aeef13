//! A schedule as its row has it, and what opens it.
//!
//! Called by `store`. A row may be there and yet say nothing to this build: its job was sealed with another master key, or
//! its time zone is one that this build does not know. Such a schedule does not fire, but its owner has to see it, and why.
//!
//! Invariant: one that cannot be read keeps nobody from the others.

use std::collections::BTreeMap;
use std::fmt;

use super::timetable::Timetable;
use super::{CatchUp, Overlap, Record, Schedule, ScheduleStatus, Settings, Template};
use crate::clock::Timestamp;
use crate::db::raw_json;
use crate::ids::{ScheduleId, TenantId};
use crate::secret::{SealContext, Sealer};

/// What a row says.
#[derive(Clone)]
pub struct Stored {
    /// Whose.
    pub tenant: TenantId,
    /// Its id.
    pub id: ScheduleId,
    /// The pattern.
    pub cron: String,
    /// The zone's IANA name.
    pub timezone: String,
    /// The job, sealed.
    pub job: Vec<u8>,
    /// Beside one that is not finished?
    pub overlap: Overlap,
    /// What of the times that were missed?
    pub catch_up: CatchUp,
    /// Should it fire?
    pub status: ScheduleStatus,
    /// For people.
    pub description: String,
    /// Free strings.
    pub metadata: BTreeMap<String, String>,
    /// What became of it.
    pub record: Record,
    /// Grows with each change by its owner.
    pub version: i64,
    /// When its owner changed it last.
    pub updated_at: Timestamp,
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}: {} in {}]", self.id, self.cron, self.timezone)
    }
}

/// A schedule that cannot be read, and does not fire.
#[derive(Debug, Clone)]
pub struct Unreadable {
    /// What can be read of it.
    pub row: Stored,
    /// What is wrong with the rest, in a sentence.
    pub why: String,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the schedule cannot be read, and does not fire: {}", self.why)
    }
}

/// A schedule that was read to be shown.
#[derive(Debug, Clone)]
pub enum Shown {
    /// As it is.
    Whole(Box<Schedule>),
    /// What is left of it.
    Unreadable(Box<Unreadable>),
}

impl Shown {
    /// Its id.
    pub fn id(&self) -> ScheduleId {
        match self {
            Self::Whole(schedule) => schedule.id,
            Self::Unreadable(found) => found.row.id,
        }
    }

    /// For its `ETag`.
    pub fn version(&self) -> i64 {
        match self {
            Self::Whole(schedule) => schedule.version,
            Self::Unreadable(found) => found.row.version,
        }
    }
}

/// What the job of a schedule is sealed for.
pub fn context(tenant: TenantId, id: ScheduleId) -> SealContext {
    SealContext { tenant: tenant.uuid(), owner: id.uuid(), column: "schedules.job" }
}

impl Stored {
    /// The schedule that the row tells of.
    /// # Errors
    /// [`Unreadable`].
    pub fn open(self, sealer: &Sealer) -> Result<Schedule, Box<Unreadable>> {
        match self.open_parts(sealer) {
            Ok((timetable, job)) => Ok(self.with(timetable, job)),
            Err(why) => Err(Box::new(Unreadable { row: self, why })),
        }
    }

    fn open_parts(&self, sealer: &Sealer) -> Result<(Timetable, Template), String> {
        let timetable = Timetable::stored(&self.cron, &self.timezone)?;
        let text =
            sealer.open(&context(self.tenant, self.id), &self.job).map_err(|error| error.to_string())?;
        let job = raw_json(text.expose()).map_err(|error| error.to_string())?;
        Ok((timetable, Template(job)))
    }

    fn with(self, timetable: Timetable, job: Template) -> Schedule {
        let Self { tenant, id, overlap, catch_up, status, description, metadata, .. } = self;
        Schedule {
            tenant,
            id,
            settings: Settings { timetable, job, overlap, catch_up, status, description, metadata },
            record: self.record,
            version: self.version,
            updated_at: self.updated_at,
        }
    }
}
