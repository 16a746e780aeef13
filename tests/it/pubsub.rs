//! Publish-subscribe from outside: events in, deliveries to whoever is subscribed, and the log for whoever asks.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::client::{list, string};
use crate::harness::{Receiver, Reply, Ringback, eventually};

async fn endpoint(ring: &Ringback, settings: Value) -> String {
    string(&ring.post("/v1/endpoints", settings).await.expect(201).json()["id"])
}

async fn publish(ring: &Ringback, event_type: &str, data: Value) -> String {
    let event = json!({ "type": event_type, "data": data });
    string(&ring.post("/v1/events", event).await.expect(202).json()["id"])
}

async fn page(ring: &Ringback, query: &str) -> (Vec<Value>, String) {
    let page = ring.get(&format!("/v1/events?{query}")).await.expect(200).json();
    (list(&page).clone(), string(&page["next_cursor"]))
}

#[tokio::test]
async fn an_event_goes_to_those_who_subscribed_and_to_nobody_else() {
    let ring = Ringback::start().await;
    let (orders, all, others) = (Receiver::ok(), Receiver::ok(), Receiver::ok());
    endpoint(&ring, json!({ "url": orders.url("/"), "event_types": ["order.*"] })).await;
    endpoint(&ring, json!({ "url": all.url("/") })).await;
    endpoint(&ring, json!({ "url": others.url("/"), "event_types": ["user.**"] })).await;

    let id = publish(&ring, "order.paid", json!({ "amount": 7 })).await;

    let (one, two) = (orders.nth(1).await, all.nth(1).await);
    for request in [&one, &two] {
        assert_eq!(request.header("webhook-id"), id);
        let body: Value = serde_json::from_slice(&request.body).expect("JSON");
        assert_eq!((&body["type"], &body["data"]), (&json!("order.paid"), &json!({ "amount": 7 })));
    }
    publish(&ring, "user.seen", json!(null)).await;
    others.nth(1).await;
    assert_eq!((orders.received().len(), others.received().len()), (1, 1));
}

#[tokio::test]
async fn data_arrives_byte_for_byte_and_verifies_with_the_endpoints_secret() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([500, 200]);
    let made = ring
        .post("/v1/endpoints", json!({ "url": receiver.url("/"), "retry": {"initial_s": 0.05} }))
        .await
        .expect(201)
        .json();
    let secret = string(&made["secret"]);
    let raw = r#"{"type":"a.b","data":{"b": 1.0,  "a":12345678901234567890}}"#;

    ring.call(http::Method::POST, "/v1/events").raw_json(raw).send().await.expect(202);

    let (first, second) = (receiver.nth(1).await, receiver.nth(2).await);
    assert_eq!(first.body, second.body, "the same bytes on every try");
    let text = String::from_utf8(second.body.clone()).expect("text");
    assert!(text.ends_with(r#""data":{"b": 1.0,  "a":12345678901234567890}}"#), "{text}");
    let oracle = standardwebhooks::Webhook::new(&secret).expect("a secret");
    oracle.verify(&second.body, &second.headers).expect("it verifies");
}

#[tokio::test]
async fn filters_and_transforms_decide_and_a_failing_one_is_seen() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let id = endpoint(
        &ring,
        json!({
            "url": receiver.url("/"), "event_types": ["order.paid"],
            "filter": "data.amount > 100", "transform": "{'text': 'Paid ' + string(data.amount)}"
        }),
    )
    .await;

    publish(&ring, "order.paid", json!({ "amount": 7 })).await;
    publish(&ring, "order.paid", json!({ "amount": 700 })).await;
    let broken = publish(&ring, "order.paid", json!({ "sum": 1 })).await;

    let body: Value = serde_json::from_slice(&receiver.nth(1).await.body).expect("JSON");
    assert_eq!(body["data"], json!({ "text": "Paid 700" }));
    let failed = |all: &Vec<Value>| all.len() == 1;
    let seen =
        eventually("the failed one", async || ring.deliveries(&format!("event_id={broken}")).await, failed)
            .await;
    assert_eq!((&seen[0]["status"], &seen[0]["error"]["code"]), (&json!("failed"), &json!("filter")));
    assert_eq!(ring.deliveries(&format!("endpoint_id={id}")).await.len(), 2, "the filtered one is none");
    assert_eq!(receiver.received().len(), 1);
}

