//! Several processes on one database: each receiver has one sender at a time, the others go on where one ends, and they
//! tell each other what there is to do.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::postgres::PgListener;
use sqlx::{ConnectOptions as _, Executor as _};

use crate::harness::client::{list, string};
use crate::harness::database::TestDatabase;
use crate::harness::process::ServeProcess;
use crate::harness::service::database;
use crate::harness::{Client, Received, Receiver, Reply, Ringback, eventually};

async fn endpoint(ring: &Client, settings: Value) -> String {
    string(&ring.post("/v1/endpoints", settings).await.expect(201).json()["id"])
}

async fn publish(ring: &Client, numbers: std::ops::Range<usize>) {
    let events: Vec<Value> = numbers.map(|n| json!({ "type": "a.b", "data": n })).collect();
    ring.post("/v1/events/batch", json!({ "events": events })).await.expect(202);
}

/// The numbers that a receiver was told, each with its `webhook-id`.
fn told(receiver: &Receiver) -> Vec<(u64, String)> {
    let number = |request: &Received| request.json()["data"].as_u64().expect("a number");
    receiver.received().iter().map(|one| (number(one), one.header("webhook-id").to_owned())).collect()
}

fn numbers(receiver: &Receiver) -> Vec<u64> {
    told(receiver).into_iter().map(|(n, _)| n).collect()
}

/// Two processes that run, with about half of the lanes each.
async fn two(database: &TestDatabase) -> (ServeProcess, ServeProcess) {
    let (mut one, mut two) = (ServeProcess::on(&database.url()), ServeProcess::on(&database.url()));
    one.start().await;
    two.start().await;
    let share = "owns 32 lanes";
    let shared = async || one.stderr().contains(share) && two.stderr().contains(share);
    eventually("the lanes are shared", shared, |shared| *shared).await;
    (one, two)
}

/// Receivers that take a few milliseconds, each of them an endpoint with these settings.
async fn endpoints(ring: &Client, count: usize, settings: Value) -> Vec<Receiver> {
    let mut receivers = Vec::new();
    for _ in 0..count {
        let receiver = Receiver::answering([Reply::from(200).late(Duration::from_millis(3))]);
        let mut settings = settings.clone();
        settings["url"] = json!(receiver.url("/"));
        endpoint(ring, settings).await;
        receivers.push(receiver);
    }
    receivers
}

#[tokio::test]
async fn a_receiver_has_one_sender_at_a_time_while_processes_come_and_go() {
    let database = database().await;
    let (mut one, mut two) = (ServeProcess::on(&database.url()), ServeProcess::on(&database.url()));
    one.start().await;
    let receivers = endpoints(&one, 8, json!({ "max_in_flight": 1 })).await;

    publish(&one, 0..100).await;
    receivers[0].nth(20).await;
    two.start().await;
    publish(&two, 100..200).await;
    receivers[0].nth(110).await;
    one.terminate();
    publish(&two, 200..300).await;
    assert_eq!(one.wait().code, Some(0));
    one.start().await;
    receivers[0].nth(210).await;
    two.terminate();
    publish(&one, 300..400).await;
    assert_eq!(two.wait().code, Some(0));

    for receiver in &receivers {
        receiver.nth(400).await;
        let mut all = numbers(receiver);
        all.sort_unstable();
        assert_eq!(all, (0..400).collect::<Vec<_>>(), "each once: nobody died");
        assert_eq!(receiver.together_max(), 1);
    }
}

#[tokio::test]
async fn a_rate_holds_over_all_processes() {
    let database = database().await;
    let (mut one, two) = two(&database).await;
    let receivers = endpoints(&one, 6, json!({ "rate_limit": {"per_s": 20, "burst": 20} })).await;

    publish(&two, 0..70).await;
    for receiver in &receivers {
        receiver.nth(25).await;
    }
    // Half of the receivers are the other one's from here on, with what is left of their burst.
    one.terminate();
    assert_eq!(one.wait().code, Some(0));

    for receiver in &receivers {
        receiver.nth(70).await;
        let all = receiver.received();
        let took = all[69].at.duration_since(all[0].at);
        // Fifty wait for their turn after the burst, less what the clocks differ by.
        assert!(took >= Duration::from_millis(2400), "{took:?}");
    }
}

