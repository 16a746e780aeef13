//! The SQL of nodes and lanes.

use std::time::Duration;

use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use super::{EXPIRY, LANES, Node, QUIET};
use crate::db::{Db, StoreError};

/// Says that the node lives; writes its row where it is missing. Answers how many other nodes there are.
/// # Errors
/// [`StoreError`].
pub async fn heartbeat(db: &Db, node: &Node) -> Result<i64, StoreError> {
    let others = sqlx::query_scalar(
        "-- nodes::store::heartbeat
        INSERT INTO ringback.nodes AS n (id, name, lock_key, expires_at, dispatcher) VALUES ($1, $2, $3, now() + $4 * interval '1 s', $5)
        ON CONFLICT (id) DO UPDATE SET expires_at = EXCLUDED.expires_at
        RETURNING (SELECT count(*) FROM ringback.nodes WHERE id <> $1)",
    )
    .bind(node.id)
    .bind(&node.name)
    .bind(node.lock_key())
    .bind(EXPIRY.as_secs_f64())
    .bind(node.dispatcher)
    .fetch_one(db.relaxed())
    .await?;
    Ok(others)
}

/// A connection that holds the presence lock as long as it lives.
#[derive(Debug)]
pub struct Presence(PgConnection);

impl Presence {
    /// Opens it.
    /// # Errors
    /// [`StoreError`].
    pub async fn open(db: &Db, node: &Node) -> Result<Self, StoreError> {
        let mut connection = db.pool().acquire().await?.detach();
        sqlx::query("-- nodes::store::presence\nSELECT pg_advisory_lock($1)")
            .bind(node.lock_key())
            .execute(&mut connection)
            .await?;
        Ok(Self(connection))
    }

    /// Does it still live?
    /// # Errors
    /// [`StoreError`]: it is gone, and the lock with it.
    pub async fn check(&mut self) -> Result<(), StoreError> {
        Ok(self.0.ping().await?)
    }

    /// Gives the lock back.
    pub async fn close(self) {
        if let Err(error) = self.0.close().await {
            tracing::debug!(%error, "the presence connection was gone already");
        }
    }
}

/// Removes nodes that are dead, and frees their lanes. Returns their names.
/// # Errors
/// [`StoreError`].
pub async fn reap(db: &Db, node: &Node) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query(
        "-- nodes::store::reap
        WITH silent AS MATERIALIZED (
          SELECT id, expires_at <= now() AS expired, lock_key FROM ringback.nodes
          WHERE id <> $1 AND expires_at <= now() + ($2 - $3) * interval '1 s'
        ), dead AS MATERIALIZED (
          SELECT id FROM silent WHERE expired OR pg_try_advisory_xact_lock(lock_key)
        ), freed AS (
          UPDATE ringback.lanes SET owner = NULL, freed_at = now() WHERE owner IN (SELECT id FROM dead)
        )
        DELETE FROM ringback.nodes WHERE id IN (SELECT id FROM dead) RETURNING name",
    )
    .bind(node.id)
    .bind(EXPIRY.as_secs_f64())
    .bind(QUIET.as_secs_f64())
    .fetch_all(db.pool())
    .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The lanes of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// Those it owns, each with the time since another node, or an earlier run of this one, may have called its
    /// receivers; `None`: nobody ever has.
    pub lanes: Vec<(i16, Option<Duration>)>,
    /// How many it should own, so that all dispatchers have about the same number.
    pub share: usize,
}

/// Takes lanes that nobody owns, up to this node's share; none if it is not on record, or retires.
/// # Errors
/// [`StoreError`].
pub async fn take_lanes(db: &Db, node: &Node) -> Result<Holding, StoreError> {
    let share: i64 = sqlx::query_scalar(
        "-- nodes::store::take_lanes
        WITH share AS MATERIALIZED (
          SELECT ceil($2::float8 / greatest(1, count(*)))::int8 AS lanes FROM ringback.nodes WHERE dispatcher
        ), taken AS (
          -- An owner that is not on record left at the latest now.
          UPDATE ringback.lanes SET owner = $1, epoch = epoch + 1, freed_at = CASE WHEN owner IS NULL THEN freed_at ELSE now() END WHERE lane IN (
            SELECT lane FROM ringback.lanes WHERE (owner IS NULL OR owner NOT IN (SELECT id FROM ringback.nodes))
              AND EXISTS (SELECT FROM ringback.nodes WHERE id = $1 AND dispatcher)
            ORDER BY lane
            LIMIT greatest(0, (SELECT lanes FROM share) - (SELECT count(*) FROM ringback.lanes WHERE owner = $1))
            FOR UPDATE SKIP LOCKED
          )
        )
        SELECT lanes FROM share",
    )
    .bind(node.id)
    .bind(f64::from(LANES))
    .fetch_one(db.pool())
    .await?;
    let rows = sqlx::query(
        "-- nodes::store::lanes
        SELECT lane, extract(epoch FROM now() - freed_at)::float8 AS quiet_s FROM ringback.lanes WHERE owner = $1 ORDER BY lane",
    )
    .bind(node.id)
    .fetch_all(db.pool())
    .await?;
    let quiet = |row: &sqlx::postgres::PgRow| {
        let quiet_s: Option<f64> = row.get("quiet_s");
        quiet_s.map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
    };
    let lanes = rows.iter().map(|row| (row.get("lane"), quiet(row))).collect();
    Ok(Holding { lanes, share: usize::try_from(share).unwrap_or(0) })
}

