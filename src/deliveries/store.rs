//! The SQL of deliveries on their way: create, load, record, put back. What is due is found in `due_store`.
//!
//! Called by `engine::fan_out` (create), `engine::dispatch` (the rest). Reading for the API is in `read_store`.
//!
//! Invariant: a record is written by the owner of the lane only, and for the try that the row expects next; anything
//! else changes nothing.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{Due, FailedDelivery, NewDelivery, due_store, lane_of};
use crate::clock::Timestamp;
use crate::db::batch::Tenanted;
use crate::db::{Db, StoreError, Tx};
use crate::ids::{AttemptId, DeliveryId, EndpointId, EventId, JobId, ReplayId, TenantId};

/// Creates deliveries, due at once, in the caller's transaction.
/// # Errors
/// [`StoreError`].
pub async fn create(tx: &mut Tx, deliveries: &[NewDelivery]) -> Result<(), StoreError> {
    sqlx::query(
        "-- deliveries::store::create
        WITH input AS MATERIALIZED (
          SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::uuid[], $6::uuid[], $7::uuid[], $8::int2[],
            $9::int8[], $10::int8[], $11::bytea[], $12::uuid[])
          AS t(tenant_id, id, event_id, event_type, job_id, endpoint_id, target_id, lane, order_key, position, data, replay_id)
        ), waiting AS (
          INSERT INTO ringback.delivery_queue (tenant_id, delivery_id, lane, target_id, event_id, job_id, endpoint_id, due_at, order_key, position, is_replay, replay_id)
          SELECT tenant_id, id, lane, target_id, event_id, job_id, endpoint_id, now(), order_key, position, replay_id IS NOT NULL, replay_id FROM input
        )
        INSERT INTO ringback.deliveries (tenant_id, id, event_id, event_type, job_id, endpoint_id, data, replay_id)
        SELECT tenant_id, id, event_id, event_type, job_id, endpoint_id, data, replay_id FROM input",
    )
    .bind(deliveries.iter().map(|delivery| delivery.tenant.uuid()).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|delivery| delivery.id.uuid()).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|delivery| delivery.event.uuid()).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|delivery| delivery.event_type.as_str()).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|delivery| delivery.job.map(JobId::uuid)).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|delivery| delivery.endpoint.map(EndpointId::uuid)).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|delivery| delivery.target).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|delivery| lane_of(delivery.tenant, delivery.target)).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|delivery| delivery.order).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|delivery| delivery.position).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|delivery| delivery.data.as_deref().map(str::as_bytes)).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|delivery| delivery.replay.map(ReplayId::uuid)).collect::<Vec<_>>())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Writes down deliveries that failed before anything was sent, in the caller's transaction.
/// # Errors
/// [`StoreError`].
pub async fn create_failed(tx: &mut Tx, failed: &[FailedDelivery]) -> Result<(), StoreError> {
    sqlx::query(
        "-- deliveries::store::create_failed
        WITH input AS MATERIALIZED (
          SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::uuid[], $6::uuid[], $7::text[], $8::text[], $9::uuid[])
          AS t(tenant_id, id, event_id, event_type, endpoint_id, attempt_id, code, message, replay_id)
        ), tried AS (
          INSERT INTO ringback.delivery_attempts (tenant_id, delivery_id, number, id, verdict, error_code, error_message, started_at, duration_us)
          SELECT tenant_id, id, 1, attempt_id, 2, code, message, now(), 0 FROM input
        )
        INSERT INTO ringback.deliveries (tenant_id, id, event_id, event_type, endpoint_id, replay_id)
        SELECT tenant_id, id, event_id, event_type, endpoint_id, replay_id FROM input",
    )
    .bind(failed.iter().map(|failed| failed.delivery.tenant.uuid()).collect::<Vec<_>>())
    .bind(failed.iter().map(|failed| failed.delivery.id.uuid()).collect::<Vec<_>>())
    .bind(failed.iter().map(|failed| failed.delivery.event.uuid()).collect::<Vec<_>>())
    .bind(failed.iter().map(|failed| failed.delivery.event_type.as_str()).collect::<Vec<_>>())
    .bind(failed.iter().map(|failed| failed.delivery.endpoint.map(EndpointId::uuid)).collect::<Vec<_>>())
    .bind(failed.iter().map(|_| AttemptId::fresh().uuid()).collect::<Vec<_>>())
    .bind(failed.iter().map(|failed| failed.code).collect::<Vec<_>>())
    .bind(failed.iter().map(|failed| failed.message.as_str()).collect::<Vec<_>>())
    .bind(failed.iter().map(|failed| failed.delivery.replay.map(ReplayId::uuid)).collect::<Vec<_>>())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Who is told.
