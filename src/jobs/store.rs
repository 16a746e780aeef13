//! The SQL of jobs: accept (stop 2 of a job's path; next: `engine::run_jobs`), take back, retry, promote.
//!
//! Called by `http::jobs` and the accept batcher. Reading stands in `read_store`, handing out and ending in `lease_store`. Columns of `jobs` that
//! may hold secrets are sealed before they come here.
//!
//! Invariant: a job's row, its place in a hot table, its keys and the stored answer are one commit.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::Row;
use uuid::Uuid;

use super::{After, Job};
use crate::db::batch::Tenanted;
use crate::db::{Db, StoreError, Tx};
use crate::idempotency::NewKey;
use crate::ids::{JobId, TenantId};

/// A job on its way into the database.
#[derive(Debug, Clone)]
pub struct Accept {
    /// The job.
    pub job: Job,
    /// Its callback's options, sealed; `None`: the defaults.
    pub sealed_options: Option<Vec<u8>>,
    /// The key of the request, with the answer that a repetition gets.
    pub key: Option<NewKey>,
}

impl Tenanted for Accept {
    fn tenant(&self) -> TenantId {
        self.job.tenant
    }
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// It is on disk.
    Stored,
    /// The request's key is taken; nothing was stored.
    KeyTaken,
}

const ACCEPT: &str = "-- jobs::store::accept
    WITH input AS MATERIALIZED (
      SELECT * FROM unnest(
        $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::int2[], $6::timestamptz[], $7::int4[], $8::int4[], $9::text[],
        $10::text[], $11::bytea[], $12::text[], $13::text[], $14::bytea[], $15::text[], $16::text[], $17::bytea[], $18::text[], $19::bytea[],
        $20::text[], $21::text[], $22::int2[], $23::uuid[], $24::timestamptz[]
      ) WITH ORDINALITY AS t(tenant_id, id, kind, queue, priority, run_at, timeout_ms, max_attempts, backoff,
        unique_key, input, metadata, callback_url, callback_options, traceparent, idem_key, idem_print, idem_location, idem_body,
        ordering_key, after_ids, after_failure, schedule_id, nominal_at, number)
    ), keyed AS (
      INSERT INTO ringback.idempotency_keys (tenant_id, key, fingerprint, status, location, body)
      SELECT tenant_id, idem_key, idem_print, 202, idem_location, idem_body FROM input
      WHERE idem_key IS NOT NULL ORDER BY tenant_id, idem_key
      ON CONFLICT DO NOTHING
      RETURNING tenant_id, key
    ), chosen AS MATERIALIZED (
      -- Places in lines are given in the order of the batch.
      SELECT i.*, CASE WHEN ordering_key IS NOT NULL THEN nextval('ringback.job_places') END AS place FROM (
        SELECT * FROM input i
        WHERE i.idem_key IS NULL OR EXISTS (SELECT FROM keyed k WHERE k.tenant_id = i.tenant_id AND k.key = i.idem_key)
        ORDER BY number
      ) i
    ), stored AS (
      INSERT INTO ringback.jobs (tenant_id, id, kind, queue, priority, run_at, timeout_ms, max_attempts, backoff,
        unique_key, input, metadata, callback_url, callback_options, traceparent, ordering_key, place, after_ids, after_failure,
        schedule_id, nominal_at)
      SELECT tenant_id, id, kind, queue, priority, run_at, timeout_ms, max_attempts, backoff,
        unique_key, input, metadata::jsonb, callback_url, callback_options, traceparent, ordering_key, place, after_ids::uuid[], after_failure,
        schedule_id, nominal_at FROM chosen
      ON CONFLICT DO NOTHING
      RETURNING tenant_id, id, queue, kind, priority, run_at, ordering_key, place, after_ids, after_failure,
        ordering_key IS NOT NULL OR after_ids IS NOT NULL AS held, coalesce(cardinality(after_ids), 0) AS pending
    ), ready AS (
      INSERT INTO ringback.job_ready (tenant_id, job_id, queue, kind, priority, ready_at)
      SELECT tenant_id, id, queue, kind, priority, run_at FROM stored WHERE NOT held AND run_at <= now()
    ), later AS (
      INSERT INTO ringback.job_scheduled (tenant_id, job_id, queue, kind, priority, due_at)
      SELECT tenant_id, id, queue, kind, priority, run_at FROM stored WHERE NOT held AND run_at > now()
    ), held AS (
      INSERT INTO ringback.job_held (tenant_id, job_id, queue, kind, priority, run_at, ordering_key, place, pending, cancel_on_failure)
      SELECT tenant_id, id, queue, kind, priority, run_at, ordering_key, place, pending, coalesce(after_failure, 0) = 0 FROM stored WHERE held
    ), waits AS (
      INSERT INTO ringback.job_waits (tenant_id, after_id, job_id) SELECT tenant_id, unnest(after_ids), id FROM stored WHERE after_ids IS NOT NULL
    ), calls AS (
      INSERT INTO ringback.job_calls (tenant_id, what, job_id, weight) SELECT tenant_id, 1, id, pending FROM stored WHERE held
    )
    SELECT id FROM chosen";

