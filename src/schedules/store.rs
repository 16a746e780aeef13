//! The SQL of schedules: create, show, change, delete; those that are due, and the step to the next time.
//!
//! Called by `change`, `fire` and `http::schedules`.
//!
//! Invariant: a schedule's job leaves this file for the database only sealed, and every write is of a row that the
//! caller's transaction has locked.

use std::collections::BTreeMap;

use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use super::stored::{Shown, Stored, context};
use super::{CatchUp, Overlap, Record, Schedule, ScheduleStatus};
use crate::clock::Timestamp;
use crate::db::{Db, StoreError, Tx};
use crate::ids::{JobId, ScheduleId, TenantId};
use crate::secret::{SealError, Sealer};
use crate::secrets::SecretError;

/// So many unfinished jobs of a schedule are remembered, the newest ones.
const OPEN_JOBS_MAX: usize = 100;

// Which of the remembered jobs are still not finished. One that is gone with its history has ended.
macro_rules! select_schedules {
    ($rest:literal) => {
        concat!(
            "SELECT s.*, now() AS now, ARRAY(
               SELECT o.id FROM unnest(s.open_jobs) WITH ORDINALITY AS o(id, place)
               WHERE EXISTS (SELECT FROM ringback.jobs j WHERE j.tenant_id = s.tenant_id AND j.id = o.id)
               AND NOT EXISTS (SELECT FROM ringback.job_ends e WHERE e.tenant_id = s.tenant_id AND e.job_id = o.id)
               ORDER BY o.place) AS still_open
             FROM ringback.schedules s ",
            $rest
        )
    };
}

