//! Workers outside: jobs are lent under leases, extended, reported on, and lost by those who are late.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::client::{Client, string};
use crate::harness::{Answer, Receiver, Ringback, eventually};

/// A poll that waits for its jobs.
fn wish(more: Value) -> Value {
    let mut wish = json!({ "worker": "w1", "kinds": ["resize"], "max": 10, "lease_s": 60, "wait_s": 20 });
    for (name, value) in more.as_object().expect("an object") {
        wish[name] = value.clone();
    }
    wish
}

async fn lend(ring: &Client, more: Value) -> Vec<Value> {
    let answer = ring.post("/v1/leases", wish(more)).await.expect(200).json();
    answer["leases"].as_array().expect("leases").clone()
}

async fn lend_one(ring: &Client, more: Value) -> Value {
    let mut leases = lend(ring, more).await;
    assert_eq!(leases.len(), 1, "{leases:?}");
    leases.remove(0)
}

async fn report(ring: &Client, reports: Value) -> Vec<Value> {
    let answer = ring.post("/v1/leases/report", json!({ "reports": reports })).await.expect(200).json();
    answer["reports"].as_array().expect("reports").clone()
}

fn statuses(answers: &[Value]) -> Vec<i64> {
    answers.iter().map(|answer| answer["status"].as_i64().expect("a status")).collect()
}

async fn extend(ring: &Client, leases: Value, lease_s: f64) -> Vec<Value> {
    let body = json!({ "leases": leases, "lease_s": lease_s });
    let answer = ring.post("/v1/leases/extend", body).await.expect(200).json();
    answer["leases"].as_array().expect("leases").clone()
}

fn job(more: Value) -> Value {
    let mut job = json!({ "kind": "resize", "input": {"width": 640} });
    for (name, value) in more.as_object().expect("an object") {
        job[name] = value.clone();
    }
    job
}

#[tokio::test]
async fn a_job_is_lent_with_all_that_it_holds_and_ends_by_its_report() {
    let ring = Ringback::start().await;
    let callback = Receiver::ok();
    let id = ring.submit(job(json!({ "callback_url": callback.url("/told"), "metadata": {"a": "b"} }))).await;

    let lent = lend_one(&ring, json!({})).await;
    assert_eq!((&lent["job"]["id"], &lent["job"]["status"]), (&json!(id), &json!("running")));
    assert_eq!(lent["job"]["input"], json!({ "width": 640 }));
    assert_eq!((&lent["job"]["attempt"], &lent["job"]["metadata"]["a"]), (&json!(1), &json!("b")));
    assert_eq!(ring.attempts(&id).await[0]["worker"], "w1");
    let answers =
        report(&ring, json!([{ "lease": lent["lease"], "outcome": "succeeded", "result": {"url": "x"} }]))
            .await;

    assert_eq!(answers, [json!({ "lease": lent["lease"], "status": 200 })]);
    let ended = ring.wait_for_end(&id).await;
    assert_eq!((&ended["status"], &ended["result"]), (&json!("succeeded"), &json!({ "url": "x" })));
    assert_eq!(ring.attempts(&id).await[0]["worker"], "w1");
    assert_eq!(callback.nth(1).await.json()["data"]["result"], json!({ "url": "x" }));
}

#[tokio::test]
async fn a_poll_waits_for_a_job_and_gets_nothing_when_none_comes() {
    let ring = Ringback::start().await;
    assert_eq!(lend(&ring, json!({ "wait_s": 0 })).await, Vec::<Value>::new());
    assert_eq!(lend(&ring, json!({ "wait_s": 0.1 })).await, Vec::<Value>::new());

    let (lent, id) = tokio::join!(lend_one(&ring, json!({ "wait_s": 60 })), async {
        // Not before somebody waits: its own poll is answered with nothing.
        lend(&ring, json!({ "kinds": ["other"], "wait_s": 0.05 })).await;
        ring.submit(job(json!({}))).await
    });

    assert_eq!(lent["job"]["id"], json!(id));
    report(&ring, json!([{ "lease": lent["lease"], "outcome": "succeeded" }])).await;
    assert_eq!(ring.wait_for_end(&id).await["result"], Value::Null);
}

