//! `ringback verify worker`: plays the hard cases against a worker, and says how it takes them.
//!
//! For the author of a worker. `stage` is a service made up for this, which only knows leases and can be late, forgetful or away;
//! `cases` are the plays. The worker is started as a child, with `RINGBACK_URL` and `RINGBACK_API_KEY` pointing to the stage.
//! Called by `verify`.
//!
//! Invariant: the worker and all that it started are gone when this ends.

mod cases;
mod stage;

use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Map, Value};
use tokio::process::{Child, Command};

use self::cases::{CASES, Case, Play};
use self::stage::Stage;
use crate::cli::output::Style;
use crate::cli::serve::stop_signal;
use crate::cli::{Failure, output};

const TERM_GRACE: Duration = Duration::from_secs(3);

const EXAMPLES: &str = "\
Examples:
  ringback verify worker -- python3 worker.py
  ringback verify worker --input '{\"file\": \"a.png\"}' -- ./worker --lease 5
  ringback verify worker -- ringback worker --kind verify --lease-s 3 -- sh -c 'sleep $(jq -r .input.sleep_s)'

The worker finds the service by RINGBACK_URL and RINGBACK_API_KEY, asks for jobs of any kind, and must take input.sleep_s \
seconds over each before it succeeds. Let it ask for short leases (lease_s of a few seconds): one case lasts one and a half of them.

Exit codes: 0 it took all cases well, 1 it did not (the reason is said), 2 wrong usage.";

/// What the verb takes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct VerifyWorker {
    /// Fields that each job's input has beside sleep_s, as a JSON object
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = parse_input)]
    input: Input,
    /// Play only these cases
    #[arg(long, value_name = "CASE", value_parser = clap::builder::PossibleValuesParser::new(CASES.iter().map(|case| case.name)))]
    case: Vec<String>,
    /// How long the worker may take for what it has no reason to delay
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// The worker and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    command: Vec<String>,
}

#[derive(Debug, Clone)]
struct Input(Map<String, Value>);

fn parse_input(text: &str) -> Result<Input, String> {
    serde_json::from_str(text).map(Input).map_err(|error| format!("write a JSON object: {error}"))
}

/// Plays all cases, one after another, with one worker.
/// # Errors
/// The worker did not take one well.
pub async fn run(verify: &VerifyWorker, style: Style) -> Result<(), Failure> {
    let stage = Stage::open().map_err(|error| Failure {
        text: format!("no port of 127.0.0.1 can be opened: {error}"),
        code: 70,
    })?;
    let mut child = start(&verify.command, &stage)?;
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let failed = tokio::select! {
        failed = play_all(verify, &stage, &mut child, style) => Ok(failed),
        () = stop_signal() => Err(Failure::no("stopped before the end")),
    };
    let _ = group.map(|group| kill_process_group(group, Signal::TERM));
    let _ = tokio::time::timeout(TERM_GRACE, child.wait()).await;
    let _ = group.map(|group| kill_process_group(group, Signal::KILL));
    stage.close().await;
    match failed? {
        0 => Ok(()),
        1 => Err(Failure::no("the worker failed in 1 case")),
        failed => Err(Failure::no(format!("the worker failed in {failed} cases"))),
    }
}

fn start(command: &[String], stage: &Stage) -> Result<Child, Failure> {
    let (program, arguments) = command.split_first().ok_or_else(|| Failure::usage("name a program"))?;
    Command::new(program)
        .args(arguments)
        .env("RINGBACK_URL", stage.url())
        .env("RINGBACK_API_KEY", stage.key())
        .stdin(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Failure::usage(format!("cannot start {program}: {error}")))
}

async fn play_all(verify: &VerifyWorker, stage: &Stage, child: &mut Child, style: Style) -> usize {
    let chosen = |case: &&Case| verify.case.is_empty() || verify.case.iter().any(|name| name == case.name);
    let mut failed = 0;
    for case in CASES.iter().filter(chosen) {
        let play = Play { stage, input: &verify.input.0, patience: verify.patience };
        let verdict = tokio::select! {
            verdict = play.run(case) => verdict,
            status = child.wait() => {
                let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                Err(format!("the worker ended ({how})"))
            }
        };
        match &verdict {
            Ok(told) => output::say(&format!("{}  {}: {told}", style.good("ok  "), case.name)),
            Err(why) => {
                failed += 1;
                output::say(&format!("{}  {}: {why}\n      {}", style.bad("FAIL"), case.name, case.hint));
            }
        }
        if matches!(child.try_wait(), Ok(Some(_))) {
            break;
        }
    }
    failed
}
