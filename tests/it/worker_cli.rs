//! `ringback worker` and `ringback verify worker`, as the real program: what becomes of jobs, whatever happens to a worker.

use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::harness::client::{Client, string};
use crate::harness::process::ServeProcess;
use crate::harness::service::{API_KEY, database};
use crate::harness::worker::Worker;
use crate::harness::{Ringback, eventually};

fn job(input: Value) -> Value {
    json!({ "kind": "do", "input": input, "backoff": {"initial_s": 0.01, "max_s": 0.01} })
}

async fn run(ring: &Client, input: Value) -> Value {
    let id = ring.submit(job(input)).await;
    ring.wait_for_end(&id).await
}

/// What a job's `script` says.
const EVAL: &str =
    r#"script=$(cat); eval "$(printf %s "$script" | sed 's/.*"input":{"sh":"\([^"]*\)"}.*/\1/')""#;

#[tokio::test]
async fn a_program_gets_the_job_and_its_end_says_what_became_of_it() {
    let ring = Ringback::start().await;
    let _worker = Worker::start(&ring.url(), &["--concurrency", "4", "--name", "w7"], EVAL);
    let sh = |text: &str| run(&ring, json!({ "sh": text }));

    let (json, text, poor, flaky, read) = tokio::join!(
        sh("echo '{}'; exit 0"),
        sh("echo hello"),
        sh("echo bad input >&2; exit 65"),
        sh("test $RINGBACK_ATTEMPT -ge 2 || exit 1; echo $RINGBACK_ATTEMPT"),
        sh("echo $script | wc -l"),
    );

    assert_eq!((&json["status"], &json["result"]), (&json!("succeeded"), &json!({})));
    assert_eq!(text["result"], json!({ "output": "hello" }));
    assert_eq!((&poor["status"], &poor["attempt"]), (&json!("failed"), &json!(1)));
    assert_eq!(poor["error"]["message"], "the program ended with exit code 65: bad input");
    assert_eq!((&flaky["status"], &flaky["result"]), (&json!("succeeded"), &json!(2)));
    assert_eq!(read["result"], 1);
    assert_eq!(ring.attempts(&string(&text["id"])).await[0]["worker"], "w7");
}

#[tokio::test]
async fn progress_is_told_while_the_program_runs_and_its_checkpoint_comes_back() {
    let ring = Ringback::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let go = folder.path().join("go");
    let script = format!(
        r#"job=$(cat)
        case "$job" in *'"checkpoint":7'*) echo '"went on"'; exit 0;; esac
        echo 'no JSON' >&3; echo '{{"percent": 40, "message": "half", "checkpoint": 7}}' >&"$RINGBACK_PROGRESS_FD"
        while test -d {0} && ! test -e {0}/go; do sleep 0.05; done
        echo '{{"percent": 80}}' >&3; exit 1"#,
        folder.path().display()
    );
    let _worker = Worker::start(&ring.url(), &[], &script);
    let id = ring.submit(job(json!({}))).await;
    let told = |job: &Value| job["progress"] == json!({ "percent": 40.0, "message": "half" });
    eventually("progress", async || ring.job(&id).await, told).await;
    std::fs::write(&go, "").expect("a file");
    let ended = ring.wait_for_end(&id).await;
    assert_eq!((&ended["result"], &ended["attempt"]), (&json!("went on"), &json!(2)));
    assert_eq!(ended["progress"]["percent"], 80.0, "what was told last goes with the report");
}

#[tokio::test]
async fn a_cancelled_job_and_all_that_it_started_are_stopped() {
    let ring = Ringback::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let alive = folder.path().join("pid");
    let script = format!("sleep 3600 & echo $! > {0}.new; mv {0}.new {0}; wait", alive.display());
    let _worker = Worker::start(&ring.url(), &["--lease-s", "1.5"], &script);
    let id = ring.submit(job(json!({}))).await;
    let pid = eventually("a child", async || std::fs::read_to_string(&alive).ok(), Option::is_some).await;
    let pid = pid.and_then(|pid| Pid::from_raw(pid.trim().parse().expect("a number"))).expect("a process");

    ring.act(&format!("/v1/jobs/{id}/cancel")).await.expect(200);

    assert_eq!(ring.wait_for_end(&id).await["status"], "cancelled");
    let gone = async || is_gone(pid);
    eventually("the child is gone", gone, |gone| *gone).await;
}

