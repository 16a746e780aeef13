//! The SQL of replays: create, show, cancel; and for who feeds them: take one, advance, end.
//!
//! Called by `http::replays`, `engine::feed_replays` and maintenance (`purge`). The row's lock makes the feeder, for one page at a time; its
//! `next_at` keeps the pace over pages, restarts and nodes.
//!
//! Invariant: only a replay that runs advances, and what has ended stays as it is.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use super::{Ask, Matched, Place, Replay, ReplayStatus, What};
use crate::db::{Db, StoreError, Tx};
use crate::ids::{EndpointId, ReplayId, TenantId};
use crate::topics::Pattern;

/// Stores a new one, in the caller's transaction.
/// # Errors
/// [`StoreError`].
pub async fn create(tx: &mut Tx, replay: &Replay) -> Result<(), StoreError> {
    let ask = &replay.ask;
    let event_types: Option<Vec<String>> =
        ask.event_types.as_ref().map(|list| list.iter().map(|pattern| pattern.as_str().to_owned()).collect());
    sqlx::query(
        "-- replays::store::create
        INSERT INTO ringback.replays (tenant_id, id, endpoint_id, event_types, what, since, until, per_s, matched, matched_exact, cursor, created_at, updated_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12)",
    )
    .bind(replay.tenant)
    .bind(replay.id)
    .bind(ask.endpoint)
    .bind(event_types)
    .bind(ask.what.as_str())
    .bind(ask.since)
    .bind(ask.until)
    .bind(ask.per_s)
    .bind(replay.matched.count)
    .bind(replay.matched.exact)
    .bind(replay.place.at)
    .bind(replay.updated_at)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// One of this tenant.
/// # Errors
/// [`StoreError::NotFound`].
pub async fn get(db: &Db, tenant: TenantId, id: ReplayId) -> Result<Replay, StoreError> {
    let replay = sqlx::query_as(
        "-- replays::store::get
        SELECT * FROM ringback.replays WHERE tenant_id = $1 AND id = $2",
    )
    .bind(tenant)
    .bind(id)
    .fetch_one(db.pool())
    .await?;
    Ok(replay)
}

/// A page of them, newest first, all older than `before`.
/// # Errors
/// [`StoreError`].
pub async fn list(
    db: &Db,
    tenant: TenantId,
    before: Option<ReplayId>,
    limit: i64,
) -> Result<Vec<Replay>, StoreError> {
    let replays = sqlx::query_as(
        "-- replays::store::list
        SELECT * FROM ringback.replays WHERE tenant_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
    )
    .bind(tenant)
    .bind(before.map_or(Uuid::max(), ReplayId::uuid))
    .bind(limit)
    .fetch_all(db.pool())
    .await?;
    Ok(replays)
}

/// Stops one that runs: from now on nothing of it takes off. What waits of it is ended by who feeds, a moment later, when
/// what was taking off just now is known to be on the wire.
/// # Errors
/// [`StoreError::NotFound`]; [`StoreError::Conflict`] when it has ended.
pub async fn cancel(db: &Db, tenant: TenantId, id: ReplayId) -> Result<Replay, StoreError> {
    let cancelled = sqlx::query_as(
        "-- replays::store::cancel
        UPDATE ringback.replays SET status = 3, ending = true, next_at = now() + interval '500 ms', updated_at = now(), finished_at = now()
        WHERE tenant_id = $1 AND id = $2 AND status = 1 RETURNING *",
    )
    .bind(tenant)
    .bind(id)
    .fetch_optional(db.pool())
    .await?;
    if let Some(replay) = cancelled {
        return Ok(replay);
    }
    let ended = get(db, tenant, id).await?;
    Err(StoreError::Conflict(format!("the replay has ended: it is {}", ended.status.as_str())))
}

/// How long until there is something to do; `None`: nothing runs.
/// # Errors
/// [`StoreError`].
pub async fn next(db: &Db) -> Result<Option<Duration>, StoreError> {
    let seconds: Option<f64> = sqlx::query_scalar(
        "-- replays::store::next
        SELECT extract(epoch FROM min(next_at) - now())::float8 FROM (
          SELECT next_at FROM ringback.replays WHERE status = 1 UNION ALL SELECT next_at FROM ringback.replays WHERE ending
        ) r",
    )
    .fetch_one(db.relaxed())
    .await?;
    Ok(seconds.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))))
}

/// Takes the one that has waited longest for its time, for the caller's transaction; others pass it over.
/// # Errors
/// [`StoreError`].
pub async fn take_running(tx: &mut Tx) -> Result<Option<Replay>, StoreError> {
    let taken = sqlx::query_as(
        "-- replays::store::take_running
        SELECT * FROM ringback.replays WHERE status = 1 AND next_at <= now() ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED",
    )
    .fetch_optional(&mut **tx)
    .await?;
    Ok(taken)
}

