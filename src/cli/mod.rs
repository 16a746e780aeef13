//! The command line: the verbs, and what each one's end means to a shell.
//!
//! Called by `main`. A verb is one file. Exit codes: 0 done, 1 the answer is no, 2 wrong usage, 69 something needed is
//! not there (PostgreSQL's programs, the database), 70 a defect or a failed task, 78 a setting is wrong.

pub mod bench;
pub mod migrate;
pub mod output;
pub mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, Settings};

/// Async jobs and webhook delivery: the call returns immediately; we ring you back.
#[derive(Debug, Parser)]
#[command(name = "ringback", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the service: API, dispatcher, executors and scheduler
    Serve(Settings),
    /// Bring the database's schema up to date, and end
    Migrate(Settings),
    /// Measure this machine: rates, latencies, CPU per item, against a bare loop
    Bench(bench::Options),
}

/// How a verb failed: what to say, and with which code to end.
#[derive(Debug)]
pub struct Failure {
    /// For the standard error.
    pub text: String,
    /// For the shell.
    pub code: u8,
}

impl Failure {
    /// A setting is wrong.
    pub fn setting(text: impl std::fmt::Display) -> Self {
        Self { text: text.to_string(), code: 78 }
    }
}

impl From<crate::app::StartError> for Failure {
    fn from(error: crate::app::StartError) -> Self {
        Self { code: error.exit_code(), text: error.to_string() }
    }
}

/// Settings that hold, with logs started.
fn resolve(settings: Settings) -> Result<Config, Failure> {
    let config = settings.resolve().map_err(Failure::setting)?;
    crate::telemetry::start(&config).map_err(Failure::setting)?;
    Ok(config)
}

/// Runs a verb.
pub fn run(cli: Cli) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::complain(&format!("cannot start: {error}"));
            return ExitCode::from(70);
        }
    };
    let result = runtime.block_on(async {
        match cli.verb {
            Verb::Serve(settings) => serve::run(resolve(settings)?).await,
            Verb::Migrate(settings) => migrate::run(resolve(settings)?).await,
            Verb::Bench(options) => bench::run(options).await,
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::complain(&failure.text);
            ExitCode::from(failure.code)
        }
    }
}