/// No process, or one that only waits to be collected.
fn is_gone(pid: Pid) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    state.map_or(true, |text| text.contains(") Z "))
}

#[tokio::test]
async fn at_a_signal_it_finishes_what_it_can_and_gives_the_rest_back() {
    let ring = Ringback::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let script = format!(
        r#"job=$(cat); touch "{0}/$RINGBACK_JOB_ID"
        case "$job" in *quick*) while test -d {0} && ! test -e {0}/go; do sleep 0.05; done;; *) sleep 3600;; esac"#,
        folder.path().display()
    );
    let worker = Worker::start(&ring.url(), &["--concurrency", "2", "--grace", "2s"], &script);
    let (quick, long) = (ring.submit(job(json!("quick"))).await, ring.submit(job(json!("long"))).await);
    let runs = |id: &str| folder.path().join(id).exists();
    eventually("both run", async || runs(&quick) && runs(&long), |both| *both).await;

    worker.signal(Signal::TERM);
    std::fs::write(folder.path().join("go"), "").expect("a file");
    let (code, text) = tokio::task::spawn_blocking(|| worker.wait()).await.expect("it ends");

    assert_eq!(code, Some(0), "{text}");
    assert_eq!(ring.wait_for_end(&quick).await["status"], "succeeded");
    let back = ring.job(&long).await;
    assert_eq!((&back["status"], &back["attempt"]), (&json!("queued"), &json!(0)), "{text}");
}

#[tokio::test]
async fn a_frozen_worker_that_wakes_up_is_too_late() {
    let ring = Ringback::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let script = format!(
        "touch {0}/$RINGBACK_ATTEMPT; while test -d {0} && ! test -e {0}/go; do sleep 0.05; done; echo '\"first\"'",
        folder.path().display()
    );
    let frozen = Worker::start(&ring.url(), &["--lease-s", "1", "--name", "frozen"], &script);
    let id = ring.submit(job(json!({}))).await;
    eventually("it runs", async || folder.path().join("1").exists(), |runs| *runs).await;
    frozen.signal(Signal::STOP);
    // Its program goes on and finishes, but nobody is there to tell of it.
    let other = Worker::start(&ring.url(), &["--name", "other"], "echo '\"second\"'");

    let ended = ring.wait_for_end(&id).await;
    assert_eq!((&ended["result"], &ended["attempt"]), (&json!("second"), &json!(2)));
    std::fs::write(folder.path().join("go"), "").expect("a file");
    drop(other);
    frozen.signal(Signal::CONT);
    // It is well again when it does another job.
    let next = run(&ring, json!({})).await;
    assert_eq!(next["result"], "first");

    assert_eq!(ring.job(&id).await["result"], "second");
    let attempts = ring.attempts(&id).await;
    let told: Vec<_> = attempts.iter().map(|one| (string(&one["worker"]), string(&one["outcome"]))).collect();
    let expected = [("frozen", "crashed"), ("other", "succeeded")];
    assert_eq!(told, expected.map(|(worker, outcome)| (worker.to_owned(), outcome.to_owned())));
}

#[tokio::test]
async fn a_worker_outlives_a_restart_of_the_service() {
    let database = database().await;
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let mut ring = ServeProcess::on(&database.url()).with("RINGBACK_LISTEN", &port.to_string());
    ring.start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let script = format!(
        "touch {0}/runs; while test -d {0} && ! test -e {0}/go; do sleep 0.05; done; echo 1",
        folder.path().display()
    );
    let _worker = Worker::start(&format!("http://{port}"), &[], &script);
    let id = ring.submit(job(json!({}))).await;
    eventually("it runs", async || folder.path().join("runs").exists(), |runs| *runs).await;

    ring.kill();
    std::fs::write(folder.path().join("go"), "").expect("a file");
    ring.start().await;

    let ended = ring.wait_for_end(&id).await;
    assert_eq!(
        (&ended["status"], &ended["attempt"]),
        (&json!("succeeded"), &json!(1)),
        "the report was repeated"
    );
    let next = ring.submit(job(json!({}))).await;
    assert_eq!(ring.wait_for_end(&next).await["status"], "succeeded");
}

