//! Groups: a job runs after those that it names in `after`, and is handed their results.

use serde_json::{Value, json};

use crate::harness::client::{get_job, list, quick, string};
use crate::harness::process::ServeProcess;
use crate::harness::service::database;
use crate::harness::{Receiver, Reply, Ringback, eventually};

/// An `http` job that gets `url` once these jobs have succeeded.
fn after(url: &str, jobs: &[&str]) -> Value {
    json!({ "kind": "http", "input": {"url": url}, "after": jobs })
}

/// The same, whatever becomes of them.
fn after_all(url: &str, jobs: &[&str]) -> Value {
    json!({ "kind": "http", "input": {"url": url}, "after": jobs, "after_failure": "run" })
}

fn paths(receiver: &Receiver) -> Vec<String> {
    receiver.received().into_iter().map(|request| request.path).collect()
}

#[tokio::test]
async fn a_chain_runs_link_after_link() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(200).held()]);
    let mut last = ring.submit(get_job(&receiver.url("/0"))).await;
    for n in 1..6 {
        last = ring.submit(after(&receiver.url(&format!("/{n}")), &[&last])).await;
    }
    receiver.nth(1).await;
    assert_eq!(ring.job(&last).await["status"], "queued");
    receiver.release();

    assert_eq!(ring.wait_for_end(&last).await["status"], "succeeded");
    assert_eq!(paths(&receiver), ["/0", "/1", "/2", "/3", "/4", "/5"]);
}

#[tokio::test]
async fn a_join_starts_when_all_parts_have_succeeded_and_has_their_results_in_order() {
    let ring = Ringback::start().await;
    let part = |n: usize| {
        Reply::from(200).with_header("content-type", "application/json").with_body(format!("{{\"n\":{n}}}"))
    };
    let receivers: Vec<Receiver> = (0..5).map(|n| Receiver::answering([part(n)])).collect();
    let slow = Receiver::answering([part(5).held()]);
    let mut parts = Vec::new();
    for receiver in receivers.iter().chain([&slow]) {
        parts.push(ring.submit(get_job(&receiver.url("/"))).await);
    }
    let join = Receiver::ok();
    let ids: Vec<&str> = parts.iter().map(String::as_str).collect();

    let accepted = ring.post("/v1/jobs", after(&join.url("/"), &ids)).await.expect(202).json();

    let id = string(&accepted["id"]);
    assert_eq!((&accepted["after"], &accepted["after_failure"]), (&json!(parts), &json!("cancel")));
    for part in &parts[..5] {
        ring.wait_for_end(part).await;
    }
    let waiting = ring.job(&id).await;
    assert_eq!((&waiting["status"], &waiting["after_results"]), (&json!("queued"), &json!(null)));
    slow.release();
    let job = ring.wait_for_end(&id).await;
    assert_eq!(job["status"], "succeeded");
    let results = job["after_results"].as_array().expect("results");
    assert_eq!(results.len(), 6);
    for (n, result) in results.iter().enumerate() {
        assert_eq!(result["job_id"], json!(parts[n]));
        assert_eq!((&result["status"], &result["error"]), (&json!("succeeded"), &json!(null)));
        assert_eq!(result["result"]["body"], format!("{{\"n\":{n}}}"), "{result}");
    }
    assert!(list(&ring.get("/v1/jobs").await.expect(200).json())[0].get("after_results").is_none());
}

