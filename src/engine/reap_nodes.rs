//! Finds nodes that died and frees what they held: their lanes here, their leases in `expire_leases`.

use std::sync::Arc;

use super::{jittered, pause};
use crate::nodes;
use crate::shared::Shared;
use crate::supervisor::Stop;

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    loop {
        match nodes::store::reap(&shared.db, &shared.node).await {
            Ok(dead) => {
                for name in &dead {
                    tracing::warn!(node = name, "node {name} is gone; its work is taken over");
                }
                if !dead.is_empty() {
                    shared.wakeups.lanes.notify_one();
                    shared.wakeups.leases.notify_one();
                }
            }
            Err(error) => tracing::warn!(%error, "cannot look for dead nodes"),
        }
        if !pause(&stop, None, jittered(nodes::HEARTBEAT)).await {
            return;
        }
    }
}
