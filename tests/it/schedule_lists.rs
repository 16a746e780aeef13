//! Schedules in lists: how many a tenant may have, one that cannot be read among others, and the jobs of one.

use http::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _};

use crate::harness::client::{list, string};
use crate::harness::process::ServeProcess;
use crate::harness::service::database;
use crate::harness::{Client, Ringback, eventually};
use crate::schedules::{RARELY, created, patch, path, shown, waiting};

async fn all(ring: &Client) -> Vec<Value> {
    list(&ring.get("/v1/schedules").await.expect(200).json())
}

#[tokio::test]
async fn one_that_cannot_be_read_is_shown_with_the_reason_and_can_be_deleted() {
    let database = database().await;
    let mut ring = ServeProcess::on(&database.url());
    ring.start().await;
    let make = async |description: &str| {
        created(&ring, json!({ "cron": RARELY, "description": description, "job": waiting("x") })).await
    };
    let (sealed, whole, zone) = (make("sealed").await, make("whole").await, make("zone").await);
    let mut sql = database.options().connect().await.expect("a connection");
    for change in
        ["job = '\\x00' WHERE description = 'sealed'", "timezone = 'Mars/Base' WHERE description = 'zone'"]
    {
        let update = format!("UPDATE ringback.schedules SET {change}");
        sql.execute(AssertSqlSafe(update)).await.expect("an update");
    }

    let found = all(&ring).await;

    let ids: Vec<_> = found.iter().map(|one| &one["id"]).collect();
    assert_eq!(ids, [&zone["id"], &whole["id"], &sealed["id"]]);
    assert_eq!(found[1], whole);
    for (one, why) in
        [(&found[0], "the time zone Mars/Base is not known"), (&found[2], "RINGBACK_MASTER_KEY")]
    {
        assert_eq!((&one["job"], &one["next"], &one["status"]), (&Value::Null, &json!([]), &json!("active")));
        assert!(string(&one["last_error"]).contains(why), "{one}");
        assert_eq!(shown(&ring, &path(one)).await, *one);
        assert!(ring.stderr().contains(&string(&one["id"])), "the log names it");
        let refused = patch(&ring, &path(one), json!({"status": "paused"})).await.expect(409).json();
        assert!(string(&refused["detail"]).contains(why), "{refused}");
        ring.act(&format!("{}/trigger", path(one))).await.expect(409);
    }

    // One that is due is stopped, and goes on with a change when it can be read again.
    let due = "UPDATE ringback.schedules SET next_at = now() WHERE description = 'zone'";
    sql.execute(due).await.expect("an update");
    let stopped = "SELECT next_at IS NULL FROM ringback.schedules WHERE description = 'zone'";
    let is_stopped = async || {
        let mut sql = database.options().connect().await.expect("a connection");
        sqlx::query_scalar::<_, bool>(stopped).fetch_one(&mut sql).await.expect("a row")
    };
    eventually("it is stopped", is_stopped, |stopped| *stopped).await;
    let mended = "UPDATE ringback.schedules SET timezone = 'UTC' WHERE description = 'zone'";
    sql.execute(mended).await.expect("an update");
    let stopped = shown(&ring, &path(&zone)).await;
    assert_eq!((&stopped["next"], &stopped["job"]), (&json!([]), &zone["job"]));
    assert!(string(&stopped["last_error"]).contains("Mars/Base"), "{stopped}");
    let goes_on = patch(&ring, &path(&zone), json!({})).await.expect(200).json();
    assert_eq!(goes_on["next"], zone["next"]);

    ring.call(Method::DELETE, &path(&sealed)).header("if-match", "\"7\"").send().await.expect(412);
    ring.call(Method::DELETE, &path(&sealed)).header("if-match", "\"1\"").send().await.expect(204);
    assert_eq!(all(&ring).await.len(), 2);
}

#[tokio::test]
async fn a_tenant_has_a_thousand_schedules_at_most() {
    let ring = Ringback::start().await;
    let new = json!({ "cron": RARELY, "status": "paused", "job": waiting("x") });
    let first = created(&ring, new.clone()).await;
    ring.put(
        "INSERT INTO ringback.schedules (tenant_id, id, cron, timezone, job, overlap, catch_up, status, description, updated_at)
         SELECT tenant_id, ringback.uuid_v7(), cron, timezone, job, overlap, catch_up, status, description, updated_at
         FROM ringback.schedules, generate_series(1, 998)"
            .to_owned(),
    )
    .await;

    // For the last place.
    let answers =
        futures_util::future::join_all((0..4).map(|_| ring.post("/v1/schedules", new.clone()))).await;

    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409]);
    let refused = answers.iter().find(|answer| answer.status == 409).expect("one").json();
    assert!(string(&refused["detail"]).contains("1000"), "{refused}");
    // Others have places of their own.
    let other = ring.other_tenant("admin").await;
    created(&other, new.clone()).await;
    ring.call(Method::DELETE, &path(&first)).send().await.expect(204);
    created(&ring, new).await;
}