/// Stores jobs in one statement: all of them, but for those whose request's key is taken.
/// Repeating it with the same ids changes nothing and answers the same.
/// # Errors
/// [`StoreError`]; nothing was stored, or (unavailable) it is not known.
pub async fn accept(db: impl sqlx::PgExecutor<'_>, items: &[Accept]) -> Result<Vec<Accepted>, StoreError> {
    let jobs = || items.iter().map(|item| &item.job);
    let keys = || items.iter().map(|item| item.key.as_ref());
    let metadata: Vec<Option<String>> =
        jobs().map(|job| job.metadata.as_ref().and_then(|map| serde_json::to_string(map).ok())).collect();
    let rows = sqlx::query(ACCEPT)
        .bind(jobs().map(|job| job.tenant.uuid()).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.id.uuid()).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.kind.as_str()).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.queue.as_str()).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.priority).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.run_at).collect::<Vec<_>>())
        .bind(jobs().map(|job| millis(job.timeout)).collect::<Vec<_>>())
        .bind(jobs().map(|job| i32::try_from(job.retry.max_attempts).unwrap_or(i32::MAX)).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.backoff_json.as_deref()).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.unique_key.as_deref()).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.input.get().as_bytes()).collect::<Vec<_>>())
        .bind(metadata)
        .bind(
            jobs().map(|job| job.callback.as_ref().map(|callback| callback.url.as_str())).collect::<Vec<_>>(),
        )
        .bind(items.iter().map(|item| item.sealed_options.as_deref()).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.traceparent.as_deref()).collect::<Vec<_>>())
        .bind(keys().map(|key| key.map(|key| key.key.as_str())).collect::<Vec<_>>())
        .bind(keys().map(|key| key.map(|key| key.fingerprint.as_slice())).collect::<Vec<_>>())
        .bind(keys().map(|key| key.and_then(|key| key.location.as_deref())).collect::<Vec<_>>())
        .bind(keys().map(|key| key.map(|key| key.body.as_slice())).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.ordering_key.as_deref()).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.after.as_ref().map(uuid_array)).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.after.as_ref().map(|after| after.on_failure.code())).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.scheduled.map(|scheduled| scheduled.by.uuid())).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.scheduled.and_then(|scheduled| scheduled.at)).collect::<Vec<_>>())
        .fetch_all(db)
        .await?;
    let stored: std::collections::HashSet<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let answer = |item: &Accept| {
        if stored.contains(&item.job.id.uuid()) { Accepted::Stored } else { Accepted::KeyTaken }
    };
    Ok(items.iter().map(answer).collect())
}

