//! Wakes a loop of this process early. Polling is what makes the loops correct; this only makes them quick.
//!
//! Called by whoever makes work (accept, finish, fan-out) and by the loops that wait for it.

use std::sync::Arc;

use tokio::sync::Notify;

/// One bell for each loop. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Wakeups {
    /// Jobs are ready.
    pub jobs: Arc<Notify>,
    /// A job waits for a time that may be earlier than all others.
    pub scheduled: Arc<Notify>,
    /// A node is gone, and its leases with it.
    pub leases: Arc<Notify>,
    /// Events wait for their numbers.
    pub events: Arc<Notify>,
    /// A replay was made or cancelled.
    pub replays: Arc<Notify>,
    /// An endpoint was changed in this process.
    pub endpoints: Arc<Notify>,
    /// Deliveries are due, or a lane changed hands.
    pub deliveries: Arc<Notify>,
}