/// Triggers the schedule; the job's id.
async fn triggered(ring: &Client, schedule: &str, job: Value) -> String {
    patch(ring, schedule, json!({ "job": job })).await.expect(200);
    string(&ring.act(&format!("{schedule}/trigger")).await.expect(202).json()["id"])
}

/// Hands a job of this kind out, and reports it unless there is nothing to say.
async fn worked(ring: &Client, kind: &str, report: Value) {
    let ask = json!({ "worker": "w", "kinds": [kind], "wait_s": 30, "lease_s": 60 });
    let leases = ring.post("/v1/leases", ask).await.expect(200).json();
    if report.is_object() {
        let mut report = report;
        report["lease"] = leases["leases"][0]["lease"].clone();
        let told = ring.post("/v1/leases/report", json!({ "reports": [report] })).await.expect(200).json();
        assert_eq!(told["reports"][0]["status"], 200, "{told}");
    }
}

#[tokio::test]
async fn the_jobs_of_a_schedule_are_found_among_all_others() {
    let ring = Ringback::start().await;
    let template = json!({ "kind": "a", "max_attempts": 2, "backoff": {"initial_s": 600, "jitter": 0} });
    let paused = json!({ "cron": RARELY, "status": "paused", "job": template });
    let (schedule, other) = (created(&ring, paused.clone()).await, created(&ring, paused).await);
    ring.submit(json!({ "kind": "a" })).await;
    ring.act(&format!("{}/trigger", path(&other))).await.expect(202);
    let make = async |job: Value| triggered(&ring, &path(&schedule), job).await;
    let queued = make(json!({ "kind": "a" })).await;
    let held = make(json!({ "kind": "none", "ordering_key": "k" })).await;
    let behind = make(json!({ "queue": "slow" })).await;
    let running = make(json!({ "kind": "b", "ordering_key": null })).await;
    worked(&ring, "b", Value::Null).await;
    let retrying = make(json!({ "kind": "c" })).await;
    let failed = json!({ "outcome": "failed", "error": {"message": "no"} });
    worked(&ring, "c", failed.clone()).await;
    let cancelled = make(json!({ "kind": "d" })).await;
    ring.act(&format!("/v1/jobs/{cancelled}/cancel")).await.expect(200);
    let succeeded = make(json!({ "kind": "e", "metadata": {"n": "1"} })).await;
    worked(&ring, "e", json!({ "outcome": "succeeded" })).await;
    let parked = make(json!({ "kind": "f", "max_attempts": 1 })).await;
    worked(&ring, "f", failed).await;

    let every = [&parked, &succeeded, &cancelled, &retrying, &running, &behind, &held, &queued];
    let cases: [(&str, &[&String]); 13] = [
        ("", &every),
        ("&status=queued", &[&behind, &held, &queued]),
        ("&status=running", &[&running]),
        ("&status=retrying", &[&retrying]),
        ("&status=succeeded", &[&succeeded]),
        ("&status=failed", &[&parked]),
        ("&status=cancelled", &[&cancelled]),
        ("&kind=a", &[&queued]),
        ("&kind=a&status=failed", &[]),
        ("&queue=default&status=queued", &[&held, &queued]),
        ("&metadata[n]=1", &[&parked, &succeeded]),
        ("&metadata[n]=1&status=succeeded", &[&succeeded]),
        ("&limit=3", &every[..3]),
    ];
    let of = format!("/v1/jobs?schedule_id={}", string(&schedule["id"]));
    for (query, expected) in cases {
        let found = list(&ring.get(&format!("{of}{query}")).await.expect(200).json());
        let ids: Vec<String> = found.iter().map(|job| string(&job["id"])).collect();
        assert_eq!(ids.iter().collect::<Vec<_>>(), expected, "{query}");
        assert!(found.iter().all(|job| job["schedule_id"] == schedule["id"]));
    }
    let page = ring.get(&format!("{of}&limit=5")).await.expect(200).json();
    let rest =
        ring.get(&format!("{of}&limit=5&cursor={}", string(&page["next_cursor"]))).await.expect(200).json();
    let ids: Vec<String> = list(&rest).iter().map(|job| string(&job["id"])).collect();
    assert_eq!(
        (ids.iter().collect::<Vec<_>>().as_slice(), &rest["next_cursor"]),
        (&every[5..], &Value::Null)
    );
    let wrong = ring.get("/v1/jobs?schedule_id=job_01jd7m3v6kf0qr8x2n4ab9cdef").await.expect(422);
    assert_eq!(wrong.pointers(), ["/schedule_id"]);
}
