//! Running a job: what the `http` kind sends, which answers end it, how often it is tried, how it is stopped.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::client::{get_job, list, quick, string};
use crate::harness::{Receiver, Reply, Ringback};

/// A job that gets `url` and is tried again quickly.
fn patient_job(url: &str, max_attempts: u32) -> Value {
    let mut backoff = quick(max_attempts);
    backoff.as_object_mut().expect("an object").remove("max_attempts");
    json!({ "kind": "http", "input": { "url": url }, "max_attempts": max_attempts, "backoff": backoff })
}

fn outcomes(attempts: &[Value]) -> Vec<(u64, String)> {
    let one = |attempt: &Value| (attempt["number"].as_u64().expect("a number"), string(&attempt["outcome"]));
    attempts.iter().map(one).collect()
}

fn tried(outcomes: &[&str]) -> Vec<(u64, String)> {
    (1..).zip(outcomes.iter().map(|&outcome| outcome.to_owned())).collect()
}

#[tokio::test]
async fn a_request_goes_out_as_the_input_describes_it() {
    let ring = Ringback::start().await;
    let receiver =
        Receiver::answering([Reply::from(201).with_header("x-answer", "yes").with_body("{\"ok\":true}")]);

    let input = json!({
        "method": "PUT", "url": receiver.url("/things/1?x=%20y"), "headers": {"X-Team": "billing", "authorization": "Bearer t"},
        "body": {"a": [1, 2]}
    });
    let id = ring.submit(json!({ "kind": "http", "input": input })).await;

    let request = receiver.nth(1).await;
    assert_eq!((request.method.as_str(), request.path.as_str()), ("PUT", "/things/1?x=%20y"));
    assert_eq!(request.header("x-team"), "billing");
    assert_eq!(request.header("authorization"), "Bearer t");
    assert_eq!(request.header("content-type"), "application/json");
    assert_eq!(request.header("idempotency-key"), id);
    assert!(request.header("user-agent").starts_with("Ringback/"));
    assert_eq!(request.text(), r#"{"a":[1,2]}"#);
    let job = ring.wait_for_end(&id).await;
    assert_eq!(job["status"], "succeeded");
    assert_eq!(job["error"], Value::Null);
    assert_eq!((&job["result"]["status"], &job["result"]["body"]), (&json!(201), &json!("{\"ok\":true}")));
    assert_eq!(job["result"]["headers"]["x-answer"], "yes");
    assert_eq!(outcomes(&ring.attempts(&id).await), tried(&["succeeded"]));
}

#[tokio::test]
async fn a_text_body_is_sent_as_it_is() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let input = json!({ "method": "POST", "url": receiver.url("/"), "body": "a=1&b=ä", "headers": {"content-type": "text/x"} });

    ring.submit(json!({ "kind": "http", "input": input })).await;

    let request = receiver.nth(1).await;
    assert_eq!((request.text(), request.header("content-type")), ("a=1&b=ä", "text/x"));
}

#[tokio::test]
async fn which_status_is_a_success_is_the_jobs_choice() {
    let ring = Ringback::start().await;
    let cases = [
        (404, json!(404), "succeeded"),
        (200, json!("300-399"), "failed"),
        (302, json!([200, "300-399"]), "succeeded"),
    ];
    for (status, success, end) in cases {
        let receiver = Receiver::answering([status]);
        let input = json!({ "url": receiver.url("/"), "success_status": success });
        let job = ring.wait_for_end(&ring.submit(json!({ "kind": "http", "input": input })).await).await;
        assert_eq!(job["status"], end, "{job}");
        assert_eq!(job["result"]["status"], if end == "failed" { Value::Null } else { json!(status) });
    }
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    let ring = Ringback::start().await;
    let script = [500, 502, 503, 599, 408, 425, 429].map(Reply::from);
    let script = script.into_iter().chain([Reply::CloseInHead, Reply::Babble, Reply::from(200)]);
    let receiver = Receiver::answering(script);

    let id = ring.submit(patient_job(&receiver.url("/"), 20)).await;

    let job = ring.wait_for_end(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("succeeded"), &json!(10)), "{job}");
    let attempts = ring.attempts(&id).await;
    assert_eq!(outcomes(&attempts[..9]), tried(&["failed"; 9]));
    assert_eq!(attempts[0]["error"]["code"], "http_status");
    assert!(string(&attempts[0]["error"]["message"]).contains("500"));
    assert_eq!(attempts[7]["error"]["code"], "reset");
    assert_eq!(attempts[8]["error"]["code"], "protocol");
    for attempt in &attempts {
        assert!(string(&attempt["finished_at"]) >= string(&attempt["started_at"]), "{attempt}");
        assert!(!string(&attempt["worker"]).is_empty());
    }
}

