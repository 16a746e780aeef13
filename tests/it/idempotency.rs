//! Repeating a request: `Idempotency-Key` and `unique_key`.

use http::Method;
use serde_json::{Value, json};

use crate::harness::client::{get_job, list, string};
use crate::harness::{Answer, Receiver, Reply, Ringback};

async fn post_with_key(ring: &Ringback, path: &str, key: &str, body: &Value) -> Answer {
    ring.call(Method::POST, path).header("idempotency-key", key).json(body).send().await
}

async fn count_of_jobs(ring: &Ringback) -> usize {
    list(&ring.get("/v1/jobs?limit=250").await.expect(200).json()).len()
}

#[tokio::test]
async fn a_repeated_request_gets_the_first_answer_again() {
    let ring = Ringback::start().await;
    let job = json!({ "kind": "resize" });

    let first = post_with_key(&ring, "/v1/jobs", "\"order-42\"", &job).await.expect(202);
    // Quoted as the draft has it, or bare as most clients send it.
    let second = post_with_key(&ring, "/v1/jobs", "order-42", &job).await.expect(202);

    assert_eq!(first.header("idempotency-replayed"), "");
    assert_eq!(second.header("idempotency-replayed"), "true");
    assert_eq!(second.body, first.body);
    for header in ["location", "retry-after", "content-type"] {
        assert_eq!(second.header(header), first.header(header), "{header}");
    }
    assert_eq!(count_of_jobs(&ring).await, 1);
}

#[tokio::test]
async fn a_key_belongs_to_one_request() {
    let ring = Ringback::start().await;
    post_with_key(&ring, "/v1/jobs", "k", &json!({ "kind": "resize" })).await.expect(202);

    let other_body = post_with_key(&ring, "/v1/jobs", "k", &json!({ "kind": "resize", "priority": 1 })).await;
    let other_path =
        post_with_key(&ring, "/v1/jobs/batch", "k", &json!({ "jobs": [{ "kind": "resize" }] })).await;

    for answer in [other_body.expect(422), other_path.expect(422)] {
        assert!(string(&answer.json()["type"]).ends_with("idempotency-key-reused"), "{}", answer.text());
    }
    assert_eq!(count_of_jobs(&ring).await, 1);
}

#[tokio::test]
async fn a_key_that_can_be_none_is_422() {
    let ring = Ringback::start().await;
    for key in ["", "\"\"", &"k".repeat(256)] {
        post_with_key(&ring, "/v1/jobs", key, &json!({ "kind": "resize" })).await.expect(422);
    }
    post_with_key(&ring, "/v1/jobs", &"k".repeat(255), &json!({ "kind": "resize" })).await.expect(202);
}

#[tokio::test]
async fn a_refused_request_does_not_use_up_its_key() {
    let ring = Ringback::start().await;
    post_with_key(&ring, "/v1/jobs", "k", &json!({ "kind": "" })).await.expect(422);
    post_with_key(&ring, "/v1/jobs", "k", &json!({ "kind": "resize" })).await.expect(202);
}

#[tokio::test]
async fn twenty_requests_with_one_key_make_one_job() {
    let ring = Ringback::start().await;
    let job = json!({ "kind": "resize" });

    let answers =
        futures_util::future::join_all((0..20).map(|_| post_with_key(&ring, "/v1/jobs", "k", &job))).await;

    assert_eq!(count_of_jobs(&ring).await, 1);
    let mut ids = std::collections::HashSet::new();
    for answer in answers {
        match answer.status {
            202 => drop(ids.insert(string(&answer.json()["id"]))),
            409 => assert!(answer.text().contains("still running"), "{}", answer.text()),
            other => panic!("{other}: {}", answer.text()),
        }
    }
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn while_the_first_request_runs_a_repetition_gets_409() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(200).held()]);
    let job = get_job(&receiver.url("/"));

    let call = ring.call(Method::POST, "/v1/jobs").header("idempotency-key", "k").header("prefer", "wait=30");
    let (first, second) = tokio::join!(call.json(&job).send(), async {
        receiver.nth(1).await;
        let second = post_with_key(&ring, "/v1/jobs", "k", &job).await;
        receiver.release();
        second
    });

    assert_eq!(first.expect(200).json()["status"], "succeeded");
    assert_ne!(second.expect(409).header("retry-after"), "");
    let third = post_with_key(&ring, "/v1/jobs", "k", &job).await;
    assert_eq!(third.header("idempotency-replayed"), "true");
    assert_eq!(receiver.received().len(), 1);
}

