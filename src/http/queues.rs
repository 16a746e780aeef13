//! Queues as an admin sees them: how much waits in each and for how long; pause and resume.

use actix_web::http::header::LINK;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;

use super::extract::{self, Query, invalid};
use super::problem::ApiError;
use crate::clock::{self, Timestamp, millis};
use crate::jobs::is_name;
use crate::jobs::queue_limit::QueueLimit;
use crate::jobs::queue_store::{self, Queue};
use crate::shared::Shared;
use crate::tenants::Scope;

#[derive(Serialize)]
struct QueueView {
    name: String,
    depth: i64,
    scheduled: i64,
    running: i64,
    #[serde(with = "millis")]
    oldest: Option<Timestamp>,
    oldest_age_s: Option<f64>,
    paused: bool,
    #[serde(with = "millis")]
    paused_at: Option<Timestamp>,
    concurrency: Option<u32>,
    rate_limit: Option<RateView>,
}

#[derive(Serialize)]
struct RateView {
    per_s: f64,
    burst: u32,
}

impl QueueView {
    fn new(queue: Queue, limit: Option<&QueueLimit>) -> Self {
        let now = clock::now();
        let age = |at: Timestamp| (now - at).num_milliseconds().max(0) as f64 / 1000.0;
        let rate = limit.and_then(|limit| limit.rate);
        Self {
            name: queue.name,
            depth: queue.depth,
            scheduled: queue.scheduled,
            running: queue.running,
            oldest: queue.oldest,
            oldest_age_s: queue.oldest.map(age),
            paused: queue.paused_at.is_some(),
            paused_at: queue.paused_at,
            concurrency: limit.and_then(|limit| limit.concurrency),
            rate_limit: rate.map(|rate| RateView { per_s: rate.per_s, burst: rate.burst }),
        }
    }
}

#[derive(Serialize)]
struct ListView {
    data: Vec<QueueView>,
    next_cursor: Option<String>,
}

/// `GET /v1/admin/queues`: by name, those in which something waits or runs, that are limited, or that are paused.
pub async fn queues(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(&request, &shared, &Scope::Admin)?;
    let mut query = Query::of(&request);
    let limit = query.limit();
    // Names are letters, digits, '_', '-' and '.': one is a cursor as it stands.
    let after = query.text("cursor");
    query.finish()?;
    if after.as_ref().is_some_and(|name| !is_name(name)) {
        return Err(invalid("/cursor", "is not a cursor of this list"));
    }
    let db = shared.db.clone();
    let mut found =
        shared.tasks.run(async move { queue_store::list(&db, caller.tenant, None).await }).await??;
    for name in shared.queue_limits.keys() {
        if let Err(at) = found.binary_search_by(|queue| queue.name.as_str().cmp(name)) {
            found.insert(at, Queue::empty(name));
        }
    }
    found.retain(|queue| after.as_ref().is_none_or(|after| queue.name > *after));
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| more).map(|queue| queue.name.clone());
    let data: Vec<QueueView> = found
        .into_iter()
        .map(|queue| {
            let limit = shared.queue_limits.get(&queue.name);
            QueueView::new(queue, limit)
        })
        .collect();
    let mut response = HttpResponse::Ok();
    if let Some(cursor) = &next_cursor {
        let link = format!("<{}?limit={limit}&cursor={cursor}>; rel=\"next\"", request.path());
        response.insert_header((LINK, link));
    }
    Ok(response.json(ListView { data, next_cursor }))
}

/// `POST /v1/admin/queues/{name}/pause`.
pub async fn pause(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    change(&request, &shared, true).await
}

/// `POST /v1/admin/queues/{name}/resume`.
pub async fn resume(request: HttpRequest, shared: web::Data<Shared>) -> Result<HttpResponse, ApiError> {
    change(&request, &shared, false).await
}

async fn change(
    request: &HttpRequest,
    shared: &web::Data<Shared>,
    pause: bool,
) -> Result<HttpResponse, ApiError> {
    let caller = extract::caller(request, shared, &Scope::Admin)?;
    Query::of(request).finish()?;
    let name = request.match_info().get("name").filter(|name| is_name(name)).map(str::to_owned);
    let Some(name) = name else {
        return Err(ApiError::NotFound(
            "a queue's name is letters, digits, '_', '-' and '.', up to 100 of them",
        ));
    };
    let limit = shared.queue_limits.get(&name).copied();
    let db = shared.db.clone();
    let queue = shared
        .tasks
        .run(async move {
            if pause {
                queue_store::pause(&db, caller.tenant, &name).await?;
            } else {
                queue_store::resume(&db, caller.tenant, &name).await?;
            }
            let found = queue_store::list(&db, caller.tenant, Some(&name)).await?.pop();
            Ok::<_, crate::db::StoreError>(found.unwrap_or_else(|| Queue::empty(&name)))
        })
        .await??;
    shared.wakeups.jobs.notify_one();
    Ok(HttpResponse::Ok().json(QueueView::new(queue, limit.as_ref())))
}