/// Claims the unique keys of new jobs, in the caller's transaction. Returns for each job the one that already holds
/// its key, if another does.
/// # Errors
/// [`StoreError`].
pub async fn claim_unique_keys(tx: &mut Tx, jobs: &[&Job]) -> Result<Vec<Option<JobId>>, StoreError> {
    let mut keyed: Vec<(TenantId, &str, JobId)> =
        jobs.iter().filter_map(|job| Some((job.tenant, job.unique_key.as_deref()?, job.id))).collect();
    if keyed.is_empty() {
        return Ok(vec![None; jobs.len()]);
    }
    // One order for all transactions, or two of them could wait for each other.
    keyed.sort_unstable_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    let mut holders: HashMap<(TenantId, String), JobId> = HashMap::new();
    // Between the try and the look the holder may end, and its key be free: then once more.
    for _ in 0..KEY_ROUNDS {
        keyed.retain(|(tenant, key, _)| !holders.contains_key(&(*tenant, (*key).to_owned())));
        if keyed.is_empty() {
            break;
        }
        for name in [CLAIM_UNIQUE_KEYS, HOLDERS_OF_UNIQUE_KEYS] {
            let rows = sqlx::query(name)
                .bind(keyed.iter().map(|(tenant, _, _)| tenant.uuid()).collect::<Vec<_>>())
                .bind(keyed.iter().map(|(_, key, _)| *key).collect::<Vec<_>>())
                .bind(keyed.iter().map(|(_, _, id)| id.uuid()).collect::<Vec<_>>())
                .fetch_all(&mut **tx)
                .await?;
            holders.extend(rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))));
        }
    }
    if keyed.iter().any(|(tenant, key, _)| !holders.contains_key(&(*tenant, (*key).to_owned()))) {
        return Err(StoreError::Conflict(
            "too many requests with this unique_key at once; try once more".to_owned(),
        ));
    }
    let holder = |job: &&Job| {
        let key = job.unique_key.clone()?;
        holders.get(&(job.tenant, key)).copied().filter(|id| *id != job.id)
    };
    Ok(jobs.iter().map(holder).collect())
}

/// Rows of keys are made and deleted, never updated: an end deletes them by ctid, which an update would move.
const CLAIM_UNIQUE_KEYS: &str = "-- jobs::store::claim_unique_keys
    WITH input AS (SELECT * FROM unnest($1::uuid[], $2::text[], $3::uuid[]) WITH ORDINALITY AS t(tenant_id, key, job_id, place))
    INSERT INTO ringback.job_unique_keys (tenant_id, key, job_id)
    SELECT DISTINCT ON (tenant_id, key) tenant_id, key, job_id FROM input ORDER BY tenant_id, key, place
    ON CONFLICT (tenant_id, key) DO NOTHING
    RETURNING tenant_id, key, job_id";
const HOLDERS_OF_UNIQUE_KEYS: &str = "-- jobs::store::holders_of_unique_keys
    WITH input AS MATERIALIZED (SELECT DISTINCT t.tenant_id, t.key FROM unnest($1::uuid[], $2::text[], $3::uuid[]) AS t(tenant_id, key, job_id))
    SELECT i.tenant_id, i.key, k.job_id FROM input i CROSS JOIN LATERAL (
      SELECT k.job_id FROM ringback.job_unique_keys k WHERE k.tenant_id = i.tenant_id AND k.key = i.key LIMIT 1
    ) k";
const KEY_ROUNDS: u32 = 20;

/// Takes a waiting job out of the hot tables, in the caller's transaction. `false`: it was not waiting.
/// # Errors
/// [`StoreError`].
pub async fn take_waiting(tx: &mut Tx, tenant: TenantId, id: JobId) -> Result<bool, StoreError> {
    let taken: i64 = sqlx::query_scalar(
        "-- jobs::store::take_waiting
        WITH ready AS (DELETE FROM ringback.job_ready WHERE tenant_id = $1 AND job_id = $2 RETURNING 1),
        later AS (DELETE FROM ringback.job_scheduled WHERE tenant_id = $1 AND job_id = $2 RETURNING 1),
        held AS (DELETE FROM ringback.job_held WHERE tenant_id = $1 AND job_id = $2 RETURNING 1)
        SELECT (SELECT count(*) FROM ready) + (SELECT count(*) FROM later) + (SELECT count(*) FROM held)",
    )
    .bind(tenant)
    .bind(id)
    .fetch_one(&mut **tx)
    .await?;
    Ok(taken > 0)
}

/// Asks the holder of a running job to stop. `false`: it is not running.
/// # Errors
/// [`StoreError`].
pub async fn request_cancel(db: &Db, tenant: TenantId, id: JobId) -> Result<bool, StoreError> {
    let done = sqlx::query("-- jobs::store::request_cancel\nUPDATE ringback.job_leases SET cancel_requested = true WHERE tenant_id = $1 AND job_id = $2")
        .bind(tenant)
        .bind(id)
        .execute(db.pool())
        .await?;
    Ok(done.rows_affected() > 0)
}

