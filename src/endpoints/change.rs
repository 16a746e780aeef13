//! Creating, changing and deleting an endpoint: one transaction each, for all that must agree.
//!
//! Called by `http::endpoints`, and by the sender that disables an endpoint. What is pending is ended by the caller
//! afterwards (`deliveries::end_store`), in pieces, because it may be much.
//!
//! Invariant: an endpoint and its first secret, its change of kind and the new secret, its end and that of its secrets
//! are one commit.

use super::{Endpoint, EndpointStatus, Settings, store};
use crate::clock::Timestamp;
use crate::db::{Db, StoreError};
use crate::fields::Faults;
use crate::idempotency::{self, NewKey};
use crate::ids::{EndpointId, TenantId};
use crate::secret::{SealError, Sealer};
use crate::secrets::{self, OVERLAP_DEFAULT, SecretError};
use crate::signing::SigningKey;

/// Why an endpoint was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The store or the sealer said no.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The patch does not fit.
    #[error("the patch does not fit")]
    Faults(Faults),
    /// The endpoint is not the one that the caller knows.
    #[error("the endpoint was changed meanwhile")]
    Changed,
}

impl From<StoreError> for ChangeError {
    fn from(error: StoreError) -> Self {
        Self::Secret(error.into())
    }
}

/// Creates an endpoint with its first secret. `answer` makes what is stored under the request's key, with the secret in
/// hand. `None`: the key is taken.
/// # Errors
/// [`SecretError`].
pub async fn create(
    db: &Db,
    sealer: &Sealer,
    endpoint: &Endpoint,
    answer: impl FnOnce(&SigningKey) -> Result<Option<NewKey>, SealError>,
) -> Result<Option<SigningKey>, SecretError> {
    let mut tx = db.begin().await?;
    let secret = secrets::store::add(&mut tx, sealer, endpoint.secrets()).await?;
    if let Some(key) = answer(&secret)?
        && !idempotency::store::insert(&mut tx, endpoint.tenant, &key, 201).await?
    {
        return Ok(None);
    }
    store::create(&mut tx, sealer, endpoint).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(Some(secret))
}

/// Changes an endpoint. `version`: only if it still is this one. `change` makes the new settings of the old endpoint.
/// # Errors
/// [`ChangeError`].
pub async fn change(
    db: &Db,
    sealer: &Sealer,
    (tenant, id): (TenantId, EndpointId),
    now: Timestamp,
    change: impl FnOnce(&Endpoint) -> Result<Settings, ChangeError>,
) -> Result<Endpoint, ChangeError> {
    let mut tx = db.begin().await?;
    let old = store::lock(&mut tx, sealer, tenant, id).await?;
    let settings = change(&old)?;
    let disabled = |settings: &Settings| settings.status == EndpointStatus::Disabled;
    let keeps_reason = disabled(&old.settings) && disabled(&settings);
    let new = Endpoint {
        status_reason: old.status_reason.clone().filter(|_| keeps_reason),
        version: old.version + 1,
        updated_at: now.max(old.updated_at),
        settings,
        ..old.clone()
    };
    store::write(&mut tx, sealer, &new).await?;
    if new.settings.signature != old.settings.signature {
        secrets::store::replace(&mut tx, sealer, new.secrets(), OVERLAP_DEFAULT).await?;
    }
    tx.commit().await.map_err(StoreError::from)?;
    Ok(new)
}

/// Disables an endpoint for a reason of Ringback's own: its receiver is gone, or failed for days. `false`: it is not
/// there or not enabled or paused any more.
/// # Errors
/// [`SecretError`].
pub async fn disable(
    db: &Db,
    sealer: &Sealer,
    (tenant, id): (TenantId, EndpointId),
    now: Timestamp,
    reason: &str,
) -> Result<bool, SecretError> {
    let mut tx = db.begin().await?;
    let old = match store::lock(&mut tx, sealer, tenant, id).await {
        Err(SecretError::Store(StoreError::NotFound)) => return Ok(false),
        old => old?,
    };
    if old.settings.status == EndpointStatus::Disabled {
        return Ok(false);
    }
    let mut new = Endpoint { status_reason: Some(reason.to_owned()), version: old.version + 1, ..old };
    new.settings.status = EndpointStatus::Disabled;
    new.updated_at = now.max(new.updated_at);
    store::write(&mut tx, sealer, &new).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(true)
}

/// Deletes an endpoint and its secrets. `may` looks at it first.
/// # Errors
/// [`ChangeError`].
pub async fn delete(
    db: &Db,
    sealer: &Sealer,
    (tenant, id): (TenantId, EndpointId),
    may: impl FnOnce(&Endpoint) -> Result<(), ChangeError>,
) -> Result<(), ChangeError> {
    let mut tx = db.begin().await?;
    let old = store::lock(&mut tx, sealer, tenant, id).await?;
    may(&old)?;
    store::delete(&mut tx, tenant, id).await?;
    secrets::store::remove(&mut tx, old.secrets()).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(())
}
