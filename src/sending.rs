//! How what came of a POST is written down: the record of one try of a delivery.
//!
//! Called by `engine::dispatch` for what is due and by `http::endpoint_test` for a test. Between `outbound`, which knows
//! no delivery, and `deliveries`, which know no network.
//!
//! Invariant: what is kept of a receiver's answer is bounded, whatever it sends.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::deliveries::Due;
use crate::deliveries::retry;
use crate::deliveries::store::Record;
use crate::ids::AttemptId;
use crate::outbound::{Answer, Exchange, SendError};

/// So much of an answer's body is kept…
pub const BODY_KEPT_MAX: usize = 16 * 1024;
/// … and so much is read at most, so that a connection can be used again.
pub const BODY_READ_MAX: usize = 64 * 1024;
/// So much of an answer's headers is kept.
const HEADERS_KEPT_MAX: usize = 8 * 1024;

/// A record that tells of nothing yet.
pub fn empty_record(due: Due, number: i32, started_at: Timestamp) -> Record {
    Record {
        due,
        number,
        id: AttemptId::fresh(),
        verdict: 0,
        wait: None,
        status_code: None,
        error_code: None,
        error_message: None,
        started_at,
        duration: Duration::ZERO,
        timings: [None; 4],
        remote_address: None,
        response_headers: None,
        response_body: None,
        truncated: false,
    }
}

/// Notes what came of a POST. Answers the error that is left for the caller to name, if there was no answer.
pub fn note(record: &mut Record, exchange: Result<Exchange, SendError>) -> Option<SendError> {
    let Exchange { timings, remote_address, duration, result } = match exchange {
        Ok(exchange) => exchange,
        Err(error) => return Some(error),
    };
    record.duration = duration;
    record.timings = [timings.dns, timings.connect, timings.tls, timings.first_byte];
    record.remote_address = remote_address.map(|address| address.to_string());
    let answer = match result {
        Ok(answer) => answer,
        Err(error) => return Some(error),
    };
    record.status_code = i16::try_from(answer.status).ok();
    record.error_code = retry::status_error(answer.status).map(str::to_owned);
    record.error_message = record.error_code.as_ref().map(|_| status_text(&answer));
    record.response_headers = Some(headers_json(&answer.headers));
    record.response_body = Some(answer.body.to_vec());
    record.truncated = answer.truncated;
    None
}

fn status_text(answer: &Answer) -> String {
    match answer.headers.get(http::header::LOCATION).and_then(|value| value.to_str().ok()) {
        Some(location) if (300..400).contains(&answer.status) => {
            let shown: String = location.chars().take(200).collect();
            format!(
                "the receiver answered with status {} and points to {shown}; redirects are not followed",
                answer.status
            )
        }
        _ => format!("the receiver answered with status {}", answer.status),
    }
}

fn headers_json(headers: &http::HeaderMap) -> String {
    let mut kept = BTreeMap::new();
    let mut size = 0;
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        size += name.as_str().len() + value.len();
        if size > HEADERS_KEPT_MAX {
            break;
        }
        kept.insert(name.as_str(), value);
    }
    serde_json::to_string(&kept).unwrap_or_default()
}
