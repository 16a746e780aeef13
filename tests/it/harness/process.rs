//! The real program as a child: started, killed, stopped, started again.
//!
//! Its environment is empty but for `PATH` and what the test says; its working folder is an empty one of its own. All
//! that it ever printed is kept, over all starts.
//!
//! Invariant: when it is dropped, neither it nor an embedded server that it started is running any more.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

use super::service::{API_KEY, MASTER_KEY};
use super::{Client, PATIENCE};

/// `ringback serve`, running or not.
#[derive(Debug)]
pub(crate) struct ServeProcess {
    settings: BTreeMap<String, String>,
    folder: tempfile::TempDir,
    child: Option<(Child, Vec<JoinHandle<()>>)>,
    client: Option<Client>,
    printed: Printed,
    logged: Printed,
}

/// How a child ended, and what it printed in that run.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stderr: String,
}

impl Deref for ServeProcess {
    type Target = Client;
    fn deref(&self) -> &Client {
        self.client.as_ref().expect("it was started")
    }
}

impl ServeProcess {
    /// Not started yet; with the tests' keys on the database of this URL.
    pub(crate) fn on(database_url: &str) -> Self {
        Self::bare()
            .with("DATABASE_URL", database_url)
            .with("RINGBACK_API_KEY", API_KEY)
            .with("RINGBACK_MASTER_KEY", MASTER_KEY)
    }

    /// Not started yet; without a database and keys.
    pub(crate) fn bare() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listen = ("RINGBACK_LISTEN", "127.0.0.1:0");
        let networks = ("RINGBACK_ALLOW_NETWORKS", "127.0.0.0/8");
        let settings = [listen, networks].map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let (printed, logged) = (Printed::default(), Printed::default());
        Self { settings, folder, child: None, client: None, printed, logged }
    }

    /// A variable of its environment, from the next start on.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.settings.insert(name.to_owned(), value.to_owned());
    }

    /// Its data folder, if it was not told of another one.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join(".ringback")
    }

    /// All that it printed on the standard output, over all starts.
    pub(crate) fn stdout(&self) -> String {
        self.printed.text()
    }

    /// All that it logged, over all starts.
    pub(crate) fn stderr(&self) -> String {
        self.logged.text()
    }

    /// Starts it and waits until it says where it listens. In embedded mode the client takes the key in the data folder.
    pub(crate) async fn start(&mut self) {
        let from = self.stdout().len();
        self.spawn();
        let printed = self.printed.clone();
        let text = printed.wait_for(from, "listens on http://").await;
        let text = text.unwrap_or_else(|| panic!("it did not start; it logged: {}", self.stderr()));
        let address = text.split("listens on http://").nth(1).and_then(|rest| rest.lines().next());
        let address: SocketAddr = address.expect("an address").trim().parse().expect("an address");
        let key = self.settings.get("RINGBACK_API_KEY").cloned().unwrap_or_else(|| {
            std::fs::read_to_string(self.data_dir().join("api-key")).expect("a key").trim().to_owned()
        });
        self.client = Some(Client::new(address, &key));
    }

    /// Starts it, for a start that is to fail, and waits for its end.
    pub(crate) fn start_in_vain(&mut self) -> Ended {
        self.spawn();
        self.wait()
    }

    fn spawn(&mut self) {
        assert!(self.child.is_none(), "it is running");
        #[expect(
            clippy::disallowed_methods,
            reason = "the tests have no config.rs to read the environment for them"
        )]
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringback"))
            .arg("serve")
            .env_clear()
            .env("PATH", path)
            .envs(&self.settings)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let readers = vec![
            self.printed.follow(child.stdout.take().expect("a pipe")),
            self.logged.follow(child.stderr.take().expect("a pipe")),
        ];
        self.child = Some((child, readers));
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// `kill -9` of its embedded database server.
    pub(crate) fn kill_embedded(&self) {
        let pid = postmaster(&pidfile(&self.data_dir())).expect("an embedded server");
        kill_process(pid, Signal::KILL).expect("it is running");
    }

    /// Its number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it is running").0.id()
    }

    /// SIGTERM, without waiting.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    fn signal(&self, signal: Signal) {
        let (child, _) = self.child.as_ref().expect("it is running");
        let pid = Pid::from_child(child);
        kill_process(pid, signal).expect("it is running");
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> Ended {
        let (mut child, readers) = self.child.take().expect("it is running");
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().expect("a status") {
                break status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("it did not end within {PATIENCE:?}; it logged: {}", self.stderr());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        // An embedded server that outlives it does not hold its pipes, so these end.
        for reader in readers {
            let _ = reader.join();
        }
        Ended { code: status.code(), stderr: self.stderr() }
    }
}

impl Drop for ServeProcess {
    #[expect(clippy::print_stderr, reason = "a failed test shows what the program had to say")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the program logged: {}", self.stderr());
        }
        if let Some((mut child, _)) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        stop_embedded(&self.data_dir());
    }
}

/// Stops an embedded server that was left running by a kill.
fn stop_embedded(data_dir: &Path) {
    let pidfile = pidfile(data_dir);
    let Some(pid) = postmaster(&pidfile) else { return };
    let _ = kill_process(pid, Signal::INT);
    let deadline = Instant::now() + PATIENCE;
    while pidfile.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Where the embedded server says who it is.
fn pidfile(data_dir: &Path) -> PathBuf {
    let elsewhere = std::fs::read_to_string(data_dir.join("cluster-path")).ok();
    let base = elsewhere.map_or_else(|| data_dir.join("postgres"), |path| PathBuf::from(path.trim()));
    base.join("data/postmaster.pid")
}

fn postmaster(pidfile: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(pidfile).ok()?;
    Pid::from_raw(text.lines().next()?.trim().parse().ok()?)
}

/// What comes out of a pipe.
#[derive(Debug, Clone, Default)]
struct Printed {
    text: Arc<Mutex<String>>,
    changed: Arc<watch::Sender<usize>>,
}

impl Printed {
    fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn follow(&self, pipe: impl Read + Send + 'static) -> JoinHandle<()> {
        let this = self.clone();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(pipe);
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
                this.text.lock().unwrap_or_else(PoisonError::into_inner).push_str(&line);
                this.changed.send_modify(|lines| *lines += 1);
                line.clear();
            }
            // Wakes who waits for a line that will not come.
            this.changed.send_modify(|lines| *lines += 1);
        })
    }

    /// All text from `from` on, as soon as it holds `wanted` in whole lines.
    async fn wait_for(&self, from: usize, wanted: &str) -> Option<String> {
        let mut changed = self.changed.subscribe();
        let came = changed.wait_for(|_| self.text()[from..].contains(wanted));
        tokio::time::timeout(PATIENCE, came).await.ok()?.ok()?;
        Some(self.text()[from..].to_owned())
    }
}
