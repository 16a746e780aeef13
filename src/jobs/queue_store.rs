//! The SQL of queues as an admin sees them: what waits in each, and whether it is paused.
//!
//! Called by `http::queues`. A queue is a name on jobs and no object: one is listed while something waits or runs in it, or
//! while it is paused. The hand-out looks at `paused_queues` by itself (`claim_store`).
//!
//! Invariant: a look at a backlog counts so many rows and no more.

use sqlx::Row;

use crate::clock::Timestamp;
use crate::db::{Db, StoreError};
use crate::ids::TenantId;

/// A backlog is counted up to here.
pub const DEPTH_COUNTED_MAX: i64 = 100_000;

/// A queue of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Jobs that could be handed out now.
    pub depth: i64,
    /// Jobs that wait for a time: delayed, or between two tries.
    pub scheduled: i64,
    /// Jobs that run.
    pub running: i64,
    /// Since when the one that waits longest could be handed out.
    pub oldest: Option<Timestamp>,
    /// Since when nothing is handed out.
    pub paused_at: Option<Timestamp>,
}

impl Queue {
    /// One in which nothing is.
    pub fn empty(name: &str) -> Self {
        Self { name: name.to_owned(), depth: 0, scheduled: 0, running: 0, oldest: None, paused_at: None }
    }
}

/// The queues of a tenant, by name; one of them, if it is named, also when nothing is in it.
/// # Errors
/// [`StoreError`].
pub async fn list(db: &Db, tenant: TenantId, only: Option<&str>) -> Result<Vec<Queue>, StoreError> {
    let rows = sqlx::query(
        "-- jobs::queue_store::list
        WITH RECURSIVE names AS (
          (SELECT queue FROM ringback.job_ready WHERE tenant_id = $1 ORDER BY queue LIMIT 1)
          UNION ALL
          SELECT n.queue FROM names l CROSS JOIN LATERAL (
            SELECT r.queue FROM ringback.job_ready r WHERE r.tenant_id = $1 AND r.queue > l.queue ORDER BY r.queue LIMIT 1
          ) n
        ), counted AS (
          SELECT n.queue, c.depth, 0::int8 AS scheduled, 0::int8 AS running, c.oldest, NULL::timestamptz AS paused_at
          FROM names n CROSS JOIN LATERAL (
            SELECT count(*) AS depth, min(ready_at) AS oldest
            FROM (SELECT r.ready_at FROM ringback.job_ready r WHERE r.tenant_id = $1 AND r.queue = n.queue LIMIT $2) r
          ) c
          UNION ALL
          SELECT queue, 0, count(*), 0, NULL, NULL FROM (SELECT queue FROM ringback.job_scheduled WHERE tenant_id = $1 LIMIT $2) s GROUP BY queue
          UNION ALL
          SELECT queue, 0, 0, count(*), NULL, NULL FROM ringback.job_leases WHERE tenant_id = $1 GROUP BY queue
          UNION ALL
          SELECT queue, 0, 0, 0, NULL, paused_at FROM ringback.paused_queues WHERE tenant_id = $1
          UNION ALL
          SELECT $3, 0, 0, 0, NULL, NULL WHERE $3 IS NOT NULL
        )
        SELECT queue, sum(depth)::int8, sum(scheduled)::int8, sum(running)::int8, min(oldest), min(paused_at) FROM counted
        WHERE $3::text IS NULL OR queue = $3 GROUP BY queue ORDER BY queue",
    )
    .bind(tenant)
    .bind(DEPTH_COUNTED_MAX)
    .bind(only)
    .fetch_all(db.pool())
    .await?;
    let queue = |row: &sqlx::postgres::PgRow| Queue {
        name: row.get(0),
        depth: row.get(1),
        scheduled: row.get(2),
        running: row.get(3),
        oldest: row.get(4),
        paused_at: row.get(5),
    };
    Ok(rows.iter().map(queue).collect())
}

/// Hands nothing out of a queue any more; what runs goes on. Twice is as good as once.
/// # Errors
/// [`StoreError`].
pub async fn pause(db: &Db, tenant: TenantId, queue: &str) -> Result<(), StoreError> {
    sqlx::query(
        "-- jobs::queue_store::pause\nINSERT INTO ringback.paused_queues (tenant_id, queue) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    )
    .bind(tenant)
    .bind(queue)
    .execute(db.pool())
    .await?;
    Ok(())
}

/// Hands out of a queue again. Twice is as good as once.
/// # Errors
/// [`StoreError`].
pub async fn resume(db: &Db, tenant: TenantId, queue: &str) -> Result<(), StoreError> {
    sqlx::query("-- jobs::queue_store::resume\nDELETE FROM ringback.paused_queues WHERE tenant_id = $1 AND queue = $2")
        .bind(tenant)
        .bind(queue)
        .execute(db.pool())
        .await?;
    Ok(())
}
