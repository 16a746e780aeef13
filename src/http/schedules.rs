//! Schedules: create, show, change, delete, trigger. All of it is for keys with the scope `admin`.
//!
//! A change rings the bell for the loop that fires them.

use std::sync::Arc;

use actix_web::http::header::{ETAG, LOCATION, RETRY_AFTER};
use actix_web::{HttpRequest, HttpResponse, web};

use super::extract::{self, BODY_MAX_BYTES, IfMatch, Query, entity_tag};
use super::idempotency::{self, HeldKey, Standing};
use super::problem::ApiError;
use super::submit::refusal;
use super::{ListLink, list_answer};
use crate::clock;
use crate::ids::{ScheduleId, TenantId};
use crate::jobs::Job;
use crate::jobs::store::Accept;
use crate::jobs::view::{JobState, JobView};
use crate::schedules::change::{self, ScheduleError};
use crate::schedules::stored::Shown;
use crate::schedules::view::ScheduleView;
use crate::schedules::{Schedule, ScheduleStatus, new_schedule, store};
use crate::shared::Shared;
use crate::tenants::Scope;

/// How deep a job's input stands in a schedule.
const WRAP: usize = 2;

impl From<ScheduleError> for ApiError {
    fn from(error: ScheduleError) -> Self {
        match error {
            ScheduleError::Secret(error) => error.into(),
            ScheduleError::Refused(refused) => refusal(&refused),
            ScheduleError::Changed => Self::PreconditionFailed,
        }
    }
}

/// `POST /v1/schedules`.
pub async fn create(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::Admin)?;
    Query::of(&request).finish()?;
    let bytes = extract::json_body(&request, payload, BODY_MAX_BYTES, WRAP).await?;
    let held = match idempotency::begin(&request, &shared, caller.tenant, &bytes).await? {
        Standing::Answered(answer) => return Ok(answer),
        Standing::First(held) => Some(held),
        Standing::Free => None,
    };
    let db = shared.db.clone();
    let now = shared.tasks.run(async move { store::now(&db).await }).await??;
    let context = shared.job_context(caller.tenant, now);
    let settings =
        new_schedule::parse_new(extract::raw(&bytes)?, context).map_err(|refused| refusal(&refused))?;
    let schedule = Schedule::new(caller.tenant, settings, now);
    let (at, body) = (location(schedule.id), ScheduleView::new(&schedule).to_json());
    let key = held.as_ref().map(|held| held.stored(Some(at.clone()), &body));
    let (for_task, new) = (shared.clone(), schedule.clone());
    let created = async move { change::create(&for_task.db, &for_task.sealer, &new, key).await };
    if !shared.tasks.run(created).await?? {
        return taken(&shared, caller.tenant, held).await;
    }
    shared.wakeups.schedules.notify_one();
    Ok(HttpResponse::Created()
        .insert_header((LOCATION, at))
        .insert_header((ETAG, entity_tag(schedule.version)))
        .content_type("application/json")
        .body(body))
}

/// Another process was quicker with the same key: its answer is ours.
async fn taken(
    shared: &web::Data<Shared>,
    tenant: TenantId,
    held: Option<HeldKey>,
) -> Result<HttpResponse, ApiError> {
    let held = held.ok_or(ApiError::KeyRunning)?;
    idempotency::find(shared, tenant, &held).await?.ok_or(ApiError::KeyRunning)
}

fn location(id: ScheduleId) -> String {
    format!("/v1/schedules/{id}")
}

fn answer(schedule: &Shown) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((ETAG, entity_tag(schedule.version())))
        .content_type("application/json")
        .body(view(schedule))
}

fn view(schedule: &Shown) -> String {
    if let Shown::Unreadable(found) = schedule {
        let id = found.row.id;
        tracing::error!(schedule.id = %id, error = found.why, "schedule {id} cannot be read");
    }
    ScheduleView::of(schedule).to_json()
}

/// `GET /v1/schedules/{id}`.
pub async fn get(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::Admin)?;
    Query::of(&request).finish()?;
    let id: ScheduleId = extract::id(&request)?;
    let for_task = shared.clone();
    let found = async move { store::get(&for_task.db, &for_task.sealer, caller.tenant, id).await };
    Ok(answer(&shared.tasks.run(found).await??))
}

