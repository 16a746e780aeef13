//! The SQL of leases: extend, end, give back, find what ran out. How they are handed out stands in `claim_store`.
//!
//! Called by `engine::run_jobs`, `engine::expire_leases` and `jobs::finish`. A lease is a row with an unguessable token,
//! new at each hand-out; every write that ends a try checks it in the same statement, so a late holder changes nothing.
//!
//! Invariant: what a lease's holder writes counts only while it is the holder.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use super::after_store::AfterResult;
use super::outcome::TryOutcome;
use super::{EndStatus, Job, Told, Tries};
use crate::clock::Timestamp;
use crate::db::{Db, StoreError, Tx};
use crate::ids::{JobId, TenantId};

/// The right to end one try of a job. Whoever holds it reports once; a dropped one blocks its job until it expires.
#[must_use = "a dropped lease blocks its job until it expires"]
#[derive(Debug)]
pub struct Lease {
    /// The work.
    pub job: Job,
    /// The job's callback options, still sealed.
    pub sealed_options: Option<Vec<u8>>,
    /// Proves the right.
    pub token: Uuid,
    /// The tries so far, this one counted.
    pub tries: Tries,
    /// When this try began.
    pub started_at: Timestamp,
    /// What workers told of the job so far.
    pub told: Told,
    /// What became of the jobs that it waited for, where whoever runs it is to know (`after_store::attach`).
    pub after_results: Vec<AfterResult>,
}

/// Puts off the expiry of all leases of a node. Returns the jobs that someone wants stopped.
/// # Errors
/// [`StoreError`].
pub async fn extend(db: &Db, node: Uuid, lease: Duration) -> Result<Vec<(TenantId, JobId)>, StoreError> {
    let rows = sqlx::query(
        "-- jobs::lease_store::extend
        UPDATE ringback.job_leases SET expires_at = now() + $2 * interval '1 s' WHERE holder = $1
        RETURNING tenant_id, job_id, cancel_requested",
    )
    .bind(node)
    .bind(lease.as_secs_f64())
    .fetch_all(db.relaxed())
    .await?;
    Ok(rows.iter().filter(|row| row.get(2)).map(|row| (row.get(0), row.get(1))).collect())
}

/// The end of a try, as it is written.
#[derive(Debug, Clone)]
pub struct TryEnd {
    /// Whose.
    pub tenant: TenantId,
    /// Which job.
    pub job: JobId,
    /// The right to write this.
    pub token: Uuid,
    /// The tries so far, this one counted.
    pub tries: Tries,
    /// Who ran it.
    pub worker: String,
    /// How the try is written down.
    pub outcome: TryOutcome,
    /// Its error, as JSON.
    pub error: Option<String>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// Others may wait for its turn in a line to be over.
    pub in_line: bool,
    /// What becomes of the job.
    pub then: Then,
    /// Only while the lease runs and nobody wants the job stopped: a report from outside, whose lease nobody watches.
    pub fenced: bool,
}

/// What becomes of the job after a try.
#[derive(Debug, Clone)]
pub enum Then {
    /// It ended.
    End {
        /// How.
        status: EndStatus,
        /// The result's JSON.
        result: Option<String>,
        /// The key that is free now.
        unique_key: Option<String>,
    },
    /// It is tried again after so long; zero: at once.
    Again(Duration),
}

/// What stands in the columns of the statement; `None` where the job did not end, or is not tried again.
impl TryEnd {
    fn status(&self) -> Option<i16> {
        match &self.then {
            Then::End { status, .. } => Some(status.code()),
            Then::Again(_) => None,
        }
    }
    fn wait_s(&self) -> Option<f64> {
        match &self.then {
            Then::End { .. } => None,
            Then::Again(after) => Some(after.as_secs_f64()),
        }
    }
    fn result(&self) -> Option<&[u8]> {
        match &self.then {
            Then::End { result, .. } => result.as_ref().map(String::as_bytes),
            Then::Again(_) => None,
        }
    }
    fn unique_key(&self) -> Option<&str> {
        match &self.then {
            Then::End { unique_key, .. } => unique_key.as_deref(),
            Then::Again(_) => None,
        }
    }
}

/// What the writing of ends came to.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Which of them held their lease; the others changed nothing.
    pub held: Vec<bool>,
    /// Held jobs may have waited for one of them.
    pub called: bool,
}

