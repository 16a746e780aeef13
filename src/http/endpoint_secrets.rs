//! An endpoint's signing secret: shown, rotated.

use actix_web::{HttpRequest, HttpResponse, web};

use super::endpoints::find;
use super::extract::{self, Query};
use super::problem::ApiError;
use super::secrets::{answer, overlap};
use crate::secrets::store;
use crate::shared::Shared;
use crate::tenants::Scope;

/// `GET /v1/endpoints/{id}/secret`. It takes the right to write: who has the secret can speak as Ringback.
pub async fn get(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EndpointsWrite)?;
    Query::of(&request).finish()?;
    let owner = find(&shared, caller.tenant, extract::id(&request)?).await?.secrets();
    let for_task = shared.clone();
    let live = async move { store::live(&for_task.db, &for_task.sealer, owner).await };
    Ok(answer(&shared.tasks.run(live).await??))
}

/// `POST /v1/endpoints/{id}/secret/rotate`.
pub async fn rotate(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::EndpointsWrite)?;
    Query::of(&request).finish()?;
    let id = extract::id(&request)?;
    let overlap = overlap(&request, payload).await?;
    let owner = find(&shared, caller.tenant, id).await?.secrets();
    let for_task = shared.clone();
    let rotated = async move { store::rotate(&for_task.db, &for_task.sealer, owner, overlap).await };
    let secrets = shared.tasks.run(rotated).await??;
    shared.secrets.forget(owner);
    Ok(answer(&secrets))
}
