//! [pure] From a request's text to an endpoint's settings: a new endpoint, or a JSON merge patch (RFC 7396) of one.
//!
//! Called by `http::endpoints`. A patch is merged into the fields that it touches and these are read like those of a
//! new endpoint; the others are not looked at again, so an endpoint whose URL the operator forbade since can still be
//! disabled. Every fault is found, with its pointer.
//!
//! Invariant: behind this file nothing about an endpoint is checked twice; `null` in a patch means the default.

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::expression::{Filter, Transform};
use super::view::EndpointView;
use super::{DeliveryOrder, Endpoint, EndpointStatus, RateLimit, Settings, Subscription};
use crate::fields::{Faults, Fields, type_of};
use crate::receivers::{self, parse_headers, parse_retry, parse_url};
use crate::signing::SignatureKind;
use crate::target::OutboundPolicy;
use crate::topics::{PATTERNS_MAX, Pattern};

const DESCRIPTION_MAX: usize = 1000;
const IN_FLIGHT_RANGE: std::ops::RangeInclusive<i64> = 1..=1000;
const PER_S_MAX: f64 = 10_000.0;
/// One delivery in a day.
const PER_S_MIN: f64 = 1.0 / 86_400.0;
const BURST_RANGE: std::ops::RangeInclusive<i64> = 1..=100_000;

/// Reads a new endpoint.
/// # Errors
/// All faults.
pub fn parse_new(raw: &RawValue, outbound: &OutboundPolicy) -> Result<Settings, Faults> {
    let mut faults = Faults::default();
    let Some(fields) = Fields::open("", raw, &mut faults) else { return Err(faults) };
    let draft = Draft::read(fields, outbound, &mut faults);
    if draft.url_absent {
        faults.add("/url", "is missing; say where events shall be sent");
    }
    let settings = draft.url.clone().map(|url| draft.apply(Settings::new(url), |_| true));
    faults.result(settings)
}

/// Reads a merge patch of an endpoint: its settings afterwards.
/// # Errors
/// All faults.
pub fn parse_patch(
    raw: &RawValue,
    current: &Endpoint,
    outbound: &OutboundPolicy,
) -> Result<Settings, Faults> {
    let mut faults = Faults::default();
    let Ok(patch) = serde_json::from_str::<Map<String, Value>>(raw.get()) else {
        faults.add("", format!("must be an object, not {}", type_of(raw)));
        return Err(faults);
    };
    let touched: Vec<String> = patch.keys().cloned().collect();
    let touches = |name: &str| touched.iter().any(|touched| touched == name);
    let shown = serde_json::to_value(EndpointView::new(current)).unwrap_or_default();
    let merged: Map<String, Value> = patch
        .into_iter()
        .map(|(name, value)| {
            let value = merge(shown.get(&name), value);
            (name, value)
        })
        .collect();
    // A map of JSON values can always be written.
    let merged = serde_json::value::to_raw_value(&merged).unwrap_or_default();
    let Some(fields) = Fields::open("", &merged, &mut faults) else { return Err(faults) };
    let draft = Draft::read(fields, outbound, &mut faults);
    if touches("url") && draft.url_absent {
        faults.add("/url", "cannot be removed");
    }
    let settings = draft.apply(current.settings.clone(), touches);
    faults.result(Some(settings))
}

/// RFC 7396 for one member: objects are merged, everything else is replaced.
fn merge(old: Option<&Value>, patch: Value) -> Value {
    let Value::Object(patch) = patch else { return patch };
    let mut merged = match old {
        Some(Value::Object(old)) => old.clone(),
        _ => Map::new(),
    };
    for (name, value) in patch {
        if value.is_null() {
            merged.remove(&name);
        } else {
            let value = merge(merged.get(&name), value);
            merged.insert(name, value);
        }
    }
    Value::Object(merged)
}

/// What was said, field by field.
struct Draft {
    url: Option<String>,
    url_absent: bool,
    subscription: Subscription,
    description: Option<String>,
    headers: std::collections::BTreeMap<String, String>,
    metadata: std::collections::BTreeMap<String, String>,
    status: Option<EndpointStatus>,
    ordering: Option<DeliveryOrder>,
    max_in_flight: Option<u32>,
    rate_limit: Option<RateLimit>,
    timeout: Option<std::time::Duration>,
    retry: Option<receivers::RetrySpec>,
    signature: Option<SignatureKind>,
}