#[tokio::test]
async fn between_two_tries_a_job_is_retrying() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([500, 200]);
    let mut job = get_job(&receiver.url("/"));
    job["backoff"] = json!({ "initial_s": 600, "jitter": 0 });

    let id = ring.submit(job).await;

    let job = ring.wait_for_status(&id, "retrying").await;
    assert_eq!((&job["attempt"], &job["error"]["code"]), (&json!(1), &json!("http_status")));
    assert_eq!(job["finished_at"], Value::Null);
    assert!(string(&job["run_at"]) > string(&job["created_at"]), "it says when it is due: {job}");
    assert_eq!(list(&ring.get("/v1/jobs?status=retrying").await.json()).len(), 1);
}

#[tokio::test]
async fn a_service_may_say_when_to_come_back() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(503).with_header("retry-after", "1"), Reply::from(200)]);

    ring.submit(patient_job(&receiver.url("/"), 5)).await;

    let (first, second) = (receiver.nth(1).await, receiver.nth(2).await);
    assert!(second.at - first.at >= Duration::from_secs(1), "{:?}", second.at - first.at);
}

#[tokio::test]
async fn what_will_not_change_fails_at_once() {
    let ring = Ringback::start().await;
    for status in [301, 400, 401, 404, 409, 410, 422] {
        let receiver = Receiver::answering([status]);
        let id = ring.submit(patient_job(&receiver.url("/"), 5)).await;
        let job = ring.wait_for_end(&id).await;
        assert_eq!((&job["status"], &job["attempt"]), (&json!("failed"), &json!(1)), "{job}");
        assert_eq!(job["error"]["code"], "http_status");
        assert!(string(&job["error"]["message"]).contains(&status.to_string()), "{job}");
    }
}

#[tokio::test]
async fn a_job_fails_when_its_tries_are_used_up() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([500]);

    let id = ring.submit(patient_job(&receiver.url("/"), 3)).await;

    let job = ring.wait_for_end(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("failed"), &json!(3)));
    assert!(string(&job["error"]["message"]).contains("500"), "{job}");
    assert_eq!(receiver.received().len(), 3);
    assert_eq!(list(&ring.get("/v1/jobs?status=failed").await.json())[0]["id"], id);
}

#[tokio::test]
async fn a_try_that_takes_too_long_is_ended() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::Hang]);
    let mut job = patient_job(&receiver.url("/"), 2);
    job["timeout_s"] = json!(0.2);

    let id = ring.submit(job).await;

    let job = ring.wait_for_end(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("timeout")));
    assert_eq!(outcomes(&ring.attempts(&id).await), tried(&["timed_out", "timed_out"]));
}

#[tokio::test]
async fn a_body_that_never_ends_is_no_result() {
    let ring = Ringback::start().await;
    let dripping = Receiver::answering([Reply::Drip]);
    let mut job = patient_job(&dripping.url("/"), 1);
    job["timeout_s"] = json!(0.3);
    let id = ring.submit(job).await;
    assert_eq!(ring.wait_for_end(&id).await["error"]["code"], "timeout");

    // So much of it is kept that the result fits; that there was more is said.
    let flooding = Receiver::answering([Reply::Flood]);
    let id = ring.submit(get_job(&flooding.url("/"))).await;
    let job = ring.wait_for_end(&id).await;
    assert_eq!((&job["status"], &job["result"]["truncated"]), (&json!("succeeded"), &json!(true)));
}

