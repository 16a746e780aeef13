//! `POST /v1/jobs` and `/v1/jobs/batch`. Stop 1 of a job's path; next: `jobs::store::accept`.
//!
//! The answer is sent after the commit that holds the job, and not a moment later: nothing here waits for the work,
//! unless `Prefer: wait` asks for it.

use actix_web::http::StatusCode;
use actix_web::http::header::{LOCATION, RETRY_AFTER};
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::value::RawValue;

use super::extract::{self, BATCH_BODY_MAX_BYTES, BODY_MAX_BYTES, Query};
use super::idempotency::{self, HeldKey, Standing};
use super::jobs::wait_for_end;
use super::problem::ApiError;
use crate::clock;
use crate::db::gate::Pass;
use crate::fields::{Faults, Fields};
use crate::ids::{JobId, TenantId};
use crate::jobs::create::FirstAnswer;
use crate::jobs::new_job::{self, Refused};
use crate::jobs::read_store::StoredJob;
use crate::jobs::store::{Accept, Accepted};
use crate::jobs::view::{JobState, JobView};
use crate::jobs::{BATCH_MAX, Job, after_store, create};
use crate::shared::Shared;
use crate::tenants::Scope;

/// `POST /v1/jobs`.
pub async fn submit(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::JobsWrite)?;
    Query::of(&request).finish()?;
    let bytes = extract::json_body(&request, payload, BODY_MAX_BYTES, 1).await?;
    let held = match idempotency::begin(&request, &shared, caller.tenant, &bytes).await? {
        Standing::Answered(answer) => return Ok(answer),
        Standing::First(held) => Some(held),
        Standing::Free => None,
    };
    let traceparent = extract::traceparent(&request);
    let job = parse(&shared, caller.tenant, traceparent.as_deref(), ("", extract::raw(&bytes)?))
        .map_err(|refused| refusal(&refused))?;
    check_after(&shared, std::slice::from_ref(&job), |_| "/after".to_owned()).await?;
    let body = JobView::new(&job, &JobState::accepted()).to_json();
    if job.unique_key.is_some() {
        return submit_unique(&request, &shared, (job, body), held).await;
    }
    let (tenant, id) = (job.tenant, job.id);
    let accept = accept_of(&shared, job, held.as_ref().map(|held| (held, body.as_str())))?;
    match shared.accept.submit(accept).await? {
        Accepted::Stored => answer(&request, &shared, tenant, id, body).await,
        Accepted::KeyTaken => taken(&shared, tenant, held).await,
    }
}

/// A job with a `unique_key`: one that is not finished and has the same key is the answer.
async fn submit_unique(
    request: &HttpRequest,
    shared: &web::Data<Shared>,
    (job, body): (Job, String),
    held: Option<HeldKey>,
) -> Result<HttpResponse, ApiError> {
    let (tenant, id) = (job.tenant, job.id);
    let accepts = vec![accept_of(shared, job, None)?];
    let first = move |holders: &[Option<StoredJob>]| match holders {
        [Some(holder)] => {
            FirstAnswer { status: 200, location: Some(location(holder.job.id)), body: view(holder) }
        }
        _ => FirstAnswer { status: 202, location: Some(location(id)), body },
    };
    let pass = shared.bulk.enter(tenant).await;
    match create_all(shared, pass, accepts, held.as_ref(), first).await? {
        None => taken(shared, tenant, held).await,
        Some(first) if first.status == 202 => answer(request, shared, tenant, id, first.body).await,
        Some(first) => Ok(HttpResponse::Ok()
            .insert_header((LOCATION, first.location.unwrap_or_default()))
            .content_type("application/json")
            .body(first.body)),
    }
}

