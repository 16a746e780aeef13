//! Idempotency keys: a request that creates something may be repeated and gets the first answer again.
//!
//! draft-ietf-httpapi-idempotency-key-header-07. Called by `http::idempotency`. The key is stored in the same commit as
//! what it made, with the answer, so there is no moment in which one exists without the other. `Running` knows the
//! requests under way in this process; between processes the key's primary key decides.
//!
//! Invariant: under one key of one tenant at most one request takes effect within 24 hours.

pub mod store;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::ids::TenantId;

/// How long a key is kept, at least.
pub const KEPT_HOURS: i32 = 24;
/// A key is at most this long.
pub const KEY_MAX_BYTES: usize = 255;

/// A key with the answer that a repetition gets.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// As the client sent it.
    pub key: String,
    /// SHA-256 of method, path and body.
    pub fingerprint: [u8; 32],
    /// The `Location` of the answer.
    pub location: Option<String>,
    /// The body of the answer.
    pub body: Vec<u8>,
}

/// The answer of the first request under a key.
#[derive(Debug, Clone)]
pub struct StoredAnswer {
    /// Of the first request.
    pub fingerprint: Vec<u8>,
    /// HTTP status.
    pub status: u16,
    /// The `Location`.
    pub location: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// The keys of requests that are under way in this process.
#[derive(Debug, Clone, Default)]
pub struct Running(Arc<Mutex<HashSet<(TenantId, String)>>>);

/// The right to run under a key; given back when dropped.
#[derive(Debug)]
pub struct RunningKey {
    running: Running,
    key: (TenantId, String),
}

impl Running {
    /// `None`: the first request under this key is still running.
    pub fn begin(&self, tenant: TenantId, key: &str) -> Option<RunningKey> {
        let key = (tenant, key.to_owned());
        let fresh = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        fresh.then(|| RunningKey { running: self.clone(), key })
    }
}

impl Drop for RunningKey {
    fn drop(&mut self) {
        self.running.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
