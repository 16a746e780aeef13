//! What a database can tell about its own health: facts for `ringback doctor`, and who else works on it for `demo`.
//!
//! Called by `cli::doctor` and `cli::demo`. Reads catalogs, statistics and the first rows of hot tables; judges nothing.
//! All queries work for a user who owns the schema and is no superuser, who then sees less of other users' sessions.
//!
//! Invariant: nothing here writes, takes a lock that anybody could wait for, or reads a whole large table.

use sqlx::{FromRow, Row};
use uuid::Uuid;

use super::{Db, StoreError};
use crate::clock::Timestamp;

/// Rows of a hot table are counted up to this number; beyond it the statistics have to do.
pub const COUNTED_MAX: i64 = 10_000;
/// The small tables with a high turnover, in which dead rows hurt.
pub const HOT_TABLES: [&str; 11] = [
    "job_ready",
    "job_scheduled",
    "job_leases",
    "event_inbox",
    "delivery_queue",
    "fan_out_rest",
    "event_dedup",
    "job_held",
    "job_waits",
    "job_heads",
    "job_calls",
];
/// Who holds what is shown for the worst few.
const HOLDERS_MAX: i64 = 3;

/// The server.
#[derive(Debug, Clone, FromRow)]
pub struct ServerFacts {
    /// As in `150018`.
    pub version_number: i32,
    /// As in `15.18`.
    pub version: String,
    /// A standby, on which nothing can be written.
    pub is_standby: bool,
    /// Its clock.
    pub now: Timestamp,
    /// `synchronous_commit`
    pub synchronous_commit: String,
    /// `fsync`
    pub fsync: String,
    /// `full_page_writes`
    pub full_page_writes: String,
    /// `autovacuum`
    pub autovacuum: String,
    /// Connections that it admits.
    pub max_connections: i32,
    /// Connections that are open, of everyone.
    pub connections: i64,
    /// How many transactions old the oldest row of this database may be.
    pub wraparound_age: i64,
}

/// Asks the server.
/// # Errors
/// [`StoreError`].
pub async fn server(db: &Db) -> Result<ServerFacts, StoreError> {
    let facts = sqlx::query_as(
        "-- db::doctor::server
        SELECT current_setting('server_version_num')::int AS version_number,
          split_part(current_setting('server_version'), ' ', 1) AS version,
          pg_is_in_recovery() AS is_standby, clock_timestamp() AS now,
          current_setting('synchronous_commit') AS synchronous_commit, current_setting('fsync') AS fsync,
          current_setting('full_page_writes') AS full_page_writes, current_setting('autovacuum') AS autovacuum,
          current_setting('max_connections')::int AS max_connections,
          (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
          (SELECT age(datfrozenxid)::bigint FROM pg_database WHERE datname = current_database()) AS wraparound_age",
    )
    .fetch_one(db.pool())
    .await?;
    Ok(facts)
}

/// A session that keeps dead rows from being removed.
#[derive(Debug, Clone, FromRow)]
pub struct Holder {
    /// Its process.
    pub pid: i32,
    /// What it calls itself; empty where that is hidden.
    pub application: String,
    /// `active`, `idle in transaction`, …
    pub state: String,
    /// How long its transaction has been open.
    pub open_s: f64,
    /// How long it has been idle in it; 0: it works.
    pub idle_s: f64,
    /// How many transactions began since its snapshot.
    pub xmin_age: i64,
}

/// The sessions with the oldest transactions, the oldest first.
/// # Errors
/// [`StoreError`].
pub async fn holders(db: &Db) -> Result<Vec<Holder>, StoreError> {
    let holders = sqlx::query_as(
        "-- db::doctor::holders
        SELECT pid, coalesce(application_name, '') AS application, coalesce(state, 'hidden') AS state,
          extract(epoch FROM clock_timestamp() - xact_start)::float8 AS open_s,
          CASE WHEN state LIKE 'idle in transaction%' THEN extract(epoch FROM clock_timestamp() - state_change)::float8 ELSE 0 END AS idle_s,
          coalesce(age(backend_xmin), age(backend_xid), 0)::bigint AS xmin_age
        FROM pg_stat_activity
        WHERE pid <> pg_backend_pid() AND xact_start IS NOT NULL AND backend_type <> 'autovacuum worker'
          AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL OR state LIKE 'idle in transaction%')
        ORDER BY xact_start LIMIT $1",
    )
    .bind(HOLDERS_MAX)
    .fetch_all(db.pool())
    .await?;
    Ok(holders)
}

/// Something without a session that keeps dead rows: a replication slot or a prepared transaction.
#[derive(Debug, Clone, FromRow)]
pub struct Lingering {
    /// What it is called.
    pub name: String,
    /// Whether someone uses it.
    pub is_active: bool,
    /// How many transactions began since.
    pub xmin_age: i64,
    /// How long it has been there, where that is known.
    pub open_s: f64,
}

/// Replication slots that hold old rows.
/// # Errors
/// [`StoreError`].
pub async fn slots(db: &Db) -> Result<Vec<Lingering>, StoreError> {
    let slots = sqlx::query_as(
        "-- db::doctor::slots
        SELECT slot_name::text AS name, active AS is_active, 0::float8 AS open_s,
          greatest(coalesce(age(xmin), 0), coalesce(age(catalog_xmin), 0))::bigint AS xmin_age
        FROM pg_replication_slots WHERE xmin IS NOT NULL OR catalog_xmin IS NOT NULL
        ORDER BY xmin_age DESC LIMIT $1",
    )
    .bind(HOLDERS_MAX)
    .fetch_all(db.pool())
    .await?;
    Ok(slots)
}

