//! `GET /v1/jobs/{id}/explain`: why a job waits, or what became of it.

use actix_web::{HttpRequest, HttpResponse, web};

use super::extract::{self, Query};
use super::problem::ApiError;
use crate::db::StoreError;
use crate::ids::{JobId, TenantId};
use crate::jobs::explain::{Explained, Standing, Workers, explain};
use crate::jobs::{explain_store, read_store};
use crate::shared::Shared;
use crate::tenants::Scope;
use crate::{clock, workers};

/// The job may change its place between two looks; then it is looked at again.
const LOOKS: usize = 4;

/// The handler.
pub async fn job(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::JobsRead)?;
    Query::of(&request).finish()?;
    let id: JobId = extract::id(&request)?;
    let for_task = shared.clone();
    let explained = shared.tasks.run(async move { explained(&for_task, caller.tenant, id).await }).await??;
    Ok(HttpResponse::Ok().json(explained))
}

async fn explained(shared: &Shared, tenant: TenantId, id: JobId) -> Result<Explained, StoreError> {
    let mut looks = 1;
    loop {
        let stored = read_store::get(&shared.db, tenant, id).await?;
        let workers = workers_of(shared, tenant, &stored.job.kind).await?;
        let standing = explain_store::standing(&shared.db, &stored, &shared.queue_limits, workers).await?;
        let is_told = stored.state.is_finished() || stored.state.due_at.is_some();
        if standing != Standing::Told || is_told || looks == LOOKS {
            return Ok(explain(&stored, &standing));
        }
        looks += 1;
    }
}

/// Who runs jobs of this kind: the executors of this installation, or workers outside.
async fn workers_of(shared: &Shared, tenant: TenantId, kind: &str) -> Result<Workers, StoreError> {
    if shared.executors.get(kind).is_some() {
        return Ok(Workers::There);
    }
    let seen = workers::store::last_seen(&shared.db, tenant, kind).await?;
    Ok(Workers::of_sighting(seen.map(|(at, _)| at), clock::now()))
}
