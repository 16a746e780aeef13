//! The SQL of leases that workers outside hold: extend, tell, give back, look up; and of who was seen.
//!
//! Called by `http::leases`, `engine::lend_jobs` and `engine::settle_parcels`. The ends of tries are written by
//! `jobs::finish`, like those of built-in kinds. All statements here are for one tenant, which is why they find their rows by
//! `job_id = ANY(…)` and lock them in the order of the key.
//!
//! Invariant: a lease that has run out, or whose job someone wants stopped, can do nothing.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::{FromRow, Row};
use uuid::Uuid;

use super::LeaseKey;
use super::report::Outcome;
use super::sightings::Sighting;
use crate::clock::Timestamp;
use crate::db::{Db, StoreError};
use crate::ids::TenantId;
use crate::jobs::Told;
use crate::jobs::lease_store::LostLease;

/// Leases of one tenant, and what the caller's key may touch.
#[derive(Debug, Clone)]
pub struct Held {
    /// Whose.
    pub tenant: TenantId,
    /// Only of these kinds; `None`: all.
    pub kinds: Option<Vec<String>>,
    /// Which.
    pub leases: Vec<LeaseKey>,
}

impl Held {
    fn jobs(&self) -> Vec<Uuid> {
        self.leases.iter().map(|key| key.job.uuid()).collect()
    }
    fn tokens(&self) -> Vec<Uuid> {
        self.leases.iter().map(|key| key.token).collect()
    }
}

/// A lease that goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extended {
    /// Until then.
    pub expires_at: Timestamp,
    /// Someone wants the job stopped.
    pub cancelled: bool,
    /// What is done.
    pub kind: String,
    /// By whom.
    pub worker: String,
}

/// Puts off the end of leases, by token; at most until the job's `timeout_s` is over. One whose job someone wants stopped is
/// not put off, so that it ends even if its worker never stops.
/// # Errors
/// [`StoreError`].
pub async fn extend(db: &Db, held: &Held, lease: Duration) -> Result<HashMap<Uuid, Extended>, StoreError> {
    let rows = sqlx::query(
        "-- workers::store::extend
        UPDATE ringback.job_leases SET expires_at =
          CASE WHEN cancel_requested THEN expires_at ELSE least(now() + $5 * interval '1 s', coalesce(deadline, 'infinity')) END
        WHERE tenant_id = $1 AND job_id = ANY($2) AND token = ANY($3) AND ($4::text[] IS NULL OR kind = ANY($4)) AND expires_at > now()
        RETURNING token, expires_at, cancel_requested, kind, worker",
    )
    .bind(held.tenant)
    .bind(held.jobs())
    .bind(held.tokens())
    .bind(held.kinds.as_deref())
    .bind(lease.as_secs_f64())
    .fetch_all(db.relaxed())
    .await?;
    let extended = rows.iter().map(|row| {
        let one =
            Extended { expires_at: row.get(1), cancelled: row.get(2), kind: row.get(3), worker: row.get(4) };
        (row.get(0), one)
    });
    Ok(extended.collect())
}

/// Gives leases that were handed over the length that their worker asked for; until then they had a short one.
/// # Errors
/// [`StoreError`].
pub async fn lengthen(db: &Db, held: &Held, lease: Duration) -> Result<(), StoreError> {
    sqlx::query(
        "-- workers::store::lengthen
        UPDATE ringback.job_leases SET expires_at = least(started_at + $4 * interval '1 s', coalesce(deadline, 'infinity'))
        WHERE tenant_id = $1 AND job_id = ANY($2) AND token = ANY($3) AND expires_at > now()
          AND expires_at < least(started_at + $4 * interval '1 s', coalesce(deadline, 'infinity'))",
    )
    .bind(held.tenant)
    .bind(held.jobs())
    .bind(held.tokens())
    .bind(lease.as_secs_f64())
    .execute(db.relaxed())
    .await?;
    Ok(())
}

