//! Two who want the same at the same moment: a job ends while someone asks to stop it, or for its key. Each case is repeated
//! until the moments are likely to have met.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::harness::client::{get_job, list, string};
use crate::harness::{Receiver, Ringback, eventually};

#[tokio::test]
async fn a_job_that_ends_while_it_is_cancelled_ends_once_and_tells_of_it() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let jobs = json!({ "jobs": vec![get_job(&receiver.url("/")); 300] });
    let accepted = list(&ring.post("/v1/jobs/batch", jobs).await.expect(202).json());

    let cancel = async |job: &Value| {
        let id = string(&job["id"]);
        while ring.act(&format!("/v1/jobs/{id}/cancel")).await.status == 200 {}
    };
    futures_util::future::join_all(accepted.iter().map(cancel)).await;

    let ended = async || {
        let page = ring.get("/v1/events?types=job.*&limit=250").await.expect(200).json();
        let rest = format!("/v1/events?types=job.*&limit=250&after={}", string(&page["next_cursor"]));
        let rest = ring.get(&rest).await.expect(200).json();
        let events = [list(&page), list(&rest)].concat();
        events.iter().map(|event| string(&event["data"]["id"])).collect::<Vec<_>>()
    };
    let told = eventually("an event for each job", ended, |told| told.len() >= 300).await;
    assert_eq!(told.iter().collect::<HashSet<_>>().len(), 300, "each told once");
    let running = ring.get("/v1/jobs?status=running").await.expect(200).json();
    assert_eq!(list(&running), Vec::<Value>::new(), "nothing is left under a lease");
}

#[tokio::test]
async fn a_unique_key_is_free_after_the_end_however_many_ask_for_it_meanwhile() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let mut job = get_job(&receiver.url("/"));
    job["unique_key"] = json!("asked for again and again");
    for _ in 0..40 {
        let ask = || ring.post("/v1/jobs", job.clone());
        let answers = futures_util::future::join_all((0..12).map(|_| ask())).await;
        let ids: HashSet<String> = answers.iter().map(|answer| string(&answer.json()["id"])).collect();
        for id in ids {
            ring.wait_for_end(&id).await;
        }
        let next = ring.post("/v1/jobs", job.clone()).await.expect(202).json();
        ring.wait_for_end(&string(&next["id"])).await;
    }
}
