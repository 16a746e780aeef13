//! The SQL of what the sender knows of endpoints: counters by the minute, and since when one fails.
//!
//! Called by the dispatcher (`add_minutes`, `set_health`, `load_health`), `http::endpoint_stats` (`stats`) and the
//! maintenance (`purge`).
//!
//! Invariant: one row for an endpoint and minute, whoever adds to it; a look at the backlog counts so many rows and no
//! more.

use sqlx::Row;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::db::{Db, StoreError};
use crate::ids::{EndpointId, TenantId};

/// Attempts are counted by duration in so many classes: at most 1, 2, 4, … 65,536 ms, and longer.
pub const LATENCY_CLASSES: usize = 18;
/// A backlog is counted up to here.
pub const BACKLOG_COUNTED_MAX: i64 = 10_000;

/// The class of a duration in milliseconds.
pub fn latency_class(duration_ms: u64) -> usize {
    let above = duration_ms.max(1).next_power_of_two().trailing_zeros() as usize;
    above.min(LATENCY_CLASSES - 1)
}

/// What happened to an endpoint in a minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MinuteCounts {
    /// Whose.
    pub tenant: TenantId,
    /// To which endpoint.
    pub endpoint: EndpointId,
    /// The minute's beginning.
    pub minute: Timestamp,
    /// Attempts that succeeded.
    pub succeeded: u32,
    /// Attempts that failed.
    pub failed: u32,
    /// Attempts by [`latency_class`].
    pub latency: [u32; LATENCY_CLASSES],
}

fn signed(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Adds counts to those of their minutes. Each endpoint and minute may stand in the batch once.
/// # Errors
/// [`StoreError`].
pub async fn add_minutes(db: &Db, batch: &[MinuteCounts]) -> Result<(), StoreError> {
    if batch.is_empty() {
        return Ok(());
    }
    // An array of arrays would have to be unnested whole, so the classes of all rows come in one.
    let latency: Vec<i32> = batch.iter().flat_map(|counts| counts.latency).map(signed).collect();
    sqlx::query(
        "-- endpoints::health_store::add_minutes
        INSERT INTO ringback.endpoint_minutes AS m (tenant_id, endpoint_id, minute, succeeded, failed, latency)
        SELECT t.tenant_id, t.endpoint_id, t.minute, t.succeeded, t.failed, ($6::int4[])[(t.place - 1) * $7 + 1 : t.place * $7]
        FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::int4[], $5::int4[])
          WITH ORDINALITY AS t(tenant_id, endpoint_id, minute, succeeded, failed, place)
        ORDER BY t.tenant_id, t.endpoint_id, t.minute
        ON CONFLICT (tenant_id, endpoint_id, minute) DO UPDATE SET
          succeeded = m.succeeded + EXCLUDED.succeeded, failed = m.failed + EXCLUDED.failed,
          latency = (SELECT array_agg(coalesce(a.n, 0) + coalesce(b.n, 0) ORDER BY place)
                     FROM unnest(m.latency) WITH ORDINALITY AS a(n, place) FULL JOIN unnest(EXCLUDED.latency) WITH ORDINALITY AS b(n, place) USING (place))",
    )
    .bind(batch.iter().map(|counts| counts.tenant.uuid()).collect::<Vec<_>>())
    .bind(batch.iter().map(|counts| counts.endpoint.uuid()).collect::<Vec<_>>())
    .bind(batch.iter().map(|counts| counts.minute).collect::<Vec<_>>())
    .bind(batch.iter().map(|counts| signed(counts.succeeded)).collect::<Vec<_>>())
    .bind(batch.iter().map(|counts| signed(counts.failed)).collect::<Vec<_>>())
    .bind(latency)
    .bind(LATENCY_CLASSES as i32)
    .execute(db.relaxed())
    .await?;
    Ok(())
}

/// Forgets counters that are older than so many days.
/// # Errors
/// [`StoreError`].
pub async fn purge(db: &Db, days: i32, limit: i64) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "-- endpoints::health_store::purge
        DELETE FROM ringback.endpoint_minutes WHERE ctid = ANY(ARRAY(
          SELECT ctid FROM ringback.endpoint_minutes WHERE minute < now() - $1 * interval '1 day' LIMIT $2))",
    )
    .bind(days)
    .bind(limit)
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}

/// What is known of an endpoint's receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Whose.
    pub tenant: TenantId,
    /// Of which endpoint.
    pub endpoint: EndpointId,
    /// Since then every attempt failed.
    pub failing_since: Option<Timestamp>,
    /// The breaker is open until then, or was, and one is let through to try.
    pub open_until: Option<Timestamp>,
    /// Failures in a row.
    pub failures: i32,
}

