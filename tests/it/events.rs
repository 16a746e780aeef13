//! Publishing: what is accepted, what is refused, and what comes twice.

use http::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _};

use crate::harness::client::{list, string};
use crate::harness::{Answer, Ringback};

async fn post_with_key(ring: &Ringback, path: &str, key: &str, body: &Value) -> Answer {
    ring.call(Method::POST, path).header("idempotency-key", key).json(body).send().await
}

/// All events, from the oldest on.
async fn events(ring: &Ringback) -> Vec<Value> {
    list(&ring.get("/v1/events?limit=250&after=AAAAAAAAAAA").await.expect(200).json())
}

/// Waits until everything that is accepted stands in the log, and counts it.
async fn count(ring: &Ringback) -> usize {
    ring.get("/v1/events?after=now").await.expect(200);
    events(ring).await.len()
}

#[tokio::test]
async fn an_event_is_kept_byte_for_byte() {
    let ring = Ringback::start().await;
    let data = r#"{"b": 1.0,  "a":12345678901234567890, "ä":"\u00e4"}"#;
    let body = format!(
        r#"{{"type":"order.paid","data":{data},"ordering_key":"k","metadata":{{"source":"checkout"}}}}"#
    );

    let answer = ring.call(Method::POST, "/v1/events").raw_json(body).send().await.expect(202);
    let event = answer.json();
    let path = format!("/v1/events/{}", string(&event["id"]));

    assert_eq!(answer.header("location"), path);
    assert!(answer.text().contains(data), "{}", answer.text());
    assert_eq!(event["type"], "order.paid");
    assert_eq!((&event["ordering_key"], &event["metadata"]), (&json!("k"), &json!({"source": "checkout"})));
    assert_eq!(event["timestamp"], event["created_at"]);
    assert_eq!(ring.get(&path).await.expect(200).body, answer.body);
    ring.get("/v1/events/evt_01jd7m3v6kf0qr8x2n4ab9cdef").await.expect(404);
    ring.get("/v1/events/job_01jd7m3v6kf0qr8x2n4ab9cdef").await.expect(404);
}

