//! The server process of the embedded PostgreSQL: create its cluster, start, adopt, ask, stop.
//!
//! Called by `Embedded`, always under the exclusive `start.lock`. The server is a child with a process group of its
//! own, so Ctrl-C at the terminal does not reach it; a thread waits for it, so it never becomes a zombie. Its
//! output goes to a file, so it never blocks on a pipe.
//! Chooses no folders (`place`) and no programs (`find`).
//!
//! Invariant: `postmaster.pid` is read before anything is started, and a server counts as running only when that
//! file names a live `postgres` of this very data directory. An answering socket proves nothing: the server behind it
//! may be another one than the one just started.

use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::watch;
use tokio::time::sleep;

use super::error::{EmbeddedError, io};
use super::find::{self, Binaries};
use super::pidfile::{Owner, PidFile};
use super::place::{self, Account, Place};

/// No TCP port: only the name of the socket contains it.
const PORT: u16 = 5432;
const POLL: Duration = Duration::from_millis(5);
/// Recovery after a crash may read gigabytes, so as long as the process lives we wait.
const START_PATIENCE: Duration = Duration::from_mins(5);
const STOP_PATIENCE: Duration = Duration::from_secs(30);
const SILENCE_PATIENCE: Duration = Duration::from_secs(3);
/// After a crash the old server's children may need a moment to see that they are orphans.
const RETRIES_AFTER_CRASH: u32 = 10;
const RETRY_PAUSE: Duration = Duration::from_millis(200);
const LOG_KEPT: u64 = 4 * 1024 * 1024;
const LOG_SHOWN: usize = 20;

/// How to run a server when one must be started.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) pg_bin: Option<PathBuf>,
    pub(super) search_path: Option<std::ffi::OsString>,
    pub(super) max_connections: u32,
    pub(super) durable: bool,
}

/// A server that has answered a query.
#[derive(Debug)]
pub(super) struct Server {
    pid: i32,
    pub(super) socket_dir: PathBuf,
    pub(super) port: u16,
    /// How our own child ended; `None` for a server that was adopted.
    exit: Option<watch::Receiver<Option<ExitStatus>>>,
}

impl Server {
    /// Whether another process had started it.
    pub(super) fn adopted(&self) -> bool {
        self.exit.is_none()
    }

    /// Whether the process is still there.
    pub(super) fn is_running(&self, place: &Place) -> bool {
        match &self.exit {
            Some(exit) => exit.borrow().is_none(),
            None => PidFile::read(&place.pgdata)
                .is_some_and(|file| file.pid == self.pid && file.owner(&place.pgdata) == Owner::OurServer),
        }
    }

    /// Tells the server to stop at once but cleanly, and waits until its process has ended.
    pub(super) async fn stop(&mut self, place: &Place) -> Result<(), EmbeddedError> {
        // Another user of the cluster may have started it again after a crash.
        if let Some(file) = PidFile::read(&place.pgdata).filter(|file| file.pid != self.pid) {
            (self.pid, self.exit) = (file.pid, None);
        }
        for signal in [Signal::INT, Signal::QUIT] {
            if !self.is_running(place) {
                return Ok(());
            }
            if let Some(pid) = Pid::from_raw(self.pid) {
                let sent = kill_process(pid, signal);
                if !matches!(sent, Ok(()) | Err(rustix::io::Errno::SRCH)) {
                    sent.map_err(|error| io("stop the server of", &place.pgdata)(error.into()))?;
                }
            }
            let asked = Instant::now();
            while asked.elapsed() < STOP_PATIENCE {
                if !self.is_running(place) {
                    return Ok(());
                }
                sleep(POLL).await;
            }
        }
        Err(EmbeddedError::StillRunning { pid: self.pid, waited: 2 * STOP_PATIENCE })
    }

    /// Waits until the server says that it is ready and has answered a query; returns its version.
    async fn wait_until_it_answers(
        &mut self,
        place: &Place,
        log_start: u64,
    ) -> Result<String, EmbeddedError> {
        let failed = |why: String| EmbeddedError::StartFailed {
            why,
            log: place.log.clone(),
            last_lines: last_lines(&place.log, log_start),
        };
        let began = Instant::now();
        let mut refusal = None;
        while began.elapsed() < START_PATIENCE {
            if let Some(status) = self.exit.as_ref().and_then(|exit| *exit.borrow()) {
                return Err(failed(format!("it ended with {status}")));
            }
            let file = PidFile::read(&place.pgdata).filter(|file| file.pid == self.pid);
            if file.as_ref().is_some_and(PidFile::is_ready) {
                match self.ask_version().await {
                    Ok(version) => return Ok(version),
                    Err(error) => refusal = Some(error),
                }
            }
            if self.adopted() && !self.is_running(place) {
                return Err(failed("it ended while it was looked at".to_owned()));
            }
            sleep(POLL).await;
        }
        let why = refusal.map_or_else(String::new, |error| format!("; the last refusal: {error}"));
        Err(failed(format!("no answer within {START_PATIENCE:?}{why}")))
    }

