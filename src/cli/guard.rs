//! `ringback guard -- PROGRAM …`: stands between the service and the program of a `command` job.
//!
//! The service makes it the head of a process group. It starts the program in that group, ends as the program ends, and kills
//! the group when the service is gone: also after a `kill -9`, which no handler of the service could answer. Not for people.

use std::ffi::OsString;
use std::process::{Command, ExitCode};
use std::time::Duration;

use rustix::process::{Signal, getpgrp, getppid, kill_process_group};

use crate::executors::command::CANNOT_START;

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Runs the program to its end.
#[expect(clippy::print_stderr, reason = "stderr is the program's own channel, and the service reads it")]
pub fn run(parent: i32, program: &[OsString]) -> ExitCode {
    let Some((program, args)) = program.split_first() else { return ExitCode::from(64) };
    // The parent is told, not asked for: it may have died before this line.
    let is_gone = move || getppid().is_none_or(|now| now.as_raw_nonzero().get() != parent);
    if is_gone() {
        return ExitCode::from(1);
    }
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(LOOK_EVERY);
            if is_gone() {
                // This ends the guard as well.
                let _ = kill_process_group(getpgrp(), Signal::KILL);
            }
        }
    });
    match Command::new(program).args(args).status() {
        Ok(status) => {
            use std::os::unix::process::ExitStatusExt;
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            ExitCode::from(u8::try_from(code).unwrap_or(1))
        }
        Err(error) => {
            eprintln!("{}: {error}", program.to_string_lossy());
            ExitCode::from(u8::try_from(CANNOT_START).unwrap_or(1))
        }
    }
}
