//! Housekeeping: partitions are made ahead, old ones dropped; old keys, positions, replays and deleted endpoints forgotten.

use std::sync::Arc;
use std::time::Duration;

use super::{jittered, pause};
use crate::db::{StoreError, partitions};
use crate::endpoints::{self, health_store};
use crate::shared::Shared;
use crate::supervisor::Stop;
use crate::{events, idempotency, replays, workers};

const EVERY: Duration = Duration::from_mins(10);
const PURGE_BATCH: i64 = 5000;
/// Days are dropped as a whole, so an event may be a day older than the retention; its position outlives it.
const DAY: Duration = Duration::from_hours(24);

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    loop {
        if let Err(error) = maintain(&shared).await {
            tracing::warn!(%error, "housekeeping was not finished; it is tried again later");
        }
        if !pause(&stop, None, jittered(EVERY)).await {
            return;
        }
    }
}

async fn maintain(shared: &Shared) -> Result<(), StoreError> {
    partitions::make_ahead(&shared.db).await?;
    for dropped in partitions::drop_old(&shared.db, shared.config.retention).await? {
        tracing::info!(partition = dropped, "history that is older than the retention was dropped");
    }
    let days = i32::try_from(shared.config.retention.as_secs() / 86_400).unwrap_or(i32::MAX).max(1);
    while endpoints::store::purge_deleted(&shared.db, shared.config.retention + DAY, PURGE_BATCH).await?
        as i64
        == PURGE_BATCH
    {}
    while health_store::purge(&shared.db, days, PURGE_BATCH).await? as i64 == PURGE_BATCH {}
    while replays::store::purge(&shared.db, days, PURGE_BATCH).await? as i64 == PURGE_BATCH {}
    for dropped in partitions::drop_old_log(&shared.db, shared.config.retention + DAY).await? {
        tracing::info!(
            partition = dropped,
            "positions of events that are older than the retention were dropped"
        );
    }
    while events::store::purge_log(&shared.db, shared.config.retention + DAY, PURGE_BATCH).await? as i64
        == PURGE_BATCH
    {}
    while events::store::purge_dedup(&shared.db, PURGE_BATCH).await? as i64 == PURGE_BATCH {}
    while workers::store::purge(&shared.db, shared.config.retention, PURGE_BATCH).await? as i64 == PURGE_BATCH
    {
    }
    while idempotency::store::purge(&shared.db, PURGE_BATCH).await? as i64 == PURGE_BATCH {}
    Ok(())
}
