//! Schedules: managed, fired exactly once, kept from overlapping, made up for after a time without any process.
//!
//! What a pattern means, and what becomes of it where a clock is put forward or back, stands in the unit tests of
//! `src/schedules/`.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use http::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _};
use standardwebhooks::Webhook;

use crate::harness::client::{get_job, list, string};
use crate::harness::database::TestDatabase;
use crate::harness::process::ServeProcess;
use crate::harness::service::database;
use crate::harness::{Answer, Client, Receiver, Reply, Ringback, eventually};

const EVERY_SECOND: &str = "* * * * * *";
/// Some day, but not while the tests run.
pub(crate) const RARELY: &str = "0 0 29 2 *";

pub(crate) async fn created(ring: &Client, schedule: Value) -> Value {
    ring.post("/v1/schedules", schedule).await.expect(201).json()
}

pub(crate) fn path(schedule: &Value) -> String {
    format!("/v1/schedules/{}", string(&schedule["id"]))
}

pub(crate) async fn shown(ring: &Client, path: &str) -> Value {
    ring.get(path).await.expect(200).json()
}

pub(crate) async fn patch(ring: &Client, path: &str, patch: Value) -> Answer {
    let call = ring.call(Method::PATCH, path).header("content-type", "application/merge-patch+json");
    call.body(patch.to_string()).send().await
}

/// A job for workers of this kind, of which there are none: it waits.
pub(crate) fn waiting(kind: &str) -> Value {
    json!({ "kind": kind, "input": {"n": 1} })
}

fn time(value: &Value) -> DateTime<Utc> {
    string(value).parse().expect("a time")
}

/// All jobs of a kind, the oldest first.
async fn jobs_of(ring: &Client, kind: &str) -> Vec<Value> {
    let (mut jobs, mut path) = (Vec::new(), format!("/v1/jobs?kind={kind}&limit=250"));
    loop {
        let page = ring.get(&path).await.expect(200).json();
        jobs.extend(list(&page));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/jobs?kind={kind}&limit=250&cursor={cursor}");
    }
    jobs.reverse();
    jobs
}

/// As soon as there are so many.
async fn jobs_when(ring: &Client, kind: &str, count: usize) -> Vec<Value> {
    eventually("jobs", async || jobs_of(ring, kind).await, |jobs| jobs.len() >= count).await
}

/// For which times the jobs were made; each once.
#[track_caller]
fn times_of(jobs: &[Value]) -> BTreeSet<DateTime<Utc>> {
    let times: BTreeSet<_> = jobs.iter().map(|job| time(&job["scheduled_for"])).collect();
    assert_eq!(times.len(), jobs.len(), "a time fired twice");
    times
}

#[track_caller]
fn assert_every(step: TimeDelta, times: &BTreeSet<DateTime<Utc>>) {
    let times: Vec<_> = times.iter().collect();
    assert!(times.windows(2).all(|pair| *pair[1] - *pair[0] == step), "{times:?}");
}

/// Makes schedules due since a moment of the past, as if nothing had run since then.
async fn due_since(database: &TestDatabase, condition: &str, since: &str) {
    let mut sql = database.options().connect().await.expect("a connection");
    let update = format!("UPDATE ringback.schedules SET next_at = {since} WHERE {condition}");
    sql.execute(AssertSqlSafe(update)).await.expect("an update");
}

