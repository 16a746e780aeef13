//! The embedded PostgreSQL: the server that runs when no `DATABASE_URL` is given.
//!
//! A thin layer over the system's own `initdb` and `postgres`: `find` looks for them, `place` decides where the
//! cluster lives and who owns it, `server` creates, starts, adopts and stops it, `error` says what to do.
//! Called by `main` before the pool is opened and after it is closed, and by the harness of the tests.
//! Reads no environment, downloads nothing, knows no table of ours. Nothing here listens on the network.
//!
//! Invariant: at most one server runs on a cluster. It is created, started and stopped only under the exclusive lock
//! `start.lock`; each user of it holds a shared lock on `lock`, and only the last user stops it. When this
//! process is killed the server lives on, and the next start adopts it.

mod create;
mod error;
mod find;
mod look;
mod pidfile;
mod place;
mod server;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use tokio::sync::Mutex;

pub use error::EmbeddedError;
pub use look::{Look, look};
use place::Place;
use server::{Server, Settings};

/// The superuser of the cluster, and the user that [`Embedded::connect_options`] connects as.
pub const USER: &str = "ringback";

/// What the embedded server needs to know; the environment has been read elsewhere.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// The data folder (`RINGBACK_DATA_DIR`); created when it does not exist.
    pub data_dir: PathBuf,
    /// The folder of `initdb` and `postgres` (`RINGBACK_PG_BIN`); nothing else is tried when it is given.
    pub pg_bin: Option<PathBuf>,
    /// `PATH`, where the programs are looked for first.
    pub search_path: Option<OsString>,
    /// How many connections the server admits; only a server that is started (not adopted) takes it.
    pub max_connections: u32,
    /// Whether commits survive a power cut. False is for tests only: it turns `fsync` off.
    pub durable: bool,
}

/// A running server and this process' share in it.
///
/// Dropped without [`Embedded::stop`] it leaves the server running, as a `kill -9` does; the next start adopts it.
#[must_use = "a server that is not stopped runs on after this process"]
pub struct Embedded {
    place: Place,
    settings: Settings,
    server: Mutex<Server>,
    socket_dir: PathBuf,
    port: u16,
    version: String,
    adopted: bool,
    holder: File,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").field("version", &self.version).finish_non_exhaustive()
    }
}

impl Embedded {
    /// Makes sure that a server runs on the data folder and has answered a query: adopts the one that runs already,
    /// else starts one, creating the cluster first if there is none.
    ///
    /// # Errors
    /// Each variant of [`EmbeddedError`] says what to do about it.
    pub async fn start(options: &EmbeddedOptions) -> Result<Self, EmbeddedError> {
        let data_dir = place::open_data_dir(&options.data_dir)?;
        let starting = place::lock_exclusive(&data_dir.join(place::START_LOCK)).await?;
        let holder = place::lock_shared(&data_dir.join(place::HOLDER_LOCK)).await?;
        let place = Place::open(&data_dir)?;
        let settings = Settings {
            pg_bin: options.pg_bin.clone(),
            search_path: options.search_path.clone(),
            max_connections: options.max_connections,
            durable: options.durable,
        };
        let (server, version) = server::adopt_or_start(&place, &settings).await?;
        drop(starting);
        Ok(Self {
            socket_dir: server.socket_dir.clone(),
            port: server.port,
            adopted: server.adopted(),
            server: Mutex::new(server),
            place,
            settings,
            version,
            holder,
        })
    }

    /// How to connect to a database of this server, over its Unix socket.
    pub fn connect_options(&self, database: &str) -> PgConnectOptions {
        connect_options(&self.socket_dir, self.port).database(database)
    }

    /// The same as a URL, for `psql` and for other programs of the same user.
    pub fn url(&self, database: &str) -> String {
        let socket_dir = self.socket_dir.to_string_lossy();
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("host", &socket_dir)
            .append_pair("port", &self.port.to_string())
            .append_pair("user", USER)
            .finish();
        format!("postgres:///{database}?{query}")
    }

    /// Creates the database unless it is there. `name` is ours, never a user's.
    ///
    /// # Errors
    /// [`EmbeddedError::Query`] when the server refuses.
    pub async fn ensure_database(&self, name: &str) -> Result<(), EmbeddedError> {
        let mut connection = self.connect_options("postgres").connect().await?;
        let there: bool = sqlx::query_scalar(
            "-- embedded::ensure_database\nSELECT EXISTS (SELECT FROM pg_database WHERE datname = $1 /* name */)",
        )
        .bind(name)
        .fetch_one(&mut connection)
        .await?;
        if !there {
            let sql = format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\""));
            let created = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
            created.map(drop).or_else(ignore_duplicate)?;
        }
        connection.close().await?;
        Ok(())
    }

    /// The server's version, as in `15.18`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether the server was running already when this process came.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// The folder of the cluster: `data`, `socket` and `server.log` are in it. It is below the data folder, except
    /// for root with a data folder that the server's own user cannot reach.
    pub fn cluster_dir(&self) -> &Path {
        &self.place.base
    }

    /// Whether the cluster had to be put outside the data folder; worth a sentence to the operator.
    pub fn is_elsewhere(&self) -> bool {
        !self.place.base.starts_with(&self.place.data_dir)
    }

    /// Starts the server again if it has died (killed for want of memory, or by hand); true when that was needed.
    /// A look at one process, so it may be called every second.
    ///
    /// # Errors
    /// As [`Embedded::start`].
    pub async fn keep_running(&self) -> Result<bool, EmbeddedError> {
        let mut server = self.server.lock().await;
        if server.is_running(&self.place) {
            return Ok(false);
        }
        let _starting = place::lock_exclusive(&self.place.data_dir.join(place::START_LOCK)).await?;
        let (again, _) = server::adopt_or_start(&self.place, &self.settings).await?;
        *server = again;
        Ok(true)
    }

    /// Stops the server (fast: open transactions are rolled back), unless another process still uses it.
    ///
    /// # Errors
    /// [`EmbeddedError::StillRunning`] when it does not end, [`EmbeddedError::Io`] when it cannot be told to.
    pub async fn stop(self) -> Result<(), EmbeddedError> {
        let _starting = place::lock_exclusive(&self.place.data_dir.join(place::START_LOCK)).await?;
        // The shared lock becomes an exclusive one only when nobody else shares it. That this is not atomic is
        // harmless: newcomers wait for `start.lock`, and who fails here wants to leave anyway.
        if !place::is_last_holder(&self.holder)? {
            return Ok(());
        }
        self.server.lock().await.stop(&self.place).await
    }
}

/// Everything is set here, so that no `PG*` variable of the environment has a say.
fn connect_options(socket_dir: &Path, port: u16) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(socket_dir)
        .port(port)
        .username(USER)
        .ssl_mode(PgSslMode::Disable)
}

/// Two processes may create the same database at once; the second one's refusal is what it wanted.
fn ignore_duplicate(error: sqlx::Error) -> Result<(), sqlx::Error> {
    let code = error.as_database_error().and_then(|database| database.code().map(|code| code.to_string()));
    // 42P04 duplicate_database; 23505 is the same seen by the unique index a moment earlier.
    if matches!(code.as_deref(), Some("42P04" | "23505")) { Ok(()) } else { Err(error) }
}