#[tokio::test]
async fn each_job_goes_to_one_of_those_who_wait_and_they_share_what_there_is() {
    let ring = Ringback::start().await;
    let poll = |worker: &str| {
        let wish = wish(json!({ "worker": worker, "max": 100, "wait_s": 60 }));
        let ring = Client::clone(&ring);
        async move {
            ring.post("/v1/leases", wish).await.expect(200).json()["leases"]
                .as_array()
                .expect("a list")
                .clone()
        }
    };
    let submit = async {
        lend(&ring, json!({ "kinds": ["other"], "wait_s": 0.1 })).await;
        ring.post("/v1/jobs/batch", json!({ "jobs": vec![job(json!({})); 9] })).await.expect(202);
    };
    let (a, b, c, ()) = tokio::join!(poll("a"), poll("b"), poll("c"), submit);

    assert_eq!([a.len(), b.len(), c.len()], [3, 3, 3]);
    let jobs: HashSet<String> = [a, b, c].concat().iter().map(|lent| string(&lent["job"]["id"])).collect();
    assert_eq!(jobs.len(), 9);
}

#[tokio::test]
async fn queues_and_kinds_narrow_what_is_lent() {
    let ring = Ringback::start().await;
    ring.submit(job(json!({ "queue": "slow" }))).await;
    ring.submit(job(json!({ "kind": "crop" }))).await;
    assert_eq!(lend(&ring, json!({ "queues": ["default"], "wait_s": 0 })).await, Vec::<Value>::new());
    let lent = lend_one(&ring, json!({ "kinds": ["crop"] })).await;
    assert_eq!(lent["job"]["kind"], "crop");
    let lent = lend_one(&ring, json!({ "kinds": ["crop", "resize"], "queues": ["slow", "fast"] })).await;
    assert_eq!(lent["job"]["queue"], "slow");
}

#[tokio::test]
async fn a_wish_that_makes_no_sense_is_refused_field_by_field() {
    let ring = Ringback::start().await;
    for (more, pointer) in [
        (json!({ "kinds": ["http"] }), "/kinds/0"),
        (json!({ "kinds": [] }), "/kinds"),
        (json!({ "kinds": null }), "/kinds"),
        (json!({ "kinds": ["a b"] }), "/kinds/0"),
        (json!({ "max": 501 }), "/max"),
        (json!({ "lease_s": 3601 }), "/lease_s"),
        (json!({ "wait_s": 61 }), "/wait_s"),
        (json!({ "worker": "" }), "/worker"),
        (json!({ "patience": 7 }), "/patience"),
    ] {
        let answer = ring.post("/v1/leases", wish(more)).await.expect(422);
        assert_eq!(answer.pointers(), [pointer]);
    }
    assert_eq!(ring.post("/v1/leases/extend", json!({})).await.expect(422).pointers(), ["/leases"]);
    assert_eq!(
        ring.post("/v1/leases/report", json!({ "reports": [] })).await.expect(422).pointers(),
        ["/reports"]
    );
}

#[tokio::test]
async fn a_key_needs_the_scope_of_each_kind_that_it_takes() {
    let ring = Ringback::start().await;
    ring.submit(job(json!({}))).await;
    let none = ring.key_of("", "jobs:read").await;
    none.post("/v1/leases", wish(json!({}))).await.expect(403);
    none.post("/v1/leases/extend", json!({ "leases": ["x"] })).await.expect(403);
    none.post("/v1/leases/report", json!({ "reports": [1] })).await.expect(403);

    let crop = ring.key_of("", "workers:crop").await;
    let answer =
        crop.post("/v1/leases", wish(json!({ "kinds": ["crop", "resize"] }))).await.expect(403).json();
    assert!(string(&answer["detail"]).contains("workers:resize"), "{answer}");

    let resize = ring.key_of("", "workers:resize").await;
    let lent = lend_one(&resize, json!({})).await;
    let done = json!([{ "lease": lent["lease"], "outcome": "succeeded" }]);
    assert_eq!(
        extend(&crop, json!([lent["lease"]]), 60.0).await[0]["status"],
        409,
        "of a kind that it may not touch"
    );
    assert_eq!(statuses(&report(&crop, done.clone()).await), [409]);
    assert_eq!(statuses(&report(&ring.key_of("", "workers:*").await, done).await), [200]);
}

#[tokio::test]
async fn another_tenants_worker_sees_nothing() {
    let ring = Ringback::start().await;
    let other = ring.other_tenant("workers:*").await;
    ring.submit(job(json!({}))).await;
    assert_eq!(lend(&other, json!({ "wait_s": 0 })).await, Vec::<Value>::new());
    let lent = lend_one(&ring, json!({})).await;
    assert_eq!(extend(&other, json!([lent["lease"]]), 60.0).await[0]["status"], 409);
    assert_eq!(
        statuses(&report(&other, json!([{ "lease": lent["lease"], "outcome": "released" }])).await),
        [409]
    );
    assert_eq!(
        statuses(&report(&ring, json!([{ "lease": lent["lease"], "outcome": "succeeded" }])).await),
        [200]
    );
}

