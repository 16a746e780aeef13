//! The binary: parses the arguments, runs the command, turns its end into an exit code. Everything else is in the
//! library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let command = ringback::cli::Cli::parse();
    ringback::cli::run(command)
}
