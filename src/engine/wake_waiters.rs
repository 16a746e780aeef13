//! Wakes long polls whose job was ended by another process, when that tells of ends. Ends in this process wake them at
//! once.

use std::sync::Arc;
use std::time::Duration;

use super::{jittered, pause};
use crate::jobs::read_store;
use crate::shared::Shared;
use crate::supervisor::Stop;

const EVERY: Duration = Duration::from_secs(1);

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    while pause(&stop, Some(&shared.wakeups.ended), jittered(EVERY)).await {
        let waiting = shared.waiters.jobs();
        if waiting.is_empty() {
            continue;
        }
        match read_store::ended_of(&shared.db, &waiting).await {
            Ok(ended) => ended.into_iter().for_each(|(tenant, job)| shared.waiters.wake(tenant, job)),
            Err(error) => tracing::warn!(%error, "cannot ask about jobs that someone waits for"),
        }
    }
}
