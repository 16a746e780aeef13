//! Says that this node lives, keeps its presence lock, and puts off the expiry of its leases.
//!
//! Runs until all work is drained; then it signs the node off. A lost connection is opened again; if other nodes took
//! this one for dead meanwhile, its lanes and leases are fenced, and it goes on with what it gets anew.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::pause;
use crate::db::StoreError;
use crate::jobs::lease_store;
use crate::nodes::{self, store::Presence};
use crate::shared::Shared;
use crate::supervisor::Stop;

/// How long a lease is: after the process is gone without a word, its jobs are handed out again.
pub const LEASE: Duration = Duration::from_secs(30);
/// How often leases are put off; a third of the lease at most, and quick enough to bring a wish to cancel.
const EXTEND_EVERY: Duration = Duration::from_secs(5);

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    let mut presence: Option<Presence> = None;
    let mut extended = Instant::now();
    loop {
        if let Err(error) = beat(&shared, &mut presence).await {
            tracing::warn!(%error, "cannot say that this node lives");
            presence = None;
        }
        if extended.elapsed() >= EXTEND_EVERY {
            extended = Instant::now();
            extend(&shared).await;
        }
        if !pause(&stop, None, nodes::HEARTBEAT).await {
            break;
        }
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
    nodes::store::heartbeat(&shared.db, &shared.node).await
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
