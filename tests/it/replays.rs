//! Replays: what failed, what was sent, and what never was, once more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::harness::client::{Client, list, string};
use crate::harness::process::ServeProcess;
use crate::harness::service::database;
use crate::harness::{Received, Receiver, Reply, Ringback, eventually};

const LONG_AGO: &str = "2020-01-01T00:00:00Z";

/// Makes an endpoint; its id.
async fn endpoint(ring: &Client, settings: Value) -> String {
    string(&ring.post("/v1/endpoints", settings).await.expect(201).json()["id"])
}

/// An endpoint whose deliveries have one try only, and that does not hear of their failing.
async fn one_try(ring: &Client, receiver: &Receiver) -> String {
    let settings =
        json!({ "url": receiver.url("/"), "event_types": ["a.b", "t.*"], "retry": {"max_attempts": 1} });
    endpoint(ring, settings).await
}

async fn patch(ring: &Client, endpoint: &str, change: Value) {
    let path = format!("/v1/endpoints/{endpoint}");
    ring.call(Method::PATCH, &path).json(&change).send().await.expect(200);
}

/// Publishes so many events; their ids in their order.
async fn publish(ring: &Client, count: usize, event: impl Fn(usize) -> Value) -> Vec<String> {
    let events: Vec<Value> = (0..count).map(event).collect();
    let made = ring.post("/v1/events/batch", json!({ "events": events })).await.expect(202).json();
    list(&made).iter().map(|event| string(&event["id"])).collect()
}

fn plain(n: usize) -> Value {
    json!({ "type": "a.b", "data": {"n": n} })
}

/// Waits until so many deliveries have ended.
async fn ended(ring: &Client, count: usize) {
    let all = |all: &Vec<Value>| all.len() == count && all.iter().all(|one| one["status"] != "pending");
    eventually("all have ended", async || ring.deliveries("limit=250").await, all).await;
}

/// Lets so many deliveries fail without a call: they wait while the endpoint is paused, and end when it is disabled.
async fn fail_unsent(
    ring: &Client,
    endpoint: &str,
    count: usize,
    event: impl Fn(usize) -> Value,
) -> Vec<String> {
    patch(ring, endpoint, json!({ "status": "paused" })).await;
    let events = publish(ring, count, event).await;
    let last = format!("event_id={}", events[count - 1]);
    let made = |all: &Vec<Value>| !all.is_empty();
    eventually("they wait", async || ring.deliveries(&last).await, made).await;
    patch(ring, endpoint, json!({ "status": "disabled" })).await;
    let pending = async || ring.deliveries("status=pending").await.len();
    eventually("all have failed", pending, |count| *count == 0).await;
    patch(ring, endpoint, json!({ "status": "enabled" })).await;
    events
}

