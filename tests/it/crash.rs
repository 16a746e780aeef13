//! What holds when the process dies, stops or starts: on the real program.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;

use http::Method;
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Executor as _};

use crate::harness::client::{list, string};
use crate::harness::process::ServeProcess;
use crate::harness::service::{API_KEY, MASTER_KEY, database};
use crate::harness::{Receiver, Reply, eventually};

/// So many jobs are accepted before the kill, and in the run without one.
const MANY: usize = 300;

fn job(target: &Receiver, callback: &Receiver) -> Value {
    json!({
        "kind": "http", "input": {"url": target.url("/work")},
        "callback": {"url": callback.url("/told"), "retry": {"initial_s": 0.1, "factor": 1}}
    })
}

/// Accepts many jobs, a hundred at a time; their ids.
async fn accept_many(ring: &ServeProcess, job: &Value) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for _ in 0..MANY / 100 {
        let batch = json!({ "jobs": vec![job; 100] });
        let page = ring.post("/v1/jobs/batch", batch).await.expect(202).json();
        ids.extend(list(&page).iter().map(|job| string(&job["id"])));
    }
    ids
}

/// The job that each request tells of, with the `webhook-id`s under which it was told.
fn told(callback: &Receiver) -> BTreeMap<String, Vec<String>> {
    let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for request in callback.received() {
        let id = request.header("webhook-id").to_owned();
        told.entry(string(&request.json()["data"]["id"])).or_default().push(id);
    }
    told
}

#[tokio::test]
async fn a_kill_loses_nothing_that_was_acknowledged() {
    let database = database().await;
    let (target, callback) = (Receiver::ok(), Receiver::ok());
    let mut ring = ServeProcess::on(&database.url());
    ring.start().await;

    let ids = accept_many(&ring, &job(&target, &callback)).await;
    // Some are done, some run, some wait.
    callback.nth(20).await;
    ring.kill();
    ring.start().await;

    eventually("every job is told of", async || told(&callback).len(), |count| *count == MANY).await;
    let told = told(&callback);
    assert_eq!(told.keys().cloned().collect::<BTreeSet<_>>(), ids);
    for (job, events) in &told {
        let distinct: BTreeSet<_> = events.iter().collect();
        assert_eq!(
            distinct.len(),
            1,
            "what is told again is told under the same webhook-id: {job} {events:?}"
        );
    }
    for id in &ids {
        assert_eq!(ring.wait_for_end(id).await["status"], "succeeded");
    }
    ring.terminate();
    assert_eq!(ring.wait().code, Some(0));
}

#[tokio::test]
async fn without_a_fault_no_callback_comes_twice() {
    let database = database().await;
    let (target, callback) = (Receiver::ok(), Receiver::ok());
    let mut ring = ServeProcess::on(&database.url());
    ring.start().await;

    let ids = accept_many(&ring, &job(&target, &callback)).await;
    for id in &ids {
        ring.wait_for_delivery(id, "succeeded").await;
    }
    ring.terminate();

    assert_eq!(ring.wait().code, Some(0));
    assert_eq!(told(&callback).into_keys().collect::<BTreeSet<_>>(), ids);
    assert_eq!((callback.received().len(), target.received().len()), (MANY, MANY));
}

#[tokio::test]
async fn what_ran_when_the_process_died_is_on_record_and_runs_again() {
    let database = database().await;
    let (target, callback) = (
        Receiver::answering([Reply::Hang, Reply::from(200)]),
        Receiver::answering([Reply::Hang, Reply::from(200)]),
    );
    let mut ring = ServeProcess::on(&database.url());
    ring.start().await;
    let id = ring.submit(job(&target, &callback)).await;
    target.nth(1).await;

    ring.kill();
    ring.start().await;

    let job = ring.wait_for_end(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("succeeded"), &json!(2)), "{job}");
    let attempts = ring.attempts(&id).await;
    assert_eq!((&attempts[0]["number"], &attempts[0]["outcome"]), (&json!(1), &json!("crashed")));
    assert_eq!(
        (&attempts[0]["error"]["code"], &attempts[1]["outcome"]),
        (&json!("crashed"), &json!("succeeded"))
    );

    // The same for a delivery that was on the wire.
    callback.nth(1).await;
    ring.kill();
    ring.start().await;

    let delivery = ring.wait_for_delivery(&id, "succeeded").await;
    let attempts = delivery["attempts"].as_array().expect("attempts");
    assert_eq!((attempts.len(), &attempts[0]["error"]["code"]), (2, &json!("crashed")), "{delivery}");
    let requests = callback.received();
    assert_eq!(requests[1].header("ringback-attempt"), "2");
    assert_eq!(requests[0].header("webhook-id"), requests[1].header("webhook-id"));
    assert_eq!(requests[0].body, requests[1].body);
}

