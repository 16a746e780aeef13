//! The SQL of deliveries that replays look at, make again and take back.
//!
//! Called by `replays::walk` (look) and `engine::feed_replays` (make, take back). All of it works page by page, in the
//! caller's transaction, and finds a row's company by whole keys.
//!
//! Invariant: a page looks at `limit` rows at most, however few of them are wanted.

use std::collections::HashSet;

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::end_store::{CHUNK, EndReason};
use super::{Due, lane_of};
use crate::db::{StoreError, Tx};
use crate::ids::{AttemptId, DeliveryId, EndpointId, EventId, JobId, ReplayId, TenantId};

/// Which deliveries a page is about.
#[derive(Debug, Clone, Copy)]
pub struct EndedAsk {
    /// Whose.
    pub tenant: TenantId,
    /// By which replay: what it made itself is left out. Nil: by none.
    pub replay: ReplayId,
    /// To this endpoint only.
    pub endpoint: Option<EndpointId>,
    /// Only those that failed.
    pub failed: bool,
    /// Made before this id.
    pub until: Uuid,
}

/// A delivery that was looked at.
#[derive(Debug, Clone)]
pub struct Looked {
    /// Which.
    pub id: DeliveryId,
    /// What it was, if it is one of those that were asked for.
    pub ended: Option<Ended>,
}

/// A delivery that has ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// What was told.
    pub event: EventId,
    /// Its topic.
    pub event_type: String,
    /// With which others it goes in order.
    pub ordering_key: Option<String>,
    /// To which endpoint…
    pub endpoint: Option<EndpointId>,
    /// … or to the callback of which job…
    pub job: Option<JobId>,
    /// … where.
    pub callback_url: Option<String>,
    /// It failed before there was a body: the filter or the transform did not work on the event.
    pub bodiless: bool,
}

/// What is true of a delivery `w.id` that is wanted. It has ended, its event is still there, and no newer delivery of its
/// event to its receiver stands for it: one in the same window, one of the same replay, or, where only failed ones are
/// wanted, one that came through or is on its way. Subselects with LIMIT, for EXISTS may be planned as a hash of a whole table.
macro_rules! ended_among {
    ($looked:literal) => {
        concat!(
            "WITH looked AS MATERIALIZED (", $looked, ")
            SELECT w.id, d.* FROM looked w LEFT JOIN LATERAL (
              SELECT d.event_id, d.event_type, e.ordering_key, d.endpoint_id, d.job_id, j.callback_url,
                d.data IS NULL AND last.error_code IN ('filter', 'transform') AS bodiless
              FROM (SELECT * FROM ringback.deliveries d WHERE d.tenant_id = $1 AND d.id = w.id LIMIT 1) d
              CROSS JOIN LATERAL (
                SELECT a.verdict, coalesce(a.error_code, '') AS error_code FROM ringback.delivery_attempts a
                WHERE a.tenant_id = $1 AND a.delivery_id = d.id ORDER BY a.number DESC LIMIT 1
              ) last
              CROSS JOIN LATERAL (SELECT e.ordering_key FROM ringback.events e WHERE e.tenant_id = $1 AND e.id = d.event_id LIMIT 1) e
              LEFT JOIN LATERAL (SELECT true AS waits FROM ringback.delivery_queue q WHERE q.tenant_id = $1 AND q.delivery_id = d.id LIMIT 1) q ON true
              LEFT JOIN LATERAL (SELECT j.callback_url FROM ringback.jobs j WHERE j.tenant_id = $1 AND j.id = d.job_id LIMIT 1) j ON true
              LEFT JOIN LATERAL (
                SELECT true AS stands_for_it FROM (
                  SELECT n.id, n.replay_id FROM ringback.deliveries n
                  WHERE n.tenant_id = $1 AND n.event_id = d.event_id AND n.endpoint_id = d.endpoint_id AND n.id > d.id
                  UNION ALL
                  SELECT n.id, n.replay_id FROM ringback.deliveries n
                  WHERE n.tenant_id = $1 AND n.event_id = d.event_id AND n.endpoint_id IS NULL AND n.job_id = d.job_id AND n.id > d.id
                ) n
                WHERE n.id < $3 OR n.replay_id = $7 OR ($6 AND (
                  (SELECT true FROM ringback.delivery_queue q WHERE q.tenant_id = $1 AND q.delivery_id = n.id LIMIT 1)
                  OR (SELECT a.verdict FROM ringback.delivery_attempts a WHERE a.tenant_id = $1 AND a.delivery_id = n.id ORDER BY a.number DESC LIMIT 1) = 1
                ))
                LIMIT 1
              ) n ON true
              WHERE q.waits IS NULL AND n.stands_for_it IS NULL AND (last.verdict = 2 OR NOT $6)
                AND ($5::uuid IS NULL OR d.endpoint_id = $5) AND d.replay_id IS DISTINCT FROM $7 AND d.event_type <> 'ringback.test'
            ) d ON true
            ORDER BY w.id"
        )
    };
}

