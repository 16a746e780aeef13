//! What is learned of a receiver that fails, from outside: its breaker in the stats, and the events that tell of it.

use serde_json::{Value, json};

use crate::harness::client::{list, string};
use crate::harness::{Receiver, Ringback, eventually};

async fn endpoint(ring: &Ringback, settings: Value) -> String {
    string(&ring.post("/v1/endpoints", settings).await.expect(201).json()["id"])
}

async fn publish(ring: &Ringback, event_type: &str) {
    ring.post("/v1/events", json!({ "type": event_type, "data": 1 })).await.expect(202);
}

/// The events of these types, oldest first, when there are so many at least.
async fn events(ring: &Ringback, types: &str, count: usize) -> Vec<Value> {
    let path = format!("/v1/events?types={types}");
    let look = async || list(&ring.get(&path).await.expect(200).json()).clone();
    eventually(types, look, |found: &Vec<Value>| found.len() >= count).await
}

#[tokio::test]
async fn the_breaker_opens_after_ten_failures_and_the_stats_tell_of_it() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([500]);
    let retry = json!({ "initial_s": 0.01, "max_s": 0.01 });
    let id =
        endpoint(&ring, json!({ "url": receiver.url("/"), "event_types": ["a.*"], "retry": retry })).await;
    publish(&ring, "a.b").await;

    let stats = async || ring.get(&format!("/v1/endpoints/{id}/stats")).await.expect(200).json();
    let is_open = |stats: &Value| stats["breaker"]["status"] != "closed" && !stats["failing_since"].is_null();
    let open = eventually("the breaker is open", stats, is_open).await;
    assert!(!open["breaker"]["open_until"].is_null());
    assert!(open["failed"].as_i64() >= Some(10) && open["success_rate"] == json!(0.0), "{open}");
}

#[tokio::test]
async fn a_receiver_that_is_well_again_is_told_of_once() {
    let ring = Ringback::start().await;
    let (stumbling, failing) = (Receiver::answering([500, 200]), Receiver::answering([500, 500, 500, 200]));
    let watcher = Receiver::ok();
    let retry = json!({ "initial_s": 0.01, "max_s": 0.05 });
    for receiver in [&stumbling, &failing] {
        endpoint(&ring, json!({ "url": receiver.url("/"), "event_types": ["a.*"], "retry": retry })).await;
    }
    let watching = json!({ "url": watcher.url("/"), "event_types": ["endpoint.recovered"] });
    endpoint(&ring, watching).await;
    publish(&ring, "a.b").await;

    let told = watcher.nth(1).await.json();
    let found = events(&ring, "endpoint.*", 1).await;
    assert_eq!(found.len(), 1, "who stumbles once makes no noise");
    assert_eq!((&told["type"], &told["data"]), (&json!("endpoint.recovered"), &found[0]["data"]));
    let id = string(&told["data"]["endpoint_id"]);
    assert_eq!(ring.get(&format!("/v1/endpoints/{id}")).await.json()["url"], json!(failing.url("/")));
}

#[tokio::test]
async fn news_of_endpoints_that_cannot_be_delivered_makes_no_more_news() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([500]);
    let everything = json!({ "url": receiver.url("/"), "retry": {"max_attempts": 1} });
    endpoint(&ring, everything).await;

    publish(&ring, "a.b").await;
    let first = receiver.nth(2).await.json();
    assert_eq!(first["type"], "delivery.exhausted");
    publish(&ring, "a.c").await;
    receiver.nth(4).await;

    assert_eq!(
        events(&ring, "delivery.exhausted", 2).await.len(),
        2,
        "one for each event that was published"
    );
}
