//! `POST /v1/events` and `/v1/events/batch`. Next: `events::publish`.
//!
//! The answer is sent after the commit that holds the event; who is told of it is found out afterwards.

use actix_web::http::StatusCode;
use actix_web::http::header::LOCATION;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::value::RawValue;

use super::extract::{self, BATCH_BODY_MAX_BYTES, BODY_MAX_BYTES, Query};
use super::idempotency::{self, HeldKey, Standing};
use super::problem::ApiError;
use crate::db::gate::Pass;
use crate::events::new_event::{self, Draft, Refused};
use crate::events::publish::{self, FirstAnswer, Publish, Published};
use crate::events::read_store::{self, StoredEvent};
use crate::events::{BATCH_MAX, DATA_MAX_BYTES, view};
use crate::fields::{Faults, Fields};
use crate::ids::{EventId, TenantId};
use crate::shared::Shared;
use crate::tenants::Scope;

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
    let draft = new_event::parse("", extract::raw(&bytes)?, caller.tenant, traceparent.as_deref())
        .map_err(|refused| refusal(&refused))?;
    let (id, body) = (draft.event.id, view::fresh(&draft.event));
    if held.is_some() && draft.dedup_key.is_some() {
        return publish_with_both_keys(&shared, draft, body, held).await;
    }
    let key = held.as_ref().map(|held| held.stored(Some(location(id)), &body));
    match shared.publish.submit(Publish { key, ..draft.into() }).await? {
        Published::Stored => Ok(answer(StatusCode::ACCEPTED, id, body)),
        Published::Duplicate(first) => duplicate(&shared, caller.tenant, first).await,
        Published::KeyTaken => taken(&shared, caller.tenant, held).await,
        Published::Busy => Err(publish::busy().into()),
    }
}

/// The answer that is stored under the request's key depends on who has the `dedup_key`.
async fn publish_with_both_keys(
    shared: &web::Data<Shared>,
    draft: Draft,
    body: String,
    held: Option<HeldKey>,
) -> Result<HttpResponse, ApiError> {
    let (tenant, id) = (draft.event.tenant, draft.event.id);
    let first = move |firsts: &[Option<StoredEvent>]| match firsts {
        [Some(first)] => {
            FirstAnswer { status: 200, location: Some(location(first.id)), body: view::stored(first) }
        }
        _ => FirstAnswer { status: 202, location: Some(location(id)), body },
    };
    let pass = shared.bulk.enter(tenant).await;
    match publish_all(shared, pass, vec![draft], held.as_ref(), first).await? {
        None => taken(shared, tenant, held).await,
        Some(first) => {
            let status = StatusCode::from_u16(first.status).unwrap_or(StatusCode::ACCEPTED);
            Ok(HttpResponse::build(status)
                .insert_header((LOCATION, first.location.unwrap_or_default()))
                .content_type("application/json")
                .body(first.body))
        }
    }
}

/// `POST /v1/events/batch`: all or nothing.
pub async fn publish_batch(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EventsWrite)?;
    Query::of(&request).finish()?;
    let bytes = extract::unread_json(&request, payload, BATCH_BODY_MAX_BYTES).await?;
    let held = match idempotency::begin(&request, &shared, caller.tenant, &bytes).await? {
        Standing::Answered(answer) => return Ok(answer),
        Standing::First(held) => Some(held),
        Standing::Free => None,
    };
    let tenant = caller.tenant;
    let pass = shared.bulk.enter(tenant).await;
    let traceparent = extract::traceparent(&request);
    let parse = move || {
        extract::check_json(&bytes, 3)?;
        let drafts = parse_batch(traceparent.as_deref(), tenant, extract::raw(&bytes)?)?;
        let fresh: Vec<String> = drafts.iter().map(|draft| view::fresh(&draft.event)).collect();
        Ok::<_, ApiError>((drafts, fresh))
    };
    let (drafts, fresh) = shared.tasks.compute(parse).await??;
    let first = move |firsts: &[Option<StoredEvent>]| {
        let shown = fresh.into_iter().zip(firsts);
        let shown: Vec<String> =
            shown.map(|(fresh, first)| first.as_ref().map_or(fresh, view::stored)).collect();
        FirstAnswer { status: 202, location: None, body: format!("{{\"data\":[{}]}}", shown.join(",")) }
    };
    match publish_all(&shared, pass, drafts, held.as_ref(), first).await? {
        None => taken(&shared, tenant, held).await,
        Some(first) => Ok(HttpResponse::Accepted().content_type("application/json").body(first.body)),
    }
}

