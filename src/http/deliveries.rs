//! Deliveries as they stand: one with its attempts, a list, send again.

use actix_web::{HttpRequest, HttpResponse, web};

use super::extract::{self, Query};
use super::problem::ApiError;
use super::{ListLink, list_answer};
use crate::db::StoreError;
use crate::deliveries::matched::order_of;
use crate::deliveries::read_store::{self, DeliveryFilter};
use crate::deliveries::store::Place;
use crate::deliveries::{DeliveryStatus, store};
use crate::endpoints::{DeliveryOrder, EndpointStatus};
use crate::events::{self, CallbackRef};
use crate::ids::{DeliveryId, EndpointId, EventId, JobId, TenantId};
use crate::shared::Shared;
use crate::tenants::Scope;

/// `GET /v1/deliveries`.
pub async fn list(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::DeliveriesRead)?;
    let mut query = Query::of(&request);
    let filter = DeliveryFilter {
        endpoint: query.parsed::<EndpointId>("endpoint_id", "an id of the form ep_…"),
        event: query.parsed::<EventId>("event_id", "an id of the form evt_…"),
        job: query.parsed::<JobId>("job_id", "an id of the form job_…"),
        event_type: query.text("event_type"),
        status: query.word("status", &DeliveryStatus::WORDS),
        since: query.time("since"),
        until: query.time("until"),
    };
    let page = query.page();
    query.finish()?;
    let (db, before) = (shared.db.clone(), page.before.map(DeliveryId::from_uuid));
    let found = shared
        .tasks
        .run(async move { read_store::list(&db, caller.tenant, &filter, before, page.limit + 1).await })
        .await??;
    let ids: Vec<_> = found.iter().map(|delivery| delivery.id.uuid()).collect();
    let views = found.iter().map(|delivery| serde_json::to_string(delivery).unwrap_or_default()).collect();
    Ok(list_answer(&ListLink { request: &request, limit: page.limit }, views, &ids))
}

/// `GET /v1/deliveries/{id}`.
pub async fn get(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::DeliveriesRead)?;
    Query::of(&request).finish()?;
    let id: DeliveryId = extract::id(&request)?;
    let db = shared.db.clone();
    let detail = shared.tasks.run(async move { read_store::get(&db, caller.tenant, id).await }).await??;
    Ok(HttpResponse::Ok().json(detail))
}

/// `POST /v1/deliveries/{id}/retry`.
pub async fn retry(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::DeliveriesRetry)?;
    Query::of(&request).finish()?;
    let (id, tenant): (DeliveryId, _) = (extract::id(&request)?, caller.tenant);
    let for_task = shared.clone();
    let detail = shared
        .tasks
        .run(async move {
            let db = &for_task.db;
            let found = read_store::get(db, tenant, id).await?.delivery;
            let (target, place) = match (found.endpoint_id, found.job_id, &found.url) {
                (Some(endpoint), _, _) => {
                    (endpoint.uuid(), place_in_line(&for_task, (tenant, endpoint), found.event_id).await?)
                }
                (None, Some(job), Some(url)) => (CallbackRef::new(tenant, job, url).target, None),
                _ => return Err(gone().into()),
            };
            store::retry(db, tenant, id, target, place).await?;
            Ok::<_, ApiError>(read_store::get(db, tenant, id).await?)
        })
        .await??;
    shared.wakeups.deliveries.notify_one();
    Ok(HttpResponse::Ok().json(detail))
}

/// Where a delivery that is sent again stands in line, if its endpoint wants an order. Its turn came and went, so it
/// gets a new one: behind all that was published up to now, before all that will be.
async fn place_in_line(
    shared: &Shared,
    (tenant, endpoint): (TenantId, EndpointId),
    event: EventId,
) -> Result<Option<Place>, ApiError> {
    shared.endpoints.refresh(&shared.db, &shared.sealer).await?;
    let known = shared.endpoints.get(tenant, endpoint).ok_or_else(gone)?;
    if known.settings.status == EndpointStatus::Disabled {
        return Err(StoreError::Conflict("the endpoint of this delivery is disabled".to_owned()).into());
    }
    if known.settings.ordering == DeliveryOrder::Unordered {
        return Ok(None);
    }
    let event = events::read_store::get(&shared.db, tenant, event).await?;
    let Some(order) = order_of(known.settings.ordering, event.ordering_key.as_deref()) else {
        return Ok(None);
    };
    let position = events::store::take_position(&shared.db).await?;
    Ok(Some(Place { order, position }))
}

fn gone() -> StoreError {
    StoreError::Conflict("the receiver of this delivery is gone".to_owned())
}