#[tokio::test]
async fn a_paused_endpoint_gets_what_came_when_it_goes_on() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let id = endpoint(&ring, json!({ "url": receiver.url("/"), "status": "paused" })).await;
    let event = publish(&ring, "a.b", json!(1)).await;
    let pending = |all: &Vec<Value>| all.len() == 1 && all[0]["status"] == "pending";
    eventually("it is kept", async || ring.deliveries(&format!("event_id={event}")).await, pending).await;

    let patch = json!({ "status": "enabled" });
    ring.call(http::Method::PATCH, &format!("/v1/endpoints/{id}")).json(&patch).send().await.expect(200);

    assert_eq!(receiver.nth(1).await.header("webhook-id"), event);
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_told_no_more() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([410]);
    let id = endpoint(&ring, json!({ "url": receiver.url("/"), "event_types": ["a.b"] })).await;

    publish(&ring, "a.b", json!(1)).await;

    let disabled = |answer: &Value| answer["status"] == "disabled";
    let path = format!("/v1/endpoints/{id}");
    eventually("it is disabled", async || ring.get(&path).await.expect(200).json(), disabled).await;
    let told = async || page(&ring, "types=endpoint.disabled").await.0;
    let events = eventually("it is told", told, |events: &Vec<Value>| !events.is_empty()).await;
    assert_eq!(events[0]["data"]["endpoint_id"], json!(id));
    publish(&ring, "a.b", json!(2)).await;
    publish(&ring, "c.d", json!(2)).await;
    assert_eq!(receiver.received().len(), 1);
}

#[tokio::test]
async fn order_is_kept_by_key_over_failures_and_other_keys_flow() {
    let ring = Ringback::start().await;
    // Every third answer is a failure.
    let answers: Vec<u16> = (0..90).map(|place| if place % 3 == 0 { 500 } else { 200 }).collect();
    let receiver = Receiver::answering(answers);
    endpoint(
        &ring,
        json!({ "url": receiver.url("/"), "ordering": "key", "retry": {"initial_s": 0.05, "factor": 1} }),
    )
    .await;
    let event =
        |n: usize| json!({ "type": "a.b", "data": {"n": n}, "ordering_key": format!("key-{}", n % 4) });
    let events: Vec<Value> = (0..40).map(event).collect();

    ring.post("/v1/events/batch", json!({ "events": events })).await.expect(202);

    let done = |all: &Vec<Value>| all.len() == 40 && all.iter().all(|one| one["status"] == "succeeded");
    eventually("all arrived", async || ring.deliveries("limit=250").await, done).await;
    let mut last = [None::<u64>; 4];
    for request in receiver.received() {
        let body: Value = serde_json::from_slice(&request.body).expect("JSON");
        let n = body["data"]["n"].as_u64().expect("a number");
        let of_key = &mut last[(n % 4) as usize];
        assert!(of_key.is_none_or(|before| before <= n), "{n} came after {of_key:?}");
        *of_key = Some(n);
    }
}

#[tokio::test]
async fn a_rate_limit_is_kept() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    endpoint(&ring, json!({ "url": receiver.url("/"), "rate_limit": {"per_s": 20, "burst": 5} })).await;
    let events: Vec<Value> = (0..25).map(|n| json!({ "type": "a.b", "data": n })).collect();

    ring.post("/v1/events/batch", json!({ "events": events })).await.expect(202);

    receiver.nth(25).await;
    let all = receiver.received();
    let took = all[24].at.duration_since(all[0].at);
    // Twenty wait for their turn after the burst: one second, less what the clocks differ by.
    assert!(took >= Duration::from_millis(900), "{took:?}");
}

#[tokio::test]
async fn the_log_is_read_by_cursor_and_waits_for_what_comes() {
    let ring = Ringback::start().await;
    let events: Vec<Value> = (0..25).map(|n| json!({ "type": format!("t.{}", n % 2), "data": n })).collect();
    let made = ring.post("/v1/events/batch", json!({ "events": events })).await.expect(202).json();
    let all = |seen: &Vec<Value>| seen.len() == 25;
    eventually("all have a place", async || page(&ring, "limit=250").await.0, all).await;

    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let after = if cursor.is_empty() { String::new() } else { format!("&after={cursor}") };
        let (events, next) = page(&ring, &format!("limit=7{after}")).await;
        cursor = next;
        if events.is_empty() {
            break;
        }
        seen.extend(events);
    }
    assert_eq!(seen, *list(&made), "in the order of publishing, each once");
    assert_eq!(page(&ring, "types=t.1&limit=250").await.0.len(), 12);
    let late = async {
        let (events, _) = page(&ring, &format!("after={cursor}&wait_s=30")).await;
        events
    };
    let (events, id) = tokio::join!(late, publish(&ring, "t.9", json!("late")));
    assert_eq!(events[0]["id"], json!(id));
}

