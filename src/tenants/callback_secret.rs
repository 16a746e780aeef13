//! A tenant's callback secret: signs what goes to the `callback_url` of its jobs. Made when first asked for, shown,
//! rotated with an overlap in which both secrets sign.
//!
//! Called by `http::secrets` and `engine::dispatch`. The SQL of `signing_secrets` stands here and nowhere else.
//!
//! Invariant: there is exactly one current secret, and it leaves the database only sealed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::Row;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::db::{Db, StoreError, Tx};
use crate::ids::{TenantId, fresh_uuid};
use crate::secret::{SealContext, SealError, Sealer, random_bytes};
use crate::signing::SigningSecret;

/// At most so many secrets sign at a time: the current one and two that run out.
const LIVE_MAX: i64 = 3;

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

/// The secrets that sign now, the current one first.
#[derive(Debug, Clone)]
pub struct LiveSecrets {
    /// The one to configure receivers with.
    pub current: SigningSecret,
    /// Those that sign along until they expire.
    pub previous: Vec<(SigningSecret, Timestamp)>,
}

impl LiveSecrets {
    fn into_signing(self) -> Vec<SigningSecret> {
        std::iter::once(self.current).chain(self.previous.into_iter().map(|(secret, _)| secret)).collect()
    }
}

/// How long the secrets of a tenant are taken from memory; a rotation in another process shows after it.
const CACHED: Duration = Duration::from_secs(2);

type Cached = (Instant, Arc<Vec<SigningSecret>>);

/// The secrets that sign, kept for a moment: each delivery needs them, and they hardly ever change.
#[derive(Debug, Default)]
pub struct SecretCache(Mutex<HashMap<TenantId, Cached>>);

impl SecretCache {
    /// All that sign for a tenant's callbacks now, the current one first.
    /// # Errors
    /// [`SecretError`].
    pub async fn signing(
        &self,
        db: &Db,
        sealer: &Sealer,
        tenant: TenantId,
    ) -> Result<Arc<Vec<SigningSecret>>, SecretError> {
        let cached = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&tenant).cloned();
        if let Some((_, secrets)) = cached.filter(|(at, _)| at.elapsed() < CACHED) {
            return Ok(secrets);
        }
        let secrets = Arc::new(live(db, sealer, tenant, tenant.uuid()).await?.into_signing());
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(tenant, (Instant::now(), secrets.clone()));
        Ok(secrets)
    }

    /// After a rotation.
    pub fn forget(&self, tenant: TenantId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&tenant);
    }
}

fn context(tenant: TenantId, owner: Uuid) -> SealContext {
    SealContext { tenant: tenant.uuid(), owner, column: "signing_secrets.sealed" }
}

/// The live secrets of an owner (a tenant, for callbacks); the first one is made where there is none.
/// # Errors
/// [`SecretError`].
pub async fn live(
    db: &Db,
    sealer: &Sealer,
    tenant: TenantId,
    owner: Uuid,
) -> Result<LiveSecrets, SecretError> {
    if let Some(found) = read(db, sealer, tenant, owner).await? {
        return Ok(found);
    }
    let mut tx = db.begin().await?;
    add(&mut tx, sealer, tenant, owner).await?;
    tx.commit().await.map_err(StoreError::from)?;
    read(db, sealer, tenant, owner).await?.ok_or(SecretError::Store(StoreError::NotFound))
}

/// Makes a new current secret; the old one signs along for `overlap`.
/// # Errors
/// [`SecretError`].
pub async fn rotate(
    db: &Db,
    sealer: &Sealer,
    tenant: TenantId,
    owner: Uuid,
    overlap: Duration,
) -> Result<LiveSecrets, SecretError> {
    let mut tx = db.begin().await?;
    sqlx::query(
        "-- tenants::callback_secret::rotate
        UPDATE ringback.signing_secrets SET expires_at = now() + $3 * interval '1 s'
        WHERE tenant_id = $1 AND owner_id = $2 AND expires_at IS NULL",
    )
    .bind(tenant)
    .bind(owner)
    .bind(overlap.as_secs_f64())
    .execute(&mut *tx)
    .await?;
    add(&mut tx, sealer, tenant, owner).await?;
    sqlx::query(
        "-- tenants::callback_secret::forget
        DELETE FROM ringback.signing_secrets WHERE tenant_id = $1 AND owner_id = $2 AND id NOT IN (
          SELECT id FROM ringback.signing_secrets WHERE tenant_id = $1 AND owner_id = $2 AND (expires_at IS NULL OR expires_at > now())
          ORDER BY id DESC LIMIT $3)",
    )
    .bind(tenant)
    .bind(owner)
    .bind(LIVE_MAX)
    .execute(&mut *tx)
    .await?;
    tx.commit().await.map_err(StoreError::from)?;
    read(db, sealer, tenant, owner).await?.ok_or(SecretError::Store(StoreError::NotFound))
}

async fn add(tx: &mut Tx, sealer: &Sealer, tenant: TenantId, owner: Uuid) -> Result<(), SecretError> {
    let secret = SigningSecret::from_random(random_bytes()?);
    let sealed = sealer.seal(&context(tenant, owner), secret.to_string().as_bytes())?;
    sqlx::query(
        "-- tenants::callback_secret::add
        INSERT INTO ringback.signing_secrets (tenant_id, owner_id, id, sealed) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(tenant)
    .bind(owner)
    .bind(fresh_uuid())
    .bind(sealed)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn read(
    db: &Db,
    sealer: &Sealer,
    tenant: TenantId,
    owner: Uuid,
) -> Result<Option<LiveSecrets>, SecretError> {
    let rows = sqlx::query(
        "-- tenants::callback_secret::read
        SELECT sealed, expires_at FROM ringback.signing_secrets
        WHERE tenant_id = $1 AND owner_id = $2 AND (expires_at IS NULL OR expires_at > now()) ORDER BY id DESC",
    )
    .bind(tenant)
    .bind(owner)
    .fetch_all(db.pool())
    .await?;
    let mut current = None;
    let mut previous = Vec::new();
    for row in rows {
        let opened = sealer.open(&context(tenant, owner), row.get(0))?;
        let text = std::str::from_utf8(opened.expose()).map_err(|_| SealError::CannotOpen)?;
        let secret: SigningSecret = text.parse().map_err(|_| SealError::CannotOpen)?;
        match row.get::<Option<Timestamp>, _>(1) {
            None => current = Some(secret),
            Some(expires_at) => previous.push((secret, expires_at)),
        }
    }
    Ok(current.map(|current| LiveSecrets { current, previous }))
}