#[tokio::test]
async fn a_failure_cancels_all_that_comes_after_it_at_once_and_tells_of_each() {
    let ring = Ringback::start().await;
    let (failing, receiver, callback) = (
        Receiver::answering([Reply::from(400)]),
        Receiver::answering([Reply::from(200).held()]),
        Receiver::ok(),
    );
    let slow = ring.submit(get_job(&receiver.url("/slow"))).await;
    let mut first = get_job(&failing.url("/"));
    first["delay_s"] = json!(0.2);
    let first = ring.submit(first).await;
    let mut second = after(&receiver.url("/second"), &[&slow, &first]);
    second["callback_url"] = json!(callback.url("/"));
    second["unique_key"] = json!("u");
    let second = ring.submit(second).await;
    let third = ring.submit(after(&receiver.url("/third"), &[&second])).await;
    let mut fourth = after(&receiver.url("/fourth"), &[&third]);
    fourth["ordering_key"] = json!("k");
    let fourth = ring.submit(fourth).await;
    let line = ring
        .submit(json!({ "kind": "http", "input": {"url": failing.url("/line")}, "ordering_key": "k" }))
        .await;

    for (id, by) in [(&second, &first), (&third, &second), (&fourth, &third)] {
        let job = ring.wait_for_end(id).await;
        assert_eq!(
            (&job["status"], &job["error"]["code"]),
            (&json!("cancelled"), &json!("dependency_failed"))
        );
        assert!(string(&job["error"]["message"]).contains(by), "{job}");
        assert_eq!(job["attempt"], 0);
    }
    // The one that would have been before it in its line is gone.
    ring.wait_for_end(&line).await;
    let told = callback.nth(1).await.json();
    assert_eq!((&told["type"], &told["data"]["id"]), (&json!("job.cancelled"), &json!(second)));
    ring.submit(json!({ "kind": "resize", "unique_key": "u" })).await;
    assert_eq!(ring.job(&slow).await["status"], "running", "nobody waited for it");
    receiver.release();
    ring.wait_for_end(&slow).await;
    let events = ring.get("/v1/events?types=job.cancelled").await.expect(200).json();
    assert_eq!(list(&events).len(), 3);
    assert_eq!(paths(&receiver), ["/slow"]);
}

#[tokio::test]
async fn a_job_that_is_to_run_in_any_case_runs_after_failures_and_cancellations() {
    let ring = Ringback::start().await;
    let (failing, held, receiver) =
        (Receiver::answering([400]), Receiver::answering([Reply::from(200).held()]), Receiver::ok());
    let failed = ring.submit(get_job(&failing.url("/"))).await;
    let cancelled = ring.submit(json!({ "kind": "resize" })).await;
    let slow = ring.submit(get_job(&held.url("/"))).await;
    let id = ring.submit(after_all(&receiver.url("/"), &[&failed, &cancelled, &slow])).await;
    ring.act(&format!("/v1/jobs/{cancelled}/cancel")).await.expect(200);
    ring.wait_for_end(&failed).await;
    assert_eq!(ring.job(&id).await["status"], "queued");
    held.release();

    let job = ring.wait_for_end(&id).await;

    assert_eq!(job["status"], "succeeded");
    let status = |n: usize| string(&job["after_results"][n]["status"]);
    assert_eq!([status(0), status(1), status(2)], ["failed", "cancelled", "succeeded"]);
    assert_eq!(job["after_results"][0]["error"]["code"], "http_status");
    assert_eq!(job["after_results"][0]["result"], json!(null));
}

#[tokio::test]
async fn jobs_that_have_ended_count_at_once_and_one_that_is_named_twice_counts_once() {
    let ring = Ringback::start().await;
    let (failing, receiver) = (Receiver::answering([400]), Receiver::ok());
    let done = ring.submit(get_job(&receiver.url("/done"))).await;
    let failed = ring.submit(get_job(&failing.url("/"))).await;
    for id in [&done, &failed] {
        ring.wait_for_end(id).await;
    }

    let runs = ring.submit(after(&receiver.url("/runs"), &[&done, &done])).await;
    let dies = ring.submit(after(&receiver.url("/dies"), &[&done, &failed])).await;
    let free =
        ring.submit(json!({ "kind": "http", "input": {"url": receiver.url("/free")}, "after": [] })).await;

    let job = ring.wait_for_end(&runs).await;
    assert_eq!((&job["status"], &job["after"]), (&json!("succeeded"), &json!([done])));
    assert_eq!(ring.wait_for_end(&dies).await["error"]["code"], "dependency_failed");
    assert!(ring.wait_for_end(&free).await.get("after").is_none());
}