#[tokio::test]
async fn a_report_that_is_repeated_is_answered_the_same_and_another_one_is_late() {
    let ring = Ringback::start().await;
    let again = json!({ "backoff": {"initial_s": 60} });
    for (outcome, other, more) in [
        ("succeeded", "failed", json!({})),
        ("failed", "succeeded", json!({ "max_attempts": 1 })),
        ("failed", "succeeded", again.clone()),
        ("released", "failed", json!({})),
    ] {
        ring.submit(job(more)).await;
        let lent = lend_one(&ring, json!({})).await;
        let with = |outcome: &str| json!([{ "lease": lent["lease"], "outcome": outcome }]);
        assert_eq!(statuses(&report(&ring, with(outcome)).await), [200]);
        assert_eq!(statuses(&report(&ring, with(outcome)).await), [200], "the same again");
        let late = report(&ring, with(other)).await;
        assert_eq!(
            (statuses(&late), &late[0]["problem"]["code"]),
            (vec![409], &json!("lease-lost")),
            "{outcome}"
        );
        assert_eq!(statuses(&report(&ring, with("progress")).await), [409]);
        assert_eq!(extend(&ring, json!([lent["lease"]]), 60.0).await[0]["status"], 409);
        if outcome == "released" {
            let lent = lend_one(&ring, json!({})).await;
            assert_eq!(lent["job"]["attempt"], 1, "no try was counted");
            report(&ring, json!([{ "lease": lent["lease"], "outcome": "succeeded" }])).await;
        }
    }
}

#[tokio::test]
async fn each_report_of_many_is_answered_for_itself_and_in_order() {
    let ring = Ringback::start().await;
    ring.post("/v1/jobs/batch", json!({ "jobs": vec![job(json!({})); 3] })).await.expect(202);
    let leases: Vec<Value> = lend(&ring, json!({})).await.iter().map(|lent| lent["lease"].clone()).collect();
    let long = "x".repeat(256 * 1024);

    let answers = report(
        &ring,
        json!([
            { "lease": leases[0], "outcome": "succeeded", "result": 1 },
            { "lease": leases[1], "outcome": "done" },
            7,
            { "lease": "lse_nobodys", "outcome": "succeeded" },
            { "lease": leases[1], "outcome": "succeeded", "result": long },
            { "lease": leases[2], "outcome": "progress", "progress": {"percent": 50} },
            { "lease": leases[2], "outcome": "succeeded", "result": 2 },
            { "lease": leases[2], "outcome": "succeeded", "result": 2 },
            { "lease": leases[2], "outcome": "progress" },
            { "lease": leases[1], "outcome": "failed", "error": {"message": "no", "retryable": false} },
        ]),
    )
    .await;

    assert_eq!(statuses(&answers), [200, 422, 422, 409, 422, 200, 200, 200, 409, 200]);
    assert_eq!(answers[1]["problem"]["errors"][0]["pointer"], "/reports/1/outcome");
    assert!(
        string(&answers[4]["problem"]["detail"]).contains("262144"),
        "the limit is named: {}",
        answers[4]
    );
    assert_eq!((&answers[2]["lease"], &answers[9]["lease"]), (&Value::Null, &leases[1]));
}

