//! `ringback.publish` and `ringback.submit`, called by users in transactions of their own.

use std::time::{Duration, Instant};

use ringback::ids::{EventId, JobId};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::harness::client::{list, string};
use crate::harness::{Receiver, Ringback};

/// The text that a statement returns.
async fn text(sql: &mut PgConnection, statement: &str) -> Result<String, String> {
    sqlx::query_scalar(AssertSqlSafe(statement.to_owned())).fetch_one(sql).await.map_err(|error| match error
        .as_database_error()
    {
        Some(error) => error.message().to_owned(),
        None => error.to_string(),
    })
}

async fn all(ring: &Ringback) -> Vec<Value> {
    ring.get("/v1/events?after=now").await.expect(200);
    list(&ring.get("/v1/events?limit=250").await.expect(200).json())
}

#[tokio::test]
async fn an_event_is_there_when_its_transaction_commits() {
    let ring = Ringback::start().await;
    let mut sql = ring.sql().await;
    let after = string(&ring.get("/v1/events?after=now").await.expect(200).json()["next_cursor"]);
    let data = r#"{"b": 1.0,  "a":12345678901234567890}"#;

    let mut transaction = sql.begin().await.expect("a transaction");
    let statement = format!(
        "SELECT ringback.publish('order.paid', '{data}'::json, 'k', metadata => '{{\"source\":\"shop\"}}')"
    );
    let id = text(&mut transaction, &statement).await.expect("an id");
    id.parse::<EventId>().expect("a TypeID");
    let path = format!("/v1/events/{id}");
    ring.get(&path).await.expect(404);
    transaction.commit().await.expect("committed");

    let committed = Instant::now();
    let page = ring.get(&format!("/v1/events?wait_s=20&after={after}")).await.expect(200).json();
    assert!(committed.elapsed() < Duration::from_secs(2), "{:?}", committed.elapsed());
    let event = ring.get(&path).await.expect(200);
    assert_eq!(list(&page), [event.json()]);
    assert!(event.text().contains(data), "{}", event.text());
    assert_eq!(
        (&event.json()["ordering_key"], &event.json()["metadata"]),
        (&json!("k"), &json!({"source": "shop"}))
    );
    let made = event.json()["created_at"].as_str().expect("a time").parse::<chrono::DateTime<chrono::Utc>>();
    assert!((ringback::clock::now() - made.expect("RFC 3339")).num_seconds().abs() < 60);
}

#[tokio::test]
async fn a_rollback_publishes_and_submits_nothing() {
    let ring = Ringback::start().await;
    let mut sql = ring.sql().await;
    let mut transaction = sql.begin().await.expect("a transaction");
    let event = text(&mut transaction, "SELECT ringback.publish('a', '1', dedup_key => 'd')").await;
    let job = text(&mut transaction, r#"SELECT ringback.submit('resize', '1', '{"unique_key": "u"}')"#).await;
    transaction.rollback().await.expect("rolled back");

    assert_eq!(all(&ring).await, Vec::<Value>::new());
    ring.get(&format!("/v1/events/{}", event.expect("an id"))).await.expect(404);
    ring.get(&format!("/v1/jobs/{}", job.expect("an id"))).await.expect(404);
    // The keys are free.
    ring.post("/v1/events", json!({"type": "a", "data": 1, "dedup_key": "d"})).await.expect(202);
    ring.submit(json!({"kind": "resize", "unique_key": "u"})).await;
}

#[tokio::test]
async fn a_dedup_key_counts_across_both_ways() {
    let ring = Ringback::start().await;
    let mut sql = ring.sql().await;
    let first = ring.post("/v1/events", json!({"type": "a", "data": 1, "dedup_key": "d"})).await.expect(202);
    let publish = "SELECT ringback.publish('b', '2', dedup_key => 'd')";
    assert_eq!(text(&mut sql, publish).await, Ok(string(&first.json()["id"])));
    let age = "UPDATE ringback.event_dedup SET created_at = now() - interval '25 hours'";
    sql.execute(age).await.expect("aged");
    let second = text(&mut sql, publish).await.expect("an id");
    assert_ne!(json!(second), first.json()["id"]);
    let third = ring.post("/v1/events", json!({"type": "a", "data": 1, "dedup_key": "d"})).await.expect(200);
    assert_eq!(third.json()["id"], second);
    assert_eq!(all(&ring).await.len(), 2);
}

#[tokio::test]
async fn a_job_from_sql_runs_and_rings_back() {
    let ring = Ringback::start().await;
    let mut sql = ring.sql().await;
    let receiver = Receiver::answering([200]);
    let (input, callback) = (json!({ "url": receiver.url("/work") }), receiver.url("/hook"));
    let statement = format!(
        "SELECT ringback.submit('http', '{input}', jsonb_build_object('callback_url', '{callback}', 'priority', 7,
         'max_attempts', 3, 'timeout_s', 2.5, 'metadata', jsonb_build_object('order', 'A-1')))"
    );
    let id = text(&mut sql, &statement).await.expect("an id");
    id.parse::<JobId>().expect("a TypeID");

    let job = ring.wait_for_end(&id).await;
    assert_eq!((&job["status"], &job["input"], &job["priority"]), (&json!("succeeded"), &input, &json!(7)));
    assert_eq!((&job["max_attempts"], &job["timeout_s"]), (&json!(3), &json!(2.5)));
    assert_eq!(job["metadata"], json!({"order": "A-1"}));
    ring.wait_for_delivery(&id, "succeeded").await;

    let later = r#"SELECT ringback.submit('resize', NULL, '{"delay_s": 600, "queue": "night"}')"#;
    let later = ring.job(&text(&mut sql, later).await.expect("an id")).await;
    assert_eq!(
        (&later["status"], &later["queue"], &later["input"]),
        (&json!("queued"), &json!("night"), &json!(null))
    );
    assert!(later["run_at"].as_str() > later["created_at"].as_str());
}

