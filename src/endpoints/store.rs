//! The SQL of endpoints: create, show, change, delete, and what changed since a number.
//!
//! Called by `endpoints::change` (writes), `http::endpoints` (shows) and whoever keeps all endpoints in memory.
//!
//! Invariant: every write takes the next change number under its lock (`ringback.next_endpoint_change`), and custom
//! headers leave this file for the database only sealed.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::expression::{Filter, Transform};
use super::{DeliveryOrder, Endpoint, EndpointStatus, RateLimit, Settings, Subscription};
use crate::backoff::RetryPolicy;
use crate::clock::Timestamp;
use crate::db::{Db, StoreError, Tx};
use crate::ids::{EndpointId, TenantId};
use crate::receivers::RetrySpec;
use crate::secret::{SealContext, SealError, Sealer};
use crate::secrets::SecretError;
use crate::signing::SignatureKind;
use crate::topics::Pattern;

fn context(endpoint: &Endpoint) -> SealContext {
    SealContext { tenant: endpoint.tenant.uuid(), owner: endpoint.id.uuid(), column: "endpoints.headers" }
}

fn sealed_headers(endpoint: &Endpoint, sealer: &Sealer) -> Result<Option<Vec<u8>>, SealError> {
    if endpoint.settings.headers.is_empty() {
        return Ok(None);
    }
    // Strings can always be written.
    let text = serde_json::to_vec(&endpoint.settings.headers).unwrap_or_default();
    sealer.seal(&context(endpoint), &text).map(Some)
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// Binds tenant, id and all that can change, in the order of both statements.
fn bind_all<'q>(query: Query<'q>, endpoint: &'q Endpoint, sealer: &Sealer) -> Result<Query<'q>, SealError> {
    let settings = &endpoint.settings;
    let subscription = &settings.subscription;
    let patterns = subscription.event_types.as_ref();
    let retry = (settings.retry != RetryPolicy::DELIVERIES)
        .then(|| serde_json::to_string(&RetrySpec::from(settings.retry)).unwrap_or_default());
    Ok(query
        .bind(endpoint.tenant)
        .bind(endpoint.id)
        .bind(&settings.url)
        .bind(&settings.description)
        .bind(patterns.map(|list| list.iter().map(Pattern::as_str).collect::<Vec<_>>()))
        .bind(subscription.filter.as_ref().map(Filter::as_str))
        .bind(subscription.transform.as_ref().map(Transform::as_str))
        .bind(sealed_headers(endpoint, sealer)?)
        .bind((!settings.metadata.is_empty()).then_some(Json(&settings.metadata)))
        .bind(settings.status.code())
        .bind(endpoint.status_reason.as_deref())
        .bind(settings.ordering.code())
        .bind(i32::try_from(settings.max_in_flight).unwrap_or(i32::MAX))
        .bind(settings.rate_limit.map(|limit| limit.per_s))
        .bind(settings.rate_limit.map(|limit| i32::try_from(limit.burst).unwrap_or(i32::MAX)))
        .bind(i32::try_from(settings.timeout.as_millis()).unwrap_or(i32::MAX))
        .bind(retry)
        .bind(match settings.signature {
            SignatureKind::HmacSha256 => 1_i16,
            SignatureKind::Ed25519 => 2,
        })
        .bind(endpoint.updated_at))
}

/// Creates an endpoint in the caller's transaction.
/// # Errors
/// [`SecretError`].
pub async fn create(tx: &mut Tx, sealer: &Sealer, endpoint: &Endpoint) -> Result<(), SecretError> {
    let query = sqlx::query(
        "-- endpoints::store::create
        INSERT INTO ringback.endpoints (tenant_id, id, url, description, event_types, filter, transform, headers, metadata, status,
          status_reason, ordering, max_in_flight, rate_per_s, rate_burst, timeout_ms, retry, signature, updated_at, change)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, ringback.next_endpoint_change())",
    );
    bind_all(query, endpoint, sealer)?.execute(&mut **tx).await?;
    Ok(())
}

/// Writes an endpoint that the caller's transaction has locked ([`lock`]), with the version that it has now.
/// # Errors
/// [`SecretError`]; [`StoreError::NotFound`] where nothing is locked.
pub async fn write(tx: &mut Tx, sealer: &Sealer, endpoint: &Endpoint) -> Result<(), SecretError> {
    let query = sqlx::query(
        "-- endpoints::store::write
        UPDATE ringback.endpoints SET url = $3, description = $4, event_types = $5, filter = $6, transform = $7, headers = $8,
          metadata = $9, status = $10, status_reason = $11, ordering = $12, max_in_flight = $13, rate_per_s = $14, rate_burst = $15,
          timeout_ms = $16, retry = $17, signature = $18, updated_at = $19, version = $20, change = ringback.next_endpoint_change()
        WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL",
    );
    let done = bind_all(query, endpoint, sealer)?.bind(endpoint.version).execute(&mut **tx).await?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::NotFound.into()) }
}

