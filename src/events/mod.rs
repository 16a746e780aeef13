//! Events: facts, in the order in which they became visible.
//!
//! Holds the noun and where its deliveries come from. `store` appends an event in the transaction of what it tells of
//! (stop 6 of a job's path) and numbers it after that commit (stop 7), so that a reader who goes by positions never
//! passes a late one by. `new_event` and `publish` take in what comes from outside, `log` reads. Knows no receiver.
//!
//! Invariant: an event's data is kept and sent byte for byte as it came.

pub mod bells;
pub mod cursor;
pub mod event_type;
pub mod log;
pub mod new_event;
pub mod publish;
mod publish_store;
pub mod read_store;
pub mod recent_store;
pub mod store;
pub mod view;
pub mod window_store;

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::ids::{EventId, JobId, TenantId};

/// An event's data from outside is at most this long, as JSON text.
pub const DATA_MAX_BYTES: usize = 256 * 1024;
/// An ordering or dedup key is at most this long.
pub const KEY_MAX_BYTES: usize = 255;
/// A batch has at most this many events.
pub const BATCH_MAX: usize = 1000;
/// How long a `dedup_key` is held.
pub const DEDUP_HOURS: i32 = 24;

/// An event on its way into the log: the one form in which events are appended, ours and others'.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Whose.
    pub tenant: TenantId,
    /// Its id, and the `webhook-id` of all its deliveries.
    pub id: EventId,
    /// The topic, such as `job.succeeded`.
    pub event_type: String,
    /// Its data's JSON.
    pub data: String,
    /// Free strings.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Events that share it are delivered in order where an endpoint asks for it.
    pub ordering_key: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// The callback that is told as well.
    pub callback: Option<CallbackRef>,
}

/// The callback of a job, as a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallbackRef {
    /// Whose callback.
    pub job: JobId,
    /// Who is called, for fairness and limits: a hash of tenant and URL origin.
    pub target: Uuid,
}

impl CallbackRef {
    /// All callbacks of a tenant to one origin (scheme, host, port) are one target.
    pub fn new(tenant: TenantId, job: JobId, url: &str) -> Self {
        let origin =
            url::Url::parse(url).map_or_else(|_| url.to_owned(), |url| url.origin().ascii_serialization());
        let mut hasher = Sha256::new();
        hasher.update(tenant.uuid().as_bytes());
        hasher.update(origin.as_bytes());
        let digest = hasher.finalize();
        let mut bytes = [0u8; 16];
        bytes.copy_from_slice(&digest[..16]);
        Self { job, target: Uuid::from_bytes(bytes) }
    }
}
