//! The `command` kind: runs a program that the operator's file names.
//!
//! Never a shell. The program has the environment of the file and nothing else, a process group of its own that is killed
//! whole at the timeout, at a wish to cancel, and when the service dies: between the two stands this program once more
//! (`ringback guard`, `cli/guard.rs`), which watches its parent. A program that leaves its group (`setsid`) is out of reach.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use futures_util::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::{Executor, refused};
use crate::fields::Faults;
use crate::jobs::outcome::TryResult;
use crate::jobs::{Job, JobError, command_input};
use crate::operator::{CommandSpec, Operator};

/// EX_DATAERR of sysexits.h: the input is wrong, and no other try will mend it.
const FAILED_FOR_GOOD: i32 = 65;
/// What the guard ends with when the program cannot be started.
pub const CANNOT_START: i32 = 127;
/// For what a program wrote just before its end.
const AFTER_THE_END: Duration = Duration::from_millis(200);
/// A part of the result is at most so long as JSON: two of them fit into 256 KiB.
const ESCAPED_MAX: usize = 100 * 1024;
/// So much of stderr goes into an error's message.
const MESSAGE_MAX: usize = 500;

/// Runs programs.
#[derive(Debug)]
pub struct CommandExecutor {
    operator: Arc<Operator>,
    guard: PathBuf,
}

/// Kills the whole group, unless it has ended.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // The group may have ended by itself in this moment; then there is nobody to kill.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl CommandExecutor {
    /// For the commands of this file; `guard` is this program.
    pub fn new(operator: Arc<Operator>, guard: PathBuf) -> Self {
        Self { operator, guard }
    }

    async fn call(&self, job: &Job) -> TryResult {
        let mut faults = Faults::default();
        let input = command_input::parse("/input", &job.input, Some(&self.operator.commands), &mut faults);
        let Some(input) = input.filter(|_| faults.is_empty()) else { return refused(faults) };
        let Some(spec) = self.operator.commands.get(&input.name) else { return refused(faults) };
        let Some(args) = command_input::fill(spec, &input.args) else { return refused(faults) };
        let limit = spec.timeout_s.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let run = self.run_program(job, spec, &args, input.stdin);
        let done = match limit {
            Some(limit) => tokio::time::timeout(limit, run).await,
            None => Ok(run.await),
        };
        match done {
            Ok(Ok(done)) => done.result(),
            Ok(Err(error)) => {
                failed(JobError::new("command", format!("the program cannot be run: {error}")), true)
            }
            Err(_) => TryResult::TimedOut,
        }
    }

    async fn run_program(
        &self,
        job: &Job,
        spec: &CommandSpec,
        args: &[String],
        stdin: Vec<u8>,
    ) -> std::io::Result<Done> {
        let folder = match &spec.cwd {
            Some(_) => None,
            None => Some(ScratchFolder::make(job)?),
        };
        let place = spec.cwd.as_deref().or(folder.as_ref().map(|folder| folder.0.as_path()));
        let mut command = Command::new(&self.guard);
        command
            .arg("guard")
            .arg("--parent")
            .arg(std::process::id().to_string())
            .arg("--")
            .arg(&spec.program)
            .args(args);
        command.env_clear().envs(&spec.env);
        if let Some(place) = place {
            command.current_dir(place);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.process_group(0).kill_on_drop(true).spawn()?;
        let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
        let (mut to, from, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let write = async {
            if let Some(mut to) = to.take() {
                // A program that does not read its stdin to the end is free to do so.
                let _ = to.write_all(&stdin).await;
            }
        };
        let wait = async {
            let status = child.wait().await;
            // Whom the program left behind goes too, or its output would have no end. Who left the group may still hold the
            // other end of a pipe: it is not waited for.
            drop(Group(group.0.take()));
            tokio::time::sleep(AFTER_THE_END).await;
            status
        };
        let (mut stdout, mut stderr) = (Output::default(), Output::default());
        let pipes = async {
            tokio::join!(
                write,
                keep(from, spec.max_output, &mut stdout),
                keep(errors, spec.max_output, &mut stderr)
            );
        };
        let status = run_to_the_end(wait, pipes).await?;
        Ok(Done { exit_code: status.code(), stdout, stderr })
    }
}

impl Executor for CommandExecutor {
    fn kind(&self) -> &'static str {
        "command"
    }
    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, TryResult> {
        Box::pin(self.call(job))
    }
}

