//! Workers: `POST /v1/leases`, `/extend`, `/report`.
//!
//! A poll waits in `workers::waiting` until `engine::lend_jobs` answers it. Reports are carried out in rounds, each in a few
//! statements for all its items; the ends among them go through the finish batcher like those of built-in kinds.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::extract::{self, BATCH_BODY_MAX_BYTES, BODY_MAX_BYTES, Query};
use super::problem::ApiError;
use crate::clock;
use crate::db::StoreError;
use crate::jobs::finish::{Finish, Try, prepare};
use crate::jobs::lease_store::LostLease;
use crate::jobs::outcome::{TryResult, decide};
use crate::jobs::{BUILT_IN, Told};
use crate::shared::Shared;
use crate::tenants::{Caller, Scope, WorkerKinds};
use crate::workers::parcel::Parcel;
use crate::workers::report::{self, Outcome, Report};
use crate::workers::store::{self, Held};
use crate::workers::{LeaseKey, wish};

/// A claim that does not come back says so within 6 s.
const ANSWER_PATIENCE: Duration = Duration::from_millis(5500);

/// `POST /v1/leases`.
pub async fn lease(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let (caller, _) = extract::worker(&request, &shared)?;
    Query::of(&request).finish()?;
    let bytes = extract::json_body(&request, payload, BODY_MAX_BYTES, 0).await?;
    let wish = wish::parse(caller.tenant, extract::raw(&bytes)?, &BUILT_IN)?;
    for kind in &wish.kinds {
        let scope = Scope::WorkersOf(kind.clone());
        if !caller.may(&scope) {
            return Err(ApiError::Forbidden(scope.word()));
        }
        shared.sightings.saw(caller.tenant, kind, &wish.worker);
    }
    let until = Instant::now() + wish.wait;
    let mut waiting = shared.waiting_workers.enter(wish, until);
    shared.wakeups.lenders.notify_here();
    let answer = tokio::select! {
        answer = waiting.answer() => answer,
        () = shared.stop.drain.cancelled() => Some(Ok(None)),
        () = tokio::time::sleep_until(until + ANSWER_PATIENCE) => None,
    };
    match answer {
        Some(Ok(Some(parcel))) => Ok(HttpResponse::Ok()
            .content_type("application/json")
            .body(BoxBody::new(ParcelBody::new(parcel)))),
        Some(Ok(None)) => Ok(HttpResponse::Ok().content_type("application/json").body(r#"{"leases":[]}"#)),
        Some(Err(error)) => Err(error.into()),
        None => Err(StoreError::Unavailable(std::sync::Arc::new(sqlx::Error::PoolTimedOut)).into()),
    }
}

/// An answer with leases in it. Dropped before it was handed to the connection, it takes the parcel back.
struct ParcelBody {
    bytes: Option<Bytes>,
    size: u64,
    parcel: Parcel,
}

impl ParcelBody {
    fn new(parcel: Parcel) -> Self {
        let bytes = Bytes::from(parcel.to_json());
        Self { size: bytes.len() as u64, bytes: Some(bytes), parcel }
    }
}

impl MessageBody for ParcelBody {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.size)
    }

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let bytes = self.bytes.take();
        if bytes.is_none() {
            self.parcel.delivered();
        }
        Poll::Ready(bytes.map(Ok))
    }
}

fn held(caller: &Caller, kinds: &WorkerKinds, leases: Vec<LeaseKey>) -> Held {
    let kinds = match kinds {
        WorkerKinds::All => None,
        WorkerKinds::Only(kinds) => Some(kinds.clone()),
    };
    Held { tenant: caller.tenant, kinds, leases }
}

