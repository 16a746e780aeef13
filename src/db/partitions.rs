//! Partitions of the history: made days ahead, dropped when they are older than the retention.
//!
//! Called by `engine::maintain` and at the start. A day's partition is dropped only when nothing that is still alive
//! stands in it; otherwise it waits for the next round.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Row};

use super::{Db, StoreError};

/// A process that runs on without being able to do this has a few days until inserts fail.
const DAYS_AHEAD: i32 = 4;

/// The history tables whose partitions carry a day in their name.
pub(super) const PARENTS: [&str; 6] =
    ["jobs", "job_ends", "job_attempts", "events", "deliveries", "delivery_attempts"];

/// Makes the partitions of yesterday and the days to come.
/// # Errors
/// [`StoreError`].
pub async fn make_ahead(db: &Db) -> Result<(), StoreError> {
    let mut tx = db.begin().await?;
    sqlx::query("SET LOCAL lock_timeout = '2s'").execute(&mut *tx).await?;
    // One process at a time; the others find the work done.
    sqlx::query(
        "-- db::partitions::make_ahead\nSELECT pg_advisory_xact_lock(hashtext('ringback.partitions'))",
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query("SELECT ringback.add_day_partitions((now() AT TIME ZONE 'UTC')::date - 1, (now() AT TIME ZONE 'UTC')::date + $1), ringback.add_log_partitions()")
        .bind(DAYS_AHEAD)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(())
}

/// Drops the days that ended before the retention began. Returns the names of what was dropped.
/// # Errors
/// [`StoreError`].
pub async fn drop_old(db: &Db, retention: Duration) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query(
        "-- db::partitions::old_days
        SELECT DISTINCT right(c.relname, 8) AS day FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace n ON n.oid = p.relnamespace
        WHERE n.nspname = 'ringback' AND p.relname = ANY($1) AND c.relname ~ '_[0-9]{8}$'
          AND (to_date(right(c.relname, 8), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' < now() - $2 * interval '1 s'
        ORDER BY day",
    )
    .bind(&PARENTS[..])
    .bind(retention.as_secs_f64())
    .fetch_all(db.pool())
    .await?;
    let mut dropped = Vec::new();
    for row in rows {
        let day: String = row.get("day");
        if is_alive(db, &day).await? {
            tracing::info!(
                day,
                "history of {day} is older than the retention, but something in it is not finished; it is kept"
            );
            continue;
        }
        dropped.extend(drop_day(db, &day).await?);
    }
    Ok(dropped)
}

/// Does anything that waits or runs stand in this day?
async fn is_alive(db: &Db, day: &str) -> Result<bool, StoreError> {
    let alive = sqlx::query_scalar(
        "-- db::partitions::is_alive
        WITH span AS (
          SELECT ringback.uuid_floor(to_date($1, 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC') AS low,
                 ringback.uuid_floor((to_date($1, 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC') AS high
        )
        SELECT EXISTS (SELECT FROM ringback.job_ready, span WHERE job_id >= low AND job_id < high)
            OR EXISTS (SELECT FROM ringback.job_held, span WHERE job_id >= low AND job_id < high)
            OR EXISTS (SELECT FROM ringback.job_waits, span WHERE after_id >= low AND after_id < high)
            OR EXISTS (SELECT FROM ringback.job_calls, span WHERE job_id >= low AND job_id < high)
            OR EXISTS (SELECT FROM ringback.job_scheduled, span WHERE job_id >= low AND job_id < high)
            OR EXISTS (SELECT FROM ringback.job_leases, span WHERE job_id >= low AND job_id < high)
            OR EXISTS (SELECT FROM ringback.event_inbox, span WHERE event_id >= low AND event_id < high)
            OR EXISTS (SELECT FROM ringback.delivery_queue, span WHERE (delivery_id >= low AND delivery_id < high)
                OR (event_id >= low AND event_id < high) OR (job_id >= low AND job_id < high))",
    )
    .bind(day)
    .fetch_one(db.pool())
    .await?;
    Ok(alive)
}

async fn drop_day(db: &Db, day: &str) -> Result<Vec<String>, StoreError> {
    let mut dropped = Vec::new();
    for parent in PARENTS {
        let child = format!("{parent}_{day}");
        drop_partition(db, parent, &child).await?;
        dropped.push(child);
    }
    Ok(dropped)
}

/// Both names are made of constants and digits.
async fn drop_partition(db: &Db, parent: &str, child: &str) -> Result<(), StoreError> {
    let mut tx = db.begin().await?;
    // Waits for no reader: what cannot be had at once is had in the next round.
    sqlx::query("SET LOCAL lock_timeout = '2s'").execute(&mut *tx).await?;
    sqlx::query(AssertSqlSafe(format!("ALTER TABLE ringback.{parent} DETACH PARTITION ringback.{child}")))
        .execute(&mut *tx)
        .await?;
    sqlx::query(AssertSqlSafe(format!("DROP TABLE ringback.{child}"))).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(())
}

/// Drops the partitions of the event log that are full and whose last events are older than this. Returns their names.
/// # Errors
/// [`StoreError`].
pub async fn drop_old_log(db: &Db, age: Duration) -> Result<Vec<String>, StoreError> {
    let full: Vec<String> = sqlx::query_scalar(
        "-- db::partitions::full_log
        SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'ringback.event_log'::regclass AND c.relname ~ '^event_log_[0-9]{8}$'
          AND right(c.relname, 8)::bigint < (SELECT last / 20000000 FROM ringback.event_sequence)
        ORDER BY c.relname",
    )
    .fetch_all(db.pool())
    .await?;
    let mut dropped = Vec::new();
    for child in full {
        // The name is made of a constant and eight digits.
        let is_old: bool = sqlx::query_scalar(AssertSqlSafe(format!(
            "-- db::partitions::is_old_log
            WITH RECURSIVE tenants AS (
              (SELECT tenant_id FROM ringback.{child} ORDER BY tenant_id LIMIT 1)
              UNION ALL
              SELECT n.tenant_id FROM tenants t CROSS JOIN LATERAL (
                SELECT l.tenant_id FROM ringback.{child} l WHERE l.tenant_id > t.tenant_id ORDER BY l.tenant_id LIMIT 1
              ) n
            )
            SELECT NOT EXISTS (
              SELECT FROM tenants t CROSS JOIN LATERAL (
                SELECT l.event_id FROM ringback.{child} l WHERE l.tenant_id = t.tenant_id ORDER BY l.position DESC LIMIT 1
              ) last
              WHERE last.event_id >= ringback.uuid_floor(now() - $1 * interval '1 s')
            )"
        )))
        .bind(age.as_secs_f64())
        .fetch_one(db.pool())
        .await?;
        if !is_old {
            // Those behind it are younger still.
            break;
        }
        drop_partition(db, "event_log", &child).await?;
        dropped.push(child);
    }
    Ok(dropped)
}
