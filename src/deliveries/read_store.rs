//! Reading deliveries: a page, and one with its attempts.
//!
//! Called by `http::deliveries`. Whether a delivery is pending is told by its row in `delivery_queue`; how it ended, by
//! its last attempt.

use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use super::DeliveryStatus;
use crate::clock::{Timestamp, millis};
use crate::db::{Db, StoreError};
use crate::ids::{AttemptId, DeliveryId, EndpointId, EventId, JobId, ReplayId, TenantId, floor_of};

/// What a list is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct DeliveryFilter {
    /// To this endpoint.
    pub endpoint: Option<EndpointId>,
    /// Of this event.
    pub event: Option<EventId>,
    /// To the callback of this job.
    pub job: Option<JobId>,
    /// Of this topic.
    pub event_type: Option<String>,
    /// Only in this state.
    pub status: Option<DeliveryStatus>,
    /// Made at or after this time…
    pub since: Option<Timestamp>,
    /// … and before this.
    pub until: Option<Timestamp>,
}

/// A delivery as it is shown.
#[derive(Debug, Clone, Serialize)]
pub struct DeliveryView {
    /// Which.
    pub id: DeliveryId,
    /// What is told.
    pub event_id: EventId,
    event_type: String,
    /// To which endpoint.
    pub endpoint_id: Option<EndpointId>,
    /// To whose callback.
    pub job_id: Option<JobId>,
    replay_id: Option<ReplayId>,
    /// Where to.
    pub url: Option<String>,
    status: DeliveryStatus,
    attempt: i32,
    status_code: Option<i16>,
    error: Option<ErrorView>,
    #[serde(with = "millis")]
    next_attempt_at: Option<Timestamp>,
    #[serde(with = "millis")]
    created_at: Timestamp,
    #[serde(with = "millis")]
    updated_at: Timestamp,
}

#[derive(Debug, Clone, Serialize)]
struct ErrorView {
    code: String,
    message: String,
}

/// A delivery with all its attempts, the first one first.
#[derive(Debug, Clone, Serialize)]
pub struct DeliveryDetail {
    /// The delivery.
    #[serde(flatten)]
    pub delivery: DeliveryView,
    attempts: Vec<AttemptView>,
}

#[derive(Debug, Clone, Serialize)]
struct AttemptView {
    id: AttemptId,
    number: i32,
    #[serde(with = "millis")]
    started_at: Timestamp,
    duration_ms: f64,
    outcome: &'static str,
    status_code: Option<i16>,
    error: Option<ErrorView>,
    timings: TimingsView,
    remote_address: Option<String>,
    response: Option<ResponseView>,
}