fn asked(status: &str, more: Value) -> Value {
    let mut body = json!({ "status": status, "since": LONG_AGO });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

async fn start(ring: &Client, body: Value) -> Value {
    ring.post("/v1/admin/replays", body).await.expect(202).json()
}

async fn count(ring: &Client, status: &str, more: Value) -> i64 {
    let mut body = asked(status, more);
    body["dry_run"] = json!(true);
    let answer = ring.post("/v1/admin/replays", body).await.expect(200).json();
    assert_eq!(answer["matched_exact"], true);
    answer["matched"].as_i64().expect("a number")
}

async fn when(ring: &Client, replay: &Value, status: &str) -> Value {
    let path = format!("/v1/admin/replays/{}", string(&replay["id"]));
    eventually(status, async || ring.get(&path).await.expect(200).json(), |seen| seen["status"] == status)
        .await
}

/// Starts a replay and waits for its end; how many it has made.
async fn replayed(ring: &Client, status: &str, more: Value) -> i64 {
    let started = start(ring, asked(status, more)).await;
    let seen = when(ring, &started, "completed").await;
    assert!(seen["finished_at"].is_string() && seen["replayed"] == seen["matched"], "{seen}");
    seen["replayed"].as_i64().expect("a number")
}

/// The events that a replay made deliveries of.
async fn events_of(ring: &Client, replay: &Value) -> Vec<String> {
    let (mut events, mut path) = (Vec::new(), "/v1/deliveries?limit=250".to_owned());
    loop {
        let page = ring.get(&path).await.expect(200).json();
        let of_replay = list(&page).into_iter().filter(|one| one["replay_id"] == replay["id"]);
        events.extend(of_replay.map(|one| string(&one["event_id"])));
        let Some(cursor) = page["next_cursor"].as_str() else { return events };
        path = format!("/v1/deliveries?limit=250&cursor={cursor}");
    }
}

fn ids(requests: &[Received]) -> Vec<String> {
    requests.iter().map(|request| request.header("webhook-id").to_owned()).collect()
}

fn set(ids: &[String]) -> BTreeSet<&String> {
    ids.iter().collect()
}

#[tokio::test]
async fn what_failed_is_sent_again_with_the_same_id_and_the_same_bytes() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([200, 500, 500, 500, 200]);
    one_try(&ring, &receiver).await;
    for n in 0..4 {
        publish(&ring, 1, |_| plain(n)).await;
        ended(&ring, n + 1).await;
    }

    let replay = start(&ring, asked("failed", json!({}))).await;
    assert_eq!((&replay["status"], &replay["matched"]), (&json!("running"), &json!(3)), "{replay}");
    let done = when(&ring, &replay, "completed").await;

    assert_eq!((&done["replayed"], &done["error"]), (&json!(3), &Value::Null));
    receiver.nth(7).await;
    let (first, again) = (&receiver.received()[1..4], &receiver.received()[4..]);
    let mut bodies: Vec<_> =
        again.iter().map(|request| (request.header("webhook-id"), &request.body)).collect();
    bodies.sort_unstable();
    let wanted: Vec<_> = first.iter().map(|request| (request.header("webhook-id"), &request.body)).collect();
    assert_eq!(bodies, wanted);
    assert!(again.iter().all(|request| request.header("ringback-attempt") == "1"));
    assert_eq!(replayed(&ring, "failed", json!({})).await, 0, "all have come through");
}

#[tokio::test]
async fn what_is_replayed_has_its_full_retries() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([500, 500, 500, 200]);
    let quick = json!({ "initial_s": 0.01, "factor": 1, "max_attempts": 2 });
    endpoint(&ring, json!({ "url": receiver.url("/"), "event_types": ["a.b"], "retry": quick })).await;
    publish(&ring, 1, plain).await;
    ended(&ring, 1).await;

    assert_eq!(replayed(&ring, "failed", json!({})).await, 1);

    receiver.nth(4).await;
    ended(&ring, 2).await;
    let newest = &ring.deliveries("limit=1").await[0];
    assert_eq!((&newest["status"], &newest["attempt"]), (&json!("succeeded"), &json!(2)), "{newest}");
    let event = string(&newest["event_id"]);
    let explained = ring.get(&format!("/v1/events/{event}/explain")).await.expect(200).json();
    assert_eq!(explained["endpoints"][0]["outcome"], "delivered");
}

#[tokio::test]
async fn all_that_was_sent_is_sent_again_once() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    one_try(&ring, &receiver).await;
    let events = publish(&ring, 5, plain).await;
    ended(&ring, 5).await;

    assert_eq!(replayed(&ring, "all", json!({})).await, 5);
    ended(&ring, 10).await;
    assert_eq!(replayed(&ring, "all", json!({})).await, 5, "one for an event, however often it was sent");

    let seen = ids(&receiver.received());
    assert_eq!(seen.len(), 15);
    assert_eq!(set(&seen[5..10]), set(&events));
    assert_eq!(set(&seen[10..]), set(&events));
}