#[test]
fn a_worker_that_may_not_work_says_why_and_ends() {
    let worker = Command::new(env!("CARGO_BIN_EXE_ringback"))
        .args([
            "worker",
            "--kind",
            "x",
            "--url",
            "http://127.0.0.1:1",
            "--api-key",
            "k",
            "--lease-s",
            "0",
            "--",
            "true",
        ])
        .output()
        .expect("it ends");
    assert_eq!(worker.status.code(), Some(2), "a lease of no time is wrong usage");
}

#[tokio::test]
async fn a_worker_with_a_wrong_key_ends_with_the_reason() {
    let ring = Ringback::start().await;
    let output = Command::new(env!("CARGO_BIN_EXE_ringback"))
        .args(["worker", "--kind", "http", "--url", &ring.url(), "--api-key", API_KEY, "--", "true"])
        .output()
        .expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("/kinds/0") && text.contains("built in"), "{text}");
}

/// What `ringback verify worker` says of a worker.
fn verify(options: &[&str], worker: &[&str], folder: &Path) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ringback"))
        .args(["verify", "worker"])
        .args(options)
        .arg("--")
        .args(worker)
        .current_dir(folder)
        .output()
        .expect("it ends");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

const SLEEP: &str = r#"sleep "$(sed 's/.*"sleep_s":\([0-9.]*\).*/\1/')""#;

#[tokio::test]
async fn our_own_worker_takes_all_hard_cases_well() {
    let ours = [
        env!("CARGO_BIN_EXE_ringback"),
        "worker",
        "--kind",
        "verify",
        "--lease-s",
        "2",
        "--",
        "sh",
        "-c",
        SLEEP,
    ];
    let told = tokio::task::spawn_blocking(move || verify(&[], &ours, Path::new(env!("CARGO_MANIFEST_DIR"))));
    let (code, text) = told.await.expect("it ends");
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text.matches("ok  ").count(), 6, "{text}");
}

#[tokio::test]
async fn the_worker_in_python_takes_all_hard_cases_well() {
    if Command::new("python3").arg("--version").output().is_err() {
        return;
    }
    let worker = ["python3", "examples/worker-python/worker.py"];
    let told =
        tokio::task::spawn_blocking(move || verify(&[], &worker, Path::new(env!("CARGO_MANIFEST_DIR"))));
    let (code, text) = told.await.expect("it ends");
    assert_eq!(code, Some(0), "{text}");
}

#[tokio::test]
async fn a_worker_that_cuts_corners_is_found_out() {
    if Command::new("python3").arg("--version").output().is_err() {
        return;
    }
    // It extends nothing, repeats nothing, and gives up at the first trouble.
    let sloppy = r#"
import json, os, time, urllib.request
def call(path, body):
    request = urllib.request.Request(os.environ["RINGBACK_URL"] + path, json.dumps(body).encode(),
        {"authorization": "Bearer " + os.environ["RINGBACK_API_KEY"], "content-type": "application/json"})
    return json.load(urllib.request.urlopen(request))
while True:
    for lent in call("/v1/leases", {"worker": "w", "kinds": ["x"], "max": 1, "lease_s": 1, "wait_s": 5})["leases"]:
        time.sleep(min(lent["job"]["input"]["sleep_s"], 4))
        call("/v1/leases/report", {"reports": [{"lease": lent["lease"], "outcome": "succeeded"}]})
"#;
    let folder = tempfile::tempdir().expect("a folder");
    let options = ["--case", "slow", "--case", "cancelled", "--case", "outage", "--patience", "6s"];
    let told =
        tokio::task::spawn_blocking(move || verify(&options, &["python3", "-c", sloppy], folder.path()));
    let (code, text) = told.await.expect("it ends");
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("FAIL  slow: its lease of 1 s ran out while it worked, after 0 extensions"),
        "{text}"
    );
    assert!(text.contains("FAIL  outage: the worker ended"), "{text}");
}
