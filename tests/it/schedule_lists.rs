//! Lists of schedules and of their jobs.

use serde_json::{Value, json};

use crate::harness::client::{list, string};
use crate::harness::{Client, Ringback};
use crate::schedules::{RARELY, created, patch, path};

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
