//! What is forgotten when it is old enough, and what is not.
//!
//! Calls the stores themselves: housekeeping runs every ten minutes, and no test waits for it.

use std::time::Duration;

use ringback::db::{Db, partitions};
use ringback::endpoints;
use ringback::events::store;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::harness::service::database;

const WEEK: Duration = Duration::from_hours(7 * 24);

/// Positions `first` to `last` of a tenant, with events that were made so many days ago.
fn log(tenant: u32, first: i64, last: i64, days: u32) -> String {
    format!(
        "INSERT INTO ringback.event_log (tenant_id, position, event_id, type)
         SELECT ('00000000-0000-0000-0000-' || lpad('{tenant}', 12, '0'))::uuid, p, ringback.uuid_floor(now() - {days} * interval '1 day'), 'a'
         FROM generate_series({first}::bigint, {last}::bigint) AS p;"
    )
}

async fn count(db: &Db, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM ringback.{table}");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(db.pool()).await.expect("a number")
}

#[tokio::test]
async fn old_positions_go_row_by_row_and_young_ones_stay() {
    let database = database().await;
    let db = Db::new(database.options(), 5);
    let rows = [log(1, 1, 25, 9), log(1, 26, 30, 3), log(2, 31, 40, 3), log(3, 41, 50, 9)].concat();
    db.pool().execute(AssertSqlSafe(rows)).await.expect("rows");

    let mut forgotten = Vec::new();
    while let count @ 1.. = store::purge_log(&db, WEEK, 10).await.expect("purged") {
        forgotten.push(count);
    }

    assert_eq!(forgotten.iter().sum::<u64>(), 35, "{forgotten:?}");
    assert!(forgotten.iter().all(|count| *count <= 10), "{forgotten:?}");
    assert_eq!(count(&db, "event_log WHERE position BETWEEN 26 AND 40").await, 15);
    assert_eq!(count(&db, "event_log").await, 15);
    db.close().await;
}

#[tokio::test]
async fn a_partition_goes_when_it_is_full_and_its_last_events_are_old() {
    let database = database().await;
    let db = Db::new(database.options(), 5);
    let size = 20_000_000_i64;
    let begin = format!("UPDATE ringback.event_sequence SET last = {}", 2 * size + 5);
    db.pool().execute(AssertSqlSafe(begin)).await.expect("set");
    partitions::make_ahead(&db).await.expect("partitions");
    // The first is old as a whole; in the second one tenant has something young; the third is not full.
    let rows = [
        log(1, 1, 5, 9),
        log(2, 6, 7, 9),
        log(1, size, size + 5, 9),
        log(2, size + 6, size + 7, 3),
        log(1, 2 * size, 2 * size + 5, 9),
    ];
    db.pool().execute(AssertSqlSafe(rows.concat())).await.expect("rows");

    assert_eq!(partitions::drop_old_log(&db, WEEK).await.expect("dropped"), ["event_log_00000000"]);
    assert_eq!(partitions::drop_old_log(&db, WEEK).await.expect("dropped"), Vec::<String>::new());
    assert_eq!(count(&db, "event_log").await, 14);
    assert_eq!(partitions::drop_old_log(&db, WEEK / 7).await.expect("dropped"), ["event_log_00000001"]);
    assert_eq!(count(&db, "event_log").await, 6);
    db.close().await;
}

#[tokio::test]
async fn a_dedup_key_is_kept_for_a_day_and_one_that_is_taken_over_is_not_waited_for() {
    let database = database().await;
    let db = Db::new(database.options(), 5);
    let keys = "INSERT INTO ringback.event_dedup (tenant_id, key, event_id, created_at)
        SELECT gen_random_uuid(), 'k' || n, gen_random_uuid(), now() - (n - 0.5) * interval '1 hour' FROM generate_series(1, 30) AS n";
    db.pool().execute(keys).await.expect("keys");
    let mut open = db.begin().await.expect("a transaction");
    open.execute("UPDATE ringback.event_dedup SET created_at = now() WHERE key = 'k30'")
        .await
        .expect("taken");

    assert_eq!(store::purge_dedup(&db, 4).await.expect("purged"), 4);
    assert_eq!(store::purge_dedup(&db, 4).await.expect("purged"), 1);
    open.rollback().await.expect("rolled back");
    assert_eq!(store::purge_dedup(&db, 4).await.expect("purged"), 1);
    assert_eq!(count(&db, "event_dedup").await, 24);
    db.close().await;
}

#[tokio::test]
async fn a_deleted_endpoint_is_forgotten_when_nothing_tells_of_it_any_more() {
    let database = database().await;
    let db = Db::new(database.options(), 5);
    let rows = "INSERT INTO ringback.endpoints (tenant_id, id, change, url, status, deleted_at)
        SELECT gen_random_uuid(), ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, n, '', 1, CASE WHEN n > 1 THEN now() - n * interval '1 day' END
        FROM generate_series(1, 30) AS n;
        INSERT INTO ringback.deliveries (tenant_id, id, event_id, event_type, endpoint_id)
        SELECT tenant_id, ringback.uuid_v7(), id, 'a', id FROM ringback.endpoints WHERE change = 20;
        INSERT INTO ringback.delivery_queue (tenant_id, delivery_id, lane, target_id, event_id, endpoint_id, due_at)
        SELECT tenant_id, ringback.uuid_v7(), 0, id, id, id, now() FROM ringback.endpoints WHERE change = 21;
        INSERT INTO ringback.endpoint_health (tenant_id, endpoint_id) SELECT tenant_id, id FROM ringback.endpoints";
    db.pool().execute(rows).await.expect("rows");

    let mut forgotten = Vec::new();
    while let count @ 1.. = endpoints::store::purge_deleted(&db, WEEK, 10).await.expect("purged") {
        forgotten.push(count);
    }

    assert_eq!(forgotten.iter().sum::<u64>(), 22, "of 24 that are old two are told of: {forgotten:?}");
    assert_eq!(count(&db, "endpoints").await, 8);
    assert_eq!(count(&db, "endpoint_health").await, 8);
    db.close().await;
}
