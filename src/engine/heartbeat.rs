//! Says that this node lives, keeps its presence lock, and puts off the expiry of its leases.
//!
//! Runs until all work is drained; then it signs the node off. A lost connection is opened again; if other nodes took
//! this one for dead meanwhile, its lanes and leases are fenced, and it goes on with what it gets anew.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::db::StoreError;
use crate::jobs::lease_store;
use crate::nodes::{self, store::Presence};
use crate::shared::Shared;
use crate::supervisor::Stop;

/// How long a lease is: after the process is gone without a word, its jobs are handed out again.
pub const LEASE: Duration = Duration::from_secs(30);
/// How often leases are put off; a third of the lease at most, and quick enough to bring a wish to cancel whose bell was
/// not heard.
const EXTEND_EVERY: Duration = Duration::from_secs(5);

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    let mut presence: Option<Presence> = None;
    let mut extended = Instant::now();
    let mut asked_to_stop = false;
    loop {
        if let Err(error) = beat(&shared, &mut presence).await {
            tracing::warn!(%error, "cannot say that this node lives");
            presence = None;
        }
        if extended.elapsed() >= EXTEND_EVERY || asked_to_stop {
            extended = Instant::now();
            extend(&shared).await;
        }
        asked_to_stop = tokio::select! {
            () = stop.drain.cancelled() => break,
            () = shared.wakeups.cancels.notified() => true,
            () = tokio::time::sleep(nodes::HEARTBEAT) => false,
        };
    }
    if let Err(error) = nodes::store::leave(&shared.db, &shared.node).await {
        tracing::warn!(%error, "cannot sign this node off; the others will find out");
    }
    if let Some(presence) = presence {
        presence.close().await;
    }
}

async fn beat(shared: &Shared, presence: &mut Option<Presence>) -> Result<(), StoreError> {
    match presence {
        Some(presence) => presence.check().await?,
        None => *presence = Some(Presence::open(&shared.db, &shared.node).await?),
    }
    let others = nodes::store::heartbeat(&shared.db, &shared.node).await?;
    shared.wakeups.elsewhere.set_company(others > 0);
    Ok(())
}

async fn extend(shared: &Shared) {
    match lease_store::extend(&shared.db, shared.node_id(), LEASE).await {
        Ok(unwanted) => {
            for (tenant, job) in unwanted {
                shared.running_jobs.cancel(tenant, job);
            }
        }
        Err(error) => tracing::warn!(%error, "cannot put off the expiry of leases"),
    }
}
