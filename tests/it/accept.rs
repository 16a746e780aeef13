//! Accepting a job: what the answer says, what is kept, what is refused for now.

use std::time::Instant;

use http::Method;
use serde_json::{Value, json};

use crate::harness::client::{get_job, list, string};
use crate::harness::{Receiver, Reply, Ringback};

/// A number that no double holds, a key order, blanks and an escape that a parser would lose.
const ODD_INPUT: &str = r#"{"b": 1.0,"a":12345678901234567890, "x":"\u00e9"}"#;

#[tokio::test]
async fn a_job_is_accepted_with_where_it_is_and_when_to_ask() {
    let ring = Ringback::start().await;

    let answer = ring.post("/v1/jobs", json!({ "kind": "resize", "input": {"w": 1} })).await.expect(202);

    let job = answer.json();
    let id = string(&job["id"]);
    assert!(id.starts_with("job_"), "{id}");
    assert_eq!(answer.header("location"), format!("/v1/jobs/{id}"));
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(job["status"], "queued");
    for absent in ["result", "error", "progress", "started_at", "finished_at", "callback_url"] {
        assert!(job.get(absent).is_some_and(Value::is_null), "{absent}: {job}");
    }
    assert_eq!(ring.job(&id).await, job);
}

#[tokio::test]
async fn fields_that_are_not_given_have_the_defaults_of_the_contract() {
    let ring = Ringback::start().await;

    let job = ring.post("/v1/jobs", json!({ "kind": "resize" })).await.expect(202).json();

    assert_eq!(job["input"], Value::Null);
    assert_eq!(job["queue"], "default");
    assert_eq!(job["priority"], 0);
    assert_eq!(job["max_attempts"], 5);
    assert_eq!(job["timeout_s"], 300.0);
    assert_eq!(job["metadata"], json!({}));
    assert_eq!(job["attempt"], 0);
    assert_eq!(job["run_at"], job["created_at"]);
}

#[tokio::test]
async fn every_field_comes_back_as_it_was_given() {
    let ring = Ringback::start().await;
    let given = json!({
        "kind": "resize", "input": {"w": 1}, "queue": "images", "priority": -100, "run_at": "2033-01-31T12:00:00.125Z",
        "timeout_s": 0.5, "max_attempts": 7, "backoff": {"initial_s": 0.01, "factor": 1, "max_s": 5, "jitter": 0},
        "unique_key": "report-2026-11", "callback_url": "https://example.com/hook?x=1", "metadata": {"any": "strings", "ä": ""}
    });

    let id = ring.submit(given.clone()).await;

    let job = ring.job(&id).await;
    for (field, value) in given.as_object().expect("an object") {
        if field != "backoff" {
            assert_eq!(&job[field], value, "{field}");
        }
    }
}

#[tokio::test]
async fn a_callback_is_shown_by_its_url_only() {
    let ring = Ringback::start().await;
    let secret = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let callback = json!({
        "url": "https://example.com/hook", "headers": {"x-token": "very-private"}, "on": ["failed"], "secret": secret,
        "timeout_s": 2, "retry": {"initial_s": 1, "factor": 2, "max_s": 3, "max_attempts": 4, "jitter": 0.1}
    });

    let answer = ring.post("/v1/jobs", json!({ "kind": "resize", "callback": callback })).await.expect(202);

    assert_eq!(answer.json()["callback_url"], "https://example.com/hook");
    let shown = ring.get(answer.header("location")).await.expect(200);
    for text in [answer.text(), shown.text()] {
        assert!(!text.contains("very-private") && !text.contains("whsec_"), "{text}");
    }
}

