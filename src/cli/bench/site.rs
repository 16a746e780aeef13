//! The site of a run: a folder, a fresh PostgreSQL, and the service as a child process, so that the CPU and the memory
//! of each can be told from the load's.
//!
//! Nothing is tuned: the service gets keys, addresses and the database, and else its defaults; PostgreSQL is the
//! embedded one with its durable settings. The child has a process group of its own, so that Ctrl-C reaches us alone
//! and we stop it in order.
//!
//! Invariant: [`Site::clean_up`] leaves neither a process nor a file, whenever it is called.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::cli::Failure;
use crate::config::Config;
use crate::db::embedded::{Embedded, EmbeddedOptions};
use crate::keyfile::new_master_key;
use crate::secret::Secret;
use crate::tenants::new_api_key;

/// Below the default of PostgreSQL, and enough for the service's pool and a look at the counters.
const CONNECTIONS_MAX: u32 = 40;
const START_PATIENCE: Duration = Duration::from_mins(1);
const STOP_PATIENCE: Duration = Duration::from_secs(30);
const CLUSTER_PATH: &str = "cluster-path";

/// Where PostgreSQL comes from.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// An external one for the bench alone, instead of an embedded one.
    pub(super) database_url: Option<String>,
    /// Folder of `initdb` and `postgres`.
    pub(super) pg_bin: Option<PathBuf>,
}

/// The running service.
#[derive(Debug)]
pub(super) struct Service {
    /// Its process.
    pub(super) pid: u32,
    /// Its API.
    pub(super) address: SocketAddr,
    child: Child,
    /// Held open: who prints into a closed pipe dies.
    _stdout: Lines<BufReader<ChildStdout>>,
}

/// Everything that was started.
#[derive(Debug)]
pub(super) struct Site {
    source: Source,
    folder: PathBuf,
    key: Secret<String>,
    master_key: Secret<String>,
    postgres: Option<Embedded>,
    starting: bool,
    service: Option<Service>,
}

fn failed(text: impl std::fmt::Display) -> Failure {
    Failure { text: text.to_string(), code: 69 }
}

impl Site {
    /// Makes the folder; starts nothing.
    pub(super) fn new(source: Source, parent: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(parent).map_err(|error| failed(format!("{}: {error}", parent.display())))?;
        let folder = parent.canonicalize().map_err(failed)?.join(format!("run-{}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(|error| failed(format!("{}: {error}", folder.display())))?;
        let (key, master_key) = (new_api_key().map_err(failed)?, new_master_key().map_err(failed)?);
        Ok(Self { source, folder, key, master_key, postgres: None, starting: false, service: None })
    }

    /// The run's folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The API key.
    pub(super) fn key(&self) -> &str {
        self.key.expose()
    }

    /// Starts a fresh database and the service on it. Returns the database's URL.
    pub(super) async fn start(&mut self) -> Result<String, Failure> {
        self.stop().await?;
        let url = match &self.source.database_url {
            Some(url) => url.clone(),
            None => self.start_postgres().await?,
        };
        self.start_service(&url).await?;
        Ok(url)
    }

    /// The service that was started.
    pub(super) fn service(&self) -> Result<&Service, Failure> {
        self.service.as_ref().ok_or_else(|| failed("the service does not run"))
    }

    async fn start_postgres(&mut self) -> Result<String, Failure> {
        let search_path = Config::defaults().map_err(failed)?.search_path;
        let options = EmbeddedOptions {
            data_dir: self.data_dir(),
            pg_bin: self.source.pg_bin.clone(),
            search_path,
            max_connections: CONNECTIONS_MAX,
            durable: true,
        };
        self.starting = true;
        let postgres = Embedded::start(&options).await.map_err(failed)?;
        let url = postgres.url("ringback");
        let made = postgres.ensure_database("ringback").await;
        self.postgres = Some(postgres);
        self.starting = false;
        made.map_err(failed)?;
        Ok(url)
    }

    async fn start_service(&mut self, url: &str) -> Result<(), Failure> {
        let config = Config::defaults().map_err(failed)?;
        let log = std::fs::File::create(self.folder.join("service.log")).map_err(failed)?;
        let mut child = Command::new(std::env::current_exe().map_err(failed)?)
            .arg("serve")
            .env_clear()
            .env("PATH", config.search_path.unwrap_or_default())
            .env("DATABASE_URL", url)
            .env("RINGBACK_LISTEN", "127.0.0.1:0")
            .env("RINGBACK_API_KEY", self.key.expose())
            .env("RINGBACK_MASTER_KEY", self.master_key.expose())
            .env("RINGBACK_ALLOW_NETWORKS", "127.0.0.0/8")
            // An operator's file in the folder of the caller has no say.
            .current_dir(&self.folder)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let stdout = child.stdout.take().ok_or_else(|| failed("the service has no output"))?;
        let pid = child.id().unwrap_or(0);
        let mut lines = BufReader::new(stdout).lines();
        let told = tokio::time::timeout(START_PATIENCE, address_in(&mut lines)).await;
        let Ok(Ok(Some(address))) = told else {
            let log = std::fs::read_to_string(self.folder.join("service.log")).unwrap_or_default();
            return Err(failed(format!("the service did not start: {}", log.trim_end())));
        };
        self.service = Some(Service { pid, address, child, _stdout: lines });
        Ok(())
    }

    fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Stops what runs and removes the database.
    pub(super) async fn stop(&mut self) -> Result<(), Failure> {
        if let Some(mut service) = self.service.take() {
            service.stop().await.map_err(failed)?;
        }
        if std::mem::take(&mut self.starting) {
            // Interrupted in the middle of a start: a server may run that we do not hold.
            let _ = self.start_postgres().await;
        }
        if let Some(postgres) = self.postgres.take() {
            postgres.stop().await.map_err(failed)?;
        }
        // For root the cluster may stand elsewhere; this file was made with our fresh folder and says where.
        let data = self.data_dir();
        if let Ok(cluster) = std::fs::read_to_string(data.join(CLUSTER_PATH)) {
            remove(Path::new(cluster.trim_end_matches('\n')))?;
        }
        remove(&data)
    }

    /// Stops everything and removes the folder.
    pub(super) async fn clean_up(&mut self) -> Result<(), Failure> {
        self.stop().await?;
        remove(&self.folder)?;
        // Other runs may be in it.
        let _ = self.folder.parent().map(std::fs::remove_dir);
        Ok(())
    }
}

impl Service {
    async fn stop(&mut self) -> io::Result<()> {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw) {
            // It may have ended by itself; then the wait returns at once.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        match tokio::time::timeout(STOP_PATIENCE, self.child.wait()).await {
            Ok(ended) => ended.map(drop),
            Err(_) => self.child.kill().await,
        }
    }
}

fn remove(folder: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(format!("cannot remove {}: {error}", folder.display())))
        }
        _ => Ok(()),
    }
}

/// What the service says when it is ready to be called.
async fn address_in(lines: &mut Lines<BufReader<ChildStdout>>) -> io::Result<Option<SocketAddr>> {
    while let Some(line) = lines.next_line().await? {
        if let Some((_, address)) = line.split_once(" listens on http://") {
            return Ok(address.trim().parse().ok());
        }
    }
    Ok(None)
}