/// Prepared transactions that nobody ended.
/// # Errors
/// [`StoreError`].
pub async fn prepared(db: &Db) -> Result<Vec<Lingering>, StoreError> {
    let prepared = sqlx::query_as(
        "-- db::doctor::prepared
        SELECT gid AS name, false AS is_active, age(transaction)::bigint AS xmin_age,
          extract(epoch FROM clock_timestamp() - prepared)::float8 AS open_s
        FROM pg_prepared_xacts ORDER BY prepared LIMIT $1",
    )
    .bind(HOLDERS_MAX)
    .fetch_all(db.pool())
    .await?;
    Ok(prepared)
}

/// A hot table, by the statistics.
#[derive(Debug, Clone, FromRow)]
pub struct HotTable {
    /// Its name.
    pub name: String,
    /// Rows, about.
    pub live: i64,
    /// Dead rows, about.
    pub dead: i64,
    /// How long ago it was vacuumed; `None`: never.
    pub vacuumed_s: Option<f64>,
}

/// The hot tables.
/// # Errors
/// [`StoreError`].
pub async fn hot_tables(db: &Db) -> Result<Vec<HotTable>, StoreError> {
    let tables = sqlx::query_as(
        "-- db::doctor::hot_tables
        SELECT relname::text AS name, n_live_tup AS live, n_dead_tup AS dead,
          extract(epoch FROM clock_timestamp() - greatest(last_autovacuum, last_vacuum))::float8 AS vacuumed_s
        FROM pg_stat_user_tables WHERE schemaname = 'ringback' AND relname = ANY($1) ORDER BY n_dead_tup DESC",
    )
    .bind(&HOT_TABLES[..])
    .fetch_all(db.pool())
    .await?;
    Ok(tables)
}

/// How many rows a hot table has: exact up to [`COUNTED_MAX`], one more than that beyond.
/// # Errors
/// [`StoreError`].
pub async fn counts(db: &Db) -> Result<Vec<(&'static str, i64)>, StoreError> {
    let row = sqlx::query(
        "-- db::doctor::counts
        SELECT (SELECT count(*) FROM (SELECT FROM ringback.job_ready LIMIT $1) t),
          (SELECT count(*) FROM (SELECT FROM ringback.job_scheduled LIMIT $1) t),
          (SELECT count(*) FROM (SELECT FROM ringback.job_leases LIMIT $1) t),
          (SELECT count(*) FROM (SELECT FROM ringback.event_inbox LIMIT $1) t),
          (SELECT count(*) FROM (SELECT FROM ringback.delivery_queue LIMIT $1) t),
          (SELECT count(*) FROM (SELECT FROM ringback.fan_out_rest LIMIT $1) t),
          (SELECT count(*) FROM (SELECT FROM ringback.event_dedup LIMIT $1) t),
          (SELECT count(*) FROM (SELECT FROM ringback.job_held LIMIT $1) t),
          (SELECT count(*) FROM (SELECT FROM ringback.job_waits LIMIT $1) t),
          (SELECT count(*) FROM (SELECT FROM ringback.job_heads LIMIT $1) t),
          (SELECT count(*) FROM (SELECT FROM ringback.job_calls LIMIT $1) t)",
    )
    .bind(COUNTED_MAX + 1)
    .fetch_one(db.pool())
    .await?;
    Ok(HOT_TABLES.iter().enumerate().map(|(at, name)| (*name, row.get(at))).collect())
}

/// The partitions that are missing from today until `days` days ahead, each with how many days ahead it is.
/// # Errors
/// [`StoreError`].
pub async fn missing_partitions(db: &Db, days: i32) -> Result<Vec<(String, i32)>, StoreError> {
    let missing = sqlx::query_as(
        "-- db::doctor::missing_partitions
        SELECT child, ahead FROM unnest($1::text[]) AS parent, generate_series(0, $2) AS ahead,
          LATERAL (SELECT parent || '_' || to_char((now() AT TIME ZONE 'UTC')::date + ahead, 'YYYYMMDD') AS child) c
        WHERE to_regclass('ringback.' || child) IS NULL ORDER BY ahead, child",
    )
    .bind(&super::partitions::PARENTS[..])
    .bind(days)
    .fetch_all(db.pool())
    .await?;
    Ok(missing)
}

/// A process that works on this database.
#[derive(Debug, Clone, FromRow)]
pub struct NodeFacts {
    /// Its id.
    pub id: Uuid,
    /// Host and process.
    pub name: String,
    /// It has said within its time that it lives, and still holds its presence lock.
    pub is_alive: bool,
}

/// The nodes on record.
/// # Errors
/// [`StoreError`].
pub async fn nodes(db: &Db) -> Result<Vec<NodeFacts>, StoreError> {
    // A bigint key of an advisory lock stands in pg_locks as two halves.
    let nodes = sqlx::query_as(
        "-- db::doctor::nodes
        SELECT id, name, expires_at > now() AND EXISTS (
            SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
            WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND d.datname = current_database()
              AND ((l.classid::bigint << 32) | l.objid::bigint) = n.lock_key) AS is_alive
        FROM ringback.nodes n ORDER BY started_at",
    )
    .fetch_all(db.pool())
    .await?;
    Ok(nodes)
}

/// The master keys that have sealed something here.
/// # Errors
/// [`StoreError`].
pub async fn master_keys(db: &Db) -> Result<Vec<i32>, StoreError> {
    let keys = sqlx::query_scalar("-- db::doctor::master_keys\nSELECT key_id FROM ringback.master_keys")
        .fetch_all(db.pool())
        .await?;
    Ok(keys)
}
