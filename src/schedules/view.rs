//! [pure] A schedule as the API shows it: its next times, and its job without the callback's secret and headers. Of one that
//! cannot be read, what is left, and why.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::stored::{Shown, Unreadable};
use super::{Schedule, template};
use crate::clock::{Timestamp, millis, rfc3339};
use crate::ids::{JobId, ScheduleId};

/// So many of the next times are shown.
const NEXT_SHOWN: usize = 5;

/// The JSON of a schedule.
#[derive(Debug, Serialize)]
pub struct ScheduleView<'a> {
    id: ScheduleId,
    cron: &'a str,
    timezone: &'a str,
    job: Option<Box<RawValue>>,
    overlap: &'static str,
    catch_up: &'static str,
    status: &'static str,
    description: &'a str,
    metadata: &'a BTreeMap<String, String>,
    next: Vec<String>,
    #[serde(with = "millis")]
    last_fired_at: Option<Timestamp>,
    last_job_id: Option<JobId>,
    #[serde(with = "millis")]
    last_skipped_at: Option<Timestamp>,
    skipped: i64,
    last_error: Option<Cow<'a, str>>,
    #[serde(with = "millis")]
    created_at: Timestamp,
    #[serde(with = "millis")]
    updated_at: Timestamp,
}

impl<'a> ScheduleView<'a> {
    /// Of one that was read to be shown.
    pub fn of(shown: &'a Shown) -> Self {
        match shown {
            Shown::Whole(schedule) => Self::new(schedule),
            Shown::Unreadable(found) => Self::unreadable(found),
        }
    }

    /// Of this schedule.
    pub fn new(schedule: &'a Schedule) -> Self {
        let (settings, record) = (&schedule.settings, &schedule.record);
        let first = record.next_at;
        let rest = first.into_iter().flat_map(|first| settings.timetable.after(first));
        Self {
            id: schedule.id,
            cron: settings.timetable.cron(),
            timezone: settings.timetable.zone(),
            // Put together of parts that were JSON.
            job: RawValue::from_string(template::shown(&settings.job)).ok(),
            overlap: settings.overlap.as_str(),
            catch_up: settings.catch_up.as_str(),
            status: settings.status.as_str(),
            description: &settings.description,
            metadata: &settings.metadata,
            next: first.into_iter().chain(rest).take(NEXT_SHOWN).map(rfc3339).collect(),
            last_fired_at: record.last_fired_at,
            last_job_id: record.last_job,
            last_skipped_at: record.last_skipped_at,
            skipped: record.skipped,
            last_error: record.last_error.as_deref().map(Cow::Borrowed),
            created_at: schedule.id.created_at(),
            updated_at: schedule.updated_at,
        }
    }

    fn unreadable(found: &'a Unreadable) -> Self {
        let (row, record) = (&found.row, &found.row.record);
        Self {
            id: row.id,
            cron: &row.cron,
            timezone: &row.timezone,
            job: None,
            overlap: row.overlap.as_str(),
            catch_up: row.catch_up.as_str(),
            status: row.status.as_str(),
            description: &row.description,
            metadata: &row.metadata,
            next: Vec::new(),
            last_fired_at: record.last_fired_at,
            last_job_id: record.last_job,
            last_skipped_at: record.last_skipped_at,
            skipped: record.skipped,
            last_error: Some(Cow::Owned(found.to_string())),
            created_at: row.id.created_at(),
            updated_at: row.updated_at,
        }
    }

    /// As text.
    pub fn to_json(&self) -> String {
        // Strings, numbers and raw JSON can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}
