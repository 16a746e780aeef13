//! Workers that are killed over their jobs: nothing is lost, each result is recorded once, and what ran twice is on record.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::Ringback;
use crate::harness::client::{Client, list, string};
use crate::harness::worker::Worker;

const WORKERS: usize = 8;

/// What came of it.
#[derive(Debug, Default)]
struct Figures {
    took: Duration,
    killed: usize,
    lost_leases: usize,
    doubled: usize,
    parked: usize,
}

/// So many jobs, and eight workers of which one is killed each time; then all that is on record is held against what ran.
async fn kill_one_each(every: Duration, jobs: usize) -> Figures {
    let ring = Ringback::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let runs = folder.path().join("runs");
    // Each run writes down which try of which job it is, and so does its result.
    let script = format!(
        r#"cat > /dev/null; run="$RINGBACK_JOB_ID $RINGBACK_ATTEMPT"; echo "$run" >> {}; echo "\"$run\"""#,
        runs.display()
    );
    let start = || Worker::start(&ring.url(), &["--concurrency", "8", "--lease-s", "2"], &script);
    let began = Instant::now();
    let accepted = submit(&ring, jobs).await;
    let mut workers: Vec<Worker> = (0..WORKERS).map(|_| start()).collect();
    let mut figures = Figures::default();
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    while is_any(&ring, "queued").await || is_any(&ring, "retrying").await || is_any(&ring, "running").await {
        ticks.tick().await;
        if is_any(&ring, "queued").await {
            let place = figures.killed % WORKERS;
            workers[place].signal(Signal::KILL);
            workers[place] = start();
            figures.killed += 1;
        }
    }
    figures.took = began.elapsed();

    let ran = runs_of(&runs);
    let ended = all_ended(&ring).await;
    assert_eq!(ended.keys().cloned().collect::<BTreeSet<_>>(), accepted, "none is lost");
    assert_eq!(told_of(&ring).await, accepted, "each is told of once");
    for (id, job) in &ended {
        let runs = ran.get(id).map_or(&[][..], Vec::as_slice);
        judge(&ring, job, runs, &mut figures).await;
    }
    figures
}

async fn submit(ring: &Client, jobs: usize) -> BTreeSet<String> {
    let mut accepted = BTreeSet::new();
    for _ in 0..jobs / 1000 {
        let batch = json!({ "jobs": vec![json!({ "kind": "do", "max_attempts": 50 }); 1000] });
        let page = ring.post("/v1/jobs/batch", batch).await.expect(202).json();
        accepted.extend(list(&page).iter().map(|job| string(&job["id"])));
    }
    accepted
}

async fn is_any(ring: &Client, status: &str) -> bool {
    !list(&ring.get(&format!("/v1/jobs?status={status}&limit=1")).await.expect(200).json()).is_empty()
}

/// Which tries of which job a program was started for.
fn runs_of(file: &Path) -> BTreeMap<String, Vec<i64>> {
    let mut runs: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for line in std::fs::read_to_string(file).expect("runs").lines() {
        let (id, attempt) = line.split_once(' ').expect("a job and a try");
        runs.entry(id.to_owned()).or_default().push(attempt.parse().expect("a number"));
    }
    runs
}

async fn all_ended(ring: &Client) -> BTreeMap<String, Value> {
    let (mut ended, mut path) = (BTreeMap::new(), "/v1/jobs?limit=250".to_owned());
    loop {
        let page = ring.get(&path).await.expect(200).json();
        ended.extend(list(&page).into_iter().map(|job| (string(&job["id"]), job)));
        let Some(cursor) = page["next_cursor"].as_str() else { return ended };
        path = format!("/v1/jobs?limit=250&cursor={cursor}");
    }
}

/// The jobs that events tell the end of.
async fn told_of(ring: &Client) -> BTreeSet<String> {
    let (mut told, mut path) = (BTreeSet::new(), "/v1/events?types=job.*&limit=250".to_owned());
    loop {
        let page = ring.get(&path).await.expect(200).json();
        if list(&page).is_empty() {
            return told;
        }
        for event in list(&page) {
            let id = string(&event["data"]["id"]);
            assert!(told.insert(id.clone()), "{id} is told of twice");
        }
        path = format!("/v1/events?types=job.*&limit=250&after={}", string(&page["next_cursor"]));
    }
}

/// A job's end, its tries and its runs must tell the same story.
async fn judge(ring: &Client, job: &Value, runs: &[i64], figures: &mut Figures) {
    let id = string(&job["id"]);
    let tries = job["attempt"].as_i64().expect("a number");
    let distinct: BTreeSet<i64> = runs.iter().copied().collect();
    assert_eq!(distinct.len(), runs.len(), "no try runs twice: {job} {runs:?}");
    let parked = job["status"] == "failed" && job["error"]["code"] == "crashed" && tries >= 3;
    if !parked {
        assert_eq!(job["status"], "succeeded", "{job}");
        assert_eq!(
            job["result"],
            format!("{id} {tries}"),
            "the result of the try that is on record: {runs:?}"
        );
    }
    if tries == 1 {
        assert_eq!(runs, [1], "{job}");
        return;
    }
    let attempts = ring.attempts(&id).await;
    let numbers: Vec<_> = attempts.iter().filter_map(|one| one["number"].as_i64()).collect();
    assert_eq!(numbers, (1..=tries).collect::<Vec<_>>(), "{attempts:?}");
    assert!(distinct.iter().all(|run| numbers.contains(run)), "each run is a try: {runs:?} {attempts:?}");
    let lost = attempts.iter().filter(|one| one["outcome"] == "crashed").count();
    assert_eq!(
        attempts.len() - lost,
        usize::from(!parked),
        "nothing but lost leases, and the end: {attempts:?}"
    );
    figures.lost_leases += lost;
    figures.doubled += usize::from(runs.len() > 1);
    figures.parked += usize::from(parked);
}

#[tokio::test]
async fn eight_workers_of_which_one_is_killed_every_moment_lose_nothing_and_record_each_result_once() {
    let figures = kill_one_each(Duration::from_millis(300), 2000).await;
    assert!(figures.killed >= 3, "{figures:?}");
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn eight_workers_of_which_one_is_killed_every_few_seconds_over_20_000_jobs() {
    let figures = kill_one_each(Duration::from_secs(3), 20_000).await;
    println!("{figures:?}");
    assert!(figures.killed >= 10 && figures.lost_leases > 0, "{figures:?}");
}
