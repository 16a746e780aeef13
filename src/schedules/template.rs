//! [pure] The job of a schedule: the body of a `POST /v1/jobs`, less what the schedule itself decides.
//!
//! Called by `new_schedule` to check it, by `fire` and `change` to make a job of it, and by `view` to show it.

use serde_json::value::RawValue;

use super::merge::quoted;
use super::{Schedule, Template};
use crate::clock::Timestamp;
use crate::fields::{Faults, Fields, Members};
use crate::jobs::new_job::{self, Context, Refused};
use crate::jobs::{Job, Scheduled};

/// What may not be said, and why.
const REFUSED: [(&str, &str); 5] = [
    ("run_at", "may not be given: the schedule says when the job runs"),
    ("delay_s", "may not be given: the schedule says when the job runs"),
    ("unique_key", "may not be given: \"overlap\" says whether a job runs beside one that is not finished"),
    ("after", "may not be given: a job of a schedule waits for no others"),
    ("after_failure", "may not be given: a job of a schedule waits for no others"),
];
/// What is never shown of a callback.
const HIDDEN: [&str; 2] = ["headers", "secret"];

/// Reads the text at the pointer `at` as a job of today.
/// # Errors
/// [`Refused`], with every fault.
pub fn read(
    at: &str,
    raw: &RawValue,
    context: Context<'_>,
    traceparent: Option<&str>,
) -> Result<Job, Refused> {
    let mut faults = Faults::default();
    if let Some(mut fields) = Fields::open(at, raw, &mut Faults::default()) {
        for (name, why) in REFUSED {
            if fields.raw_or_null(name).is_some() {
                fields.fault(name, why, &mut faults);
            }
        }
    }
    match new_job::parse(at, raw, context, traceparent) {
        Ok(job) => faults.result(Some(job)).map_err(Refused::Faults),
        Err(Refused::Faults(found)) => {
            let own: Vec<String> = REFUSED.iter().map(|(name, _)| format!("{at}/{name}")).collect();
            let others = found.into_vec().into_iter().filter(|fault| !own.contains(&fault.pointer));
            others.for_each(|fault| faults.add(fault.pointer, fault.detail));
            Err(Refused::Faults(faults))
        }
        Err(too_large) => Err(too_large),
    }
}

/// The job of one time, or of a trigger by hand.
/// # Errors
/// A sentence: what was accepted once is not any more.
pub fn job_of(
    schedule: &Schedule,
    scheduled_for: Option<Timestamp>,
    context: Context<'_>,
    traceparent: Option<&str>,
) -> Result<Job, Refused> {
    let mut job = read("/job", &schedule.settings.job.0, context, traceparent)?;
    // The database's time: by its clock the job is ready now.
    job.run_at = job.run_at.min(context.now);
    job.scheduled = Some(Scheduled { by: schedule.id, at: scheduled_for });
    Ok(job)
}

/// The text without the callback's secret and headers.
pub fn shown(template: &Template) -> String {
    let text = template.0.get();
    let Ok(Members(members)) = serde_json::from_str::<Members<'_>>(text) else { return text.to_owned() };
    let parts: Vec<String> = members
        .iter()
        .map(|(name, value)| {
            let value = if name == "callback" { without_hidden(value) } else { value.get().to_owned() };
            format!("{}:{value}", quoted(name))
        })
        .collect();
    format!("{{{}}}", parts.join(","))
}

fn without_hidden(callback: &RawValue) -> String {
    let Ok(Members(members)) = serde_json::from_str::<Members<'_>>(callback.get()) else {
        return callback.get().to_owned();
    };
    let parts: Vec<String> = members
        .iter()
        .filter(|(name, _)| !HIDDEN.contains(&name.as_ref()))
        .map(|(name, value)| format!("{}:{}", quoted(name), value.get()))
        .collect();
    format!("{{{}}}", parts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callbacks_secrets_are_not_shown_and_the_rest_keeps_its_bytes() {
        let text = r#"{"kind":"x","input":{"n": 1.0},"callback":{"url":"https://a.example/","headers":{"x-key":"k"},"secret":"whsec_x","on":["failed"]}}"#;
        let template = Template(RawValue::from_string(text.to_owned()).expect("JSON"));
        let wanted =
            r#"{"kind":"x","input":{"n": 1.0},"callback":{"url":"https://a.example/","on":["failed"]}}"#;
        assert_eq!(shown(&template), wanted);
        assert_eq!(format!("{template:?}"), format!("[a job of {} bytes]", text.len()));
    }
}
