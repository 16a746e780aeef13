//! `POST /v1/events` and `/v1/events/batch`. The answer is sent after the commit that holds the events.

use actix_web::http::StatusCode;
use actix_web::http::header::LOCATION;
use actix_web::{HttpRequest, HttpResponse, web};

use super::extract::{self, BATCH_BODY_MAX_BYTES, BODY_MAX_BYTES, Query};
use super::idempotency::{self, HeldKey, Standing};
use super::problem::ApiError;
use crate::events::new_event::{self, BATCH_MAX, DATA_MAX_BYTES, Publish, Refused};
use crate::events::publish::{self, Published};
use crate::events::view::EventView;
use crate::fields::{Faults, Fields};
use crate::ids::{EventId, TenantId};
use crate::shared::Shared;
use crate::tenants::Scope;

fn location(id: EventId) -> String {
    format!("/v1/events/{id}")
}

fn too_large() -> ApiError {
    ApiError::TooLarge(format!("an event's data may have {DATA_MAX_BYTES} bytes at most"))
}

fn answer(status: u16, location: Option<String>, body: String) -> HttpResponse {
    let mut response = HttpResponse::build(StatusCode::from_u16(status).unwrap_or(StatusCode::ACCEPTED));
    if let Some(location) = location {
        response.insert_header((LOCATION, location));
    }
    response.content_type("application/json").body(body)
}

/// `POST /v1/events`.
pub async fn publish(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EventsWrite)?;
    Query::of(&request).finish()?;
    let bytes = extract::json_body(&request, payload, BODY_MAX_BYTES, 1).await?;
    let held = match idempotency::begin(&request, &shared, caller.tenant, &bytes).await? {
        Standing::Answered(answer) => return Ok(answer),
        Standing::First(held) => Some(held),
        Standing::Free => None,
    };
    let traceparent = extract::traceparent(&request);
    let parsed = new_event::parse("", extract::raw(&bytes)?, caller.tenant, traceparent.as_deref());
    let item = parsed.map_err(|refused| match refused {
        Refused::DataTooLarge => too_large(),
        Refused::Faults(faults) => faults.into(),
    })?;
    if held.is_none() && item.dedup_key.is_none() {
        let (id, body) = (item.event.id, EventView::of(&item.event).to_json());
        shared.publish.submit(item.event).await?;
        return Ok(answer(202, Some(location(id)), body));
    }
    let one = |published: &Published| {
        let first = published.events.first();
        let status = if published.first_is_earlier { 200 } else { 202 };
        (status, first.map(|event| location(event.id)), first.map(EventView::to_json).unwrap_or_default())
    };
    publish_all(&shared, caller.tenant, vec![item], held, one).await
}

/// `POST /v1/events/batch`: all or nothing.
pub async fn publish_batch(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EventsWrite)?;
    Query::of(&request).finish()?;
    let bytes = extract::json_body(&request, payload, BATCH_BODY_MAX_BYTES, 3).await?;
    let held = match idempotency::begin(&request, &shared, caller.tenant, &bytes).await? {
        Standing::Answered(answer) => return Ok(answer),
        Standing::First(held) => Some(held),
        Standing::Free => None,
    };
    let items = parse_batch(&request, caller.tenant, &bytes)?;
    let all = |published: &Published| {
        let views: Vec<String> = published.events.iter().map(EventView::to_json).collect();
        (202, None, format!("{{\"data\":[{}]}}", views.join(",")))
    };
    publish_all(&shared, caller.tenant, items, held, all).await
}

fn parse_batch(request: &HttpRequest, tenant: TenantId, bytes: &[u8]) -> Result<Vec<Publish>, ApiError> {
    let mut faults = Faults::default();
    let Some(mut fields) = Fields::open("", extract::raw(bytes)?, &mut faults) else {
        return Err(faults.into());
    };
    let list = fields.list("events", 1..=BATCH_MAX, &mut faults);
    if list.is_none() && faults.is_empty() {
        fields.fault("events", "is missing; send {\"events\": [ … ]}", &mut faults);
    }
    fields.finish(&mut faults);
    let traceparent = extract::traceparent(request);
    let mut items = Vec::new();
    for (index, one) in list.unwrap_or_default().into_iter().enumerate() {
        match new_event::parse(&format!("/events/{index}"), one, tenant, traceparent.as_deref()) {
            Ok(item) => items.push(item),
            Err(Refused::DataTooLarge) => return Err(too_large()),
            Err(Refused::Faults(found)) => {
                for fault in found.into_vec() {
                    faults.add(fault.pointer, fault.detail);
                }
            }
        }
    }
    if faults.is_empty() { Ok(items) } else { Err(faults.into()) }
}

type Answer = fn(&Published) -> (u16, Option<String>, String);

async fn publish_all(
    shared: &web::Data<Shared>,
    tenant: TenantId,
    items: Vec<Publish>,
    held: Option<HeldKey>,
    make: Answer,
) -> Result<HttpResponse, ApiError> {
    let (db, key) = (shared.db.clone(), held.as_ref().map(|held| held.stored(None, "")));
    let published = shared.tasks.run(async move { publish::publish(&db, items, key, make).await }).await??;
    if let Some(published) = published {
        shared.wakeups.events.notify_one();
        let (status, location, body) = make(&published);
        return Ok(answer(status, location, body));
    }
    // Another process was quicker with the same key: its answer is ours.
    let held = held.ok_or(ApiError::KeyRunning)?;
    idempotency::find(shared, tenant, &held).await?.ok_or(ApiError::KeyRunning)
}
