//! Lines: jobs of a queue that share an `ordering_key` run one at a time, in the order in which they were accepted.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::client::{list, string};
use crate::harness::process::ServeProcess;
use crate::harness::service::database;
use crate::harness::{Client, Receiver, Reply, Ringback, eventually};

/// A job of a line that gets `url`; its tries follow quickly.
fn job(url: &str, key: &str) -> Value {
    json!({ "kind": "http", "input": {"url": url}, "ordering_key": key, "max_attempts": 50, "backoff": quick_tries() })
}

fn quick_tries() -> Value {
    json!({ "initial_s": 0.01, "factor": 1, "jitter": 0 })
}

/// The paths that were called, each once if it was called again before any other.
fn order_of(receiver: &Receiver) -> Vec<String> {
    order_in(receiver, "/")
}

/// The same of those that begin so.
fn order_in(receiver: &Receiver, prefix: &str) -> Vec<String> {
    let mut paths: Vec<String> = receiver.received().into_iter().map(|request| request.path).collect();
    paths.retain(|path| path.starts_with(prefix));
    paths.dedup();
    paths
}

/// Tries that overlap one of the same key, by the times on record.
async fn overlaps(ring: &Client, jobs_by_key: &BTreeMap<String, Vec<String>>) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (key, ids) in jobs_by_key {
        let mut spans = Vec::new();
        for id in ids {
            for attempt in ring.attempts(id).await {
                spans.push((string(&attempt["started_at"]), string(&attempt["finished_at"])));
            }
        }
        spans.sort();
        let overlap = spans.windows(2).find(|pair| pair[0].1 > pair[1].0);
        found.extend(overlap.map(|pair| (key.clone(), format!("{pair:?}"))));
    }
    found
}

#[tokio::test]
async fn each_line_keeps_the_order_of_each_of_its_publishers_and_runs_one_job_at_a_time() {
    let ring = Ringback::start().await;
    // One of five answers is a failure.
    let replies: Vec<u16> = (0..400).map(|n| if n % 5 == 3 { 500 } else { 200 }).collect();
    let receiver = Receiver::answering(replies);
    let publish = async |publisher: usize| {
        let mut ids = Vec::new();
        for n in 0..24 {
            let key = format!("key-{}", n % 3);
            let url = receiver.url(&format!("/{key}/{publisher}/{n:02}"));
            ids.push((key.clone(), ring.submit(job(&url, &key)).await));
        }
        ids
    };
    let accepted = futures_util::future::join_all((0..6).map(publish)).await.concat();
    let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, id) in accepted {
        assert_eq!(ring.wait_for_end(&id).await["status"], "succeeded");
        by_key.entry(key).or_default().push(id);
    }

    for key in 0..3 {
        let order = order_in(&receiver, &format!("/key-{key}/"));
        assert_eq!(
            order.len(),
            48,
            "each is called until it succeeds, before any other of its line: {order:?}"
        );
        for publisher in 0..6 {
            let own = order_in(&receiver, &format!("/key-{key}/{publisher}/"));
            assert!(own.is_sorted() && own.len() == 8, "{own:?}");
        }
    }
    assert_eq!(overlaps(&ring, &by_key).await, []);
}

#[tokio::test]
async fn a_batch_is_a_line_in_its_order() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let jobs: Vec<Value> = (0..150).map(|n| job(&receiver.url(&format!("/{n:03}")), "k")).collect();

    let accepted = list(&ring.post("/v1/jobs/batch", json!({ "jobs": jobs })).await.expect(202).json());

    ring.wait_for_end(&string(&accepted[149]["id"])).await;
    let expected: Vec<String> = (0..150).map(|n| format!("/{n:03}")).collect();
    assert_eq!(order_of(&receiver), expected);
}

#[tokio::test]
async fn a_job_between_two_tries_blocks_its_line_and_no_other() {
    let ring = Ringback::start().await;
    let (failing, receiver) = (Receiver::answering([500, 200]), Receiver::ok());
    let mut first = job(&failing.url("/first"), "k");
    first["backoff"] = json!({ "initial_s": 1.5, "jitter": 0 });
    let first = ring.submit(first).await;
    let second = ring.submit(job(&receiver.url("/second"), "k")).await;
    failing.nth(1).await;

    let other = ring.submit(job(&receiver.url("/other-line"), "l")).await;
    let mut elsewhere = job(&receiver.url("/other-queue"), "k");
    elsewhere["queue"] = json!("elsewhere");
    let elsewhere = ring.submit(elsewhere).await;
    for id in [&other, &elsewhere] {
        ring.wait_for_end(id).await;
    }

    assert_eq!(ring.job(&second).await["status"], "queued");
    assert_eq!(ring.wait_for_end(&second).await["status"], "succeeded");
    assert_eq!(ring.job(&first).await["status"], "succeeded");
    assert_eq!(order_of(&receiver).last().map(String::as_str), Some("/second"));
}

