//! Deliveries as they stand: one with its attempts, a list, send again.

use actix_web::{HttpRequest, HttpResponse, web};

use super::extract::{self, Query};
use super::problem::ApiError;
use super::{ListLink, list_answer};
use crate::db::StoreError;
use crate::deliveries::read_store::{self, DeliveryFilter};
use crate::deliveries::{DeliveryStatus, lane_of, store};
use crate::endpoints::EndpointStatus;
use crate::events::CallbackRef;
use crate::ids::{DeliveryId, EndpointId, EventId, JobId};
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
    let (db, for_task) = (shared.db.clone(), shared.clone());
    let detail = shared
        .tasks
        .run(async move {
            let found = read_store::get(&db, tenant, id).await?;
            let gone = || StoreError::Conflict("the receiver of this delivery is gone".to_owned());
            let target = match (found.delivery.endpoint_id, found.delivery.job_id, &found.delivery.url) {
                (Some(endpoint), _, _) => {
                    for_task.endpoints.refresh(&db, &for_task.sealer).await?;
                    let known = for_task.endpoints.get(tenant, endpoint).ok_or_else(gone)?;
                    if known.settings.status == EndpointStatus::Disabled {
                        return Err(StoreError::Conflict(
                            "the endpoint of this delivery is disabled".to_owned(),
                        )
                        .into());
                    }
                    endpoint.uuid()
                }
                (None, Some(job), Some(url)) => CallbackRef::new(tenant, job, url).target,
                _ => return Err(gone().into()),
            };
            store::retry(&db, tenant, id, lane_of(tenant, target), target).await?;
            Ok::<_, ApiError>(read_store::get(&db, tenant, id).await?)
        })
        .await??;
    shared.wakeups.deliveries.notify_one();
    Ok(HttpResponse::Ok().json(detail))
}