#[tokio::test]
async fn a_failure_says_whether_and_when_to_try_again() {
    let ring = Ringback::start().await;
    let error = json!({ "code": "bad_image", "message": "no", "class": "ValueError", "traceback": "…", "retryable": false });
    let id = ring.submit(job(json!({}))).await;
    let lent = lend_one(&ring, json!({})).await;
    report(&ring, json!([{ "lease": lent["lease"], "outcome": "failed", "error": error }])).await;
    let ended = ring.wait_for_end(&id).await;
    assert_eq!((&ended["status"], &ended["error"]["code"]), (&json!("failed"), &json!("bad_image")));
    assert_eq!((&ended["error"]["class"], &ended["error"]["traceback"]), (&json!("ValueError"), &json!("…")));

    let id = ring.submit(job(json!({}))).await;
    let lent = lend_one(&ring, json!({})).await;
    let later = json!({ "message": "busy", "retry_after_s": 3600 });
    report(&ring, json!([{ "lease": lent["lease"], "outcome": "failed", "error": later }])).await;
    let waiting = ring.wait_for_status(&id, "retrying").await;
    let (run_at, created_at) = (string(&waiting["run_at"]), string(&waiting["created_at"]));
    let at = |text: &str| chrono::DateTime::parse_from_rfc3339(text).expect("a time");
    assert!((at(&run_at) - at(&created_at)).num_seconds() >= 3600, "{waiting}");
    assert_eq!(waiting["error"]["message"], "busy");

    let id = ring.submit(job(json!({}))).await;
    let lent = lend_one(&ring, json!({})).await;
    report(&ring, json!([{ "lease": lent["lease"], "outcome": "failed", "error": {"retry_after_s": 0} }]))
        .await;
    let lent = lend_one(&ring, json!({})).await;
    assert_eq!((&lent["job"]["id"], &lent["job"]["attempt"]), (&json!(id), &json!(2)), "at once");
    report(&ring, json!([{ "lease": lent["lease"], "outcome": "succeeded" }])).await;
}

#[tokio::test]
async fn a_lease_that_ran_out_is_worth_nothing_and_its_job_is_lent_again() {
    let ring = Ringback::start().await;
    let id = ring.submit(job(json!({}))).await;
    let frozen = lend_one(&ring, json!({ "lease_s": 1, "worker": "frozen" })).await;

    // Its poll waits until the first lease has ended.
    let awake = lend_one(&ring, json!({ "worker": "awake", "wait_s": 30 })).await;
    assert_eq!((&awake["job"]["id"], &awake["job"]["attempt"]), (&json!(id), &json!(2)));
    assert_ne!(awake["lease"], frozen["lease"]);
    for outcome in ["succeeded", "failed", "released", "progress"] {
        let mut late = json!({ "lease": frozen["lease"], "outcome": outcome });
        late["progress"] = json!({ "percent": 99, "checkpoint": "old" });
        assert_eq!(statuses(&report(&ring, json!([late])).await), [409], "{outcome}");
    }
    assert_eq!(extend(&ring, json!([frozen["lease"]]), 60.0).await[0]["status"], 409);
    assert_eq!(ring.job(&id).await["progress"], Value::Null, "nothing was changed");
    assert_eq!(
        statuses(
            &report(&ring, json!([{ "lease": awake["lease"], "outcome": "succeeded", "result": "awake" }]))
                .await
        ),
        [200]
    );

    assert_eq!(ring.wait_for_end(&id).await["result"], "awake");
    assert_eq!(
        statuses(&report(&ring, json!([{ "lease": frozen["lease"], "outcome": "succeeded" }])).await),
        [409]
    );
    let attempts = ring.attempts(&id).await;
    let told: Vec<_> = attempts.iter().map(|one| (string(&one["worker"]), string(&one["outcome"]))).collect();
    let expected = [("frozen", "crashed"), ("awake", "succeeded")];
    assert_eq!(told, expected.map(|(worker, outcome)| (worker.to_owned(), outcome.to_owned())));
}

#[tokio::test]
async fn extending_keeps_a_job_and_reports_of_progress_do_not() {
    let ring = Ringback::start().await;
    let ids = [ring.submit(job(json!({}))).await, ring.submit(job(json!({}))).await];
    let lent = lend(&ring, json!({ "lease_s": 1.5 })).await;
    let extended = extend(&ring, json!([lent[0]["lease"], "nonsense"]), 3600.0).await;
    assert_eq!(statuses(&extended), [200, 409]);
    assert_eq!((&extended[0]["cancelled"], &extended[1]["expires_at"]), (&json!(false), &Value::Null));
    let told = json!([{ "lease": lent[1]["lease"], "outcome": "progress", "progress": {"percent": 40.5, "message": "half"} }]);
    assert_eq!(statuses(&report(&ring, told).await), [200]);
    assert_eq!(ring.job(&ids[1]).await["progress"], json!({ "percent": 40.5, "message": "half" }));

    let again = lend_one(&ring, json!({ "wait_s": 30 })).await;

    assert_eq!(again["job"]["id"], json!(ids[1]), "only the one that was not extended");
    assert_eq!(again["job"]["progress"]["percent"], 40.5);
    let done = json!([
        { "lease": lent[0]["lease"], "outcome": "succeeded" }, { "lease": again["lease"], "outcome": "succeeded" }
    ]);
    assert_eq!(statuses(&report(&ring, done).await), [200, 200]);
}

