//! A service made up for a worker that is tested: leases and nothing else, with faults on demand.
//!
//! Called by `cases`, which offer jobs and say what goes wrong with them, and wait for what the worker does. A real HTTP server on
//! a free port of 127.0.0.1, and all its memory is here.
//!
//! Invariant: what it answers is what the real service could have answered.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clock;
use crate::ids::{JobId, fresh_uuid};
use crate::workers::LeaseKey;

const BODY_MAX_BYTES: usize = 16 * 1024 * 1024;

/// What is to go wrong with a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trick {
    /// Nothing.
    None,
    /// Someone cancels it: the extensions say so.
    Cancel,
    /// The lease is lost: the extensions say so.
    Lose,
    /// The first report is carried out, but its answer is lost on the way.
    LoseAnswer,
}

/// A hand-out, and all that the worker did with it.
#[derive(Debug, Clone)]
pub(super) struct Hand {
    /// The lease.
    pub(super) lease: String,
    /// The job's id.
    pub(super) job: JobId,
    /// How long the worker wanted it.
    pub(super) lease_s: f64,
    /// Until then it is held.
    pub(super) until: Instant,
    /// What goes wrong.
    pub(super) trick: Trick,
    /// When it was extended.
    pub(super) extended: Vec<Instant>,
    /// Reports on it: when, with which outcome, and what was answered.
    pub(super) reports: Vec<(Instant, String, u16)>,
}

#[derive(Debug, Default)]
struct Memory {
    offered: Option<(Value, Trick)>,
    hands: Vec<Hand>,
    /// When the worker asked for jobs.
    polls: Vec<Instant>,
    /// All is answered with 503.
    away: bool,
}

#[derive(Debug, Default)]
struct Desk {
    memory: Mutex<Memory>,
    changed: Notify,
    key: String,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server.
#[derive(Debug)]
pub(super) struct Stage {
    address: SocketAddr,
    desk: Arc<Desk>,
    handle: ServerHandle,
    server: Mutex<JoinSet<std::io::Result<()>>>,
}

impl Stage {
    /// Starts it.
    /// # Errors
    /// No port of 127.0.0.1 is free.
    pub(super) fn open() -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let desk = Arc::new(Desk { key: format!("rbk_{}", fresh_uuid().simple()), ..Desk::default() });
        let data = web::Data::from(desk.clone());
        let server = HttpServer::new(move || {
            App::new()
                .app_data(data.clone())
                .app_data(web::PayloadConfig::new(BODY_MAX_BYTES))
                .route("/v1/leases", web::post().to(lease))
                .route("/v1/leases/extend", web::post().to(extend))
                .route("/v1/leases/report", web::post().to(report))
        })
        .workers(1)
        .disable_signals()
        .shutdown_timeout(1)
        .listen(listener)?
        .run();
        let handle = server.handle();
        let mut owner = JoinSet::new();
        owner.spawn(server);
        Ok(Self { address, desk, handle, server: Mutex::new(owner) })
    }

    /// Where it is.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The key that it takes.
    pub(super) fn key(&self) -> &str {
        &self.desk.key
    }

    /// Offers a job to the next poll.
    pub(super) fn offer(&self, job: JobId, attempt: u32, input: Map<String, Value>, trick: Trick) {
        let now = clock::rfc3339(clock::now());
        let job = json!({
            "id": job, "status": "running", "input": input, "result": null, "error": null, "attempt": attempt, "max_attempts": 5,
            "queue": "default", "priority": 0, "progress": null, "timeout_s": 3600.0, "callback_url": null, "unique_key": null,
            "metadata": {}, "cancel_requested": false, "created_at": now, "run_at": now, "started_at": now, "finished_at": null,
            "updated_at": now,
        });
        self.desk.lock().offered = Some((job, trick));
        self.desk.changed.notify_waiters();
    }

    /// Nobody took it: it is offered no more.
    pub(super) fn withdraw(&self) {
        self.desk.lock().offered = None;
    }

    /// The service goes away, or comes back.
    pub(super) fn set_away(&self, away: bool) {
        self.desk.lock().away = away;
        self.desk.changed.notify_waiters();
    }

    /// How often the worker asked for jobs since then.
    pub(super) fn polls_since(&self, since: Instant) -> usize {
        self.desk.lock().polls.iter().filter(|at| **at >= since).count()
    }