#[derive(Debug, Clone)]
pub enum Receiver {
    /// The callback of a job.
    Callback {
        /// Whose callback.
        job: JobId,
        /// Where to.
        url: String,
        /// Its options, sealed.
        sealed_options: Option<Vec<u8>>,
    },
    /// An endpoint.
    Endpoint(EndpointId),
}

/// All that is needed to send a delivery.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Which.
    pub due: Due,
    /// What is told.
    pub event: EventId,
    /// Its topic.
    pub event_type: String,
    /// Its data's bytes, or those that the transform made.
    pub data: Vec<u8>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// To whom.
    pub receiver: Receiver,
    /// The highest attempt number so far.
    pub attempt: i32,
    /// How many of them count in this round.
    pub tries: i32,
}

/// Loads what is to be sent, if it still waits. One row of `flights` says what is on the wire from now on, so that
/// tries that end with this process are recorded by the next owner; a crash of the database may forget it.
/// # Errors
/// [`StoreError`].
pub async fn take_off(
    db: &Db,
    owner: Uuid,
    flight: Uuid,
    batch: &[Due],
    landed: &[Uuid],
) -> Result<Vec<Loaded>, StoreError> {
    let rows = sqlx::query(
        "-- deliveries::store::take_off
        WITH input AS MATERIALIZED (SELECT * FROM unnest($3::uuid[], $4::uuid[]) AS t(tenant_id, delivery_id)),
        waiting AS MATERIALIZED (
          SELECT q.tenant_id, q.delivery_id, q.target_id, q.lane, q.order_key, q.position, q.is_replay, q.event_id, q.job_id, q.endpoint_id, q.attempt, q.tries
          FROM input i CROSS JOIN LATERAL (
            SELECT * FROM ringback.delivery_queue q WHERE q.tenant_id = i.tenant_id AND q.delivery_id = i.delivery_id LIMIT 1
          ) q CROSS JOIN LATERAL (SELECT FROM ringback.lanes l WHERE l.lane = q.lane AND l.owner = $1) l
          -- Of a cancelled replay nothing takes off any more; what waits of it is about to be ended.
          WHERE q.replay_id IS NULL
            OR (SELECT true FROM ringback.replays r WHERE r.tenant_id = q.tenant_id AND r.id = q.replay_id AND r.status = 3 LIMIT 1) IS NULL
        ), landed AS (
          DELETE FROM ringback.delivery_flights WHERE owner = $1 AND id = ANY($5)
        ), flight AS (
          INSERT INTO ringback.delivery_flights (owner, id, tenant_ids, delivery_ids, attempts)
          SELECT $1, $2, array_agg(tenant_id), array_agg(delivery_id), array_agg(attempt + 1) FROM waiting HAVING count(*) > 0
        )
        SELECT w.*, e.type, coalesce(d.data, e.data) AS data, e.traceparent, j.callback_url, j.callback_options
        FROM waiting w
        CROSS JOIN LATERAL (SELECT * FROM ringback.events e WHERE e.tenant_id = w.tenant_id AND e.id = w.event_id LIMIT 1) e
        CROSS JOIN LATERAL (SELECT data FROM ringback.deliveries d WHERE d.tenant_id = w.tenant_id AND d.id = w.delivery_id LIMIT 1) d
        LEFT JOIN LATERAL (SELECT callback_url, callback_options FROM ringback.jobs j WHERE j.tenant_id = w.tenant_id AND j.id = w.job_id LIMIT 1) j ON true",
    )
    .bind(owner)
    .bind(flight)
    .bind(batch.iter().map(|due| due.tenant.uuid()).collect::<Vec<_>>())
    .bind(batch.iter().map(|due| due.id.uuid()).collect::<Vec<_>>())
    .bind(landed)
    .fetch_all(db.relaxed())
    .await?;
    let read = |row: &PgRow| Loaded {
        due: due_store::read_due(row),
        event: row.get("event_id"),
        event_type: row.get("type"),
        data: row.get("data"),
        traceparent: row.get("traceparent"),
        receiver: match (
            row.get::<Option<EndpointId>, _>("endpoint_id"),
            row.get::<Option<JobId>, _>("job_id"),
        ) {
            (None, Some(job)) => Receiver::Callback {
                job,
                url: row.get::<Option<String>, _>("callback_url").unwrap_or_default(),
                sealed_options: row.get("callback_options"),
            },
            (endpoint, _) => Receiver::Endpoint(endpoint.unwrap_or(EndpointId::from_uuid(Uuid::nil()))),
        },
        attempt: row.get("attempt"),
        tries: row.get("tries"),
    };
    Ok(rows.iter().map(read).collect())
}