#[tokio::test]
async fn when_one_is_killed_the_other_goes_on_and_nothing_is_lost() {
    let database = database().await;
    let (mut one, two) = two(&database).await;
    let receivers = endpoints(&two, 8, json!({ "ordering": "strict" })).await;

    publish(&one, 0..150).await;
    for receiver in &receivers {
        receiver.nth(20).await;
    }
    one.kill();
    publish(&two, 150..160).await;

    let ended = |all: &Vec<Value>| all.is_empty();
    eventually("nothing waits", async || two.deliveries("status=pending&limit=1").await, ended).await;
    for receiver in &receivers {
        let mut all = numbers(receiver);
        assert!(all.is_sorted(), "in order, whoever sends: {all:?}");
        all.dedup();
        assert_eq!(all, (0..160).collect::<Vec<_>>());
    }
    for delivery in two.deliveries("limit=250").await {
        let detail = two.delivery(&string(&delivery["id"])).await;
        let attempts = detail["attempts"].as_array().expect("attempts");
        let outcomes: Vec<&Value> = attempts.iter().map(|attempt| &attempt["error"]["code"]).collect();
        assert!(outcomes.iter().all(|code| code.is_null() || *code == "crashed"), "{detail}");
    }
}

#[tokio::test]
async fn a_try_that_died_with_its_process_tells_which_one_that_was() {
    let database = database().await;
    let target = Receiver::answering([Reply::Hang, Reply::from(200)]);
    let (mut one, mut two) = (ServeProcess::on(&database.url()), ServeProcess::on(&database.url()));
    one.start().await;
    let id = one.submit(json!({ "kind": "http", "input": {"url": target.url("/")} })).await;
    target.nth(1).await;
    two.start().await;
    let (first, second) = (one.pid().to_string(), two.pid().to_string());

    one.kill();

    two.wait_for_end(&id).await;
    let attempts = two.attempts(&id).await;
    let worker = |at: usize| string(&attempts[at]["worker"]);
    assert!(worker(0).ends_with(&format!(":{first}")), "{attempts:?}");
    assert!(worker(1).ends_with(&format!(":{second}")), "{attempts:?}");
}

/// Hears what is told between processes.
async fn ear(database_url: &str) -> PgListener {
    let mut ear = PgListener::connect(database_url).await.expect("a connection");
    ear.listen("ringback").await.expect("it listens");
    ear
}

/// What was told up to these words, greetings left out.
async fn told_until(ear: &mut PgListener, last: &str) -> Vec<String> {
    let mut told = Vec::new();
    while told.last().is_none_or(|told| told != last) {
        told.push(ear.recv().await.expect("a message").payload().to_owned());
    }
    told.retain(|message| !message.ends_with("hello"));
    told
}

const END: &str = "that was all";

#[tokio::test]
async fn roles_in_different_processes_wake_each_other() {
    let database = database().await;
    let with = |roles| ServeProcess::on(&database.url()).with("RINGBACK_ROLES", roles);
    let (mut api, mut executor, mut rest) = (with("api"), with("executor"), with("dispatcher,scheduler"));
    api.start().await;
    executor.start().await;
    rest.start().await;
    let mut ear = ear(&database.url()).await;
    let mut sql = database.options().connect().await.expect("a connection");
    let (target, callback) = (Receiver::ok(), Receiver::ok());
    let job = json!({ "kind": "http", "input": {"url": target.url("/")}, "callback_url": callback.url("/") });

    let mut told = BTreeSet::new();
    let mut words = async || {
        let id = api.submit(job.clone()).await;
        api.wait_for_delivery(&id, "succeeded").await;
        sql.execute("NOTIFY ringback, 'that was all'").await.expect("told");
        for message in told_until(&mut ear, END).await {
            told.extend(message.split([' ', ':']).map(str::to_owned));
        }
        told.clone()
    };

    // That there is a job, that it ended, that its end is an event, and that it has its place in the log.
    let all = |words: &BTreeSet<String>| {
        ["jobs", "ended", "events", "log"].iter().all(|word| words.contains(*word))
    };
    eventually("each was told", &mut words, all).await;
}

#[tokio::test]
async fn who_is_alone_tells_nobody() {
    let ring = Ringback::start().await;
    let (target, callback) = (Receiver::ok(), Receiver::ok());
    let mut ear = ear(&ring.database_url()).await;

    let job = json!({ "kind": "http", "input": {"url": target.url("/")}, "callback_url": callback.url("/") });
    let id = ring.submit(job).await;
    ring.wait_for_delivery(&id, "succeeded").await;
    publish(&ring, 0..10).await;
    ring.put(format!("NOTIFY ringback, '{END}'")).await;

    assert_eq!(told_until(&mut ear, END).await, [END]);
}

