//! `GET /v1/jobs/{id}/explain`: why a job waits, or what became of it.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::harness::client::{get_job, string};
use crate::harness::{Receiver, Reply, Ringback, eventually};

async fn explain(ring: &Ringback, id: &str) -> Value {
    let explained = ring.get(&format!("/v1/jobs/{id}/explain")).await.expect(200).json();
    assert_eq!(explained["job_id"], json!(id));
    explained
}

/// The explanation when it has this code.
async fn explained(ring: &Ringback, id: &str, code: &str) -> Value {
    eventually(code, async || explain(ring, id).await, |one| one["code"] == code).await
}

fn reason(explained: &Value) -> String {
    string(&explained["reason"])
}

#[tokio::test]
async fn a_job_behind_others_in_its_line_names_whose_turn_it_is() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(200).held()]);
    let mut job = get_job(&receiver.url("/"));
    job["ordering_key"] = json!("customer-42");
    let (first, second) = (ring.submit(job.clone()).await, ring.submit(job.clone()).await);
    let third = ring.submit(job).await;
    receiver.nth(1).await;

    let one = explain(&ring, &third).await;

    assert_eq!((&one["code"], &one["status"]), (&json!("ordering_key"), &json!("queued")));
    assert_eq!((&one["ordering_key"], &one["queue"]), (&json!("customer-42"), &json!("default")));
    assert_eq!((&one["head_job_id"], &one["ahead"]), (&json!(first), &json!(2)));
    assert!(reason(&one).contains("customer-42") && reason(&one).contains(&first), "{one}");
    assert_eq!(explain(&ring, &second).await["ahead"], 1);
    let running = explain(&ring, &first).await;
    assert_eq!((&running["code"], &running["status"]), (&json!("running"), &json!("running")));
    assert!(running["worker"].is_string() && running["since"].is_string(), "{running}");
    receiver.release();
    ring.wait_for_end(&third).await;
    assert_eq!(explain(&ring, &third).await["code"], "succeeded");
}

#[tokio::test]
async fn a_job_after_others_names_those_that_have_not_ended() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let done = ring.submit(get_job(&receiver.url("/"))).await;
    ring.wait_for_end(&done).await;
    let mut open = Vec::new();
    for _ in 0..12 {
        open.push(ring.submit(json!({ "kind": "resize" })).await);
    }
    let all: Vec<&String> = std::iter::once(&done).chain(&open).collect();
    let many = ring.submit(json!({ "kind": "resize", "after": all })).await;
    let one = ring.submit(json!({ "kind": "resize", "after": [done, open[0]] })).await;

    let fits = |explained: &Value| explained["waits_for_count"] == 12;
    let many =
        eventually("the one that ended is not counted", async || explain(&ring, &many).await, fits).await;
    assert_eq!((&many["code"], &many["waits_for"]), (&json!("after"), &json!(open[..10])));
    let fits = |explained: &Value| explained["waits_for_count"] == 1;
    let one =
        eventually("the one that ended is not counted", async || explain(&ring, &one).await, fits).await;
    assert!(reason(&one).contains(&open[0]), "{one}");
}

#[tokio::test]
async fn a_job_that_waits_for_its_time_says_when() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([500]);
    let late = ring.submit(json!({ "kind": "resize", "run_at": "2033-01-31T12:00:00Z" })).await;
    let mut failing = get_job(&receiver.url("/"));
    failing["backoff"] = json!({ "initial_s": 600, "jitter": 0 });
    let failing = ring.submit(failing).await;

    let one = explain(&ring, &late).await;
    assert_eq!((&one["code"], &one["due_at"]), (&json!("delayed"), &json!("2033-01-31T12:00:00.000Z")));
    let one = explained(&ring, &failing, "retrying").await;
    assert_eq!(one["due_at"], ring.job(&failing).await["run_at"]);
    assert!(reason(&one).starts_with("1 try failed") && reason(&one).contains("500"), "{one}");
}

#[tokio::test]
async fn a_job_in_a_paused_queue_or_among_others_says_so() {
    let ring = Ringback::with(|config| config.executor_concurrency = 1).await;
    let receiver = Receiver::answering([Reply::from(200).held()]);
    let running = ring.submit(get_job(&receiver.url("/"))).await;
    receiver.nth(1).await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(ring.submit(get_job(&receiver.url("/"))).await);
    }

    let one = explain(&ring, &waiting[2]).await;
    assert_eq!((&one["code"], &one["ahead"], &one["kind"]), (&json!("turn"), &json!(2), &json!("http")));
    ring.act("/v1/admin/queues/default/pause").await.expect(200);
    let one = explain(&ring, &waiting[2]).await;
    assert_eq!((&one["code"], &one["queue"]), (&json!("queue_paused"), &json!("default")));
    assert!(one["since"].is_string());
    ring.act("/v1/admin/queues/default/resume").await.expect(200);
    ring.act(&format!("/v1/jobs/{running}/cancel")).await.expect(200);
    receiver.release();
    assert_eq!(explained(&ring, &running, "cancelled").await["status"], "cancelled");
    ring.wait_for_end(&waiting[2]).await;
}

#[tokio::test]
async fn a_job_in_a_queue_at_its_limit_says_so() {
    let file =
        "queues.full = { concurrency = 1 }\nqueues.slow = { rate_limit = { per_s = 0.01, burst = 1 } }";
    let operator = toml::from_str(file).expect("an operator's file");
    let ring = Ringback::with(|config| config.operator = Arc::new(operator)).await;
    let receiver = Receiver::answering([Reply::from(200).held()]);
    for queue in ["full", "slow"] {
        let mut job = get_job(&receiver.url("/"));
        job["queue"] = json!(queue);
        ring.submit(job.clone()).await;
        receiver.nth(if queue == "full" { 1 } else { 2 }).await;
        let waiting = ring.submit(job).await;

        let one = explain(&ring, &waiting).await;

        assert_eq!((&one["code"], &one["queue"]), (&json!("queue_at_limit"), &json!(queue)), "{one}");
        ring.act(&format!("/v1/jobs/{waiting}/cancel")).await.expect(200);
    }
    receiver.release();
}

#[tokio::test]
async fn a_job_that_failed_or_was_cancelled_says_why() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([400]);
    let failed = ring.submit(get_job(&receiver.url("/"))).await;
    let after = ring.submit(json!({ "kind": "resize", "after": [failed] })).await;
    ring.wait_for_end(&after).await;

    let one = explain(&ring, &failed).await;
    assert_eq!((&one["code"], &one["status"]), (&json!("failed"), &json!("failed")));
    assert!(reason(&one).starts_with("failed after 1 try: ") && reason(&one).contains("400"), "{one}");
    let one = explain(&ring, &after).await;
    assert_eq!(one["code"], "cancelled");
    assert!(reason(&one).contains(&failed), "{one}");
    ring.get("/v1/jobs/job_01h2xcejqtf2nbrexx3vqjhp41/explain").await.expect(404);
}