#[tokio::test]
async fn a_job_that_failed_for_good_lets_the_next_one_go() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([400, 200]);
    let first = ring.submit(job(&receiver.url("/first"), "k")).await;
    let second = ring.submit(job(&receiver.url("/second"), "k")).await;

    assert_eq!(ring.wait_for_end(&second).await["status"], "succeeded");
    assert_eq!(ring.job(&first).await["status"], "failed");
}

#[tokio::test]
async fn a_delayed_job_keeps_its_place_in_the_line() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let mut first = job(&receiver.url("/first"), "k");
    first["delay_s"] = json!(0.7);
    ring.submit(first).await;
    let mut second = job(&receiver.url("/second"), "k");
    second["priority"] = json!(100);
    let second = ring.submit(second).await;

    ring.wait_for_end(&second).await;

    assert_eq!(order_of(&receiver), ["/first", "/second"]);
}

#[tokio::test]
async fn a_held_job_can_be_cancelled_and_the_line_goes_on_without_it() {
    let ring = Ringback::start().await;
    let (receiver, callback) = (Receiver::answering([Reply::from(200).held()]), Receiver::ok());
    let first = ring.submit(job(&receiver.url("/first"), "k")).await;
    let mut second = job(&receiver.url("/second"), "k");
    second["callback_url"] = json!(callback.url("/"));
    let second = ring.submit(second).await;
    let third = ring.submit(job(&receiver.url("/third"), "k")).await;
    receiver.nth(1).await;

    let cancelled = ring.act(&format!("/v1/jobs/{second}/cancel")).await.expect(200).json();
    assert_eq!((&cancelled["status"], &cancelled["attempt"]), (&json!("cancelled"), &json!(0)));
    assert_eq!(callback.nth(1).await.json()["data"]["error"]["code"], "cancelled");
    let running = ring.act(&format!("/v1/jobs/{first}/cancel")).await.expect(200).json();
    assert!(running["cancel_requested"] == true || running["status"] == "cancelled", "{running}");
    receiver.release();

    ring.wait_for_end(&third).await;
    assert_eq!(order_of(&receiver), ["/first", "/third"]);
    ring.act(&format!("/v1/jobs/{second}/cancel")).await.expect(409);
}

#[tokio::test]
async fn a_job_that_is_retried_takes_its_old_place_before_those_that_wait() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(400), Reply::from(200).held(), Reply::from(200)]);
    let first = ring.submit(job(&receiver.url("/first"), "k")).await;
    ring.wait_for_end(&first).await;
    ring.submit(job(&receiver.url("/second"), "k")).await;
    let third = ring.submit(job(&receiver.url("/third"), "k")).await;
    receiver.nth(2).await;

    let retried = ring.act(&format!("/v1/jobs/{first}/retry")).await.expect(200).json();
    assert_eq!((&retried["status"], &retried["attempt"]), (&json!("queued"), &json!(1)));
    receiver.release();

    ring.wait_for_end(&third).await;
    let first = ring.job(&first).await;
    assert_eq!((&first["status"], &first["attempt"]), (&json!("succeeded"), &json!(2)));
    assert_eq!(order_of(&receiver), ["/first", "/second", "/first", "/third"]);
}

#[tokio::test]
async fn a_held_job_is_shown_as_queued_with_its_key() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(200).held()]);
    let first = ring.submit(job(&receiver.url("/"), "customer-42")).await;
    let accepted = ring.post("/v1/jobs", job(&receiver.url("/"), "customer-42")).await.expect(202).json();
    assert_eq!((&accepted["ordering_key"], &accepted["status"]), (&json!("customer-42"), &json!("queued")));
    assert!(accepted.get("after").is_none() && accepted.get("after_failure").is_none(), "{accepted}");
    receiver.nth(1).await;

    let queued = list(&ring.get("/v1/jobs?status=queued").await.expect(200).json());

    assert_eq!(queued.len(), 1, "{queued:?}");
    assert_eq!(queued[0], ring.job(&string(&accepted["id"])).await);
    assert_eq!(ring.job(&first).await["status"], "running");
    let retrying = ring.get("/v1/jobs?status=retrying").await.expect(200).json();
    assert_eq!(list(&retrying), Vec::<Value>::new());
    receiver.release();
    ring.wait_for_end(&string(&accepted["id"])).await;
}

#[tokio::test]
async fn a_unique_key_and_an_idempotency_key_hold_for_jobs_in_lines_as_well() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(200).held()]);
    ring.submit(job(&receiver.url("/first"), "k")).await;
    let mut unique = job(&receiver.url("/unique"), "k");
    unique["unique_key"] = json!("u");
    let id = ring.submit(unique.clone()).await;
    assert_eq!(ring.post("/v1/jobs", unique.clone()).await.expect(200).json()["id"], json!(id));
    let once = job(&receiver.url("/once"), "k");
    let send = || ring.call(http::Method::POST, "/v1/jobs").header("idempotency-key", "i").json(&once).send();
    let (one, other) = (send().await.expect(202).json(), send().await.expect(202).json());
    assert_eq!(one, other);
    ring.act(&format!("/v1/jobs/{id}/cancel")).await.expect(200);
    let again = ring.submit(unique).await;
    assert_ne!(again, id, "the key is free again");
    receiver.release();

    ring.wait_for_end(&again).await;
    assert_eq!(order_of(&receiver), ["/first", "/once", "/unique"]);
}