/// A page of what has ended, in the order of the ids, behind `after`. An empty one is the last.
/// # Errors
/// [`StoreError`].
pub async fn ended_page(
    tx: &mut Tx,
    ask: &EndedAsk,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Looked>, StoreError> {
    let sql = match (ask.failed, ask.endpoint) {
        (true, _) => concat!(
            "-- deliveries::replay_store::failed_page\n",
            ended_among!(
                "SELECT DISTINCT f.delivery_id AS id FROM (
                  SELECT a.delivery_id FROM ringback.delivery_attempts a
                  WHERE a.tenant_id = $1 AND a.verdict = 2 AND a.delivery_id > $2 AND a.delivery_id < $3 ORDER BY a.delivery_id LIMIT $4
                ) f"
            )
        ),
        (false, Some(_)) => concat!(
            "-- deliveries::replay_store::ended_page_of_endpoint\n",
            ended_among!(
                "SELECT d.id FROM ringback.deliveries d
                 WHERE d.tenant_id = $1 AND d.endpoint_id = $5 AND d.id > $2 AND d.id < $3 ORDER BY d.id LIMIT $4"
            )
        ),
        (false, None) => concat!(
            "-- deliveries::replay_store::ended_page\n",
            ended_among!(
                "SELECT d.id FROM ringback.deliveries d WHERE d.tenant_id = $1 AND d.id > $2 AND d.id < $3 ORDER BY d.id LIMIT $4"
            )
        ),
    };
    let rows = sqlx::query(sql)
        .bind(ask.tenant)
        .bind(after)
        .bind(ask.until)
        .bind(limit)
        .bind(ask.endpoint)
        .bind(ask.failed)
        .bind(ask.replay)
        .fetch_all(&mut **tx)
        .await?;
    let read = |row: &PgRow| Looked {
        id: row.get("id"),
        ended: row.get::<Option<EventId>, _>("event_id").map(|event| Ended {
            event,
            event_type: row.get("event_type"),
            ordering_key: row.get("ordering_key"),
            endpoint: row.get("endpoint_id"),
            job: row.get("job_id"),
            callback_url: row.get("callback_url"),
            bodiless: row.get("bodiless"),
        }),
    };
    Ok(rows.iter().map(read).collect())
}

/// An event and an endpoint.
pub type Pair = (EventId, EndpointId);

