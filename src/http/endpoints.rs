//! Endpoints: create, show, change, delete.
//!
//! The answer that creates one shows its secret. A repetition under the same `Idempotency-Key` gets that answer again, so
//! it is stored sealed. A change rings the bell for those who keep endpoints in memory.

use std::sync::Arc;

use actix_web::http::header::{ETAG, LOCATION};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;

use super::extract::{self, BODY_MAX_BYTES, IfMatch, Query, entity_tag};
use super::idempotency::{self, Standing};
use super::problem::ApiError;
use super::{ListLink, list_answer};
use crate::clock;
use crate::deliveries::end_store::{self, CHUNK, EndReason};
use crate::endpoints::change::{self, ChangeError};
use crate::endpoints::view::EndpointView;
use crate::endpoints::{Endpoint, EndpointStatus, new_endpoint, store};
use crate::ids::{EndpointId, TenantId};
use crate::shared::Shared;
use crate::signing::SigningKey;
use crate::tenants::Scope;

#[derive(Serialize)]
struct Created<'a> {
    #[serde(flatten)]
    endpoint: EndpointView<'a>,
    secret: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
}

/// `POST /v1/endpoints`.
pub async fn create(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EndpointsWrite)?;
    Query::of(&request).finish()?;
    let bytes = extract::json_body(&request, payload, BODY_MAX_BYTES, 1).await?;
    let held = match idempotency::begin(&request, &shared, caller.tenant, &bytes).await? {
        Standing::Answered(answer) => return Ok(answer),
        Standing::First(held) => Some(Arc::new(held)),
        Standing::Free => None,
    };
    let settings = new_endpoint::parse_new(extract::raw(&bytes)?, shared.client.policy())?;
    let endpoint = Endpoint::new(caller.tenant, settings);
    let (for_task, new, key) = (shared.clone(), endpoint.clone(), held.clone());
    let created = shared
        .tasks
        .run(async move {
            let answer = |secret: &SigningKey| {
                let Some(key) = &key else { return Ok(None) };
                let (at, body) = (Some(location(new.id)), created_body(&new, secret));
                key.stored_sealed(&for_task.sealer, new.tenant, at, &body).map(Some)
            };
            change::create(&for_task.db, &for_task.sealer, &new, answer).await
        })
        .await??;
    shared.wakeups.endpoints.notify_one();
    match (created, held) {
        (Some(secret), _) => Ok(HttpResponse::Created()
            .insert_header((LOCATION, location(endpoint.id)))
            .insert_header((ETAG, entity_tag(endpoint.version)))
            .insert_header(("cache-control", "no-store"))
            .content_type("application/json")
            .body(created_body(&endpoint, &secret))),
        // Another process was quicker with the same key: its answer is ours.
        (None, Some(held)) => {
            idempotency::find(&shared, caller.tenant, &held).await?.ok_or(ApiError::KeyRunning)
        }
        (None, None) => Err(ApiError::KeyRunning),
    }
}

fn created_body(endpoint: &Endpoint, secret: &SigningKey) -> String {
    let view = EndpointView::new(endpoint);
    let created = Created { endpoint: view, secret: secret.to_string(), public_key: secret.public_key() };
    // Strings and numbers can always be written.
    serde_json::to_string(&created).unwrap_or_default()
}

fn location(id: EndpointId) -> String {
    format!("/v1/endpoints/{id}")
}

fn shown(endpoint: &Endpoint) -> HttpResponse {
    HttpResponse::Ok().insert_header((ETAG, entity_tag(endpoint.version))).json(EndpointView::new(endpoint))
}

/// One endpoint of the caller's, for this handler and those beside it.
pub(super) async fn find(
    shared: &web::Data<Shared>,
    tenant: TenantId,
    id: EndpointId,
) -> Result<Endpoint, ApiError> {
    let for_task = shared.clone();
    let found = async move { store::get(&for_task.db, &for_task.sealer, tenant, id).await };
    Ok(shared.tasks.run(found).await??)
}

