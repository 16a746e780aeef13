//! [pure] Stop 1 of a job's path: a request's text becomes a `NewJob`, or a list of faults. Next: `jobs::store::accept`.
//!
//! Called by `http::jobs`. Every field of the contract is known here; one whose behaviour is not built yet is refused
//! by name, never silently dropped. Behind this file nothing about a job is checked twice.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::value::RawValue;

use super::{
    AFTER_MAX, After, AfterFailure, Callback, CallbackOptions, EndStatus, INPUT_MAX_BYTES, Job, NAME_MAX,
    is_name,
};
use super::{command_input, email_input, http_input, sql_input};
use crate::backoff::RetryPolicy;
use crate::clock::Timestamp;
use crate::fields::{Faults, Fields};
use crate::ids::{JobId, TenantId};
use crate::operator::Operator;
use crate::receivers::{self, Backoff, RetrySpec};
use crate::signing::SigningSecret;
use crate::target::OutboundPolicy;

const KEY_MAX: usize = 255;
const TIMEOUT_DEFAULT: Duration = Duration::from_mins(5);
const TIMEOUT_RANGE_S: std::ops::RangeInclusive<f64> = 0.1..=86_400.0;
/// The farthest that a job may be put off: ten years.
const DELAY_MAX_S: f64 = 315_576_000.0;

/// What the parser must know beside the text.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Who asks.
    pub tenant: TenantId,
    /// The time of the request.
    pub now: Timestamp,
    /// Which callback URLs are allowed.
    pub outbound: &'a OutboundPolicy,
    /// What the built-in kinds can use, where this process runs them; another one's file may be another.
    pub operator: Option<&'a Operator>,
}

/// Why a job was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The input alone is longer than the limit.
    InputTooLarge,
    /// These fields are wrong.
    Faults(Faults),
}

/// Reads one job at the pointer `at`. `traceparent` comes with the request's headers.
/// # Errors
/// [`Refused`], with every fault that was found.
pub fn parse(
    at: &str,
    raw: &RawValue,
    context: Context<'_>,
    traceparent: Option<&str>,
) -> Result<Job, Refused> {
    let mut faults = Faults::default();
    let job = Fields::open(at, raw, &mut faults)
        .map(|fields| parse_fields(fields, context, traceparent, &mut faults));
    match job {
        Some(Err(TooLarge)) => Err(Refused::InputTooLarge),
        Some(Ok(job)) => faults.result(job).map_err(Refused::Faults),
        None => Err(Refused::Faults(faults)),
    }
}

struct TooLarge;

fn parse_fields(
    mut fields: Fields<'_>,
    context: Context<'_>,
    traceparent: Option<&str>,
    faults: &mut Faults,
) -> Result<Option<Job>, TooLarge> {
    let kind = parse_kind(&mut fields, faults);
    let input = parse_input(&mut fields)?;
    check_input(&fields, kind.as_deref(), input, context, faults);
    let callback = parse_callback(&mut fields, context.outbound, faults);
    let queue = parse_name(&mut fields, "queue", faults);
    let priority = fields.integer("priority", -100..=100, faults);
    let run_at = parse_run_at(&mut fields, context.now, faults);
    let timeout = fields.seconds("timeout_s", TIMEOUT_RANGE_S, faults);
    let max_attempts = fields.integer("max_attempts", 1..=1000, faults);
    let backoff = parse_backoff(&mut fields, faults);
    let unique_key = fields.string("unique_key", 1..=KEY_MAX, faults);
    let metadata = fields.strings("metadata", faults).filter(|metadata| !metadata.is_empty());
    let ordering_key = fields.string("ordering_key", 1..=KEY_MAX, faults);
    let after = parse_after(&mut fields, faults);
    fields.finish(faults);
    let retry = retry_policy(backoff, max_attempts);
    let id = JobId::fresh();
    Ok(kind.map(|kind| Job {
        tenant: context.tenant,
        id,
        kind,
        queue: queue.unwrap_or_else(|| "default".to_owned()),
        priority: priority.unwrap_or(0) as i16,
        // To the millisecond the time of its acceptance, so that neither seems to be before the other.
        run_at: run_at.unwrap_or(id.created_at()),
        timeout: timeout.unwrap_or(TIMEOUT_DEFAULT),
        backoff_json: backoff.and_then(|_| serde_json::to_string(&RetrySpec::from(retry)).ok()),
        retry,
        unique_key,
        ordering_key,
        after,
        input: input.map_or_else(|| RawValue::NULL.to_owned(), ToOwned::to_owned),
        metadata,
        callback,
        traceparent: traceparent.map(str::to_owned),
        scheduled: None,
    }))
}

/// What a built-in kind would refuse is refused now.
fn check_input(
    fields: &Fields<'_>,
    kind: Option<&str>,
    input: Option<&RawValue>,
    context: Context<'_>,
    faults: &mut Faults,
) {
    let (at, operator) = (fields.pointer("input"), context.operator);
    let missing = match kind {
        Some("http") => "is missing; say at least which url to call",
        Some("command") => "is missing; say at least the name of a command",
        Some("sql") => "is missing; say at least source and statement",
        Some("email") => "is missing; say at least to, subject and text",
        _ => return,
    };
    let Some(raw) = input else {
        fields.fault("input", missing, faults);
        return;
    };
    match kind {
        Some("http") => http_input::check(&at, raw, context.outbound, faults),
        Some("command") => {
            command_input::parse(&at, raw, operator.map(|operator| &operator.commands), faults);
        }
        Some("sql") => {
            sql_input::parse(&at, raw, operator.map(|operator| &operator.sources), faults);
        }
        _ => {
            email_input::parse(&at, raw, operator.map(|operator| operator.smtp.as_ref()), faults);
        }
    }
}

