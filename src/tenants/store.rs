//! The SQL of tenants, API keys and master keys.

use sqlx::Row;

use super::{Caller, Scope};
use crate::db::{Db, StoreError};
use crate::ids::{KeyId, TenantId};

/// The first tenant, made where there is none.
/// # Errors
/// [`StoreError`].
pub async fn first_tenant(db: &Db) -> Result<TenantId, StoreError> {
    let row = sqlx::query(
        "-- tenants::store::first_tenant
        WITH made AS (
          INSERT INTO ringback.tenants (id, name, is_first) VALUES ($1, 'default', true)
          ON CONFLICT (is_first) WHERE is_first DO UPDATE SET is_first = true
          RETURNING id
        )
        SELECT id FROM made",
    )
    .bind(TenantId::fresh())
    .fetch_one(db.pool())
    .await?;
    Ok(row.get(0))
}

/// Makes a tenant.
/// # Errors
/// [`StoreError`].
pub async fn create(db: &Db, name: &str) -> Result<TenantId, StoreError> {
    let tenant = TenantId::fresh();
    sqlx::query("-- tenants::store::create\nINSERT INTO ringback.tenants (id, name) VALUES ($1, $2)")
        .bind(tenant)
        .bind(name)
        .execute(db.pool())
        .await?;
    Ok(tenant)
}

/// Gives a tenant a key that may do everything of the tenant's. Processes hear of it within about a second.
/// # Errors
/// [`StoreError`].
pub async fn add_key(db: &Db, tenant: TenantId, name: &str, hash: &[u8; 32]) -> Result<(), StoreError> {
    sqlx::query(
        "-- tenants::store::add_key
        INSERT INTO ringback.api_keys (tenant_id, id, name, key_hash, scopes) VALUES ($1, $2, $3, $4, ARRAY['admin'])",
    )
    .bind(tenant)
    .bind(KeyId::fresh())
    .bind(name)
    .bind(hash.as_slice())
    .execute(db.pool())
    .await?;
    Ok(())
}

/// Is there any key at all?
/// # Errors
/// [`StoreError`].
pub async fn has_keys(db: &Db) -> Result<bool, StoreError> {
    let there =
        sqlx::query_scalar("-- tenants::store::has_keys\nSELECT EXISTS (SELECT FROM ringback.api_keys)")
            .fetch_one(db.pool())
            .await?;
    Ok(there)
}

/// Makes this the operator's key; one that was it before is no longer valid.
/// # Errors
/// [`StoreError`].
pub async fn set_operator_key(db: &Db, tenant: TenantId, hash: &[u8; 32]) -> Result<(), StoreError> {
    sqlx::query(
        "-- tenants::store::set_operator_key
        INSERT INTO ringback.api_keys AS k (tenant_id, id, name, key_hash, scopes, is_operator)
        VALUES ($1, $2, 'operator', $3, ARRAY['admin'], true)
        ON CONFLICT (is_operator) WHERE is_operator DO UPDATE SET key_hash = EXCLUDED.key_hash WHERE k.key_hash <> EXCLUDED.key_hash",
    )
    .bind(tenant)
    .bind(KeyId::fresh())
    .bind(hash.as_slice())
    .execute(db.pool())
    .await?;
    Ok(())
}

/// All keys that are valid, by their hash: a table small enough to be kept in memory.
/// # Errors
/// [`StoreError`].
pub async fn keys(db: &Db) -> Result<Vec<([u8; 32], Caller)>, StoreError> {
    let rows = sqlx::query(
        "-- tenants::store::keys
        SELECT key_hash, tenant_id, id, scopes, is_operator, expires_at FROM ringback.api_keys
        WHERE expires_at IS NULL OR expires_at > now()",
    )
    .fetch_all(db.pool())
    .await?;
    let read = |row: &sqlx::postgres::PgRow| {
        let hash = <[u8; 32]>::try_from(row.get::<&[u8], _>(0)).ok()?;
        let scopes: Vec<String> = row.get(3);
        let caller = Caller {
            tenant: row.get(1),
            key: row.get(2),
            scopes: scopes.iter().filter_map(|word| Scope::parse(word)).collect(),
            is_operator: row.get(4),
            expires_at: row.get(5),
        };
        Some((hash, caller))
    };
    Ok(rows.iter().filter_map(read).collect())
}

/// Notes that this master key seals here. `false`: another one did before, and this one never.
/// # Errors
/// [`StoreError`].
pub async fn know_master_key(db: &Db, key_id: i32) -> Result<bool, StoreError> {
    let known = sqlx::query_scalar(
        "-- tenants::store::know_master_key
        WITH others AS (SELECT key_id FROM ringback.master_keys),
        added AS (INSERT INTO ringback.master_keys (key_id) SELECT $1 WHERE NOT EXISTS (SELECT FROM others) ON CONFLICT DO NOTHING RETURNING key_id)
        SELECT EXISTS (SELECT FROM added) OR EXISTS (SELECT FROM others WHERE key_id = $1)",
    )
    .bind(key_id)
    .fetch_one(db.pool())
    .await?;
    Ok(known)
}
