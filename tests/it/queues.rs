//! Queues: paused and resumed, counted, limited by the operator; and who goes first within one.

use serde_json::{Value, json};

use crate::harness::client::{list, string};
use crate::harness::{Receiver, Reply, Ringback};

async fn queue(ring: &Ringback, name: &str) -> Value {
    let all = ring.get("/v1/admin/queues").await.expect(200).json();
    list(&all).iter().find(|queue| queue["name"] == name).cloned().unwrap_or_default()
}

fn call(receiver: &Receiver, path: &str, queue: &str, priority: i64) -> Value {
    json!({ "kind": "http", "input": {"url": receiver.url(path)}, "queue": queue, "priority": priority })
}

#[tokio::test]
async fn a_paused_queue_keeps_what_comes_and_hands_it_out_when_it_is_resumed() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let paused = ring.post("/v1/admin/queues/mail/pause", json!({})).await.expect(200).json();
    assert_eq!((&paused["paused"], &paused["depth"]), (&json!(true), &json!(0)));
    let id = ring.submit(call(&receiver, "/kept", "mail", 0)).await;
    let other = ring.submit(call(&receiver, "/other", "default", 0)).await;
    ring.wait_for_end(&other).await;

    let kept = queue(&ring, "mail").await;
    assert_eq!((&kept["depth"], &kept["paused"]), (&json!(1), &json!(true)), "{kept}");
    assert!(kept["oldest"].is_string() && kept["oldest_age_s"].is_number());
    assert_eq!(ring.get(&format!("/v1/jobs/{id}")).await.expect(200).json()["status"], "queued");

    let resumed = ring.post("/v1/admin/queues/mail/resume", json!({})).await.expect(200).json();

    assert_eq!(resumed["paused"], false);
    assert_eq!(ring.wait_for_end(&id).await["status"], "succeeded");
    assert_eq!(queue(&ring, "mail").await, Value::Null, "nothing waits in it, so it is not listed");
}

#[tokio::test]
async fn what_runs_goes_on_in_a_paused_queue() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(200).held()]);
    let id = ring.submit(call(&receiver, "/", "mail", 0)).await;
    receiver.nth(1).await;
    let paused = ring.post("/v1/admin/queues/mail/pause", json!({})).await.expect(200).json();
    assert_eq!(paused["running"], 1);
    receiver.release();
    assert_eq!(ring.wait_for_end(&id).await["status"], "succeeded");
}

#[tokio::test]
async fn pause_and_resume_twice_are_as_good_as_once_and_names_are_checked() {
    let ring = Ringback::start().await;
    for word in ["pause", "pause", "resume", "resume"] {
        ring.post(&format!("/v1/admin/queues/q.1/{word}"), json!({})).await.expect(200);
    }
    ring.post("/v1/admin/queues/a%20b/pause", json!({})).await.expect(404);
    ring.get("/v1/admin/queues?cursor=a%20b").await.expect(422);
}

#[tokio::test]
async fn queues_are_listed_by_name_page_by_page() {
    let ring = Ringback::start().await;
    for name in ["c", "a", "b"] {
        ring.post(&format!("/v1/admin/queues/{name}/pause"), json!({})).await.expect(200);
    }
    let first = ring.get("/v1/admin/queues?limit=2").await.expect(200).json();
    assert_eq!(list(&first).iter().map(|queue| string(&queue["name"])).collect::<Vec<_>>(), ["a", "b"]);
    let rest = format!("/v1/admin/queues?limit=2&cursor={}", string(&first["next_cursor"]));
    let rest = ring.get(&rest).await.expect(200).json();
    assert_eq!((&rest["data"][0]["name"], &rest["next_cursor"]), (&json!("c"), &Value::Null));
}

#[tokio::test]
async fn the_lowest_priority_gets_one_hand_out_in_sixteen() {
    let ring = Ringback::with(|config| config.executor_concurrency = 1).await;
    let receiver = Receiver::answering([Reply::from(200).held()]);
    ring.submit(call(&receiver, "/first", "default", 0)).await;
    receiver.nth(1).await;
    let mut jobs = vec![call(&receiver, "/low", "default", -100)];
    jobs.extend((0..40).map(|_| call(&receiver, "/high", "default", 100)));
    let accepted = ring.post("/v1/jobs/batch", json!({ "jobs": jobs })).await.expect(202).json();

    receiver.release();

    for job in list(&accepted) {
        ring.wait_for_end(&string(&job["id"])).await;
    }
    let low = receiver.received().iter().position(|request| request.path == "/low");
    assert!(low.is_some_and(|at| at <= 17), "{low:?}");
}
