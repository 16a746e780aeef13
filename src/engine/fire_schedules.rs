//! Makes the jobs of schedules when their times come. Sleeps until the next one; any number of processes may do it.

use std::sync::Arc;
use std::time::Duration;

use super::{jittered, pause};
use crate::clock::Timestamp;
use crate::db::StoreError;
use crate::ids::TenantId;
use crate::jobs::Job;
use crate::schedules::{fire, store};
use crate::shared::Shared;
use crate::supervisor::Stop;

/// Another process may have made a schedule that is due before all that we know of, and its word may be lost.
const AT_LATEST: Duration = Duration::from_secs(1);

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    let mut running_since = None;
    loop {
        let wait = match look(&shared, &mut running_since).await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::warn!(%error, "cannot look for due schedules");
                AT_LATEST
            }
        };
        if !pause(&stop, Some(&shared.wakeups.schedules), wait).await {
            return;
        }
    }
}

/// Fires what is due, and says how long there is nothing more to do.
async fn look(shared: &Shared, running_since: &mut Option<Timestamp>) -> Result<Duration, StoreError> {
    let since = match *running_since {
        Some(since) => since,
        None => *running_since.insert(store::now(&shared.db).await?),
    };
    let seal_options = |job: &Job| shared.seal_options(job.tenant, job.id, job.callback.as_ref());
    let tools = fire::Tools {
        sealer: &shared.sealer,
        rules: shared.job_context(TenantId::from_uuid(uuid::Uuid::nil()), since),
        seal_options: &seal_options,
        running_since: since,
    };
    let fired = fire::fire(&shared.db, &tools).await?;
    if fired.jobs > 0 {
        shared.wakeups.jobs.notify_one();
    }
    if fired.held {
        shared.wakeups.held.notify_one();
    }
    if fired.more {
        return Ok(Duration::ZERO);
    }
    let next_s = store::next_due_s(&shared.db).await?;
    let poll = jittered(AT_LATEST);
    Ok(next_s.map_or(poll, |next_s| Duration::from_secs_f64(next_s.max(0.001)).min(poll)))
}
