//! What the receiver of a callback gets, and what its answers lead to.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use standardwebhooks::Webhook;

use crate::harness::client::{job_with_callback, quick, string};
use crate::harness::{Received, Receiver, Reply, Ringback, eventually};

const OWN_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=";

fn is_signed_with(request: &Received, secret: &str) -> bool {
    Webhook::new(secret).expect("a secret").verify(&request.body, &request.headers).is_ok()
}

/// A job that ends at once, and tells `callback` of it.
async fn submit(ring: &Ringback, callback: Value) -> String {
    let target = Receiver::ok();
    let id =
        ring.submit(json!({ "kind": "http", "input": {"url": target.url("/")}, "callback": callback })).await;
    ring.wait_for_end(&id).await;
    id
}

/// The only attempt so far.
fn attempt(delivery: &Value) -> &Value {
    let attempts = delivery["attempts"].as_array().expect("attempts");
    assert_eq!(attempts.len(), 1, "{delivery}");
    &attempts[0]
}

#[tokio::test]
async fn a_callback_tells_the_whole_job_signed() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();

    let id = ring.submit(job_with_callback(&receiver.url("/work"), &receiver.url("/hook?x=1"))).await;

    let told = receiver.nth(2).await;
    assert_eq!((told.method.as_str(), told.path.as_str()), ("POST", "/hook?x=1"));
    assert!(is_signed_with(&told, &ring.callback_secret().await));
    assert_eq!(told.header("content-type"), "application/json");
    assert_eq!(told.header("ringback-attempt"), "1");
    assert!(told.header("user-agent").starts_with("Ringback/"));
    assert!(told.header("webhook-id").starts_with("evt_"));
    let body = told.json();
    let fields: Vec<&str> = body.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(fields, ["data", "timestamp", "type"]);
    assert_eq!(body["type"], "job.succeeded");
    assert_eq!(body["data"], ring.job(&id).await, "the job as the API shows it");
    let delivery = ring.wait_for_delivery(&id, "succeeded").await;
    assert_eq!(delivery["id"], told.header("ringback-delivery"));
    assert_eq!(delivery["event_id"], told.header("webhook-id"));
    assert_eq!(delivery["event_type"], "job.succeeded");
    assert_eq!((&delivery["job_id"], &delivery["endpoint_id"]), (&json!(id), &Value::Null));
}

#[tokio::test]
async fn an_attempt_tells_all_about_the_answer() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(202).with_header("x-trace", "7").with_body("thanks")]);

    let id = submit(&ring, json!({ "url": receiver.url("/") })).await;

    let delivery = ring.wait_for_delivery(&id, "succeeded").await;
    assert_eq!((&delivery["status_code"], &delivery["attempt"]), (&json!(202), &json!(1)));
    assert_eq!((&delivery["error"], &delivery["next_attempt_at"]), (&Value::Null, &Value::Null));
    let attempt = attempt(&delivery);
    assert!(string(&attempt["id"]).starts_with("att_"));
    assert_eq!((&attempt["number"], &attempt["outcome"]), (&json!(1), &json!("succeeded")));
    assert_eq!((&attempt["status_code"], &attempt["error"]), (&json!(202), &Value::Null));
    assert_eq!(attempt["remote_address"], receiver.address().to_string());
    assert_eq!(attempt["response"]["headers"]["x-trace"], "7");
    assert_eq!(
        (&attempt["response"]["body"], &attempt["response"]["truncated"]),
        (&json!("thanks"), &json!(false))
    );
    let (connect, first, all) = (
        attempt["timings"]["connect_ms"].as_f64().expect("connected"),
        attempt["timings"]["first_byte_ms"].as_f64().expect("answered"),
        attempt["duration_ms"].as_f64().expect("a duration"),
    );
    assert!(connect > 0.0 && first > 0.0 && all >= first, "{attempt}");
    // An address in the clear needs neither.
    assert_eq!((&attempt["timings"]["dns_ms"], &attempt["timings"]["tls_ms"]), (&Value::Null, &Value::Null));
    assert!(string(&attempt["started_at"]) >= string(&delivery["created_at"]), "{delivery}");
}

