//! The SQL of deliveries on their way: create, find due ones, load, record, and who owns the lanes.
//!
//! Called by `engine::fan_out` (create), `engine::dispatch` (the rest). Reading for the API is in `read_store`.
//!
//! Invariant: a record is written by the owner of the lane only, and for the try that the row expects next; anything
//! else changes nothing.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::scheduling::{BacklogRef, KeyRef, Kind, LINES_MAX, Line, LinesPage};
use super::{Due, DueCursor, FailedDelivery, NewDelivery, lane_of};
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

/// What a look at due deliveries found.
#[derive(Debug, Clone, Default)]
pub struct DuePage {
    /// The longest due first.
    pub due: Vec<Due>,
    /// There may be more.
    pub more: bool,
    /// The place behind the last one.
    pub last: Option<DueCursor>,
    /// The last place behind which nothing becomes visible any more; `None`: none on this page.
    pub settled: Option<DueCursor>,
}

impl DuePage {
    fn push(&mut self, row: &PgRow, late: Duration) {
        let due = read_due(row);
        let (at, now): (Timestamp, Timestamp) = (row.get("due_at"), row.get("now"));
        self.last = Some((at, due.id));
        if at + late < now {
            self.settled = self.last;
        }
        self.due.push(due);
    }
}

/// Due deliveries of the lanes that a node owns, in the order of their time, after a cursor. `late`: a commit may become
/// visible so long after the time that stands in its rows.
/// # Errors
/// [`StoreError`].
pub async fn due(
    db: &Db,
    owner: Uuid,
    after: Option<DueCursor>,
    (limit, late): (usize, Duration),
) -> Result<DuePage, StoreError> {
    let (at, id) = place_of(after);
    let rows = sqlx::query(
        "-- deliveries::store::due
        SELECT d.tenant_id, d.delivery_id, d.target_id, d.lane, d.order_key, d.position, d.is_replay, d.due_at, now()
        FROM (SELECT lane FROM ringback.lanes WHERE owner = $1) l CROSS JOIN LATERAL (
          SELECT tenant_id, delivery_id, target_id, lane, order_key, position, is_replay, due_at FROM ringback.delivery_queue q
          WHERE q.lane = l.lane AND q.due_at <= now() AND (q.due_at, q.delivery_id) > ($2, $3)
          ORDER BY q.due_at, q.delivery_id LIMIT $4
        ) d
        ORDER BY d.due_at, d.delivery_id LIMIT $4",
    )
    .bind(owner)
    .bind(at)
    .bind(id)
    .bind(limit as i64)
    .fetch_all(db.pool())
    .await?;
    let mut page = DuePage { more: rows.len() >= limit, ..DuePage::default() };
    for row in &rows {
        page.push(row, late);
    }
    Ok(page)
}

fn place_of(cursor: Option<DueCursor>) -> (Timestamp, Uuid) {
    cursor.map_or((Timestamp::UNIX_EPOCH, Uuid::nil()), |(at, id)| (at, id.uuid()))
}

fn read_due(row: &PgRow) -> Due {
    Due {
        tenant: row.get("tenant_id"),
        id: row.get("delivery_id"),
        target: row.get("target_id"),
        lane: row.get("lane"),
        order: row.get("order_key"),
        position: row.get("position"),
        replay: row.get("is_replay"),
    }
}

