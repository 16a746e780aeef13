//! Firing: the jobs of all times that have come, and the step to the next times, in one commit.
//!
//! Called by `engine::fire_schedules`. A schedule whose job is not accepted any more (the operator's settings changed)
//! steps on and says so in `last_error`; it holds up no other.
//!
//! Invariant: a schedule's row is locked from the look at `next_at` to the commit that moves it; a process that dies in
//! between has fired nothing.

use super::due::{Moment, decide};
use super::store::{self, DueRow};
use super::{Record, Schedule, template};
use crate::clock::Timestamp;
use crate::db::{Db, StoreError};
use crate::ids::{ScheduleId, TenantId};
use crate::jobs::Job;
use crate::jobs::new_job::{Context, Refused};
use crate::jobs::store::Accept;
use crate::secret::{SealError, Sealer};

/// A transaction is of so many schedules…
const SCHEDULES_MAX: i64 = 100;
/// … so many jobs…
const JOBS_MAX: usize = 500;
/// … and about so much text at most; what is left is due in the next one.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// The options of a job's callback as they are stored.
pub type SealOptions<'a> = dyn Fn(&Job) -> Result<Option<Vec<u8>>, SealError> + Sync + 'a;

/// What firing needs beside the database.
pub struct Tools<'a> {
    /// Opens the jobs.
    pub sealer: &'a Sealer,
    /// What jobs are judged by, but for tenant and time.
    pub rules: Context<'a>,
    /// Seals the options of a job's callback.
    pub seal_options: &'a SealOptions<'a>,
    /// Since when this process looks for what is due, by the database's clock.
    pub running_since: Timestamp,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fired {
    /// So many jobs were accepted.
    pub jobs: usize,
    /// Some of them wait for their turn in a line.
    pub held: bool,
    /// Something is left that is due.
    pub more: bool,
}

/// Fires what is due, as much as goes into one transaction.
/// # Errors
/// [`StoreError`]; nothing was fired, or (unavailable) it is not known.
pub async fn fire(db: &Db, tools: &Tools<'_>) -> Result<Fired, StoreError> {
    let mut tx = db.begin().await?;
    let Some((now, rows)) = store::lock_due(&mut tx, tools.sealer, SCHEDULES_MAX).await? else {
        return Ok(Fired::default());
    };
    let mut round = Round {
        tools,
        moment: Moment { now, running_since: tools.running_since },
        accepts: Vec::new(),
        bytes: 0,
        records: Vec::new(),
        more: rows.len() as i64 == SCHEDULES_MAX,
    };
    for DueRow { tenant, id, schedule } in rows {
        match schedule {
            Ok(schedule) if round.room() > 0 => round.fire(&schedule),
            Ok(_) => round.more = true,
            Err(why) => {
                tracing::error!(schedule.id = %id, error = why, "schedule {id} is due and cannot be read; it is stopped");
                store::stop(&mut tx, tenant, id, &why).await?;
            }
        }
    }
    crate::jobs::store::accept(&mut *tx, &round.accepts).await?;
    store::record(&mut tx, &round.records).await?;
    tx.commit().await?;
    let held = round.accepts.iter().any(|accept| accept.job.is_held());
    Ok(Fired { jobs: round.accepts.len(), held, more: round.more })
}

struct Round<'a> {
    tools: &'a Tools<'a>,
    moment: Moment,
    accepts: Vec<Accept>,
    bytes: usize,
    records: Vec<(TenantId, ScheduleId, Record)>,
    more: bool,
}

impl Round<'_> {
    /// For how many jobs there is room.
    fn room(&self) -> usize {
        if self.bytes < BYTES_MAX { JOBS_MAX.saturating_sub(self.accepts.len()) } else { 0 }
    }

    fn fire(&mut self, schedule: &Schedule) {
        let Some(next_at) = schedule.record.next_at else { return };
        let settings = &schedule.settings;
        // At least one, however long its text is.
        let limit = (BYTES_MAX / settings.job.0.get().len().max(1)).clamp(1, self.room());
        let (times, next_at) = decide(&settings.timetable, settings.catch_up, next_at, self.moment, limit);
        let mut record = Record { next_at, ..schedule.record.clone() };
        for time in times {
            if !record.open_jobs.is_empty() && !time.runs_beside_others(settings.overlap) {
                record.last_skipped_at = Some(time.at);
                record.skipped += 1;
                continue;
            }
            match self.accept_of(schedule, time.at) {
                Ok(accept) => {
                    record.last_fired_at = Some(self.moment.now);
                    record.last_job = Some(accept.job.id);
                    record.last_error = None;
                    record.open_jobs.push(accept.job.id);
                    self.bytes += settings.job.0.get().len();
                    self.accepts.push(accept);
                }
                Err(why) => {
                    tracing::warn!(schedule.id = %schedule.id, error = why, "a schedule's job was not accepted");
                    record.last_error = Some(why);
                }
            }
        }
        self.more |= record.next_at.is_some_and(|next_at| next_at <= self.moment.now);
        self.records.push((schedule.tenant, schedule.id, record));
    }

    fn accept_of(&self, schedule: &Schedule, at: Timestamp) -> Result<Accept, String> {
        let context = Context { tenant: schedule.tenant, now: self.moment.now, ..self.tools.rules };
        let job = template::job_of(schedule, Some(at), context, None).map_err(|why| sentence(&why))?;
        let sealed_options = (self.tools.seal_options)(&job).map_err(|error| error.to_string())?;
        Ok(Accept { job, sealed_options, key: None })
    }
}

fn sentence(refused: &Refused) -> String {
    let faults = match refused {
        Refused::InputTooLarge => return "the job's input is too large".to_owned(),
        Refused::Faults(faults) => faults.clone().into_vec(),
    };
    let parts: Vec<String> =
        faults.iter().map(|fault| format!("{} {}", fault.pointer, fault.detail)).collect();
    parts.join("; ")
}
