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

use super::{Db, StoreError};

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
    let mut migrator = known();
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

/// The migrations that this build holds.
fn known() -> Migrator {
    sqlx::migrate!("./migrations")
}

/// How the schema of a database stands to this build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaState {
    /// There is none.
    NotMade,
    /// It is this build's.
    UpToDate,
    /// So many migrations of this build are missing.
    Behind(usize),
    /// A newer build brought it to this version.
    TooNew(i64),
    /// This migration ran with another text, or broke off.
    Changed(i64),
}

/// Looks at the schema, and changes nothing.
/// # Errors
/// The database cannot be asked.
pub async fn state(db: &Db) -> Result<SchemaState, StoreError> {
    let there: bool = sqlx::query_scalar(
        "-- db::migrate::state\nSELECT to_regclass('ringback.schema_migrations') IS NOT NULL",
    )
    .fetch_one(db.pool())
    .await?;
    if !there {
        return Ok(SchemaState::NotMade);
    }
    let applied: Vec<(i64, Vec<u8>, bool)> = sqlx::query_as(
        "-- db::migrate::state\nSELECT version, checksum, success FROM ringback.schema_migrations ORDER BY version",
    )
    .fetch_all(db.pool())
    .await?;
    Ok(compare(&known(), &applied))
}

fn compare(known: &Migrator, applied: &[(i64, Vec<u8>, bool)]) -> SchemaState {
    for (version, checksum, success) in applied {
        match known.iter().find(|migration| migration.version == *version) {
            None => return SchemaState::TooNew(*version),
            Some(migration) if *success && *migration.checksum == **checksum => {}
            Some(_) => return SchemaState::Changed(*version),
        }
    }
    match known.iter().count().saturating_sub(applied.len()) {
        0 => SchemaState::UpToDate,
        missing => SchemaState::Behind(missing),
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

#[cfg(test)]
mod tests {
    use super::*;

    type Applied = Vec<(i64, Vec<u8>, bool)>;

    #[test]
    fn a_schema_is_compared_with_what_this_build_holds() {
        let known = known();
        let all: Vec<_> = known.iter().map(|held| (held.version, held.checksum.to_vec(), true)).collect();
        let with = |change: fn(&mut Applied)| {
            let mut applied = all.clone();
            change(&mut applied);
            compare(&known, &applied)
        };
        assert_eq!(with(|_| ()), SchemaState::UpToDate);
        assert_eq!(with(|applied| drop(applied.pop())), SchemaState::Behind(1));
        assert_eq!(with(|applied| applied.push((999_999, vec![], true))), SchemaState::TooNew(999_999));
        assert_eq!(with(|applied| applied[0].1.clear()), SchemaState::Changed(1));
        assert_eq!(with(|applied| applied[0].2 = false), SchemaState::Changed(1));
    }
}
