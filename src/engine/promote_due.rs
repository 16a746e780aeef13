//! Makes jobs ready when their time comes: delayed ones and those between two tries. Sleeps until the next due time.

use std::sync::Arc;
use std::time::Duration;

use super::{jittered, pause};
use crate::jobs::store;
use crate::shared::Shared;
use crate::supervisor::Stop;

/// Another process may have scheduled something earlier than what we sleep for, and its word may be lost.
const AT_LATEST: Duration = Duration::from_secs(1);
const BATCH_MAX: i64 = 1000;

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    loop {
        let wait = match store::promote_due(&shared.db, BATCH_MAX).await {
            Ok((moved, next_s)) => {
                if moved > 0 {
                    shared.wakeups.jobs.notify_one();
                }
                if moved == BATCH_MAX {
                    Duration::ZERO
                } else {
                    let poll = jittered(AT_LATEST);
                    next_s.map_or(poll, |next_s| Duration::from_secs_f64(next_s.max(0.001)).min(poll))
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot look for due jobs");
                Duration::from_secs(1)
            }
        };
        if !pause(&stop, Some(&shared.wakeups.scheduled), wait).await {
            return;
        }
    }
}