/// Writes the ends of tries, in the caller's transaction.
/// # Errors
/// [`StoreError`].
pub async fn end(tx: &mut Tx, ends: &[TryEnd]) -> Result<Ended, StoreError> {
    let rows = sqlx::query(
        "-- jobs::lease_store::end
        WITH input AS MATERIALIZED (
          SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::int4[], $5::text[], $6::int2[], $7::text[], $8::timestamptz[], $9::timestamptz[],
            $10::int2[], $11::float8[], $12::bytea[], $13::text[], $14::int2[], $15::bool[], $16::bool[])
          AS t(tenant_id, job_id, token, attempt, worker, outcome, error, started_at, finished_at, status, wait_s, result, unique_key, crashes, fenced, in_line)
        ), mine AS MATERIALIZED (
          -- In one order for all, or two batches could wait for each other.
          SELECT i.*, l.queue, l.kind, l.priority, l.tries FROM (SELECT * FROM input ORDER BY tenant_id, job_id) i CROSS JOIN LATERAL (
            SELECT l.queue, l.kind, l.priority, l.tries FROM ringback.job_leases l
            WHERE l.tenant_id = i.tenant_id AND l.job_id = i.job_id AND l.token = i.token
              AND (NOT i.fenced OR (l.expires_at > now() AND NOT l.cancel_requested)) LIMIT 1 FOR UPDATE
          ) l
        ), held AS (
          -- By key, never by ctid: an extension or a wish to cancel may have moved the row since this statement began.
          DELETE FROM ringback.job_leases l USING mine m
          WHERE l.tenant_id = m.tenant_id AND l.job_id = m.job_id AND l.token = m.token RETURNING l.token
        ), tried AS (
          INSERT INTO ringback.job_attempts (tenant_id, job_id, number, worker, outcome, error, started_at, finished_at, token)
          SELECT tenant_id, job_id, attempt, worker, outcome, error, started_at, finished_at, CASE WHEN status IS NULL THEN token END FROM mine
        ), ended AS (
          INSERT INTO ringback.job_ends (tenant_id, job_id, status, attempt, token, result, error, started_at, finished_at)
          SELECT tenant_id, job_id, status, attempt, token, result, error, started_at, finished_at FROM mine WHERE status IS NOT NULL
        ), freed AS (
          DELETE FROM ringback.job_unique_keys WHERE ctid = ANY(ARRAY(
            SELECT k.at FROM mine m CROSS JOIN LATERAL (
              SELECT k.ctid AS at FROM ringback.job_unique_keys k
              WHERE k.tenant_id = m.tenant_id AND k.key = m.unique_key AND k.job_id = m.job_id LIMIT 1 FOR UPDATE
            ) k WHERE m.unique_key IS NOT NULL AND m.status IS NOT NULL))
        ), later AS (
          INSERT INTO ringback.job_scheduled (tenant_id, job_id, queue, kind, priority, due_at, attempt, tries, crashes)
          SELECT tenant_id, job_id, queue, kind, priority, now() + wait_s * interval '1 s', attempt, tries, crashes FROM mine WHERE wait_s > 0
        ), at_once AS (
          INSERT INTO ringback.job_ready (tenant_id, job_id, queue, kind, priority, ready_at, attempt, tries, crashes)
          SELECT tenant_id, job_id, queue, kind, priority, now(), attempt, tries, crashes FROM mine WHERE wait_s = 0
        ), called AS (
          INSERT INTO ringback.job_calls (tenant_id, what, job_id)
          SELECT m.tenant_id, 0, m.job_id FROM mine m WHERE m.status IS NOT NULL AND (
            m.in_line OR EXISTS (SELECT FROM ringback.job_waits w WHERE w.tenant_id = m.tenant_id AND w.after_id = m.job_id))
          RETURNING 1
        )
        SELECT token, EXISTS (SELECT FROM called) FROM held",
    )
    .bind(ends.iter().map(|end| end.tenant.uuid()).collect::<Vec<_>>())
    .bind(ends.iter().map(|end| end.job.uuid()).collect::<Vec<_>>())
    .bind(ends.iter().map(|end| end.token).collect::<Vec<_>>())
    .bind(ends.iter().map(|end| end.tries.attempt).collect::<Vec<_>>())
    .bind(ends.iter().map(|end| end.worker.as_str()).collect::<Vec<_>>())
    .bind(ends.iter().map(|end| end.outcome.code()).collect::<Vec<_>>())
    .bind(ends.iter().map(|end| end.error.as_deref()).collect::<Vec<_>>())
    .bind(ends.iter().map(|end| end.started_at).collect::<Vec<_>>())
    .bind(ends.iter().map(|end| end.finished_at).collect::<Vec<_>>())
    .bind(ends.iter().map(TryEnd::status).collect::<Vec<_>>())
    .bind(ends.iter().map(TryEnd::wait_s).collect::<Vec<_>>())
    .bind(ends.iter().map(TryEnd::result).collect::<Vec<_>>())
    .bind(ends.iter().map(TryEnd::unique_key).collect::<Vec<_>>())
    .bind(ends.iter().map(|end| end.tries.crashes).collect::<Vec<_>>())
    .bind(ends.iter().map(|end| end.fenced).collect::<Vec<_>>())
    .bind(ends.iter().map(|end| end.in_line).collect::<Vec<_>>())
    .fetch_all(&mut **tx)
    .await?;
    let held: std::collections::HashSet<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let called = rows.first().is_some_and(|row| row.get(1));
    Ok(Ended { held: ends.iter().map(|end| held.contains(&end.token)).collect(), called })
}