/// Which of these pairs have a delivery that waits, or that was ever sent or failed by itself: one that ended because its
/// endpoint was disabled or its replay cancelled, without a POST, is none.
/// # Errors
/// [`StoreError`].
pub async fn told(tx: &mut Tx, tenant: TenantId, pairs: &[Pair]) -> Result<HashSet<Pair>, StoreError> {
    if pairs.is_empty() {
        return Ok(HashSet::new());
    }
    // A delivery is younger than its event, but for what the clocks of two nodes differ by.
    let skew = chrono::TimeDelta::hours(1);
    let rows = sqlx::query(
        "-- deliveries::replay_store::told
        SELECT p.event_id, p.endpoint_id FROM unnest($2::uuid[], $3::uuid[], $4::uuid[]) AS p(event_id, endpoint_id, floor) CROSS JOIN LATERAL (
          SELECT FROM ringback.deliveries d
          WHERE d.tenant_id = $1 AND d.event_id = p.event_id AND d.endpoint_id = p.endpoint_id AND d.id > p.floor AND (
            (SELECT true FROM ringback.delivery_queue q WHERE q.tenant_id = $1 AND q.delivery_id = d.id LIMIT 1)
            OR (
              SELECT true FROM ringback.delivery_attempts a WHERE a.tenant_id = $1 AND a.delivery_id = d.id
              AND coalesce(a.error_code, '') NOT IN ('endpoint_disabled', 'endpoint_deleted', 'replay_cancelled') LIMIT 1
            )
          )
          LIMIT 1
        ) d",
    )
    .bind(tenant)
    .bind(pairs.iter().map(|(event, _)| event.uuid()).collect::<Vec<_>>())
    .bind(pairs.iter().map(|(_, endpoint)| endpoint.uuid()).collect::<Vec<_>>())
    .bind(pairs.iter().map(|(event, _)| crate::ids::floor_of(event.created_at() - skew)).collect::<Vec<_>>())
    .fetch_all(&mut **tx)
    .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// A delivery that is made once more.
#[derive(Debug, Clone, Copy)]
pub struct Again {
    /// The new one.
    pub id: DeliveryId,
    /// Whose bytes it sends.
    pub original: DeliveryId,
    /// Who is called.
    pub target: Uuid,
    /// One after another with those that share it…
    pub order: Option<i64>,
    /// … by this.
    pub position: i64,
}

impl Again {
    /// As it is held in memory.
    pub fn due(&self, tenant: TenantId) -> Due {
        Due {
            tenant,
            lane: lane_of(tenant, self.target),
            id: self.id,
            target: self.target,
            order: self.order,
            position: self.position,
            replay: true,
        }
    }
}

/// Makes deliveries once more, due at once: new ids, everything else as it was.
/// # Errors
/// [`StoreError`].
pub async fn create_again(
    tx: &mut Tx,
    (tenant, replay): (TenantId, ReplayId),
    deliveries: &[Again],
) -> Result<(), StoreError> {
    if deliveries.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "-- deliveries::replay_store::create_again
        WITH input AS MATERIALIZED (
          SELECT t.*, d.event_id, d.event_type, d.job_id, d.endpoint_id
          FROM unnest($3::uuid[], $4::uuid[], $5::uuid[], $6::int2[], $7::int8[], $8::int8[]) AS t(id, original_id, target_id, lane, order_key, position)
          CROSS JOIN LATERAL (SELECT * FROM ringback.deliveries d WHERE d.tenant_id = $1 AND d.id = t.original_id LIMIT 1) d
        ), waiting AS (
          INSERT INTO ringback.delivery_queue (tenant_id, delivery_id, lane, target_id, event_id, job_id, endpoint_id, due_at, order_key, position, is_replay, replay_id)
          SELECT $1, id, lane, target_id, event_id, job_id, endpoint_id, now(), order_key, position, true, $2 FROM input
        )
        INSERT INTO ringback.deliveries (tenant_id, id, event_id, event_type, job_id, endpoint_id, data, replay_id)
        SELECT $1, i.id, i.event_id, i.event_type, i.job_id, i.endpoint_id, d.data, $2
        FROM input i CROSS JOIN LATERAL (SELECT d.data FROM ringback.deliveries d WHERE d.tenant_id = $1 AND d.id = i.original_id LIMIT 1) d",
    )
    .bind(tenant)
    .bind(replay)
    .bind(deliveries.iter().map(|again| again.id.uuid()).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|again| again.original.uuid()).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|again| again.target).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|again| lane_of(tenant, again.target)).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|again| again.order).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|again| again.position).collect::<Vec<_>>())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The first of a thousand fresh places in the order of what is replayed.