#[derive(Debug, Clone, Serialize)]
#[expect(clippy::struct_field_names, reason = "the unit belongs to the names of the API")]
struct TimingsView {
    dns_ms: Option<f64>,
    connect_ms: Option<f64>,
    tls_ms: Option<f64>,
    first_byte_ms: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
struct ResponseView {
    headers: Box<RawValue>,
    body: String,
    truncated: bool,
}

macro_rules! select_deliveries {
    ($where:literal) => {
        concat!(
            "SELECT d.id, d.event_id, d.event_type, d.endpoint_id, d.job_id, d.replay_id, coalesce(j.callback_url, e.url) AS url,
              q.delivery_id IS NOT NULL AS pending, q.due_at, a.number, a.verdict, a.status_code, a.error_code, a.error_message,
              a.started_at + a.duration_us * interval '1 microsecond' AS tried_at
            FROM ringback.deliveries d
            LEFT JOIN LATERAL (SELECT * FROM ringback.delivery_queue q WHERE q.tenant_id = d.tenant_id AND q.delivery_id = d.id LIMIT 1) q ON true
            LEFT JOIN LATERAL (
              SELECT * FROM ringback.delivery_attempts a WHERE a.tenant_id = d.tenant_id AND a.delivery_id = d.id ORDER BY a.number DESC LIMIT 1
            ) a ON true
            LEFT JOIN LATERAL (SELECT url FROM ringback.endpoints e WHERE e.tenant_id = d.tenant_id AND e.id = d.endpoint_id LIMIT 1) e ON true
            LEFT JOIN LATERAL (SELECT callback_url FROM ringback.jobs j WHERE j.tenant_id = d.tenant_id AND j.id = d.job_id LIMIT 1) j ON true
            WHERE d.tenant_id = $1 AND ", $where
        )
    };
}

/// A page of deliveries, newest first, all older than `before`.
/// # Errors
/// [`StoreError`].
pub async fn list(
    db: &Db,
    tenant: TenantId,
    filter: &DeliveryFilter,
    before: Option<DeliveryId>,
    limit: i64,
) -> Result<Vec<DeliveryView>, StoreError> {
    let sql = concat!(
        "-- deliveries::read_store::list\n",
        select_deliveries!(
            "d.id < $2 AND d.id >= $3 AND d.id < $4
            AND ($5::uuid IS NULL OR d.endpoint_id = $5) AND ($6::uuid IS NULL OR d.event_id = $6) AND ($7::uuid IS NULL OR d.job_id = $7)
            AND ($8::text IS NULL OR d.event_type = $8)
            AND ($9::int4 IS NULL OR ($9 = 0 AND q.delivery_id IS NOT NULL) OR ($9 = a.verdict AND q.delivery_id IS NULL))
            ORDER BY d.id DESC LIMIT $10"
        )
    );
    let status = filter.status.map(|status| match status {
        DeliveryStatus::Pending => 0,
        DeliveryStatus::Succeeded => 1,
        DeliveryStatus::Failed => 2,
    });
    Ok(sqlx::query_as(sql)
        .bind(tenant)
        .bind(before.map_or(Uuid::max(), DeliveryId::uuid))
        .bind(filter.since.map_or(Uuid::nil(), floor_of))
        .bind(filter.until.map_or(Uuid::max(), floor_of))
        .bind(filter.endpoint)
        .bind(filter.event)
        .bind(filter.job)
        .bind(filter.event_type.as_deref())
        .bind(status)
        .bind(limit)
        .fetch_all(db.pool())
        .await?)
}

/// One delivery with its attempts.
/// # Errors
/// [`StoreError::NotFound`].
pub async fn get(db: &Db, tenant: TenantId, id: DeliveryId) -> Result<DeliveryDetail, StoreError> {
    let sql = concat!("-- deliveries::read_store::get\n", select_deliveries!("d.id = $2"));
    let delivery = sqlx::query_as(sql).bind(tenant).bind(id).fetch_one(db.pool()).await?;
    let attempts = sqlx::query_as(
        "-- deliveries::read_store::attempts
        SELECT * FROM ringback.delivery_attempts WHERE tenant_id = $1 AND delivery_id = $2 ORDER BY number",
    )
    .bind(tenant)
    .bind(id)
    .fetch_all(db.pool())
    .await?;
    Ok(DeliveryDetail { delivery, attempts })
}

/// A delivery of an event, as far as an explanation needs it.
#[derive(Debug, Clone)]
pub struct EventDelivery {
    /// Which.
    pub id: DeliveryId,
    /// To whom.
    pub endpoint: EndpointId,
    /// The highest attempt number so far.
    pub attempt: i32,
    /// It waits, and for when; `None`: it has ended.
    pub due_at: Option<Timestamp>,
    /// How it ended.
    pub succeeded: bool,
    /// The code of the last attempt's error.
    pub code: Option<String>,
    /// The last attempt's error, for people.
    pub error: Option<String>,
}

/// The deliveries of an event to endpoints, the oldest first.
/// # Errors
/// [`StoreError`].
pub async fn of_event(
    db: &Db,
    tenant: TenantId,
    event: EventId,
    limit: i64,
) -> Result<Vec<EventDelivery>, StoreError> {
    let rows = sqlx::query(
        "-- deliveries::read_store::of_event
        SELECT d.id, d.endpoint_id, q.due_at, coalesce(a.number, 0) AS number, a.verdict = 1 AS succeeded, a.error_code, a.error_message
        FROM (SELECT * FROM ringback.deliveries WHERE tenant_id = $1 AND event_id = $2 AND endpoint_id IS NOT NULL ORDER BY id LIMIT $3) d
        LEFT JOIN LATERAL (SELECT * FROM ringback.delivery_queue q WHERE q.tenant_id = d.tenant_id AND q.delivery_id = d.id LIMIT 1) q ON true
        LEFT JOIN LATERAL (
          SELECT * FROM ringback.delivery_attempts a WHERE a.tenant_id = d.tenant_id AND a.delivery_id = d.id ORDER BY a.number DESC LIMIT 1
        ) a ON true
        ORDER BY d.id",
    )
    .bind(tenant)
    .bind(event)
    .bind(limit)
    .fetch_all(db.pool())
    .await?;
    let read = |row: &PgRow| EventDelivery {
        id: row.get("id"),
        endpoint: row.get("endpoint_id"),
        attempt: row.get("number"),
        due_at: row.get("due_at"),
        succeeded: row.get::<Option<bool>, _>("succeeded").unwrap_or(false),
        code: row.get("error_code"),
        error: row.get("error_message"),
    };
    Ok(rows.iter().map(read).collect())
}

fn error_of(row: &PgRow) -> Result<Option<ErrorView>, sqlx::Error> {
    let Some(code) = row.try_get::<Option<String>, _>("error_code")? else { return Ok(None) };
    Ok(Some(ErrorView {
        code,
        message: row.try_get::<Option<String>, _>("error_message")?.unwrap_or_default(),
    }))
}

impl<'r> FromRow<'r, PgRow> for DeliveryView {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        let id: DeliveryId = row.try_get("id")?;
        let pending = row.try_get("pending")?;
        let status = match row.try_get::<Option<i16>, _>("verdict")? {
            _ if pending => DeliveryStatus::Pending,
            Some(1) => DeliveryStatus::Succeeded,
            _ => DeliveryStatus::Failed,
        };
        Ok(Self {
            id,
            event_id: row.try_get("event_id")?,
            event_type: row.try_get("event_type")?,
            endpoint_id: row.try_get("endpoint_id")?,
            job_id: row.try_get("job_id")?,
            replay_id: row.try_get("replay_id")?,
            url: row.try_get("url")?,
            status,
            attempt: row.try_get::<Option<i32>, _>("number")?.unwrap_or(0),
            status_code: row.try_get("status_code")?,
            error: error_of(row)?,
            next_attempt_at: row.try_get("due_at")?,
            created_at: id.created_at(),
            updated_at: row.try_get::<Option<Timestamp>, _>("tried_at")?.unwrap_or(id.created_at()),
        })
    }
}