#[tokio::test]
async fn jobs_that_are_not_there_are_named() {
    let ring = Ringback::start().await;
    let there = ring.submit(json!({ "kind": "resize" })).await;
    let nobody = "job_01h2xcejqtf2nbrexx3vqjhp41";
    let job = json!({ "kind": "resize", "after": [there, there, nobody, there] });

    let answer = ring.post("/v1/jobs", job.clone()).await.expect(422);
    assert_eq!(answer.pointers(), ["/after/2"]);
    assert!(answer.text().contains(nobody), "{}", answer.text());
    let batch = json!({ "jobs": [{"kind": "resize"}, job] });
    assert_eq!(ring.post("/v1/jobs/batch", batch).await.expect(422).pointers(), ["/jobs/1/after/2"]);
    for (after, pointer) in [
        (json!(["evt_01h2xcejqtf2nbrexx3vqjhp41"]), "/after/0"),
        (json!([there, 7]), "/after/1"),
        (json!(there), "/after"),
        (json!(vec![there.clone(); 1001]), "/after"),
    ] {
        let answer = ring.post("/v1/jobs", json!({ "kind": "resize", "after": after })).await.expect(422);
        assert_eq!(answer.pointers(), [pointer]);
    }
    let answer =
        ring.post("/v1/jobs", json!({ "kind": "resize", "after_failure": "ignore" })).await.expect(422);
    assert_eq!(answer.pointers(), ["/after_failure"]);
}

#[tokio::test]
async fn a_thousand_parts_are_joined() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let parts = json!({ "jobs": vec![get_job(&receiver.url("/part")); 1000] });
    let parts = list(&ring.post("/v1/jobs/batch", parts).await.expect(202).json());
    let ids: Vec<String> = parts.iter().map(|part| string(&part["id"])).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();

    let join = ring.submit(after(&receiver.url("/join"), &ids)).await;

    let job = ring.wait_for_end(&join).await;
    assert_eq!(job["status"], "succeeded");
    assert_eq!(job["after_results"].as_array().expect("results").len(), 1000);
    let order = paths(&receiver);
    assert_eq!((order.len(), order.last().map(String::as_str)), (1001, Some("/join")));
}

#[tokio::test]
async fn results_beyond_a_mebibyte_are_left_out() {
    let ring = Ringback::start().await;
    let large = Receiver::answering([Reply::from(200).with_body("x".repeat(60_000))]);
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(ring.submit(get_job(&large.url("/"))).await);
    }
    let small = Receiver::ok();
    ids.push(ring.submit(get_job(&small.url("/"))).await);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let join = ring.submit(after(&small.url("/"), &ids)).await;

    let answer = ring.get(&format!("/v1/jobs/{join}?wait_s=40")).await.expect(200);

    let job = answer.json();
    let results = job["after_results"].as_array().expect("results");
    let kept = results.iter().take_while(|one| one.get("omitted").is_none()).count();
    assert!((15..20).contains(&kept), "{kept}");
    for one in &results[kept..] {
        assert_eq!(
            (&one["status"], &one["result"], &one["omitted"]),
            (&json!("succeeded"), &json!(null), &json!(true))
        );
    }
    assert!(answer.body.len() < 1_200_000, "{}", answer.body.len());
}

#[tokio::test]
async fn a_job_that_is_retried_does_not_wait_again() {
    let ring = Ringback::start().await;
    let (failing, receiver) = (Receiver::answering([400, 200]), Receiver::ok());
    let first = ring.submit(get_job(&failing.url("/"))).await;
    let mut keyed = after(&receiver.url("/keyed"), &[&first]);
    keyed["ordering_key"] = json!("k");
    let keyed = ring.submit(keyed).await;
    let plain = ring.submit(after(&receiver.url("/plain"), &[&first])).await;
    for id in [&keyed, &plain] {
        assert_eq!(ring.wait_for_end(id).await["error"]["code"], "dependency_failed");
    }

    for id in [&keyed, &plain] {
        ring.act(&format!("/v1/jobs/{id}/retry")).await.expect(200);
        let job = ring.wait_for_end(id).await;
        assert_eq!(
            (&job["status"], &job["after_results"][0]["status"]),
            (&json!("succeeded"), &json!("failed"))
        );
    }
    ring.act(&format!("/v1/jobs/{first}/retry")).await.expect(200);
    ring.wait_for_end(&first).await;
    assert_eq!(ring.job(&plain).await["after_results"][0]["status"], "succeeded");
}

