//! [pure] Stop 8 of a job's path: a delivery becomes headers and the exact bytes of a body, signed. Next: `outbound`.
//!
//! As Standard Webhooks 1.0 says: `webhook-id` is the event's id and the same on every try and replay,
//! `webhook-timestamp` is this try's, the body's bytes never change. Called by `engine::dispatch`.
//!
//! Invariant: the signed bytes are the sent bytes, and `data` stands in them byte for byte as it was accepted.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};

use crate::clock::{Timestamp, rfc3339};
use crate::ids::{DeliveryId, EventId};
use crate::signing::{SigningKey, sign};

/// How we introduce ourselves.
pub const USER_AGENT_TEXT: &str = concat!("Ringback/", env!("CARGO_PKG_VERSION"));

/// The body that tells of an event.
pub fn body(event: EventId, event_type: &str, data: &[u8]) -> Bytes {
    let timestamp = rfc3339(event.created_at());
    let mut body = Vec::with_capacity(data.len() + event_type.len() + timestamp.len() + 40);
    // A type is letters, digits, '_', '-' and '.', so it needs no escape.
    body.extend_from_slice(br#"{"type":""#);
    body.extend_from_slice(event_type.as_bytes());
    body.extend_from_slice(br#"","timestamp":""#);
    body.extend_from_slice(timestamp.as_bytes());
    body.extend_from_slice(br#"","data":"#);
    body.extend_from_slice(data);
    body.push(b'}');
    Bytes::from(body)
}

/// What the headers of one try tell.
#[derive(Debug)]
pub struct Envelope<'a> {
    /// What is told.
    pub event: EventId,
    /// By which delivery.
    pub delivery: DeliveryId,
    /// 1, 2, …
    pub attempt: i32,
    /// The time of this try.
    pub now: Timestamp,
    /// All that sign.
    pub secrets: &'a [SigningKey],
    /// Headers of the receiver's own wish; checked when they were accepted.
    pub custom: &'a BTreeMap<String, String>,
    /// W3C trace context.
    pub traceparent: Option<&'a str>,
}

/// The headers of one try, signed over `body`.
pub fn headers(envelope: &Envelope<'_>, body: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(12);
    for (name, value) in envelope.custom {
        if let (Ok(name), Ok(value)) =
            (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str()))
        {
            headers.insert(name, value);
        }
    }
    let id = envelope.event.to_string();
    let seconds = envelope.now.timestamp();
    let signature = sign(envelope.secrets, &id, seconds, body);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_TEXT));
    let own = [
        ("webhook-id", id),
        ("webhook-timestamp", seconds.to_string()),
        ("webhook-signature", signature),
        ("ringback-delivery", envelope.delivery.to_string()),
        ("ringback-attempt", envelope.attempt.to_string()),
        ("traceparent", envelope.traceparent.unwrap_or_default().to_owned()),
    ];
    for (name, value) in own {
        if let (false, Ok(value)) = (value.is_empty(), HeaderValue::try_from(value)) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::JobId;

    #[test]
    fn the_body_holds_the_data_as_it_came() {
        let event = EventId::fresh();
        let data = br#"{"b": 1.0,  "a":12345678901234567890}"#;
        let body = body(event, "job.succeeded", data);
        let text = std::str::from_utf8(&body).expect("UTF-8");
        assert!(text.ends_with(r#""data":{"b": 1.0,  "a":12345678901234567890}}"#), "{text}");
        assert!(serde_json::from_str::<serde_json::Value>(text).is_ok());
    }

    #[test]
    fn an_official_library_verifies_what_we_send() {
        let secret = SigningKey::from_random(crate::signing::SignatureKind::HmacSha256, [7; 32]);
        let event = EventId::fresh();
        let body = body(event, "job.failed", br#"{"id":1}"#);
        let envelope = Envelope {
            event,
            delivery: DeliveryId::fresh(),
            attempt: 3,
            now: crate::clock::now(),
            secrets: std::slice::from_ref(&secret),
            custom: &BTreeMap::from([("x-team".to_owned(), "billing".to_owned())]),
            traceparent: None,
        };
        let headers = headers(&envelope, &body);
        let oracle = standardwebhooks::Webhook::new(&secret.to_string()).expect("secret");
        oracle.verify(&body, &headers).expect("verified");
        assert_eq!(headers["ringback-attempt"], "3");
        assert_eq!(headers["x-team"], "billing");
        assert!(!headers.contains_key("traceparent"));
        assert_eq!(headers["webhook-id"].to_str().expect("text").parse::<EventId>(), Ok(event));
        assert!(headers["webhook-id"].to_str().expect("text").parse::<JobId>().is_err());
    }
}