/// Gives leases back: their jobs are ready again at once, and no try is counted. Returns the tokens of those that were held.
/// # Errors
/// [`StoreError`].
pub async fn release(db: &Db, held: &Held) -> Result<HashSet<Uuid>, StoreError> {
    let rows = sqlx::query(
        "-- workers::store::release
        WITH held AS (
          DELETE FROM ringback.job_leases
          WHERE tenant_id = $1 AND job_id = ANY($2) AND token = ANY($3) AND ($4::text[] IS NULL OR kind = ANY($4))
            AND expires_at > now() AND NOT cancel_requested
          RETURNING *
        ), back AS (
          INSERT INTO ringback.job_ready (tenant_id, job_id, queue, kind, priority, ready_at, attempt, tries, crashes)
          SELECT tenant_id, job_id, queue, kind, priority, now(), attempt - 1, tries - 1, crashes FROM held
        ), remembered AS (
          INSERT INTO ringback.released_leases (tenant_id, token) SELECT tenant_id, token FROM held
        )
        SELECT token FROM held",
    )
    .bind(held.tenant)
    .bind(held.jobs())
    .bind(held.tokens())
    .bind(held.kinds.as_deref())
    .fetch_all(db.pool())
    .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Keeps what was told of running jobs, one `told` for each lease; a checkpoint stays until another one comes. Returns the tokens
/// of those that were held.
/// # Errors
/// [`StoreError`].
pub async fn tell(db: &Db, held: &Held, told: &[&Told]) -> Result<HashSet<Uuid>, StoreError> {
    let bytes = |json: &Option<Box<serde_json::value::RawValue>>| {
        json.as_ref().map(|raw| raw.get().as_bytes().to_vec())
    };
    let rows = sqlx::query(
        "-- workers::store::tell
        WITH input AS MATERIALIZED (
          SELECT * FROM unnest($2::uuid[], $3::uuid[], $5::bytea[], $6::bytea[]) AS t(job_id, token, progress, checkpoint)
        ), held AS MATERIALIZED (
          -- The lock keeps the lease from ending, and so the next one from beginning, until this is written.
          SELECT job_id, token FROM ringback.job_leases
          WHERE tenant_id = $1 AND job_id = ANY($2) AND token = ANY($3) AND ($4::text[] IS NULL OR kind = ANY($4))
            AND expires_at > now() AND NOT cancel_requested
          ORDER BY job_id FOR KEY SHARE
        ), kept AS (
          INSERT INTO ringback.job_progress AS p (tenant_id, job_id, progress, checkpoint)
          SELECT $1, i.job_id, i.progress, i.checkpoint FROM input i JOIN held h ON h.job_id = i.job_id AND h.token = i.token
          ORDER BY i.job_id
          ON CONFLICT (tenant_id, job_id) DO UPDATE SET progress = coalesce(excluded.progress, p.progress),
            checkpoint = coalesce(excluded.checkpoint, p.checkpoint), updated_at = now()
        )
        SELECT token FROM held",
    )
    .bind(held.tenant)
    .bind(held.jobs())
    .bind(held.tokens())
    .bind(held.kinds.as_deref())
    .bind(told.iter().map(|told| bytes(&told.progress)).collect::<Vec<_>>())
    .bind(told.iter().map(|told| bytes(&told.checkpoint)).collect::<Vec<_>>())
    .fetch_all(db.relaxed())
    .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The leases as they stand, with their jobs, by token: all that have not been ended, also those that have run out.
/// # Errors
/// [`StoreError`].
pub async fn look_up(db: &Db, held: &Held) -> Result<HashMap<Uuid, LostLease>, StoreError> {
    let rows = sqlx::query(
        "-- workers::store::look_up
        SELECT l.token, l.attempt, l.tries, l.crashes, l.started_at, l.cancel_requested, l.worker, l.deadline <= now() AS timed_out,
          j.tenant_id, j.id, j.kind, j.queue, j.priority, j.run_at, j.timeout_ms, j.max_attempts, j.backoff, j.unique_key,
          j.input, j.metadata::text AS metadata, j.callback_url, j.callback_options, j.traceparent, j.schedule_id, j.nominal_at,
          p.progress, p.checkpoint, j.ordering_key, j.after_ids, j.after_failure
        FROM ringback.job_leases l
        CROSS JOIN LATERAL (SELECT * FROM ringback.jobs j WHERE j.tenant_id = l.tenant_id AND j.id = l.job_id LIMIT 1) j
        LEFT JOIN LATERAL (SELECT p.progress, p.checkpoint FROM ringback.job_progress p WHERE p.tenant_id = l.tenant_id AND p.job_id = l.job_id LIMIT 1) p ON true
        WHERE l.tenant_id = $1 AND l.job_id = ANY($2) AND l.token = ANY($3) AND ($4::text[] IS NULL OR l.kind = ANY($4))",
    )
    .bind(held.tenant)
    .bind(held.jobs())
    .bind(held.tokens())
    .bind(held.kinds.as_deref())
    .fetch_all(db.pool())
    .await?;
    let found = rows.iter().map(|row| LostLease::from_row(row).map(|one| (one.lease.token, one)));
    found.collect::<Result<_, sqlx::Error>>().map_err(StoreError::from)
}

/// What was reported under leases that are no longer held, as far as it is remembered.
/// # Errors
/// [`StoreError`].
pub async fn reported(db: &Db, held: &Held) -> Result<HashMap<Uuid, Outcome>, StoreError> {
    let rows = sqlx::query(
        "-- workers::store::reported
        SELECT e.token, a.outcome FROM ringback.job_ends e CROSS JOIN LATERAL (
          SELECT a.outcome FROM ringback.job_attempts a WHERE a.tenant_id = e.tenant_id AND a.job_id = e.job_id AND a.number = e.attempt LIMIT 1
        ) a WHERE e.tenant_id = $1 AND e.job_id = ANY($2) AND e.token = ANY($3)
        UNION ALL
        SELECT token, outcome FROM ringback.job_attempts WHERE tenant_id = $1 AND job_id = ANY($2) AND token = ANY($3)
        UNION ALL
        SELECT token, 0::int2 FROM ringback.released_leases WHERE tenant_id = $1 AND token = ANY($3)",
    )
    .bind(held.tenant)
    .bind(held.jobs())
    .bind(held.tokens())
    .fetch_all(db.pool())
    .await?;
    let outcome = |code: i16| match code {
        0 => Some(Outcome::Released),
        1 => Some(Outcome::Succeeded),
        2 => Some(Outcome::Failed),
        // Cancelled, timed out, crashed: no report of the worker's.
        _ => None,
    };
    Ok(rows.iter().filter_map(|row| Some((row.get(0), outcome(row.get(1))?))).collect())
}

/// Writes down who was seen just now; in the order of tenant and kind.
/// # Errors
/// [`StoreError`].
pub async fn note_sightings(db: &Db, seen: &[Sighting]) -> Result<(), StoreError> {
    sqlx::query(
        "-- workers::store::note_sightings
        INSERT INTO ringback.worker_sightings AS s (tenant_id, kind, worker, seen_at)
        SELECT tenant_id, kind, worker, now() FROM unnest($1::uuid[], $2::text[], $3::text[]) AS t(tenant_id, kind, worker)
        ON CONFLICT (tenant_id, kind) DO UPDATE SET worker = excluded.worker, seen_at = excluded.seen_at",
    )
    .bind(seen.iter().map(|(tenant, _, _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(seen.iter().map(|(_, kind, _)| kind.as_str()).collect::<Vec<_>>())
    .bind(seen.iter().map(|(_, _, worker)| worker.as_str()).collect::<Vec<_>>())
    .execute(db.relaxed())
    .await?;
    Ok(())
}

/// When a worker of this kind was last seen, to within a few seconds, and its name.
/// # Errors
/// [`StoreError`].
pub async fn last_seen(
    db: &Db,
    tenant: TenantId,
    kind: &str,
) -> Result<Option<(Timestamp, String)>, StoreError> {
    let row = sqlx::query(
        "-- workers::store::last_seen\nSELECT seen_at, worker FROM ringback.worker_sightings WHERE tenant_id = $1 AND kind = $2",
    )
    .bind(tenant)
    .bind(kind)
    .fetch_optional(db.pool())
    .await?;
    Ok(row.map(|row| (row.get(0), row.get(1))))
}

/// Forgets what nobody can ask for any more: reports of an hour ago, progress and sightings older than the retention. Returns
/// how many rows of progress went.
/// # Errors
/// [`StoreError`].
pub async fn purge(db: &Db, retention: Duration, limit: i64) -> Result<u64, StoreError> {
    sqlx::query(
        "-- workers::store::purge_released
        DELETE FROM ringback.released_leases WHERE released_at < now() - interval '1 hour'",
    )
    .execute(db.pool())
    .await?;
    sqlx::query(
        "-- workers::store::purge_sightings
        DELETE FROM ringback.worker_sightings WHERE seen_at < now() - greatest($1, 2592000) * interval '1 s'",
    )
    .bind(retention.as_secs_f64())
    .execute(db.pool())
    .await?;
    let done = sqlx::query(
        "-- workers::store::purge_progress
        DELETE FROM ringback.job_progress WHERE ctid = ANY(ARRAY(
          SELECT p.ctid FROM ringback.job_progress p
          WHERE p.updated_at < now() - $1 * interval '1 s'
            AND NOT EXISTS (SELECT FROM ringback.jobs j WHERE j.tenant_id = p.tenant_id AND j.id = p.job_id)
          LIMIT $2))",
    )
    .bind(retention.as_secs_f64())
    .bind(limit)
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}