#[tokio::test]
async fn a_repeated_batch_gets_the_first_answer_again() {
    let ring = Ringback::start().await;
    let batch = json!({ "jobs": [{ "kind": "resize" }, { "kind": "resize", "unique_key": "u" }] });

    let first = post_with_key(&ring, "/v1/jobs/batch", "k", &batch).await.expect(202);
    let second = post_with_key(&ring, "/v1/jobs/batch", "k", &batch).await.expect(202);

    assert_eq!(second.body, first.body);
    assert_eq!(second.header("idempotency-replayed"), "true");
    assert_eq!(count_of_jobs(&ring).await, 2);
}

#[tokio::test]
async fn while_a_job_is_not_finished_its_unique_key_brings_it_back() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(200).held()]);
    let mut job = get_job(&receiver.url("/"));
    job["unique_key"] = json!("report-2026-11");

    let first = ring.post("/v1/jobs", job.clone()).await.expect(202).json();
    receiver.nth(1).await;
    let second = ring.post("/v1/jobs", job.clone()).await.expect(200);
    assert_eq!(second.json()["id"], first["id"]);
    assert_eq!(second.json()["status"], "running");
    assert_eq!(second.header("location"), format!("/v1/jobs/{}", string(&first["id"])));

    receiver.release();
    ring.wait_for_end(&string(&first["id"])).await;
    let third = ring.post("/v1/jobs", job).await.expect(202).json();
    assert_ne!(third["id"], first["id"]);
    ring.wait_for_end(&string(&third["id"])).await;
}

#[tokio::test]
async fn a_cancelled_job_frees_its_unique_key() {
    let ring = Ringback::start().await;
    let job = json!({ "kind": "resize", "unique_key": "u" });
    let first = ring.submit(job.clone()).await;

    ring.act(&format!("/v1/jobs/{first}/cancel")).await.expect(200);

    let second = ring.submit(job).await;
    // The key is the second job's now, so the first one cannot come back.
    ring.act(&format!("/v1/jobs/{first}/retry")).await.expect(409);
    ring.act(&format!("/v1/jobs/{second}/cancel")).await.expect(200);
    ring.act(&format!("/v1/jobs/{first}/retry")).await.expect(200);
}

#[tokio::test]
async fn twenty_requests_with_one_unique_key_make_one_job() {
    let ring = Ringback::start().await;
    let job = json!({ "kind": "resize", "unique_key": "u" });

    let answers = futures_util::future::join_all((0..20).map(|_| ring.post("/v1/jobs", job.clone()))).await;

    let ids: std::collections::HashSet<String> =
        answers.iter().map(|answer| string(&answer.json()["id"])).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.status == 202).count(), 1);
    assert_eq!(count_of_jobs(&ring).await, 1);
}

#[tokio::test]
async fn the_first_answer_comes_again_where_a_unique_key_was_held() {
    let ring = Ringback::start().await;
    let job = json!({ "kind": "resize", "unique_key": "u" });
    let holder = ring.submit(job.clone()).await;

    let first = post_with_key(&ring, "/v1/jobs", "k", &job).await.expect(200);
    let again = post_with_key(&ring, "/v1/jobs", "k", &job).await;

    assert_eq!(string(&first.json()["id"]), holder);
    assert_eq!((again.status, again.json()["id"].clone()), (200, json!(holder)));
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(again.header("idempotency-replayed"), "true");
}

#[tokio::test]
async fn the_first_answer_of_a_batch_comes_again_where_a_unique_key_was_held() {
    let ring = Ringback::start().await;
    let holder = ring.submit(json!({ "kind": "resize", "unique_key": "u" })).await;
    let batch = json!({ "jobs": [{ "kind": "resize" }, { "kind": "resize", "unique_key": "u" }] });

    let first = post_with_key(&ring, "/v1/jobs/batch", "k", &batch).await.expect(202);
    let again = post_with_key(&ring, "/v1/jobs/batch", "k", &batch).await.expect(202);

    assert_eq!(list(&first.json())[1]["id"], holder);
    assert_eq!(again.json(), first.json());
}