fn parse_kind(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<String> {
    let before = faults.clone();
    let kind = parse_name(fields, "kind", faults);
    if kind.is_none() && *faults == before {
        fields.fault("kind", "is missing; say what is to be done, as in \"http\"", faults);
    }
    kind
}

fn parse_name(fields: &mut Fields<'_>, name: &'static str, faults: &mut Faults) -> Option<String> {
    let text = fields.string(name, 1..=NAME_MAX, faults)?;
    if is_name(&text) {
        return Some(text);
    }
    fields.fault(name, "must be letters, digits, '_', '-' and '.' only", faults);
    None
}

fn parse_input<'a>(fields: &mut Fields<'a>) -> Result<Option<&'a RawValue>, TooLarge> {
    match fields.raw_or_null("input") {
        Some(raw) if raw.get().len() > INPUT_MAX_BYTES => Err(TooLarge),
        other => Ok(other),
    }
}

fn parse_run_at(fields: &mut Fields<'_>, now: Timestamp, faults: &mut Faults) -> Option<Timestamp> {
    let text = fields.string("run_at", 1..=64, faults);
    let delay = fields.seconds("delay_s", 0.0..=DELAY_MAX_S, faults);
    if text.is_some() && delay.is_some() {
        fields.fault("delay_s", "at most one of run_at and delay_s may be given", faults);
        return None;
    }
    if let Some(delay) = delay {
        return Some(now + delay);
    }
    let text = text?;
    let Ok(at) = chrono::DateTime::parse_from_rfc3339(&text) else {
        fields.fault("run_at", "must be an RFC 3339 time, as in 2030-01-31T12:00:00Z", faults);
        return None;
    };
    let at = at.to_utc();
    if at > now + Duration::from_secs_f64(DELAY_MAX_S) {
        fields.fault("run_at", "must be within ten years", faults);
        return None;
    }
    // A time in the past means now; it must not lend the job a place before those that came earlier.
    Some(at.max(now))
}

/// Whether the jobs are there is asked where the database is (`jobs::after_store`), under the same pointers.
fn parse_after(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<After> {
    let list = fields.list("after", 0..=AFTER_MAX, faults);
    let on_failure =
        fields.word("after_failure", &AfterFailure::WORDS, faults).unwrap_or(AfterFailure::Cancel);
    let (mut jobs, mut positions, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    for (index, raw) in list.unwrap_or_default().into_iter().enumerate() {
        match serde_json::from_str::<JobId>(raw.get()) {
            Ok(id) if seen.insert(id) => {
                jobs.push(id);
                positions.push(index);
            }
            Ok(_) => {}
            Err(_) => {
                let at = format!("{}/{index}", fields.pointer("after"));
                faults.add(at, "must be the id of a job, as in job_01h2xcejqtf2nbrexx3vqjhp41");
            }
        }
    }
    (!jobs.is_empty()).then_some(After { jobs, positions, on_failure })
}

fn parse_backoff(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<Backoff> {
    let raw = fields.raw("backoff")?;
    let mut inner = Fields::open(fields.pointer("backoff"), raw, faults)?;
    let backoff = Backoff::read(&mut inner, faults);
    inner.finish(faults);
    Some(backoff)
}

fn retry_policy(backoff: Option<Backoff>, max_attempts: Option<i64>) -> RetryPolicy {
    let base = match max_attempts.and_then(|number| u32::try_from(number).ok()) {
        Some(max_attempts) => RetryPolicy { max_attempts, ..RetryPolicy::JOBS },
        None => RetryPolicy::JOBS,
    };
    backoff.map_or(base, |backoff| backoff.on(base))
}

fn parse_callback(
    fields: &mut Fields<'_>,
    outbound: &OutboundPolicy,
    faults: &mut Faults,
) -> Option<Callback> {
    let url = receivers::parse_url(fields, "callback_url", outbound, faults);
    let raw = fields.raw("callback");
    let Some(raw) = raw else {
        return url.map(|url| Callback { url, options: CallbackOptions::default() });
    };
    if url.is_some() {
        fields.fault("callback", "at most one of callback_url and callback may be given", faults);
    }
    let mut inner = Fields::open(fields.pointer("callback"), raw, faults)?;
    let before = faults.clone();
    let url = receivers::parse_url(&mut inner, "url", outbound, faults);
    if url.is_none() && *faults == before {
        inner.fault("url", "is missing", faults);
    }
    let options = CallbackOptions {
        headers: receivers::parse_headers(&mut inner, faults),
        on: parse_on(&mut inner, faults),
        secret: parse_secret(&mut inner, faults),
        retry: receivers::parse_retry(&mut inner, faults),
        timeout_s: inner.number("timeout_s", receivers::TIMEOUT_RANGE_S, faults),
    };
    inner.finish(faults);
    url.map(|url| Callback { url, options })
}

fn parse_on(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<Vec<EndStatus>> {
    let list = fields.list("on", 1..=3, faults)?;
    let mut on = Vec::new();
    for (index, raw) in list.iter().enumerate() {
        match serde_json::from_str::<EndStatus>(raw.get()) {
            Ok(end) => on.push(end),
            Err(_) => faults.add(
                format!("{}/{index}", fields.pointer("on")),
                "must be one of: succeeded, failed, cancelled",
            ),
        }
    }
    Some(on)
}

fn parse_secret(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<String> {
    let text = fields.string("secret", 1..=200, faults)?;
    if text.parse::<SigningSecret>().is_err() {
        fields.fault("secret", "must be whsec_ and base64 of 24 to 64 bytes", faults);
        return None;
    }
    Some(text)
}
