//! One try of one delivery: message, send, verdict, record. Stops 8 and 9 of a job's path, in the order of
//! `deliveries::message`, `outbound`, `deliveries::retry`, `deliveries::store`.
//!
//! Called by `flight`.
//!
//! Invariant: whatever happens here ends in a record, or in the death of the process.

use std::time::Duration;

use super::way::{Route, Way};
use crate::backoff::parse_retry_after;
use crate::clock;
use crate::deliveries::Due;
use crate::deliveries::end_store::EndReason;
use crate::deliveries::message::{self, Envelope};
use crate::deliveries::retry::{self, Answer, Verdict};
use crate::deliveries::scheduling::{Landing, LandingAnswer};
use crate::deliveries::store::{Loaded, Record};

use crate::ids::{DeliveryId, TenantId};
use crate::nodes::store::LostFlight;
use crate::outbound::{ErrorClass, Exchange, OutboundRequest, SendError};
use crate::sending;
use crate::shared::Shared;
use crate::signing::SigningKey;
use crate::supervisor::Stop;
use crate::target::parse_target;

/// When a delivery that must not go now is looked at again.
const LATER: Duration = Duration::from_secs(1);

/// What became of a try, before it is on record.
#[derive(Debug)]
pub enum Tried {
    /// It was made, or ended unmade.
    Made(Box<Made>),
    /// It must not go now.
    Later,
}

/// A try that is over.
#[derive(Debug)]
pub struct Made {
    record: Record,
    did: LandingAnswer,
    gone: bool,
    is_news: bool,
}

impl Tried {
    /// How the receiver did, and how long it took.
    pub fn answer(&self) -> (LandingAnswer, Duration) {
        match self {
            Self::Made(made) => (made.did, made.record.duration),
            Self::Later => (LandingAnswer::NotCalled, Duration::ZERO),
        }
    }
}

/// Sends a delivery once. Tells how the receiver did; [`record`] is to be called with it.
pub async fn send(shared: &Shared, stop: &Stop, loaded: &Loaded) -> Tried {
    let Attempt { record, did, gone } = match Way::to(shared, loaded).await {
        Route::Way(way) => attempt(shared, stop, loaded, &way).await,
        Route::Ended(reason) => ended(loaded, reason),
        Route::Later => return Tried::Later,
    };
    tracing::debug!(
        delivery.id = %loaded.due.id, event.id = %loaded.event, attempt = record.number, verdict = record.verdict,
        status = record.status_code, error = record.error_code.as_deref(), duration_ms = record.duration.as_millis() as u64,
        "delivery {} tried", loaded.due.id
    );
    Tried::Made(Box::new(Made { record, did, gone, is_news: is_news(&loaded.event_type) }))
}

/// Writes a try down. Tells after how long the next one is due.
pub async fn record(shared: &Shared, due: Due, tried: Tried) -> Landed {
    let not_called = Landing { answer: LandingAnswer::NotCalled, again_in: None };
    let Tried::Made(made) = tried else {
        return Landed::not_called(Landing { again_in: Some(LATER), ..not_called });
    };
    let Made { record, did, gone, is_news } = *made;
    let (number, duration) = (record.number, record.duration);
    let exhausted = record.verdict == Verdict::Failed.code() && did != LandingAnswer::NotCalled;
    let landing = Landing { answer: did, again_in: record.wait };
    match shared.record.submit_patiently(record).await {
        Ok(true) => return Landed { landing, duration, gone, exhausted, is_news },
        Ok(false) => tracing::warn!(
            delivery.id = %due.id, attempt = number,
            "delivery {} belongs to another node now; this try is not recorded", due.id
        ),
        Err(error) => {
            tracing::error!(delivery.id = %due.id, %error, "the try of a delivery cannot be recorded");
        }
    }
    Landed { landing: not_called, duration, gone, exhausted: false, is_news }
}

/// What came of it, for the dispatcher.
#[derive(Debug, Clone, Copy)]
pub struct Landed {
    /// For the schedule.
    pub landing: Landing,
    /// How long the receiver took.
    pub duration: Duration,
    /// It said 410: it wants no more.
    pub gone: bool,
    /// That was the last try, and it failed.
    pub exhausted: bool,
    /// The event was itself news of an endpoint or a delivery, and what becomes of it makes no more news: an endpoint
    /// that is subscribed to everything and fails would be told of that for ever.
    pub is_news: bool,
}

impl Landed {
    /// It did not fly.
    pub fn not_called(landing: Landing) -> Self {
        Self { landing, duration: Duration::ZERO, gone: false, exhausted: false, is_news: false }
    }
}

/// Does the topic tell of endpoints and deliveries?
fn is_news(event_type: &str) -> bool {
    event_type.starts_with("endpoint.") || event_type.starts_with("delivery.")
}