#[tokio::test]
async fn data_may_be_any_json() {
    let ring = Ringback::start().await;
    for data in [json!(null), json!(0), json!("x"), json!([]), json!(false)] {
        let id = ring.publish("a", data.clone()).await;
        assert_eq!(ring.get(&format!("/v1/events/{id}")).await.expect(200).json()["data"], data);
    }
    let deep = |levels: usize| {
        let data = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        ring.call(Method::POST, "/v1/events").raw_json(format!(r#"{{"type":"a","data":{data}}}"#))
    };
    deep(64).send().await.expect(202);
    deep(65).send().await.expect(400);
}

#[tokio::test]
async fn every_fault_is_named_by_its_pointer() {
    let ring = Ringback::start().await;
    for (body, pointers) in [
        (json!({}), vec!["/type", "/data"]),
        (json!({"type": "a b", "data": 1, "id": "x"}), vec!["/type", "/id"]),
        (
            json!({"type": "a", "data": 1, "dedup_key": "", "ordering_key": 7}),
            vec!["/ordering_key", "/dedup_key"],
        ),
        (json!({"type": "a", "data": 1, "metadata": {"n": 1}}), vec!["/metadata/n"]),
    ] {
        assert_eq!(ring.post("/v1/events", body).await.expect(422).pointers(), pointers);
    }
    for event_type in ["job.succeeded", "endpoint.disabled", "delivery.failed", "ringback.test"] {
        let answer = ring.post("/v1/events", json!({"type": event_type, "data": 1})).await.expect(422);
        assert!(answer.text().contains("Ringback's own"), "{}", answer.text());
    }
    let too_long = json!({"type": "a", "data": "x".repeat(256 * 1024 - 1)});
    ring.post("/v1/events", too_long.clone()).await.expect(413);
    ring.post("/v1/events/batch", json!({"events": [too_long]})).await.expect(413);
    let batch = json!({"events": [{"type": "a", "data": 1}, {"type": "job.x"}]});
    let answer = ring.post("/v1/events/batch", batch).await.expect(422);
    assert_eq!(answer.pointers(), ["/events/1/type", "/events/1/data"]);
    assert_eq!(count(&ring).await, 0);
}

#[tokio::test]
async fn a_batch_becomes_visible_in_its_order() {
    let ring = Ringback::start().await;
    let batch: Vec<Value> = (0..1000).map(|n| json!({"type": "tick", "data": n})).collect();
    let answer = ring.post("/v1/events/batch", json!({ "events": batch })).await.expect(202).json();
    assert_eq!(list(&answer).len(), 1000);

    let (mut seen, mut path) = (Vec::new(), "/v1/events?wait_s=20&limit=250".to_owned());
    while seen.len() < 1000 {
        let page = ring.get(&path).await.expect(200).json();
        seen.extend(list(&page));
        path = format!("/v1/events?wait_s=20&limit=250&after={}", string(&page["next_cursor"]));
    }
    assert_eq!(seen, list(&answer));
}

#[tokio::test]
async fn a_repeated_request_gets_the_first_answer_again() {
    let ring = Ringback::start().await;
    let event = json!({"type": "a", "data": 1});
    let batch = json!({"events": [event, event]});
    for (path, body, key) in [("/v1/events", &event, "k1"), ("/v1/events/batch", &batch, "k2")] {
        let first = post_with_key(&ring, path, key, body).await.expect(202);
        let again = post_with_key(&ring, path, key, body).await.expect(202);
        assert_eq!((&again.body, again.header("idempotency-replayed")), (&first.body, "true"));
        for header in ["location", "retry-after"] {
            assert_eq!(again.header(header), first.header(header), "{header}");
        }
        post_with_key(&ring, path, key, &json!({"type": "b", "data": 1})).await.expect(422);
    }
    assert_eq!(count(&ring).await, 3);
}

#[tokio::test]
async fn a_dedup_key_brings_the_first_event_back() {
    let ring = Ringback::start().await;
    let event = json!({"type": "a", "data": 1, "dedup_key": "d"});
    let first = ring.post("/v1/events", event.clone()).await.expect(202);
    let other = json!({"type": "b", "data": 2, "dedup_key": "d"});

    let second = ring.post("/v1/events", other.clone()).await.expect(200);
    assert_eq!((&second.body, second.header("location")), (&first.body, first.header("location")));

    // The answer under an Idempotency-Key is the one that was given.
    let third = post_with_key(&ring, "/v1/events", "k", &other).await.expect(200);
    let again = post_with_key(&ring, "/v1/events", "k", &other).await.expect(200);
    assert_eq!((&third.body, &again.body), (&first.body, &first.body));
    assert_eq!(again.header("idempotency-replayed"), "true");
    let fresh = json!({"type": "b", "data": 2, "dedup_key": "e"});
    post_with_key(&ring, "/v1/events", "k2", &fresh).await.expect(202);
    assert_eq!(count(&ring).await, 2);
}

#[tokio::test]
async fn after_a_day_a_dedup_key_is_free() {
    let ring = Ringback::start().await;
    let event = json!({"type": "a", "data": 1, "dedup_key": "d"});
    let first = ring.post("/v1/events", event.clone()).await.expect(202).json();
    let mut sql = ring.sql().await;
    sql.execute("UPDATE ringback.event_dedup SET created_at = now() - interval '24 hours 1 s'")
        .await
        .expect("aged");

    let second = ring.post("/v1/events", event.clone()).await.expect(202).json();
    let third = ring.post("/v1/events", event).await.expect(200).json();

    assert_ne!(second["id"], first["id"]);
    assert_eq!(third["id"], second["id"]);
}

#[tokio::test]
async fn in_a_batch_a_dedup_key_counts_for_each_event() {
    let ring = Ringback::start().await;
    let first = ring.post("/v1/events", json!({"type": "a", "data": 1, "dedup_key": "d"})).await.expect(202);
    let batch = json!({"events": [
        {"type": "b", "data": 1, "dedup_key": "d"}, {"type": "b", "data": 2}, {"type": "b", "data": 3, "dedup_key": "e"},
        {"type": "b", "data": 4, "dedup_key": "e"}
    ]});

    let answer = ring.post("/v1/events/batch", batch).await.expect(202).json();

    let data = list(&answer);
    assert_eq!(data[0], first.json());
    assert_eq!(data[2], data[3]);
    assert_eq!(data.iter().map(|event| event["data"].clone()).collect::<Vec<_>>(), [1, 2, 3, 3]);
    assert_eq!(count(&ring).await, 3);
}

#[tokio::test]
async fn twenty_requests_with_one_dedup_key_make_one_event() {
    let ring = Ringback::start().await;
    let event = json!({"type": "a", "data": 1, "dedup_key": "d"});
    let answers =
        futures_util::future::join_all((0..20).map(|_| ring.post("/v1/events", event.clone()))).await;
    let ids: std::collections::HashSet<String> =
        answers.iter().map(|answer| string(&answer.json()["id"])).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.status == 202).count(), 1);
    assert_eq!(count(&ring).await, 1);
}

#[tokio::test]
async fn a_dedup_key_in_an_open_transaction_holds_up_nobody_else() {
    let ring = Ringback::start().await;
    let mut sql = ring.sql().await;
    let mut open = sql.begin().await.expect("a transaction");
    open.execute("SELECT ringback.publish('a', '1', dedup_key => 'd')").await.expect("published");

    let keyed = |key: &str| ring.post("/v1/events", json!({"type": "a", "data": 1, "dedup_key": key}));
    let began = std::time::Instant::now();
    let (held, other, plain) = tokio::join!(keyed("d"), keyed("e"), ring.publish("a", json!(1)));
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(held.expect(409).text().contains("dedup_key"));
    other.expect(202);
    drop(plain);

    open.rollback().await.expect("rolled back");
    keyed("d").await.expect(202);
    assert_eq!(count(&ring).await, 3);
}
