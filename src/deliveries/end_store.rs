//! The SQL of deliveries that end without being sent, and of those that are sent past the lanes (tests of an endpoint).
//!
//! Called by `http::endpoints`, `http::endpoint_test` and the dispatcher.
//!
//! Invariant: what is on the wire is left alone, so that its try is recorded by who made it; it ends when it comes back.

use sqlx::Row;

use super::store::Record;
use crate::db::{Db, StoreError, Tx};
use crate::ids::{AttemptId, DeliveryId, EndpointId, EventId, TenantId};

/// Ends so many deliveries with one statement.
pub const CHUNK: i64 = 1000;

/// Why a delivery ends unsent.
#[derive(Debug, Clone, Copy)]
pub struct EndReason {
    /// In the words of the API: `endpoint_disabled`, `endpoint_deleted`, …
    pub code: &'static str,
    /// For people.
    pub message: &'static str,
}

impl EndReason {
    /// The endpoint was disabled.
    pub const DISABLED: Self =
        Self { code: "endpoint_disabled", message: "the endpoint was disabled before this was sent" };
    /// The endpoint was deleted.
    pub const DELETED: Self =
        Self { code: "endpoint_deleted", message: "the endpoint was deleted before this was sent" };
    /// The replay that made it was cancelled.
    pub const REPLAY_CANCELLED: Self =
        Self { code: "replay_cancelled", message: "the replay was cancelled before this came through" };
}

/// Ends up to [`CHUNK`] deliveries that wait for an endpoint, in the caller's transaction: each gets a last attempt that
/// says why. Answers how many; fewer than [`CHUNK`] means that no more waits but what is on the wire.
/// # Errors
/// [`StoreError`].
pub async fn fail_pending(
    tx: &mut Tx,
    (tenant, endpoint): (TenantId, EndpointId),
    reason: EndReason,
) -> Result<i64, StoreError> {
    let ids: Vec<_> = (0..CHUNK).map(|_| AttemptId::fresh().uuid()).collect();
    let row = sqlx::query(
        "-- deliveries::end_store::fail_pending
        WITH flying AS MATERIALIZED (
          SELECT q.delivery_id FROM ringback.delivery_flights f
          CROSS JOIN LATERAL unnest(f.tenant_ids, f.delivery_ids, f.attempts) AS u(tenant_id, delivery_id, attempt)
          CROSS JOIN LATERAL (
            SELECT q.delivery_id FROM ringback.delivery_queue q
            WHERE q.tenant_id = u.tenant_id AND q.delivery_id = u.delivery_id AND q.target_id = $2 AND q.attempt = u.attempt - 1 LIMIT 1
          ) q
          WHERE u.tenant_id = $1
        ), waiting AS MATERIALIZED (
          SELECT q.tenant_id, q.delivery_id, q.attempt FROM ringback.delivery_queue q
          WHERE q.target_id = $2 AND q.tenant_id = $1 AND NOT q.delivery_id = ANY(ARRAY(SELECT delivery_id FROM flying))
          -- CHUNK as a literal, so that the plan knows how few they are.
          ORDER BY q.due_at, q.delivery_id LIMIT 1000 FOR UPDATE SKIP LOCKED
        ), ended AS (
          -- By key, never by ctid: a try's record may have moved the row since this statement began.
          DELETE FROM ringback.delivery_queue q USING waiting w WHERE q.tenant_id = w.tenant_id AND q.delivery_id = w.delivery_id
        ), tried AS (
          INSERT INTO ringback.delivery_attempts (tenant_id, delivery_id, number, id, verdict, error_code, error_message, started_at, duration_us)
          SELECT tenant_id, delivery_id, attempt + 1, ($5::uuid[])[row_number() OVER ()], 2, $3, $4, now(), 0 FROM waiting
        )
        SELECT count(*) FROM waiting",
    )
    .bind(tenant)
    .bind(endpoint)
    .bind(reason.code)
    .bind(reason.message)
    .bind(ids)
    .fetch_one(&mut **tx)
    .await?;
    Ok(row.get(0))
}

/// Ends all deliveries that wait for an endpoint, in pieces.
/// # Errors
/// [`StoreError`]; what was ended before stays so.
pub async fn fail_all_pending(
    db: &Db,
    whose: (TenantId, EndpointId),
    reason: EndReason,
) -> Result<i64, StoreError> {
    let mut ended = 0;
    loop {
        let mut tx = db.begin().await?;
        let count = fail_pending(&mut tx, whose, reason).await?;
        tx.commit().await?;
        ended += count;
        if count < CHUNK {
            return Ok(ended);
        }
    }
}

/// An event that is told to one endpoint and to nobody else.
#[derive(Debug, Clone)]
pub struct DirectDelivery {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub id: DeliveryId,
    /// To whom.
    pub endpoint: EndpointId,
    /// What is told.
    pub event: EventId,
    /// Its topic.
    pub event_type: &'static str,
    /// Its data.
    pub data: String,
}

/// Writes a delivery with its event, neither in the log nor in the queue, before it is sent. Until its try is recorded it
/// is shown as failed, which is what it is if the process ends meanwhile.
/// # Errors
/// [`StoreError`].
pub async fn create_direct(db: &Db, delivery: &DirectDelivery) -> Result<(), StoreError> {
    sqlx::query(
        "-- deliveries::end_store::create_direct
        WITH event AS (
          INSERT INTO ringback.events (tenant_id, id, type, data) VALUES ($1, $3, $4, $5)
        )
        INSERT INTO ringback.deliveries (tenant_id, id, event_id, event_type, endpoint_id) VALUES ($1, $2, $3, $4, $6)",
    )
    .bind(delivery.tenant)
    .bind(delivery.id)
    .bind(delivery.event)
    .bind(delivery.event_type)
    .bind(delivery.data.as_bytes())
    .bind(delivery.endpoint)
    .execute(db.pool())
    .await?;
    Ok(())
}

/// Records the only try of such a delivery.
/// # Errors
/// [`StoreError`].
pub async fn record_direct(db: &Db, record: &Record) -> Result<(), StoreError> {
    let micros =
        |place: usize| record.timings[place].map(|time| i32::try_from(time.as_micros()).unwrap_or(i32::MAX));
    sqlx::query(
        "-- deliveries::end_store::record_direct
        INSERT INTO ringback.delivery_attempts (tenant_id, delivery_id, number, id, verdict, status_code, error_code, error_message,
          started_at, duration_us, dns_us, connect_us, tls_us, first_byte_us, remote_address, response_headers, response_body, truncated)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)",
    )
    .bind(record.due.tenant)
    .bind(record.due.id)
    .bind(record.number)
    .bind(record.id)
    .bind(record.verdict)
    .bind(record.status_code)
    .bind(record.error_code.as_deref())
    .bind(record.error_message.as_deref())
    .bind(record.started_at)
    .bind(i32::try_from(record.duration.as_micros()).unwrap_or(i32::MAX))
    .bind(micros(0))
    .bind(micros(1))
    .bind(micros(2))
    .bind(micros(3))
    .bind(record.remote_address.as_deref())
    .bind(record.response_headers.as_deref())
    .bind(record.response_body.as_deref())
    .bind(record.truncated)
    .execute(db.pool())
    .await?;
    Ok(())
}
