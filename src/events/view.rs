//! [pure] An event as the API shows it. Data is written as it came, byte for byte.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::clock::{Timestamp, millis};
use crate::ids::EventId;

/// The JSON of an event.
#[derive(Debug, Clone, Serialize)]
pub struct EventView {
    /// Which.
    pub id: EventId,
    /// Its topic.
    pub r#type: String,
    /// What happened.
    pub data: Box<RawValue>,
    /// Free strings.
    pub metadata: BTreeMap<String, String>,
    /// Events that share it are delivered in order where an endpoint asks for it.
    pub ordering_key: Option<String>,
    /// When it was published.
    #[serde(with = "millis")]
    pub timestamp: Timestamp,
    /// The same: an event never changes.
    #[serde(with = "millis")]
    pub created_at: Timestamp,
}

impl EventView {
    /// Of an event that is being published.
    pub fn of(event: &super::NewEvent) -> Self {
        Self {
            id: event.id,
            r#type: event.event_type.clone(),
            // It was cut out of JSON text that was valid.
            data: RawValue::from_string(event.data.clone()).unwrap_or_else(|_| RawValue::NULL.to_owned()),
            metadata: event.metadata.clone().unwrap_or_default(),
            ordering_key: event.ordering_key.clone(),
            timestamp: event.id.created_at(),
            created_at: event.id.created_at(),
        }
    }

    /// As text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}
