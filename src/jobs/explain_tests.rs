//! One case for each code, and that no facts leave a job without a sentence.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::*;
use crate::backoff::RetryPolicy;
use crate::ids::TenantId;
use crate::jobs::view::JobState;
use crate::jobs::{Job, JobError};

fn at(seconds: i64) -> Timestamp {
    chrono::DateTime::from_timestamp(1_700_000_000 + seconds, 0).expect("a time")
}

fn stored(status: JobStatus) -> StoredJob {
    let job = Job {
        tenant: TenantId::from_uuid(Uuid::nil()),
        id: JobId::from_uuid(Uuid::nil()),
        kind: "resize".to_owned(),
        queue: "images".to_owned(),
        priority: 0,
        run_at: at(0),
        timeout: Duration::from_secs(1),
        retry: RetryPolicy::JOBS,
        backoff_json: None,
        unique_key: None,
        ordering_key: Some("customer-42".to_owned()),
        after: None,
        input: RawValue::NULL.to_owned(),
        metadata: None,
        callback: None,
        traceparent: None,
        scheduled: None,
    };
    StoredJob { job, state: JobState { status, ..JobState::accepted() }, sealed_options: None }
}

fn told(stored: &StoredJob, standing: &Standing) -> (Code, String) {
    let explained = explain(stored, standing);
    (explained.code, explained.reason)
}

fn held(pending: i64, head: Option<JobId>, ahead: i64) -> Standing {
    let waits_for = (0..pending.min(2)).map(|_| JobId::from_uuid(Uuid::max())).collect();
    Standing::Held(Held { pending, waits_for, head, ahead })
}

#[test]
fn a_held_job_waits_for_others_then_for_its_line() {
    let job = stored(JobStatus::Queued);
    let (code, reason) = told(&job, &held(1, None, 3));
    assert_eq!(code, Code::After);
    assert!(reason.starts_with("waits for the end of job_7zzz"), "{reason}");
    let (_, reason) = told(&job, &held(7, None, 0));
    assert!(reason.starts_with("waits for the end of 7 jobs"), "{reason}");

    let (code, reason) = told(&job, &held(0, Some(JobId::from_uuid(Uuid::max())), 2));
    assert_eq!(code, Code::OrderingKey);
    assert!(reason.starts_with("3 jobs are before it under the ordering_key \"customer-42\""), "{reason}");
    let (_, reason) = told(&job, &held(0, None, AHEAD_COUNTED_MAX + 1));
    assert!(reason.starts_with("more than 1000 jobs are before it"), "{reason}");
    assert_eq!(told(&job, &held(0, None, 0)).0, Code::BeingPlaced);
}

#[test]
fn what_holds_a_ready_job_up_longest_is_named() {
    let job = stored(JobStatus::Queued);
    let all = Ready { paused_at: Some(at(0)), limit: Limit::Full(4), workers: Workers::NeverSeen, ahead: 1 };
    let code = |ready: Ready| told(&job, &Standing::Ready(ready)).0;
    assert_eq!(code(all.clone()), Code::QueuePaused);
    assert_eq!(code(Ready { paused_at: None, ..all.clone() }), Code::NoWorker);
    assert_eq!(code(Ready { paused_at: None, workers: Workers::Gone(at(0)), ..all.clone() }), Code::NoWorker);
    let workers = Workers::There;
    assert_eq!(code(Ready { paused_at: None, workers, ..all.clone() }), Code::QueueAtLimit);
    assert_eq!(code(Ready { paused_at: None, workers, limit: Limit::TooFast, ahead: 1 }), Code::QueueAtLimit);
    let (code, reason) = told(&job, &Standing::Ready(Ready { ahead: 1, ..Ready::default() }));
    assert_eq!(code, Code::Turn);
    assert!(reason.starts_with("waits for its turn: 1 job goes before it in the queue images"), "{reason}");
}

#[test]
fn a_job_that_runs_or_ended_says_so() {
    let running = Standing::Running(Running { worker: "w1".to_owned(), since: at(0) });
    let mut job = stored(JobStatus::Running);
    job.state.attempt = 2;
    assert_eq!(
        told(&job, &running),
        (Code::Running, "runs on w1 since 2023-11-14T22:13:20.000Z, try 2".to_owned())
    );
    job.state.cancel_requested = true;
    assert_eq!(told(&job, &running).0, Code::Cancelling);

    job.state = JobState { status: JobStatus::Failed, attempt: 1, ..JobState::accepted() };
    job.state.error = Some(JobError::new("x", "no such host"));
    assert_eq!(told(&job, &Standing::Told), (Code::Failed, "failed after 1 try: no such host".to_owned()));
    job.state = JobState { status: JobStatus::Queued, due_at: Some(at(60)), ..JobState::accepted() };
    assert_eq!(told(&job, &Standing::Told).0, Code::Delayed);
}

#[test]
fn a_worker_that_has_not_asked_for_longer_than_a_poll_is_gone() {
    assert_eq!(Workers::of_sighting(None, at(0)), Workers::NeverSeen);
    assert_eq!(Workers::of_sighting(Some(at(0)), at(60)), Workers::There);
    assert_eq!(Workers::of_sighting(Some(at(0)), at(100)), Workers::Gone(at(0)));
}

proptest! {
    #[test]
    fn every_job_has_a_sentence_without_a_full_stop_and_a_code(
        status in 0usize..6, due in any::<bool>(), pending in -3i64..3, ahead in 0i64..2000, head in any::<bool>(), which in 0usize..4,
    ) {
        let mut job = stored(JobStatus::WORDS[status].1);
        job.state.due_at = due.then(|| at(5));
        let standing = match which {
            0 => Standing::Told,
            1 => Standing::Held(Held { pending, waits_for: Vec::new(), head: head.then_some(job.job.id), ahead }),
            2 => Standing::Ready(Ready { ahead, ..Ready::default() }),
            _ => Standing::Running(Running { worker: String::new(), since: at(0) }),
        };
        let explained = serde_json::to_value(explain(&job, &standing)).expect("JSON");
        let reason = explained["reason"].as_str().unwrap_or_default();
        prop_assert!(reason.len() > 3 && !reason.ends_with(['.', ':', ' ']), "{}", explained);
        prop_assert!(explained["code"].is_string());
    }
}