/// Makes a tombstone of an endpoint, in the caller's transaction.
/// # Errors
/// [`StoreError::NotFound`].
pub async fn delete(tx: &mut Tx, tenant: TenantId, id: EndpointId) -> Result<(), StoreError> {
    let done = sqlx::query(
        "-- endpoints::store::delete
        UPDATE ringback.endpoints SET deleted_at = now(), updated_at = now(), headers = NULL, version = version + 1,
          change = ringback.next_endpoint_change()
        WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL",
    )
    .bind(tenant)
    .bind(id)
    .execute(&mut **tx)
    .await?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::NotFound) }
}

/// One endpoint, locked until the caller's transaction ends.
/// # Errors
/// [`StoreError::NotFound`].
pub async fn lock(
    tx: &mut Tx,
    sealer: &Sealer,
    tenant: TenantId,
    id: EndpointId,
) -> Result<Endpoint, SecretError> {
    let row = sqlx::query(
        "-- endpoints::store::lock
        SELECT * FROM ringback.endpoints WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL FOR UPDATE",
    )
    .bind(tenant)
    .bind(id)
    .fetch_one(&mut **tx)
    .await?;
    read(&row, sealer)
}

/// One endpoint.
/// # Errors
/// [`StoreError::NotFound`].
pub async fn get(
    db: &Db,
    sealer: &Sealer,
    tenant: TenantId,
    id: EndpointId,
) -> Result<Endpoint, SecretError> {
    let row = sqlx::query(
        "-- endpoints::store::get
        SELECT * FROM ringback.endpoints WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL",
    )
    .bind(tenant)
    .bind(id)
    .fetch_one(db.pool())
    .await?;
    read(&row, sealer)
}

/// A page of a tenant's endpoints, newest first, all older than `before`.
/// # Errors
/// [`SecretError`].
pub async fn list(
    db: &Db,
    sealer: &Sealer,
    tenant: TenantId,
    status: Option<EndpointStatus>,
    (before, limit): (Option<EndpointId>, i64),
) -> Result<Vec<Endpoint>, SecretError> {
    let rows = sqlx::query(
        "-- endpoints::store::list
        SELECT * FROM ringback.endpoints
        WHERE tenant_id = $1 AND id < $2 AND deleted_at IS NULL AND ($3::int2 IS NULL OR status = $3) ORDER BY id DESC LIMIT $4",
    )
    .bind(tenant)
    .bind(before.map_or(Uuid::max(), EndpointId::uuid))
    .bind(status.map(EndpointStatus::code))
    .bind(limit)
    .fetch_all(db.pool())
    .await?;
    rows.iter().map(|row| read(row, sealer)).collect()
}

/// What changed after a change number, in the order of the changes, tombstones included. Start with 0 and go on from
/// the last one's `change` until fewer than `limit` come: that is all there is, and then all that is new.
/// # Errors
/// [`SecretError`].
pub async fn changed_since(
    db: &Db,
    sealer: &Sealer,
    change: i64,
    limit: i64,
) -> Result<Vec<Endpoint>, SecretError> {
    let rows = sqlx::query(
        "-- endpoints::store::changed_since
        SELECT * FROM ringback.endpoints WHERE change > $1 ORDER BY change LIMIT $2",
    )
    .bind(change)
    .bind(limit)
    .fetch_all(db.pool())
    .await?;
    rows.iter().map(|row| read(row, sealer)).collect()
}

/// Forgets up to `limit` endpoints that were deleted so long ago, and of which neither a delivery nor anything that waits
/// tells any more. Returns how many.
/// # Errors
/// [`StoreError`].
pub async fn purge_deleted(db: &Db, age: Duration, limit: i64) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "-- endpoints::store::purge_deleted
        WITH old AS MATERIALIZED (
          SELECT e.tenant_id, e.id FROM ringback.endpoints e WHERE e.deleted_at < now() - $1 * interval '1 s'
            AND NOT EXISTS (SELECT FROM ringback.deliveries d WHERE d.tenant_id = e.tenant_id AND d.endpoint_id = e.id)
            AND NOT EXISTS (SELECT FROM ringback.delivery_queue q WHERE q.target_id = e.id)
          ORDER BY e.deleted_at LIMIT $2
        ), health AS (
          DELETE FROM ringback.endpoint_health h USING old o WHERE h.tenant_id = o.tenant_id AND h.endpoint_id = o.id
        )
        DELETE FROM ringback.endpoints e USING old o WHERE e.tenant_id = o.tenant_id AND e.id = o.id",
    )
    .bind(age.as_secs_f64())
    .bind(limit)
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}

