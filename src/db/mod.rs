//! The database: the pool, named transactions, and what a failed statement means to a caller.
//!
//! Called by every `store`. Knows no table. Connections are few, because work goes to PostgreSQL in batches and no
//! handler holds one while it waits. Every call runs on the main runtime (`supervisor::Tasks`), never in a future that
//! a handler could drop: a future dropped inside `begin()` would poison its connection (sqlx 0.9, issues 4385, 4393).
//!
//! Invariant: no transaction is open during a call to the outside.

pub mod batch;
pub mod doctor;
pub mod embedded;
pub mod gate;
pub mod migrate;
pub mod partitions;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgPool, Postgres, Transaction};

/// How long a request waits for a connection before it is told that the database is not there.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(4);
/// A connection that was idle for longer is asked whether it still lives. No server restarts in less.
const ASKED_AFTER: Duration = Duration::from_millis(200);
/// Connections whose commits do not wait for the disk.
const RELAXED_CONNECTIONS: u32 = 3;

/// How long a stop waits for connections that are in use.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// A transaction; dropped without `commit`, it rolls back.
pub type Tx = Transaction<'static, Postgres>;

/// What a caller can do about a failed statement.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// There is no such object for this tenant.
    #[error("no such object")]
    NotFound,
    /// The object is not in a state that allows this; the text says which it is in.
    #[error("{0}")]
    Conflict(String),
    /// The lease expired or was given to another holder; nothing was changed.
    #[error("the lease is no longer held")]
    LeaseLost,
    /// The database cannot be reached or is overloaded: try again. The outcome may be unknown.
    #[error("the database cannot be reached")]
    Unavailable(#[source] Arc<sqlx::Error>),
    /// A defect of ours: the statement or its data is wrong.
    #[error("a statement failed")]
    Bug(#[source] Arc<sqlx::Error>),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::RowNotFound => Self::NotFound,
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable(Arc::new(error)),
            sqlx::Error::Database(database) if database.code().is_some_and(|code| is_transient(&code)) => {
                Self::Unavailable(Arc::new(error))
            }
            _ => Self::Bug(Arc::new(error)),
        }
    }
}

impl StoreError {
    /// Was a row held by another for longer than the statement was ready to wait?
    pub fn is_lock_timeout(&self) -> bool {
        let Self::Unavailable(error) = self else { return false };
        error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code)
            .is_some_and(|code| code == "55P03")
    }
}

/// SQLSTATEs that go away by themselves: connection (08), rollback by the server (40), resources (53), operator (57),
/// lock not available (55P03). <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn is_transient(code: &str) -> bool {
    matches!(code.get(..2), Some("08" | "40" | "53" | "57")) || code == "55P03"
}

/// The pool. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Db {
    pool: PgPool,
    relaxed: PgPool,
    options: PgConnectOptions,
}

impl Db {
    /// Makes the pool; connects when first asked.
    pub fn new(options: PgConnectOptions, max_connections: u32) -> Self {
        let options = options
            .application_name("ringback")
            .options([
                ("statement_timeout", "30s"),
                ("idle_in_transaction_session_timeout", "15s"),
                ("timezone", "UTC"),
                ("jit", "off"),
                // Plans are pinned. Hot tables are empty at one moment and full at the next, so statistics are always
                // wrong, and a prepared plan that was made for an empty table reads a full one from end to end.
                ("enable_seqscan", "off"),
                ("enable_hashjoin", "off"),
                ("enable_mergejoin", "off"),
                // A bitmap of two indexes reads all of a tenant's entries to find the few of one receiver.
                ("enable_bitmapscan", "off"),
                // A plan is made once: planning over the partitions took twice as long as the work.
                ("plan_cache_mode", "force_generic_plan"),
                // Bounds the wait for a peer that died without a word (tcp only; ignored on Unix sockets).
                ("tcp_keepalives_idle", "15"),
            ])
            .disable_statement_logging();
        let relaxed = options.clone().options([("synchronous_commit", "off")]);
        let pool = |options: PgConnectOptions, max_connections| {
            PgPoolOptions::new()
                .max_connections(max_connections)
                .min_connections(1)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .idle_timeout(Duration::from_mins(5))
                // A busy connection is known to live. One that lay idle may have lost its server meanwhile: it is asked
                // first, so that after a restart of the database nobody is handed a dead one.
                .test_before_acquire(false)
                .before_acquire(|connection, meta| {
                    Box::pin(async move {
                        if meta.idle_for > ASKED_AFTER {
                            connection.ping().await?;
                        }
                        Ok(true)
                    })
                })
                .connect_lazy_with(options)
        };
        Self {
            pool: pool(options.clone(), max_connections.saturating_sub(RELAXED_CONNECTIONS).max(1)),
            relaxed: pool(relaxed, RELAXED_CONNECTIONS),
            options,
        }
    }

    /// For a single statement.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// For statements that need not survive a crash of the database, such as claims and signs of life: losing one only
    /// repeats work, and nobody waits for the disk.
    pub fn relaxed(&self) -> &PgPool {
        &self.relaxed
    }

    /// A pool of one connection, beside the others, for one that is held as long as the process runs. Connects when asked.
    pub fn lone_connection(&self) -> PgPool {
        PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_lazy_with(self.options.clone())
    }

    /// Begins a transaction; call it from a supervised task only.
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        Ok(self.pool.begin().await?)
    }

    /// Begins a transaction that waits 300 ms at most for a row that another holds: one that a user's transaction has
    /// taken (`ringback.publish`, `ringback.submit`) may be held for hours.
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn begin_impatient(&self) -> Result<Tx, StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query("-- db::begin_impatient\nSET LOCAL lock_timeout = '300ms'").execute(&mut *tx).await?;
        Ok(tx)
    }

    /// One round trip: is the database there?
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("-- db::ping\nSELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// The smallest commit there is: a note in the write-ahead log that nobody reads.
    /// # Errors
    /// [`StoreError`].
    pub async fn commit_nothing(pool: &PgPool) -> Result<(), StoreError> {
        let sql = "-- db::commit_nothing\nSELECT pg_logical_emit_message(true, 'ringback', '')";
        sqlx::query(sql).execute(pool).await?;
        Ok(())
    }

    /// Closes all connections; waits for those in use, but not for ever: one that lost its server without a word may
    /// never come back (sqlx 0.9, issue 4349).
    pub async fn close(&self) {
        let both = async { tokio::join!(self.relaxed.close(), self.pool.close()) };
        if tokio::time::timeout(CLOSE_TIMEOUT, both).await.is_err() {
            tracing::warn!("some connections to the database did not close in time");
        }
    }
}

/// JSON text that we stored ourselves.
/// # Errors
/// It is none.
pub fn raw_json(bytes: &[u8]) -> Result<Box<serde_json::value::RawValue>, sqlx::Error> {
    let text = std::str::from_utf8(bytes).map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    serde_json::value::RawValue::from_string(text.to_owned())
        .map_err(|error| sqlx::Error::Decode(Box::new(error)))
}