/// `GET /v1/schedules`.
pub async fn list(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::Admin)?;
    let mut query = Query::of(&request);
    let status = query.word("status", &ScheduleStatus::WORDS);
    let page = query.page();
    query.finish()?;
    let (for_task, before) = (shared.clone(), page.before.map(ScheduleId::from_uuid));
    let found = shared
        .tasks
        .run(async move {
            let part = (before, page.limit + 1);
            store::list(&for_task.db, &for_task.sealer, caller.tenant, status, part).await
        })
        .await??;
    let ids: Vec<_> = found.iter().map(|schedule| schedule.id().uuid()).collect();
    let views = found.iter().map(view).collect();
    Ok(list_answer(&ListLink { request: &request, limit: page.limit }, views, &ids))
}

/// `PATCH /v1/schedules/{id}`.
pub async fn patch(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::Admin)?;
    Query::of(&request).finish()?;
    let id: ScheduleId = extract::id(&request)?;
    let if_match = IfMatch::of(&request)?;
    let bytes = extract::patch_body(&request, payload, WRAP).await?;
    let raw = extract::raw(&bytes)?.to_owned();
    let (for_task, whose) = (shared.clone(), (caller.tenant, id));
    let changed = shared
        .tasks
        .run(async move {
            // What would be refused anyway is refused for what is wrong with it (RFC 9110, section 13.2.1).
            let new = |old: &Schedule, now| {
                let context = for_task.job_context(whose.0, now);
                let new = new_schedule::parse_patch(&raw, &old.settings, context)
                    .map_err(ScheduleError::Refused)?;
                if if_match.allows(old.version) { Ok(new) } else { Err(ScheduleError::Changed) }
            };
            change::change(&for_task.db, &for_task.sealer, whose, new).await
        })
        .await??;
    shared.wakeups.schedules.notify_one();
    Ok(answer(&Shown::Whole(Box::new(changed))))
}

/// `DELETE /v1/schedules/{id}`.
pub async fn delete(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::Admin)?;
    Query::of(&request).finish()?;
    let whose = (caller.tenant, extract::id(&request)?);
    let if_match = IfMatch::of(&request)?;
    let db = shared.db.clone();
    let deleted = async move { change::delete(&db, whose, |version| if_match.allows(version)).await };
    shared.tasks.run(deleted).await??;
    Ok(HttpResponse::NoContent().finish())
}

/// `POST /v1/schedules/{id}/trigger`.
pub async fn trigger(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::Admin)?;
    Query::of(&request).finish()?;
    let whose = (caller.tenant, extract::id(&request)?);
    let held = match idempotency::begin(&request, &shared, caller.tenant, b"").await? {
        Standing::Answered(answer) => return Ok(answer),
        Standing::First(held) => Some(Arc::new(held)),
        Standing::Free => None,
    };
    let (for_task, key) = (shared.clone(), held.clone());
    let traceparent = extract::traceparent(&request);
    let job = shared
        .tasks
        .run(async move {
            let accept = |job: Job| {
                let sealed_options = for_task.seal_options(job.tenant, job.id, job.callback.as_ref())?;
                let key = key.as_ref().map(|held| held.stored(Some(job_location(&job)), &body_of(&job)));
                Ok(Accept { job, sealed_options, key })
            };
            let how = (for_task.job_context(whose.0, clock::now()), traceparent.as_deref());
            change::trigger(&for_task.db, &for_task.sealer, whose.1, how, accept).await
        })
        .await??;
    let Some(job) = job else {
        let held = held.ok_or(ApiError::KeyRunning)?;
        return idempotency::find(&shared, caller.tenant, &held).await?.ok_or(ApiError::KeyRunning);
    };
    shared.wakeups.jobs.notify_one();
    if job.is_held() {
        shared.wakeups.held.notify_one();
    }
    Ok(HttpResponse::Accepted()
        .insert_header((LOCATION, job_location(&job)))
        .insert_header((RETRY_AFTER, "1"))
        .content_type("application/json")
        .body(body_of(&job)))
}

fn job_location(job: &Job) -> String {
    format!("/v1/jobs/{}", job.id)
}

fn body_of(job: &Job) -> String {
    JobView::new(job, &JobState::accepted()).to_json()
}