/// `GET /v1/endpoints/{id}`.
pub async fn get(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EndpointsRead)?;
    Query::of(&request).finish()?;
    Ok(shown(&find(&shared, caller.tenant, extract::id(&request)?).await?))
}

/// `GET /v1/endpoints`.
pub async fn list(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EndpointsRead)?;
    let mut query = Query::of(&request);
    let status = query.word("status", &EndpointStatus::WORDS);
    let page = query.page();
    query.finish()?;
    let (for_task, before) = (shared.clone(), page.before.map(EndpointId::from_uuid));
    let found = shared
        .tasks
        .run(async move {
            let part = (before, page.limit + 1);
            store::list(&for_task.db, &for_task.sealer, caller.tenant, status, part).await
        })
        .await??;
    let ids: Vec<_> = found.iter().map(|endpoint| endpoint.id.uuid()).collect();
    let views = found
        .iter()
        .map(|endpoint| serde_json::to_string(&EndpointView::new(endpoint)).unwrap_or_default())
        .collect();
    Ok(list_answer(&ListLink { request: &request, limit: page.limit }, views, &ids))
}

/// `PATCH /v1/endpoints/{id}`.
pub async fn patch(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EndpointsWrite)?;
    Query::of(&request).finish()?;
    let id: EndpointId = extract::id(&request)?;
    let if_match = IfMatch::of(&request)?;
    let bytes = extract::patch_body(&request, payload, 1).await?;
    let raw = extract::raw(&bytes)?.to_owned();
    let (for_task, whose) = (shared.clone(), (caller.tenant, id));
    let changed = shared
        .tasks
        .run(async move {
            // What would be refused anyway is refused for what is wrong with it (RFC 9110, section 13.2.1).
            let new = |old: &Endpoint| {
                let new = new_endpoint::parse_patch(&raw, old, for_task.client.policy())
                    .map_err(ChangeError::Faults)?;
                if if_match.allows(old.version) { Ok(new) } else { Err(ChangeError::Changed) }
            };
            change::change(&for_task.db, &for_task.sealer, whose, clock::now(), new).await
        })
        .await??;
    shared.wakeups.endpoints.notify_one();
    shared.secrets.forget(changed.secrets());
    if changed.settings.status == EndpointStatus::Disabled {
        end_pending(&shared, whose, EndReason::DISABLED).await?;
    }
    Ok(shown(&changed))
}

/// `DELETE /v1/endpoints/{id}`.
pub async fn delete(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EndpointsWrite)?;
    Query::of(&request).finish()?;
    let whose = (caller.tenant, extract::id(&request)?);
    let if_match = IfMatch::of(&request)?;
    let for_task = shared.clone();
    shared
        .tasks
        .run(async move {
            let may = |old: &Endpoint| {
                if if_match.allows(old.version) { Ok(()) } else { Err(ChangeError::Changed) }
            };
            change::delete(&for_task.db, &for_task.sealer, whose, may).await
        })
        .await??;
    shared.wakeups.endpoints.notify_one();
    end_pending(&shared, whose, EndReason::DELETED).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Ends what waits for an endpoint: the first piece at once, the rest in the background. A failure is not the client's:
/// the endpoint is changed, and the sender ends what it meets.
async fn end_pending(
    shared: &web::Data<Shared>,
    whose: (TenantId, EndpointId),
    reason: EndReason,
) -> Result<(), ApiError> {
    let for_task = shared.clone();
    let first = async move {
        let mut tx = for_task.db.begin().await?;
        let count = end_store::fail_pending(&mut tx, whose, reason).await?;
        tx.commit().await?;
        Ok::<_, crate::db::StoreError>(count)
    };
    match shared.tasks.run(first).await? {
        Ok(count) if count < CHUNK => return Ok(()),
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(endpoint.id = %whose.1, %error, "cannot end what waits for an endpoint yet");
        }
    }
    let for_task = shared.clone();
    shared.tasks.start(async move {
        if let Err(error) = end_store::fail_all_pending(&for_task.db, whose, reason).await {
            tracing::warn!(endpoint.id = %whose.1, %error, "cannot end what waits for an endpoint");
        }
    });
    Ok(())
}