#[tokio::test]
async fn a_schedule_is_created_shown_listed_and_deleted() {
    let ring = Ringback::start().await;
    let given = json!({ "cron": "30 2 * * MON-FRI", "timezone": "Europe/Berlin", "overlap": "allow", "catch_up": "last",
        "status": "active", "description": "the nightly report", "metadata": {"team": "billing"},
        "job": {"kind": "report", "input": {"n": 1.0}, "queue": "slow"} });

    let answer = ring.post("/v1/schedules", given.clone()).await.expect(201);
    let made = answer.json();
    assert_eq!((answer.header("location"), answer.header("etag")), (path(&made).as_str(), "\"1\""));
    for (name, value) in given.as_object().expect("an object") {
        assert_eq!(made[name], *value, "{name}");
    }
    let next: Vec<_> = made["next"].as_array().expect("a list").iter().map(time).collect();
    assert_eq!(next.len(), 5);
    assert!(next.windows(2).all(|pair| pair[0] < pair[1]) && next[0] > time(&made["created_at"]));
    assert_eq!((&made["last_fired_at"], &made["last_job_id"]), (&Value::Null, &Value::Null));

    let again = ring.get(&path(&made)).await.expect(200);
    assert_eq!((again.json(), again.header("etag")), (made.clone(), "\"1\""));
    let other = created(&ring, json!({ "cron": "@daily", "status": "paused", "job": waiting("x") })).await;
    assert_eq!((&other["next"], &other["timezone"]), (&json!([]), &json!("UTC")));
    assert_eq!((&other["overlap"], &other["catch_up"]), (&json!("skip"), &json!("none")));
    let page = ring.get("/v1/schedules?limit=1").await.expect(200).json();
    assert_eq!(list(&page), [other], "the newest first");
    let next = format!("/v1/schedules?limit=1&cursor={}", string(&page["next_cursor"]));
    assert_eq!(list(&ring.get(&next).await.expect(200).json()), std::slice::from_ref(&made));
    assert_eq!(list(&ring.get("/v1/schedules?status=active").await.expect(200).json()).len(), 1);

    let delete = ring.call(Method::DELETE, &path(&made));
    delete.header("if-match", "\"7\"").send().await.expect(412);
    ring.call(Method::DELETE, &path(&made)).send().await.expect(204);
    ring.get(&path(&made)).await.expect(404);
    ring.call(Method::DELETE, &path(&made)).send().await.expect(404);
}

#[tokio::test]
async fn faults_are_named_by_pointer() {
    let ring = Ringback::start().await;
    let wrong = json!({ "cron": "60 * * * *", "timezone": "Mars/Base", "overlap": "perhaps", "every": 5,
        "job": {"kind": "http", "input": {"url": "ftp://x/"}, "run_at": "2030-01-01T00:00:00Z", "unique_key": "k"} });
    let answer = ring.post("/v1/schedules", wrong).await.expect(422);
    let mut pointers = answer.pointers();
    pointers.sort();
    assert_eq!(
        pointers,
        ["/cron", "/every", "/job/input/url", "/job/run_at", "/job/unique_key", "/overlap", "/timezone"]
    );
    let text = answer.text();
    assert!(text.contains("the field \\\"minute\\\" has \\\"60\\\"; it must be from 0 to 59"), "{text}");
    assert_eq!(ring.post("/v1/schedules", json!({})).await.expect(422).pointers(), ["/cron", "/job"]);
    let never = json!({ "cron": "0 0 30 2 *", "job": waiting("x") });
    assert_eq!(ring.post("/v1/schedules", never).await.expect(422).pointers(), ["/cron"]);
    let large = json!({ "cron": "@daily", "job": {"kind": "x", "input": "x".repeat(300_000)} });
    ring.post("/v1/schedules", large).await.expect(413);
}

#[tokio::test]
async fn the_same_request_under_a_key_makes_one_schedule() {
    let ring = Ringback::start().await;
    let body = json!({ "cron": "@daily", "job": waiting("x") });
    let post = async |body: &Value| {
        ring.call(Method::POST, "/v1/schedules").header("idempotency-key", "k").json(body).send().await
    };
    let first = post(&body).await.expect(201);
    let second = post(&body).await.expect(201);
    assert_eq!((second.json(), second.header("idempotency-replayed")), (first.json(), "true"));
    post(&json!({ "cron": "@hourly", "job": waiting("x") })).await.expect(422);
    assert_eq!(list(&ring.get("/v1/schedules").await.expect(200).json()).len(), 1);
}

