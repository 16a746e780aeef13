//! `GET /v1/events/{id}/explain`: each endpoint's part in an event, and why.

use std::collections::HashMap;

use actix_web::{HttpRequest, HttpResponse, web};

use super::extract::{self, Query};
use super::problem::ApiError;
use crate::deliveries::explain::{Explained, explain};
use crate::deliveries::read_store::{self as deliveries, EventDelivery};
use crate::endpoints::expression::{EventContext, EventFacts};
use crate::events::read_store as events;
use crate::ids::{EndpointId, EventId, TenantId};
use crate::shared::Shared;
use crate::tenants::Scope;

/// So many deliveries of an event are looked at; the newest replays of one with more endpoints are left out.
const DELIVERIES_MAX: i64 = 20_000;

/// The handler.
pub async fn event(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EventsRead)?;
    Query::of(&request).finish()?;
    let id: EventId = extract::id(&request)?;
    let for_task = shared.clone();
    let explained =
        shared.tasks.run(async move { explain_all(&for_task, caller.tenant, id).await }).await??;
    Ok(HttpResponse::Ok().json(serde_json::json!({ "event_id": id, "endpoints": explained })))
}

async fn explain_all(shared: &Shared, tenant: TenantId, id: EventId) -> Result<Vec<Explained>, ApiError> {
    let event = events::get(&shared.db, tenant, id).await?;
    shared.endpoints.refresh(&shared.db, &shared.sealer).await?;
    let made = deliveries::of_event(&shared.db, tenant, id, DELIVERIES_MAX).await?;
    // The last one of each endpoint: a replay tells more than what it repeated.
    let last: HashMap<EndpointId, &EventDelivery> =
        made.iter().map(|delivery| (delivery.endpoint, delivery)).collect();
    let context = EventContext::new(&EventFacts {
        id,
        event_type: &event.event_type,
        data: event.data.get().as_bytes(),
        metadata: event.metadata.as_ref(),
    });
    let of = (event.event_type.as_str(), id.created_at());
    let part = |endpoint: &std::sync::Arc<crate::endpoints::Endpoint>| {
        explain(endpoint, of, Some(&context), last.get(&endpoint.id).copied())
    };
    Ok(shared.endpoints.of(tenant).iter().map(part).collect())
}