/// Stores jobs, their unique keys and the answer under the request's key in one commit.
async fn create_all(
    shared: &web::Data<Shared>,
    pass: Pass,
    accepts: Vec<Accept>,
    held: Option<&HeldKey>,
    first: impl FnOnce(&[Option<StoredJob>]) -> FirstAnswer + Send + 'static,
) -> Result<Option<FirstAnswer>, ApiError> {
    let (db, key) = (shared.db.clone(), held.map(|held| held.stored(None, "")));
    let held = shared.clone();
    let create = async move {
        let created = create::create(&db, &held.courtesy, accepts, key, first).await;
        held.leave(pass);
        created
    };
    let created = shared.tasks.run(create).await??;
    shared.wakeups.jobs.notify_one();
    shared.wakeups.scheduled.notify_one();
    shared.wakeups.held.notify_one();
    Ok(created)
}

/// `POST /v1/jobs/batch`: all or nothing.
pub async fn submit_batch(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::JobsWrite)?;
    Query::of(&request).finish()?;
    let bytes = extract::unread_json(&request, payload, BATCH_BODY_MAX_BYTES).await?;
    let held = match idempotency::begin(&request, &shared, caller.tenant, &bytes).await? {
        Standing::Answered(answer) => return Ok(answer),
        Standing::First(held) => Some(held),
        Standing::Free => None,
    };
    let tenant = caller.tenant;
    let pass = shared.bulk.enter(tenant).await;
    let (traceparent, known) = (extract::traceparent(&request), shared.clone());
    let parse = move || {
        extract::check_json(&bytes, 3)?;
        let jobs = parse_batch(&known, tenant, traceparent.as_deref(), extract::raw(&bytes)?)?;
        let views: Vec<String> =
            jobs.iter().map(|job| JobView::new(job, &JobState::accepted()).to_json()).collect();
        Ok::<_, ApiError>((jobs, views))
    };
    let (jobs, views) = shared.tasks.compute(parse).await??;
    check_after(&shared, &jobs, |index| format!("/jobs/{index}/after")).await?;
    let accepts = jobs.into_iter().map(|job| accept_of(&shared, job, None)).collect::<Result<Vec<_>, _>>()?;
    // Those that stand there already, under their unique keys, are shown as they stand.
    let first = move |holders: &[Option<StoredJob>]| {
        let shown: Vec<String> = views
            .into_iter()
            .zip(holders)
            .map(|(fresh, holder)| holder.as_ref().map_or(fresh, view))
            .collect();
        FirstAnswer { status: 202, location: None, body: batch_body(&shown) }
    };
    match create_all(&shared, pass, accepts, held.as_ref(), first).await? {
        None => taken(&shared, tenant, held).await,
        Some(first) => Ok(HttpResponse::Accepted().content_type("application/json").body(first.body)),
    }
}

fn view(stored: &StoredJob) -> String {
    JobView::new(&stored.job, &stored.state).to_json()
}

fn batch_body(views: &[String]) -> String {
    format!("{{\"data\":[{}]}}", views.join(","))
}

fn parse(
    shared: &Shared,
    tenant: TenantId,
    traceparent: Option<&str>,
    (at, raw): (&str, &RawValue),
) -> Result<Job, Refused> {
    new_job::parse(at, raw, shared.job_context(tenant, clock::now()), traceparent)
}

/// What a job that was not accepted is answered with.
pub(super) fn refusal(refused: &Refused) -> ApiError {
    match refused {
        Refused::InputTooLarge => too_large(),
        Refused::Faults(faults) => faults.clone().into(),
    }
}

fn too_large() -> ApiError {
    ApiError::TooLarge(format!("an input may have {} bytes at most", crate::jobs::INPUT_MAX_BYTES))
}

