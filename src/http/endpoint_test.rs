//! `POST /v1/endpoints/{id}/test`: one signed event now, past the lanes, and what came of it.
//!
//! Neither filter nor transform look at it, nor does the endpoint's status: it tells whether the receiver can be reached
//! and verifies. It is recorded as a delivery with its event and its attempt, like every POST on the wire, and tried once.

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use serde_json::value::RawValue;

use super::endpoints::find;
use super::extract::{self, Query};
use super::problem::ApiError;
use crate::clock;
use crate::deliveries::end_store::{self, DirectDelivery};
use crate::deliveries::message::{self, Envelope};
use crate::deliveries::retry::Verdict;
use crate::deliveries::store::Record;
use crate::deliveries::{Due, lane_of};
use crate::endpoints::Endpoint;
use crate::ids::{DeliveryId, EventId};
use crate::outbound::{ErrorClass, Exchange, OutboundRequest, SendError};
use crate::sending;
use crate::shared::Shared;
use crate::signing::SigningKey;
use crate::target::parse_target;
use crate::tenants::Scope;

const TYPE: &str = "ringback.test";

#[derive(Serialize)]
struct TestView {
    delivery_id: DeliveryId,
    status: &'static str,
    status_code: Option<i16>,
    duration_ms: f64,
    error: Option<ErrorView>,
    response: Option<ResponseView>,
}

#[derive(Serialize)]
struct ErrorView {
    code: String,
    message: String,
}

#[derive(Serialize)]
struct ResponseView {
    headers: Box<RawValue>,
    body: String,
}

/// The handler.
pub async fn test(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EndpointsWrite)?;
    Query::of(&request).finish()?;
    let endpoint = find(&shared, caller.tenant, extract::id(&request)?).await?;
    let for_task = shared.clone();
    // A task of its own: the POST is recorded even if the client does not wait for it.
    let record = shared.tasks.run(async move { send(&for_task, &endpoint).await }).await??;
    Ok(HttpResponse::Ok().json(view(record)))
}

async fn send(shared: &Shared, endpoint: &Endpoint) -> Result<Record, ApiError> {
    let keys = shared.secrets.signing(&shared.db, &shared.sealer, endpoint.secrets()).await?;
    let delivery = DirectDelivery {
        tenant: endpoint.tenant,
        id: DeliveryId::fresh(),
        endpoint: endpoint.id,
        event: EventId::fresh(),
        event_type: TYPE,
        data: format!("{{\"endpoint_id\":\"{}\",\"test\":true}}", endpoint.id),
    };
    end_store::create_direct(&shared.db, &delivery).await?;
    let target = endpoint.id.uuid();
    let due = Due {
        tenant: endpoint.tenant,
        id: delivery.id,
        target,
        lane: lane_of(endpoint.tenant, target),
        order: None,
        position: 0,
        replay: false,
    };
    let mut record = sending::empty_record(due, 1, clock::now());
    let exchange = post(shared, endpoint, &delivery, &keys).await;
    if let Some(error) = sending::note(&mut record, exchange) {
        record.error_code = Some(error.class.as_str().to_owned());
        record.error_message = Some(error.message);
    }
    let verdict = if record.error_code.is_none() { Verdict::Succeeded } else { Verdict::Failed };
    record.verdict = verdict.code();
    end_store::record_direct(&shared.db, &record).await?;
    Ok(record)
}

async fn post(
    shared: &Shared,
    endpoint: &Endpoint,
    delivery: &DirectDelivery,
    keys: &[SigningKey],
) -> Result<Exchange, SendError> {
    let url = parse_target(&endpoint.settings.url, shared.client.policy())
        .map_err(|refusal| SendError { class: ErrorClass::BlockedAddress, message: refusal.to_string() })?;
    let body = message::body(delivery.event, TYPE, delivery.data.as_bytes());
    let custom: &BTreeMap<String, String> = &endpoint.settings.headers;
    let envelope = Envelope {
        event: delivery.event,
        delivery: delivery.id,
        attempt: 1,
        now: clock::now(),
        secrets: keys,
        custom,
        traceparent: None,
    };
    let request = OutboundRequest {
        method: http::Method::POST,
        url,
        headers: message::headers(&envelope, &body),
        body,
        timeout: endpoint.settings.timeout,
        keep_body_max: sending::BODY_KEPT_MAX,
        read_body_max: sending::BODY_READ_MAX,
    };
    let exchange = tokio::select! {
        exchange = shared.client.send(request) => exchange,
        () = shared.stop.hurry.cancelled() => {
            let message = "Ringback was stopped before the answer came".to_owned();
            return Err(SendError { class: ErrorClass::Reset, message });
        }
    };
    Ok(exchange)
}

fn view(record: Record) -> TestView {
    let body = record.response_body.unwrap_or_default();
    let headers = record.response_headers.and_then(|text| RawValue::from_string(text).ok());
    TestView {
        delivery_id: record.due.id,
        status: if record.error_code.is_none() { "succeeded" } else { "failed" },
        status_code: record.status_code,
        duration_ms: record.duration.as_secs_f64() * 1000.0,
        error: record
            .error_code
            .map(|code| ErrorView { code, message: record.error_message.unwrap_or_default() }),
        response: headers
            .map(|headers| ResponseView { headers, body: String::from_utf8_lossy(&body).into_owned() }),
    }
}