/// How the receiver did, for the schedule.
fn landing_answer(
    answer: &Answer,
    exchange: &Result<Exchange, SendError>,
    wait_max: Duration,
) -> LandingAnswer {
    let timed_out = |error: &SendError| error.class == ErrorClass::Timeout;
    match answer {
        Answer::Status { code: 200..=299, .. } => LandingAnswer::Well,
        Answer::Status { code: 429 | 503, retry_after } => {
            LandingAnswer::Overloaded(retry_after.map(|wait| wait.min(wait_max)))
        }
        Answer::Interrupted => LandingAnswer::NotCalled,
        Answer::NoAnswer if matches!(exchange, Ok(Exchange { result: Err(error), .. }) if timed_out(error)) => {
            LandingAnswer::Overloaded(None)
        }
        Answer::Status { .. } | Answer::Blocked | Answer::NoAnswer => LandingAnswer::Badly,
    }
}

struct Attempt {
    record: Record,
    did: LandingAnswer,
    gone: bool,
}

/// The record of a delivery that ends unsent.
fn ended(loaded: &Loaded, reason: EndReason) -> Attempt {
    let mut record = sending::empty_record(loaded.due, loaded.attempt + 1, clock::now());
    record.verdict = Verdict::Failed.code();
    record.error_code = Some(reason.code.to_owned());
    record.error_message = Some(reason.message.to_owned());
    Attempt { record, did: LandingAnswer::NotCalled, gone: false }
}

async fn attempt(shared: &Shared, stop: &Stop, loaded: &Loaded, way: &Way) -> Attempt {
    let started_at = clock::now();
    let (answer, exchange) = match &way.keys {
        Ok(keys) => post(shared, stop, loaded, (way, keys)).await,
        // An operator's mistake (another master key, no database): worth another try, and visible meanwhile.
        Err(text) => {
            (Answer::NoAnswer, Err(SendError { class: ErrorClass::Protocol, message: text.clone() }))
        }
    };
    let tries = u32::try_from(loaded.tries + 1).unwrap_or(u32::MAX);
    let verdict = retry::decide(&way.retry, tries, &answer, rand::random());
    let did = landing_answer(&answer, &exchange, way.retry.max);
    let gone = matches!(answer, Answer::Status { code: 410, .. });
    Attempt { record: record_of(loaded, started_at, verdict, &answer, exchange), did, gone }
}

async fn post(
    shared: &Shared,
    stop: &Stop,
    loaded: &Loaded,
    (way, keys): (&Way, &[SigningKey]),
) -> (Answer, Result<Exchange, SendError>) {
    let url = match parse_target(&way.url, shared.client.policy()) {
        Ok(url) => url,
        Err(refusal) => {
            return (
                Answer::Blocked,
                Err(SendError { class: ErrorClass::BlockedAddress, message: refusal.to_string() }),
            );
        }
    };
    let body = message::body(loaded.event, &loaded.event_type, &loaded.data);
    let envelope = Envelope {
        event: loaded.event,
        delivery: loaded.due.id,
        attempt: loaded.attempt + 1,
        now: clock::now(),
        secrets: keys,
        custom: &way.headers,
        traceparent: loaded.traceparent.as_deref(),
    };
    let request = OutboundRequest {
        method: http::Method::POST,
        url,
        headers: message::headers(&envelope, &body),
        body,
        timeout: way.timeout,
        keep_body_max: sending::BODY_KEPT_MAX,
        read_body_max: sending::BODY_READ_MAX,
    };
    let exchange = tokio::select! {
        exchange = shared.client.send(request) => exchange,
        () = stop.hurry.cancelled() => {
            let message = "Ringback was stopped before the answer came".to_owned();
            return (Answer::Interrupted, Err(SendError { class: ErrorClass::Reset, message }));
        }
    };
    let answer = match &exchange.result {
        Ok(answer) => {
            let header = answer.headers.get(http::header::RETRY_AFTER);
            let retry_after = header.and_then(|value| parse_retry_after(value.as_bytes(), clock::now()));
            Answer::Status { code: answer.status, retry_after }
        }
        Err(error) if error.class == ErrorClass::BlockedAddress => Answer::Blocked,
        Err(_) => Answer::NoAnswer,
    };
    (answer, Ok(exchange))
}

fn record_of(
    loaded: &Loaded,
    started_at: clock::Timestamp,
    verdict: Verdict,
    answer: &Answer,
    exchange: Result<Exchange, SendError>,
) -> Record {
    let mut record = sending::empty_record(loaded.due, loaded.attempt + 1, started_at);
    record.verdict = verdict.code();
    record.wait = match verdict {
        Verdict::TryAgain(wait) => Some(wait),
        Verdict::Succeeded | Verdict::Failed => None,
    };
    if let Some(error) = sending::note(&mut record, exchange) {
        let code = if *answer == Answer::Interrupted { "crashed" } else { error.class.as_str() };
        record.error_code = Some(code.to_owned());
        record.error_message = Some(error.message);
    }
    record
}

/// The record of a try that was on the wire when its node died: nobody knows what came of it, so it is made again.
pub fn crashed(lost: LostFlight) -> Record {
    let due = Due {
        tenant: TenantId::from_uuid(lost.tenant),
        id: DeliveryId::from_uuid(lost.delivery),
        target: lost.target,
        lane: lost.lane,
        order: None,
        position: 0,
        replay: false,
    };
    let mut record = sending::empty_record(due, lost.number, lost.started_at);
    record.wait = Some(Duration::ZERO);
    record.error_code = Some("crashed".to_owned());
    record.error_message = Some("the process ended before the answer came or was recorded".to_owned());
    record
}