impl<'r> FromRow<'r, PgRow> for AttemptView {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        let ms = |column| -> Result<Option<f64>, sqlx::Error> {
            Ok(row.try_get::<Option<i32>, _>(column)?.map(|micros| f64::from(micros) / 1000.0))
        };
        let headers: Option<String> = row.try_get("response_headers")?;
        let body: Option<Vec<u8>> = row.try_get("response_body")?;
        let truncated = row.try_get("truncated")?;
        let response =
            headers.and_then(|text| RawValue::from_string(text).ok()).map(|headers| ResponseView {
                headers,
                body: String::from_utf8_lossy(&body.unwrap_or_default()).into_owned(),
                truncated,
            });
        Ok(Self {
            id: row.try_get("id")?,
            number: row.try_get("number")?,
            started_at: row.try_get("started_at")?,
            duration_ms: ms("duration_us")?.unwrap_or(0.0),
            outcome: if row.try_get::<i16, _>("verdict")? == 1 { "succeeded" } else { "failed" },
            status_code: row.try_get("status_code")?,
            error: error_of(row)?,
            timings: TimingsView {
                dns_ms: ms("dns_us")?,
                connect_ms: ms("connect_us")?,
                tls_ms: ms("tls_us")?,
                first_byte_ms: ms("first_byte_us")?,
            },
            remote_address: row.try_get("remote_address")?,
            response,
        })
    }
}