#[tokio::test]
async fn a_commit_in_sql_wakes_and_of_several_at_once_one() {
    let ring = Ringback::start().await;
    let (mut one, mut two) = (ring.sql().await, ring.sql().await);
    let mut ear = ear(&ring.database_url()).await;
    let publish = "SELECT ringback.publish('a.b', '1')";
    let submit = "SELECT ringback.submit('http', '{\"url\": \"http://127.0.0.1:1/\"}')";

    for statement in ["BEGIN", publish] {
        one.execute(statement).await.expect(statement);
    }
    for statement in ["BEGIN", publish, "COMMIT"] {
        two.execute(statement).await.expect(statement);
    }
    one.execute("COMMIT").await.expect("committed");
    for statement in ["SET ringback.notify = off", publish, "SET ringback.notify = on", submit] {
        two.execute(statement).await.expect(statement);
    }
    two.execute("NOTIFY ringback, 'that was all'").await.expect("told");

    assert_eq!(told_until(&mut ear, END).await, ["sql events", "sql jobs held scheduled", END]);
    let count = async || list(&ring.get("/v1/events?types=a.b").await.expect(200).json()).len();
    eventually("all are in the log", count, |count| *count == 3).await;
}

#[tokio::test]
async fn what_was_published_first_comes_first_although_the_clocks_of_two_machines_differ() {
    let database = database().await;
    let mut api = ServeProcess::on(&database.url()).with("RINGBACK_ROLES", "api");
    let mut dispatcher = ServeProcess::on(&database.url()).with("RINGBACK_ROLES", "dispatcher");
    api.start().await;
    // As by a process on a machine whose clock is an hour ahead.
    let ahead = "WITH e AS (INSERT INTO ringback.events (tenant_id, id, type, data)
          SELECT id, ringback.uuid_floor(now() + interval '1 hour'), 'a.first', '1' FROM ringback.tenants RETURNING tenant_id, id)
        INSERT INTO ringback.event_inbox (tenant_id, event_id, type) SELECT tenant_id, id, 'a.first' FROM e";
    let mut sql = database.options().connect().await.expect("a connection");
    sql.execute(ahead).await.expect("published");
    api.post("/v1/events", json!({ "type": "a.second", "data": 1 })).await.expect(202);

    dispatcher.start().await;

    let types = async || {
        let page = list(&api.get("/v1/events").await.expect(200).json());
        page.iter().map(|event| string(&event["type"])).collect::<Vec<_>>()
    };
    let found = eventually("both are in the log", types, |types| types.len() == 2).await;
    assert_eq!(found, ["a.first", "a.second"]);
}

#[tokio::test]
async fn what_a_dead_process_had_loaded_twice_is_sent_again_once() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let settings = json!({ "url": receiver.url("/"), "event_types": ["a.b"], "status": "paused" });
    let endpoint = endpoint(&ring, settings).await;
    publish(&ring, 0..1).await;
    let there = async || ring.deliveries("event_type=a.b").await;
    let found = eventually("its delivery is there", there, |found: &Vec<Value>| found.len() == 1).await;

    // It was loaded, found no place on the wire, was put back, and loaded again, while others of the first flight flew.
    ring.put(
        "INSERT INTO ringback.delivery_flights (owner, id, tenant_ids, delivery_ids, attempts)
         SELECT '00000000-0000-0000-0000-00000000dead', gen_random_uuid(), ARRAY[tenant_id], ARRAY[delivery_id], ARRAY[1]
         FROM ringback.delivery_queue, generate_series(1, 2)"
            .to_owned(),
    )
    .await;

    let id = string(&found[0]["id"]);
    let is_tried = |delivery: &Value| delivery["attempt"] == 1;
    let delivery = eventually("it is taken for lost", async || ring.delivery(&id).await, is_tried).await;
    assert_eq!(delivery["attempts"][0]["error"]["code"], "crashed");
    let enabled = json!({ "status": "enabled" });
    let patch = ring.call(http::Method::PATCH, &format!("/v1/endpoints/{endpoint}")).json(&enabled);
    patch.send().await.expect(200);
    receiver.nth(1).await;
}