#[tokio::test]
async fn types_endpoint_and_time_narrow_it() {
    let ring = Ringback::start().await;
    let (one, two) = (Receiver::answering([500]), Receiver::answering([500]));
    let (first, second) = (one_try(&ring, &one).await, one_try(&ring, &two).await);
    publish(&ring, 2, |n| json!({ "type": format!("t.{n}"), "data": n })).await;
    ended(&ring, 4).await;
    let deliveries = ring.deliveries("").await;
    let (oldest, newest) = (&deliveries[3]["created_at"], &deliveries[0]["created_at"]);

    assert_eq!(count(&ring, "failed", json!({})).await, 4);
    assert_eq!(count(&ring, "failed", json!({ "endpoint_id": first })).await, 2);
    assert_eq!(count(&ring, "failed", json!({ "event_types": ["t.1"] })).await, 2);
    assert_eq!(count(&ring, "all", json!({ "endpoint_id": second, "event_types": ["*.0"] })).await, 1);
    assert_eq!(count(&ring, "failed", json!({ "event_types": ["x.**"] })).await, 0);
    assert_eq!(count(&ring, "all", json!({ "until": oldest })).await, 0, "until is not in it");
    assert_eq!(count(&ring, "all", json!({ "since": oldest })).await, 4, "since is");
    assert!(count(&ring, "all", json!({ "since": newest })).await >= 1);
    assert_eq!((one.received().len(), two.received().len()), (2, 2), "a dry run sends nothing");
    assert!(list(&ring.get("/v1/admin/replays").await.expect(200).json()).is_empty());
}

#[tokio::test]
async fn an_endpoint_gets_what_it_missed() {
    let ring = Ringback::start().await;
    let (early, late) = (Receiver::ok(), Receiver::ok());
    one_try(&ring, &early).await;
    let events = publish(&ring, 6, |n| json!({ "type": format!("t.{}", n % 2), "data": {"n": n} })).await;
    ended(&ring, 6).await;
    assert_eq!(count(&ring, "missing", json!({})).await, 0);
    let settings = json!({
        "url": late.url("/"), "event_types": ["t.0"], "filter": "data.n > 0", "transform": "{'m': data.n * 10}"
    });
    let id = endpoint(&ring, settings).await;

    assert_eq!(count(&ring, "missing", json!({})).await, 2);
    assert_eq!(replayed(&ring, "missing", json!({ "endpoint_id": id })).await, 2);

    late.nth(2).await;
    let told: BTreeMap<String, i64> = late
        .received()
        .iter()
        .map(|request| {
            (request.header("webhook-id").to_owned(), request.json()["data"]["m"].as_i64().unwrap_or(0))
        })
        .collect();
    assert_eq!(told, [(events[2].clone(), 20), (events[4].clone(), 40)].into());
    assert_eq!(early.received().len(), 6);
    assert_eq!(count(&ring, "missing", json!({})).await, 0);
}

#[tokio::test]
async fn an_endpoint_gets_what_came_while_it_was_disabled() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let id = endpoint(&ring, json!({ "url": receiver.url("/"), "status": "paused" })).await;
    // What waits when it is disabled ends unsent, what comes later is not even made.
    let mut events = publish(&ring, 2, plain).await;
    let pending = |all: &Vec<Value>| all.len() == 2;
    eventually("they wait", async || ring.deliveries("status=pending").await, pending).await;
    patch(&ring, &id, json!({ "status": "disabled" })).await;
    events.extend(publish(&ring, 3, plain).await);
    let all = |log: &Value| list(log).len() == 5;
    eventually("all are fanned out", async || ring.get("/v1/events").await.expect(200).json(), all).await;
    ended(&ring, 2).await;
    let problem =
        ring.post("/v1/admin/replays", asked("missing", json!({ "endpoint_id": id }))).await.expect(409);
    assert_eq!(problem.json()["code"], "conflict");
    assert_eq!(count(&ring, "missing", json!({})).await, 0, "it wants nothing now");

    patch(&ring, &id, json!({ "status": "enabled" })).await;
    assert_eq!(replayed(&ring, "missing", json!({})).await, 5);

    receiver.nth(5).await;
    ended(&ring, 7).await;
    assert_eq!(set(&ids(&receiver.received())), set(&events));
    assert_eq!(count(&ring, "missing", json!({})).await, 0);
    assert_eq!(count(&ring, "failed", json!({})).await, 0, "what ended unsent has come through");
}

