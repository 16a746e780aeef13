//! [pure] A request's text becomes a `NewEvent`, or a list of faults. Next: `events::store`.
//!
//! Called by `http::publish`. Behind this file nothing about an event is checked twice.

use serde_json::value::RawValue;

use super::NewEvent;
use crate::fields::{Faults, Fields};
use crate::ids::{EventId, TenantId};
use crate::topics::{TOPIC_MAX_BYTES, parse_event_type};

/// An event's data is at most this long, as JSON text.
pub const DATA_MAX_BYTES: usize = 256 * 1024;
/// A batch has at most this many events.
pub const BATCH_MAX: usize = 1000;
const KEY_MAX: usize = 255;

/// Why an event was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The data alone is longer than the limit.
    DataTooLarge,
    /// These fields are wrong.
    Faults(Faults),
}

/// An event with what is not kept with it.
#[derive(Debug, Clone)]
pub struct Publish {
    /// The event.
    pub event: NewEvent,
    /// One that was seen within 24 h brings the first event back.
    pub dedup_key: Option<String>,
}

/// Reads one event at the pointer `at`. `traceparent` comes with the request's headers.
/// # Errors
/// [`Refused`], with every fault that was found.
pub fn parse(
    at: &str,
    raw: &RawValue,
    tenant: TenantId,
    traceparent: Option<&str>,
) -> Result<Publish, Refused> {
    let mut faults = Faults::default();
    let Some(mut fields) = Fields::open(at, raw, &mut faults) else {
        return Err(Refused::Faults(faults));
    };
    let event_type = parse_type(&mut fields, &mut faults);
    let data = fields.raw_or_null("data");
    match data {
        None => fields.fault("data", "is missing; send any JSON value", &mut faults),
        Some(data) if data.get().len() > DATA_MAX_BYTES => return Err(Refused::DataTooLarge),
        Some(_) => {}
    }
    let ordering_key = fields.string("ordering_key", 1..=KEY_MAX, &mut faults);
    let dedup_key = fields.string("dedup_key", 1..=KEY_MAX, &mut faults);
    let metadata = fields.strings("metadata", &mut faults).filter(|metadata| !metadata.is_empty());
    fields.finish(&mut faults);
    let publish = event_type.zip(data).map(|(event_type, data)| Publish {
        event: NewEvent {
            tenant,
            id: EventId::fresh(),
            event_type,
            data: data.get().to_owned(),
            metadata,
            ordering_key,
            traceparent: traceparent.map(str::to_owned),
            callback: None,
        },
        dedup_key,
    });
    faults.result(publish).map_err(Refused::Faults)
}

/// What begins so is published by Ringback itself.
const OURS: [&str; 4] = ["job.", "endpoint.", "delivery.", "ringback."];

fn parse_type(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<String> {
    let before = faults.clone();
    let Some(text) = fields.string("type", 1..=TOPIC_MAX_BYTES, faults) else {
        if *faults == before {
            fields.fault("type", "is missing; name the topic, as in \"order.paid\"", faults);
        }
        return None;
    };
    if let Err(error) = parse_event_type(&text) {
        fields.fault("type", error.to_string(), faults);
        return None;
    }
    if OURS.iter().any(|prefix| text.starts_with(prefix)) {
        let detail = "begins with job., endpoint., delivery. or ringback., which Ringback keeps to itself";
        fields.fault("type", detail, faults);
        return None;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Publish, Vec<String>> {
        let raw: Box<RawValue> = serde_json::from_str(text).expect("JSON");
        parse("", &raw, TenantId::fresh(), None).map_err(|refused| match refused {
            Refused::DataTooLarge => vec!["too large".to_owned()],
            Refused::Faults(faults) => faults.into_vec().into_iter().map(|fault| fault.pointer).collect(),
        })
    }

    #[test]
    fn data_is_any_json_and_kept_as_it_came() {
        for data in ["null", "[1,  2.0]", "\"x\"", "{\"b\":1,\"a\":12345678901234567890}"] {
            let publish = read(&format!(r#"{{"type": "order.paid", "data": {data}}}"#)).expect("fits");
            assert_eq!(publish.event.data, data);
        }
    }

    #[test]
    fn every_fault_has_its_pointer() {
        let faults = read(r#"{"type": "job.succeeded", "dedup_key": "", "dtaa": 1}"#).expect_err("refused");
        assert_eq!(faults, ["/type", "/data", "/dedup_key", "/dtaa"]);
    }
}
