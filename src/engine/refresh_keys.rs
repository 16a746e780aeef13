//! Keeps the API keys in memory: a request is judged without asking the database, and a change shows within a second.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{jittered, pause};
use crate::db::StoreError;
use crate::shared::Shared;
use crate::supervisor::Stop;
use crate::tenants::store;

const EVERY: Duration = Duration::from_secs(1);

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    while pause(&stop, None, jittered(EVERY)).await {
        // While the database is away, the keys that were valid stay valid.
        if let Err(error) = refresh(&shared).await {
            tracing::debug!(%error, "cannot read the API keys");
        }
    }
}

/// Reads the keys anew.
/// # Errors
/// [`StoreError`]; the keys in memory stay as they were.
pub async fn refresh(shared: &Shared) -> Result<(), StoreError> {
    let keys = store::keys(&shared.db).await?;
    *shared.keys.write().unwrap_or_else(PoisonError::into_inner) = keys.into_iter().collect();
    Ok(())
}
