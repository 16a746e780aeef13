//! The SQL of what a job waits for: are these jobs there, and what became of them.
//!
//! Called by `http::submit` (a job that nobody knows is a fault), by `http::jobs` and by whoever hands jobs out. Who waits for
//! what stands in `lines_store`.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::Row;
use uuid::Uuid;

use super::lease_store::Lease;
use super::{EndStatus, JobError, JobStatus, read_store};
use crate::db::{Db, StoreError, raw_json};
use crate::ids::{JobId, TenantId};

/// So many bytes of results and errors go along with a job, in the order of its `after`; what is beyond is left out.
pub const RESULTS_MAX_BYTES: i64 = 1024 * 1024;

/// What became of a job that another one waited for.
#[derive(Debug, Clone, Serialize)]
pub struct AfterResult {
    job_id: JobId,
    /// `None`: older than the retention.
    status: Option<JobStatus>,
    result: Option<Box<RawValue>>,
    error: Option<JobError>,
    /// There is a result or an error, and no room for it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    omitted: bool,
}

/// Which of these jobs this tenant has.
/// # Errors
/// [`StoreError`].
pub async fn existing(db: &Db, tenant: TenantId, jobs: &[JobId]) -> Result<HashSet<JobId>, StoreError> {
    let found = sqlx::query_scalar(
        "-- jobs::after_store::existing
        SELECT j.id FROM unnest($2::uuid[]) AS w(id) CROSS JOIN LATERAL (
          SELECT j.id FROM ringback.jobs j WHERE j.tenant_id = $1 AND j.id = w.id LIMIT 1
        ) j",
    )
    .bind(tenant)
    .bind(uuids(jobs))
    .fetch_all(db.pool())
    .await?;
    Ok(found.into_iter().collect())
}

/// What became of these jobs, in their order.
/// # Errors
/// [`StoreError`].
pub async fn results(db: &Db, tenant: TenantId, after: &[JobId]) -> Result<Vec<AfterResult>, StoreError> {
    let rows = sqlx::query(
        "-- jobs::after_store::results
        WITH ended AS MATERIALIZED (
          SELECT w.id, e.status, sum(e.size) OVER (ORDER BY w.number) AS size, e.size > 0 AS has_any
          FROM unnest($2::uuid[]) WITH ORDINALITY AS w(id, number) LEFT JOIN LATERAL (
            SELECT e.status, coalesce(octet_length(e.result), 0) + coalesce(octet_length(e.error), 0) AS size
            FROM ringback.job_ends e WHERE e.tenant_id = $1 AND e.job_id = w.id LIMIT 1
          ) e ON true
        )
        SELECT n.id, n.status, e.result, e.error, coalesce(n.has_any AND n.size > $3, false) AS omitted FROM ended n LEFT JOIN LATERAL (
          SELECT e.result, e.error FROM ringback.job_ends e WHERE e.tenant_id = $1 AND e.job_id = n.id AND n.size <= $3 LIMIT 1
        ) e ON true",
    )
    .bind(tenant)
    .bind(uuids(after))
    .bind(RESULTS_MAX_BYTES)
    .fetch_all(db.pool())
    .await?;
    let mut found = HashMap::new();
    for row in &rows {
        let result: Option<&[u8]> = row.get(2);
        let one = AfterResult {
            job_id: row.get(0),
            status: row.get::<Option<i16>, _>(1).and_then(EndStatus::of_code).map(JobStatus::from),
            result: result.map(raw_json).transpose()?,
            error: row.get::<Option<&str>, _>(3).and_then(|text| serde_json::from_str(text).ok()),
            omitted: row.get(4),
        };
        found.insert(one.job_id, one);
    }
    // One that was retried by hand since has not ended, or not again.
    let open: Vec<JobId> = found.values().filter(|one| one.status.is_none()).map(|one| one.job_id).collect();
    if !open.is_empty() {
        for stored in read_store::get_many(db.pool(), tenant, &open).await? {
            if let Some(one) = found.get_mut(&stored.job.id) {
                one.status = Some(stored.state.status);
            }
        }
    }
    Ok(after.iter().filter_map(|id| found.remove(id)).collect())
}

/// Puts the results along with the leases whose jobs waited for others.
/// # Errors
/// [`StoreError`].
pub async fn attach(db: &Db, leases: &mut [(usize, Lease)]) -> Result<(), StoreError> {
    for (_, lease) in leases {
        if let Some(after) = &lease.job.after {
            lease.after_results = results(db, lease.job.tenant, &after.jobs).await?;
        }
    }
    Ok(())
}

/// Have all of them ended?
pub fn all_ended(results: &[AfterResult]) -> bool {
    results.iter().all(|one| one.status.is_none_or(JobStatus::is_final))
}

fn uuids(jobs: &[JobId]) -> Vec<Uuid> {
    jobs.iter().map(|id| id.uuid()).collect()
}
