//! Creates several jobs, or one with a `unique_key`, in a transaction of their own. Single jobs without one go through
//! the accept batcher instead, which shares its commits.
//!
//! Called by `http::submit`.
//!
//! Invariant: all jobs of a call and the answer to its repetition are one commit.

use sqlx::PgExecutor;

use super::read_store::{self, StoredJob};
use super::store::{self, Accept};
use crate::courtesy::Courtesy;
use crate::db::{Db, StoreError};
use crate::idempotency::{self, NewKey};
use crate::ids::{JobId, TenantId};

/// What the caller is told, and told again when it repeats its call under the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstAnswer {
    /// HTTP status.
    pub status: u16,
    /// The `Location`.
    pub location: Option<String>,
    /// The body.
    pub body: String,
}

/// Stores the jobs whose unique key is free. `answer` makes the answer from the jobs that hold the keys of the others,
/// in the order of `accepts`. `None`: the request's key is taken, and nothing was stored.
/// # Errors
/// [`StoreError`]; nothing was stored, or (unavailable) it is not known.
pub async fn create(
    db: &Db,
    courtesy: &Courtesy,
    mut accepts: Vec<Accept>,
    key: Option<NewKey>,
    answer: impl FnOnce(&[Option<StoredJob>]) -> FirstAnswer,
) -> Result<Option<FirstAnswer>, StoreError> {
    let Some(tenant) = accepts.first().map(|accept| accept.job.tenant) else {
        return Ok(Some(answer(&[])));
    };
    let mut tx = db.begin_impatient().await?;
    let jobs: Vec<_> = accepts.iter().map(|accept| &accept.job).collect();
    let held_by = store::claim_unique_keys(&mut tx, &jobs).await?;
    let mut held = held_by.iter();
    accepts.retain(|_| held.next().is_none_or(Option::is_none));
    for accept in &mut accepts {
        accept.key = None;
    }
    let mut pieces = courtesy.pieces(tenant, &accepts);
    while let Some(piece) = pieces.next().await {
        store::accept(&mut *tx, piece).await?;
    }
    // After the jobs, because the holder of a key may be among them.
    let answer = answer(&holders(&mut *tx, tenant, &held_by).await?);
    if let Some(key) = key {
        let key = NewKey { location: answer.location.clone(), body: answer.body.clone().into_bytes(), ..key };
        if !idempotency::store::insert(&mut tx, tenant, &key, answer.status).await? {
            return Ok(None);
        }
    }
    tx.commit().await?;
    Ok(Some(answer))
}

async fn holders(
    db: impl PgExecutor<'_>,
    tenant: TenantId,
    ids: &[Option<JobId>],
) -> Result<Vec<Option<StoredJob>>, StoreError> {
    let wanted: Vec<JobId> = ids.iter().copied().flatten().collect();
    if wanted.is_empty() {
        return Ok(vec![None; ids.len()]);
    }
    let found = read_store::get_many(db, tenant, &wanted).await?;
    let holder = |id: &Option<JobId>| found.iter().find(|one| Some(one.job.id) == *id).cloned();
    Ok(ids.iter().map(holder).collect())
}