/// `POST /v1/leases/extend`.
pub async fn extend(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let (caller, kinds) = extract::worker(&request, &shared)?;
    Query::of(&request).finish()?;
    let bytes = extract::json_body(&request, payload, BODY_MAX_BYTES, 0).await?;
    let wanted = wish::parse_extension(extract::raw(&bytes)?)?;
    let keys: Vec<Option<LeaseKey>> = wanted.leases.iter().map(|text| text.parse().ok()).collect();
    let held = held(&caller, &kinds, keys.iter().flatten().copied().collect());
    let db = shared.db.clone();
    let extended = shared.tasks.run(async move { store::extend(&db, &held, wanted.lease).await }).await??;
    for one in extended.values() {
        shared.sightings.saw(caller.tenant, &one.kind, &one.worker);
    }
    let view = |(text, key): (&String, &Option<LeaseKey>)| match key.and_then(|key| extended.get(&key.token))
    {
        Some(one) => json!({
            "lease": text, "status": 200, "expires_at": clock::rfc3339(one.expires_at), "cancelled": one.cancelled,
        }),
        None => json!({ "lease": text, "status": 409, "expires_at": null, "cancelled": false }),
    };
    let leases: Vec<Value> = wanted.leases.iter().zip(&keys).map(view).collect();
    Ok(HttpResponse::Ok().json(json!({ "leases": leases })))
}

