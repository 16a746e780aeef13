//! [pure] An event as the API shows it.
//!
//! Called by `http::publish`, `http::events` and the streams. The data is written as it came, byte for byte; the time is
//! the one that receivers are told.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::NewEvent;
use super::read_store::StoredEvent;
use crate::clock::{Timestamp, millis};
use crate::ids::EventId;

/// The JSON of an event.
#[derive(Debug, Serialize)]
pub struct EventView<'a> {
    id: EventId,
    #[serde(rename = "type")]
    event_type: &'a str,
    timestamp: &'a str,
    data: &'a RawValue,
    ordering_key: Option<&'a str>,
    metadata: &'a BTreeMap<String, String>,
    #[serde(with = "millis")]
    created_at: Timestamp,
}

static NO_METADATA: BTreeMap<String, String> = BTreeMap::new();

/// Of an event that is being published.
pub fn fresh(event: &NewEvent) -> String {
    // It was JSON when it was parsed.
    let data = serde_json::from_str(&event.data).unwrap_or(RawValue::NULL);
    write(event.id, &event.event_type, data, event.ordering_key.as_deref(), event.metadata.as_ref())
}

/// Of an event that was read.
pub fn stored(event: &StoredEvent) -> String {
    write(event.id, &event.event_type, &event.data, event.ordering_key.as_deref(), event.metadata.as_ref())
}

fn write(
    id: EventId,
    event_type: &str,
    data: &RawValue,
    ordering_key: Option<&str>,
    metadata: Option<&BTreeMap<String, String>>,
) -> String {
    let created_at = id.created_at();
    let view = EventView {
        id,
        event_type,
        timestamp: &crate::clock::rfc3339(created_at),
        data,
        ordering_key,
        metadata: metadata.unwrap_or(&NO_METADATA),
        created_at,
    };
    // Serializing strings and validated raw JSON into memory cannot fail.
    serde_json::to_string(&view).unwrap_or_default()
}
