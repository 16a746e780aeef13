//! `ringback worker`: makes a worker of any program. The job comes on its standard input, the result from its standard output.
//!
//! This file asks for jobs as places become free, and drains at a signal. `program` runs one, `outcome` says what its end means,
//! `desk` keeps the leases: extends them, and carries the reports to the service until they are answered. Called by `cli`.
//! Speaks to the service by its public API only, like any other worker.
//!
//! Invariant: whatever was taken is reported or given back, as long as the service can be reached; no program outlives its lease
//! by more than the time to kill it.

mod desk;
mod outcome;
mod program;

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::desk::{Desk, Held};
use super::client::{Client, ClientError};
use super::serve::stop_signal;
use super::{Failure, output};
use crate::secret::Secret;

const WAIT_S: f64 = 20.0;
/// Waits between calls to a service that does not answer.
pub(super) const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long reports are carried on with after the last program ended.
const REPORT_GRACE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  ringback worker --kind resize -- ./resize.sh
  ringback worker --kind report --concurrency 4 --lease-s 60 -- python3 report.py --verbose

The program is started once for each job. It reads the job as JSON on its standard input and writes the result as JSON to \
its standard output (other text becomes {\"output\": …}). Its standard error is passed on; the end of it is told when it fails.

Its exit code says what became of the job: 0 succeeded, 65 failed for good, anything else failed and may be tried again.

It may tell how far it is by lines of JSON on the file descriptor that RINGBACK_PROGRESS_FD names: \
{\"percent\": 40, \"message\": \"…\", \"checkpoint\": …}. The checkpoint is in the job, as \"checkpoint\", when it is tried again.

When the job is cancelled or its lease lost, the program and all that it started get SIGTERM, and SIGKILL 2 seconds later. \
At SIGTERM or SIGINT the worker takes no more jobs, lets running ones finish within --grace, and gives the others back.";

/// What the verb takes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Worker {
    /// A kind of job that it takes; may be given several times
    #[arg(long, required = true, value_name = "KIND")]
    kind: Vec<String>,
    /// Programs that run at the same time
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=500))]
    concurrency: u16,
    /// Only jobs of this queue; may be given several times
    #[arg(long, value_name = "QUEUE")]
    queue: Vec<String>,
    /// How long a job is kept when this worker is not heard of any more
    #[arg(long, default_value_t = 30.0, value_name = "S", value_parser = lease_seconds)]
    lease_s: f64,
    /// How long running programs may take to finish after a signal
    #[arg(long, default_value = "25s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// The worker's name, told with each try [default: the machine's name and this process's number]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The service
    #[arg(long, env = "RINGBACK_URL", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    url: String,
    /// A key with the scope workers:<kind>
    #[arg(long, env = "RINGBACK_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: String,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    command: Vec<String>,
}

fn lease_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "write a number of seconds".to_owned())?;
    if (1.0..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("write 1 to 3600".to_owned()) }
}

/// Works until a signal comes.
/// # Errors
/// The service refuses the key, the kinds, or anything else that will not get better.
pub async fn run(worker: Worker) -> Result<(), Failure> {
    let client = Client::new(&worker.url, Some(Secret::new(worker.api_key.clone())))
        .map_err(|error| Failure { text: error.to_string(), code: 70 })?;
    let (desk, reports) = Desk::new(client.clone(), Duration::from_secs_f64(worker.lease_s));
    let desk = Arc::new(desk);
    let mut keepers = JoinSet::new();
    keepers.spawn(desk::extend(desk.clone()));
    keepers.spawn(desk::report(desk.clone(), reports));
    let mut programs = JoinSet::new();
    let ending = {
        let stop = stop_signal();
        tokio::pin!(stop);
        tokio::select! {
            failure = take_jobs(&worker, &client, &desk, &mut programs) => Err(failure),
            () = &mut stop => Ok(()),
        }
    };
    output::note(&format!("no more jobs are taken; {} are still running", programs.len()));
    let finished = async { while programs.join_next().await.is_some() {} };
    if tokio::time::timeout(worker.grace, finished).await.is_err() {
        output::note(&format!("the grace is over: {} jobs are given back", programs.len()));
        desk.stop_all();
        while programs.join_next().await.is_some() {}
    }
    if tokio::time::timeout(REPORT_GRACE, desk.nothing_left()).await.is_err() {
        output::note("the service does not answer; some reports were not made, and their leases will expire");
    }
    keepers.shutdown().await;
    ending
}

/// Asks for as many jobs as there are free places, for ever.
async fn take_jobs(
    worker: &Worker,
    client: &Client,
    desk: &Arc<Desk>,
    programs: &mut JoinSet<()>,
) -> Failure {
    let mut wait = BACKOFF.0;
    let places = usize::from(worker.concurrency);
    let name = worker.name.clone().unwrap_or_else(own_name);
    output::note(&format!("{name} waits for jobs of {}", worker.kind.join(", ")));
    loop {
        while programs.try_join_next().is_some() {}
        if programs.len() >= places {
            programs.join_next().await;
            continue;
        }
        let wish = json!({
            "worker": name,
            "kinds": worker.kind,
            "queues": if worker.queue.is_empty() { Value::Null } else { json!(worker.queue) },
            "max": places - programs.len(),
            "lease_s": worker.lease_s,
            "wait_s": WAIT_S,
        });
        let asked = Instant::now();
        match client.post_within("/v1/leases", wish.to_string(), Duration::from_secs_f64(WAIT_S + 10.0)).await
        {
            Ok(reply) => {
                wait = BACKOFF.0;
                for lent in reply.lent() {
                    let held = desk.take(&lent.lease);
                    let (desk, command) = (desk.clone(), worker.command.clone());
                    programs.spawn(async move { work(&desk, &command, &lent.job, held).await });
                }
                continue;
            }
            Err(error) if is_final(&error) => return Failure::no(error),
            Err(error) => output::note(&format!("{error}; trying again in {:.1} s", wait.as_secs_f64())),
        }
        // One that failed late has waited already.
        tokio::time::sleep(wait.saturating_sub(asked.elapsed()).max(BACKOFF.0)).await;
        wait = (wait * 2).min(BACKOFF.1);
    }
}

/// Will the same request never be answered better?
fn is_final(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { status, .. } if matches!(status, 400..=499) && !matches!(status, 408 | 409 | 425 | 429))
}

/// Machine and process: who reads of an attempt can find the log.
fn own_name() -> String {
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let machine: String = machine.chars().take(60).collect();
    format!("{machine}-{}", std::process::id())
}

async fn work(desk: &Desk, command: &[String], job: &serde_json::value::RawValue, held: Held) {
    let end = program::run(desk, command, job, &held).await;
    if let Some(report) = outcome::report(&held.lease, end) {
        desk.report(held.lease.clone(), report);
    } else {
        desk.drop_lease(&held.lease);
    }
}
