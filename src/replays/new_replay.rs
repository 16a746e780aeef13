//! [pure] From a request's text to what a replay is asked for.
//!
//! Called by `http::replays`. Every fault is found, with its pointer. Whether there is such an endpoint is asked elsewhere.
//!
//! Invariant: behind this file the window is not empty, and no part of it lies in the future.

use serde_json::value::RawValue;

use super::{Ask, What};
use crate::clock::Timestamp;
use crate::fields::{Faults, Fields, type_of};
use crate::ids::EndpointId;
use crate::topics::{PATTERNS_MAX, Pattern};

/// So many deliveries a second, where nothing else is said.
pub const PER_S_DEFAULT: f64 = 500.0;
const PER_S_MAX: f64 = 10_000.0;
/// One delivery in a day.
const PER_S_MIN: f64 = 1.0 / 86_400.0;
const EXAMPLE: &str = "must be an RFC 3339 time, as in 2030-01-31T12:00:00Z";

/// A request.
#[derive(Debug, Clone)]
pub struct Order {
    /// What is asked for.
    pub ask: Ask,
    /// Only count.
    pub dry_run: bool,
}

/// Reads a request.
/// # Errors
/// All faults.
pub fn parse(raw: &RawValue, now: Timestamp) -> Result<Order, Faults> {
    let mut faults = Faults::default();
    let order = Fields::open("", raw, &mut faults).and_then(|fields| read(fields, now, &mut faults));
    faults.result(order)
}

fn read(mut fields: Fields<'_>, now: Timestamp, faults: &mut Faults) -> Option<Order> {
    let endpoint = parse_endpoint(&mut fields, faults);
    let event_types = parse_event_types(&mut fields, faults);
    let what = required(&mut fields, "status", "say failed, all or missing", faults, |fields, faults| {
        fields.word("status", &What::WORDS, faults)
    });
    let since = required(&mut fields, "since", "say from which time on", faults, |f, faults| {
        time(f, "since", faults)
    });
    let until = time(&mut fields, "until", faults).unwrap_or(now).min(now);
    if since.is_some_and(|since| since >= until) {
        fields.fault("since", "must be before until, which is now at the latest", faults);
    }
    let per_s = fields.number("per_s", PER_S_MIN..=PER_S_MAX, faults).unwrap_or(PER_S_DEFAULT);
    let dry_run = fields.boolean("dry_run", faults).unwrap_or(false);
    fields.finish(faults);
    Some(Order { ask: Ask { endpoint, event_types, what: what?, since: since?, until, per_s }, dry_run })
}

/// What `read` finds; a fault, if it finds neither a value nor a fault.
fn required<T>(
    fields: &mut Fields<'_>,
    name: &str,
    advice: &str,
    faults: &mut Faults,
    read: impl FnOnce(&mut Fields<'_>, &mut Faults) -> Option<T>,
) -> Option<T> {
    let before = faults.len();
    let value = read(fields, faults);
    if value.is_none() && faults.len() == before {
        fields.fault(name, format!("is missing; {advice}"), faults);
    }
    value
}

fn parse_endpoint(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<EndpointId> {
    let text = fields.string("endpoint_id", 0..=64, faults)?;
    let id = text.parse().ok();
    if id.is_none() {
        fields.fault("endpoint_id", "must be an id of the form ep_…", faults);
    }
    id
}

fn parse_event_types(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<Vec<Pattern>> {
    let list = fields.list("event_types", 1..=PATTERNS_MAX, faults)?;
    let at = fields.pointer("event_types");
    let mut patterns = Vec::with_capacity(list.len());
    for (place, raw) in list.iter().enumerate() {
        let Ok(text) = serde_json::from_str::<String>(raw.get()) else {
            faults.add(format!("{at}/{place}"), format!("must be a string, not {}", type_of(raw)));
            continue;
        };
        match Pattern::parse(&text) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => faults.add(format!("{at}/{place}"), error.to_string()),
        }
    }
    Some(patterns)
}

fn time(fields: &mut Fields<'_>, name: &'static str, faults: &mut Faults) -> Option<Timestamp> {
    let text = fields.string(name, 0..=64, faults)?;
    // The parser takes a space for the `T` as well.
    let strict = matches!(text.as_bytes().get(10), Some(b'T' | b't'));
    let at = chrono::DateTime::parse_from_rfc3339(&text).ok().filter(|_| strict);
    if at.is_none() {
        fields.fault(name, EXAMPLE, faults);
    }
    at.map(|at| at.to_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        chrono::DateTime::from_timestamp(1_800_000_000, 0).expect("a time")
    }

    fn parsed(text: &str) -> Result<Order, Vec<String>> {
        let raw: Box<RawValue> = serde_json::from_str(text).expect("JSON");
        parse(&raw, now())
            .map_err(|faults| faults.into_vec().into_iter().map(|fault| fault.pointer).collect())
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let order =
            parsed(r#"{"status": "failed", "since": "2026-01-01T00:00:00+02:00"}"#).expect("an order");
        assert_eq!((order.ask.what, order.ask.until, order.dry_run), (What::Failed, now(), false));
        assert_eq!(order.ask.since.to_rfc3339(), "2025-12-31T22:00:00+00:00");
        assert!(order.ask.endpoint.is_none() && order.ask.event_types.is_none());
        assert!((order.ask.per_s - PER_S_DEFAULT).abs() < f64::EPSILON);
    }

    #[test]
    fn every_fault_is_named() {
        assert_eq!(parsed("{}").expect_err("faults"), ["/status", "/since"]);
        let all = r#"{"endpoint_id": "evt_1", "event_types": ["a..b", 1], "status": "some", "since": "2026-01-01 00:00:00Z",
            "until": "2999-01-01T00:00:00Z", "per_s": 0, "dry_run": 1, "replay": true}"#;
        let pointers = [
            "/endpoint_id",
            "/event_types/0",
            "/event_types/1",
            "/status",
            "/since",
            "/per_s",
            "/dry_run",
            "/replay",
        ];
        assert_eq!(parsed(all).expect_err("faults"), pointers);
        let order =
            parsed(r#"{"status": "all", "since": "2026-01-01T00:00:00Z", "until": "2999-01-01T00:00:00Z"}"#);
        assert_eq!(order.expect("an order").ask.until, now(), "what is still to come is no replay");
        for (since, until) in [("2026-01-02T00:00:00Z", "2026-01-02T00:00:00Z"), ("2027-12-01T00:00:00Z", "")]
        {
            let until = if until.is_empty() { String::new() } else { format!(r#", "until": "{until}""#) };
            let text = format!(r#"{{"status": "all", "since": "{since}"{until}}}"#);
            assert_eq!(parsed(&text).expect_err("faults"), ["/since"], "{text}");
        }
    }
}