#[tokio::test]
async fn a_time_makes_a_job_that_tells_where_it_comes_from() {
    let ring = Ringback::start().await;
    let (target, callback) = (Receiver::ok(), Receiver::ok());
    let job = json!({ "kind": "http", "input": {"url": target.url("/work")}, "callback_url": callback.url("/"),
        "metadata": {"of": "schedule"} });
    let schedule = created(&ring, json!({ "cron": EVERY_SECOND, "job": job })).await;

    let told = callback.nth(1).await.json();

    assert_eq!(told["type"], "job.succeeded");
    assert_eq!(
        (&told["data"]["schedule_id"], &told["data"]["metadata"]["of"]),
        (&schedule["id"], &json!("schedule"))
    );
    let planned = time(&told["data"]["scheduled_for"]);
    assert_eq!(planned, time(&schedule["next"][0]));
    assert!(time(&told["data"]["started_at"]) >= planned);
    let job = ring.job(&string(&told["data"]["id"])).await;
    assert_eq!((&job["schedule_id"], time(&job["scheduled_for"])), (&schedule["id"], planned));
    let after = shown(&ring, &path(&schedule)).await;
    assert!(time(&after["last_fired_at"]) >= planned && after["last_job_id"].is_string(), "{after}");
}

#[tokio::test]
async fn each_time_fires_once_however_many_processes_run_and_die() {
    let database = database().await;
    let mut rings = [
        ServeProcess::on(&database.url()),
        ServeProcess::on(&database.url()),
        ServeProcess::on(&database.url()),
    ];
    for ring in &mut rings {
        ring.start().await;
    }
    let every = json!({ "cron": EVERY_SECOND, "overlap": "allow", "job": waiting("tick") });
    let schedule = created(&rings[0], every).await;

    jobs_when(&rings[1], "tick", 3).await;
    rings[0].kill();
    jobs_when(&rings[1], "tick", 6).await;
    rings[2].terminate();
    jobs_when(&rings[1], "tick", 8).await;
    patch(&rings[1], &path(&schedule), json!({"status": "paused"})).await.expect(200);

    let times = times_of(&jobs_of(&rings[1], "tick").await);
    assert_eq!(times.first(), Some(&time(&schedule["next"][0])));
    assert_every(TimeDelta::seconds(1), &times);
}

#[tokio::test]
async fn catch_up_says_what_becomes_of_the_times_without_a_process() {
    let database = database().await;
    let mut ring = ServeProcess::on(&database.url());
    ring.start().await;
    for catch_up in ["none", "last", "all"] {
        let every = json!({ "cron": "* * * * *", "overlap": "allow", "catch_up": catch_up, "job": waiting(catch_up) });
        created(&ring, every).await;
    }
    let every =
        json!({ "cron": EVERY_SECOND, "overlap": "skip", "catch_up": "all", "job": waiting("seconds") });
    let seconds = created(&ring, every).await;
    ring.kill();
    due_since(&database, "cron = '* * * * *'", "date_trunc('minute', now()) - interval '10 minutes'").await;
    due_since(&database, "cron <> '* * * * *'", "date_trunc('second', now()) - interval '1 hour'").await;
    let killed = ringback::clock::now();

    ring.start().await;

    let all = times_of(&jobs_when(&ring, "all", 11).await);
    // From ten whole minutes before the kill on.
    let first = *all.first().expect("one");
    assert!((600..=720).contains(&(killed - first).num_seconds()), "{first} {killed}");
    assert_every(TimeDelta::minutes(1), &all);
    let last = times_of(&jobs_when(&ring, "last", 1).await);
    assert!(last.first().is_some_and(|at| *at + TimeDelta::seconds(60) >= killed), "{last:?}");
    assert!(times_of(&jobs_of(&ring, "none").await).iter().all(|at| *at + TimeDelta::seconds(2) > killed));

    // No more than the last thousand, each once, and then it goes on as usual: those few that are on time again are left
    // out, because others are not finished.
    let caught_up = |schedule: &Value| {
        schedule["next"].as_array().is_some_and(|next| time(&next[0]) > ringback::clock::now())
    };
    eventually("it caught up", async || shown(&ring, &path(&seconds)).await, caught_up).await;
    let jobs = jobs_of(&ring, "seconds").await;
    let times = times_of(&jobs);
    assert!((900..1100).contains(&times.len()), "{}", times.len());
    let made_up: BTreeSet<_> = times.iter().copied().filter(|at| *at <= killed).collect();
    assert_every(TimeDelta::seconds(1), &made_up);
    let planned: Vec<_> = jobs.iter().map(|job| time(&job["scheduled_for"])).collect();
    assert!(planned.is_sorted(), "in order");
}