#[tokio::test]
async fn a_failed_job_can_be_retried_and_its_attempts_are_counted_on() {
    let ring = Ringback::start().await;
    let (target, callback) = (Receiver::answering([500, 500, 500, 200]), Receiver::ok());
    let mut job = patient_job(&target.url("/"), 2);
    job["callback_url"] = json!(callback.url("/"));
    let id = ring.submit(job).await;
    assert_eq!(ring.wait_for_end(&id).await["status"], "failed");

    let again = ring.act(&format!("/v1/jobs/{id}/retry")).await.expect(200).json();

    assert_ne!(again["status"], "failed", "it may be on its way already: {again}");
    let job = ring.wait_for_end(&id).await;
    assert_eq!(
        (&job["status"], &job["attempt"]),
        (&json!("succeeded"), &json!(4)),
        "a fresh round of tries: {job}"
    );
    assert_eq!(outcomes(&ring.attempts(&id).await), tried(&["failed", "failed", "failed", "succeeded"]));
    ring.act(&format!("/v1/jobs/{id}/retry")).await.expect(409);
    // Each end is told.
    assert_eq!(callback.nth(1).await.json()["type"], "job.failed");
    assert_eq!(callback.nth(2).await.json()["type"], "job.succeeded");
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_at_once() {
    let ring = Ringback::start().await;
    let callback = Receiver::ok();
    let job = json!({ "kind": "resize", "delay_s": 600, "callback_url": callback.url("/") });
    let id = ring.submit(job).await;

    let cancelled = ring.act(&format!("/v1/jobs/{id}/cancel")).await.expect(200).json();

    assert_eq!(
        (&cancelled["status"], &cancelled["error"]["code"]),
        (&json!("cancelled"), &json!("cancelled"))
    );
    let told = callback.nth(1).await.json();
    assert_eq!((&told["type"], &told["data"]["status"]), (&json!("job.cancelled"), &json!("cancelled")));
    ring.act(&format!("/v1/jobs/{id}/cancel")).await.expect(409);
    assert!(ring.attempts(&id).await.is_empty());
    ring.act(&format!("/v1/jobs/{id}/retry")).await.expect(200);
}

#[tokio::test]
async fn a_running_job_is_stopped() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::Hang]);
    let id = ring.submit(get_job(&receiver.url("/"))).await;
    receiver.nth(1).await;

    let asked = ring.act(&format!("/v1/jobs/{id}/cancel")).await.expect(200).json();

    let running = asked["status"] == "running" && asked["cancel_requested"] == true;
    assert!(running || asked["status"] == "cancelled", "{asked}");
    assert_eq!(ring.wait_for_end(&id).await["status"], "cancelled");
    assert_eq!(outcomes(&ring.attempts(&id).await), tried(&["cancelled"]));
}

#[tokio::test]
async fn a_job_that_waits_for_another_try_can_be_cancelled() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([500]);
    let mut job = get_job(&receiver.url("/"));
    job["backoff"] = json!({ "initial_s": 600 });
    let id = ring.submit(job).await;
    ring.wait_for_status(&id, "retrying").await;

    let job = ring.act(&format!("/v1/jobs/{id}/cancel")).await.expect(200).json();

    assert_eq!((&job["status"], &job["attempt"]), (&json!("cancelled"), &json!(1)));
}

#[tokio::test]
async fn a_job_that_ended_cannot_be_cancelled() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let id = ring.submit(get_job(&receiver.url("/"))).await;
    ring.wait_for_end(&id).await;

    let answer = ring.act(&format!("/v1/jobs/{id}/cancel")).await.expect(409);

    assert!(answer.text().contains("ended"), "{}", answer.text());
}

#[tokio::test]
async fn a_name_that_leads_to_a_forbidden_address_is_not_called() {
    // The network of 127.0.0.1 is not open; that some other is lifts the rule on names.
    let ring = Ringback::with(|config| {
        config.outbound.allow_networks = vec!["192.0.2.0/24".parse().expect("a network")];
    })
    .await;
    let receiver = Receiver::ok();

    let id = ring.submit(get_job(&format!("https://localhost:{}/", receiver.address().port()))).await;

    let job = ring.wait_for_end(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("failed"), &json!(1)), "{job}");
    assert_eq!(job["error"]["code"], "blocked_address");
    assert!(receiver.received().is_empty());
}

#[tokio::test]
async fn one_hanging_service_delays_no_other() {
    let ring = Ringback::start().await;
    let (hanging, quick) = (Receiver::answering([Reply::Hang]), Receiver::ok());
    let slow: Vec<Value> = (0..100).map(|_| get_job(&hanging.url("/"))).collect();
    ring.post("/v1/jobs/batch", json!({ "jobs": slow })).await.expect(202);
    hanging.nth(100).await;

    let id = ring.submit(get_job(&quick.url("/"))).await;

    assert_eq!(ring.wait_for_end(&id).await["status"], "succeeded");
}
