//! The SQL of signing secrets: make, show, rotate, forget.
//!
//! Called by the room beside it, `http` and `endpoints::store`.
//!
//! Invariant: at most three secrets of an owner sign at a time, and the column holds nothing that is not sealed for this
//! owner.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{LiveSecrets, Owner, SecretError};
use crate::clock::Timestamp;
use crate::db::{Db, StoreError, Tx};
use crate::ids::fresh_uuid;
use crate::secret::{SealContext, SealError, Sealer, random_bytes};
use crate::signing::SigningKey;

/// At most so many secrets sign at a time: the current one and two that run out.
const LIVE_MAX: i64 = 3;

fn context(owner: Owner) -> SealContext {
    SealContext { tenant: owner.tenant.uuid(), owner: owner.id, column: "signing_secrets.sealed" }
}

/// The live secrets of an owner; the first one is made where there is none.
/// # Errors
/// [`SecretError`].
pub async fn live(db: &Db, sealer: &Sealer, owner: Owner) -> Result<LiveSecrets, SecretError> {
    if let Some(found) = read(db, sealer, owner).await? {
        return Ok(found);
    }
    let mut tx = db.begin().await?;
    add(&mut tx, sealer, owner).await?;
    tx.commit().await.map_err(StoreError::from)?;
    read(db, sealer, owner).await?.ok_or(SecretError::Store(StoreError::NotFound))
}

/// Makes a new current secret, of the owner's kind; the old one signs along for `overlap`.
/// # Errors
/// [`SecretError`].
pub async fn rotate(
    db: &Db,
    sealer: &Sealer,
    owner: Owner,
    overlap: Duration,
) -> Result<LiveSecrets, SecretError> {
    let mut tx = db.begin().await?;
    replace(&mut tx, sealer, owner, overlap).await?;
    tx.commit().await.map_err(StoreError::from)?;
    read(db, sealer, owner).await?.ok_or(SecretError::Store(StoreError::NotFound))
}

/// As [`rotate`], in the caller's transaction.
/// # Errors
/// [`SecretError`].
pub async fn replace(
    tx: &mut Tx,
    sealer: &Sealer,
    owner: Owner,
    overlap: Duration,
) -> Result<(), SecretError> {
    sqlx::query(
        "-- secrets::store::replace
        UPDATE ringback.signing_secrets SET expires_at = now() + $3 * interval '1 s'
        WHERE tenant_id = $1 AND owner_id = $2 AND expires_at IS NULL",
    )
    .bind(owner.tenant)
    .bind(owner.id)
    .bind(overlap.as_secs_f64())
    .execute(&mut **tx)
    .await?;
    add(tx, sealer, owner).await?;
    sqlx::query(
        "-- secrets::store::forget_old
        DELETE FROM ringback.signing_secrets WHERE tenant_id = $1 AND owner_id = $2 AND id NOT IN (
          SELECT id FROM ringback.signing_secrets WHERE tenant_id = $1 AND owner_id = $2 AND (expires_at IS NULL OR expires_at > now())
          ORDER BY id DESC LIMIT $3)",
    )
    .bind(owner.tenant)
    .bind(owner.id)
    .bind(LIVE_MAX)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Makes a current secret in the caller's transaction, unless there is one; answers the new one.
/// # Errors
/// [`SecretError`].
pub async fn add(tx: &mut Tx, sealer: &Sealer, owner: Owner) -> Result<SigningKey, SecretError> {
    let secret = SigningKey::from_random(owner.kind, random_bytes()?);
    let sealed = sealer.seal(&context(owner), secret.to_string().as_bytes())?;
    sqlx::query(
        "-- secrets::store::add
        INSERT INTO ringback.signing_secrets (tenant_id, owner_id, id, sealed) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(owner.tenant)
    .bind(owner.id)
    .bind(fresh_uuid())
    .bind(sealed)
    .execute(&mut **tx)
    .await?;
    Ok(secret)
}

/// Forgets all secrets of an owner that is gone.
/// # Errors
/// [`StoreError`].
pub async fn remove(tx: &mut Tx, owner: Owner) -> Result<(), StoreError> {
    sqlx::query(
        "-- secrets::store::remove
        DELETE FROM ringback.signing_secrets WHERE tenant_id = $1 AND owner_id = $2",
    )
    .bind(owner.tenant)
    .bind(owner.id)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn read(db: &Db, sealer: &Sealer, owner: Owner) -> Result<Option<LiveSecrets>, SecretError> {
    let found = read_all(db, sealer, &[owner]).await?.pop();
    found.map(|(_, secrets)| secrets).transpose()
}

/// The live secrets of those owners that have some, each by itself: what cannot be opened is no reason to keep the others
/// waiting.
/// # Errors
/// [`StoreError`].
pub async fn read_all(
    db: &Db,
    sealer: &Sealer,
    owners: &[Owner],
) -> Result<Vec<(Owner, Result<LiveSecrets, SecretError>)>, StoreError> {
    let rows = sqlx::query(
        "-- secrets::store::read_all
        SELECT o.place, s.sealed, s.expires_at FROM unnest($1::uuid[], $2::uuid[]) WITH ORDINALITY AS o(tenant_id, owner_id, place)
        CROSS JOIN LATERAL (
          SELECT id, sealed, expires_at FROM ringback.signing_secrets s
          WHERE s.tenant_id = o.tenant_id AND s.owner_id = o.owner_id AND (s.expires_at IS NULL OR s.expires_at > now())
        ) s ORDER BY o.place, s.id DESC",
    )
    .bind(owners.iter().map(|owner| owner.tenant.uuid()).collect::<Vec<_>>())
    .bind(owners.iter().map(|owner| owner.id).collect::<Vec<_>>())
    .fetch_all(db.pool())
    .await?;
    let mut found = Vec::new();
    for of_one in rows.chunk_by(|one, other| one.get::<i64, _>(0) == other.get::<i64, _>(0)) {
        let place = of_one.first().map_or(0, |row| row.get::<i64, _>(0));
        let owner = usize::try_from(place - 1).ok().and_then(|index| owners.get(index));
        if let Some(owner) = owner
            && let Some(secrets) = live_of(of_one, sealer, *owner).transpose()
        {
            found.push((*owner, secrets));
        }
    }
    Ok(found)
}

/// `None`: all of them run out, and there is no current one.
fn live_of(rows: &[PgRow], sealer: &Sealer, owner: Owner) -> Result<Option<LiveSecrets>, SecretError> {
    let mut current = None;
    let mut previous = Vec::new();
    for row in rows {
        let secret = open(row, sealer, owner)?;
        match row.get::<Option<Timestamp>, _>(2) {
            None => current = Some(secret),
            Some(expires_at) => previous.push((secret, expires_at)),
        }
    }
    Ok(current.map(|current| LiveSecrets { current, previous }))
}

fn open(row: &PgRow, sealer: &Sealer, owner: Owner) -> Result<SigningKey, SealError> {
    let opened = sealer.open(&context(owner), row.get(1))?;
    let text = std::str::from_utf8(opened.expose()).map_err(|_| SealError::CannotOpen)?;
    text.parse().map_err(|_| SealError::CannotOpen)
}