/// Gives lanes back.
/// # Errors
/// [`StoreError`].
pub async fn release_lanes(db: &Db, node: &Node, lanes: &[i16]) -> Result<(), StoreError> {
    sqlx::query(
        "-- nodes::store::release_lanes
        UPDATE ringback.lanes SET owner = NULL, epoch = epoch + 1, freed_at = clock_timestamp() WHERE owner = $1 AND lane = ANY($2)",
    )
    .bind(node.id)
    .bind(lanes)
    .execute(db.pool())
    .await?;
    Ok(())
}

/// Says that the node takes no lane any more; the share of the others grows at once.
/// # Errors
/// [`StoreError`].
pub async fn retire(db: &Db, node: &Node) -> Result<(), StoreError> {
    sqlx::query("-- nodes::store::retire\nUPDATE ringback.nodes SET dispatcher = false WHERE id = $1")
        .bind(node.id)
        .execute(db.pool())
        .await?;
    Ok(())
}

/// Says that nothing of the node is in the air any more.
/// # Errors
/// [`StoreError`].
pub async fn land_all(db: &Db, node: &Node) -> Result<(), StoreError> {
    sqlx::query("-- nodes::store::land_all\nDELETE FROM ringback.delivery_flights WHERE owner = $1")
        .bind(node.id)
        .execute(db.pool())
        .await?;
    Ok(())
}

/// Signs the node off.
/// # Errors
/// [`StoreError`].
pub async fn leave(db: &Db, node: &Node) -> Result<(), StoreError> {
    sqlx::query("-- nodes::store::leave\nDELETE FROM ringback.nodes WHERE id = $1")
        .bind(node.id)
        .execute(db.pool())
        .await?;
    Ok(())
}

/// Tries that were on the wire when their node died, and whose deliveries still wait for that try.
#[derive(Debug, Clone)]
pub struct LostFlight {
    /// Whose.
    pub tenant: Uuid,
    /// Which delivery.
    pub delivery: Uuid,
    /// Who was called.
    pub target: Uuid,
    /// In which lane.
    pub lane: i16,
    /// The number of the try.
    pub number: i32,
    /// When the batch took off.
    pub started_at: crate::clock::Timestamp,
}

/// What was on the wire in this node's lanes when another node died, and still waits for that try.
/// # Errors
/// [`StoreError`].
pub async fn lost_flights(db: &Db, node: &Node) -> Result<Vec<LostFlight>, StoreError> {
    let rows = sqlx::query(
        "-- nodes::store::lost_flights
        -- One that was put back and loaded again stands in two flights as long as others of the first one fly.
        WITH dead AS MATERIALIZED (
          SELECT f.* FROM ringback.delivery_flights f WHERE NOT EXISTS (SELECT FROM ringback.nodes n WHERE n.id = f.owner)
        )
        SELECT DISTINCT ON (u.tenant_id, u.delivery_id) u.tenant_id, u.delivery_id, u.number, f.started_at, q.target_id, q.lane
        FROM dead f
        CROSS JOIN LATERAL unnest(f.tenant_ids, f.delivery_ids, f.attempts) AS u(tenant_id, delivery_id, number)
        JOIN ringback.delivery_queue q ON q.tenant_id = u.tenant_id AND q.delivery_id = u.delivery_id AND q.attempt = u.number - 1
        JOIN ringback.lanes l ON l.lane = q.lane AND l.owner = $1
        ORDER BY u.tenant_id, u.delivery_id, f.started_at DESC",
    )
    .bind(node.id)
    .fetch_all(db.pool())
    .await?;
    let read = |row: &sqlx::postgres::PgRow| LostFlight {
        tenant: row.get("tenant_id"),
        delivery: row.get("delivery_id"),
        target: row.get("target_id"),
        lane: row.get("lane"),
        number: row.get("number"),
        started_at: row.get("started_at"),
    };
    Ok(rows.iter().map(read).collect())
}

/// Forgets the flights of dead nodes of which nothing waits any more, in anybody's lane.
/// # Errors
/// [`StoreError`].
pub async fn forget_flights(db: &Db) -> Result<(), StoreError> {
    sqlx::query(
        "-- nodes::store::forget_flights
        DELETE FROM ringback.delivery_flights f
        WHERE NOT EXISTS (SELECT FROM ringback.nodes n WHERE n.id = f.owner) AND NOT EXISTS (
          SELECT FROM unnest(f.tenant_ids, f.delivery_ids, f.attempts) AS u(tenant_id, delivery_id, number)
          JOIN ringback.delivery_queue q ON q.tenant_id = u.tenant_id AND q.delivery_id = u.delivery_id AND q.attempt = u.number - 1
        )",
    )
    .execute(db.pool())
    .await?;
    Ok(())
}
