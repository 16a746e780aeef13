//! The command line: the verbs, and what each one's end means to a shell.
//!
//! Called by `main`. A verb is one file. Exit codes: 0 done, 1 the answer is no, 2 wrong usage, 69 something needed is
//! not there (PostgreSQL's programs, the database), 70 a defect or a failed task, 78 a setting is wrong.

pub mod bench;
pub mod client;
pub mod demo;
pub mod doctor;
pub mod guard;
pub mod migrate;
pub mod output;
pub mod serve;
pub mod verify;
pub mod worker;

use std::convert::Infallible;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, Settings};

const EXAMPLES: &str = "\
Examples:
  ringback demo                    The whole loop in one command, nothing started before
  ringback serve                   The service, with a PostgreSQL of its own
  ringback doctor                  What is wrong with machine, settings and database
  ringback verify --headers FILE   Why a receiver refuses a signature
  ringback worker --kind resize -- ./resize.sh
                                   A worker out of any program

Every setting has a flag, a variable and a key in ringback.toml, in that order of precedence.

Exit codes: 0 done, 1 the answer is no, 2 wrong usage, 69 no database or no PostgreSQL programs, 70 a defect, \
78 a setting is wrong.";

/// Async jobs and webhook delivery: the call returns immediately; we ring you back.
#[derive(Debug, Parser)]
#[command(name = "ringback", version, about, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    /// No colours; a terminal gets some otherwise
    #[arg(long, env = "NO_COLOR", global = true, value_parser = is_said, hide_env_values = true)]
    no_color: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the whole loop in one command: a job, its execution, its signed callback
    Demo(demo::Demo),
    /// Run the service: API, dispatcher, executors and scheduler
    Serve(Settings),
    /// Bring the database's schema up to date, and end
    Migrate(Settings),
    /// Check the machine, the settings and the database, and say how to fix what is wrong
    Doctor(doctor::Doctor),
    /// Check the signature of a message that a receiver got, and say why it does not match
    Verify(verify::Verify),
    /// Run a program for each job of a kind: job on stdin, result on stdout
    Worker(worker::Worker),
    /// Measure this machine: rates, latencies, CPU per item, against a bare loop
    Bench(bench::Options),
    /// Stand between the service and a job's program (started by the service, not by people)
    #[command(hide = true)]
    Guard {
        /// The service's process
        #[arg(long)]
        parent: i32,
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
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
    /// The answer is no.
    pub fn no(text: impl std::fmt::Display) -> Self {
        Self { text: text.to_string(), code: 1 }
    }

    /// The command was not written as it must be.
    pub fn usage(text: impl std::fmt::Display) -> Self {
        Self { text: text.to_string(), code: 2 }
    }

    /// Something needed is not there.
    pub fn unavailable(text: impl std::fmt::Display) -> Self {
        Self { text: text.to_string(), code: 69 }
    }

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

/// Whether a switch of the environment is on: anything but nothing, as <https://no-color.org> has it.
#[expect(clippy::unnecessary_wraps, reason = "the shape that clap wants")]
fn is_said(text: &str) -> Result<bool, Infallible> {
    Ok(!matches!(text, "" | "false"))
}

/// Settings that hold, with logs started.
fn resolve(settings: Settings) -> Result<Config, Failure> {
    let config = settings.resolve().map_err(Failure::setting)?;
    crate::telemetry::start(&config).map_err(Failure::setting)?;
    Ok(config)
}

/// Runs a verb.
pub fn run(cli: Cli) -> ExitCode {
    if let Verb::Guard { parent, program } = &cli.verb {
        return guard::run(*parent, program);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::complain(&format!("cannot start: {error}"));
            return ExitCode::from(70);
        }
    };
    let style = output::Style::of_stdout(output::NoColor(cli.no_color));
    let result = runtime.block_on(async {
        match cli.verb {
            Verb::Demo(demo) => demo::run(demo, style).await,
            Verb::Serve(settings) => serve::run(resolve(settings)?).await,
            Verb::Migrate(settings) => migrate::run(resolve(settings)?).await,
            Verb::Doctor(doctor) => doctor::run(doctor, style).await,
            Verb::Verify(verify) => verify::run(&verify, style).await,
            Verb::Worker(worker) => worker::run(worker).await,
            Verb::Bench(options) => bench::run(options).await,
            Verb::Guard { .. } => Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