#[tokio::test]
async fn a_refused_callback_is_tried_again_with_the_same_bytes() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([500, 404, 429, 200]);
    let callback = json!({ "url": receiver.url("/"), "retry": {"initial_s": 1.1, "factor": 1, "jitter": 0} });

    let id = submit(&ring, callback).await;

    let delivery = ring.wait_for_delivery(&id, "succeeded").await;
    let requests = receiver.received();
    let secret = ring.callback_secret().await;
    assert_eq!(requests.len(), 4);
    for (n, request) in (1..).zip(&requests) {
        assert_eq!(request.body, requests[0].body);
        assert_eq!(request.header("webhook-id"), requests[0].header("webhook-id"));
        assert_eq!(request.header("ringback-delivery"), requests[0].header("ringback-delivery"));
        assert_eq!(request.header("ringback-attempt"), format!("{n}"));
        assert!(is_signed_with(request, &secret));
    }
    let times: std::collections::BTreeSet<&str> =
        requests.iter().map(|one| one.header("webhook-timestamp")).collect();
    assert_eq!(times.len(), 4, "each try has a time of its own: {times:?}");
    for pair in requests.windows(2) {
        assert!(pair[1].at - pair[0].at >= Duration::from_secs(1), "the backoff is waited for");
    }
    let attempts = delivery["attempts"].as_array().expect("attempts");
    let outcomes: Vec<_> =
        attempts.iter().map(|one| (&one["number"], &one["outcome"], &one["status_code"])).collect();
    let (failed, succeeded) = (json!("failed"), json!("succeeded"));
    assert_eq!(outcomes[0], (&json!(1), &failed, &json!(500)));
    assert_eq!(outcomes[1], (&json!(2), &failed, &json!(404)));
    assert_eq!(outcomes[2], (&json!(3), &failed, &json!(429)));
    assert_eq!(outcomes[3], (&json!(4), &succeeded, &json!(200)));
    assert_eq!(attempts[0]["error"]["code"], "status");
}

#[tokio::test]
async fn a_callback_that_is_refused_to_the_end_has_failed() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([500]);

    let id = submit(&ring, json!({ "url": receiver.url("/"), "retry": quick(3) })).await;

    let delivery = ring.wait_for_delivery(&id, "failed").await;
    assert_eq!((&delivery["attempt"], &delivery["error"]["code"]), (&json!(3), &json!("status")));
    assert_eq!(delivery["next_attempt_at"], Value::Null);
    assert_eq!(receiver.received().len(), 3);
    assert_eq!(ring.job(&id).await["status"], "succeeded", "how the job ended is another matter");
}

#[tokio::test]
async fn while_a_callback_waits_it_says_until_when() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([500]);

    let id =
        submit(&ring, json!({ "url": receiver.url("/"), "retry": {"initial_s": 600, "jitter": 0} })).await;

    let delivery = ring.wait_for_attempts(&id, 1).await;
    assert_eq!(delivery["status"], "pending");
    assert!(string(&delivery["next_attempt_at"]) > string(&delivery["updated_at"]), "{delivery}");
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_not_asked_again() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([410]);

    let id = submit(&ring, json!({ "url": receiver.url("/"), "retry": quick(5) })).await;

    let delivery = ring.wait_for_delivery(&id, "failed").await;
    assert_eq!(attempt(&delivery)["error"]["code"], "gone");
}

#[tokio::test]
async fn a_redirect_is_a_failed_attempt_and_is_not_followed() {
    let ring = Ringback::start().await;
    let elsewhere = Receiver::ok();
    for status in [301, 302, 307, 308] {
        let receiver =
            Receiver::answering([Reply::from(status).with_header("location", elsewhere.url("/stolen"))]);
        let id = submit(&ring, json!({ "url": receiver.url("/"), "retry": quick(1) })).await;
        let delivery = ring.wait_for_delivery(&id, "failed").await;
        assert_eq!(attempt(&delivery)["error"]["code"], "redirect");
        assert_eq!(attempt(&delivery)["status_code"], status);
    }
    assert!(elsewhere.received().is_empty());
}

#[tokio::test]
async fn a_receiver_may_say_how_long_to_wait() {
    let ring = Ringback::start().await;
    for status in [429, 503] {
        let receiver =
            Receiver::answering([Reply::from(status).with_header("retry-after", "1"), Reply::from(200)]);
        let id = submit(&ring, json!({ "url": receiver.url("/"), "retry": quick(5) })).await;
        ring.wait_for_delivery(&id, "succeeded").await;
        let waited = receiver.nth(2).await.at - receiver.nth(1).await.at;
        assert!(waited >= Duration::from_secs(1), "{status}: {waited:?}");
    }
}

