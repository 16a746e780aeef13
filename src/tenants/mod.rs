//! Tenants: whose data it is, and the API keys that speak for them.
//!
//! Called by `app` (the first key) and `http::extract` (who asks?). A key is 256 random bits and stored as SHA-256: a slow hash would only make every request dear. Knows no HTTP.
//!
//! Invariant: the tenant of a request comes from its key and from nowhere else.

pub mod store;

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::ids::{KeyId, TenantId};
use crate::secret::{SealError, Secret, random_bytes};

/// What a key may do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Read jobs.
    JobsRead,
    /// Submit, cancel, retry jobs.
    JobsWrite,
    /// Read events.
    EventsRead,
    /// Publish events.
    EventsWrite,
    /// Read endpoints.
    EndpointsRead,
    /// Manage endpoints.
    EndpointsWrite,
    /// Read deliveries.
    DeliveriesRead,
    /// Send deliveries again.
    DeliveriesRetry,
    /// Take jobs of this kind, and report on them.
    WorkersOf(String),
    /// Take jobs of all kinds.
    Workers,
    /// Everything of the tenant.
    Admin,
}

/// Of which kinds a key may take jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerKinds {
    /// Of all.
    All,
    /// Of these.
    Only(Vec<String>),
}

impl Scope {
    /// All of them by name, but for those that name a kind: `workers:resize`.
    pub const WORDS: [(&'static str, Self); 10] = [
        ("jobs:read", Self::JobsRead),
        ("jobs:write", Self::JobsWrite),
        ("events:read", Self::EventsRead),
        ("events:write", Self::EventsWrite),
        ("endpoints:read", Self::EndpointsRead),
        ("endpoints:write", Self::EndpointsWrite),
        ("deliveries:read", Self::DeliveriesRead),
        ("deliveries:retry", Self::DeliveriesRetry),
        ("workers:*", Self::Workers),
        ("admin", Self::Admin),
    ];

    /// The word of the API.
    pub fn word(&self) -> Cow<'static, str> {
        match self {
            Self::WorkersOf(kind) => format!("workers:{kind}").into(),
            other => {
                Self::WORDS.iter().find(|(_, scope)| scope == other).map_or("admin", |(word, _)| word).into()
            }
        }
    }

    /// From the word of the API.
    pub fn parse(word: &str) -> Option<Self> {
        let known = Self::WORDS.iter().find(|(name, _)| *name == word).map(|(_, scope)| scope.clone());
        known.or_else(|| {
            let kind =
                word.strip_prefix("workers:").filter(|kind| !kind.is_empty() && !kind.contains('*'))?;
            Some(Self::WorkersOf(kind.to_owned()))
        })
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// For whom it acts.
    pub tenant: TenantId,
    /// Which key was shown.
    pub key: KeyId,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Is it the operator's first key?
    pub is_operator: bool,
    /// Until when.
    pub expires_at: Option<Timestamp>,
}

impl Caller {
    /// May it do this?
    pub fn may(&self, scope: &Scope) -> bool {
        let covers = |held: &Scope| {
            held == scope
                || *held == Scope::Admin
                || (*held == Scope::Workers && matches!(scope, Scope::WorkersOf(_)))
        };
        self.is_operator || self.scopes.iter().any(covers)
    }

    /// Of which kinds it may take jobs; `None`: of none.
    pub fn worker_kinds(&self) -> Option<WorkerKinds> {
        if self.may(&Scope::Workers) {
            return Some(WorkerKinds::All);
        }
        let kind = |scope: &Scope| match scope {
            Scope::WorkersOf(kind) => Some(kind.clone()),
            _ => None,
        };
        let kinds: Vec<String> = self.scopes.iter().filter_map(kind).collect();
        (!kinds.is_empty()).then_some(WorkerKinds::Only(kinds))
    }
}

/// What is stored of a key.
pub fn key_hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// A new key: `rbk_` and 256 random bits in hexadecimal.
/// # Errors
/// [`SealError::NoRandomness`].
pub fn new_api_key() -> Result<Secret<String>, SealError> {
    use std::fmt::Write;
    let mut key = String::from("rbk_");
    for byte in random_bytes()? {
        // Writing to a String cannot fail.
        let _ = write!(key, "{byte:02x}");
    }
    Ok(Secret::new(key))
}
