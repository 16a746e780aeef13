//! Reading jobs: one, several, a page; and their tries.
//!
//! Called by `http::jobs` and `jobs::finish`. Where a job stands is told by the table that it is in, so one statement
//! looks into all of them: a snapshot that no move can split.
//!
//! Invariant: a list by state is driven by the table that knows the state, never by a walk over all jobs; the jobs of a
//! schedule are few among them, so that list is driven by their index, whatever else is asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgExecutor, Row};
use uuid::Uuid;

use super::outcome::TryOutcome;
use super::view::{JobEnd, JobState};
use super::{
    After, AfterFailure, Callback, CallbackOptions, EndStatus, Job, JobError, JobStatus, RetrySpec,
    Scheduled, Told,
};
use crate::backoff::RetryPolicy;
use crate::clock::Timestamp;
use crate::db::{Db, StoreError, raw_json};
use crate::ids::{JobId, ScheduleId, TenantId};

/// A job with its state, as it was read.
#[derive(Debug, Clone)]
pub struct StoredJob {
    /// What never changes.
    pub job: Job,
    /// What does.
    pub state: JobState,
    /// The callback's options as they are sealed.
    pub sealed_options: Option<Vec<u8>>,
}

macro_rules! select_jobs {
    ($from:literal) => {
        concat!(
            "WITH wanted AS MATERIALIZED (", $from, ")
            SELECT j.tenant_id, j.id, j.kind, j.queue, j.priority, j.run_at, j.timeout_ms, j.max_attempts, j.backoff, j.unique_key,
              j.input, j.metadata::text AS metadata, j.callback_url, j.callback_options, j.traceparent, j.schedule_id, j.nominal_at,
              j.ordering_key, j.after_ids, j.after_failure,
              e.status AS end_status, e.result, e.error, e.attempt AS end_attempt, e.started_at AS end_started_at, e.finished_at,
              l.attempt AS lease_attempt, l.started_at AS lease_started_at, l.cancel_requested,
              coalesce(s.attempt, r.attempt, h.attempt) AS waiting_attempt, coalesce(s.tries, r.tries) AS waiting_tries, s.due_at,
              a.error AS try_error, a.started_at AS try_started_at, p.progress
            FROM wanted w
            CROSS JOIN LATERAL (SELECT * FROM ringback.jobs j WHERE j.tenant_id = w.tenant_id AND j.id = w.id LIMIT 1) j
            LEFT JOIN LATERAL (SELECT * FROM ringback.job_ends e WHERE e.tenant_id = w.tenant_id AND e.job_id = w.id LIMIT 1) e ON true
            LEFT JOIN LATERAL (SELECT * FROM ringback.job_leases l WHERE l.tenant_id = w.tenant_id AND l.job_id = w.id LIMIT 1) l ON true
            LEFT JOIN LATERAL (SELECT * FROM ringback.job_scheduled s WHERE s.tenant_id = w.tenant_id AND s.job_id = w.id LIMIT 1) s ON true
            LEFT JOIN LATERAL (SELECT * FROM ringback.job_ready r WHERE r.tenant_id = w.tenant_id AND r.job_id = w.id LIMIT 1) r ON true
            LEFT JOIN LATERAL (SELECT p.progress FROM ringback.job_progress p WHERE p.tenant_id = w.tenant_id AND p.job_id = w.id LIMIT 1) p ON true
            LEFT JOIN LATERAL (SELECT * FROM ringback.job_held h WHERE h.tenant_id = w.tenant_id AND h.job_id = w.id LIMIT 1) h ON true
            LEFT JOIN LATERAL (
              SELECT a.error, a.started_at FROM ringback.job_attempts a WHERE a.tenant_id = w.tenant_id AND a.job_id = w.id AND e.job_id IS NULL
              AND a.number = coalesce(l.attempt - 1, s.attempt, r.attempt, h.attempt) LIMIT 1
            ) a ON true
            ORDER BY w.id DESC"
        )
    };
}