#[tokio::test]
async fn a_wait_that_is_asked_for_is_capped_and_nonsense_is_ignored() {
    let ring = Ringback::start().await;
    for value in ["86400", "Fri, 31 Dec 2100 23:59:59 GMT", "soon", "-5", "1e3"] {
        let receiver =
            Receiver::answering([Reply::from(503).with_header("retry-after", value), Reply::from(200)]);
        let retry = json!({ "initial_s": 0.01, "max_s": 0.5 });
        let id = submit(&ring, json!({ "url": receiver.url("/"), "retry": retry })).await;
        ring.wait_for_delivery(&id, "succeeded").await;
    }
}

#[tokio::test]
async fn each_way_of_not_answering_has_its_code() {
    let ring = Ringback::start().await;
    // Bound and not listening: nobody answers there, and nobody else can come to listen.
    let closed = tokio::net::TcpSocket::new_v4().expect("a socket");
    closed.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let refusing = format!("http://{}/", closed.local_addr().expect("an address"));
    let (hanging, breaking, babbling) = (
        Receiver::answering([Reply::Hang]),
        Receiver::answering([Reply::CloseInHead]),
        Receiver::answering([Reply::Babble]),
    );
    let tls = Receiver::answering([Reply::Babble]);
    let cases = [
        ("connect", refusing),
        ("timeout", hanging.url("/")),
        ("reset", breaking.url("/")),
        ("protocol", babbling.url("/")),
        ("dns", "http://nowhere.invalid/".to_owned()),
        ("tls", format!("https://{}/", tls.address())),
    ];
    for (code, url) in cases {
        let id = submit(&ring, json!({ "url": url, "timeout_s": 1, "retry": quick(1) })).await;
        let delivery = ring.wait_for_delivery(&id, "failed").await;
        let attempt = attempt(&delivery);
        assert_eq!(
            (&attempt["error"]["code"], &attempt["outcome"]),
            (&json!(code), &json!("failed")),
            "{attempt}"
        );
        assert!(!string(&attempt["error"]["message"]).is_empty());
        assert_eq!((&attempt["status_code"], &attempt["response"]), (&Value::Null, &Value::Null));
    }
}

#[tokio::test]
async fn a_name_that_leads_to_a_forbidden_address_is_not_called() {
    let ring = Ringback::with(|config| {
        config.outbound.allow_networks = vec!["192.0.2.0/24".parse().expect("a network")];
    })
    .await;
    let receiver = Receiver::ok();
    let callback = format!("https://localhost:{}/", receiver.address().port());

    // A job of a kind that nobody runs, cancelled: it ends without calling anyone.
    let id = ring.submit(json!({ "kind": "resize", "callback_url": callback })).await;
    ring.act(&format!("/v1/jobs/{id}/cancel")).await.expect(200);

    let delivery = ring.wait_for_delivery(&id, "failed").await;
    assert_eq!(attempt(&delivery)["error"]["code"], "blocked_address");
    assert!(receiver.received().is_empty());
}

#[tokio::test]
async fn a_complete_head_is_a_success_whatever_the_body_does() {
    let ring = Ringback::start().await;
    for reply in [Reply::Drip, Reply::Flood, Reply::from(204), Reply::from(299)] {
        let receiver = Receiver::answering([reply.clone()]);
        let id =
            submit(&ring, json!({ "url": receiver.url("/"), "timeout_s": 0.5, "retry": quick(2) })).await;
        let delivery = ring.wait_for_delivery(&id, "succeeded").await;
        let response = &attempt(&delivery)["response"];
        let body = string(&response["body"]);
        match reply {
            Reply::Flood => assert_eq!((body.len(), &response["truncated"]), (16 * 1024, &json!(true))),
            Reply::Drip => assert!(!body.is_empty() && response["truncated"] == true, "{response}"),
            _ => assert_eq!((body.as_str(), &response["truncated"]), ("", &json!(false))),
        }
        assert_eq!(receiver.received().len(), 1);
    }
}

#[tokio::test]
async fn only_the_ends_that_were_asked_for_are_told() {
    let ring = Ringback::start().await;
    let (target, callback) = (Receiver::answering([200, 404]), Receiver::ok());
    let job = json!({
        "kind": "http", "input": {"url": target.url("/")}, "callback": {"url": callback.url("/"), "on": ["failed", "cancelled"]}
    });

    let succeeded = ring.submit(job.clone()).await;
    ring.wait_for_end(&succeeded).await;
    let failed = ring.submit(job).await;

    // Told in the order of their ends, so the first one would have come before.
    let told = callback.nth(1).await.json();
    assert_eq!((&told["type"], &told["data"]["id"]), (&json!("job.failed"), &json!(failed)));
    assert!(ring.deliveries(&format!("job_id={succeeded}")).await.is_empty());
}

