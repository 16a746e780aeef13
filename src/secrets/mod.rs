//! Signing secrets: what a tenant's callbacks and each endpoint's deliveries are signed with. An owner (a tenant, an
//! endpoint) has one current secret and, after a rotation, up to two that sign along until they run out.
//!
//! Called by `http` (shows, rotates), `endpoints` (makes the first one) and whatever sends (signs). `store` is the only
//! SQL on `signing_secrets`. Knows no HTTP.
//!
//! Invariant: there is exactly one current secret of an owner, and it leaves the database only sealed.

pub mod store;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::clock::Timestamp;
use crate::db::{Db, StoreError};
use crate::ids::TenantId;
use crate::secret::{SealError, Sealer};
use crate::signing::{SignatureKind, SigningKey};

/// Why a secret could not be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SecretError {
    /// The database said no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be opened or made.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl From<sqlx::Error> for SecretError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Whose secret it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The tenant…
    pub tenant: TenantId,
    /// … and the object: an endpoint, or the tenant itself for its callbacks.
    pub id: Uuid,
    /// The kind of a secret that is made for it.
    pub kind: SignatureKind,
}

impl Owner {
    /// The callbacks of a tenant.
    pub fn callbacks(tenant: TenantId) -> Self {
        Self { tenant, id: tenant.uuid(), kind: SignatureKind::HmacSha256 }
    }
}

/// The secrets that sign now.
#[derive(Debug, Clone)]
pub struct LiveSecrets {
    /// The one to configure receivers with.
    pub current: SigningKey,
    /// Those that sign along until they expire, the newest first.
    pub previous: Vec<(SigningKey, Timestamp)>,
}

impl LiveSecrets {
    /// All that sign, the current one first.
    pub fn into_signing(self) -> Vec<SigningKey> {
        std::iter::once(self.current).chain(self.previous.into_iter().map(|(secret, _)| secret)).collect()
    }
}

/// How long a former secret signs along where nothing else is asked for.
pub const OVERLAP_DEFAULT: Duration = Duration::from_hours(24);

/// How long the secrets of an owner are taken from memory; a rotation in another process shows after it.
const CACHED: Duration = Duration::from_secs(2);
/// So many owners are remembered before those that are out of date are dropped.
const REMEMBERED_MAX: usize = 10_000;

type Cached = (Instant, Arc<Vec<SigningKey>>);

/// The secrets that sign, kept for a moment: each delivery needs them, and they hardly ever change.
#[derive(Debug, Default)]
pub struct SecretCache(Mutex<HashMap<Owner, Cached>>);

impl SecretCache {
    /// All that sign for an owner now, the current one first. The first one is made where there is none.
    /// # Errors
    /// [`SecretError`].
    pub async fn signing(
        &self,
        db: &Db,
        sealer: &Sealer,
        owner: Owner,
    ) -> Result<Arc<Vec<SigningKey>>, SecretError> {
        if let Some((_, secrets)) = self.lock().get(&owner).filter(|(at, _)| at.elapsed() < CACHED) {
            return Ok(secrets.clone());
        }
        let secrets = store::live(db, sealer, owner).await?;
        Ok(self.remember(owner, secrets))
    }

    /// Reads the secrets of several owners that are not in memory at once. What goes wrong shows where they are needed.
    pub async fn warm(&self, db: &Db, sealer: &Sealer, owners: impl Iterator<Item = Owner>) {
        let mut wanted: Vec<Owner> = {
            let cached = self.lock();
            let is_cached = |owner: &Owner| cached.get(owner).is_some_and(|(at, _)| at.elapsed() < CACHED);
            owners.filter(|owner| !is_cached(owner)).collect()
        };
        wanted.sort_unstable_by_key(|owner| owner.id);
        wanted.dedup_by_key(|owner| owner.id);
        if wanted.len() < 2 {
            return;
        }
        match store::read_all(db, sealer, &wanted).await {
            Ok(found) => {
                for (owner, secrets) in found {
                    let _ = secrets.map(|secrets| self.remember(owner, secrets));
                }
            }
            Err(error) => tracing::debug!(%error, "secrets are read one by one"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Owner, Cached>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, owner: Owner, secrets: LiveSecrets) -> Arc<Vec<SigningKey>> {
        let secrets = Arc::new(secrets.into_signing());
        let mut remembered = self.lock();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, (at, _)| at.elapsed() < CACHED);
        }
        remembered.insert(owner, (Instant::now(), secrets.clone()));
        secrets
    }

    /// After a rotation.
    pub fn forget(&self, owner: Owner) {
        self.lock().remove(&owner);
    }
}