/// `POST /v1/leases/report`.
pub async fn report(
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, ApiError> {
    let (caller, kinds) = extract::worker(&request, &shared)?;
    Query::of(&request).finish()?;
    let bytes = extract::json_body(&request, payload, BATCH_BODY_MAX_BYTES, 4).await?;
    let items = report::parse(extract::raw(&bytes)?)?;
    let echoes: Vec<Value> = items
        .iter()
        .map(|item| item.lease.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default())
        .collect();
    let reports: Vec<Result<Report, ApiError>> =
        items.into_iter().map(|item| item.report.map_err(ApiError::from)).collect();
    let for_task = shared.clone();
    let answers =
        shared.tasks.run(async move { carry_out(&for_task, &caller, &kinds, reports).await }).await??;
    let view = |(lease, answer): (Value, Result<(), ApiError>)| match answer {
        Ok(()) => json!({ "lease": lease, "status": 200 }),
        Err(error) => {
            let problem = error.to_item();
            json!({ "lease": lease, "status": problem["status"], "problem": problem })
        }
    };
    let reports: Vec<Value> = echoes.into_iter().zip(answers).map(view).collect();
    Ok(HttpResponse::Ok().json(json!({ "reports": reports })))
}

/// Carries reports out, and answers each.
/// # Errors
/// The database is away: what was carried out is answered 200 when the request is repeated.
async fn carry_out(
    shared: &Shared,
    caller: &Caller,
    kinds: &WorkerKinds,
    reports: Vec<Result<Report, ApiError>>,
) -> Result<Vec<Result<(), ApiError>>, ApiError> {
    let key = |report: &Result<Report, ApiError>| report.as_ref().ok().and_then(|report| report.key);
    let rounds = report::rounds(reports.iter().map(key));
    let mut done: HashSet<usize> = HashSet::new();
    for round in rounds {
        let round: Vec<(usize, &Report, LeaseKey)> = round
            .into_iter()
            .filter_map(|index| Some((index, reports[index].as_ref().ok()?, key(&reports[index])?)))
            .collect();
        let held = |leases| held(caller, kinds, leases);
        done.extend(carry_out_round(shared, &held, &round).await?);
    }
    let answer = |(index, report): (usize, Result<Report, ApiError>)| match report {
        Err(error) => Err(error),
        Ok(_) if done.contains(&index) => Ok(()),
        Ok(_) => Err(ApiError::Store(StoreError::LeaseLost)),
    };
    Ok(reports.into_iter().enumerate().map(answer).collect())
}

/// One round, in which no lease comes twice. Returns which of the items were carried out, now or before.
async fn carry_out_round(
    shared: &Shared,
    held: &impl Fn(Vec<LeaseKey>) -> Held,
    round: &[(usize, &Report, LeaseKey)],
) -> Result<Vec<usize>, ApiError> {
    let of = |wanted: &dyn Fn(&Report) -> bool| -> Vec<&(usize, &Report, LeaseKey)> {
        round.iter().filter(|(_, report, _)| wanted(report)).collect()
    };
    let keys = |items: &[&(usize, &Report, LeaseKey)]| held(items.iter().map(|(_, _, key)| *key).collect());
    let mut done: HashSet<Uuid> = HashSet::new();

    let telling = of(&|report| report.tells() || report.outcome == Outcome::Progress);
    if !telling.is_empty() {
        let told: Vec<&Told> = telling.iter().map(|(_, report, _)| &report.told).collect();
        let kept = store::tell(&shared.db, &keys(&telling), &told).await?;
        done.extend(kept.iter().filter(|token| {
            telling.iter().any(|(_, report, key)| key.token == **token && report.outcome == Outcome::Progress)
        }));
    }
    let releasing = of(&|report| report.outcome == Outcome::Released);
    if !releasing.is_empty() {
        let back = store::release(&shared.db, &keys(&releasing)).await?;
        if !back.is_empty() {
            shared.wakeups.jobs.notify_one();
        }
        done.extend(back);
    }
    let ending = of(&|report| matches!(report.outcome, Outcome::Succeeded | Outcome::Failed));
    if !ending.is_empty() {
        let found = store::look_up(&shared.db, &keys(&ending)).await?;
        done.extend(end(shared, &found, &ending).await?);
    }

    let lost: Vec<_> = round.iter().filter(|(_, _, key)| !done.contains(&key.token)).collect();
    if !lost.is_empty() {
        cancel(shared, store::look_up(&shared.db, &keys(&lost)).await?).await?;
        let before = store::reported(&shared.db, &keys(&lost)).await?;
        let same =
            |(_, report, key): &&&(usize, &Report, LeaseKey)| before.get(&key.token) == Some(&report.outcome);
        done.extend(lost.iter().filter(same).map(|(_, _, key)| key.token));
    }
    Ok(round.iter().filter(|(_, _, key)| done.contains(&key.token)).map(|(index, _, _)| *index).collect())
}

/// Ends tries as their workers say. Returns the tokens of those that were held.
async fn end(
    shared: &Shared,
    found: &HashMap<Uuid, LostLease>,
    ending: &[&(usize, &Report, LeaseKey)],
) -> Result<Vec<Uuid>, ApiError> {
    let mut tokens = Vec::with_capacity(ending.len());
    let mut finishes = Vec::with_capacity(ending.len());
    for (_, report, key) in ending {
        let Some((one, result)) = found.get(&key.token).zip(report.try_result()) else { continue };
        // Whoever asked for the end of a job is told that it was cancelled, not that it succeeded.
        if one.cancel_requested {
            continue;
        }
        tokens.push(key.token);
        finishes.push(finish_of(shared, one, result));
    }
    let mut held = Vec::with_capacity(tokens.len());
    for (token, result) in tokens.into_iter().zip(shared.finish.submit_all(finishes).await) {
        if result? {
            held.push(token);
        }
    }
    Ok(held)
}

/// A report on a job that someone wants stopped ends it as cancelled, whatever it says.
async fn cancel(shared: &Shared, found: HashMap<Uuid, LostLease>) -> Result<(), ApiError> {
    let finishes: Vec<Finish> = found
        .values()
        .filter(|one| one.cancel_requested)
        .map(|one| finish_of(shared, one, TryResult::Cancelled))
        .collect();
    for result in shared.finish.submit_all(finishes).await {
        // Another one may have been quicker; then it is cancelled all the same.
        result?;
    }
    Ok(())
}

fn finish_of(shared: &Shared, one: &LostLease, result: TryResult) -> Finish {
    let LostLease { lease, worker, .. } = one;
    let fenced = !matches!(result, TryResult::Cancelled);
    let (outcome, verdict) = decide(&lease.job.retry, lease.tries, result, rand::random());
    // Options that cannot be opened must not keep the job from ending; the callback goes out and fails visibly.
    let options = shared.open_options(lease.job.tenant, lease.job.id, lease.sealed_options.as_deref()).ok();
    let one = Try {
        job: &lease.job,
        callback: options.as_ref(),
        token: lease.token,
        tries: lease.tries,
        worker,
        started_at: lease.started_at,
        finished_at: clock::now().max(lease.started_at),
        told: &lease.told,
        fenced,
    };
    prepare(&one, outcome, verdict)
}
