//! [pure] From a request's text to a schedule's settings: a new schedule, or a JSON merge patch (RFC 7396) of one.
//!
//! Called by `http::schedules`. What a patch does not touch is not looked at again, so a schedule whose job the operator
//! forbade since can still be paused. Every fault is found, with its pointer.
//!
//! Invariant: behind this file nothing about a schedule is checked twice; `null` in a patch means the default.

use std::collections::BTreeMap;

use chrono_tz::Tz;
use serde_json::value::RawValue;

use super::cron::{self, Pattern};
use super::merge::{merge, quoted};
use super::timetable::Timetable;
use super::{CatchUp, Overlap, ScheduleStatus, Settings, Template, template};
use crate::fields::{Faults, Fields, Members, type_of};
use crate::jobs::new_job::{Context, Refused};

const DESCRIPTION_MAX: usize = 1000;
const ZONE_MAX: usize = 64;

/// Reads a new schedule.
/// # Errors
/// [`Refused`], with every fault.
pub fn parse_new(raw: &RawValue, context: Context<'_>) -> Result<Settings, Refused> {
    let mut faults = Faults::default();
    let Some(fields) = Fields::open("", raw, &mut faults) else { return Err(Refused::Faults(faults)) };
    let draft = Draft::read(fields, context, &mut faults)?;
    if draft.cron_absent {
        faults.add("/cron", "is missing; say when, as in \"*/5 * * * *\"");
    }
    if draft.job_absent {
        faults.add("/job", "is missing; say what, as in a POST /v1/jobs");
    }
    let zone = draft.zone.unwrap_or(Tz::UTC);
    let timetable = draft.cron.map(|cron| timetable(cron, zone, context, &mut faults));
    let settings = timetable.zip(draft.job).map(|(timetable, job)| Settings {
        timetable,
        job,
        overlap: draft.overlap.unwrap_or(Overlap::Skip),
        catch_up: draft.catch_up.unwrap_or(CatchUp::None),
        status: draft.status.unwrap_or(ScheduleStatus::Active),
        description: draft.description,
        metadata: draft.metadata,
    });
    faults.result(settings).map_err(Refused::Faults)
}

/// Reads a merge patch of a schedule: its settings afterwards.
/// # Errors
/// [`Refused`], with every fault.
pub fn parse_patch(raw: &RawValue, old: &Settings, context: Context<'_>) -> Result<Settings, Refused> {
    let mut faults = Faults::default();
    let Ok(Members(patch)) = serde_json::from_str::<Members<'_>>(raw.get()) else {
        faults.add("", format!("must be an object, not {}", type_of(raw)));
        return Err(Refused::Faults(faults));
    };
    let touches = |name: &str| patch.iter().any(|(touched, _)| touched == name);
    // The two members that are objects are merged with what stands there.
    let metadata = serde_json::value::to_raw_value(&old.metadata).unwrap_or_default();
    let merged: Vec<String> = patch
        .iter()
        .map(|(name, value)| {
            let old = match name.as_ref() {
                "job" => Some(&*old.job.0),
                "metadata" => Some(&*metadata),
                _ => None,
            };
            format!("{}:{}", quoted(name), merge(old, value))
        })
        .collect();
    // Made of parts that were JSON.
    let merged = RawValue::from_string(format!("{{{}}}", merged.join(","))).unwrap_or_default();
    let Some(fields) = Fields::open("", &merged, &mut faults) else { return Err(Refused::Faults(faults)) };
    let draft = Draft::read(fields, context, &mut faults)?;
    for (name, absent) in [("cron", draft.cron_absent), ("job", draft.job_absent)] {
        if touches(name) && absent {
            faults.add(format!("/{name}"), "cannot be removed");
        }
    }
    let timetable = if touches("cron") || touches("timezone") {
        let zone = if touches("timezone") { draft.zone } else { old.timetable.zone().parse().ok() };
        // What was accepted once is read again as it was.
        let cron = if touches("cron") { draft.cron } else { cron::parse(old.timetable.cron()).ok() };
        cron.map(|cron| timetable(cron, zone.unwrap_or(Tz::UTC), context, &mut faults))
    } else {
        None
    };
    macro_rules! pick {
        ($name:literal, $said:expr, $old:expr) => {
            if touches($name) { $said } else { $old }
        };
    }
    let settings = Settings {
        timetable: timetable.unwrap_or_else(|| old.timetable.clone()),
        job: draft.job.unwrap_or_else(|| old.job.clone()),
        overlap: pick!("overlap", draft.overlap.unwrap_or(Overlap::Skip), old.overlap),
        catch_up: pick!("catch_up", draft.catch_up.unwrap_or(CatchUp::None), old.catch_up),
        status: pick!("status", draft.status.unwrap_or(ScheduleStatus::Active), old.status),
        description: pick!("description", draft.description, old.description.clone()),
        metadata: pick!("metadata", draft.metadata, old.metadata.clone()),
    };
    faults.result(Some(settings)).map_err(Refused::Faults)
}

