//! [pure] The type of an event that someone outside publishes.
//!
//! Called by `new_event`. The shape is `topics`' business; here stands what only a publisher has to know: the length,
//! and which types are ours. The same rules stand once more in SQL (`ringback.check_event_type`).
//!
//! Invariant: nobody outside can publish what looks like word of ours, such as the end of a job.

use crate::topics::{TopicError, parse_event_type};

/// A type is at most this long.
pub const TYPE_MAX_BYTES: usize = 128;
/// Types that begin with one of these are published by Ringback alone.
pub const RESERVED: [&str; 4] = ["job.", "endpoint.", "delivery.", "ringback."];

/// A type that a publisher may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventType(String);

/// Why a text is no type that a publisher may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventTypeError {
    /// Longer than allowed, or empty.
    #[error("must be 1 to {TYPE_MAX_BYTES} bytes long")]
    Length,
    /// It is none.
    #[error(transparent)]
    Topic(TopicError),
    /// It is ours.
    #[error(
        "types that begin with {0} are Ringback's own, so that receivers can trust them; choose another name"
    )]
    Reserved(&'static str),
}

impl EventType {
    /// Reads a type such as `order.paid`.
    /// # Errors
    /// [`EventTypeError`].
    pub fn parse(text: &str) -> Result<Self, EventTypeError> {
        if !(1..=TYPE_MAX_BYTES).contains(&text.len()) {
            return Err(EventTypeError::Length);
        }
        parse_event_type(text).map_err(EventTypeError::Topic)?;
        match RESERVED.into_iter().find(|prefix| text.starts_with(prefix)) {
            Some(prefix) => Err(EventTypeError::Reserved(prefix)),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<EventType> for String {
    fn from(event_type: EventType) -> Self {
        event_type.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_type_or_ours_is_refused() {
        for text in ["order", "order.paid", "Order_2.paid-late", "job", "jobs.done", "my.job.failed"] {
            assert_eq!(EventType::parse(text).as_ref().map(EventType::as_str), Ok(text));
        }
        for text in ["job.succeeded", "endpoint.disabled", "delivery.x", "ringback.test"] {
            assert!(matches!(EventType::parse(text), Err(EventTypeError::Reserved(_))), "{text}");
        }
        for text in ["a..b", ".a", "a.", "a b", "order.*", "ä"] {
            assert!(matches!(EventType::parse(text), Err(EventTypeError::Topic(_))), "{text}");
        }
        assert_eq!(EventType::parse(""), Err(EventTypeError::Length));
        assert!(EventType::parse(&"a".repeat(TYPE_MAX_BYTES)).is_ok());
        assert_eq!(EventType::parse(&"a".repeat(TYPE_MAX_BYTES + 1)), Err(EventTypeError::Length));
    }
}