/// One job of this tenant.
/// # Errors
/// [`StoreError::NotFound`].
pub async fn get(db: &Db, tenant: TenantId, id: JobId) -> Result<StoredJob, StoreError> {
    let sql =
        concat!("-- jobs::read_store::get\n", select_jobs!("SELECT $1::uuid AS tenant_id, $2::uuid AS id"));
    Ok(sqlx::query_as(sql).bind(tenant).bind(id).fetch_one(db.pool()).await?)
}

/// Several jobs of this tenant, newest first; from a pool or in the caller's transaction.
/// # Errors
/// [`StoreError`].
pub async fn get_many(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    ids: &[JobId],
) -> Result<Vec<StoredJob>, StoreError> {
    let sql = concat!(
        "-- jobs::read_store::get_many\n",
        select_jobs!("SELECT $1::uuid AS tenant_id, unnest($2::uuid[]) AS id")
    );
    let ids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
    Ok(sqlx::query_as(sql).bind(tenant).bind(ids).fetch_all(db).await?)
}

/// What a list is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Only in this state.
    pub status: Option<JobStatus>,
    /// Only of this kind.
    pub kind: Option<String>,
    /// Only in this queue.
    pub queue: Option<String>,
    /// Only with these metadata.
    pub metadata: BTreeMap<String, String>,
    /// Only those that this schedule made.
    pub schedule: Option<ScheduleId>,
}

/// A page of jobs, newest first, all older than `before`.
/// # Errors
/// [`StoreError`].
pub async fn list(
    db: &Db,
    tenant: TenantId,
    filter: &JobFilter,
    before: Option<JobId>,
    limit: i64,
) -> Result<Vec<StoredJob>, StoreError> {
    let metadata =
        (!filter.metadata.is_empty()).then(|| serde_json::to_string(&filter.metadata).unwrap_or_default());
    let of_schedule = filter.schedule.is_some();
    let mut query = sqlx::query_as(if of_schedule { LIST_OF_SCHEDULE } else { list_by(filter.status) })
        .bind(tenant)
        .bind(before.map_or(Uuid::max(), JobId::uuid))
        .bind(filter.kind.as_deref())
        .bind(filter.queue.as_deref())
        .bind(metadata)
        .bind(limit);
    if of_schedule {
        query = query.bind(filter.schedule).bind(filter.status.map(JobStatus::as_str));
    }
    Ok(query.fetch_all(db.pool()).await?)
}

const LIST_OF_SCHEDULE: &str = concat!(
    "-- jobs::read_store::list_of_schedule\n",
    select_jobs!(
        "SELECT j.tenant_id, j.id FROM ringback.jobs j WHERE j.tenant_id = $1 AND j.schedule_id = $7 AND j.id < $2
         AND ($3::text IS NULL OR j.kind = $3) AND ($4::text IS NULL OR j.queue = $4) AND ($5::text IS NULL OR j.metadata @> $5::jsonb)
         -- Scalars, because the planner may make a hash of all that an EXISTS looks into.
         AND ($8::text IS NULL OR $8 = coalesce(
           (SELECT CASE e.status WHEN 1 THEN 'succeeded' WHEN 2 THEN 'failed' ELSE 'cancelled' END
            FROM ringback.job_ends e WHERE e.tenant_id = j.tenant_id AND e.job_id = j.id LIMIT 1),
           (SELECT 'running' FROM ringback.job_leases l WHERE l.tenant_id = j.tenant_id AND l.job_id = j.id LIMIT 1),
           (SELECT CASE WHEN r.tries > 0 THEN 'retrying' END FROM ringback.job_ready r WHERE r.tenant_id = j.tenant_id AND r.job_id = j.id LIMIT 1),
           (SELECT CASE WHEN s.tries > 0 THEN 'retrying' END FROM ringback.job_scheduled s WHERE s.tenant_id = j.tenant_id AND s.job_id = j.id LIMIT 1),
           'queued'))
         ORDER BY j.id DESC LIMIT $6"
    )
);