#[tokio::test]
async fn a_dedup_key_brings_the_first_event_back() {
    let ring = Ringback::start().await;
    let event = json!({ "type": "a.b", "data": 1, "dedup_key": "once" });
    let first = ring.post("/v1/events", event.clone()).await.expect(202).json();

    let again = ring
        .post("/v1/events", json!({ "type": "a.b", "data": 2, "dedup_key": "once" }))
        .await
        .expect(200)
        .json();

    assert_eq!(first, again);
    let batch = ring
        .post("/v1/events/batch", json!({ "events": [event, {"type": "a.b", "data": 3}] }))
        .await
        .expect(202)
        .json();
    assert_eq!(list(&batch)[0]["id"], first["id"]);
    let all = |seen: &Vec<Value>| seen.len() == 2;
    eventually("two in the log", async || page(&ring, "").await.0, all).await;
}

#[tokio::test]
async fn what_is_no_event_is_refused_with_the_reason() {
    let ring = Ringback::start().await;
    for (event, pointer) in [
        (json!({ "type": "a b", "data": 1 }), "/type"),
        (json!({ "type": "job.succeeded", "data": 1 }), "/type"),
        (json!({ "type": "a.b" }), "/data"),
        (json!({ "type": "a.b", "data": 1, "daat": 2 }), "/daat"),
        (json!({ "type": "a.b", "data": 1, "metadata": {"a": 1} }), "/metadata/a"),
    ] {
        let problem = ring.post("/v1/events", event).await.expect(422).json();
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    let large = json!({ "type": "a.b", "data": "x".repeat(256 * 1024) });
    ring.post("/v1/events", large).await.expect(413);
}

#[tokio::test]
async fn the_end_of_a_job_goes_to_those_who_subscribed() {
    let ring = Ringback::start().await;
    let (target, receiver) = (Receiver::ok(), Receiver::ok());
    endpoint(&ring, json!({ "url": receiver.url("/"), "event_types": ["job.succeeded"] })).await;

    let id = ring.submit(json!({ "kind": "http", "input": {"url": target.url("/")} })).await;

    let body: Value = serde_json::from_slice(&receiver.nth(1).await.body).expect("JSON");
    assert_eq!(body["data"]["id"], json!(id));
}

#[tokio::test]
async fn a_hanging_endpoint_delays_no_other() {
    let ring = Ringback::start().await;
    let (hanging, quick) = (Receiver::answering([Reply::Hang]), Receiver::ok());
    endpoint(&ring, json!({ "url": hanging.url("/") })).await;
    endpoint(&ring, json!({ "url": quick.url("/") })).await;
    let events: Vec<Value> = (0..300).map(|n| json!({ "type": "a.b", "data": n })).collect();

    ring.post("/v1/events/batch", json!({ "events": events })).await.expect(202);

    quick.nth(300).await;
    assert!(hanging.received().len() < 40);
}

#[tokio::test]
async fn explain_tells_each_endpoints_part() {
    let ring = Ringback::start().await;
    let (well, badly) = (Receiver::ok(), Receiver::answering([500]));
    let told = endpoint(&ring, json!({ "url": well.url("/") })).await;
    let other = endpoint(&ring, json!({ "url": well.url("/"), "event_types": ["x.y"] })).await;
    let filtered = endpoint(&ring, json!({ "url": well.url("/"), "filter": "data.n > 5" })).await;
    let failed = endpoint(&ring, json!({ "url": badly.url("/"), "retry": {"max_attempts": 1} })).await;
    let waiting = endpoint(&ring, json!({ "url": badly.url("/"), "retry": {"initial_s": 3600} })).await;
    let disabled = endpoint(&ring, json!({ "url": well.url("/"), "status": "disabled" })).await;
    let paused = endpoint(&ring, json!({ "url": well.url("/"), "status": "paused" })).await;
    let event = publish(&ring, "a.b", json!({ "n": 1 })).await;

    let path = format!("/v1/events/{event}/explain");
    let wanted = [
        (told, "delivered"),
        (other, "type_mismatch"),
        (filtered, "filtered"),
        (failed, "failed"),
        (waiting, "waiting"),
        (disabled, "disabled"),
        (paused, "paused"),
    ];
    let explain = async || {
        let answer = ring.get(&path).await.expect(200).json();
        let all = answer["endpoints"].as_array().expect("a list").clone();
        all.into_iter()
            .map(|one| (string(&one["endpoint_id"]), string(&one["outcome"]), one))
            .collect::<Vec<_>>()
    };
    let as_wanted = |all: &Vec<(String, String, Value)>| {
        all.iter().all(|(id, outcome, _)| wanted.iter().any(|(one, word)| one == id && word == outcome))
            && all.iter().any(|(_, _, one)| !one["next_attempt_at"].is_null())
    };
    let all = eventually("each has its part", explain, as_wanted).await;
    assert_eq!(all.len(), wanted.len());
    assert!(all.iter().all(|(_, _, one)| one["reason"].as_str().is_some_and(|reason| !reason.is_empty())));
    let exhausted = async || page(&ring, "types=delivery.exhausted").await.0;
    eventually("the lost one is told", exhausted, |events: &Vec<Value>| events.len() == 1).await;
}