/// Writes that jobs which were waiting or held were cancelled, each with its attempts so far and its error as JSON, in the
/// caller's transaction, which has taken them out of where they were.
/// # Errors
/// [`StoreError`].
pub async fn end_waiting(tx: &mut Tx, ends: &[(&Job, i32, String)], at: Timestamp) -> Result<(), StoreError> {
    sqlx::query(
        "-- jobs::lease_store::end_waiting
        WITH input AS MATERIALIZED (
          SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int4[], $4::text[], $5::text[], $6::bool[])
          AS t(tenant_id, job_id, attempt, error, unique_key, in_line)
        ), freed AS (
          DELETE FROM ringback.job_unique_keys WHERE ctid = ANY(ARRAY(
            SELECT k.at FROM input i CROSS JOIN LATERAL (
              SELECT k.ctid AS at FROM ringback.job_unique_keys k
              WHERE k.tenant_id = i.tenant_id AND k.key = i.unique_key AND k.job_id = i.job_id LIMIT 1 FOR UPDATE
            ) k WHERE i.unique_key IS NOT NULL))
        ), called AS (
          INSERT INTO ringback.job_calls (tenant_id, what, job_id)
          SELECT i.tenant_id, 0, i.job_id FROM input i WHERE i.in_line
            OR EXISTS (SELECT FROM ringback.job_waits w WHERE w.tenant_id = i.tenant_id AND w.after_id = i.job_id)
        )
        INSERT INTO ringback.job_ends (tenant_id, job_id, status, attempt, error, finished_at)
        SELECT tenant_id, job_id, 3, attempt, error, $7 FROM input",
    )
    .bind(ends.iter().map(|(job, ..)| job.tenant.uuid()).collect::<Vec<_>>())
    .bind(ends.iter().map(|(job, ..)| job.id.uuid()).collect::<Vec<_>>())
    .bind(ends.iter().map(|(_, attempt, _)| *attempt).collect::<Vec<_>>())
    .bind(ends.iter().map(|(.., error)| error.as_str()).collect::<Vec<_>>())
    .bind(ends.iter().map(|(job, ..)| job.unique_key.as_deref()).collect::<Vec<_>>())
    .bind(ends.iter().map(|(job, ..)| job.ordering_key.is_some()).collect::<Vec<_>>())
    .bind(at)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Gives leases back: the jobs are ready again at once, and no try is counted.
/// # Errors
/// [`StoreError`].
pub async fn release(db: &Db, tokens: &[Uuid]) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "-- jobs::lease_store::release
        WITH held AS (DELETE FROM ringback.job_leases WHERE token = ANY($1) RETURNING *)
        INSERT INTO ringback.job_ready (tenant_id, job_id, queue, kind, priority, ready_at, attempt, tries, crashes)
        SELECT tenant_id, job_id, queue, kind, priority, now(), attempt - 1, tries - 1, crashes FROM held",
    )
    .bind(tokens)
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}

/// A lease that ran out or whose node is gone.
#[derive(Debug)]
pub struct LostLease {
    /// As it was handed out.
    pub lease: Lease,
    /// Who held it.
    pub worker: String,
    /// Someone had asked to stop the job.
    pub cancel_requested: bool,
    /// `timeout_s` was over, not only the lease.
    pub timed_out: bool,
}

/// Finds leases that ran out, and those of nodes that are no longer there.
/// # Errors
/// [`StoreError`].
pub async fn lost(db: &Db, limit: i64) -> Result<Vec<LostLease>, StoreError> {
    let rows = sqlx::query(
        "-- jobs::lease_store::lost
        SELECT l.token, l.attempt, l.tries, l.crashes, l.started_at, l.cancel_requested, coalesce(nullif(l.worker, ''), n.name, 'a node that is gone') AS worker,
          l.deadline <= now() AS timed_out,
          j.tenant_id, j.id, j.kind, j.queue, j.priority, j.run_at, j.timeout_ms, j.max_attempts, j.backoff, j.unique_key,
          j.input, j.metadata::text AS metadata, j.callback_url, j.callback_options, j.traceparent, j.schedule_id, j.nominal_at,
          p.progress, p.checkpoint, j.ordering_key, j.after_ids, j.after_failure
        FROM ringback.job_leases l LEFT JOIN ringback.nodes n ON n.id = l.holder
        CROSS JOIN LATERAL (SELECT * FROM ringback.jobs j WHERE j.tenant_id = l.tenant_id AND j.id = l.job_id LIMIT 1) j
        LEFT JOIN LATERAL (SELECT p.progress, p.checkpoint FROM ringback.job_progress p WHERE p.tenant_id = l.tenant_id AND p.job_id = l.job_id LIMIT 1) p ON true
        WHERE l.expires_at <= now() OR (l.holder IS NOT NULL AND n.id IS NULL)
        LIMIT $1",
    )
    .bind(limit)
    .fetch_all(db.pool())
    .await?;
    rows.iter().map(LostLease::from_row).collect::<Result<_, sqlx::Error>>().map_err(StoreError::from)
}

impl<'r> FromRow<'r, PgRow> for LostLease {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            lease: Lease::from_row(row)?,
            worker: row.try_get("worker")?,
            cancel_requested: row.try_get("cancel_requested")?,
            timed_out: row.try_get::<Option<bool>, _>("timed_out")?.unwrap_or(false),
        })
    }
}
