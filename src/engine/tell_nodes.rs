//! Tells the other nodes what they may want to look at: one message for all that was marked, at most one in 20 ms.
//!
//! Runs until all work is drained, so that what a stopping node hands back is known at once. A message that cannot be sent
//! is dropped: polling is the net.

use std::sync::Arc;
use std::time::Duration;

use crate::nodes::call_store;
use crate::shared::Shared;
use crate::supervisor::Stop;

/// Commits that notify wait for each other, in the whole server; so we do not notify more often.
const GAP: Duration = Duration::from_millis(20);

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    let elsewhere = &shared.wakeups.elsewhere;
    loop {
        let stopping = tokio::select! {
            () = stop.drain.cancelled() => true,
            () = elsewhere.marked() => false,
        };
        if let Some(calls) = elsewhere.take()
            && let Err(error) = call_store::tell(&shared.db, &calls.to_text(shared.node_id())).await
        {
            tracing::debug!(%error, "cannot tell the other nodes; they look by themselves");
        }
        if stopping {
            return;
        }
        tokio::time::sleep(GAP).await;
    }
}