fn parse_batch(
    shared: &Shared,
    tenant: TenantId,
    traceparent: Option<&str>,
    raw: &RawValue,
) -> Result<Vec<Job>, ApiError> {
    let mut faults = Faults::default();
    let Some(mut fields) = Fields::open("", raw, &mut faults) else {
        return Err(faults.into());
    };
    let list = fields.list("jobs", 1..=BATCH_MAX, &mut faults);
    if list.is_none() && faults.is_empty() {
        fields.fault("jobs", "is missing; send {\"jobs\": [ … ]}", &mut faults);
    }
    fields.finish(&mut faults);
    let mut jobs = Vec::new();
    for (index, one) in list.unwrap_or_default().into_iter().enumerate() {
        match parse(shared, tenant, traceparent, (&format!("/jobs/{index}"), one)) {
            Ok(job) => jobs.push(job),
            Err(Refused::InputTooLarge) => return Err(too_large()),
            Err(Refused::Faults(found)) => {
                found.into_vec().into_iter().for_each(|fault| faults.add(fault.pointer, fault.detail));
            }
        }
    }
    if faults.is_empty() { Ok(jobs) } else { Err(faults.into()) }
}

/// The jobs that others are to wait for must be there. All are the caller's.
async fn check_after(
    shared: &web::Data<Shared>,
    jobs: &[Job],
    at: impl Fn(usize) -> String,
) -> Result<(), ApiError> {
    let mut wanted: Vec<JobId> =
        jobs.iter().filter_map(|job| job.after.as_ref()).flat_map(|after| after.jobs.clone()).collect();
    let Some(tenant) = jobs.first().map(|job| job.tenant).filter(|_| !wanted.is_empty()) else {
        return Ok(());
    };
    wanted.sort_unstable();
    wanted.dedup();
    let db = shared.db.clone();
    let known = shared.tasks.run(async move { after_store::existing(&db, tenant, &wanted).await }).await??;
    let mut faults = Faults::default();
    for (index, job) in jobs.iter().enumerate() {
        let Some(after) = &job.after else { continue };
        for (position, id) in after.positions.iter().zip(&after.jobs) {
            if !known.contains(id) {
                faults.add(
                    format!("{}/{position}", at(index)),
                    format!("there is no job {id}; submit it first"),
                );
            }
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.into()) }
}

fn accept_of(shared: &Shared, job: Job, key: Option<(&HeldKey, &str)>) -> Result<Accept, ApiError> {
    let sealed_options = shared.seal_options(job.tenant, job.id, job.callback.as_ref())?;
    let key = key.map(|(held, body)| held.stored(Some(location(job.id)), body));
    Ok(Accept { job, sealed_options, key })
}

fn location(id: crate::ids::JobId) -> String {
    format!("/v1/jobs/{id}")
}

/// 202 at once, or 200 when the client prefers to wait and the job ended in time.
async fn answer(
    request: &HttpRequest,
    shared: &web::Data<Shared>,
    tenant: crate::ids::TenantId,
    id: crate::ids::JobId,
    body: String,
) -> Result<HttpResponse, ApiError> {
    let Some(wait) = extract::prefer_wait(request) else {
        return Ok(HttpResponse::Accepted()
            .insert_header((LOCATION, location(id)))
            .insert_header((RETRY_AFTER, "1"))
            .content_type("application/json")
            .body(body));
    };
    let stored = wait_for_end(shared, tenant, id, wait).await?;
    let finished = stored.state.is_finished();
    let mut response = HttpResponse::build(if finished { StatusCode::OK } else { StatusCode::ACCEPTED });
    response.insert_header((LOCATION, location(id))).content_type("application/json");
    response.insert_header(("preference-applied", format!("wait={}", wait.as_secs_f64())));
    if !finished {
        response.insert_header((RETRY_AFTER, "1"));
    }
    Ok(response.body(view(&stored)))
}

/// Another process was quicker with the same key: its answer is ours.
async fn taken(
    shared: &web::Data<Shared>,
    tenant: crate::ids::TenantId,
    held: Option<HeldKey>,
) -> Result<HttpResponse, ApiError> {
    let held = held.ok_or(ApiError::KeyRunning)?;
    idempotency::find(shared, tenant, &held).await?.ok_or(ApiError::KeyRunning)
}
