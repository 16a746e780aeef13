//! The callback secret: what receivers of `callback_url` deliveries verify with.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};

use super::extract::{self, BODY_MAX_BYTES, Query};
use super::problem::ApiError;
use crate::clock::rfc3339;
use crate::fields::{Faults, Fields};
use crate::secrets::{LiveSecrets, OVERLAP_DEFAULT, Owner, store};
use crate::shared::Shared;
use crate::tenants::Scope;

/// The longest overlap: a week.
const OVERLAP_MAX_S: f64 = 604_800.0;

/// `GET /v1/callback-secret`.
pub async fn get(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::Admin)?;
    Query::of(&request).finish()?;
    let (owner, for_task) = (Owner::callbacks(caller.tenant), shared.clone());
    let secrets =
        shared.tasks.run(async move { store::live(&for_task.db, &for_task.sealer, owner).await }).await??;
    Ok(answer(&secrets))
}

/// `POST /v1/callback-secret/rotate`.
pub async fn rotate(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::Admin)?;
    Query::of(&request).finish()?;
    let overlap = overlap(&request, payload).await?;
    let (owner, for_task) = (Owner::callbacks(caller.tenant), shared.clone());
    let secrets = shared
        .tasks
        .run(async move { store::rotate(&for_task.db, &for_task.sealer, owner, overlap).await })
        .await??;
    shared.secrets.forget(owner);
    Ok(answer(&secrets))
}

/// How long the former secret signs along; the body may be missing altogether.
pub(super) async fn overlap(request: &HttpRequest, payload: web::Payload) -> Result<Duration, ApiError> {
    if request.headers().get("content-type").is_none() {
        let bytes = extract::body(request, payload, BODY_MAX_BYTES).await?;
        return if bytes.is_empty() {
            Ok(OVERLAP_DEFAULT)
        } else {
            Err(ApiError::MediaType("send the body as Content-Type: application/json"))
        };
    }
    let bytes = extract::json_body(request, payload, BODY_MAX_BYTES, 1).await?;
    let mut faults = Faults::default();
    let Some(mut fields) = Fields::open("", extract::raw(&bytes)?, &mut faults) else {
        return Err(faults.into());
    };
    let overlap = fields.seconds("overlap_s", 0.0..=OVERLAP_MAX_S, &mut faults);
    fields.finish(&mut faults);
    faults.result(Some(overlap.unwrap_or(OVERLAP_DEFAULT))).map_err(ApiError::from)
}

/// The secrets, for their owner's eyes.
pub(super) fn answer(secrets: &LiveSecrets) -> HttpResponse {
    let previous: Vec<_> = secrets
        .previous
        .iter()
        .map(|(secret, expires_at)| serde_json::json!({ "secret": secret.to_string(), "expires_at": rfc3339(*expires_at) }))
        .collect();
    let mut answer = serde_json::json!({ "secret": secrets.current.to_string(), "previous": previous });
    if let Some(key) = secrets.current.public_key() {
        answer["public_key"] = key.into();
    }
    HttpResponse::Ok().insert_header(("cache-control", "no-store")).json(answer)
}