#[tokio::test]
async fn a_line_makes_up_for_what_was_missed_one_by_one_in_the_order_of_the_times() {
    const MINUTES: usize = 120;
    let database = database().await;
    let target = Receiver::ok();
    let mut ring = ServeProcess::on(&database.url());
    ring.start().await;
    let job = json!({ "kind": "http", "input": {"url": target.url("/")}, "ordering_key": "k" });
    created(&ring, json!({ "cron": "* * * * *", "catch_up": "all", "job": job })).await;
    ring.kill();
    due_since(&database, "true", &format!("date_trunc('minute', now()) - interval '{MINUTES} minutes'"))
        .await;

    ring.start().await;

    let made = jobs_when(&ring, "http", MINUTES).await;
    let mut ended = Vec::new();
    for job in &made {
        ended.push(ring.wait_for_end(&string(&job["id"])).await);
    }
    ended.sort_by_key(|job| time(&job["started_at"]));
    let planned: Vec<_> = ended.iter().map(|job| time(&job["scheduled_for"])).collect();
    assert!(planned.is_sorted(), "{planned:?}");
    assert_every(TimeDelta::minutes(1), &times_of(&ended));
    let beside = ended.windows(2).find(|pair| time(&pair[0]["finished_at"]) > time(&pair[1]["started_at"]));
    assert_eq!(beside, None);
}

#[tokio::test]
async fn a_time_is_left_out_while_a_job_is_not_finished() {
    let ring = Ringback::start().await;
    let target = Receiver::answering([Reply::from(200).held()]);
    let every = json!({ "cron": EVERY_SECOND, "job": get_job(&target.url("/")) });
    let schedule = created(&ring, every).await;

    let skipped = |schedule: &Value| schedule["skipped"].as_i64() >= Some(2);
    let now = eventually("skipped", async || shown(&ring, &path(&schedule)).await, skipped).await;
    assert_eq!(target.received().len(), 1);
    assert!(time(&now["last_skipped_at"]) > time(&schedule["next"][0]));
    target.release();
    target.nth(2).await;
}

#[tokio::test]
async fn another_job_runs_beside_one_that_is_not_finished_where_that_is_allowed() {
    let ring = Ringback::start().await;
    let target = Receiver::answering([Reply::from(200).held()]);
    let schedule =
        created(&ring, json!({ "cron": EVERY_SECOND, "overlap": "allow", "job": get_job(&target.url("/")) }))
            .await;
    target.nth(3).await;
    assert_eq!(shown(&ring, &path(&schedule)).await["skipped"], 0);
    target.release();
}

#[tokio::test]
async fn a_trigger_runs_it_now_whatever_overlap_and_status_say() {
    let ring = Ringback::start().await;
    let schedule = created(&ring, json!({ "cron": RARELY, "status": "paused", "job": waiting("t") })).await;
    let trigger = format!("{}/trigger", path(&schedule));

    let answer = ring.act(&trigger).await.expect(202);
    let job = answer.json();
    assert_eq!(answer.header("location"), format!("/v1/jobs/{}", string(&job["id"])));
    assert_eq!((&job["schedule_id"], &job["scheduled_for"]), (&schedule["id"], &Value::Null));
    assert_eq!(ring.job(&string(&job["id"])).await, job);
    ring.act(&trigger).await.expect(202);
    let after = shown(&ring, &path(&schedule)).await;
    assert!(after["last_fired_at"].is_string() && after["last_job_id"] != job["id"], "{after}");

    let keyed = async || ring.call(Method::POST, &trigger).header("idempotency-key", "once").send().await;
    let first = keyed().await.expect(202);
    let second = keyed().await.expect(202);
    assert_eq!((second.json(), second.header("idempotency-replayed")), (first.json(), "true"));
    assert_eq!(jobs_of(&ring, "t").await.len(), 3);
    ring.act("/v1/schedules/sch_01jd7m3v6kf0qr8x2n4ab9cdef/trigger").await.expect(404);
}