#[tokio::test]
async fn a_unique_key_brings_its_holder_back_and_does_not_hold_it() {
    let ring = Ringback::start().await;
    let mut sql = ring.sql().await;
    let holder = ring.submit(json!({"kind": "resize", "unique_key": "u"})).await;
    let submit = r#"SELECT ringback.submit('resize', '1', '{"unique_key": "u"}')"#;

    let mut transaction = sql.begin().await.expect("a transaction");
    assert_eq!(text(&mut transaction, submit).await, Ok(holder.clone()));
    // The holder ends although that transaction is still open.
    ring.act(&format!("/v1/jobs/{holder}/cancel")).await.expect(200);
    let second = text(&mut transaction, submit).await.expect("an id");
    assert_ne!(second, holder);
    // That key is taken by a job that nobody sees yet: no answer can be given, and that is said soon.
    let began = Instant::now();
    ring.post("/v1/jobs", json!({"kind": "resize", "unique_key": "u"})).await.expect(503);
    assert!(began.elapsed() < Duration::from_secs(6));
    transaction.commit().await.expect("committed");
    let third = ring.post("/v1/jobs", json!({"kind": "resize", "unique_key": "u"})).await.expect(200);
    assert_eq!(third.json()["id"], second);
}

#[tokio::test]
async fn what_the_api_refuses_is_refused_with_the_reason() {
    let ring = Ringback::start().await;
    let mut sql = ring.sql().await;
    for (call, says) in [
        ("publish('a b', '1')", "type must be names"),
        ("publish('job.failed', '1')", "Ringback's own"),
        ("publish(NULL, '1')", "type is missing"),
        ("publish('a', NULL)", "data is missing"),
        ("publish('a', '{')", "invalid input syntax"),
        ("publish('a', '{\"a\":1,\"a\":2}')", "a name comes twice"),
        ("publish('a', '[1e400]')", "beyond the range of a double"),
        ("publish('a', repeat('[', 65) || repeat(']', 65))", "64 levels"),
        ("publish('a', '\"' || repeat('x', 262143) || '\"')", "262144 bytes at most"),
        ("publish('a', '1', ordering_key => '')", "ordering_key must be"),
        ("publish('a', '1', metadata => '{\"n\":1}')", "metadata must be strings"),
        ("publish('a', '1', tenant => 'ten_01h2xcejqtf2nbrexx3vqjhp41')", "there is no tenant"),
        ("submit('http', '1')", "which url to call"),
        ("submit('a b', '1')", "kind must be"),
        ("submit('a', '1', '{\"ordering_key\":\"\"}')", "ordering_key must be"),
        ("submit('a', '1', '{\"after\":\"job_\"}')", "after must be a list"),
        ("submit('a', '1', '{\"after\":[7]}')", "after names 7, and there is no such job"),
        (
            "submit('a', '1', '{\"after\":[\"job_01h2xcejqtf2nbrexx3vqjhp41\"]}')",
            "after names job_01h2xcejqtf2nbrexx3vqjhp41",
        ),
        ("submit('a', '1', '{\"after_failure\":\"ignore\"}')", "after_failure must be one of: cancel, run"),
        ("submit('a', '1', '{\"when\":1}')", "unknown option when"),
        ("submit('a', '1', '{\"priority\":101}')", "whole number from -100 to 100"),
        ("submit('a', '1', '{\"run_at\":\"tomorrow\"}')", "RFC 3339"),
        ("submit('a', '1', '{\"run_at\":\"2030-01-01T00:00:00Z\",\"delay_s\":1}')", "at most one"),
        ("submit('a', '1', '{\"callback_url\":\"ftp://x\"}')", "absolute URL"),
        ("submit('a', '1', '[]')", "must be an object"),
    ] {
        let refused = text(&mut sql, &format!("SELECT ringback.{call}")).await.expect_err(call);
        assert!(refused.contains(says), "{call}: {refused}");
    }
    for call in ["publish('a', repeat('[', 64) || repeat(']', 64))", r#"publish('a', '{":a\"":":"}')"#] {
        text(&mut sql, &format!("SELECT ringback.{call}")).await.expect(call);
    }
}