    /// Waits until the latest hand-out of a job is as wanted; `None`: it was not in time.
    pub(super) async fn until<T>(
        &self,
        job: JobId,
        within: Duration,
        wanted: impl Fn(&Hand) -> Option<T>,
    ) -> Option<T> {
        let give_up = Instant::now() + within;
        loop {
            let changed = self.desk.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let hand = self.desk.lock().hands.iter().rev().find(|hand| hand.job == job).cloned();
            if let Some(found) = hand.as_ref().and_then(&wanted) {
                return Some(found);
            }
            // Some conditions come true by time alone.
            let soon = Instant::now() + Duration::from_millis(100);
            if tokio::time::timeout_at(soon.min(give_up), changed).await.is_err() && Instant::now() >= give_up
            {
                return None;
            }
        }
    }

    /// A hand-out as it stands.
    pub(super) fn hand(&self, lease: &str) -> Option<Hand> {
        self.desk.lock().hands.iter().find(|hand| hand.lease == lease).cloned()
    }

    /// Stops it.
    pub(super) async fn close(self) {
        self.handle.stop(false).await;
        let mut server = std::mem::take(&mut *self.server.lock().unwrap_or_else(PoisonError::into_inner));
        while server.join_next().await.is_some() {}
    }
}

fn refused(desk: &Desk, request: &HttpRequest) -> Option<HttpResponse> {
    let header =
        request.headers().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if header.strip_prefix("Bearer ") != Some(&desk.key) {
        return Some(
            HttpResponse::Unauthorized().json(
                json!({ "status": 401, "title": "No valid API key", "detail": "send RINGBACK_API_KEY" }),
            ),
        );
    }
    desk.lock().away.then(|| {
        HttpResponse::ServiceUnavailable()
            .insert_header(("retry-after", "2"))
            .json(json!({ "status": 503, "title": "The database cannot be reached", "detail": "try again in a moment" }))
    })
}

fn invalid(detail: &str) -> HttpResponse {
    HttpResponse::UnprocessableEntity()
        .json(json!({ "status": 422, "title": "The request is not valid", "detail": detail }))
}

async fn lease(request: HttpRequest, body: web::Bytes, desk: web::Data<Desk>) -> HttpResponse {
    desk.lock().polls.push(Instant::now());
    if let Some(refused) = refused(&desk, &request) {
        return refused;
    }
    let Ok(wish) = serde_json::from_slice::<Value>(&body) else { return invalid("the body is not JSON") };
    let Some(kind) = wish["kinds"][0].as_str() else { return invalid("/kinds is missing") };
    let lease_s = wish["lease_s"].as_f64().unwrap_or(30.0).clamp(1.0, 3600.0);
    let until =
        Instant::now() + Duration::from_secs_f64(wish["wait_s"].as_f64().unwrap_or(0.0).clamp(0.0, 60.0));
    loop {
        let changed = desk.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let offered = desk.lock().offered.take();
        if let Some((job, trick)) = offered {
            return hand_out(&desk, job, trick, (kind, lease_s));
        }
        if desk.lock().away || tokio::time::timeout_at(until, changed).await.is_err() {
            return HttpResponse::Ok().json(json!({ "leases": [] }));
        }
    }
}

fn hand_out(desk: &Desk, mut job: Value, trick: Trick, (kind, lease_s): (&str, f64)) -> HttpResponse {
    job["kind"] = json!(kind);
    let Some(id) = job["id"].as_str().and_then(|id| id.parse().ok()) else { return invalid("no id") };
    let lease = LeaseKey { job: id, token: fresh_uuid() }.to_string();
    let length = Duration::from_secs_f64(lease_s);
    desk.lock().hands.push(Hand {
        lease: lease.clone(),
        job: id,
        lease_s,
        until: Instant::now() + length,
        trick,
        extended: Vec::new(),
        reports: Vec::new(),
    });
    desk.changed.notify_waiters();
    let expires_at = clock::rfc3339(clock::now() + length);
    HttpResponse::Ok().json(json!({ "leases": [{ "lease": lease, "expires_at": expires_at, "job": job }] }))
}

