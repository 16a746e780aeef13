//! What PostgreSQL knows: its version, how much it logged and stored, how many transactions wrote. The only SQL here.
//!
//! Transactions are counted by their numbers and not by `pg_stat_database`, whose counters lag by up to ten seconds and
//! count reads as well; a number is given to a transaction that writes, and to no other.

use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Row};

/// Counters at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counters {
    /// Position in the write-ahead log, in bytes.
    pub(super) wal: i64,
    /// The number of the next transaction that writes.
    pub(super) transactions: i64,
    /// Tables with their indexes, in bytes.
    pub(super) tables: i64,
}

/// Connects, and asks for the version and the backend's process id.
pub(super) async fn connect(url: &str) -> Result<(PgConnection, String, u32), sqlx::Error> {
    let options = PgConnectOptions::from_str(url)?.application_name("ringback bench");
    let mut connection = options.connect().await?;
    let row = sqlx::query(
        "-- bench::stats_store::connect\nSELECT current_setting('server_version') AS version, pg_backend_pid() AS pid",
    )
    .fetch_one(&mut connection)
    .await?;
    let version: String = row.try_get("version")?;
    let pid: i32 = row.try_get("pid")?;
    Ok((connection, version, u32::try_from(pid).unwrap_or(0)))
}

/// Reads the counters.
pub(super) async fn read(connection: &mut PgConnection) -> Result<Counters, sqlx::Error> {
    let row = sqlx::query(
        "-- bench::stats_store::read
        SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::int8 AS wal,
          pg_snapshot_xmax(pg_current_snapshot())::text::int8 AS transactions,
          (SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::int8 FROM pg_class c
           JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'ringback' AND c.relkind = 'r') AS tables",
    )
    .fetch_one(connection)
    .await?;
    Ok(Counters {
        wal: row.try_get("wal")?,
        transactions: row.try_get("transactions")?,
        tables: row.try_get("tables")?,
    })
}

/// How many jobs are stored.
pub(super) async fn jobs(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("-- bench::stats_store::jobs\nSELECT count(*) FROM ringback.jobs")
        .fetch_one(connection)
        .await
}

/// How jobs ended.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ends {
    /// Jobs that have an end. The primary key of `job_ends` lets none have two.
    pub(super) ended: i64,
    /// Those that succeeded in their first hand-out.
    pub(super) at_once: i64,
}

/// How the jobs ended that are stored.
pub(super) async fn ends(connection: &mut PgConnection) -> Result<Ends, sqlx::Error> {
    let row = sqlx::query(
        "-- bench::stats_store::ends
        SELECT count(*) AS ended, count(*) FILTER (WHERE status = 1 AND attempt = 1) AS at_once FROM ringback.job_ends",
    )
    .fetch_one(connection)
    .await?;
    Ok(Ends { ended: row.try_get("ended")?, at_once: row.try_get("at_once")? })
}

/// Are there events that fan-out has not seen?
pub(super) async fn has_new_events(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "-- bench::stats_store::has_new_events\nSELECT EXISTS (SELECT FROM ringback.event_inbox)",
    )
    .fetch_one(connection)
    .await
}

/// A transaction that holds a snapshot.
#[derive(Debug)]
pub(super) struct Snapshot {
    connection: PgConnection,
}

impl Snapshot {
    /// Takes one: from now on nothing that is deleted can be cleaned up.
    pub(super) async fn take(url: &str) -> Result<Self, sqlx::Error> {
        let (mut connection, _, _) = connect(url).await?;
        sqlx::query("-- bench::stats_store::Snapshot::take\nBEGIN ISOLATION LEVEL REPEATABLE READ")
            .execute(&mut connection)
            .await?;
        // The snapshot is that of the first query.
        jobs(&mut connection).await?;
        Ok(Self { connection })
    }

    /// Gives it back. Returns how many transactions wrote meanwhile.
    pub(super) async fn release(mut self) -> Result<i64, sqlx::Error> {
        let age = sqlx::query_scalar(
            "-- bench::stats_store::Snapshot::release
            SELECT age(backend_xmin)::int8 FROM pg_stat_activity WHERE pid = pg_backend_pid()",
        )
        .fetch_one(&mut self.connection)
        .await?;
        self.connection.close().await?;
        Ok(age)
    }
}

/// How many jobs wait to be handed out.
pub(super) async fn waiting_jobs(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("-- bench::stats_store::waiting_jobs\nSELECT count(*) FROM ringback.job_ready")
        .fetch_one(connection)
        .await
}

/// How many deliveries wait or are on their way.
pub(super) async fn waiting_deliveries(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "-- bench::stats_store::waiting_deliveries\nSELECT count(*) FROM ringback.delivery_queue",
    )
    .fetch_one(connection)
    .await
}
