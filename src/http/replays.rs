//! Replays: order one or count what it would send, look at them, stop one.
//!
//! The count is made before the answer, page by page; the deliveries are made afterwards by `engine::feed_replays`.

use std::sync::Arc;

use actix_web::http::header::LOCATION;
use actix_web::{HttpRequest, HttpResponse, web};

use super::extract::{self, BODY_MAX_BYTES, Query, invalid};
use super::idempotency::{self, HeldKey, Standing};
use super::problem::ApiError;
use super::{ListLink, list_answer};
use crate::clock;
use crate::db::StoreError;
use crate::endpoints::EndpointStatus;
use crate::ids::{ReplayId, TenantId};
use crate::replays::new_replay::{self, Order};
use crate::replays::{Replay, count, store, view};
use crate::shared::Shared;
use crate::tenants::Scope;

/// What became of an order.
enum Made {
    /// It was counted only.
    Counted(String),
    /// It runs.
    Started(Replay),
    /// Another process was quicker with the same key.
    Taken,
}

/// `POST /v1/admin/replays`.
pub async fn create(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::Admin)?;
    Query::of(&request).finish()?;
    let bytes = extract::json_body(&request, payload, BODY_MAX_BYTES, 1).await?;
    let held = match idempotency::begin(&request, &shared, caller.tenant, &bytes).await? {
        Standing::Answered(answer) => return Ok(answer),
        Standing::First(held) => Some(Arc::new(held)),
        Standing::Free => None,
    };
    let order = new_replay::parse(extract::raw(&bytes)?, clock::now())?;
    let work = make(shared.clone(), caller.tenant, order, held.clone());
    match (shared.tasks.run(work).await??, held) {
        (Made::Counted(body), _) => Ok(json(HttpResponse::Ok(), body)),
        (Made::Started(replay), _) => {
            shared.wakeups.replays.notify_one();
            let mut response = HttpResponse::Accepted();
            response.insert_header((LOCATION, location(replay.id)));
            Ok(json(response, view::replay(&replay)))
        }
        (Made::Taken, Some(held)) => {
            idempotency::find(&shared, caller.tenant, &held).await?.ok_or(ApiError::KeyRunning)
        }
        (Made::Taken, None) => Err(ApiError::KeyRunning),
    }
}

async fn make(
    shared: web::Data<Shared>,
    tenant: TenantId,
    order: Order,
    held: Option<Arc<HeldKey>>,
) -> Result<Made, ApiError> {
    let Order { ask, dry_run } = order;
    shared.endpoints.refresh(&shared.db, &shared.sealer).await?;
    if let Some(id) = ask.endpoint {
        let Some(endpoint) = shared.endpoints.get(tenant, id) else {
            return Err(invalid("/endpoint_id", "there is no such endpoint"));
        };
        if !dry_run && endpoint.settings.status == EndpointStatus::Disabled {
            let text = "the endpoint is disabled; enable it, and replay then";
            return Err(StoreError::Conflict(text.to_owned()).into());
        }
    }
    let matched = count::count(&shared.db, &shared.endpoints, tenant, &ask).await?;
    if dry_run {
        return Ok(Made::Counted(view::dry_run(&ask, matched)));
    }
    let replay = Replay::new(tenant, ask, matched);
    let mut tx = shared.db.begin().await?;
    if let Some(held) = held {
        let key = held.stored(Some(location(replay.id)), &view::replay(&replay));
        if !crate::idempotency::store::insert(&mut tx, tenant, &key, 202).await? {
            return Ok(Made::Taken);
        }
    }
    store::create(&mut tx, &replay).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(Made::Started(replay))
}

fn location(id: ReplayId) -> String {
    format!("/v1/admin/replays/{id}")
}

fn json(mut response: actix_web::HttpResponseBuilder, body: String) -> HttpResponse {
    response.content_type("application/json").body(body)
}

/// `GET /v1/admin/replays`.
pub async fn list(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::Admin)?;
    let mut query = Query::of(&request);
    let page = query.page();
    query.finish()?;
    let (db, before) = (shared.db.clone(), page.before.map(ReplayId::from_uuid));
    let found = shared
        .tasks
        .run(async move { store::list(&db, caller.tenant, before, page.limit + 1).await })
        .await??;
    let ids: Vec<_> = found.iter().map(|replay| replay.id.uuid()).collect();
    let views = found.iter().map(view::replay).collect();
    Ok(list_answer(&ListLink { request: &request, limit: page.limit }, views, &ids))
}

/// `GET /v1/admin/replays/{id}`.
pub async fn get(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::Admin)?;
    Query::of(&request).finish()?;
    let (db, id) = (shared.db.clone(), extract::id(&request)?);
    let replay = shared.tasks.run(async move { store::get(&db, caller.tenant, id).await }).await??;
    Ok(json(HttpResponse::Ok(), view::replay(&replay)))
}

/// `POST /v1/admin/replays/{id}/cancel`.
pub async fn cancel(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::Admin)?;
    Query::of(&request).finish()?;
    let (db, id) = (shared.db.clone(), extract::id(&request)?);
    let replay = shared.tasks.run(async move { store::cancel(&db, caller.tenant, id).await }).await??;
    shared.wakeups.replays.notify_one();
    Ok(json(HttpResponse::Ok(), view::replay(&replay)))
}