#[tokio::test]
async fn one_that_was_triggered_counts_as_not_finished() {
    let ring = Ringback::start().await;
    let schedule =
        created(&ring, json!({ "cron": EVERY_SECOND, "status": "paused", "job": waiting("t") })).await;
    ring.act(&format!("{}/trigger", path(&schedule))).await.expect(202);
    patch(&ring, &path(&schedule), json!({"status": "active"})).await.expect(200);

    let skipped = |schedule: &Value| schedule["skipped"].as_i64() >= Some(1);
    eventually("skipped", async || shown(&ring, &path(&schedule)).await, skipped).await;

    assert_eq!(jobs_of(&ring, "t").await.len(), 1);
}

#[tokio::test]
async fn a_change_counts_the_times_from_now() {
    let ring = Ringback::start().await;
    let schedule =
        created(&ring, json!({ "cron": RARELY, "job": waiting("x"), "metadata": {"a": "1", "b": "2"} }))
            .await;
    let path = path(&schedule);

    let changed =
        patch(&ring, &path, json!({"cron": EVERY_SECOND, "overlap": "allow", "metadata": {"a": null}})).await;
    assert_eq!(changed.clone().expect(200).header("etag"), "\"2\"");
    assert_eq!(changed.json()["metadata"], json!({"b": "2"}));
    jobs_when(&ring, "x", 1).await;

    let paused = patch(&ring, &path, json!({"status": "paused"})).await.expect(200).json();
    assert_eq!(paused["next"], json!([]));
    let before = jobs_of(&ring, "x").await.len();
    let resumed = patch(&ring, &path, json!({"status": null})).await.expect(200).json();
    let times = times_of(&jobs_when(&ring, "x", before + 2).await);
    // What came while it was paused was not made up for.
    let first = times.iter().nth(before).expect("one more");
    assert_eq!(*first, time(&resumed["next"][0]));

    let call = ring.call(Method::PATCH, &path).header("content-type", "application/merge-patch+json");
    call.header("if-match", "\"1\"").body("{\"description\": \"x\"}").send().await.expect(412);
    let wrong = json!({"cron": null, "job": {"kind": ""}, "timezone": "x", "no": 1});
    let mut pointers = patch(&ring, &path, wrong).await.expect(422).pointers();
    pointers.sort();
    assert_eq!(pointers, ["/cron", "/job/kind", "/no", "/timezone"]);
}

#[tokio::test]
async fn a_callbacks_secrets_are_sealed_not_shown_and_survive_a_patch() {
    let ring = Ringback::start().await;
    let callback = Receiver::ok();
    let secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let job = json!({ "kind": "http", "input": {"url": callback.url("/work")},
        "callback": {"url": callback.url("/told"), "headers": {"x-key": "top-secret"}, "secret": secret} });
    let schedule = created(&ring, json!({ "cron": RARELY, "job": job })).await;
    assert_eq!(schedule["job"]["callback"], json!({ "url": callback.url("/told") }));
    let mut sql = ring.sql().await;
    let stored: Vec<u8> =
        sqlx::query_scalar("SELECT job FROM ringback.schedules").fetch_one(&mut sql).await.expect("a row");
    assert!(!String::from_utf8_lossy(&stored).contains("top-secret"));

    let changed =
        patch(&ring, &path(&schedule), json!({"job": schedule["job"].clone()})).await.expect(200).json();
    assert_eq!(changed["job"], schedule["job"]);
    ring.act(&format!("{}/trigger", path(&schedule))).await.expect(202);

    let told = callback.nth(2).await;
    assert_eq!((told.path.as_str(), told.header("x-key")), ("/told", "top-secret"));
    Webhook::new(secret)
        .expect("a secret")
        .verify(&told.body, &told.headers)
        .expect("signed with its own secret");
}

