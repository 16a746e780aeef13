//! `POST /v1/endpoints/preview`: what an endpoint would be told of a given event, or of the latest ones. Sends nothing.

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use serde_json::value::RawValue;

use super::extract::{self, BODY_MAX_BYTES, Query};
use super::problem::ApiError;
use crate::deliveries::message;
use crate::endpoints::Subscription;
use crate::endpoints::expression::{EventContext, EventFacts};
use crate::endpoints::new_endpoint::parse_subscription;
use crate::events::recent_store::{self, RecentEvent};
use crate::fields::{Faults, Fields};
use crate::ids::EventId;
use crate::shared::Shared;
use crate::tenants::Scope;
use crate::topics::parse_event_type;

const LAST_DEFAULT: i64 = 20;
const LAST_MAX: i64 = 100;
const DATA_MAX_BYTES: usize = 256 * 1024;

#[derive(Serialize)]
struct PreviewView {
    data: Vec<VerdictView>,
}

#[derive(Serialize)]
struct VerdictView {
    event_id: EventId,
    matched: bool,
    reason: String,
    body: Option<Box<RawValue>>,
}

/// The handler.
pub async fn preview(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EndpointsRead)?;
    Query::of(&request).finish()?;
    let bytes = extract::json_body(&request, payload, BODY_MAX_BYTES, 2).await?;
    let (subscription, what) = parse(extract::raw(&bytes)?)?;
    if let What::Last(_) = what
        && !caller.may(&Scope::EventsRead)
    {
        return Err(ApiError::Forbidden(Scope::EventsRead.word()));
    }
    let for_task = shared.clone();
    let answer = shared
        .tasks
        .run(async move {
            let events = match what {
                What::Given(event) => vec![event],
                What::Last(count) => recent_store::recent(&for_task.db, caller.tenant, count).await?,
            };
            // A hundred events and a heavy expression may take a while, and this is a runtime for many.
            let judged = tokio::task::spawn_blocking(move || {
                events.iter().map(|event| judge(&subscription, event)).collect::<Vec<_>>()
            });
            Ok::<_, crate::db::StoreError>(judged.await.unwrap_or_default())
        })
        .await??;
    Ok(HttpResponse::Ok().json(PreviewView { data: answer }))
}

enum What {
    Given(RecentEvent),
    Last(i64),
}

fn parse(raw: &RawValue) -> Result<(Subscription, What), ApiError> {
    let mut faults = Faults::default();
    let Some(mut fields) = Fields::open("", raw, &mut faults) else { return Err(faults.into()) };
    let subscription = parse_subscription(&mut fields, &mut faults);
    let last = fields.integer("last", 1..=LAST_MAX, &mut faults);
    let event = fields.raw("event");
    if last.is_some() && event.is_some() {
        fields.fault("last", "at most one of event and last may be given", &mut faults);
    }
    let at = fields.pointer("event");
    fields.finish(&mut faults);
    let what = match event {
        None => Some(What::Last(last.unwrap_or(LAST_DEFAULT))),
        Some(raw) => parse_event(at, raw, &mut faults)?.map(What::Given),
    };
    faults.result(what).map(|what| (subscription, what)).map_err(ApiError::from)
}

/// An event as it would be published.
fn parse_event(at: String, raw: &RawValue, faults: &mut Faults) -> Result<Option<RecentEvent>, ApiError> {
    let Some(mut fields) = Fields::open(at, raw, faults) else { return Ok(None) };
    let before = faults.len();
    let event_type = fields.string("type", 0..=BODY_MAX_BYTES, faults);
    match &event_type {
        Some(text) => {
            if let Err(error) = parse_event_type(text) {
                fields.fault("type", error.to_string(), faults);
            }
        }
        None if faults.len() == before => fields.fault("type", "is missing", faults),
        None => {}
    }
    let data = fields.raw_or_null("data");
    if data.is_some_and(|data| data.get().len() > DATA_MAX_BYTES) {
        return Err(ApiError::TooLarge(format!("the data may have {DATA_MAX_BYTES} bytes at most")));
    }
    let metadata: Option<BTreeMap<String, String>> = fields.strings("metadata", faults);
    for ignored in ["ordering_key", "dedup_key"] {
        fields.string(ignored, 1..=255, faults);
    }
    fields.finish(faults);
    Ok(event_type.map(|event_type| RecentEvent {
        id: EventId::fresh(),
        event_type,
        data: data.map_or("null", RawValue::get).as_bytes().to_vec(),
        metadata,
    }))
}

fn judge(subscription: &Subscription, event: &RecentEvent) -> VerdictView {
    let verdict = |matched, reason: String, body: Option<String>| VerdictView {
        event_id: event.id,
        matched,
        reason,
        body: body.and_then(|text| RawValue::from_string(text).ok()),
    };
    if !subscription.matches_type(&event.event_type) {
        let reason = format!("the type {} is none of event_types", event.event_type);
        return verdict(false, reason, None);
    }
    let facts = EventFacts {
        id: event.id,
        event_type: &event.event_type,
        data: &event.data,
        metadata: event.metadata.as_ref(),
    };
    let context = match EventContext::new(&facts) {
        Ok(context) => context,
        Err(error) => return verdict(false, format!("the data cannot be read: {error}"), None),
    };
    match subscription.wants(&context) {
        Ok(true) => {}
        Ok(false) => return verdict(false, "the filter is false".to_owned(), None),
        Err(error) => {
            return verdict(false, format!("the filter fails, and so would the delivery: {error}"), None);
        }
    }
    let data = match &subscription.transform {
        None => String::from_utf8(event.data.clone()).map_err(|error| error.to_string()),
        Some(transform) => transform.eval(&context),
    };
    match data {
        Ok(data) => {
            let body = message::body(event.id, &event.event_type, data.as_bytes());
            verdict(true, "it would be sent".to_owned(), String::from_utf8(body.to_vec()).ok())
        }
        Err(error) => verdict(true, format!("the transform fails, and so would the delivery: {error}"), None),
    }
}