#[tokio::test]
async fn a_checkpoint_comes_back_with_the_next_lease_however_that_comes_about() {
    let ring = Ringback::start().await;
    let id = ring.submit(job(json!({}))).await;
    let first = lend_one(&ring, json!({})).await;
    assert_eq!(first["job"].get("checkpoint"), None);
    let told = json!({ "percent": 10, "checkpoint": {"row": 1} });
    report(&ring, json!([{ "lease": first["lease"], "outcome": "progress", "progress": told }])).await;
    report(&ring, json!([{ "lease": first["lease"], "outcome": "progress", "progress": {"percent": 20} }]))
        .await;
    report(&ring, json!([{ "lease": first["lease"], "outcome": "released" }])).await;

    let second = lend_one(&ring, json!({})).await;
    assert_eq!(second["job"]["checkpoint"], json!({ "row": 1 }), "it stays until another one comes");
    assert_eq!(second["job"]["progress"], json!({ "percent": 20.0, "message": null }));
    let failed = json!({
        "lease": second["lease"], "outcome": "failed", "error": {"retry_after_s": 0}, "progress": {"checkpoint": {"row": 2}}
    });
    report(&ring, json!([failed])).await;

    let third = lend_one(&ring, json!({ "lease_s": 1 })).await;
    assert_eq!(third["job"]["checkpoint"], json!({ "row": 2 }));
    let fourth = lend_one(&ring, json!({ "wait_s": 30 })).await;
    assert_eq!((&fourth["job"]["checkpoint"], &fourth["job"]["attempt"]), (&json!({ "row": 2 }), &json!(3)));
    report(&ring, json!([{ "lease": fourth["lease"], "outcome": "succeeded" }])).await;
    let ended = ring.wait_for_end(&id).await;
    assert_eq!((&ended["progress"]["percent"], ended.get("checkpoint")), (&json!(20.0), None));
}

#[tokio::test]
async fn the_time_of_a_run_ends_it_over_all_extensions() {
    let ring = Ringback::start().await;
    let id = ring.submit(job(json!({ "timeout_s": 2, "max_attempts": 1 }))).await;
    let lent = lend_one(&ring, json!({ "lease_s": 3600 })).await;
    let extended = extend(&ring, json!([lent["lease"]]), 3600.0).await;
    assert_eq!(extended[0]["expires_at"], lent["expires_at"], "never beyond the end of the run");

    let ended = ring.wait_for_end(&id).await;

    assert_eq!((&ended["status"], &ended["error"]["code"]), (&json!("failed"), &json!("timeout")));
    assert_eq!(ring.attempts(&id).await[0]["outcome"], "timed_out");
    for outcome in ["succeeded", "failed"] {
        let late = json!([{ "lease": lent["lease"], "outcome": outcome }]);
        assert_eq!(statuses(&report(&ring, late).await), [409], "{outcome}");
    }
}

#[tokio::test]
async fn a_cancelled_job_shows_at_the_extension_and_ends_with_the_next_report() {
    let ring = Ringback::start().await;
    for outcome in ["succeeded", "failed", "released", "progress"] {
        let id = ring.submit(job(json!({}))).await;
        let lent = lend_one(&ring, json!({})).await;
        let asked = ring.act(&format!("/v1/jobs/{id}/cancel")).await.expect(200).json();
        assert_eq!((&asked["status"], &asked["cancel_requested"]), (&json!("running"), &json!(true)));
        let extended = extend(&ring, json!([lent["lease"]]), 3600.0).await;
        assert_eq!((&extended[0]["status"], &extended[0]["cancelled"]), (&json!(200), &json!(true)));
        assert_eq!(extended[0]["expires_at"], lent["expires_at"], "it is not put off");

        assert_eq!(
            statuses(&report(&ring, json!([{ "lease": lent["lease"], "outcome": outcome }])).await),
            [409]
        );

        let ended = ring.job(&id).await;
        assert_eq!((&ended["status"], &ended["result"]), (&json!("cancelled"), &Value::Null), "{outcome}");
        assert_eq!(
            statuses(&report(&ring, json!([{ "lease": lent["lease"], "outcome": outcome }])).await),
            [409]
        );
    }
}

#[tokio::test]
async fn a_cancelled_job_whose_worker_says_nothing_ends_with_its_lease() {
    let ring = Ringback::start().await;
    let id = ring.submit(job(json!({}))).await;
    lend_one(&ring, json!({ "lease_s": 1 })).await;
    ring.act(&format!("/v1/jobs/{id}/cancel")).await.expect(200);
    assert_eq!(ring.wait_for_end(&id).await["status"], "cancelled");
}