#[tokio::test]
async fn a_deleted_schedule_fires_no_more_and_its_jobs_stay() {
    let ring = Ringback::start().await;
    let every = json!({ "cron": EVERY_SECOND, "overlap": "allow", "job": waiting("x") });
    let schedule = created(&ring, every).await;
    let other =
        created(&ring, json!({ "cron": EVERY_SECOND, "overlap": "allow", "job": waiting("y") })).await;
    jobs_when(&ring, "x", 1).await;
    ring.call(Method::DELETE, &path(&schedule)).send().await.expect(204);
    let made = jobs_of(&ring, "x").await;
    let others = jobs_of(&ring, "y").await.len();
    jobs_when(&ring, "y", others + 2).await;
    assert_eq!(jobs_of(&ring, "x").await, made);
    patch(&ring, &path(&other), json!({"status": "paused"})).await.expect(200);
}

#[tokio::test]
async fn a_job_that_is_not_accepted_any_more_is_told_in_the_schedule_and_stops_no_other() {
    let database = database().await;
    let mut ring = ServeProcess::on(&database.url());
    ring.start().await;
    let refused = created(
        &ring,
        json!({ "cron": EVERY_SECOND, "overlap": "allow", "job": get_job("http://127.0.0.1:19999/") }),
    )
    .await;
    created(&ring, json!({ "cron": EVERY_SECOND, "overlap": "allow", "job": waiting("x") })).await;
    ring.terminate();
    ring.wait();
    ring.set("RINGBACK_ALLOW_NETWORKS", "10.0.0.0/8");
    ring.start().await;

    let told = |schedule: &Value| schedule["last_error"].is_string();
    let schedule = eventually("told", async || shown(&ring, &path(&refused)).await, told).await;

    assert!(string(&schedule["last_error"]).starts_with("/job/input/url"), "{schedule}");
    let others = jobs_of(&ring, "x").await.len();
    jobs_when(&ring, "x", others + 2).await;
    let answer = ring.act(&format!("{}/trigger", path(&refused))).await.expect(422);
    assert_eq!(answer.pointers(), ["/job/input/url"]);
    // It can still be paused.
    patch(&ring, &path(&refused), json!({"status": "paused"})).await.expect(200);
}

#[tokio::test]
async fn schedules_are_for_keys_with_the_scope_admin_and_those_of_others_are_not_there() {
    let ring = Ringback::start().await;
    let schedule = created(&ring, json!({ "cron": RARELY, "job": waiting("x") })).await;
    ring.put("INSERT INTO ringback.tenants (id, name) VALUES (ringback.uuid_v7(), 'other')".to_owned()).await;
    let keys = [("jobs:read,jobs:write", "b"), ("admin", "c")]
        .map(|(scopes, letter)| (scopes, format!("rbk_{}", letter.repeat(40))));
    for (scopes, key) in &keys {
        ring.put(format!(
            "INSERT INTO ringback.api_keys (tenant_id, id, name, key_hash, scopes)
             SELECT id, ringback.uuid_v7(), 'k', sha256('{key}'::bytea), '{{{scopes}}}' FROM ringback.tenants WHERE name = 'other'"
        ))
        .await;
    }
    let [jobs, admin] = keys.map(|(_, key)| ring.with_key(&key));
    let status = async || (jobs.get("/v1/jobs").await.status, admin.get("/v1/jobs").await.status);
    eventually("the keys are known", status, |both| *both == (200, 200)).await;

    jobs.get("/v1/schedules").await.expect(403);
    jobs.post("/v1/schedules", json!({})).await.expect(403);
    jobs.act(&format!("{}/trigger", path(&schedule))).await.expect(403);
    assert_eq!(list(&admin.get("/v1/schedules").await.expect(200).json()), Vec::<Value>::new());
    admin.get(&path(&schedule)).await.expect(404);
    patch(&admin, &path(&schedule), json!({})).await.expect(404);
    admin.act(&format!("{}/trigger", path(&schedule))).await.expect(404);
    admin.call(Method::DELETE, &path(&schedule)).send().await.expect(404);
    let own = created(&admin, json!({ "cron": RARELY, "job": waiting("x") })).await;
    ring.get(&path(&own)).await.expect(404);
}