/// An empty folder for one try.
struct ScratchFolder(PathBuf);

impl ScratchFolder {
    fn make(job: &Job) -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("ringback-{}-{:08x}", job.id, rand::random::<u32>()));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "a command's folder cannot be removed");
        }
    }
}

#[derive(Debug, Default)]
struct Output {
    kept: Vec<u8>,
    truncated: bool,
}

/// Waits for the program (with a moment for what is in its pipes), or for program and pipes, whichever is first.
async fn run_to_the_end(
    wait: impl Future<Output = std::io::Result<ExitStatus>>,
    pipes: impl Future<Output = ()>,
) -> std::io::Result<ExitStatus> {
    let (mut wait, mut pipes) = (std::pin::pin!(wait), std::pin::pin!(pipes));
    tokio::select! {
        status = &mut wait => status,
        () = &mut pipes => wait.await,
    }
}

/// Reads to the end, keeps the beginning. A pipe that breaks has come to its end.
async fn keep(from: Option<impl AsyncRead + Unpin>, max: usize, output: &mut Output) {
    let Some(mut from) = from else { return };
    let mut piece = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        let room = (max - output.kept.len()).min(read);
        output.kept.extend_from_slice(&piece[..room]);
        output.truncated |= room < read;
    }
}

#[derive(Debug)]
struct Done {
    exit_code: Option<i32>,
    stdout: Output,
    stderr: Output,
}

#[derive(Serialize)]
struct CommandResult<'a> {
    exit_code: i32,
    stdout: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_base64: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stdout_truncated: bool,
    stderr: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stderr_truncated: bool,
}

impl Done {
    fn result(self) -> TryResult {
        let stderr = String::from_utf8_lossy(&self.stderr.kept).replace('\0', "\u{fffd}");
        match self.exit_code {
            Some(0) => TryResult::Succeeded(self.in_json(&stderr)),
            Some(CANNOT_START) => {
                let text = format!("the program cannot be started: {}", tail(&stderr, MESSAGE_MAX));
                failed(JobError::new("command", text), true)
            }
            Some(code) => {
                let text = format!("the program ended with exit code {code}: {}", tail(&stderr, MESSAGE_MAX));
                failed(JobError::new("exit_code", text), code != FAILED_FOR_GOOD)
            }
            None => failed(JobError::new("command", "the program was killed by a signal"), true),
        }
    }

    fn in_json(&self, stderr: &str) -> Box<RawValue> {
        // PostgreSQL and many readers cannot hold a NUL in a text. What grows too much by JSON's escapes is base64, too, and
        // of stderr the end.
        let text = super::text_of(&self.stdout.kept, self.stdout.truncated)
            .filter(|text| !text.contains('\0') && escaped_len(text) <= ESCAPED_MAX);
        let end = if escaped_len(stderr) > ESCAPED_MAX { tail(stderr, ESCAPED_MAX / 6) } else { stderr };
        let result = CommandResult {
            exit_code: 0,
            stdout: text,
            stdout_base64: text.is_none().then(|| BASE64_STANDARD.encode(&self.stdout.kept)),
            stdout_truncated: self.stdout.truncated,
            stderr: end,
            stderr_truncated: self.stderr.truncated || end.len() < stderr.trim_end().len(),
        };
        to_raw_value(&result).unwrap_or_else(|_| RawValue::NULL.to_owned())
    }
}

/// How long a text is as JSON.
fn escaped_len(text: &str) -> usize {
    serde_json::to_string(text).map_or(usize::MAX, |text| text.len())
}

fn failed(error: JobError, retryable: bool) -> TryResult {
    TryResult::Failed { error, retryable, retry_after: None }
}

/// The end of a text, where programs say what went wrong.
fn tail(text: &str, max: usize) -> &str {
    let text = text.trim_end();
    let mut at = text.len().saturating_sub(max);
    while !text.is_char_boundary(at) {
        at += 1;
    }
    &text[at..]
}