#[tokio::test]
async fn what_a_transform_failed_on_is_judged_again() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let id = endpoint(&ring, json!({ "url": receiver.url("/"), "transform": "{'m': data.missing}" })).await;
    publish(&ring, 2, plain).await;
    ended(&ring, 2).await;
    patch(&ring, &id, json!({ "transform": "{'m': data.n}" })).await;

    assert_eq!(replayed(&ring, "failed", json!({})).await, 2);

    receiver.nth(2).await;
    let told: BTreeSet<_> =
        receiver.received().iter().map(|request| request.json()["data"].to_string()).collect();
    assert_eq!(told, [r#"{"m":0}"#.to_owned(), r#"{"m":1}"#.to_owned()].into());
}

#[tokio::test]
async fn failed_callbacks_are_replayed_too() {
    let ring = Ringback::start().await;
    let (target, callback) = (Receiver::ok(), Receiver::answering([500, 200]));
    let callback_once = json!({ "url": callback.url("/"), "retry": {"max_attempts": 1} });
    let job = ring
        .submit(json!({ "kind": "http", "input": {"url": target.url("/")}, "callback": callback_once }))
        .await;
    ring.wait_for_delivery(&job, "failed").await;

    assert_eq!(replayed(&ring, "failed", json!({ "event_types": ["job.*"] })).await, 1);

    let (first, again) = (callback.nth(1).await, callback.nth(2).await);
    assert_eq!(first.header("webhook-id"), again.header("webhook-id"));
    assert_eq!(first.body, again.body);
    ended(&ring, 2).await;
    assert_eq!(count(&ring, "failed", json!({})).await, 0);
}

#[tokio::test]
async fn a_pace_is_kept() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let id = one_try(&ring, &receiver).await;
    fail_unsent(&ring, &id, 12, plain).await;

    assert_eq!(replayed(&ring, "failed", json!({ "per_s": 10 })).await, 12);

    receiver.nth(12).await;
    let again = receiver.received();
    let took = again[11].at.duration_since(again[0].at);
    // Eleven wait for a tenth of a second each, less a fifth that one that is late catches up.
    assert!(took >= Duration::from_millis(800), "{took:?}");
}

#[tokio::test]
async fn a_cancelled_one_sends_nothing_more() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(200).held()]);
    let id = one_try(&ring, &receiver).await;
    fail_unsent(&ring, &id, 60, plain).await;
    let replay = start(&ring, asked("failed", json!({}))).await;
    let made = async || ring.get(&format!("/v1/admin/replays/{}", string(&replay["id"]))).await.json();
    eventually("all wait", made, |seen| seen["replayed"] == 60).await;
    receiver.nth(1).await;

    let path = format!("/v1/admin/replays/{}/cancel", string(&replay["id"]));
    let cancelled = ring.act(&path).await.expect(200).json();

    assert_eq!(cancelled["status"], "cancelled");
    let left = |pending: &Vec<Value>| pending.len() < 33;
    let flying =
        eventually("what waits is ended", async || ring.deliveries("status=pending&limit=250").await, left)
            .await;
    receiver.release();
    ended(&ring, 120).await;
    let sent = receiver.received().len();
    assert!(sent <= flying.len(), "{sent} were sent, {} were on the wire", flying.len());
    let seen = eventually("it is counted", made, |seen| seen["replayed"] == json!(sent)).await;
    assert_eq!((&seen["status"], &seen["matched"]), (&json!("cancelled"), &json!(60)), "{seen}");
    let ended_so = ring.deliveries("status=failed&limit=250").await;
    let so = ended_so.iter().filter(|one| one["error"]["code"] == "replay_cancelled").count();
    assert_eq!(so, 60 - sent);
    ring.act(&path).await.expect(409);
    // What it did not send can be sent later.
    assert_eq!(count(&ring, "failed", json!({})).await, 60 - sent as i64);
}

#[tokio::test]
async fn live_deliveries_go_first() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let id = endpoint(&ring, json!({ "url": receiver.url("/"), "max_in_flight": 1 })).await;
    fail_unsent(&ring, &id, 20, plain).await;
    patch(&ring, &id, json!({ "status": "paused" })).await;
    start(&ring, asked("failed", json!({}))).await;
    let waiting = |count| move |all: &Vec<Value>| all.len() == count;
    let pending = async || ring.deliveries("status=pending").await;
    eventually("the replay waits", pending, waiting(20)).await;
    let live = publish(&ring, 1, plain).await;
    eventually("one more", pending, waiting(21)).await;

    patch(&ring, &id, json!({ "status": "enabled" })).await;

    receiver.nth(21).await;
    assert_eq!(receiver.received()[0].header("webhook-id"), live[0]);
}