/// As `docs/sql.md` shows it.
const GRANTS: &str = "GRANT USAGE ON SCHEMA ringback TO {role};
    GRANT EXECUTE ON FUNCTION
      ringback.publish(text, json, text, text, jsonb, text),
      ringback.publish(text, jsonb, text, text, jsonb, text),
      ringback.publish(text, text, text, text, jsonb, text) TO {role};
    GRANT EXECUTE ON FUNCTION
      ringback.submit(text, json, jsonb, text),
      ringback.submit(text, jsonb, jsonb, text),
      ringback.submit(text, text, jsonb, text) TO {role}";

#[tokio::test]
async fn a_role_needs_the_grant_and_gets_nothing_else() {
    let ring = Ringback::start().await;
    let (mut owner, mut app) = (ring.sql().await, ring.sql().await);
    let role = format!("app_{}", uuid::Uuid::now_v7().simple());
    let run = |sql: String| AssertSqlSafe(sql.replace("{role}", &role));
    owner.execute(run("CREATE ROLE {role}".to_owned())).await.expect("a role");
    app.execute(run("SET ROLE {role}".to_owned())).await.expect("the role");
    let calls = [
        "SELECT ringback.publish('a', '1')",
        "SELECT ringback.publish('a', jsonb_build_object('n', 1))",
        "SELECT ringback.publish('a', json_build_object('n', 1))",
        "SELECT ringback.submit('resize', '1')",
    ];

    for call in calls {
        assert!(text(&mut app, call).await.expect_err(call).contains("permission denied"));
    }
    // The schema alone is not enough.
    owner.execute(run("GRANT USAGE ON SCHEMA ringback TO {role}".to_owned())).await.expect("granted");
    for call in calls {
        assert!(text(&mut app, call).await.expect_err(call).contains("permission denied for function"));
    }
    owner.execute(run(GRANTS.to_owned())).await.expect("granted");
    for call in calls {
        text(&mut app, call).await.expect(call);
    }
    for refused in [
        "SELECT type FROM ringback.events",
        "SELECT key_hash::text FROM ringback.api_keys",
        "INSERT INTO ringback.event_inbox SELECT id, id, 'job.succeeded' FROM ringback.tenants RETURNING type",
        "SELECT ringback.append_event('job.failed', '1', NULL, NULL, NULL, NULL)",
        "SELECT ringback.tenant_of(NULL)::text",
        "SELECT ringback.next_endpoint_change()::text",
        "CREATE TABLE ringback.mine (n int)",
    ] {
        assert!(text(&mut app, refused).await.expect_err(refused).contains("permission denied"), "{refused}");
    }
    drop(app.close().await);
    owner.execute(run("DROP OWNED BY {role}; DROP ROLE {role}".to_owned())).await.expect("dropped");
    assert_eq!(all(&ring).await.len(), 3);
}