/// One try, as it is written.
#[derive(Debug, Clone)]
pub struct Record {
    /// Which delivery.
    pub due: Due,
    /// Its number.
    pub number: i32,
    /// Its id.
    pub id: AttemptId,
    /// 0 again, 1 succeeded, 2 failed.
    pub verdict: i16,
    /// Until the next try.
    pub wait: Option<Duration>,
    /// The receiver's status.
    pub status_code: Option<i16>,
    /// In the words of the API; `None`: it succeeded.
    pub error_code: Option<String>,
    /// For people.
    pub error_message: Option<String>,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// DNS, connect, TLS, first byte; `None`: did not happen.
    pub timings: [Option<Duration>; 4],
    /// Whom we reached.
    pub remote_address: Option<String>,
    /// The answer's headers, as JSON.
    pub response_headers: Option<String>,
    /// The beginning of the answer's body.
    pub response_body: Option<Vec<u8>>,
    /// There was more of it.
    pub truncated: bool,
}

impl Tenanted for Record {
    fn tenant(&self) -> TenantId {
        self.due.tenant
    }
}

fn micros(duration: Duration) -> i32 {
    i32::try_from(duration.as_micros()).unwrap_or(i32::MAX)
}

/// Writes a batch of tries: the attempt, and what becomes of the delivery. Answers which of them were this owner's to
/// write. Repeating it changes nothing.
/// # Errors
/// [`StoreError`].
pub async fn record(db: &Db, owner: Uuid, batch: &[Record]) -> Result<Vec<bool>, StoreError> {
    let timing =
        |place: usize| batch.iter().map(|record| record.timings[place].map(micros)).collect::<Vec<_>>();
    let rows = sqlx::query(
        "-- deliveries::store::record
        WITH input AS MATERIALIZED (
          SELECT * FROM unnest($2::uuid[], $3::uuid[], $4::int4[], $5::uuid[], $6::int2[], $7::float8[], $8::int2[], $9::text[], $10::text[],
            $11::timestamptz[], $12::int4[], $13::int4[], $14::int4[], $15::int4[], $16::int4[], $17::text[], $18::text[], $19::bytea[], $20::bool[])
          AS t(tenant_id, delivery_id, number, id, verdict, wait_s, status_code, error_code, error_message,
            started_at, duration_us, dns_us, connect_us, tls_us, first_byte_us, remote_address, response_headers, response_body, truncated)
        ), mine AS MATERIALIZED (
          -- In one order for all, or two batches could wait for each other.
          SELECT i.*, q.at FROM (SELECT * FROM input ORDER BY tenant_id, delivery_id) i CROSS JOIN LATERAL (
            SELECT q.ctid AS at, q.lane FROM ringback.delivery_queue q
            WHERE q.tenant_id = i.tenant_id AND q.delivery_id = i.delivery_id AND q.attempt = i.number - 1 LIMIT 1 FOR UPDATE
          ) q CROSS JOIN LATERAL (SELECT FROM ringback.lanes l WHERE l.lane = q.lane AND l.owner = $1) l
        ), ended AS (
          DELETE FROM ringback.delivery_queue WHERE ctid = ANY(ARRAY(SELECT at FROM mine WHERE verdict <> 0))
        ), again AS (
          UPDATE ringback.delivery_queue q SET due_at = now() + m.wait_s * interval '1 s', attempt = m.number, tries = q.tries + 1
          FROM mine m WHERE m.verdict = 0 AND q.ctid = m.at
        ), tried AS (
          INSERT INTO ringback.delivery_attempts (tenant_id, delivery_id, number, id, verdict, status_code, error_code, error_message,
            started_at, duration_us, dns_us, connect_us, tls_us, first_byte_us, remote_address, response_headers, response_body, truncated)
          SELECT tenant_id, delivery_id, number, id, verdict, status_code, error_code, error_message,
            started_at, duration_us, dns_us, connect_us, tls_us, first_byte_us, remote_address, response_headers, response_body, truncated
          FROM mine
        )
        SELECT delivery_id FROM mine",
    )
    .bind(owner)
    .bind(batch.iter().map(|record| record.due.tenant.uuid()).collect::<Vec<_>>())
    .bind(batch.iter().map(|record| record.due.id.uuid()).collect::<Vec<_>>())
    .bind(batch.iter().map(|record| record.number).collect::<Vec<_>>())
    .bind(batch.iter().map(|record| record.id.uuid()).collect::<Vec<_>>())
    .bind(batch.iter().map(|record| record.verdict).collect::<Vec<_>>())
    .bind(batch.iter().map(|record| record.wait.map(|wait| wait.as_secs_f64())).collect::<Vec<_>>())
    .bind(batch.iter().map(|record| record.status_code).collect::<Vec<_>>())
    .bind(batch.iter().map(|record| record.error_code.as_deref()).collect::<Vec<_>>())
    .bind(batch.iter().map(|record| record.error_message.as_deref()).collect::<Vec<_>>())
    .bind(batch.iter().map(|record| record.started_at).collect::<Vec<_>>())
    .bind(batch.iter().map(|record| micros(record.duration)).collect::<Vec<_>>())
    .bind(timing(0))
    .bind(timing(1))
    .bind(timing(2))
    .bind(timing(3))
    .bind(batch.iter().map(|record| record.remote_address.as_deref()).collect::<Vec<_>>())
    .bind(batch.iter().map(|record| record.response_headers.as_deref()).collect::<Vec<_>>())
    .bind(batch.iter().map(|record| record.response_body.as_deref()).collect::<Vec<_>>())
    .bind(batch.iter().map(|record| record.truncated).collect::<Vec<_>>())
    .fetch_all(db.pool())
    .await?;
    let mine: std::collections::HashSet<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    Ok(batch.iter().map(|record| mine.contains(&record.due.id.uuid())).collect())
}

