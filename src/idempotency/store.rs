//! The SQL of idempotency keys. Keys of single jobs are written by `jobs::store::accept`, in the same statement as the
//! job; all others by `insert`, in the transaction of what they make.

use sqlx::Row;

use super::{KEPT_HOURS, NewKey, StoredAnswer};
use crate::db::{Db, StoreError, Tx};
use crate::ids::TenantId;

/// The answer that is stored under a key.
/// # Errors
/// [`StoreError`].
pub async fn find(db: &Db, tenant: TenantId, key: &str) -> Result<Option<StoredAnswer>, StoreError> {
    let row = sqlx::query(
        "-- idempotency::store::find
        SELECT fingerprint, status, location, body FROM ringback.idempotency_keys WHERE tenant_id = $1 AND key = $2",
    )
    .bind(tenant)
    .bind(key)
    .fetch_optional(db.pool())
    .await?;
    Ok(row.map(|row| StoredAnswer {
        fingerprint: row.get(0),
        status: row.get::<i16, _>(1).unsigned_abs(),
        location: row.get(2),
        body: row.get(3),
    }))
}

/// Stores a key in the caller's transaction. `false`: it is taken.
/// # Errors
/// [`StoreError`].
pub async fn insert(tx: &mut Tx, tenant: TenantId, key: &NewKey, status: u16) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "-- idempotency::store::insert
        INSERT INTO ringback.idempotency_keys (tenant_id, key, fingerprint, status, location, body)
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
    )
    .bind(tenant)
    .bind(&key.key)
    .bind(key.fingerprint.as_slice())
    .bind(i16::try_from(status).unwrap_or(202))
    .bind(key.location.as_deref())
    .bind(&key.body)
    .execute(&mut **tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Forgets keys that are old enough. Returns how many.
/// # Errors
/// [`StoreError`].
pub async fn purge(db: &Db, limit: i64) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "-- idempotency::store::purge
        DELETE FROM ringback.idempotency_keys k USING (
          SELECT tenant_id, key FROM ringback.idempotency_keys
          WHERE created_at < now() - $1 * interval '1 hour' ORDER BY created_at LIMIT $2
        ) old WHERE k.tenant_id = old.tenant_id AND k.key = old.key",
    )
    .bind(KEPT_HOURS)
    .bind(limit)
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}
