//! Whose turn it is: priorities, queues and receivers that must not wait for each other.

use serde_json::{Value, json};

use crate::harness::client::{list, string};
use crate::harness::{Receiver, Reply, Ringback};

fn job(url: &str, queue: &str, priority: i64) -> Value {
    json!({ "kind": "http", "input": {"url": url}, "queue": queue, "priority": priority })
}

/// Accepts the jobs while the only place to run is taken; the paths in the order in which they are then called.
async fn order_of(jobs: impl FnOnce(&Receiver) -> Vec<Value>) -> Vec<String> {
    let ring = Ringback::with(|config| config.executor_concurrency = 1).await;
    let receiver = Receiver::answering([Reply::from(200).held()]);
    ring.submit(job(&receiver.url("/first"), "default", 0)).await;
    receiver.nth(1).await;
    let accepted = ring.post("/v1/jobs/batch", json!({ "jobs": jobs(&receiver) })).await.expect(202).json();

    receiver.release();

    for job in list(&accepted) {
        ring.wait_for_end(&string(&job["id"])).await;
    }
    receiver.received().into_iter().skip(1).map(|request| request.path).collect()
}

#[tokio::test]
async fn higher_priorities_go_first_and_equals_in_the_order_of_acceptance() {
    let order = order_of(|receiver| {
        [("/low", -5), ("/a", 0), ("/b", 0), ("/high", 7)]
            .map(|(path, priority)| job(&receiver.url(path), "default", priority))
            .to_vec()
    });
    assert_eq!(order.await, ["/high", "/a", "/b", "/low"]);
}

#[tokio::test]
async fn a_long_queue_does_not_keep_another_one_waiting() {
    let order = order_of(|receiver| {
        let mut jobs = vec![job(&receiver.url("/long"), "a-long-one", 0); 25];
        jobs.push(job(&receiver.url("/short"), "b-short-one", 0));
        jobs
    })
    .await;
    assert_ne!(order.last().map(String::as_str), Some("/short"), "{order:?}");
}

#[tokio::test]
async fn a_receiver_with_a_long_backlog_does_not_hold_up_retries_to_others() {
    let ring = Ringback::start().await;
    let (target, hanging) = (Receiver::ok(), Receiver::answering([Reply::Hang]));
    let other = Receiver::answering([500, 200]);
    let told_at = |receiver: &Receiver| {
        let retry = json!({ "initial_s": 0.2, "factor": 1 });
        json!({
            "kind": "http", "input": {"url": target.url("/")},
            "callback": {"url": receiver.url("/"), "timeout_s": 60, "retry": retry}
        })
    };
    // More than the dispatcher holds in memory for one receiver.
    let backlog = json!({ "jobs": vec![told_at(&hanging); 700] });
    for _ in 0..2 {
        let page = ring.post("/v1/jobs/batch", backlog.clone()).await.expect(202).json();
        ring.wait_for_end(&string(&list(&page)[699]["id"])).await;
    }

    let id = ring.submit(told_at(&other)).await;

    let delivery = ring.wait_for_delivery(&id, "succeeded").await;
    assert_eq!(delivery["attempt"], 2);
}

#[tokio::test]
async fn what_a_loud_tenant_brings_beside_a_quiet_one_is_stored_whole_and_answered_in_its_order() {
    let ring = Ringback::start().await;
    let loud = ring.other_tenant("events:write,events:read,jobs:read,jobs:write").await;
    // 500 are loud beside one that was published a moment ago.
    let event = |n: usize| json!({ "type": "loud.one", "data": n, "dedup_key": format!("key-{}", n % 400) });
    let events: Vec<Value> = (0..500).map(event).collect();
    ring.post("/v1/events", json!({ "type": "quiet.one", "data": 0 })).await.expect(202);

    let answer = loud.post("/v1/events/batch", json!({ "events": events })).await.expect(202).json();

    let told: Vec<u64> =
        list(&answer).iter().map(|event| event["data"].as_u64().expect("a number")).collect();
    assert_eq!(told, (0..500).map(|n| n % 400).collect::<Vec<u64>>(), "a key's first event stands for it");

    let jobs = vec![json!({ "kind": "nobody.runs.it", "input": null }); 500];
    ring.post("/v1/events", json!({ "type": "quiet.one", "data": 0 })).await.expect(202);
    let answer = loud.post("/v1/jobs/batch", json!({ "jobs": jobs })).await.expect(202).json();
    for job in [&list(&answer)[0], &list(&answer)[499]] {
        loud.get(&format!("/v1/jobs/{}", string(&job["id"]))).await.expect(200);
    }
}