async fn extend(request: HttpRequest, body: web::Bytes, desk: web::Data<Desk>) -> HttpResponse {
    if let Some(refused) = refused(&desk, &request) {
        return refused;
    }
    let Ok(wish) = serde_json::from_slice::<Value>(&body) else { return invalid("the body is not JSON") };
    let Some(leases) = wish["leases"].as_array() else { return invalid("/leases is missing") };
    let length = Duration::from_secs_f64(wish["lease_s"].as_f64().unwrap_or(30.0).clamp(1.0, 3600.0));
    let now = Instant::now();
    let mut memory = desk.lock();
    let mut answers = Vec::new();
    for lease in leases {
        let lost = json!({ "lease": lease, "status": 409, "expires_at": null, "cancelled": false });
        let hand = memory.hands.iter_mut().find(|hand| lease.as_str() == Some(&hand.lease));
        let Some(hand) = hand else {
            answers.push(lost);
            continue;
        };
        hand.extended.push(now);
        if hand.until <= now
            || hand.trick == Trick::Lose
            || hand.reports.iter().any(|(_, outcome, status)| ends(outcome, *status))
        {
            answers.push(lost);
            continue;
        }
        let cancelled = hand.trick == Trick::Cancel;
        if !cancelled {
            hand.until = now + length;
        }
        let expires_at = clock::rfc3339(clock::now() + (hand.until - now));
        answers
            .push(json!({ "lease": lease, "status": 200, "expires_at": expires_at, "cancelled": cancelled }));
    }
    drop(memory);
    desk.changed.notify_waiters();
    HttpResponse::Ok().json(json!({ "leases": answers }))
}

fn ends(outcome: &str, status: u16) -> bool {
    status == 200 && outcome != "progress"
}

async fn report(request: HttpRequest, body: web::Bytes, desk: web::Data<Desk>) -> HttpResponse {
    if let Some(refused) = refused(&desk, &request) {
        return refused;
    }
    let Ok(said) = serde_json::from_slice::<Value>(&body) else { return invalid("the body is not JSON") };
    let Some(reports) = said["reports"].as_array() else { return invalid("/reports is missing") };
    let mut answers = Vec::new();
    let mut lose_answer = false;
    {
        let mut memory = desk.lock();
        for report in reports {
            let outcome = report["outcome"].as_str().unwrap_or_default();
            let hand = memory.hands.iter_mut().find(|hand| report["lease"].as_str() == Some(&hand.lease));
            let status = match hand {
                Some(hand) => {
                    let (status, lost) = judge(hand, outcome);
                    lose_answer |= lost;
                    hand.reports.push((Instant::now(), outcome.to_owned(), status));
                    status
                }
                None => 409,
            };
            answers.push(answer(&report["lease"], status));
        }
    }
    desk.changed.notify_waiters();
    if lose_answer {
        // What a client sees whose answer never came, near enough.
        return HttpResponse::BadGateway().body("the answer was lost on the way");
    }
    HttpResponse::Ok().json(json!({ "reports": answers }))
}

/// The status of a report, and whether its answer is to be lost.
fn judge(hand: &Hand, outcome: &str) -> (u16, bool) {
    if !matches!(outcome, "succeeded" | "failed" | "released" | "progress") {
        return (422, false);
    }
    if let Some((_, before, _)) = hand.reports.iter().find(|(_, outcome, status)| ends(outcome, *status)) {
        return (if before == outcome { 200 } else { 409 }, false);
    }
    let held = Instant::now() < hand.until && !matches!(hand.trick, Trick::Cancel | Trick::Lose);
    (if held { 200 } else { 409 }, held && hand.trick == Trick::LoseAnswer && outcome != "progress")
}

fn answer(lease: &Value, status: u16) -> Value {
    let problem = |code: &str, detail: &str| json!({ "type": format!("urn:ringback:problem:{code}"), "title": detail, "status": status, "detail": detail, "code": code });
    match status {
        200 => json!({ "lease": lease, "status": 200 }),
        409 => {
            json!({ "lease": lease, "status": 409, "problem": problem("lease-lost", "the lease is no longer held") })
        }
        _ => {
            json!({ "lease": lease, "status": status, "problem": problem("invalid-request", "/outcome must be one of: succeeded, failed, released, progress") })
        }
    }
}
