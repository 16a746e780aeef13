//! The SQL of explanations: what stands before a job. The sentence is made in `explain`.
//!
//! Called by `http::explain`. Every look is bounded: it counts so many jobs and no more.

use sqlx::Row;

use super::JobStatus;
use super::explain::{AHEAD_COUNTED_MAX, Held, Limit, NAMED_MAX, Ready, Running, Standing, Workers};
use super::queue_limit::QueueLimits;
use super::read_store::StoredJob;
use crate::db::{Db, StoreError};

/// Where a job stands that was just read. It may have moved since: then the job itself has to tell.
/// # Errors
/// [`StoreError`].
pub async fn standing(
    db: &Db,
    stored: &StoredJob,
    limits: &QueueLimits,
    workers: Workers,
) -> Result<Standing, StoreError> {
    let standing = match stored.state.status {
        JobStatus::Running => running(db, stored).await?.map(Standing::Running),
        JobStatus::Queued | JobStatus::Retrying if stored.state.due_at.is_none() => {
            match ready(db, stored).await? {
                Some(ready) => {
                    let limit = limit(db, &stored.job.queue, limits).await?;
                    Some(Standing::Ready(Ready { limit, workers, ..ready }))
                }
                None if stored.job.is_held() => held(db, stored).await?.map(Standing::Held),
                None => None,
            }
        }
        _ => None,
    };
    Ok(standing.unwrap_or(Standing::Told))
}

async fn running(db: &Db, stored: &StoredJob) -> Result<Option<Running>, StoreError> {
    let row = sqlx::query(
        "-- jobs::explain_store::running
        SELECT coalesce(nullif(l.worker, ''), n.name, 'a node that is gone'), l.started_at
        FROM ringback.job_leases l LEFT JOIN ringback.nodes n ON n.id = l.holder WHERE l.tenant_id = $1 AND l.job_id = $2",
    )
    .bind(stored.job.tenant)
    .bind(stored.job.id)
    .fetch_optional(db.pool())
    .await?;
    Ok(row.map(|row| Running { worker: row.get(0), since: row.get(1) }))
}

async fn ready(db: &Db, stored: &StoredJob) -> Result<Option<Ready>, StoreError> {
    // In two parts, so that each is a piece of the index and ends where the count does.
    let row = sqlx::query(
        "-- jobs::explain_store::ready
        SELECT p.paused_at, (SELECT count(*) FROM (
            (SELECT FROM ringback.job_ready b WHERE b.tenant_id = r.tenant_id AND b.queue = r.queue AND b.kind = r.kind
               AND b.priority > r.priority LIMIT $3)
            UNION ALL
            (SELECT FROM ringback.job_ready b WHERE b.tenant_id = r.tenant_id AND b.queue = r.queue AND b.kind = r.kind
               AND b.priority = r.priority AND (b.ready_at, b.job_id) < (r.ready_at, r.job_id) LIMIT $3)
            LIMIT $3) b)
        FROM (SELECT * FROM ringback.job_ready WHERE tenant_id = $1 AND job_id = $2) r
        LEFT JOIN ringback.paused_queues p ON p.tenant_id = r.tenant_id AND p.queue = r.queue",
    )
    .bind(stored.job.tenant)
    .bind(stored.job.id)
    .bind(AHEAD_COUNTED_MAX + 1)
    .fetch_optional(db.pool())
    .await?;
    Ok(row.map(|row| Ready { paused_at: row.get(0), ahead: row.get(1), ..Ready::default() }))
}

async fn limit(db: &Db, queue: &str, limits: &QueueLimits) -> Result<Limit, StoreError> {
    let Some(limit) = limits.get(queue) else { return Ok(Limit::Open) };
    let row = sqlx::query(
        "-- jobs::explain_store::limit
        SELECT (SELECT count(*) FROM ringback.job_leases WHERE queue = $1), (SELECT next_at FROM ringback.limited_queues WHERE queue = $1), now()",
    )
    .bind(queue)
    .fetch_one(db.pool())
    .await?;
    let running: i64 = row.get(0);
    let allowed = limit.allow(1, usize::try_from(running).unwrap_or(0), row.get(1), row.get(2));
    Ok(match (allowed.jobs, allowed.next) {
        (0, None) => Limit::Full(running),
        (0, Some(_)) => Limit::TooFast,
        _ => Limit::Open,
    })
}

async fn held(db: &Db, stored: &StoredJob) -> Result<Option<Held>, StoreError> {
    let row = sqlx::query(
        "-- jobs::explain_store::held
        SELECT h.pending::int8,
          ARRAY(SELECT d.id FROM unnest($3::uuid[]) AS d(id)
            WHERE EXISTS (SELECT FROM ringback.job_waits w WHERE w.tenant_id = h.tenant_id AND w.after_id = d.id AND w.job_id = h.job_id)
            LIMIT $4),
          (SELECT o.job_id FROM ringback.job_heads o
           WHERE o.tenant_id = h.tenant_id AND o.queue = h.queue AND o.ordering_key = h.ordering_key AND o.job_id <> h.job_id),
          (SELECT count(*) FROM (
             SELECT FROM ringback.job_held b WHERE b.tenant_id = h.tenant_id AND b.queue = h.queue AND b.ordering_key = h.ordering_key
               AND b.place < h.place LIMIT $5) b)
        FROM ringback.job_held h WHERE h.tenant_id = $1 AND h.job_id = $2",
    )
    .bind(stored.job.tenant)
    .bind(stored.job.id)
    .bind(stored.job.after.as_ref().map(|after| after.jobs.iter().map(|id| id.uuid()).collect::<Vec<_>>()))
    .bind(NAMED_MAX)
    .bind(AHEAD_COUNTED_MAX + 1)
    .fetch_optional(db.pool())
    .await?;
    Ok(row.map(|row| Held {
        pending: row.get(0),
        waits_for: row.get(1),
        head: row.get(2),
        ahead: row.get(3),
    }))
}