impl Draft {
    fn read(mut fields: Fields<'_>, outbound: &OutboundPolicy, faults: &mut Faults) -> Self {
        let before = faults.len();
        let url = parse_url(&mut fields, "url", outbound, faults);
        let draft = Self {
            url_absent: url.is_none() && faults.len() == before,
            url,
            subscription: parse_subscription(&mut fields, faults),
            description: fields.string("description", 0..=DESCRIPTION_MAX, faults),
            headers: parse_headers(&mut fields, faults),
            metadata: fields.strings("metadata", faults).unwrap_or_default(),
            status: fields.word("status", &EndpointStatus::WORDS, faults),
            ordering: fields.word("ordering", &DeliveryOrder::WORDS, faults),
            max_in_flight: fields
                .integer("max_in_flight", IN_FLIGHT_RANGE, faults)
                .and_then(|number| u32::try_from(number).ok()),
            rate_limit: parse_rate_limit(&mut fields, faults),
            timeout: fields.seconds("timeout_s", receivers::TIMEOUT_RANGE_S, faults),
            retry: parse_retry(&mut fields, faults),
            signature: fields.word("signature", &SignatureKind::WORDS, faults),
        };
        fields.finish(faults);
        draft
    }

    /// The settings with the touched fields as they were said, or as they are by default.
    fn apply(self, base: Settings, touches: impl Fn(&str) -> bool) -> Settings {
        let default = Settings::new(self.url.unwrap_or_else(|| base.url.clone()));
        let old = base.subscription;
        macro_rules! pick {
            ($name:literal, $said:expr, $old:expr) => {
                if touches($name) { $said } else { $old }
            };
        }
        Settings {
            url: pick!("url", default.url, base.url),
            subscription: Subscription {
                event_types: pick!("event_types", self.subscription.event_types, old.event_types),
                filter: pick!("filter", self.subscription.filter, old.filter),
                transform: pick!("transform", self.subscription.transform, old.transform),
            },
            description: pick!("description", self.description.unwrap_or_default(), base.description),
            headers: pick!("headers", self.headers, base.headers),
            metadata: pick!("metadata", self.metadata, base.metadata),
            status: pick!("status", self.status.unwrap_or(default.status), base.status),
            ordering: pick!("ordering", self.ordering.unwrap_or(default.ordering), base.ordering),
            max_in_flight: pick!(
                "max_in_flight",
                self.max_in_flight.unwrap_or(default.max_in_flight),
                base.max_in_flight
            ),
            rate_limit: pick!("rate_limit", self.rate_limit, base.rate_limit),
            timeout: pick!("timeout_s", self.timeout.unwrap_or(default.timeout), base.timeout),
            retry: pick!("retry", self.retry.map_or(default.retry, receivers::RetrySpec::policy), base.retry),
            signature: pick!("signature", self.signature.unwrap_or(default.signature), base.signature),
        }
    }
}

/// Reads `event_types`, `filter` and `transform`; the preview asks for these three alone.
pub fn parse_subscription(fields: &mut Fields<'_>, faults: &mut Faults) -> Subscription {
    let filter = parse_expression(fields, "filter", Filter::parse, faults);
    let transform = parse_expression(fields, "transform", Transform::parse, faults);
    Subscription { event_types: parse_event_types(fields, faults), filter, transform }
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

fn parse_expression<T>(
    fields: &mut Fields<'_>,
    name: &'static str,
    parse: impl FnOnce(&str) -> Result<T, String>,
    faults: &mut Faults,
) -> Option<T> {
    // Longer than allowed, so that the expression's own rule says the length that is allowed.
    let text = fields.string(name, 0..=usize::MAX, faults)?;
    match parse(&text) {
        Ok(expression) => Some(expression),
        Err(error) => {
            fields.fault(name, error, faults);
            None
        }
    }
}

fn parse_rate_limit(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<RateLimit> {
    let raw = fields.raw("rate_limit")?;
    let mut inner = Fields::open(fields.pointer("rate_limit"), raw, faults)?;
    let before = faults.len();
    let per_s = inner.number("per_s", PER_S_MIN..=PER_S_MAX, faults);
    if per_s.is_none() && faults.len() == before {
        inner.fault("per_s", "is missing; say how many deliveries a second", faults);
    }
    let burst = inner.integer("burst", BURST_RANGE, faults).and_then(|number| u32::try_from(number).ok());
    inner.finish(faults);
    let per_s = per_s?;
    Some(RateLimit { per_s, burst: burst.unwrap_or((per_s.ceil() as u32).max(1)) })
}

#[cfg(test)]
#[path = "new_endpoint_tests.rs"]
mod tests;