#[tokio::test]
async fn the_bytes_of_an_input_are_kept() {
    let ring = Ringback::start().await;
    let (target, callback) = (Receiver::ok(), Receiver::ok());
    // Given as another kind and as the body of an http job, so that both ways through the service are taken.
    let body = format!(r#"{{"kind":"resize","input":{ODD_INPUT}}}"#);
    let http = format!(
        r#"{{"kind":"http","input":{{"url":"{}","method":"POST","body":{ODD_INPUT}}},"callback_url":"{}"}}"#,
        target.url("/"),
        callback.url("/")
    );

    let waiting = ring.call(Method::POST, "/v1/jobs").raw_json(body).send().await.expect(202);
    ring.call(Method::POST, "/v1/jobs").raw_json(http).send().await.expect(202);

    let input = format!(r#""input":{ODD_INPUT}"#);
    assert!(waiting.text().contains(&input), "{}", waiting.text());
    let shown = ring.get(waiting.header("location")).await;
    assert!(shown.text().contains(&input), "{}", shown.text());
    assert_eq!(target.nth(1).await.text(), ODD_INPUT);
    let told = callback.nth(1).await;
    assert!(told.text().contains(&format!(r#""body":{ODD_INPUT}"#)), "{}", told.text());
}

#[tokio::test]
async fn a_delayed_job_waits_for_its_time() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let mut job = get_job(&receiver.url("/"));
    job["delay_s"] = json!(0.4);

    let began = Instant::now();
    let accepted = ring.post("/v1/jobs", job).await.expect(202).json();

    assert_eq!(accepted["status"], "queued");
    let ended = ring.wait_for_end(&string(&accepted["id"])).await;
    assert_eq!(ended["status"], "succeeded");
    assert!(receiver.nth(1).await.at - began >= std::time::Duration::from_millis(400));
    assert!(string(&ended["started_at"]) >= string(&ended["run_at"]), "{ended}");
}

#[tokio::test]
async fn a_time_in_the_past_means_now() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let mut job = get_job(&receiver.url("/"));
    job["run_at"] = json!("2020-01-31T12:00:00+01:00");

    let id = ring.submit(job).await;

    assert_eq!(ring.wait_for_end(&id).await["status"], "succeeded");
}

#[tokio::test]
async fn run_at_and_delay_s_exclude_each_other() {
    let ring = Ringback::start().await;

    let job = json!({ "kind": "resize", "run_at": "2033-01-31T12:00:00Z", "delay_s": 30 });
    let answer = ring.post("/v1/jobs", job).await.expect(422);

    assert_eq!(answer.pointers(), ["/delay_s"]);
}

#[tokio::test]
async fn an_unknown_kind_waits_for_a_worker() {
    let ring = Ringback::start().await;

    let job = json!({ "kind": "my.own-kind_1" });
    let answer = ring.call(Method::POST, "/v1/jobs").header("prefer", "wait=0.3").json(&job).send().await;

    assert_eq!(answer.expect(202).json()["status"], "queued");
}

#[tokio::test]
async fn a_client_that_prefers_to_wait_gets_the_result() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(200).with_body("done")]);

    let call = ring.call(Method::POST, "/v1/jobs").header("prefer", "respond-async, wait=30");
    let answer = call.json(&get_job(&receiver.url("/"))).send().await.expect(200);

    let job = answer.json();
    assert_eq!((&job["status"], &job["result"]["body"]), (&json!("succeeded"), &json!("done")));
    assert_eq!(answer.header("location"), format!("/v1/jobs/{}", string(&job["id"])));
    assert_eq!(answer.header("retry-after"), "");
    assert!(answer.header("preference-applied").contains("wait=30"));
}

#[tokio::test]
async fn a_client_that_waited_in_vain_gets_202() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(200).held()]);

    let call = ring.call(Method::POST, "/v1/jobs").header("prefer", "wait=0.3");
    let answer = call.json(&get_job(&receiver.url("/"))).send().await.expect(202);

    assert_eq!(answer.header("retry-after"), "1");
    receiver.release();
    assert_eq!(ring.wait_for_end(&string(&answer.json()["id"])).await["status"], "succeeded");
}

#[tokio::test]
async fn a_long_poll_ends_with_the_job() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(200).held()]);
    let id = ring.submit(get_job(&receiver.url("/"))).await;
    receiver.nth(1).await;

    let unfinished = ring.get(&format!("/v1/jobs/{id}?wait_s=0.2")).await.expect(200);
    let (job, ()) = tokio::join!(ring.wait_for_end(&id), async { receiver.release() });

    assert_eq!(unfinished.json()["status"], "running");
    assert_eq!(unfinished.header("retry-after"), "1");
    assert_eq!(job["status"], "succeeded");
}

#[tokio::test]
async fn the_trace_context_is_handed_on() {
    let ring = Ringback::start().await;
    let (target, callback) = (Receiver::ok(), Receiver::ok());
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let mut job = get_job(&target.url("/"));
    job["callback_url"] = json!(callback.url("/"));

    let call =
        ring.call(Method::POST, "/v1/jobs").header("traceparent", &format!("00-{trace}-b7ad6b7169203331-01"));
    call.json(&job).send().await.expect(202);

    for receiver in [&target, &callback] {
        let got = receiver.nth(1).await;
        assert!(got.header("traceparent").contains(trace), "{:?}", got.headers);
    }
}

#[tokio::test]
async fn a_batch_is_accepted_in_order() {
    let ring = Ringback::start().await;
    let jobs: Vec<Value> =
        (0..1000).map(|n| json!({ "kind": "resize", "metadata": {"n": n.to_string()} })).collect();

    let answer = ring.post("/v1/jobs/batch", json!({ "jobs": jobs })).await.expect(202).json();

    let numbers: Vec<String> = list(&answer).iter().map(|job| string(&job["metadata"]["n"])).collect();
    assert_eq!(numbers, (0..1000).map(|n: i32| n.to_string()).collect::<Vec<_>>());
    let last = string(&list(&answer)[999]["id"]);
    assert_eq!(ring.job(&last).await["metadata"]["n"], "999");
}

#[tokio::test]
async fn a_batch_is_accepted_as_a_whole_or_not_at_all() {
    let ring = Ringback::start().await;

    let jobs = json!([{ "kind": "resize" }, { "kind": "resize", "priority": 101 }, { "knid": "resize" }]);
    let answer = ring.post("/v1/jobs/batch", json!({ "jobs": jobs })).await.expect(422);

    let mut pointers = answer.pointers();
    pointers.sort();
    assert_eq!(pointers, ["/jobs/1/priority", "/jobs/2/kind", "/jobs/2/knid"]);
    assert_eq!(list(&ring.get("/v1/jobs").await.json()).len(), 0);
}

#[tokio::test]
async fn a_batch_has_1_to_1000_jobs() {
    let ring = Ringback::start().await;
    for count in [0, 1001] {
        let jobs = vec![json!({ "kind": "resize" }); count];
        let answer = ring.post("/v1/jobs/batch", json!({ "jobs": jobs })).await.expect(422);
        assert_eq!(answer.pointers(), ["/jobs"]);
    }
}