/// Where a delivery stands in line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// With which others it goes in order.
    pub order: i64,
    /// Behind all that have a smaller one.
    pub position: i64,
}

/// Puts a failed delivery back, for a fresh round of tries.
/// # Errors
/// [`StoreError::Conflict`] when it is not failed.
pub async fn retry(
    db: &Db,
    tenant: TenantId,
    id: DeliveryId,
    target: Uuid,
    place: Option<Place>,
) -> Result<(), StoreError> {
    let done = sqlx::query(
        "-- deliveries::store::retry
        INSERT INTO ringback.delivery_queue (tenant_id, delivery_id, lane, target_id, event_id, job_id, endpoint_id, due_at, attempt, order_key, position)
        SELECT d.tenant_id, d.id, $3, $4, d.event_id, d.job_id, d.endpoint_id, now(), a.number, $5, $6
        FROM ringback.deliveries d CROSS JOIN LATERAL (
          SELECT number, verdict FROM ringback.delivery_attempts a WHERE a.tenant_id = d.tenant_id AND a.delivery_id = d.id ORDER BY number DESC LIMIT 1
        ) a
        WHERE d.tenant_id = $1 AND d.id = $2 AND a.verdict = 2
        ON CONFLICT DO NOTHING",
    )
    .bind(tenant)
    .bind(id)
    .bind(lane_of(tenant, target))
    .bind(target)
    .bind(place.map(|place| place.order))
    .bind(place.map_or(0, |place| place.position))
    .execute(db.pool())
    .await?;
    if done.rows_affected() == 0 {
        return Err(StoreError::Conflict("only a failed delivery can be retried".to_owned()));
    }
    Ok(())
}