/// All endpoints that are not deleted, and the last change number among all.
/// # Errors
/// [`SecretError`].
pub async fn load_all(db: &Db, sealer: &Sealer) -> Result<(Vec<Endpoint>, i64), SecretError> {
    const PAGE: i64 = 1000;
    let (mut all, mut last) = (Vec::new(), 0);
    loop {
        let page = changed_since(db, sealer, last, PAGE).await?;
        let count = page.len();
        last = page.last().map_or(last, |endpoint| endpoint.change);
        all.extend(page.into_iter().filter(|endpoint| !endpoint.deleted));
        if (count as i64) < PAGE {
            return Ok((all, last));
        }
    }
}

fn read(row: &PgRow, sealer: &Sealer) -> Result<Endpoint, SecretError> {
    let settings = read_settings(row)?;
    let mut endpoint = Endpoint {
        tenant: row.try_get("tenant_id")?,
        id: row.try_get("id")?,
        settings,
        status_reason: row.try_get("status_reason")?,
        version: row.try_get("version")?,
        change: row.try_get("change")?,
        updated_at: row.try_get("updated_at")?,
        deleted: row.try_get::<Option<Timestamp>, _>("deleted_at")?.is_some(),
    };
    if let Some(sealed) = row.try_get::<Option<&[u8]>, _>("headers")? {
        let text = sealer.open(&context(&endpoint), sealed)?;
        endpoint.settings.headers =
            serde_json::from_slice(text.expose()).map_err(|_| SealError::CannotOpen)?;
    }
    Ok(endpoint)
}

fn read_settings(row: &PgRow) -> Result<Settings, sqlx::Error> {
    let retry: Option<String> = row.try_get("retry")?;
    let retry = retry.and_then(|text| serde_json::from_str::<RetrySpec>(&text).ok());
    let metadata: Option<Json<BTreeMap<String, String>>> = row.try_get("metadata")?;
    let per_s: Option<f64> = row.try_get("rate_per_s")?;
    let burst: Option<i32> = row.try_get("rate_burst")?;
    let timeout_ms: i32 = row.try_get("timeout_ms")?;
    Ok(Settings {
        url: row.try_get("url")?,
        subscription: read_subscription(row)?,
        description: row.try_get("description")?,
        headers: BTreeMap::new(),
        metadata: metadata.map(|Json(metadata)| metadata).unwrap_or_default(),
        status: match row.try_get::<i16, _>("status")? {
            1 => EndpointStatus::Enabled,
            3 => EndpointStatus::Paused,
            _ => EndpointStatus::Disabled,
        },
        ordering: match row.try_get::<i16, _>("ordering")? {
            1 => DeliveryOrder::ByKey,
            2 => DeliveryOrder::Strict,
            _ => DeliveryOrder::Unordered,
        },
        max_in_flight: row.try_get::<i32, _>("max_in_flight")?.unsigned_abs(),
        rate_limit: per_s.map(|per_s| RateLimit { per_s, burst: burst.map_or(1, i32::unsigned_abs) }),
        timeout: Duration::from_millis(u64::from(timeout_ms.unsigned_abs())),
        retry: retry.map_or(RetryPolicy::DELIVERIES, RetrySpec::policy),
        signature: match row.try_get::<i16, _>("signature")? {
            2 => SignatureKind::Ed25519,
            _ => SignatureKind::HmacSha256,
        },
    })
}

fn read_subscription(row: &PgRow) -> Result<Subscription, sqlx::Error> {
    let patterns: Option<Vec<String>> = row.try_get("event_types")?;
    let filter: Option<&str> = row.try_get("filter")?;
    let transform: Option<&str> = row.try_get("transform")?;
    Ok(Subscription {
        event_types: patterns.map(|list| list.iter().filter_map(|text| Pattern::parse(text).ok()).collect()),
        filter: filter.map(Filter::stored),
        transform: transform.map(Transform::stored),
    })
}
