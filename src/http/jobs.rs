//! Jobs as they stand: one, with a long poll; a list; cancel, retry; their tries.

use std::time::Duration;

use actix_web::http::header::RETRY_AFTER;
use actix_web::{HttpRequest, HttpResponse, web};
use tokio::time::Instant;

use super::extract::{self, Query};
use super::problem::ApiError;
use super::{ListLink, list_answer};
use crate::clock;
use crate::db::StoreError;
use crate::ids::{JobId, TenantId};
use crate::jobs::finish::{CancelOutcome, cancel as cancel_job};
use crate::jobs::read_store::{self, JobFilter, StoredJob};
use crate::jobs::view::JobView;
use crate::jobs::{After, JobStatus, after_store, store};
use crate::shared::Shared;
use crate::tenants::Scope;

/// A long poll does not hear of a database that is away for no longer than this. A connection is waited for 4 s, and a
/// client is to hear of an outage within 6.
const BLIP: Duration = Duration::from_millis(1500);

/// `GET /v1/jobs/{id}`.
pub async fn get(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::JobsRead)?;
    let mut query = Query::of(&request);
    let wait = query.wait();
    query.finish()?;
    let id: JobId = extract::id(&request)?;
    let stored = wait_for_end(&shared, caller.tenant, id, wait.unwrap_or_default()).await?;
    one(&shared, &stored).await
}

async fn one(shared: &web::Data<Shared>, stored: &StoredJob) -> Result<HttpResponse, ApiError> {
    let view = JobView::new(&stored.job, &stored.state);
    let body = match stored.job.after.clone() {
        None => view.to_json(),
        Some(After { jobs, .. }) => {
            let (db, tenant) = (shared.db.clone(), stored.job.tenant);
            let results =
                shared.tasks.run(async move { after_store::results(&db, tenant, &jobs).await }).await??;
            let results = after_store::all_ended(&results).then_some(results.as_slice());
            view.with_after_results(results).to_json()
        }
    };
    let mut response = HttpResponse::Ok();
    if !stored.state.is_finished() {
        response.insert_header((RETRY_AFTER, "1"));
    }
    Ok(response.content_type("application/json").body(body))
}

/// The job when it has ended, or as it stands when the time is over.
pub async fn wait_for_end(
    shared: &web::Data<Shared>,
    tenant: TenantId,
    id: JobId,
    wait: Duration,
) -> Result<StoredJob, ApiError> {
    let until = Instant::now() + wait;
    let waiter = shared.waiters.enter(tenant, id);
    let mut failing_until = None;
    loop {
        let woken = waiter.woken();
        tokio::pin!(woken);
        // From here on a wake-up counts, also one that comes while we read.
        woken.as_mut().enable();
        let db = shared.db.clone();
        let read = shared.tasks.run(async move { read_store::get(&db, tenant, id).await }).await?;
        if let Err(StoreError::Unavailable(_)) = &read {
            // Who waits anyway need not hear of a database that is restarted meanwhile.
            let give_up = *failing_until.get_or_insert_with(|| (Instant::now() + BLIP).min(until));
            if Instant::now() < give_up {
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        }
        let stored = read?;
        failing_until = None;
        if stored.state.is_finished() || Instant::now() >= until {
            return Ok(stored);
        }
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep_until(until) => {}
            () = shared.stop.drain.cancelled() => return Ok(stored),
        }
    }
}

/// `GET /v1/jobs`.
pub async fn list(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::JobsRead)?;
    let mut query = Query::of(&request);
    let filter = JobFilter {
        status: query.word("status", &JobStatus::WORDS),
        kind: query.text("kind"),
        queue: query.text("queue"),
        metadata: query.map("metadata", "metadata[…]"),
        schedule: query.parsed("schedule_id", "the id of a schedule, as in sch_01jd7m3yhpe2abtz6m5v8w9xyz"),
    };
    let page = query.page();
    query.finish()?;
    let (db, before) = (shared.db.clone(), page.before.map(JobId::from_uuid));
    // One more than asked for tells whether there is a next page.
    let jobs = shared
        .tasks
        .run(async move { read_store::list(&db, caller.tenant, &filter, before, page.limit + 1).await })
        .await??;
    let views: Vec<String> =
        jobs.iter().map(|stored| JobView::new(&stored.job, &stored.state).to_json()).collect();
    let ids: Vec<_> = jobs.iter().map(|stored| stored.job.id.uuid()).collect();
    Ok(list_answer(&ListLink { request: &request, limit: page.limit }, views, &ids))
}

/// `GET /v1/jobs/{id}/attempts`.
pub async fn attempts(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::JobsRead)?;
    Query::of(&request).finish()?;
    let id: JobId = extract::id(&request)?;
    let db = shared.db.clone();
    let attempts = shared
        .tasks
        .run(async move {
            read_store::get(&db, caller.tenant, id).await?;
            read_store::attempts(&db, caller.tenant, id).await
        })
        .await??;
    Ok(HttpResponse::Ok().json(serde_json::json!({ "data": attempts, "next_cursor": null })))
}

/// `POST /v1/jobs/{id}/cancel`.
pub async fn cancel(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::JobsWrite)?;
    Query::of(&request).finish()?;
    let (id, tenant): (JobId, _) = (extract::id(&request)?, caller.tenant);
    let for_task = shared.clone();
    let outcome = shared
        .tasks
        .run(async move {
            let stored = read_store::get(&for_task.db, tenant, id).await?;
            let options = for_task.open_options(tenant, id, stored.sealed_options.as_deref())?;
            let outcome = cancel_job(&for_task.db, tenant, id, Some(options), clock::now()).await?;
            Ok::<_, ApiError>(outcome)
        })
        .await??;
    match outcome {
        CancelOutcome::Cancelled => {
            shared.waiters.wake(tenant, id);
            shared.wakeups.ended.notify_elsewhere();
            shared.wakeups.events.notify_one();
            shared.wakeups.held.notify_one();
        }
        CancelOutcome::Requested => {
            shared.running_jobs.cancel(tenant, id);
            shared.wakeups.cancels.notify_elsewhere();
        }
    }
    one(&shared, &wait_for_end(&shared, tenant, id, Duration::ZERO).await?).await
}

/// `POST /v1/jobs/{id}/retry`.
pub async fn retry(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::JobsWrite)?;
    Query::of(&request).finish()?;
    let (id, tenant): (JobId, _) = (extract::id(&request)?, caller.tenant);
    let db = shared.db.clone();
    shared
        .tasks
        .run(async move {
            read_store::get(&db, tenant, id).await?;
            store::retry(&db, tenant, id).await
        })
        .await??;
    shared.wakeups.jobs.notify_one();
    shared.wakeups.held.notify_one();
    one(&shared, &wait_for_end(&shared, tenant, id, Duration::ZERO).await?).await
}