#[tokio::test]
async fn a_callback_may_have_a_secret_and_headers_of_its_own() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let headers = json!({ "x-team": "billing", "authorization": "Bearer receivers-token" });

    submit(&ring, json!({ "url": receiver.url("/"), "secret": OWN_SECRET, "headers": headers })).await;

    let told = receiver.nth(1).await;
    assert!(is_signed_with(&told, OWN_SECRET));
    assert!(!is_signed_with(&told, &ring.callback_secret().await));
    assert_eq!((told.header("x-team"), told.header("authorization")), ("billing", "Bearer receivers-token"));
}

#[tokio::test]
async fn a_failed_delivery_can_be_sent_again() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([500, 500, 500, 200]);
    let id = submit(&ring, json!({ "url": receiver.url("/"), "retry": quick(2) })).await;
    let failed = ring.wait_for_delivery(&id, "failed").await;
    let path = format!("/v1/deliveries/{}/retry", string(&failed["id"]));

    let pending = ring.act(&path).await.expect(200).json();

    assert!(pending["attempts"].is_array() && pending["status"] != "failed", "{pending}");
    let delivery = ring.wait_for_delivery(&id, "succeeded").await;
    assert_eq!(
        (&delivery["id"], &delivery["attempt"]),
        (&failed["id"], &json!(4)),
        "a fresh round: {delivery}"
    );
    let requests = receiver.received();
    assert_eq!(requests[3].header("ringback-attempt"), "4");
    assert_eq!(requests[3].header("webhook-id"), requests[0].header("webhook-id"));
    assert_eq!(requests[3].body, requests[0].body);
    ring.act(&path).await.expect(409);
}

#[tokio::test]
async fn after_a_rotation_both_secrets_sign_until_the_old_one_is_over() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let old = ring.callback_secret().await;

    let call = ring.call(Method::POST, "/v1/callback-secret/rotate").json(&json!({ "overlap_s": 3600 }));
    let rotated = call.send().await.expect(200);

    let (new, previous) = (string(&rotated.json()["secret"]), rotated.json()["previous"].clone());
    assert_ne!(new, old);
    assert_eq!((previous.as_array().map(Vec::len), string(&previous[0]["secret"])), (Some(1), old.clone()));
    assert_eq!(rotated.header("cache-control"), "no-store");
    assert_eq!(ring.get("/v1/callback-secret").await.json(), rotated.json());
    submit(&ring, json!({ "url": receiver.url("/") })).await;
    let told = receiver.nth(1).await;
    assert_eq!(told.header("webhook-signature").split(' ').count(), 2);
    assert!(is_signed_with(&told, &old) && is_signed_with(&told, &new));

    // Without an overlap the former ones are over at once.
    let call = ring.call(Method::POST, "/v1/callback-secret/rotate").json(&json!({ "overlap_s": 0 }));
    let newest = string(&call.send().await.expect(200).json()["secret"]);
    submit(&ring, json!({ "url": receiver.url("/") })).await;
    let told = receiver.nth(2).await;
    assert!(is_signed_with(&told, &newest) && !is_signed_with(&told, &new));
}

#[tokio::test]
async fn one_hanging_receiver_delays_no_other() {
    let ring = Ringback::start().await;
    let (target, hanging, quick) = (Receiver::ok(), Receiver::answering([Reply::Hang]), Receiver::ok());
    let job = |callback: &Receiver| json!({ "kind": "http", "input": {"url": target.url("/")}, "callback_url": callback.url("/") });
    ring.post("/v1/jobs/batch", json!({ "jobs": vec![job(&hanging); 200] })).await.expect(202);
    // A receiver that has never answered gets a few at a time.
    hanging.nth(2).await;

    let id = ring.submit(job(&quick)).await;

    ring.wait_for_delivery(&id, "succeeded").await;
    assert_eq!(hanging.received().len(), 2);
}

#[tokio::test]
async fn without_a_callback_nothing_is_sent() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let id = ring.submit(json!({ "kind": "http", "input": {"url": receiver.url("/")} })).await;
    ring.wait_for_end(&id).await;
    // One that comes later is told of, so the first one would have been.
    let later = submit(&ring, json!({ "url": receiver.url("/told") })).await;
    ring.wait_for_delivery(&later, "succeeded").await;
    let all = eventually("one delivery", async || ring.deliveries("").await, |all| all.len() == 1).await;
    assert_eq!(all[0]["job_id"], later);
}
