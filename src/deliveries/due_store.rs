//! The SQL of what waits to be sent: what is due, more of a receiver's, the first deliveries of order keys, which keys there
//! are, and when the next one is due.
//!
//! Called by `engine::dispatch::lookups`. It only reads; what is loaded and recorded stands in `store`.
//!
//! Invariant: no statement walks a backlog: each goes on behind a cursor, or by steps in an index.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::scheduling::{BacklogRef, KeyRef, Kind, LINES_MAX, Line, LinesPage, Refill};
use super::{Due, DueCursor};
use crate::clock::Timestamp;
use crate::db::{Db, StoreError};

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
        "-- deliveries::due_store::due
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

pub(super) fn read_due(row: &PgRow) -> Due {
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

/// Due deliveries of receivers, live or replayed, the longest due first; in the order of the question. `late` as for [`due`].
/// # Errors
/// [`StoreError`].
pub async fn due_of(db: &Db, of: &[Refill], late: Duration) -> Result<Vec<DuePage>, StoreError> {
    let mut found = vec![DuePage::default(); of.len()];
    // Each kind by its own index: a few replays must not be looked for behind a million live ones. Live ones are behind
    // few replays, because few of a replay wait at a time.
    let of_live = "-- deliveries::due_store::due_of
        SELECT a.place, d.*, now() FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::uuid[], $5::int8[]) WITH ORDINALITY
          AS a(tenant, target, at, id, rows, place)
        CROSS JOIN LATERAL (
          SELECT tenant_id, delivery_id, target_id, lane, order_key, position, is_replay, due_at FROM ringback.delivery_queue
          WHERE target_id = a.target AND due_at <= now() AND (due_at, delivery_id) > (a.at, a.id) AND tenant_id = a.tenant AND NOT is_replay
          ORDER BY due_at, delivery_id LIMIT a.rows
        ) d ORDER BY a.place, d.due_at, d.delivery_id";
    let of_replays = "-- deliveries::due_store::due_of_replays
        SELECT a.place, d.*, now() FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::uuid[], $5::int8[]) WITH ORDINALITY
          AS a(tenant, target, at, id, rows, place)
        CROSS JOIN LATERAL (
          SELECT tenant_id, delivery_id, target_id, lane, order_key, position, is_replay, due_at FROM ringback.delivery_queue
          WHERE target_id = a.target AND due_at <= now() AND (due_at, delivery_id) > (a.at, a.id) AND tenant_id = a.tenant AND is_replay
          ORDER BY due_at, delivery_id LIMIT a.rows
        ) d ORDER BY a.place, d.due_at, d.delivery_id";
    for (kind, sql) in [(Kind::Live, of_live), (Kind::Replays, of_replays)] {
        let asked: Vec<usize> = (0..of.len()).filter(|index| of[*index].of.1 == kind).collect();
        if asked.is_empty() {
            continue;
        }
        let rows = sqlx::query(sql)
            .bind(asked.iter().map(|index| of[*index].of.0.0.uuid()).collect::<Vec<_>>())
            .bind(asked.iter().map(|index| of[*index].of.0.1).collect::<Vec<_>>())
            .bind(asked.iter().map(|index| place_of(of[*index].from).0).collect::<Vec<_>>())
            .bind(asked.iter().map(|index| place_of(of[*index].from).1).collect::<Vec<_>>())
            .bind(asked.iter().map(|index| of[*index].limit as i64).collect::<Vec<_>>())
            .fetch_all(db.pool())
            .await?;
        for row in &rows {
            let index = asked.get(place_in_question(row)).copied().unwrap_or(usize::MAX);
            if let (Some(page), Some(refill)) = (found.get_mut(index), of.get(index)) {
                page.push(row, late);
                page.more = page.due.len() >= refill.limit;
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
        "-- deliveries::due_store::heads_of_keys
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
        "-- deliveries::due_store::lines_behind
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

/// The database's time, and how long until the next delivery of a node's lanes is due; `None`: nothing waits for a time.
/// # Errors
/// [`StoreError`].
pub async fn next_due(db: &Db, owner: Uuid) -> Result<(Timestamp, Option<Duration>), StoreError> {
    let row = sqlx::query(
        "-- deliveries::due_store::next_due
        SELECT now() AS now, extract(epoch FROM min(d.due_at) - now())::float8 AS wait_s
        FROM (SELECT lane FROM ringback.lanes WHERE owner = $1) l CROSS JOIN LATERAL (
          SELECT due_at FROM ringback.delivery_queue q WHERE q.lane = l.lane AND q.due_at > now() ORDER BY q.due_at LIMIT 1
        ) d",
    )
    .bind(owner)
    .fetch_one(db.pool())
    .await?;
    let wait: Option<f64> = row.get("wait_s");
    Ok((row.get("now"), wait.map(|seconds| Duration::from_secs_f64(seconds.max(0.0)))))
}