#[tokio::test]
async fn a_stop_finishes_what_is_in_flight() {
    let database = database().await;
    let (target, callback) =
        (Receiver::answering([Reply::from(200).held()]), Receiver::answering([Reply::from(200)]));
    let mut ring = ServeProcess::on(&database.url());
    ring.start().await;

    // Someone waits for the job meanwhile, and gets an answer.
    let call = ring.call(Method::POST, "/v1/jobs").header("prefer", "wait=30").json(&job(&target, &callback));
    let (answer, ()) = tokio::join!(call.send(), async {
        target.nth(1).await;
        ring.terminate();
    });
    let id = string(&answer.expect(202).json()["id"]);
    target.release();
    assert_eq!(ring.wait().code, Some(0));

    ring.start().await;
    let job = ring.wait_for_end(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("succeeded"), &json!(1)));
    ring.wait_for_delivery(&id, "succeeded").await;
    assert_eq!((target.received().len(), callback.received().len()), (1, 1));
}

#[tokio::test]
async fn a_job_that_a_stop_gives_back_has_not_used_up_a_try() {
    let database = database().await;
    let (target, callback) = (Receiver::answering([Reply::Hang, Reply::from(200)]), Receiver::ok());
    let mut ring = ServeProcess::on(&database.url()).with("RINGBACK_SHUTDOWN_GRACE", "200ms");
    ring.start().await;
    let mut job = job(&target, &callback);
    job["max_attempts"] = json!(1);
    let id = ring.submit(job).await;
    target.nth(1).await;

    ring.terminate();
    assert_eq!(ring.wait().code, Some(0));
    ring.start().await;

    let job = ring.wait_for_end(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("succeeded"), &json!(1)), "{job}");
    assert_eq!(ring.attempts(&id).await.len(), 1);
}

#[tokio::test]
async fn a_stop_during_the_last_try_of_a_delivery_does_not_lose_it() {
    let database = database().await;
    let (target, callback) = (Receiver::ok(), Receiver::answering([Reply::Hang, Reply::from(200)]));
    let mut ring = ServeProcess::on(&database.url()).with("RINGBACK_SHUTDOWN_GRACE", "200ms");
    ring.start().await;
    let mut job = job(&target, &callback);
    job["callback"]["retry"] = json!({ "max_attempts": 1 });
    let id = ring.submit(job).await;
    callback.nth(1).await;

    ring.terminate();
    assert_eq!(ring.wait().code, Some(0));
    ring.start().await;

    let delivery = ring.wait_for_delivery(&id, "succeeded").await;
    assert_eq!(delivery["attempts"][0]["error"]["code"], "crashed", "{delivery}");
}