/// Due deliveries of receivers, live or replayed, the longest due first, after a cursor, `limit` each; in the order of the
/// question. `late` as for [`due`].
/// # Errors
/// [`StoreError`].
pub async fn due_of(
    db: &Db,
    of: &[(BacklogRef, Option<DueCursor>)],
    (limit, late): (usize, Duration),
) -> Result<Vec<DuePage>, StoreError> {
    let mut found = vec![DuePage::default(); of.len()];
    // Each kind by its own index: a few replays must not be looked for behind a million live ones. Live ones are behind
    // few replays, because few of a replay wait at a time.
    let of_live = "-- deliveries::store::due_of
        SELECT a.place, d.*, now() FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::uuid[]) WITH ORDINALITY AS a(tenant, target, at, id, place)
        CROSS JOIN LATERAL (
          SELECT tenant_id, delivery_id, target_id, lane, order_key, position, is_replay, due_at FROM ringback.delivery_queue
          WHERE target_id = a.target AND due_at <= now() AND (due_at, delivery_id) > (a.at, a.id) AND tenant_id = a.tenant AND NOT is_replay
          ORDER BY due_at, delivery_id LIMIT $5
        ) d ORDER BY a.place, d.due_at, d.delivery_id";
    let of_replays = "-- deliveries::store::due_of_replays
        SELECT a.place, d.*, now() FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::uuid[]) WITH ORDINALITY AS a(tenant, target, at, id, place)
        CROSS JOIN LATERAL (
          SELECT tenant_id, delivery_id, target_id, lane, order_key, position, is_replay, due_at FROM ringback.delivery_queue
          WHERE target_id = a.target AND due_at <= now() AND (due_at, delivery_id) > (a.at, a.id) AND tenant_id = a.tenant AND is_replay
          ORDER BY due_at, delivery_id LIMIT $5
        ) d ORDER BY a.place, d.due_at, d.delivery_id";
    for (kind, sql) in [(Kind::Live, of_live), (Kind::Replays, of_replays)] {
        let asked: Vec<usize> = (0..of.len()).filter(|index| of[*index].0.1 == kind).collect();
        if asked.is_empty() {
            continue;
        }
        let rows = sqlx::query(sql)
            .bind(asked.iter().map(|index| of[*index].0.0.0.uuid()).collect::<Vec<_>>())
            .bind(asked.iter().map(|index| of[*index].0.0.1).collect::<Vec<_>>())
            .bind(asked.iter().map(|index| place_of(of[*index].1).0).collect::<Vec<_>>())
            .bind(asked.iter().map(|index| place_of(of[*index].1).1).collect::<Vec<_>>())
            .bind(limit as i64)
            .fetch_all(db.pool())
            .await?;
        for row in &rows {
            if let Some(page) = asked.get(place_in_question(row)).and_then(|index| found.get_mut(*index)) {
                page.push(row, late);
                page.more = page.due.len() >= limit;
            }
        }
    }
    Ok(found)
}

/// The first deliveries of an order key, live or replayed.
#[derive(Debug, Clone)]
pub struct KeyRows {
    /// In the order of their positions, each with the time until it is due.
    pub rows: Vec<(Due, Duration)>,
    /// There are no others.
    pub complete: bool,
}

