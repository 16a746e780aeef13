//! When workers of each kind were last seen, kept in memory and written down now and then, for `explain`.
//!
//! Called by `http::leases` (sees) and `engine::lend_jobs` (writes). What another process saw is read from the table.
//!
//! Invariant: however often workers call, a kind costs one write in [`EVERY`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::ids::TenantId;

/// A sighting is written down so often at most.
pub const EVERY: Duration = Duration::from_secs(5);
/// Names of kinds come from outside; more than this are not kept in one span.
const KINDS_MAX: usize = 10_000;

/// Whose kind, and which worker it was.
pub type Sighting = (TenantId, String, String);

#[derive(Debug)]
struct Seen {
    fresh: HashMap<(TenantId, String), String>,
    written_at: Option<Instant>,
}

/// The sightings that are not written yet. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sightings(Arc<Mutex<Seen>>);

impl Default for Sightings {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Seen { fresh: HashMap::new(), written_at: None })))
    }
}

impl Sightings {
    /// Notes that a worker asked for jobs of a kind, or told of one.
    pub fn saw(&self, tenant: TenantId, kind: &str, worker: &str) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.fresh.len() < KINDS_MAX {
            seen.fresh.entry((tenant, kind.to_owned())).or_insert_with(|| worker.to_owned());
        }
    }

    /// What is to be written now; nothing, if that was done a moment ago.
    pub fn due(&self, now: Instant) -> Vec<Sighting> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.fresh.is_empty() || seen.written_at.is_some_and(|at| now < at + EVERY) {
            return Vec::new();
        }
        seen.written_at = Some(now);
        let mut due: Vec<Sighting> =
            seen.fresh.drain().map(|((tenant, kind), worker)| (tenant, kind, worker)).collect();
        // One order for all processes, or two of them could wait for each other.
        due.sort_unstable_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        due
    }
}
