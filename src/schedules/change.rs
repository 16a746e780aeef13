//! Creating, changing, deleting and triggering a schedule: one transaction each.
//!
//! Called by `http::schedules`. Whoever fires the schedule at the same moment holds its row; the one comes after the
//! other.
//!
//! Invariant: times are counted from the database's clock, by which they are due.

use super::{Schedule, Settings, store, template};
use crate::clock::Timestamp;
use crate::db::{Db, StoreError};
use crate::idempotency::{self, NewKey};
use crate::ids::{ScheduleId, TenantId};
use crate::jobs::Job;
use crate::jobs::new_job::{Context, Refused};
use crate::jobs::store::{Accept, Accepted};
use crate::secret::{SealError, Sealer};
use crate::secrets::SecretError;

/// So many schedules a tenant may have: each is looked at when it is due, and firing goes on in one loop.
pub const SCHEDULES_MAX: i64 = 1000;

/// Why a schedule was not changed or triggered.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The store or the sealer said no.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// What was asked for is not accepted.
    #[error("the request is not accepted")]
    Refused(Refused),
    /// The schedule is not the one that the caller knows.
    #[error("the schedule was changed meanwhile")]
    Changed,
}

impl From<StoreError> for ScheduleError {
    fn from(error: StoreError) -> Self {
        Self::Secret(error.into())
    }
}

impl From<SealError> for ScheduleError {
    fn from(error: SealError) -> Self {
        Self::Secret(error.into())
    }
}

/// Creates a schedule. `answer` makes what is stored under the request's key. `false`: the key is taken, and nothing
/// was stored.
/// # Errors
/// [`StoreError::Conflict`] where the tenant has [`SCHEDULES_MAX`] already.
pub async fn create(
    db: &Db,
    sealer: &Sealer,
    schedule: &Schedule,
    key: Option<NewKey>,
) -> Result<bool, SecretError> {
    let mut tx = db.begin().await?;
    if let Some(key) = key
        && !idempotency::store::insert(&mut tx, schedule.tenant, &key, 201).await?
    {
        return Ok(false);
    }
    if store::count_to_add(&mut tx, schedule.tenant).await? >= SCHEDULES_MAX {
        let text = format!("a tenant may have {SCHEDULES_MAX} schedules, and has them; delete one first");
        return Err(StoreError::Conflict(text).into());
    }
    store::create(&mut tx, sealer, schedule).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(true)
}

/// Changes a schedule. `change` makes the new settings of the old ones, at the database's time.
/// # Errors
/// [`ScheduleError`].
pub async fn change(
    db: &Db,
    sealer: &Sealer,
    (tenant, id): (TenantId, ScheduleId),
    change: impl FnOnce(&Schedule, Timestamp) -> Result<Settings, ScheduleError>,
) -> Result<Schedule, ScheduleError> {
    let mut tx = db.begin().await?;
    let (old, now) = store::lock(&mut tx, sealer, tenant, id).await?;
    let new = old.with(change(&old, now)?, now);
    store::write(&mut tx, sealer, &new).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(new)
}

/// Deletes a schedule, which need not be readable; its jobs stay. `may` looks at its version first.
/// # Errors
/// [`ScheduleError`].
pub async fn delete(
    db: &Db,
    (tenant, id): (TenantId, ScheduleId),
    may: impl FnOnce(i64) -> bool,
) -> Result<(), ScheduleError> {
    let mut tx = db.begin().await?;
    let (version, _) = store::lock_version(&mut tx, tenant, id).await?;
    if !may(version) {
        return Err(ScheduleError::Changed);
    }
    store::delete(&mut tx, tenant, id).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(())
}

/// Accepts a schedule's job now, by the database's clock, beside whatever runs. `accept` seals what must be, and adds the request's key. `None`:
/// that key is taken, and nothing was stored.
/// # Errors
/// [`ScheduleError`].
pub async fn trigger(
    db: &Db,
    sealer: &Sealer,
    id: ScheduleId,
    (context, traceparent): (Context<'_>, Option<&str>),
    accept: impl FnOnce(Job) -> Result<Accept, SealError>,
) -> Result<Option<Job>, ScheduleError> {
    let (mut tx, tenant) = (db.begin().await?, context.tenant);
    let (schedule, now) = store::lock(&mut tx, sealer, tenant, id).await?;
    let job = template::job_of(&schedule, None, Context { now, ..context }, traceparent)
        .map_err(ScheduleError::Refused)?;
    let accept = accept(job)?;
    let accepted = crate::jobs::store::accept(&mut *tx, std::slice::from_ref(&accept)).await?;
    if accepted.contains(&Accepted::KeyTaken) {
        return Ok(None);
    }
    let mut record = schedule.record;
    record.last_job = Some(accept.job.id);
    record.last_fired_at = Some(now);
    record.open_jobs.push(accept.job.id);
    store::record(&mut tx, &[(tenant, id, record)]).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(Some(accept.job))
}
