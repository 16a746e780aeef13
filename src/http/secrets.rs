//! The callback secret: what receivers of `callback_url` deliveries verify with.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};

use super::extract::{self, BODY_MAX_BYTES, Query};
use super::problem::ApiError;
use crate::clock::rfc3339;
use crate::fields::{Faults, Fields};
use crate::shared::Shared;
use crate::tenants::Scope;
use crate::tenants::callback_secret::{LiveSecrets, live, rotate as rotate_secret};

/// The longest overlap: a week.
const OVERLAP_MAX_S: f64 = 604_800.0;
const OVERLAP_DEFAULT: Duration = Duration::from_hours(24);

/// `GET /v1/callback-secret`.
pub async fn get(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::Admin)?;
    Query::of(&request).finish()?;
    let for_task = shared.clone();
    let secrets = shared
        .tasks
        .run(async move { live(&for_task.db, &for_task.sealer, caller.tenant, caller.tenant.uuid()).await })
        .await??;
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
    let for_task = shared.clone();
    let secrets = shared
        .tasks
        .run(async move {
            rotate_secret(&for_task.db, &for_task.sealer, caller.tenant, caller.tenant.uuid(), overlap).await
        })
        .await??;
    shared.secrets.forget(caller.tenant);
    Ok(answer(&secrets))
}

async fn overlap(request: &HttpRequest, payload: web::Payload) -> Result<Duration, ApiError> {
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

fn answer(secrets: &LiveSecrets) -> HttpResponse {
    let previous: Vec<_> = secrets
        .previous
        .iter()
        .map(|(secret, expires_at)| serde_json::json!({ "secret": secret.to_string(), "expires_at": rfc3339(*expires_at) }))
        .collect();
    HttpResponse::Ok()
        .insert_header(("cache-control", "no-store"))
        .json(serde_json::json!({ "secret": secrets.current.to_string(), "previous": previous }))
}
