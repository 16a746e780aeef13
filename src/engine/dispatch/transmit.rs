//! One try of one delivery: message, send, verdict, record. Stops 8 and 9 of a job's path, in the order of
//! `deliveries::message`, `outbound`, `deliveries::retry`, `deliveries::store`.
//!
//! Called by `flight`.
//!
//! Invariant: whatever happens here ends in a record, or in the death of the process.

use std::sync::Arc;
use std::time::Duration;

use crate::backoff::{RetryPolicy, parse_retry_after};
use crate::clock;
use crate::deliveries::Due;
use crate::deliveries::message::{self, Envelope};
use crate::deliveries::retry::{self, Answer, Verdict};
use crate::deliveries::scheduling::{Landing, LandingAnswer};
use crate::deliveries::store::{Loaded, Record};
use crate::ids::{DeliveryId, TenantId};
use crate::jobs::CallbackOptions;
use crate::nodes::store::LostFlight;
use crate::outbound::{ErrorClass, Exchange, OutboundRequest, SendError};
use crate::receivers::RetrySpec;
use crate::secrets::Owner;
use crate::sending;
use crate::shared::Shared;
use crate::signing::SigningKey;
use crate::supervisor::Stop;
use crate::target::parse_target;

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);

/// Sends a delivery once and records it. Tells how the receiver did, and after how long the next try is due.
pub async fn transmit(shared: &Shared, stop: &Stop, loaded: Loaded) -> Landing {
    let (record, answer) = attempt(shared, stop, &loaded).await;
    let (delivery, number) = (loaded.due.id, record.number);
    let landing = Landing { answer, again_in: record.wait };
    tracing::debug!(
        delivery.id = %delivery, event.id = %loaded.event, job.id = %loaded.job, attempt = number, verdict = record.verdict,
        status = record.status_code, error = record.error_code.as_deref(), duration_ms = record.duration.as_millis() as u64,
        "delivery {delivery} tried"
    );
    match shared.record.submit_patiently(record).await {
        Ok(true) => return landing,
        Ok(false) => tracing::warn!(
            delivery.id = %delivery, attempt = number,
            "delivery {delivery} belongs to another node now; this try is not recorded"
        ),
        Err(error) => {
            tracing::error!(delivery.id = %delivery, %error, "the try of a delivery cannot be recorded");
        }
    }
    Landing { answer: LandingAnswer::NotCalled, again_in: None }
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

async fn attempt(shared: &Shared, stop: &Stop, loaded: &Loaded) -> (Record, LandingAnswer) {
    let started_at = clock::now();
    let options = shared.open_options(loaded.due.tenant, loaded.job, loaded.sealed_options.as_deref());
    let secrets = match &options {
        Ok(options) => secrets_of(shared, loaded.due.tenant, options).await,
        Err(error) => Err(error.to_string()),
    };
    let options = options.unwrap_or_default();
    let policy = options.retry.map_or(RetryPolicy::DELIVERIES, RetrySpec::policy);
    let (answer, exchange) = match secrets {
        Ok(secrets) => post(shared, stop, loaded, &options, &secrets).await,
        // An operator's mistake (another master key, no database): worth another try, and visible meanwhile.
        Err(text) => (Answer::NoAnswer, Err(SendError { class: ErrorClass::Protocol, message: text })),
    };
    let tries = u32::try_from(loaded.tries + 1).unwrap_or(u32::MAX);
    let verdict = retry::decide(&policy, tries, &answer, rand::random());
    let did = landing_answer(&answer, &exchange, policy.max);
    (record_of(loaded, started_at, verdict, &answer, exchange), did)
}

async fn secrets_of(
    shared: &Shared,
    tenant: TenantId,
    options: &CallbackOptions,
) -> Result<Arc<Vec<SigningKey>>, String> {
    match &options.secret {
        Some(text) => text
            .parse()
            .map(|secret| Arc::new(vec![secret]))
            .map_err(|_| "the callback's secret cannot be read".to_owned()),
        None => shared
            .secrets
            .signing(&shared.db, &shared.sealer, Owner::callbacks(tenant))
            .await
            .map_err(|error| error.to_string()),
    }
}

async fn post(
    shared: &Shared,
    stop: &Stop,
    loaded: &Loaded,
    options: &CallbackOptions,
    secrets: &[SigningKey],
) -> (Answer, Result<Exchange, SendError>) {
    let url = match parse_target(&loaded.url, shared.client.policy()) {
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
        secrets,
        custom: &options.headers,
        traceparent: loaded.traceparent.as_deref(),
    };
    let request = OutboundRequest {
        method: http::Method::POST,
        url,
        headers: message::headers(&envelope, &body),
        body,
        timeout: options.timeout_s.map_or(TIMEOUT_DEFAULT, Duration::from_secs_f64),
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