#[tokio::test]
async fn an_order_is_kept_by_key() {
    let ring = Ringback::start().await;
    // Every third try fails.
    let receiver = Receiver::answering((0..90).map(|place| if place % 3 == 0 { 500 } else { 200 }));
    let quick = json!({ "initial_s": 0.05, "factor": 1 });
    let id = endpoint(&ring, json!({ "url": receiver.url("/"), "ordering": "key", "retry": quick })).await;
    let keyed =
        |n: usize| json!({ "type": "a.b", "data": {"n": n}, "ordering_key": format!("key-{}", n % 3) });
    fail_unsent(&ring, &id, 24, keyed).await;

    assert_eq!(replayed(&ring, "failed", json!({})).await, 24);

    ended(&ring, 48).await;
    let mut last = [None::<u64>; 3];
    for request in &receiver.received() {
        let n = request.json()["data"]["n"].as_u64().expect("a number");
        let of_key = &mut last[(n % 3) as usize];
        assert!(of_key.is_none_or(|before| before <= n), "{n} came after {of_key:?}");
        *of_key = Some(n);
    }
    assert_eq!(last, [Some(21), Some(22), Some(23)]);
}

#[tokio::test]
async fn a_repeated_request_starts_one_replay() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    one_try(&ring, &receiver).await;
    publish(&ring, 3, plain).await;
    ended(&ring, 3).await;
    let ask = |status: &str| {
        ring.call(Method::POST, "/v1/admin/replays")
            .header("idempotency-key", "once")
            .json(&asked(status, json!({})))
    };

    let first = ask("all").send().await.expect(202);
    let again = ask("all").send().await.expect(202);

    assert_eq!((&first.body, again.header("idempotency-replayed")), (&again.body, "true"));
    assert_eq!(first.header("location"), again.header("location"));
    assert_eq!(ask("failed").send().await.expect(422).json()["code"], "idempotency-key-reused");
    when(&ring, &first.json(), "completed").await;
    ended(&ring, 6).await;
    let page = ring.get("/v1/admin/replays?limit=1").await.expect(200).json();
    assert_eq!((&list(&page)[0]["id"], &page["next_cursor"]), (&first.json()["id"], &Value::Null));
    assert_eq!(receiver.received().len(), 6);
}

#[tokio::test]
async fn one_whose_endpoint_goes_away_fails_and_says_why() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([500]);
    let id = one_try(&ring, &receiver).await;
    publish(&ring, 3, plain).await;
    ended(&ring, 3).await;
    let replay = start(&ring, asked("failed", json!({ "endpoint_id": id, "per_s": 0.01 }))).await;
    receiver.nth(4).await;

    ring.call(Method::DELETE, &format!("/v1/endpoints/{id}")).send().await.expect(204);
    // It would look again after minutes.
    ring.put("UPDATE ringback.replays SET next_at = now()".to_owned()).await;

    let failed = when(&ring, &replay, "failed").await;
    assert_eq!((&failed["error"], &failed["replayed"]), (&json!("the endpoint was deleted"), &json!(1)));
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_the_reason() {
    let ring = Ringback::start().await;
    let nobody = "ep_01jd7m3yhpe2abtz6m5v8w9xyz";
    for (body, pointer) in [
        (json!({ "since": LONG_AGO }), "/status"),
        (json!({ "status": "failed" }), "/since"),
        (asked("lost", json!({})), "/status"),
        (asked("all", json!({ "since": "yesterday" })), "/since"),
        (asked("all", json!({ "until": LONG_AGO })), "/since"),
        (asked("all", json!({ "since": "2099-01-01T00:00:00Z" })), "/since"),
        (asked("all", json!({ "per_s": 0 })), "/per_s"),
        (asked("all", json!({ "per_s": 10_001 })), "/per_s"),
        (asked("all", json!({ "event_types": [] })), "/event_types"),
        (asked("all", json!({ "event_types": ["a..b"] })), "/event_types/0"),
        (asked("all", json!({ "endpoint_id": "evt_1" })), "/endpoint_id"),
        (asked("all", json!({ "endpoint_id": nobody })), "/endpoint_id"),
        (asked("all", json!({ "dryrun": true })), "/dryrun"),
    ] {
        let problem = ring.post("/v1/admin/replays", body.clone()).await.expect(422);
        assert_eq!(problem.pointers(), [pointer], "{body}");
    }
    ring.get("/v1/admin/replays/rpl_01jd7m3yhpe2abtz6m5v8w9xyz").await.expect(404);
    ring.act("/v1/admin/replays/rpl_01jd7m3yhpe2abtz6m5v8w9xyz/cancel").await.expect(404);
}