#[expect(clippy::disallowed_methods, reason = "the test drops the task itself")]
#[tokio::test]
async fn who_hangs_up_while_waiting_gets_nothing_and_the_next_one_does() {
    let ring = Ringback::start().await;
    let mut gone = Vec::new();
    for _ in 0..20 {
        let ring = Client::clone(&ring);
        gone.push(tokio::spawn(async move { ring.post("/v1/leases", wish(json!({ "wait_s": 60 }))).await }));
    }
    lend(&ring, json!({ "kinds": ["other"], "wait_s": 0.2 })).await;
    gone.iter().for_each(tokio::task::JoinHandle::abort);
    let ids: HashSet<String> = [ring.submit(job(json!({}))).await, ring.submit(job(json!({}))).await].into();

    let mut got: HashSet<String> = HashSet::new();
    while got.len() < 2 {
        for lent in lend(&ring, json!({ "max": 1 })).await {
            assert_eq!(lent["job"]["attempt"], 1, "no try was counted");
            got.insert(string(&lent["job"]["id"]));
            report(&ring, json!([{ "lease": lent["lease"], "outcome": "succeeded" }])).await;
        }
    }
    assert_eq!(got, ids);
}

#[tokio::test]
async fn what_is_given_back_while_the_database_is_busy_is_not_lost() {
    let ring = Ringback::start().await;
    // Clients that hang up at a moment when their jobs may be on their way.
    let ids: Vec<String> = {
        let page = ring
            .post("/v1/jobs/batch", json!({ "jobs": vec![job(json!({})); 200] }))
            .await
            .expect(202)
            .json();
        crate::harness::client::list(&page).iter().map(|job| string(&job["id"])).collect()
    };
    for round in 0..40_u64 {
        let poll = ring.post("/v1/leases", wish(json!({ "max": 5, "lease_s": 2 })));
        let _ = tokio::time::timeout(Duration::from_micros(200 * round), poll)
            .await
            .map(|answer| answer.expect(200));
    }
    let mut done = BTreeMap::new();
    while done.len() < ids.len() {
        for lent in lend(&ring, json!({ "max": 100 })).await {
            let answers = report(&ring, json!([{ "lease": lent["lease"], "outcome": "succeeded" }])).await;
            assert_eq!(statuses(&answers), [200]);
            *done.entry(string(&lent["job"]["id"])).or_insert(0) += 1;
        }
    }
    assert!(done.values().all(|count| *count == 1), "each is done once: {done:?}");
}

#[expect(clippy::disallowed_methods, reason = "the test drops the task itself")]
#[tokio::test]
async fn waiting_workers_are_answered_when_the_service_stops() {
    let ring = Ringback::start().await;
    let client = Client::clone(&ring);
    let poll = tokio::spawn(async move { client.post("/v1/leases", wish(json!({ "wait_s": 60 }))).await });
    lend(&ring, json!({ "kinds": ["other"], "wait_s": 0.2 })).await;
    tokio::task::spawn_blocking(move || drop(ring)).await.expect("it stops");
    let answer: Answer = poll.await.expect("an answer");
    assert_eq!(answer.expect(200).json(), json!({ "leases": [] }));
}

#[tokio::test]
async fn many_waiting_workers_of_many_kinds_each_get_their_own() {
    let ring = Ringback::start().await;
    let polls =
        (0..30).map(|number| lend_one(&ring, json!({ "kinds": [format!("k{number}")], "wait_s": 60 })));
    let submits = async {
        lend(&ring, json!({ "kinds": ["other"], "wait_s": 0.1 })).await;
        for number in 0..30 {
            ring.submit(job(json!({ "kind": format!("k{number}") }))).await;
        }
    };
    let (lent, ()) = tokio::join!(futures_util::future::join_all(polls), submits);
    for (number, lent) in lent.iter().enumerate() {
        assert_eq!(lent["job"]["kind"], format!("k{number}"));
    }
    // That workers of a kind were there is written down.
    let seen = async || {
        let sql = "SELECT count(*) FROM ringback.worker_sightings WHERE kind LIKE 'k%' AND worker = 'w1'";
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&mut ring.sql().await).await.expect("an answer");
        count
    };
    eventually("sightings", seen, |count| *count == 30).await;
}
