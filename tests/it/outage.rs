//! What holds while the database cannot be reached, and after it.

use std::time::{Duration, Instant};

use http::Method;
use ringback::config::Database;
use ringback::secret::Secret;
use serde_json::json;

use crate::harness::client::{get_job, job_with_callback, string};
use crate::harness::process::ServeProcess;
use crate::harness::proxy::Proxy;
use crate::harness::service::database;
use crate::harness::{Answer, Receiver, Reply, Ringback, eventually};

/// A service and its line to the database, which lasts longer than the service.
async fn start() -> (Proxy, Ringback) {
    let mut proxy = None;
    let ring = Ringback::with(|config| {
        let Database::External(url) = &config.database else { panic!("the tests name a database") };
        let (line, url) = Proxy::before(url.expose());
        config.database = Database::External(Secret::new(url));
        proxy = Some(line);
    })
    .await;
    (proxy.expect("it was made"), ring)
}

#[tokio::test]
async fn without_the_database_nothing_is_accepted_and_that_is_said_soon() {
    let (proxy, ring) = start().await;
    let job = json!({ "kind": "resize" });
    let id = ring.submit(job.clone()).await;
    let batch = json!({ "jobs": [job.clone()] });

    proxy.cut();

    let calls = [
        ring.call(Method::POST, "/v1/jobs").json(&job),
        ring.call(Method::POST, "/v1/jobs").header("idempotency-key", "k").json(&job),
        ring.call(Method::POST, "/v1/jobs/batch").json(&batch),
        ring.call(Method::GET, &format!("/v1/jobs/{id}")),
        ring.call(Method::GET, "/v1/jobs"),
        ring.call(Method::POST, &format!("/v1/jobs/{id}/cancel")),
        ring.call(Method::GET, "/readyz"),
    ];
    let began = Instant::now();
    let answers =
        futures_util::future::join_all(calls.map(|call| async move { (call.send().await, began.elapsed()) }))
            .await;
    for (answer, after) in answers {
        let answer = answer.expect(503);
        assert_ne!(answer.header("retry-after"), "", "{}", answer.text());
        assert!(after < Duration::from_secs(6), "{after:?}: {}", answer.text());
    }
    ring.get("/livez").await.expect(200);

    proxy.mend();

    let call =
        async || ring.call(Method::POST, "/v1/jobs").header("idempotency-key", "k").json(&job).send().await;
    let answer = eventually("it goes on", call, |answer| answer.status == 202).await;
    ring.job(&string(&answer.json()["id"])).await;
    ring.get("/readyz").await.expect(200);
}

#[tokio::test]
async fn what_ends_while_the_database_is_away_is_written_when_it_is_back() {
    let (proxy, ring) = start().await;
    let (target, callback) =
        (Receiver::answering([Reply::from(200).held()]), Receiver::answering([Reply::from(200).held()]));
    let id = ring.submit(job_with_callback(&target.url("/"), &callback.url("/"))).await;
    target.nth(1).await;

    proxy.cut();
    target.release();
    let job = async || ring.get(&format!("/v1/jobs/{id}")).await.status;
    eventually("it is away", job, |status| *status == 503).await;
    proxy.mend();

    callback.nth(1).await;
    proxy.cut();
    callback.release();
    eventually("it is away", job, |status| *status == 503).await;
    proxy.mend();

    let back = async || ring.get("/readyz").await.status;
    eventually("it is back", back, |status| *status == 200).await;
    ring.wait_for_delivery(&id, "succeeded").await;
    assert_eq!(ring.job(&id).await["attempt"], 1);
    assert_eq!((target.received().len(), callback.received().len()), (1, 1), "nothing was done twice");
}

#[tokio::test]
async fn an_embedded_database_that_died_is_started_again() {
    let receiver = Receiver::ok();
    let mut ring = ServeProcess::bare();
    ring.start().await;
    let before = ring.submit(get_job(&receiver.url("/"))).await;
    ring.wait_for_end(&before).await;

    ring.kill_embedded();

    let job = get_job(&receiver.url("/"));
    let submit = async || ring.call(Method::POST, "/v1/jobs").json(&job).send().await;
    let accepted = eventually("it is there again", submit, |answer| answer.status == 202).await;
    // It may have been accepted in the server's last moment; a reader then hears of the outage.
    let path = format!("/v1/jobs/{}?wait_s=5", string(&accepted.json()["id"]));
    let read = async || ring.call(Method::GET, &path).send().await;
    let ended = |answer: &Answer| answer.status == 200 && answer.json()["status"] == "succeeded";
    eventually("the job has ended", read, ended).await;
    assert_eq!(ring.job(&before).await["status"], "succeeded", "what was committed is there");
    ring.terminate();
    assert_eq!(ring.wait().code, Some(0));
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_database_that_is_away() {
    let database = database().await;
    let (proxy, url) = Proxy::before(&database.url());
    let target = Receiver::answering([Reply::Hang]);
    let mut ring = ServeProcess::on(&url).with("RINGBACK_SHUTDOWN_GRACE", "500ms");
    ring.start().await;
    let id = ring.submit(get_job(&target.url("/"))).await;
    target.nth(1).await;

    proxy.cut();
    ring.terminate();
    let began = Instant::now();
    assert_eq!(ring.wait().code, Some(0));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());

    // What could not be handed back is found by the next start.
    proxy.mend();
    ring.start().await;
    let attempts = async || ring.attempts(&id).await;
    eventually("it is tried again", attempts, |attempts| attempts.len() >= 2).await;
    ring.kill();
}