    /// Makes the log's segments before anybody waits for them: each is begun, and a checkpoint keeps it for later.
    async fn lay_out_log(&self) -> Result<(), sqlx::Error> {
        let mut connection =
            super::connect_options(&self.socket_dir, self.port).database("postgres").connect().await?;
        for _ in 0..LOG_SEGMENTS {
            // A segment in which nothing stands is not left.
            let next = "SELECT pg_logical_emit_message(false, 'ringback', ''); SELECT pg_switch_wal()";
            sqlx::raw_sql(next).execute(&mut connection).await?;
        }
        sqlx::raw_sql("CHECKPOINT").execute(&mut connection).await?;
        connection.close().await
    }

    async fn ask_version(&self) -> Result<String, sqlx::Error> {
        let mut connection =
            super::connect_options(&self.socket_dir, self.port).database("postgres").connect().await?;
        let version: String = sqlx::query_scalar("SHOW server_version").fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(version.split_whitespace().next().unwrap_or_default().to_owned())
    }
}

/// Segments of the write-ahead log, 16 MB each, that are there from the first start on and are used again and again: to make
/// a new one takes 20 ms, during which nothing is committed.
const LOG_SEGMENTS: usize = 16;

/// The one way to a running server. The caller holds `start.lock`.
pub(super) async fn adopt_or_start(
    place: &Place,
    settings: &Settings,
) -> Result<(Server, String), EmbeddedError> {
    let before = PidFile::read(&place.pgdata);
    if let Some(file) = &before
        && let Some(adopted) = adopt(place, file).await?
    {
        return Ok(adopted);
    }
    let binaries = find_binaries(place, settings).await?;
    let is_new = !place.pgdata.join("PG_VERSION").exists();
    if is_new {
        super::create::create_cluster(place, &binaries, settings.durable).await?;
    }
    let mut tries = if before.is_some() { RETRIES_AFTER_CRASH } else { 0 };
    loop {
        let log_start = rotate_log(&place.log)?;
        let mut server = spawn(place, settings, &binaries)?;
        match server.wait_until_it_answers(place, log_start).await {
            Ok(version) => {
                if let (true, Err(error)) = (is_new && settings.durable, server.lay_out_log().await) {
                    tracing::warn!(%error, "commits will wait now and then while the database makes its log longer");
                }
                return Ok((server, version));
            }
            Err(EmbeddedError::StartFailed { .. }) if tries > 0 && !server.is_running(place) => {
                tries -= 1;
                sleep(RETRY_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Takes over the server that the file names. `None`: it is gone, and another may be started.
async fn adopt(place: &Place, file: &PidFile) -> Result<Option<(Server, String)>, EmbeddedError> {
    let in_use = |why| EmbeddedError::InUse { cluster: place.pgdata.clone(), pid: file.pid, why };
    let socket_dir = match &file.socket_dir {
        Some(dir) => dir.clone(),
        None => place.socket_dir(PORT)?,
    };
    let mut server = Server { pid: file.pid, socket_dir, port: file.port.unwrap_or(PORT), exit: None };
    match file.owner(&place.pgdata) {
        Owner::OurServer => {}
        Owner::MovedServer => return Err(in_use("it was started when the folder had another path")),
        Owner::Nobody => {
            // Containers that share the folder do not see each other's processes, but their sockets.
            if !falls_silent(&server.socket_dir.join(format!(".s.PGSQL.{}", server.port))).await {
                return Err(in_use("its process is not seen from here, but its socket answers"));
            }
            super::pidfile::disown(&place.pgdata, file)?;
            return Ok(None);
        }
    }
    let began = Instant::now();
    while PidFile::read(&place.pgdata).is_some_and(|file| file.is_stopping()) && server.is_running(place) {
        if began.elapsed() > STOP_PATIENCE {
            return Err(EmbeddedError::StillRunning { pid: file.pid, waited: STOP_PATIENCE });
        }
        sleep(POLL).await;
    }
    if !server.is_running(place) {
        return Ok(None);
    }
    match server.wait_until_it_answers(place, u64::MAX).await {
        Ok(version) => Ok(Some((server, version))),
        Err(_) if !server.is_running(place) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether nobody listens on the socket. A process that is being killed has no arguments any more while its socket is
/// still open, so a moment is given to it.
async fn falls_silent(socket: &Path) -> bool {
    let began = Instant::now();
    while std::os::unix::net::UnixStream::connect(socket).is_ok() {
        if began.elapsed() > SILENCE_PATIENCE {
            return false;
        }
        sleep(POLL).await;
    }
    true
}

async fn find_binaries(place: &Place, settings: &Settings) -> Result<Binaries, EmbeddedError> {
    let file = place.pgdata.join("PG_VERSION");
    let needed = match std::fs::read_to_string(&file) {
        Ok(text) => Some(text.trim().parse().map_err(|_| EmbeddedError::InTheWay {
            path: file,
            why: "not the version of a PostgreSQL that Ringback can use",
        })?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(io("read", &file)(error)),
    };
    find::find(settings, place.account.as_ref(), &place.pgdata, needed).await
}

fn spawn(place: &Place, settings: &Settings, binaries: &Binaries) -> Result<Server, EmbeddedError> {
    let socket_dir = place.socket_dir(PORT)?;
    // Nobody listens: this was made sure of above. A socket's own lock file may name a pid that now is another's.
    for name in [format!(".s.PGSQL.{PORT}"), format!(".s.PGSQL.{PORT}.lock")] {
        let _ = std::fs::remove_file(socket_dir.join(name));
    }
    let program = binaries.dir.join("postgres");
    let mut command = command(&program, place.account.as_ref());
    command.arg("-D").arg(&place.pgdata).arg("-k").arg(&socket_dir).arg("-p").arg(PORT.to_string());
    for (name, value) in server_settings(settings) {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    let log = place::open_own_file(&place.log)?;
    let errors = log.try_clone().map_err(io("open", &place.log))?;
    command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
    let mut child = command.spawn().map_err(io("run", &program))?;
    let pid = child.id().cast_signed();
    let (ended, exit) = watch::channel(None);
    // A thread and not a task: it must outlive every runtime, and it takes the exit status wherever we are.
    std::thread::Builder::new()
        .name("embedded-postgres".to_owned())
        .spawn(move || {
            let status = child.wait().unwrap_or_default();
            ended.send_replace(Some(status));
        })
        .map_err(io("wait for", &program))?;
    Ok(Server { pid, socket_dir, port: PORT, exit: Some(exit) })
}

fn server_settings(settings: &Settings) -> Vec<(&'static str, String)> {
    let durable = if settings.durable { "on" } else { "off" };
    let mut all = vec![
        ("cluster_name", "ringback".to_owned()),
        ("listen_addresses", String::new()),
        ("unix_socket_permissions", "0700".to_owned()),
        ("max_connections", settings.max_connections.max(10).to_string()),
        ("shared_buffers", "128MB".to_owned()),
        ("fsync", durable.to_owned()),
        ("synchronous_commit", durable.to_owned()),
        ("full_page_writes", durable.to_owned()),
        // Checkpoints by time: each one makes every page be logged in full once more.
        ("max_wal_size", "2GB".to_owned()),
        ("min_wal_size", format!("{}MB", LOG_SEGMENTS * 16)),
        ("checkpoint_timeout", "15min".to_owned()),
        ("wal_compression", "on".to_owned()),
        // Compiling costs more than any of our statements.
        ("jit", "off".to_owned()),
        ("timezone", "UTC".to_owned()),
        ("log_timezone", "UTC".to_owned()),
        ("logging_collector", "off".to_owned()),
        ("log_checkpoints", "off".to_owned()),
        // What callers send us stays out of the log: no statements, no "Key (…)=(…)".
        ("log_min_error_statement", "panic".to_owned()),
        ("log_error_verbosity", "terse".to_owned()),
    ];
    if !settings.durable {
        all.push(("wal_level", "minimal".to_owned()));
        all.push(("max_wal_senders", "0".to_owned()));
    }
    all
}

/// A program with a clean environment (our keys are in ours), in a folder that the user can enter.
pub(super) fn command(program: &Path, account: Option<&Account>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").current_dir("/");
    // TZ spares initdb a search through all zones; LC_ALL is required on macOS, where its absence starts a thread.
    command.env("LC_ALL", "C").env("TZ", "UTC");
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid);
    }
    command
}

/// Puts a log that has grown aside and returns where the next line will be.
fn rotate_log(log: &Path) -> Result<u64, EmbeddedError> {
    let length = std::fs::metadata(log).map_or(0, |meta| meta.len());
    if length < LOG_KEPT {
        return Ok(length);
    }
    std::fs::rename(log, log.with_extension("log.old")).map_err(io("rename", log))?;
    Ok(0)
}

fn last_lines(log: &Path, start: u64) -> String {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(log).and_then(|mut file| {
        let start = start.min(file.metadata()?.len());
        file.seek(SeekFrom::Start(start))?;
        file.take(LOG_KEPT).read_to_end(&mut bytes)
    });
    if let Err(error) = read {
        return format!("(cannot be read: {error})");
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_SHOWN)..].join("\n")
}

/// Whether a process of this number exists, whosever it is.
pub(super) fn is_alive(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn only_tests_run_without_fsync() {
        let of = |durable| {
            let settings = Settings { pg_bin: None, search_path: None, max_connections: 3, durable };
            server_settings(&settings).into_iter().find(|(name, _)| *name == "fsync").unwrap().1
        };
        assert_eq!((of(true).as_str(), of(false).as_str()), ("on", "off"));
    }

    #[test]
    fn the_end_of_the_log_is_shown_from_this_start_on() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("server.log");
        let lines: Vec<String> = (0..100).map(|n| format!("line {n}")).collect();
        std::fs::write(&log, format!("an earlier start\n{}\n", lines.join("\n"))).unwrap();
        assert_eq!(last_lines(&log, 0), lines[80..].join("\n"));
        std::fs::write(&log, "an earlier start\nthis one\n").unwrap();
        assert_eq!(last_lines(&log, 17), "this one");
        assert_eq!(last_lines(&log, u64::MAX), "");
    }
}
