//! Runs the program for one job: input, output, progress, and its end, whichever way that comes about.
//!
//! The program has a process group of its own, so that all it started can be stopped with it, and a Ctrl-C reaches us alone.
//! Called by `worker`.
//!
//! Invariant: when this returns, no process of the program's group is running, unless the system refused to kill it.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::desk::{Desk, Held, Why};
use super::outcome::{End, Ended, OUTPUT_MAX, progress};
use crate::cli::output;

const STDERR_KEPT: usize = 16 * 1024;
const PROGRESS_FD: i32 = 3;
/// A line of progress with a checkpoint of the largest size fits.
const LINE_MAX: u64 = 300 * 1024;
/// Progress is sent so often at most.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// Between SIGTERM and SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// What the program started and left behind may hold its output open; that long it is read on.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// Runs the program to its end, or until the desk says that it is to stop.
pub(super) async fn run(desk: &Desk, command: &[String], job: &RawValue, held: &Held) -> End {
    let not_started = |why: String| End {
        ended: Ended::NotStarted(why),
        stdout: Vec::new(),
        stderr: Vec::new(),
        progress: None,
    };
    let (mut child, told) = match start(command, job) {
        Ok(started) => started,
        Err(error) => {
            let text = format!("cannot start {}: {error}", command.first().map_or("", String::as_str));
            output::note(&text);
            return not_started(text);
        }
    };
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut out, mut err, mut last) = (Vec::new(), Vec::new(), None);
    let feed = async {
        if let Some(mut stdin) = stdin.take() {
            // A program that does not read its input closes it, which is no fault.
            let _ = stdin.write_all(job.get().as_bytes()).await;
        }
    };
    let streams = async {
        tokio::join!(
            feed,
            read_head(stdout, &mut out),
            read_tail(stderr, &mut err),
            tell(desk, held, told, &mut last)
        );
    };
    let ended = supervise(&mut child, streams, held, group).await;
    End { ended, stdout: out, stderr: err, progress: last }
}

fn start(command: &[String], job: &RawValue) -> std::io::Result<(Child, pipe::Receiver)> {
    let nothing = || std::io::Error::from(std::io::ErrorKind::InvalidInput);
    let (program, arguments) = command.split_first().ok_or_else(nothing)?;
    let (reader, writer) = std::io::pipe()?;
    let told = pipe::Receiver::from_owned_fd(reader.into())?;
    let (id, attempt) = describe(job);
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("RINGBACK_PROGRESS_FD", PROGRESS_FD.to_string())
        .env("RINGBACK_JOB_ID", id)
        .env("RINGBACK_ATTEMPT", attempt)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    command
        .fd_mappings(vec![FdMapping { parent_fd: writer.into(), child_fd: PROGRESS_FD }])
        .map_err(|_| nothing())?;
    // With the command our writing end of the pipe goes too.
    Ok((command.spawn()?, told))
}

fn describe(job: &RawValue) -> (String, String) {
    let job: Value = serde_json::from_str(job.get()).unwrap_or_default();
    (job["id"].as_str().unwrap_or_default().to_owned(), job["attempt"].to_string())
}

/// Waits for the end of the program and of its output, or stops it.
async fn supervise(
    child: &mut Child,
    streams: impl Future<Output = ()>,
    held: &Held,
    group: Option<Pid>,
) -> Ended {
    tokio::pin!(streams);
    let mut streaming = true;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            () = &mut streams, if streaming => streaming = false,
            why = held.stopped() => {
                stop(child, &mut streams, &mut streaming, group).await;
                return match why {
                    Why::Cancelled => Ended::Cancelled,
                    Why::Lost => Ended::Lost,
                    Why::Stopping => Ended::Stopped,
                };
            }
        }
    };
    if streaming && tokio::time::timeout(OUTPUT_GRACE, &mut streams).await.is_err() {
        output::note("the program left something behind that holds its output open; that is killed");
    }
    signal(group, Signal::KILL);
    match status {
        Ok(status) => Ended::Exited(code(status)),
        Err(error) => Ended::NotStarted(format!("the program's end cannot be told: {error}")),
    }
}

fn code(status: ExitStatus) -> Result<i32, i32> {
    status.code().ok_or_else(|| status.signal().unwrap_or_default())
}

async fn stop(
    child: &mut Child,
    streams: &mut (impl Future<Output = ()> + Unpin),
    streaming: &mut bool,
    group: Option<Pid>,
) {
    signal(group, Signal::TERM);
    let ended = async {
        loop {
            tokio::select! {
                _ = child.wait() => return,
                // It may tell a last checkpoint.
                () = &mut *streams, if *streaming => *streaming = false,
            }
        }
    };
    let in_time = tokio::time::timeout(TERM_GRACE, ended).await.is_ok();
    signal(group, Signal::KILL);
    if !in_time {
        // Killed, it ends at once, unless the system holds it.
        let _ = tokio::time::timeout(TERM_GRACE, child.wait()).await;
    }
    if *streaming {
        let _ = tokio::time::timeout(Duration::from_millis(100), streams).await;
    }
}

fn signal(group: Option<Pid>, signal: Signal) {
    // An error says that nobody is left.
    let _ = group.map(|group| kill_process_group(group, signal));
}

/// The beginning of the output; the rest is read and dropped.
async fn read_head(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = stream.read(&mut chunk).await {
        let room = (OUTPUT_MAX + 1).saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..read.min(room)]);
    }
}

/// The end of the error output; all of it is passed on.
async fn read_tail(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = stream.read(&mut chunk).await {
        output::pass_on(&chunk[..read]);
        kept.extend_from_slice(&chunk[..read]);
        let beyond = kept.len().saturating_sub(STDERR_KEPT);
        kept.drain(..beyond);
    }
}

/// Sends what the program tells, now and then; what was not sent stays in `last`.
async fn tell(desk: &Desk, held: &Held, told: pipe::Receiver, last: &mut Option<Map<String, Value>>) {
    let mut lines = BufReader::new(told);
    let mut line = Vec::new();
    let mut sent: Option<tokio::sync::oneshot::Receiver<()>> = None;
    let mut every = tokio::time::interval(TELL_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            read = read_line(&mut lines, &mut line) => {
                if !read {
                    return;
                }
                if let Some(told) = progress(String::from_utf8_lossy(&line).trim()) {
                    last.get_or_insert_default().extend(told);
                }
                line.clear();
            }
            _ = every.tick(), if last.is_some() => {
                // One at a time: while the service is away nothing piles up.
                if sent.as_mut().is_none_or(|sent| sent.try_recv().is_ok()) && let Some(told) = last.take() {
                    sent = Some(desk.tell(&held.lease, told));
                }
            }
        }
    }
}

/// Reads on until a line is complete; keeps what it has when it is dropped. `false`: that was the last one.
async fn read_line(lines: &mut BufReader<pipe::Receiver>, line: &mut Vec<u8>) -> bool {
    let room = LINE_MAX.saturating_sub(line.len() as u64);
    let before = line.len();
    matches!((&mut *lines).take(room).read_until(b'\n', line).await, Ok(1..)) && line.len() > before
}