/// Writes what is known; one that is well again has no row.
/// # Errors
/// [`StoreError`].
pub async fn set_health(db: &Db, batch: &[Health]) -> Result<(), StoreError> {
    let (well, ill): (Vec<&Health>, Vec<&Health>) =
        batch.iter().partition(|health| health.failing_since.is_none() && health.open_until.is_none());
    if !well.is_empty() {
        sqlx::query(
            "-- endpoints::health_store::well
            DELETE FROM ringback.endpoint_health h USING unnest($1::uuid[], $2::uuid[]) AS t(tenant_id, endpoint_id)
            WHERE h.tenant_id = t.tenant_id AND h.endpoint_id = t.endpoint_id",
        )
        .bind(well.iter().map(|health| health.tenant.uuid()).collect::<Vec<_>>())
        .bind(well.iter().map(|health| health.endpoint.uuid()).collect::<Vec<_>>())
        .execute(db.relaxed())
        .await?;
    }
    if !ill.is_empty() {
        sqlx::query(
            "-- endpoints::health_store::ill
            INSERT INTO ringback.endpoint_health (tenant_id, endpoint_id, failing_since, open_until, failures)
            SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::int4[])
            ON CONFLICT (tenant_id, endpoint_id) DO UPDATE SET
              failing_since = EXCLUDED.failing_since, open_until = EXCLUDED.open_until, failures = EXCLUDED.failures",
        )
        .bind(ill.iter().map(|health| health.tenant.uuid()).collect::<Vec<_>>())
        .bind(ill.iter().map(|health| health.endpoint.uuid()).collect::<Vec<_>>())
        .bind(ill.iter().map(|health| health.failing_since).collect::<Vec<_>>())
        .bind(ill.iter().map(|health| health.open_until).collect::<Vec<_>>())
        .bind(ill.iter().map(|health| health.failures).collect::<Vec<_>>())
        .execute(db.relaxed())
        .await?;
    }
    Ok(())
}

/// What is known of all endpoints that are not well.
/// # Errors
/// [`StoreError`].
pub async fn load_health(db: &Db) -> Result<Vec<Health>, StoreError> {
    let rows = sqlx::query(
        "-- endpoints::health_store::load_health
        SELECT tenant_id, endpoint_id, failing_since, open_until, failures FROM ringback.endpoint_health",
    )
    .fetch_all(db.pool())
    .await?;
    let read = |row: &sqlx::postgres::PgRow| Health {
        tenant: row.get(0),
        endpoint: row.get(1),
        failing_since: row.get(2),
        open_until: row.get(3),
        failures: row.get(4),
    };
    Ok(rows.iter().map(read).collect())
}

/// How an endpoint did, and what waits for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    /// Attempts that succeeded.
    pub succeeded: i64,
    /// Attempts that failed.
    pub failed: i64,
    /// Attempts by [`latency_class`].
    pub latency: Vec<i64>,
    /// Deliveries that wait, at most [`BACKLOG_COUNTED_MAX`]` + 1`.
    pub backlog: i64,
    /// When the one that is due longest was or is due.
    pub oldest_due_at: Option<Timestamp>,
    /// Since then every attempt failed.
    pub failing_since: Option<Timestamp>,
    /// The breaker is open until then, or was, and one is let through to try.
    pub open_until: Option<Timestamp>,
}

/// How an endpoint did in the last hours.
/// # Errors
/// [`StoreError`].
pub async fn stats(db: &Db, tenant: TenantId, endpoint: EndpointId, hours: i32) -> Result<Stats, StoreError> {
    let target: Uuid = endpoint.uuid();
    let row = sqlx::query(
        "-- endpoints::health_store::stats
        WITH minutes AS MATERIALIZED (
          SELECT succeeded, failed, latency FROM ringback.endpoint_minutes
          WHERE tenant_id = $1 AND endpoint_id = $2 AND minute > now() - $3 * interval '1 hour'
        ), classes AS (
          SELECT l.place, sum(l.n)::int8 AS n FROM minutes m CROSS JOIN LATERAL unnest(m.latency) WITH ORDINALITY AS l(n, place) GROUP BY l.place
        ), waiting AS (
          SELECT due_at FROM ringback.delivery_queue WHERE target_id = $2 AND tenant_id = $1 ORDER BY due_at LIMIT $4 + 1
        )
        SELECT coalesce((SELECT sum(succeeded) FROM minutes), 0)::int8, coalesce((SELECT sum(failed) FROM minutes), 0)::int8,
          coalesce((SELECT array_agg(n ORDER BY place) FROM classes), '{}'), (SELECT count(*) FROM waiting), (SELECT min(due_at) FROM waiting),
          (SELECT failing_since FROM ringback.endpoint_health WHERE tenant_id = $1 AND endpoint_id = $2),
          (SELECT open_until FROM ringback.endpoint_health WHERE tenant_id = $1 AND endpoint_id = $2)",
    )
    .bind(tenant)
    .bind(target)
    .bind(hours)
    .bind(BACKLOG_COUNTED_MAX)
    .fetch_one(db.pool())
    .await?;
    Ok(Stats {
        succeeded: row.get(0),
        failed: row.get(1),
        latency: row.get(2),
        backlog: row.get(3),
        oldest_due_at: row.get(4),
        failing_since: row.get(5),
        open_until: row.get(6),
    })
}