/// # Errors
/// [`StoreError`].
pub async fn fresh_positions(tx: &mut Tx) -> Result<i64, StoreError> {
    let first = sqlx::query_scalar(
        "-- deliveries::replay_store::fresh_positions
        SELECT nextval('ringback.replay_positions')",
    )
    .fetch_one(&mut **tx)
    .await?;
    Ok(first)
}

/// How many deliveries of a replay wait for their first try; counted up to `max`. Those that wait for another one do not
/// count: they are looked after like any other that failed, and hold nobody up.
/// # Errors
/// [`StoreError`].
pub async fn waiting(tx: &mut Tx, replay: ReplayId, max: i64) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar(
        "-- deliveries::replay_store::waiting
        SELECT count(*) FROM (SELECT FROM ringback.delivery_queue WHERE replay_id = $1 AND attempt = 0 LIMIT $2) w",
    )
    .bind(replay)
    .bind(max)
    .fetch_one(&mut **tx)
    .await?;
    Ok(count)
}

/// What became of the deliveries of a cancelled replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakenBack {
    /// They ended now.
    pub ended: i64,
    /// So many of these were never on the wire.
    pub unsent: i64,
    /// Some are left: they are on the wire, or there are more than [`CHUNK`].
    pub left: bool,
}

/// Ends up to [`CHUNK`] deliveries of a replay that wait, each with a last attempt that says why. Those on the wire are left
/// alone, so that their tries are recorded; they end when they come back.
/// # Errors
/// [`StoreError`].
pub async fn take_back(
    tx: &mut Tx,
    (tenant, replay): (TenantId, ReplayId),
    reason: EndReason,
) -> Result<TakenBack, StoreError> {
    let ids: Vec<_> = (0..CHUNK).map(|_| AttemptId::fresh().uuid()).collect();
    let row = sqlx::query(
        "-- deliveries::replay_store::take_back
        WITH flying AS MATERIALIZED (
          SELECT q.delivery_id FROM ringback.delivery_flights f
          CROSS JOIN LATERAL unnest(f.tenant_ids, f.delivery_ids, f.attempts) AS u(tenant_id, delivery_id, attempt)
          CROSS JOIN LATERAL (
            SELECT q.delivery_id FROM ringback.delivery_queue q
            WHERE q.tenant_id = u.tenant_id AND q.delivery_id = u.delivery_id AND q.replay_id = $2 AND q.attempt = u.attempt - 1 LIMIT 1
          ) q
          WHERE u.tenant_id = $1
        ), waiting AS MATERIALIZED (
          SELECT q.tenant_id, q.delivery_id, q.attempt FROM ringback.delivery_queue q
          WHERE q.replay_id = $2 AND NOT q.delivery_id = ANY(ARRAY(SELECT delivery_id FROM flying))
          -- CHUNK as a literal, so that the plan knows how few they are.
          ORDER BY q.delivery_id LIMIT 1000 FOR UPDATE SKIP LOCKED
        ), ended AS (
          -- By key, never by ctid: a try's record may have moved the row since this statement began.
          DELETE FROM ringback.delivery_queue q USING waiting w WHERE q.tenant_id = w.tenant_id AND q.delivery_id = w.delivery_id
        ), tried AS (
          INSERT INTO ringback.delivery_attempts (tenant_id, delivery_id, number, id, verdict, error_code, error_message, started_at, duration_us)
          SELECT tenant_id, delivery_id, attempt + 1, ($5::uuid[])[row_number() OVER ()], 2, $3, $4, now(), 0 FROM waiting
        )
        SELECT count(*) AS ended, count(*) FILTER (WHERE attempt = 0) AS unsent,
          (SELECT count(*) FROM (SELECT FROM ringback.delivery_queue WHERE replay_id = $2 LIMIT 1001) q) > count(*) AS is_left
        FROM waiting",
    )
    .bind(tenant)
    .bind(replay)
    .bind(reason.code)
    .bind(reason.message)
    .bind(ids)
    .fetch_one(&mut **tx)
    .await?;
    Ok(TakenBack { ended: row.get("ended"), unsent: row.get("unsent"), left: row.get("is_left") })
}
