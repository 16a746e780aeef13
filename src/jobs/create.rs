//! Creates several jobs, or one with a `unique_key`, in a transaction of their own. Single jobs without one go through
//! the accept batcher instead, which shares its commits.
//!
//! Called by `http::submit`.
//!
//! Invariant: all jobs of a call and the answer to its repetition are one commit.

use super::store::{self, Accept};
use crate::db::{Db, StoreError};
use crate::idempotency::{self, NewKey};
use crate::ids::JobId;

/// What became of the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// The request's key is taken; nothing was stored.
    KeyTaken,
    /// All are stored but those whose unique key another job holds: for these, that one.
    Stored {
        /// In the order of the jobs.
        holders: Vec<Option<JobId>>,
    },
}

/// Stores the jobs whose unique key is free.
/// # Errors
/// [`StoreError`]; nothing was stored, or (unavailable) it is not known.
pub async fn create(db: &Db, mut accepts: Vec<Accept>, key: Option<NewKey>) -> Result<Created, StoreError> {
    let mut tx = db.begin().await?;
    if let (Some(key), Some(first)) = (&key, accepts.first())
        && !idempotency::store::insert(&mut tx, first.job.tenant, key, 202).await?
    {
        return Ok(Created::KeyTaken);
    }
    let jobs: Vec<_> = accepts.iter().map(|accept| &accept.job).collect();
    let holders = store::claim_unique_keys(&mut tx, &jobs).await?;
    let mut held = holders.iter();
    accepts.retain(|_| held.next().is_none_or(Option::is_none));
    for accept in &mut accepts {
        accept.key = None;
    }
    store::accept(&mut *tx, &accepts).await?;
    tx.commit().await?;
    Ok(Created::Stored { holders })
}