#[tokio::test]
async fn jobs_submitted_by_sql_stand_in_the_same_lines() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(200).held()]);
    let first = ring.submit(job(&receiver.url("/1"), "k")).await;
    receiver.nth(1).await;
    let mut sql = ring.sql().await;
    let submit = async |sql: &mut sqlx::PgConnection, path: &str, options: &str| {
        let input = json!({ "url": receiver.url(path) });
        let statement = format!("SELECT ringback.submit('http', '{input}', '{options}')");
        sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(statement)).fetch_one(sql).await
    };
    let mut open = sqlx::Connection::begin(&mut sql).await.expect("a transaction");
    let late = submit(&mut open, "/late", r#"{"ordering_key": "k"}"#).await.expect("an id");
    let mut other = ring.sql().await;
    submit(&mut other, "/2", r#"{"ordering_key": "k"}"#).await.expect("an id");
    let after =
        format!(r#"{{"ordering_key": "l", "after": ["{first}", "{first}"], "after_failure": "run"}}"#);
    let after = submit(&mut other, "/after", &after).await.expect("an id");
    let shown = ring.job(&after).await;
    assert_eq!((&shown["after"], &shown["after_failure"]), (&json!([first]), &json!("run")));
    receiver.release();
    ring.wait_for_end(&after).await;
    receiver.nth(3).await;
    // What was not committed kept nobody waiting.
    open.commit().await.expect("committed");
    ring.wait_for_end(&late).await;

    let order: Vec<_> = order_of(&receiver).into_iter().filter(|path| path != "/after").collect();
    assert_eq!(order, ["/1", "/2", "/late"]);
}

#[tokio::test]
async fn a_kill_at_any_moment_neither_loses_nor_reorders_a_line() {
    let database = database().await;
    let receiver = Receiver::answering((0..500).map(|n| if n % 7 == 5 { 500 } else { 200 }));
    let mut ring = ServeProcess::on(&database.url());
    ring.start().await;
    let jobs: Vec<Value> =
        (0..240).map(|n| job(&receiver.url(&format!("/{}/{n:03}", n % 4)), &format!("k{}", n % 4))).collect();
    let accepted = list(&ring.post("/v1/jobs/batch", json!({ "jobs": jobs })).await.expect(202).json());

    for calls in [20, 90, 160] {
        receiver.nth(calls).await;
        ring.kill();
        ring.start().await;
    }

    for job in &accepted {
        let job = ring.wait_for_end(&string(&job["id"])).await;
        assert_eq!(job["status"], "succeeded", "{job}");
    }
    for key in 0..4 {
        let own = order_in(&receiver, &format!("/{key}/"));
        assert_eq!(own.len(), 60, "what was called again was called before the next one: {own:?}");
        assert!(own.is_sorted(), "{own:?}");
    }
    ring.terminate();
    assert_eq!(ring.wait().code, Some(0));
}

#[tokio::test]
async fn two_processes_keep_the_lines_together_and_one_goes_on_when_the_other_is_killed() {
    let database = database().await;
    let receiver = Receiver::ok();
    let (mut one, mut other) = (ServeProcess::on(&database.url()), ServeProcess::on(&database.url()));
    one.start().await;
    other.start().await;
    let publish = async |ring: &Client, publisher: usize| {
        let mut ids = Vec::new();
        for n in 0..60 {
            let key = format!("k{}", n % 3);
            ids.push((
                key.clone(),
                ring.submit(job(&receiver.url(&format!("/{key}/{publisher}/{n:02}")), &key)).await,
            ));
        }
        ids
    };

    let (mut by_one, by_other) = tokio::join!(publish(&one, 0), publish(&other, 1));
    one.kill();

    by_one.extend(by_other);
    let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, id) in by_one {
        let ended =
            eventually("the job ends", async || other.job(&id).await, |job| !job["finished_at"].is_null());
        assert_eq!(ended.await["status"], "succeeded");
        by_key.entry(key).or_default().push(id);
    }
    for key in 0..3 {
        assert_eq!(
            order_in(&receiver, &format!("/k{key}/")).len(),
            40,
            "none is passed while it is tried again"
        );
        for publisher in 0..2 {
            let own = order_in(&receiver, &format!("/k{key}/{publisher}/"));
            assert!(own.is_sorted() && own.len() == 20, "{own:?}");
        }
    }
    other.terminate();
    assert_eq!(other.wait().code, Some(0));
}
