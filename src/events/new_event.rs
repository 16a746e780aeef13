//! [pure] A request's text becomes an event to be published, or a list of faults. Next: `events::publish`.
//!
//! Called by `http::publish`. Behind this file nothing about an event is checked twice. The text has passed
//! `json::validate`, which bounds the depth of `data`.

use serde_json::value::RawValue;

use super::event_type::EventType;
use super::{DATA_MAX_BYTES, KEY_MAX_BYTES, NewEvent};
use crate::fields::{Faults, Fields, type_of};
use crate::ids::{EventId, TenantId};

/// An event as it was asked for.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The event, if no other has its key.
    pub event: NewEvent,
    /// An event with the same key within 24 hours takes its place.
    pub dedup_key: Option<String>,
}

/// Why an event was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The data alone is longer than the limit.
    DataTooLarge,
    /// These fields are wrong.
    Faults(Faults),
}

/// Reads one event at the pointer `at`. `traceparent` comes with the request's headers.
/// # Errors
/// [`Refused`], with every fault that was found.
pub fn parse(
    at: &str,
    raw: &RawValue,
    tenant: TenantId,
    traceparent: Option<&str>,
) -> Result<Draft, Refused> {
    let mut faults = Faults::default();
    let Some(mut fields) = Fields::open(at, raw, &mut faults) else {
        return Err(Refused::Faults(faults));
    };
    let event_type = parse_type(&mut fields, &mut faults);
    let data = parse_data(&mut fields, &mut faults)?;
    let ordering_key = fields.string("ordering_key", 1..=KEY_MAX_BYTES, &mut faults);
    let dedup_key = fields.string("dedup_key", 1..=KEY_MAX_BYTES, &mut faults);
    let metadata = fields.strings("metadata", &mut faults).filter(|metadata| !metadata.is_empty());
    fields.finish(&mut faults);
    let draft = event_type.zip(data).map(|(event_type, data)| Draft {
        event: NewEvent {
            tenant,
            id: EventId::fresh(),
            event_type: event_type.into(),
            data: data.get().to_owned(),
            metadata,
            ordering_key,
            traceparent: traceparent.map(str::to_owned),
            callback: None,
        },
        dedup_key,
    });
    faults.result(draft).map_err(Refused::Faults)
}

fn parse_type(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<EventType> {
    let Some(raw) = fields.raw("type") else {
        fields.fault("type", "is missing; name the topic, as in \"order.paid\"", faults);
        return None;
    };
    let Ok(text) = serde_json::from_str::<String>(raw.get()) else {
        fields.fault("type", format!("must be a string, not {}", type_of(raw)), faults);
        return None;
    };
    match EventType::parse(&text) {
        Ok(event_type) => Some(event_type),
        Err(error) => {
            fields.fault("type", error.to_string(), faults);
            None
        }
    }
}

fn parse_data<'a>(fields: &mut Fields<'a>, faults: &mut Faults) -> Result<Option<&'a RawValue>, Refused> {
    let data = fields.raw_or_null("data");
    match data {
        None => fields.fault("data", "is missing; any JSON value will do, null included", faults),
        Some(raw) if raw.get().len() > DATA_MAX_BYTES => return Err(Refused::DataTooLarge),
        Some(_) => {}
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Draft, Refused> {
        let raw: Box<RawValue> = serde_json::from_str(text).expect("JSON");
        parse("/events/3", &raw, TenantId::fresh(), None)
    }

    fn pointers(text: &str) -> Vec<String> {
        match parsed(text) {
            Err(Refused::Faults(faults)) => {
                faults.into_vec().into_iter().map(|fault| fault.pointer).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn data_keeps_its_text_whatever_it_is() {
        for data in ["null", "0", r#""x""#, "[]", r#"{"b":1.0,  "a":12345678901234567890}"#] {
            let draft = parsed(&format!(r#"{{"type":"order.paid","data":{data}}}"#)).expect("an event");
            assert_eq!(draft.event.data, data);
        }
    }

    #[test]
    fn everything_that_can_be_said_arrives() {
        let draft =
            parsed(r#"{"type":"a.b","data":1,"ordering_key":"k","dedup_key":"d","metadata":{"m":"1"}}"#)
                .expect("an event");
        assert_eq!(draft.event.event_type, "a.b");
        assert_eq!(draft.event.ordering_key.as_deref(), Some("k"));
        assert_eq!(draft.dedup_key.as_deref(), Some("d"));
        assert_eq!(draft.event.metadata.expect("metadata")["m"], "1");
    }

    #[test]
    fn every_fault_is_found_with_its_pointer() {
        assert_eq!(pointers("{}"), ["/events/3/type", "/events/3/data"]);
        assert_eq!(pointers("[]"), ["/events/3"]);
        assert_eq!(
            pointers(
                r#"{"type":"job.failed","data":1,"ordering_key":"","dedup_key":7,"metadata":{"a":1},"id":"x"}"#
            ),
            [
                "/events/3/type",
                "/events/3/ordering_key",
                "/events/3/dedup_key",
                "/events/3/metadata/a",
                "/events/3/id"
            ]
        );
    }

    #[test]
    fn data_has_a_limit_of_its_own() {
        let of = |length: usize| parsed(&format!(r#"{{"type":"a","data":"{}"}}"#, "x".repeat(length - 2)));
        assert!(of(DATA_MAX_BYTES).is_ok());
        assert_eq!(of(DATA_MAX_BYTES + 1).err(), Some(Refused::DataTooLarge));
    }
}