fn timetable(cron: Pattern, zone: Tz, context: Context<'_>, faults: &mut Faults) -> Timetable {
    let timetable = Timetable::new(cron, zone);
    if timetable.next_after(context.now).is_none() {
        faults.add("/cron", "names no day that will ever come");
    }
    timetable
}

/// What was said, field by field.
struct Draft {
    cron: Option<Pattern>,
    cron_absent: bool,
    zone: Option<Tz>,
    job: Option<Template>,
    job_absent: bool,
    overlap: Option<Overlap>,
    catch_up: Option<CatchUp>,
    status: Option<ScheduleStatus>,
    description: String,
    metadata: BTreeMap<String, String>,
}

impl Draft {
    fn read(mut fields: Fields<'_>, context: Context<'_>, faults: &mut Faults) -> Result<Self, Refused> {
        let before = faults.len();
        let cron = parse_cron(&mut fields, faults);
        let cron_absent = cron.is_none() && faults.len() == before;
        let before = faults.len();
        let job = parse_job(&mut fields, context, faults)?;
        let draft = Self {
            cron,
            cron_absent,
            job_absent: job.is_none() && faults.len() == before,
            job,
            zone: parse_zone(&mut fields, faults),
            overlap: fields.word("overlap", &Overlap::WORDS, faults),
            catch_up: fields.word("catch_up", &CatchUp::WORDS, faults),
            status: fields.word("status", &ScheduleStatus::WORDS, faults),
            description: fields.string("description", 0..=DESCRIPTION_MAX, faults).unwrap_or_default(),
            metadata: fields.strings("metadata", faults).unwrap_or_default(),
        };
        fields.finish(faults);
        Ok(draft)
    }
}

fn parse_cron(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<Pattern> {
    let text = fields.string("cron", 0..=cron::PATTERN_MAX_BYTES, faults)?;
    cron::parse(&text).map_err(|fault| fields.fault("cron", fault, faults)).ok()
}

fn parse_zone(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<Tz> {
    let text = fields.string("timezone", 0..=ZONE_MAX, faults)?;
    let zone = text.parse::<Tz>().ok();
    if zone.is_none() {
        fields.fault(
            "timezone",
            "must be a name of the IANA time zone database, as in \"Europe/Berlin\" or \"UTC\"",
            faults,
        );
    }
    zone
}

fn parse_job(
    fields: &mut Fields<'_>,
    context: Context<'_>,
    faults: &mut Faults,
) -> Result<Option<Template>, Refused> {
    let Some(raw) = fields.raw("job") else { return Ok(None) };
    match template::read(&fields.pointer("job"), raw, context, None) {
        Ok(_) => Ok(Some(Template(raw.to_owned()))),
        Err(Refused::Faults(found)) => {
            found.into_vec().into_iter().for_each(|fault| faults.add(fault.pointer, fault.detail));
            Ok(None)
        }
        Err(too_large) => Err(too_large),
    }
}

#[cfg(test)]
#[path = "new_schedule_tests.rs"]
mod tests;