#[tokio::test]
async fn it_is_a_tenants_own_and_for_its_admins() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([500]);
    one_try(&ring, &receiver).await;
    publish(&ring, 1, plain).await;
    ended(&ring, 1).await;
    let replay = start(&ring, asked("failed", json!({}))).await;
    let path = format!("/v1/admin/replays/{}", string(&replay["id"]));
    let keys = [
        ("rbk_others0123456789abcdefghijABCDEFGHIJ", "admin"),
        ("rbk_weaker0123456789abcdefghijABCDEFGHIJ", "events:read"),
    ];
    for (key, scope) in keys {
        ring.put(format!(
            "WITH other AS (INSERT INTO ringback.tenants (id, name) VALUES (ringback.uuid_v7(), 'other') RETURNING id)
             INSERT INTO ringback.api_keys (tenant_id, id, name, key_hash, scopes)
             SELECT id, ringback.uuid_v7(), 'other', sha256('{key}'), ARRAY['{scope}'] FROM other"
        ))
        .await;
    }
    let (others, weaker) = (ring.with_key(keys[0].0), ring.with_key(keys[1].0));
    for client in [&others, &weaker] {
        let status = async || client.get("/v1/admin/replays").await.status;
        eventually("the key is known", status, |status| *status != 401).await;
    }

    others.get(&path).await.expect(404);
    others.act(&format!("{path}/cancel")).await.expect(404);
    assert_eq!(count(&others, "all", json!({})).await, 0);
    assert!(list(&others.get("/v1/admin/replays").await.expect(200).json()).is_empty());
    weaker.get(&path).await.expect(403);
    weaker.post("/v1/admin/replays", asked("all", json!({}))).await.expect(403);
}

/// So many are replayed over a kill.
const MANY: usize = 300;

/// Starts the program on a database and lets many deliveries fail unsent.
async fn with_failures(url: &str) -> (ServeProcess, Receiver, Vec<String>) {
    let receiver = Receiver::ok();
    let mut ring = ServeProcess::on(url);
    ring.start().await;
    let id = one_try(&ring, &receiver).await;
    let events = fail_unsent(&ring, &id, MANY, plain).await;
    (ring, receiver, events)
}

#[tokio::test]
async fn a_kill_in_the_middle_loses_nothing_and_doubles_nothing() {
    let database = database().await;
    let (mut ring, receiver, events) = with_failures(&database.url()).await;

    let replay = start(&ring, asked("failed", json!({ "per_s": 200 }))).await;
    receiver.nth(50).await;
    ring.kill();
    ring.start().await;

    let done = when(&ring, &replay, "completed").await;
    assert_eq!((&done["matched"], &done["replayed"]), (&json!(MANY), &json!(MANY)), "{done}");
    let made = events_of(&ring, &replay).await;
    assert_eq!((made.len(), set(&made)), (MANY, set(&events)));
    let pending = async || ring.deliveries("status=pending").await.len();
    eventually("all were sent", pending, |count| *count == 0).await;
    assert_eq!(set(&ids(&receiver.received())), set(&events));
}

#[tokio::test]
async fn another_process_takes_over() {
    let database = database().await;
    let (mut ring, receiver, events) = with_failures(&database.url()).await;
    let mut other = ServeProcess::on(&database.url());
    other.start().await;

    let replay = start(&ring, asked("failed", json!({ "per_s": 200 }))).await;
    receiver.nth(50).await;
    ring.kill();

    let done = when(&other, &replay, "completed").await;
    assert_eq!(done["replayed"], json!(MANY), "{done}");
    let made = events_of(&other, &replay).await;
    assert_eq!((made.len(), set(&made)), (MANY, set(&events)));
    other.terminate();
    assert_eq!(other.wait().code, Some(0));
}