/// Puts a job that failed or was cancelled back in the queue, with a fresh round of tries.
/// # Errors
/// [`StoreError::Conflict`] when it has not ended so.
pub async fn retry(db: &Db, tenant: TenantId, id: JobId) -> Result<(), StoreError> {
    let mut tx = db.begin().await?;
    let done = sqlx::query(
        "-- jobs::store::retry
        WITH ended AS (DELETE FROM ringback.job_ends WHERE tenant_id = $1 AND job_id = $2 AND status IN (2, 3) RETURNING attempt),
        key AS (
          INSERT INTO ringback.job_unique_keys (tenant_id, key, job_id)
          SELECT j.tenant_id, j.unique_key, j.id FROM ringback.jobs j, ended
          WHERE j.tenant_id = $1 AND j.id = $2 AND j.unique_key IS NOT NULL
        ), ready AS (
          INSERT INTO ringback.job_ready (tenant_id, job_id, queue, kind, priority, ready_at, attempt)
          SELECT j.tenant_id, j.id, j.queue, j.kind, j.priority, now(), ended.attempt
          FROM ringback.jobs j, ended WHERE j.tenant_id = $1 AND j.id = $2 AND j.ordering_key IS NULL
        ), held AS (
          -- It was accepted before those that wait in its line now, so it takes its old place, before them. That it keeps its place
          -- is also why no circle can form: who waits for a job, or behind it, was accepted later. What it waited for is over:
          -- a wait that was left changes pending, which is at most 0 then, and dooms it no more.
          INSERT INTO ringback.job_held (tenant_id, job_id, queue, kind, priority, run_at, attempt, ordering_key, place, pending, cancel_on_failure)
          SELECT j.tenant_id, j.id, j.queue, j.kind, j.priority, now(), ended.attempt, j.ordering_key, j.place, 0, false
          FROM ringback.jobs j, ended WHERE j.tenant_id = $1 AND j.id = $2 AND j.ordering_key IS NOT NULL
          RETURNING tenant_id, job_id
        ), called AS (
          INSERT INTO ringback.job_calls (tenant_id, what, job_id) SELECT tenant_id, 1, job_id FROM held
        )
        SELECT attempt FROM ended",
    )
    .bind(tenant)
    .bind(id)
    .fetch_optional(&mut *tx)
    .await;
    match done {
        Ok(Some(_)) => Ok(tx.commit().await?),
        Ok(None) => Err(StoreError::Conflict("only a failed or cancelled job can be retried".to_owned())),
        Err(error)
            if error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation) =>
        {
            Err(StoreError::Conflict("another job with the same unique_key is not finished".to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Moves what is due to the ready jobs. Returns how many moved, and the seconds until the next one is due.
/// # Errors
/// [`StoreError`].
pub async fn promote_due(db: &Db, limit: i64) -> Result<(i64, Option<f64>), StoreError> {
    let row = sqlx::query(
        "-- jobs::store::promote_due
        WITH due AS MATERIALIZED (
          SELECT ctid AS at FROM ringback.job_scheduled WHERE due_at <= now() ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
        ), moved AS (
          DELETE FROM ringback.job_scheduled WHERE ctid = ANY(ARRAY(SELECT at FROM due)) RETURNING *
        ), ready AS (
          INSERT INTO ringback.job_ready (tenant_id, job_id, queue, kind, priority, ready_at, attempt, tries, crashes)
          SELECT tenant_id, job_id, queue, kind, priority, due_at, attempt, tries, crashes FROM moved
        )
        SELECT (SELECT count(*) FROM moved),
          (SELECT extract(epoch FROM due_at - now())::float8 FROM ringback.job_scheduled WHERE due_at > now() ORDER BY due_at LIMIT 1)",
    )
    .bind(limit)
    .fetch_one(db.pool())
    .await?;
    Ok((row.get(0), row.get(1)))
}

/// The ids as the text of an array: there are no arrays of arrays of different lengths.
fn uuid_array(after: &After) -> String {
    let ids: Vec<String> = after.jobs.iter().map(|id| id.uuid().to_string()).collect();
    format!("{{{}}}", ids.join(","))
}

/// A duration as the columns in milliseconds keep it.
pub(super) fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX).max(1)
}
