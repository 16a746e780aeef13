//! Deliveries: one event on its way to one receiver. Stops 8 and 9 of a job's path are here.
//!
//! Holds the noun and its statuses. `message` makes the signed bytes (stop 8), `retry` decides what an answer means and
//! `store` records it (stop 9), `scheduling` decides whose turn it is. Called by `engine::fan_out` (creates),
//! `engine::dispatch` (sends, records) and `http::deliveries` (shows, retries). Knows no HTTP, no loop.
//!
//! Invariant: every POST leaves an attempt row, and only the owner of the delivery's lane may write it.

pub mod due_store;
pub mod end_store;
pub mod explain;
pub mod hand_off;
pub mod matched;
pub mod message;
pub mod read_store;
pub mod replay_store;
pub mod retry;
pub mod scheduling;
pub mod store;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::ids::{DeliveryId, EndpointId, EventId, JobId, ReplayId, TenantId};

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryStatus {
    /// Will be tried, perhaps again.
    Pending,
    /// The receiver said 2xx.
    Succeeded,
    /// Nothing more is tried.
    Failed,
}

impl DeliveryStatus {
    /// All of them by name.
    pub const WORDS: [(&'static str, Self); 3] =
        [("pending", Self::Pending), ("succeeded", Self::Succeeded), ("failed", Self::Failed)];
}

/// A delivery on its way into the database.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub id: DeliveryId,
    /// What is delivered.
    pub event: EventId,
    /// Its topic.
    pub event_type: String,
    /// To the callback of this job…
    pub job: Option<JobId>,
    /// … or to this endpoint.
    pub endpoint: Option<EndpointId>,
    /// Who is called.
    pub target: Uuid,
    /// One after another with those that share it.
    pub order: Option<i64>,
    /// The event's place in the log.
    pub position: i64,
    /// What a transform made of the data.
    pub data: Option<String>,
    /// It was ordered by this replay.
    pub replay: Option<ReplayId>,
}

/// A delivery that failed before anything was sent.
#[derive(Debug, Clone)]
pub struct FailedDelivery {
    /// Which.
    pub delivery: NewDelivery,
    /// In the words of the API.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl NewDelivery {
    /// As it is held in memory.
    pub fn due(&self) -> Due {
        Due {
            tenant: self.tenant,
            lane: lane_of(self.tenant, self.target),
            id: self.id,
            target: self.target,
            order: self.order,
            position: self.position,
            replay: self.replay.is_some(),
        }
    }
}

/// The lane of a target. Stable: it is stored with each waiting delivery.
pub fn lane_of(tenant: TenantId, target: Uuid) -> i16 {
    let mut hasher = Sha256::new();
    hasher.update(tenant.uuid().as_bytes());
    hasher.update(target.as_bytes());
    let digest = hasher.finalize();
    i16::from(digest[0]) % crate::nodes::LANES
}

/// Where a walk over due deliveries stands: when the last one was due, and which it was.
pub type DueCursor = (Timestamp, DeliveryId);

/// A delivery that waits to be sent, as it is held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub id: DeliveryId,
    /// Who is called.
    pub target: Uuid,
    /// In which lane the target is.
    pub lane: i16,
    /// Deliveries of one target that share it go one after another…
    pub order: Option<i64>,
    /// … by their place in the log.
    pub position: i64,
    /// It gives way to all that is not one.
    pub replay: bool,
}