/// The same for one that was cancelled, while some of it waits.
/// # Errors
/// [`StoreError`].
pub async fn take_ending(tx: &mut Tx) -> Result<Option<(TenantId, ReplayId)>, StoreError> {
    let row = sqlx::query(
        "-- replays::store::take_ending
        SELECT tenant_id, id FROM ringback.replays WHERE ending AND next_at <= now() ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED",
    )
    .fetch_optional(&mut **tx)
    .await?;
    Ok(row.map(|row| (row.get(0), row.get(1))))
}

/// What a page leaves behind.
#[derive(Debug, Clone)]
pub struct Advance {
    /// Where the walk stands…
    pub place: Place,
    /// … and whether that is its end.
    pub walked: bool,
    /// So many deliveries were made.
    pub made: i64,
    /// Not before this time.
    pub wait: Duration,
    /// How it ended, and why, if it did.
    pub end: Option<(ReplayStatus, Option<&'static str>)>,
}

/// Writes down how far one that was taken has come. One that is a little late catches up, or its pace would be less than
/// what was asked for.
/// # Errors
/// [`StoreError`].
pub async fn advance(tx: &mut Tx, replay: &Replay, advance: &Advance) -> Result<(), StoreError> {
    let (status, error) = advance.end.unwrap_or((ReplayStatus::Running, None));
    sqlx::query(
        "-- replays::store::advance
        UPDATE ringback.replays SET cursor = $3, cursor_endpoint = $4, walked = $9, replayed = replayed + $5,
          matched = CASE WHEN $9 AND NOT matched_exact THEN replayed + $5 ELSE greatest(matched, replayed + $5) END,
          matched_exact = matched_exact OR $9, next_at = greatest(next_at, now() - interval '200 ms') + $6 * interval '1 s', status = $7, error = $8,
          updated_at = CASE WHEN $5 > 0 OR $7 <> status THEN now() ELSE updated_at END, finished_at = CASE WHEN $7 <> 1 THEN now() END
        WHERE tenant_id = $1 AND id = $2 AND status = 1",
    )
    .bind(replay.tenant)
    .bind(replay.id)
    .bind(advance.place.at)
    .bind(advance.place.endpoint)
    .bind(advance.made)
    .bind(advance.wait.as_secs_f64())
    .bind(status.code())
    .bind(error)
    .bind(advance.walked)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Writes down what became of those that waited when it was cancelled: so many were made in vain, and whether all is
/// done now.
/// # Errors
/// [`StoreError`].
pub async fn taken_back(
    tx: &mut Tx,
    (tenant, id): (TenantId, ReplayId),
    unsent: i64,
    again_in: Option<Duration>,
) -> Result<(), StoreError> {
    sqlx::query(
        "-- replays::store::taken_back
        UPDATE ringback.replays SET replayed = replayed - $3, ending = $4::float8 IS NOT NULL,
          next_at = now() + coalesce($4, 0) * interval '1 s', updated_at = CASE WHEN $3 > 0 THEN now() ELSE updated_at END
        WHERE tenant_id = $1 AND id = $2",
    )
    .bind(tenant)
    .bind(id)
    .bind(unsent)
    .bind(again_in.map(|wait| wait.as_secs_f64()))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Forgets those that ended so many days ago. Answers how many.
/// # Errors
/// [`StoreError`].
pub async fn purge(db: &Db, days: i32, limit: i64) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "-- replays::store::purge
        DELETE FROM ringback.replays WHERE ctid = ANY(ARRAY(
          SELECT ctid FROM ringback.replays WHERE finished_at < now() - $1 * interval '1 day' AND status <> 1 AND NOT ending LIMIT $2))",
    )
    .bind(days)
    .bind(limit)
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}

impl<'r> FromRow<'r, PgRow> for Replay {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        let what: &str = row.try_get("what")?;
        let event_types: Option<Vec<String>> = row.try_get("event_types")?;
        let patterns = event_types.map(|list| list.iter().map(|text| Pattern::parse(text)).collect());
        let ask = Ask {
            endpoint: row.try_get("endpoint_id")?,
            event_types: patterns.transpose().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
            what: What::WORDS.iter().find(|(word, _)| *word == what).map_or(What::Failed, |(_, what)| *what),
            since: row.try_get("since")?,
            until: row.try_get("until")?,
            per_s: row.try_get::<Option<f64>, _>("per_s")?.unwrap_or(super::new_replay::PER_S_DEFAULT),
        };
        let start = ask.start();
        Ok(Self {
            tenant: row.try_get("tenant_id")?,
            id: row.try_get("id")?,
            status: ReplayStatus::of_code(row.try_get("status")?),
            matched: Matched { count: row.try_get("matched")?, exact: row.try_get("matched_exact")? },
            replayed: row.try_get("replayed")?,
            place: Place {
                at: row.try_get::<Option<Uuid>, _>("cursor")?.unwrap_or(start.at),
                endpoint: row.try_get::<Option<EndpointId>, _>("cursor_endpoint")?,
            },
            walked: row.try_get("walked")?,
            ask,
            error: row.try_get("error")?,
            updated_at: row.try_get("updated_at")?,
            finished_at: row.try_get("finished_at")?,
        })
    }
}