/// The first deliveries of order keys, so many of each, due or not: one that waits for its next try blocks those behind
/// it. In the order of the question.
/// # Errors
/// [`StoreError`].
pub async fn heads_of_keys(db: &Db, keys: &[(KeyRef, usize)]) -> Result<Vec<KeyRows>, StoreError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "-- deliveries::store::heads_of_keys
        SELECT k.place, q.*, CASE WHEN q.due_at = 'infinity' THEN 1e9 ELSE greatest(0, extract(epoch FROM q.due_at - now())) END::float8 AS wait_s
        FROM unnest($1::uuid[], $2::uuid[], $3::int8[], $4::bool[], $5::int8[]) WITH ORDINALITY
          AS k(tenant_id, target_id, order_key, is_replay, heads, place) CROSS JOIN LATERAL (
          SELECT tenant_id, delivery_id, target_id, lane, order_key, position, is_replay, due_at FROM ringback.delivery_queue q
          WHERE q.target_id = k.target_id AND q.order_key = k.order_key AND q.is_replay = k.is_replay AND q.tenant_id = k.tenant_id
          ORDER BY q.position LIMIT k.heads
        ) q
        ORDER BY k.place, q.position",
    )
    .bind(keys.iter().map(|(((tenant, _), _), _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(keys.iter().map(|(((_, target), _), _)| *target).collect::<Vec<_>>())
    .bind(keys.iter().map(|((_, (key, _)), _)| *key).collect::<Vec<_>>())
    .bind(keys.iter().map(|((_, (_, kind)), _)| *kind == Kind::Replays).collect::<Vec<_>>())
    .bind(keys.iter().map(|(_, heads)| *heads as i64).collect::<Vec<_>>())
    .fetch_all(db.pool())
    .await?;
    let mut found = vec![KeyRows { rows: Vec::new(), complete: true }; keys.len()];
    for row in &rows {
        let place = place_in_question(row);
        if let (Some(of), Some((_, heads))) = (found.get_mut(place), keys.get(place)) {
            of.rows.push((read_due(row), Duration::from_secs_f64(row.get("wait_s"))));
            of.complete = of.rows.len() < *heads;
        }
    }
    Ok(found)
}

fn place_in_question(row: &PgRow) -> usize {
    usize::try_from(row.get::<i64, _>("place") - 1).unwrap_or(usize::MAX)
}

/// The order keys of receivers for which something waits, behind a line, as many as a receiver has in memory at most; in
/// the order of the question. One step in the index for each, however much waits of it.
/// # Errors
/// [`StoreError`].
pub async fn lines_behind(db: &Db, of: &[(BacklogRef, Option<Line>)]) -> Result<Vec<LinesPage>, StoreError> {
    if of.is_empty() {
        return Ok(Vec::new());
    }
    // Before the first line is a place, and behind all positions of a line is one.
    let behind = |line: Option<Line>| {
        line.map_or((i64::MIN, Kind::Live, i64::MIN), |(key, kind)| (key, kind, i64::MAX))
    };
    let rows = sqlx::query(
        "-- deliveries::store::lines_behind
        SELECT a.place, l.order_key, l.is_replay, l.due_at <= now() AS is_due
        FROM unnest($1::uuid[], $2::uuid[], $3::int8[], $4::bool[], $5::int8[]) WITH ORDINALITY AS a(tenant, target, key, replay, position, place)
        CROSS JOIN LATERAL (
          WITH RECURSIVE lines AS (
            (SELECT q.order_key, q.is_replay, q.due_at, 1 AS number FROM ringback.delivery_queue q
             WHERE q.target_id = a.target AND q.order_key IS NOT NULL AND q.tenant_id = a.tenant
               AND (q.order_key, q.is_replay, q.position) > (a.key, a.replay, a.position)
             ORDER BY q.order_key, q.is_replay, q.position LIMIT 1)
            UNION ALL
            SELECT next.* FROM lines l CROSS JOIN LATERAL (
              SELECT q.order_key, q.is_replay, q.due_at, l.number + 1 FROM ringback.delivery_queue q
              WHERE q.target_id = a.target AND q.order_key IS NOT NULL AND q.tenant_id = a.tenant
                AND (q.order_key, q.is_replay, q.position) > (l.order_key, l.is_replay, 9223372036854775807)
              ORDER BY q.order_key, q.is_replay, q.position LIMIT 1
            ) next WHERE l.number < $6
          ) SELECT * FROM lines
        ) l
        ORDER BY a.place, l.number",
    )
    .bind(of.iter().map(|(((tenant, _), _), _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(of.iter().map(|(((_, target), _), _)| *target).collect::<Vec<_>>())
    .bind(of.iter().map(|(_, line)| behind(*line).0).collect::<Vec<_>>())
    .bind(of.iter().map(|(_, line)| behind(*line).1 == Kind::Replays).collect::<Vec<_>>())
    .bind(of.iter().map(|(_, line)| behind(*line).2).collect::<Vec<_>>())
    .bind(LINES_MAX as i32)
    .fetch_all(db.pool())
    .await?;
    let mut found = vec![LinesPage::default(); of.len()];
    for row in &rows {
        if let Some(page) = found.get_mut(place_in_question(row)) {
            let kind = if row.get("is_replay") { Kind::Replays } else { Kind::Live };
            page.lines.push(((row.get("order_key"), kind), row.get("is_due")));
            page.more = page.lines.len() >= LINES_MAX;
        }
    }
    Ok(found)
}

/// How long until the next delivery of a node's lanes is due; `None`: nothing waits for a time.
/// # Errors
/// [`StoreError`].
pub async fn next_due(db: &Db, owner: Uuid) -> Result<Option<Duration>, StoreError> {
    let seconds: Option<f64> = sqlx::query_scalar(
        "-- deliveries::store::next_due
        SELECT extract(epoch FROM min(d.due_at) - now())::float8
        FROM (SELECT lane FROM ringback.lanes WHERE owner = $1) l CROSS JOIN LATERAL (
          SELECT due_at FROM ringback.delivery_queue q WHERE q.lane = l.lane AND q.due_at > now() ORDER BY q.due_at LIMIT 1
        ) d",
    )
    .bind(owner)
    .fetch_one(db.pool())
    .await?;
    Ok(seconds.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))))
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
        due: read_due(row),
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