#[tokio::test]
async fn a_waiting_job_can_be_cancelled_with_all_that_waits_for_it() {
    let ring = Ringback::start().await;
    let receiver = Receiver::answering([Reply::from(200).held()]);
    let first = ring.submit(get_job(&receiver.url("/first"))).await;
    let second = ring.submit(after(&receiver.url("/second"), &[&first])).await;
    let third = ring.submit(after(&receiver.url("/third"), &[&first, &second])).await;
    let always = ring.submit(after_all(&receiver.url("/always"), &[&second])).await;
    receiver.nth(1).await;

    let job = ring.act(&format!("/v1/jobs/{second}/cancel")).await.expect(200).json();

    assert_eq!(job["status"], "cancelled");
    assert_eq!(ring.wait_for_end(&third).await["error"]["code"], "dependency_failed");
    // It is put back by hand while the one that it once waited for still runs.
    ring.act(&format!("/v1/jobs/{third}/retry")).await.expect(200);
    receiver.nth(3).await;
    receiver.release();
    for id in [&first, &third, &always] {
        assert_eq!(ring.wait_for_end(id).await["status"], "succeeded");
    }
}

#[tokio::test]
async fn a_job_that_runs_after_others_waits_for_its_time_as_well() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let first = ring.submit(get_job(&receiver.url("/"))).await;
    let mut late = after(&receiver.url("/"), &[&first]);
    late["delay_s"] = json!(600);
    let late = ring.submit(late).await;
    ring.wait_for_end(&first).await;
    let explain = format!("/v1/jobs/{late}/explain");

    let explained = async || ring.get(&explain).await.expect(200).json();

    let placed = eventually("it waits for its time", explained, |one| one["code"] == "delayed").await;
    assert_eq!(placed["status"], "queued");
}

#[tokio::test]
async fn an_end_and_an_acceptance_that_did_not_see_each_other_are_found() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let first = ring.submit(json!({ "kind": "resize" })).await;
    let second = ring.submit(after_all(&receiver.url("/"), &[&first])).await;
    ring.put(
        "WITH taken AS (DELETE FROM ringback.job_ready RETURNING *)
        INSERT INTO ringback.job_ends (tenant_id, job_id, status, attempt, error, finished_at)
        SELECT tenant_id, job_id, 2, 0, '{\"code\":\"x\",\"message\":\"y\"}', now() FROM taken"
            .to_owned(),
    )
    .await;

    assert_eq!(ring.wait_for_end(&second).await["status"], "succeeded");
}

#[tokio::test]
async fn ends_and_acceptances_that_meet_leave_nobody_waiting() {
    let ring = Ringback::start().await;
    let receiver = Receiver::ok();
    let chain = async |_: usize| {
        for _ in 0..20 {
            let first = ring.submit(get_job(&receiver.url("/"))).await;
            let second = ring.submit(after(&receiver.url("/"), &[&first])).await;
            assert_eq!(ring.wait_for_end(&second).await["status"], "succeeded");
        }
    };
    futures_util::future::join_all((0..8).map(chain)).await;
}

#[tokio::test]
async fn a_kill_at_any_moment_breaks_no_group() {
    let database = database().await;
    let receiver = Receiver::answering((0..400).map(|n| if n % 9 == 5 { 500 } else { 200 }));
    let mut ring = ServeProcess::on(&database.url());
    ring.start().await;
    let mut joins = Vec::new();
    for group in 0..6 {
        // Any of them may be the one that fails, and is not to wait for long.
        let soon = |mut job: Value| {
            job["backoff"] = quick(5);
            job["backoff"].as_object_mut().expect("an object").remove("max_attempts");
            job
        };
        let part = soon(get_job(&receiver.url(&format!("/{group}/part"))));
        let parts =
            list(&ring.post("/v1/jobs/batch", json!({ "jobs": vec![part; 20] })).await.expect(202).json());
        let ids: Vec<String> = parts.iter().map(|part| string(&part["id"])).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let join = ring.submit(soon(after(&receiver.url(&format!("/{group}/join")), &ids))).await;
        joins.push(ring.submit(soon(after(&receiver.url(&format!("/{group}/last")), &[&join]))).await);
    }

    for calls in [15, 70, 120] {
        receiver.nth(calls).await;
        ring.kill();
        ring.start().await;
    }

    for (group, id) in joins.iter().enumerate() {
        assert_eq!(ring.wait_for_end(id).await["status"], "succeeded");
        let mut order: Vec<String> = paths(&receiver);
        order.retain(|path| path.starts_with(&format!("/{group}/")));
        order.dedup();
        assert_eq!(order, ["part", "join", "last"].map(|name| format!("/{group}/{name}")));
    }
    ring.terminate();
    assert_eq!(ring.wait().code, Some(0));
}