/// Stores events, their keys and the answer under the request's key in one commit.
async fn publish_all(
    shared: &web::Data<Shared>,
    pass: Pass,
    drafts: Vec<Draft>,
    held: Option<&HeldKey>,
    first: impl FnOnce(&[Option<StoredEvent>]) -> FirstAnswer + Send + 'static,
) -> Result<Option<FirstAnswer>, ApiError> {
    let (db, key) = (shared.db.clone(), held.map(|held| held.stored(None, "")));
    let held = shared.clone();
    let publish = async move {
        let published = publish::publish_all(&db, &held.courtesy, drafts, key, first).await;
        held.courtesy.call(std::iter::once(pass.tenant()));
        held.leave(pass);
        published
    };
    let published = shared.tasks.run(publish).await??;
    shared.wakeups.events.notify_one();
    Ok(published)
}

fn refusal(refused: &Refused) -> ApiError {
    match refused {
        Refused::DataTooLarge => too_large(),
        Refused::Faults(faults) => faults.clone().into(),
    }
}

fn too_large() -> ApiError {
    ApiError::TooLarge(format!("an event's data may have {DATA_MAX_BYTES} bytes at most"))
}

fn parse_batch(traceparent: Option<&str>, tenant: TenantId, raw: &RawValue) -> Result<Vec<Draft>, ApiError> {
    let mut faults = Faults::default();
    let Some(mut fields) = Fields::open("", raw, &mut faults) else {
        return Err(faults.into());
    };
    let list = fields.list("events", 1..=BATCH_MAX, &mut faults);
    if list.is_none() && faults.is_empty() {
        fields.fault("events", "is missing; send {\"events\": [ … ]}", &mut faults);
    }
    fields.finish(&mut faults);
    let mut drafts = Vec::new();
    for (index, one) in list.unwrap_or_default().into_iter().enumerate() {
        match new_event::parse(&format!("/events/{index}"), one, tenant, traceparent) {
            Ok(draft) => drafts.push(draft),
            Err(Refused::DataTooLarge) => return Err(too_large()),
            Err(Refused::Faults(found)) => {
                found.into_vec().into_iter().for_each(|fault| faults.add(fault.pointer, fault.detail));
            }
        }
    }
    if faults.is_empty() { Ok(drafts) } else { Err(faults.into()) }
}

fn location(id: EventId) -> String {
    format!("/v1/events/{id}")
}

fn answer(status: StatusCode, id: EventId, body: String) -> HttpResponse {
    HttpResponse::build(status)
        .insert_header((LOCATION, location(id)))
        .content_type("application/json")
        .body(body)
}

/// The event that has the `dedup_key`.
async fn duplicate(
    shared: &web::Data<Shared>,
    tenant: TenantId,
    first: EventId,
) -> Result<HttpResponse, ApiError> {
    let db = shared.db.clone();
    let event = shared.tasks.run(async move { read_store::get(&db, tenant, first).await }).await??;
    Ok(answer(StatusCode::OK, first, view::stored(&event)))
}

/// Another process was quicker with the same key: its answer is ours.
async fn taken(
    shared: &web::Data<Shared>,
    tenant: TenantId,
    held: Option<HeldKey>,
) -> Result<HttpResponse, ApiError> {
    let held = held.ok_or(ApiError::KeyRunning)?;
    idempotency::find(shared, tenant, &held).await?.ok_or(ApiError::KeyRunning)
}
