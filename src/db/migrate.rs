//! Migrations: brings the schema `ringback` to what this build knows, or refuses.
//!
//! Called at the start of `serve` and `demo`, and by `ringback migrate`. One process migrates at a time (an advisory
//! lock); a migration that would wait for a table lock behind someone's long query gives up after two seconds and
//! tries again, so that it never holds up that table's readers in turn.
//!
//! Invariant: a schema newer than this build, or one whose history was changed, is never touched.

use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Connection, PgConnection, Row};

use super::Db;

/// "ringback" in ASCII.
const LOCK_KEY: i64 = 0x7269_6e67_6261_636b;
const OLDEST_SERVER: i32 = 140_000;
const LOCK_WAIT: Duration = Duration::from_mins(1);

/// Why the schema is not ready.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The server is too old.
    #[error("PostgreSQL {0} is too old: Ringback needs 14 or newer")]
    ServerTooOld(String),
    /// A newer Ringback was here.
    #[error(
        "the database's schema has version {0}, which this build of Ringback does not know; run a newer build"
    )]
    SchemaTooNew(i64),
    /// A migration that ran is not the one that this build holds under the number.
    #[error(
        "migration {0} ran in this database with another text than this build holds; the build does not fit it"
    )]
    Changed(i64),
    /// Another process held the lock all the time.
    #[error("another process has been migrating for {} s; try again when it is done", LOCK_WAIT.as_secs())]
    LockBusy,
    /// The database said no.
    #[error("cannot migrate: {0}")]
    Database(#[from] sqlx::Error),
    /// A migration failed.
    #[error("a migration failed: {0}")]
    Failed(#[source] MigrateError),
}

/// Checks the server's version and applies what is missing. Returns how many migrations ran.
/// # Errors
/// [`MigrationError`]; nothing was changed then, or whole migrations only.
pub async fn migrate(db: &Db) -> Result<usize, MigrationError> {
    // A connection of its own: the session settings and the lock must not stay with a pooled one.
    let mut connection = db.pool().acquire().await?.detach();
    let result = migrate_on(&mut connection).await;
    connection.close().await.ok();
    result
}

async fn migrate_on(connection: &mut PgConnection) -> Result<usize, MigrationError> {
    check_server(connection).await?;
    sqlx::query("SET lock_timeout = '2s'").execute(&mut *connection).await?;
    sqlx::query("SET statement_timeout = 0").execute(&mut *connection).await?;
    take_lock(connection).await?;
    let before = applied(connection).await?;
    let mut migrator: Migrator = sqlx::migrate!("./migrations");
    migrator.set_locking(false);
    migrator.dangerous_set_table_name("ringback.schema_migrations");
    migrator.create_schema("ringback");
    let mut tries = 0;
    loop {
        tries += 1;
        match migrator.run_direct(None, &mut *connection, false).await {
            Ok(()) => return Ok(applied(connection).await?.saturating_sub(before)),
            Err(error) if is_lock_timeout(&error) && tries < 30 => {
                tracing::warn!(tries, "a migration waits for a lock that someone holds; it tries again");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Err(MigrateError::VersionMissing(version)) => return Err(MigrationError::SchemaTooNew(version)),
            Err(MigrateError::VersionMismatch(version)) => return Err(MigrationError::Changed(version)),
            Err(error) => return Err(MigrationError::Failed(error)),
        }
    }
}

async fn check_server(connection: &mut PgConnection) -> Result<(), MigrationError> {
    let row =
        sqlx::query("SELECT current_setting('server_version_num')::int, current_setting('server_version')")
            .fetch_one(connection)
            .await?;
    if row.get::<i32, _>(0) < OLDEST_SERVER {
        return Err(MigrationError::ServerTooOld(row.get(1)));
    }
    Ok(())
}

async fn take_lock(connection: &mut PgConnection) -> Result<(), MigrationError> {
    let give_up = tokio::time::Instant::now() + LOCK_WAIT;
    loop {
        let taken: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(LOCK_KEY)
            .fetch_one(&mut *connection)
            .await?;
        if taken {
            return Ok(());
        }
        if tokio::time::Instant::now() > give_up {
            return Err(MigrationError::LockBusy);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn applied(connection: &mut PgConnection) -> Result<usize, MigrationError> {
    let there: bool = sqlx::query_scalar("SELECT to_regclass('ringback.schema_migrations') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !there {
        return Ok(0);
    }
    let count: i64 =
        sqlx::query_scalar("SELECT count(*) FROM ringback.schema_migrations").fetch_one(connection).await?;
    Ok(usize::try_from(count).unwrap_or(0))
}

fn is_lock_timeout(error: &MigrateError) -> bool {
    let (MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _)) = error else {
        return false;
    };
    source.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
}