// To be shown: nobody asks for the jobs then.
macro_rules! show_schedules {
    ($rest:literal) => {
        concat!("SELECT s.*, '{}'::uuid[] AS still_open FROM ringback.schedules s ", $rest)
    };
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// Binds tenant, id and all that can change, in the order of both statements.
fn bind_all<'q>(query: Query<'q>, schedule: &'q Schedule, sealer: &Sealer) -> Result<Query<'q>, SealError> {
    let settings = &schedule.settings;
    let sealed = sealer.seal(&context(schedule.tenant, schedule.id), settings.job.0.get().as_bytes())?;
    Ok(query
        .bind(schedule.tenant)
        .bind(schedule.id)
        .bind(settings.timetable.cron())
        .bind(settings.timetable.zone())
        .bind(sealed)
        .bind(match settings.overlap {
            Overlap::Skip => 0_i16,
            Overlap::Allow => 1,
        })
        .bind(match settings.catch_up {
            CatchUp::None => 0_i16,
            CatchUp::Last => 1,
            CatchUp::All => 2,
        })
        .bind(match settings.status {
            ScheduleStatus::Active => 1_i16,
            ScheduleStatus::Paused => 2,
        })
        .bind(&settings.description)
        .bind((!settings.metadata.is_empty()).then_some(Json(&settings.metadata)))
        .bind(schedule.version)
        .bind(schedule.updated_at)
        .bind(schedule.record.next_at))
}

/// How many schedules a tenant has. Until the caller's transaction ends nobody else adds one, if all ask here first.
/// # Errors
/// [`StoreError`].
pub async fn count_to_add(tx: &mut Tx, tenant: TenantId) -> Result<i64, StoreError> {
    sqlx::query(
        "-- schedules::store::lock_tenant\nSELECT FROM ringback.tenants WHERE id = $1 FOR NO KEY UPDATE",
    )
    .bind(tenant)
    .execute(&mut **tx)
    .await?;
    // By a new statement: it sees what whoever held the lock before has added.
    Ok(sqlx::query_scalar(
        "-- schedules::store::count_to_add\nSELECT count(*) FROM ringback.schedules WHERE tenant_id = $1",
    )
    .bind(tenant)
    .fetch_one(&mut **tx)
    .await?)
}

/// Creates a schedule in the caller's transaction.
/// # Errors
/// [`SecretError`].
pub async fn create(tx: &mut Tx, sealer: &Sealer, schedule: &Schedule) -> Result<(), SecretError> {
    let query = sqlx::query(
        "-- schedules::store::create
        INSERT INTO ringback.schedules (tenant_id, id, cron, timezone, job, overlap, catch_up, status, description, metadata,
          version, updated_at, next_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    );
    bind_all(query, schedule, sealer)?.execute(&mut **tx).await?;
    Ok(())
}

/// Writes a schedule that the caller's transaction has locked ([`lock`]).
/// # Errors
/// [`SecretError`].
pub async fn write(tx: &mut Tx, sealer: &Sealer, schedule: &Schedule) -> Result<(), SecretError> {
    let query = sqlx::query(
        "-- schedules::store::write
        UPDATE ringback.schedules SET cron = $3, timezone = $4, job = $5, overlap = $6, catch_up = $7, status = $8,
          description = $9, metadata = $10, version = $11, updated_at = $12, next_at = $13
        WHERE tenant_id = $1 AND id = $2",
    );
    bind_all(query, schedule, sealer)?.execute(&mut **tx).await?;
    Ok(())
}

/// Deletes a schedule that the caller's transaction has locked. Its jobs stay.
/// # Errors
/// [`StoreError`].
pub async fn delete(tx: &mut Tx, tenant: TenantId, id: ScheduleId) -> Result<(), StoreError> {
    sqlx::query(
        "-- schedules::store::delete\nDELETE FROM ringback.schedules WHERE tenant_id = $1 AND id = $2",
    )
    .bind(tenant)
    .bind(id)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Locks a schedule until the caller's transaction ends: its version, and the database's time. It need not be readable.
/// # Errors
/// [`StoreError::NotFound`].
pub async fn lock_version(
    tx: &mut Tx,
    tenant: TenantId,
    id: ScheduleId,
) -> Result<(i64, Timestamp), StoreError> {
    Ok(sqlx::query_as(
        "-- schedules::store::lock_version
        SELECT version, clock_timestamp()
        FROM (SELECT version FROM ringback.schedules WHERE tenant_id = $1 AND id = $2 FOR UPDATE) held",
    )
    .bind(tenant)
    .bind(id)
    .fetch_one(&mut **tx)
    .await?)
}

/// One schedule, locked until the caller's transaction ends, and the database's time.
/// # Errors
/// [`StoreError::NotFound`]; [`StoreError::Conflict`] where it cannot be read.
pub async fn lock(
    tx: &mut Tx,
    sealer: &Sealer,
    tenant: TenantId,
    id: ScheduleId,
) -> Result<(Schedule, Timestamp), StoreError> {
    // Read only when it is locked, by a new statement: the jobs of whoever held it before are seen then.
    let (_, now) = lock_version(tx, tenant, id).await?;
    let sql = concat!(
        "-- schedules::store::lock_read\n",
        select_schedules!("WHERE s.tenant_id = $1 AND s.id = $2")
    );
    let row: Stored = sqlx::query_as(sql).bind(tenant).bind(id).fetch_one(&mut **tx).await?;
    match row.open(sealer) {
        Ok(schedule) => Ok((schedule, now)),
        Err(found) => Err(StoreError::Conflict(format!("{found}; it can only be deleted"))),
    }
}

/// One schedule.
/// # Errors
/// [`StoreError::NotFound`].
pub async fn get(db: &Db, sealer: &Sealer, tenant: TenantId, id: ScheduleId) -> Result<Shown, StoreError> {
    let sql = concat!("-- schedules::store::get\n", show_schedules!("WHERE s.tenant_id = $1 AND s.id = $2"));
    Ok(shown(sqlx::query_as(sql).bind(tenant).bind(id).fetch_one(db.pool()).await?, sealer))
}

fn shown(row: Stored, sealer: &Sealer) -> Shown {
    match row.open(sealer) {
        Ok(schedule) => Shown::Whole(Box::new(schedule)),
        Err(found) => Shown::Unreadable(found),
    }
}

/// A page of a tenant's schedules, newest first, all older than `before`.
/// # Errors
/// [`StoreError`].
pub async fn list(
    db: &Db,
    sealer: &Sealer,
    tenant: TenantId,
    status: Option<ScheduleStatus>,
    (before, limit): (Option<ScheduleId>, i64),
) -> Result<Vec<Shown>, StoreError> {
    let sql = concat!(
        "-- schedules::store::list\n",
        show_schedules!(
            "WHERE s.tenant_id = $1 AND s.id < $2 AND ($3::int2 IS NULL OR s.status = $3) ORDER BY s.id DESC LIMIT $4"
        )
    );
    let code = status.map(|status| match status {
        ScheduleStatus::Active => 1_i16,
        ScheduleStatus::Paused => 2,
    });
    let rows: Vec<Stored> = sqlx::query_as(sql)
        .bind(tenant)
        .bind(before.map_or(Uuid::max(), ScheduleId::uuid))
        .bind(code)
        .bind(limit)
        .fetch_all(db.pool())
        .await?;
    Ok(rows.into_iter().map(|row| shown(row, sealer)).collect())
}

/// A schedule that is due; or why it cannot be read, and for whom to note that.
#[derive(Debug)]
pub struct DueRow {
    /// Whose.
    pub tenant: TenantId,
    /// Its id.
    pub id: ScheduleId,
    /// The schedule.
    pub schedule: Result<Schedule, String>,
}

/// Schedules that are due, locked until the caller's transaction ends, those first that are due longest; and the
/// database's time. What another process is firing is left to it.
/// # Errors
/// [`StoreError`].
pub async fn lock_due(
    tx: &mut Tx,
    sealer: &Sealer,
    limit: i64,
) -> Result<Option<(Timestamp, Vec<DueRow>)>, StoreError> {
    let ids: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "-- schedules::store::lock_due
        SELECT tenant_id, id FROM ringback.schedules WHERE next_at <= now() ORDER BY next_at LIMIT $1 FOR UPDATE SKIP LOCKED",
    )
    .bind(limit)
    .fetch_all(&mut **tx)
    .await?;
    if ids.is_empty() {
        return Ok(None);
    }
    // As in `lock`: by a new statement.
    let sql = concat!(
        "-- schedules::store::read_due\n",
        select_schedules!(
            "JOIN unnest($1::uuid[], $2::uuid[]) AS w(tenant_id, id) ON s.tenant_id = w.tenant_id AND s.id = w.id ORDER BY s.next_at"
        )
    );
    let rows = sqlx::query(sql)
        .bind(ids.iter().map(|(tenant, _)| *tenant).collect::<Vec<_>>())
        .bind(ids.iter().map(|(_, id)| *id).collect::<Vec<_>>())
        .fetch_all(&mut **tx)
        .await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let due = |row: &PgRow| {
        let stored = Stored::from_row(row)?;
        let (tenant, id) = (stored.tenant, stored.id);
        Ok(DueRow { tenant, id, schedule: stored.open(sealer).map_err(|found| found.to_string()) })
    };
    Ok(Some((first.try_get("now")?, rows.iter().map(due).collect::<Result<_, sqlx::Error>>()?)))
}

/// The seconds until the next schedule is due, of those that are not due yet.
/// # Errors
/// [`StoreError`].
pub async fn next_due_s(db: &Db) -> Result<Option<f64>, StoreError> {
    Ok(sqlx::query_scalar(
        "-- schedules::store::next_due_s
        SELECT extract(epoch FROM next_at - clock_timestamp())::float8 FROM ringback.schedules
        WHERE next_at > now() ORDER BY next_at LIMIT 1",
    )
    .fetch_optional(db.pool())
    .await?)
}

/// The database's time.
/// # Errors
/// [`StoreError`].
pub async fn now(db: &Db) -> Result<Timestamp, StoreError> {
    Ok(sqlx::query_scalar("-- schedules::store::now\nSELECT clock_timestamp()").fetch_one(db.pool()).await?)
}

/// Writes what became of schedules that the caller's transaction has locked.
/// # Errors
/// [`StoreError`].
pub async fn record(tx: &mut Tx, records: &[(TenantId, ScheduleId, Record)]) -> Result<(), StoreError> {
    let each = || records.iter().map(|(_, _, record)| record);
    let open: Vec<String> = each().map(|record| open_jobs(&record.open_jobs)).collect();
    sqlx::query(
        "-- schedules::store::record
        UPDATE ringback.schedules s SET next_at = i.next_at, last_fired_at = i.last_fired_at, last_job_id = i.last_job_id,
          last_skipped_at = i.last_skipped_at, skipped = i.skipped, last_error = i.last_error, open_jobs = i.open_jobs::uuid[]
        FROM (SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::uuid[], $6::timestamptz[],
            $7::int8[], $8::text[], $9::text[])
          AS t(tenant_id, id, next_at, last_fired_at, last_job_id, last_skipped_at, skipped, last_error, open_jobs)) i
        WHERE s.tenant_id = i.tenant_id AND s.id = i.id",
    )
    .bind(records.iter().map(|(tenant, _, _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(records.iter().map(|(_, id, _)| id.uuid()).collect::<Vec<_>>())
    .bind(each().map(|record| record.next_at).collect::<Vec<_>>())
    .bind(each().map(|record| record.last_fired_at).collect::<Vec<_>>())
    .bind(each().map(|record| record.last_job.map(JobId::uuid)).collect::<Vec<_>>())
    .bind(each().map(|record| record.last_skipped_at).collect::<Vec<_>>())
    .bind(each().map(|record| record.skipped).collect::<Vec<_>>())
    .bind(each().map(|record| record.last_error.as_deref()).collect::<Vec<_>>())
    .bind(open)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// An array's text: arrays of arrays cannot be unnested side by side.
fn open_jobs(jobs: &[JobId]) -> String {
    let newest = &jobs[jobs.len().saturating_sub(OPEN_JOBS_MAX)..];
    let ids: Vec<String> = newest.iter().map(|id| id.uuid().to_string()).collect();
    format!("{{{}}}", ids.join(","))
}

/// Notes why a schedule that cannot be read does not fire any more.
/// # Errors
/// [`StoreError`].
pub async fn stop(tx: &mut Tx, tenant: TenantId, id: ScheduleId, why: &str) -> Result<(), StoreError> {
    sqlx::query(
        "-- schedules::store::stop
        UPDATE ringback.schedules SET next_at = NULL, last_error = $3 WHERE tenant_id = $1 AND id = $2",
    )
    .bind(tenant)
    .bind(id)
    .bind(why)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl<'r> FromRow<'r, PgRow> for Stored {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        let metadata: Option<Json<BTreeMap<String, String>>> = row.try_get("metadata")?;
        Ok(Self {
            tenant: row.try_get("tenant_id")?,
            id: row.try_get("id")?,
            cron: row.try_get("cron")?,
            timezone: row.try_get("timezone")?,
            job: row.try_get("job")?,
            overlap: match row.try_get::<i16, _>("overlap")? {
                0 => Overlap::Skip,
                _ => Overlap::Allow,
            },
            catch_up: match row.try_get::<i16, _>("catch_up")? {
                2 => CatchUp::All,
                1 => CatchUp::Last,
                _ => CatchUp::None,
            },
            status: match row.try_get::<i16, _>("status")? {
                1 => ScheduleStatus::Active,
                _ => ScheduleStatus::Paused,
            },
            description: row.try_get("description")?,
            metadata: metadata.map(|Json(metadata)| metadata).unwrap_or_default(),
            record: Record {
                next_at: row.try_get("next_at")?,
                last_fired_at: row.try_get("last_fired_at")?,
                last_job: row.try_get("last_job_id")?,
                last_skipped_at: row.try_get("last_skipped_at")?,
                skipped: row.try_get("skipped")?,
                last_error: row.try_get("last_error")?,
                open_jobs: row
                    .try_get::<Vec<Uuid>, _>("still_open")?
                    .into_iter()
                    .map(JobId::from_uuid)
                    .collect(),
            },
            version: row.try_get("version")?,
            updated_at: row.try_get("updated_at")?,
        })
    }
}