/// The driving table is the one that knows the state: a list of what failed must not walk over all that did not.
fn list_by(status: Option<JobStatus>) -> &'static str {
    match status {
        None => concat!("-- jobs::read_store::list\n", select_jobs!(
            "SELECT j.tenant_id, j.id FROM ringback.jobs j WHERE j.tenant_id = $1 AND j.id < $2
             AND ($3::text IS NULL OR j.kind = $3) AND ($4::text IS NULL OR j.queue = $4) AND ($5::text IS NULL OR j.metadata @> $5::jsonb)
             ORDER BY j.id DESC LIMIT $6")),
        Some(JobStatus::Queued) => concat!("-- jobs::read_store::list_queued\n", select_jobs!(
            "SELECT j.tenant_id, j.id FROM (SELECT tenant_id, job_id FROM ringback.job_ready WHERE tries = 0
               UNION ALL SELECT tenant_id, job_id FROM ringback.job_scheduled WHERE tries = 0
               UNION ALL SELECT tenant_id, job_id FROM ringback.job_held) q
             JOIN ringback.jobs j ON j.tenant_id = q.tenant_id AND j.id = q.job_id
             WHERE q.tenant_id = $1 AND q.job_id < $2
             AND ($3::text IS NULL OR j.kind = $3) AND ($4::text IS NULL OR j.queue = $4) AND ($5::text IS NULL OR j.metadata @> $5::jsonb)
             ORDER BY q.job_id DESC LIMIT $6")),
        Some(JobStatus::Retrying) => concat!("-- jobs::read_store::list_retrying\n", select_jobs!(
            "SELECT j.tenant_id, j.id FROM (SELECT tenant_id, job_id FROM ringback.job_ready WHERE tries > 0
               UNION ALL SELECT tenant_id, job_id FROM ringback.job_scheduled WHERE tries > 0) q
             JOIN ringback.jobs j ON j.tenant_id = q.tenant_id AND j.id = q.job_id
             WHERE q.tenant_id = $1 AND q.job_id < $2
             AND ($3::text IS NULL OR j.kind = $3) AND ($4::text IS NULL OR j.queue = $4) AND ($5::text IS NULL OR j.metadata @> $5::jsonb)
             ORDER BY q.job_id DESC LIMIT $6")),
        Some(JobStatus::Running) => concat!("-- jobs::read_store::list_running\n", select_jobs!(
            "SELECT j.tenant_id, j.id FROM ringback.job_leases q
             JOIN ringback.jobs j ON j.tenant_id = q.tenant_id AND j.id = q.job_id
             WHERE q.tenant_id = $1 AND q.job_id < $2
             AND ($3::text IS NULL OR j.kind = $3) AND ($4::text IS NULL OR j.queue = $4) AND ($5::text IS NULL OR j.metadata @> $5::jsonb)
             ORDER BY q.job_id DESC LIMIT $6")),
        Some(JobStatus::Succeeded) => concat!("-- jobs::read_store::list_succeeded\n", select_jobs!(
            "SELECT j.tenant_id, j.id FROM ringback.job_ends q
             JOIN ringback.jobs j ON j.tenant_id = q.tenant_id AND j.id = q.job_id
             WHERE q.tenant_id = $1 AND q.job_id < $2 AND q.status = 1
             AND ($3::text IS NULL OR j.kind = $3) AND ($4::text IS NULL OR j.queue = $4) AND ($5::text IS NULL OR j.metadata @> $5::jsonb)
             ORDER BY q.job_id DESC LIMIT $6")),
        Some(JobStatus::Failed) => concat!("-- jobs::read_store::list_failed\n", select_jobs!(
            "SELECT j.tenant_id, j.id FROM ringback.job_ends q
             JOIN ringback.jobs j ON j.tenant_id = q.tenant_id AND j.id = q.job_id
             WHERE q.tenant_id = $1 AND q.job_id < $2 AND q.status = 2
             AND ($3::text IS NULL OR j.kind = $3) AND ($4::text IS NULL OR j.queue = $4) AND ($5::text IS NULL OR j.metadata @> $5::jsonb)
             ORDER BY q.job_id DESC LIMIT $6")),
        Some(JobStatus::Cancelled) => concat!("-- jobs::read_store::list_cancelled\n", select_jobs!(
            "SELECT j.tenant_id, j.id FROM ringback.job_ends q
             JOIN ringback.jobs j ON j.tenant_id = q.tenant_id AND j.id = q.job_id
             WHERE q.tenant_id = $1 AND q.job_id < $2 AND q.status = 3
             AND ($3::text IS NULL OR j.kind = $3) AND ($4::text IS NULL OR j.queue = $4) AND ($5::text IS NULL OR j.metadata @> $5::jsonb)
             ORDER BY q.job_id DESC LIMIT $6")),
    }
}

/// One try of a job.
#[derive(Debug, Clone, serde::Serialize)]
pub struct JobAttempt {
    number: i32,
    worker: String,
    outcome: &'static str,
    error: Option<JobError>,
    #[serde(with = "crate::clock::millis")]
    started_at: Timestamp,
    #[serde(with = "crate::clock::millis")]
    finished_at: Option<Timestamp>,
}

/// All tries of a job, the first one first; one that is under way comes last, without an end.
/// # Errors
/// [`StoreError`].
pub async fn attempts(db: &Db, tenant: TenantId, id: JobId) -> Result<Vec<JobAttempt>, StoreError> {
    let rows = sqlx::query(
        "-- jobs::read_store::attempts
        SELECT number, worker, outcome, error, started_at, finished_at FROM ringback.job_attempts WHERE tenant_id = $1 AND job_id = $2
        UNION ALL
        SELECT l.attempt, coalesce(nullif(l.worker, ''), n.name, 'unknown'), 0::int2, NULL, l.started_at, NULL
        FROM ringback.job_leases l LEFT JOIN ringback.nodes n ON n.id = l.holder WHERE l.tenant_id = $1 AND l.job_id = $2
        ORDER BY number",
    )
    .bind(tenant)
    .bind(id)
    .fetch_all(db.pool())
    .await?;
    let read = |row: &PgRow| JobAttempt {
        number: row.get("number"),
        worker: row.get("worker"),
        outcome: match row.get::<i16, _>("outcome") {
            0 => "running",
            code => TryOutcome::word_of(code),
        },
        error: row.get::<Option<&str>, _>("error").and_then(|text| serde_json::from_str(text).ok()),
        started_at: row.get("started_at"),
        finished_at: row.get("finished_at"),
    };
    Ok(rows.iter().map(read).collect())
}

/// Which of these jobs have ended.
/// # Errors
/// [`StoreError`].
pub async fn ended_of(db: &Db, jobs: &[(TenantId, JobId)]) -> Result<Vec<(TenantId, JobId)>, StoreError> {
    let rows = sqlx::query(
        "-- jobs::read_store::ended_of
        SELECT e.tenant_id, e.job_id FROM unnest($1::uuid[], $2::uuid[]) AS w(tenant_id, job_id)
        JOIN ringback.job_ends e ON e.tenant_id = w.tenant_id AND e.job_id = w.job_id",
    )
    .bind(jobs.iter().map(|(tenant, _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(jobs.iter().map(|(_, id)| id.uuid()).collect::<Vec<_>>())
    .fetch_all(db.pool())
    .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

impl<'r> FromRow<'r, PgRow> for Told {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        let json = |column| row.try_get::<Option<&[u8]>, _>(column)?.map(raw_json).transpose();
        Ok(Self { progress: json("progress")?, checkpoint: json("checkpoint")? })
    }
}

/// The columns of `jobs`.
impl<'r> FromRow<'r, PgRow> for Job {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        let max_attempts = row.try_get::<i32, _>("max_attempts")?.unsigned_abs();
        let backoff_json: Option<String> = row.try_get("backoff")?;
        let retry = backoff_json
            .as_deref()
            .and_then(|text| serde_json::from_str::<RetrySpec>(text).ok())
            .map_or(RetryPolicy::JOBS, RetrySpec::policy);
        let metadata: Option<String> = row.try_get("metadata")?;
        let url: Option<String> = row.try_get("callback_url")?;
        Ok(Self {
            tenant: row.try_get("tenant_id")?,
            id: row.try_get("id")?,
            kind: row.try_get("kind")?,
            queue: row.try_get("queue")?,
            priority: row.try_get("priority")?,
            run_at: row.try_get("run_at")?,
            timeout: Duration::from_millis(u64::from(row.try_get::<i32, _>("timeout_ms")?.unsigned_abs())),
            retry: RetryPolicy { max_attempts, ..retry },
            backoff_json,
            unique_key: row.try_get("unique_key")?,
            ordering_key: row.try_get("ordering_key")?,
            after: read_after(row)?,
            input: raw_json(row.try_get("input")?)?,
            metadata: metadata.and_then(|text| serde_json::from_str(&text).ok()),
            callback: url.map(|url| Callback { url, options: CallbackOptions::default() }),
            traceparent: row.try_get("traceparent")?,
            scheduled: match row.try_get("schedule_id")? {
                Some(by) => Some(Scheduled { by, at: row.try_get("nominal_at")? }),
                None => None,
            },
        })
    }
}

impl<'r> FromRow<'r, PgRow> for StoredJob {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        let sealed_options = row.try_get("callback_options")?;
        Ok(Self { job: Job::from_row(row)?, state: read_state(row)?, sealed_options })
    }
}

fn read_after(row: &PgRow) -> Result<Option<After>, sqlx::Error> {
    let Some(ids) = row.try_get::<Option<Vec<Uuid>>, _>("after_ids")? else { return Ok(None) };
    let on_failure = match row.try_get::<Option<i16>, _>("after_failure")? {
        Some(1) => AfterFailure::Run,
        _ => AfterFailure::Cancel,
    };
    let jobs = ids.into_iter().map(JobId::from_uuid).collect();
    Ok(Some(After { jobs, positions: Vec::new(), on_failure }))
}

fn read_state(row: &PgRow) -> Result<JobState, sqlx::Error> {
    let error = |column| -> Result<Option<JobError>, sqlx::Error> {
        Ok(row.try_get::<Option<&str>, _>(column)?.and_then(|text| serde_json::from_str(text).ok()))
    };
    let progress = row.try_get::<Option<&[u8]>, _>("progress")?.map(raw_json).transpose()?;
    if let Some(code) = row.try_get::<Option<i16>, _>("end_status")? {
        let result: Option<&[u8]> = row.try_get("result")?;
        let end = JobEnd {
            status: match code {
                1 => EndStatus::Succeeded,
                2 => EndStatus::Failed,
                _ => EndStatus::Cancelled,
            },
            result: result.map(raw_json).transpose()?,
            error: error("error")?,
            attempt: row.try_get("end_attempt")?,
            started_at: row.try_get("end_started_at")?,
            finished_at: row.try_get("finished_at")?,
            progress,
        };
        return Ok(end.into_state());
    }
    let state = JobState {
        error: error("try_error")?,
        started_at: row.try_get("try_started_at")?,
        progress,
        ..JobState::accepted()
    };
    if let Some(attempt) = row.try_get::<Option<i32>, _>("lease_attempt")? {
        return Ok(JobState {
            status: JobStatus::Running,
            attempt,
            started_at: row.try_get("lease_started_at")?,
            cancel_requested: row.try_get("cancel_requested")?,
            ..state
        });
    }
    let tries = row.try_get::<Option<i32>, _>("waiting_tries")?.unwrap_or(0);
    Ok(JobState {
        status: if tries > 0 { JobStatus::Retrying } else { JobStatus::Queued },
        attempt: row.try_get::<Option<i32>, _>("waiting_attempt")?.unwrap_or(0),
        due_at: row.try_get("due_at")?,
        ..state
    })
}