#[tokio::test]
async fn the_embedded_database_is_made_kept_and_taken_over() {
    let (target, callback) = (Receiver::ok(), Receiver::ok());
    let mut ring = ServeProcess::bare();

    ring.start().await;
    for name in ["api-key", "master-key"] {
        let mode = std::fs::metadata(ring.data_dir().join(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let key = std::fs::read_to_string(ring.data_dir().join("api-key")).expect("a key");
    let id = ring.submit(job(&target, &callback)).await;
    let secret = ring.callback_secret().await;
    ring.wait_for_delivery(&id, "succeeded").await;

    // The server lives on after the kill, and is taken over.
    ring.kill();
    ring.start().await;
    assert_eq!(ring.job(&id).await["status"], "succeeded");
    assert_eq!(ring.callback_secret().await, secret);
    ring.terminate();
    assert_eq!(ring.wait().code, Some(0));
    ring.start().await;
    assert_eq!(ring.job(&id).await["status"], "succeeded");
    ring.terminate();
    assert_eq!(ring.wait().code, Some(0));

    assert_eq!(ring.stdout().matches(key.trim()).count(), 1, "the key is printed at the first start only");
    assert!(!ring.stderr().contains(key.trim()));
}

#[tokio::test]
async fn no_secret_is_logged_and_logs_are_json_on_request() {
    let database = database().await;
    let (target, callback) = (Receiver::answering([500, 200]), Receiver::answering([500, 200]));
    let mut ring =
        ServeProcess::on(&database.url()).with("RINGBACK_LOG", "trace").with("RINGBACK_LOG_FORMAT", "json");
    ring.start().await;
    let own = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=";
    let mut job = job(&target, &callback);
    job["backoff"] = json!({ "initial_s": 0.01 });
    job["input"]["headers"] = json!({ "authorization": "Bearer input-token-1" });
    job["input"]["body"] = json!("private-body-1");
    job["callback"]["headers"] = json!({ "authorization": "Bearer callback-token-1" });
    job["callback"]["secret"] = json!(own);
    let id = ring.submit(job).await;
    ring.wait_for_delivery(&id, "succeeded").await;
    let secret = ring.callback_secret().await;
    ring.act("/v1/callback-secret/rotate").await.expect(200);
    ring.with_key("rbk_ffffffffffffffffffffffffffffffffffffffff").get("/v1/jobs").await.expect(401);
    ring.terminate();
    assert_eq!(ring.wait().code, Some(0));

    let (printed, logged) = (ring.stdout(), ring.stderr());
    assert!(logged.lines().count() > 10, "{logged}");
    for line in logged.lines() {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(object["level"].is_string() && object["timestamp"].is_string(), "{line}");
    }
    for word in [
        API_KEY,
        MASTER_KEY,
        own,
        &secret,
        "whsec_",
        "rbk_ffff",
        "input-token-1",
        "callback-token-1",
        "private-body-1",
    ] {
        for text in [&printed, &logged] {
            let line = text.lines().find(|line| line.contains(word));
            assert!(line.is_none(), "{word} is in: {}", line.unwrap_or_default());
        }
    }
}

#[tokio::test]
async fn a_schema_from_the_future_is_left_alone() {
    let database = database().await;
    let mut connection = database.options().connect().await.expect("a connection");
    let sql = "INSERT INTO ringback.schema_migrations (version, description, success, checksum, execution_time) \
               VALUES (99990101000000, 'from the future', true, '\\x00', 1)";
    connection.execute(sql).await.expect("inserted");

    let ended = ServeProcess::on(&database.url()).start_in_vain();

    assert_eq!(ended.code, Some(70));
    assert!(
        ended.stderr.contains("99990101000000") && ended.stderr.contains("newer build"),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn an_external_database_needs_keys_that_were_given() {
    let database = database().await;
    let mut ring = ServeProcess::bare().with("DATABASE_URL", &database.url());

    let no_master = ring.start_in_vain();
    ring.set("RINGBACK_MASTER_KEY", MASTER_KEY);
    let no_key = ring.start_in_vain();

    assert_eq!((no_master.code, no_key.code), (Some(78), Some(78)));
    assert!(
        no_master.stderr.contains("RINGBACK_MASTER_KEY")
            && no_master.stderr.contains("openssl rand -base64 32")
    );
    assert!(
        no_key.stderr.contains("RINGBACK_API_KEY") && no_key.stderr.contains("rbk_$(openssl rand -hex 20)")
    );

    // Given once, the key is known; another master key is not.
    ring.set("RINGBACK_API_KEY", API_KEY);
    ring.start().await;
    ring.terminate();
    assert_eq!(ring.wait().code, Some(0));
    ring.set("RINGBACK_MASTER_KEY", "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=");
    let other = ring.start_in_vain();
    assert_eq!(other.code, Some(78));
    assert!(other.stderr.contains("not the key"), "{}", other.stderr);
}

#[tokio::test]
async fn a_database_that_is_not_there_ends_the_start_with_69() {
    let ended = ServeProcess::on("postgres://nobody@127.0.0.1:1/none").start_in_vain();
    assert_eq!(ended.code, Some(69), "{}", ended.stderr);
}
