//! The SQL of held jobs: those whose turn in a line has not come (`ordering_key`), or that wait for others (`after`).
//!
//! Called by `engine::place_held`, the placer. `store::accept`, `store::retry` and every end leave a call (`job_calls`), "look at
//! this job"; a round of the placer takes a batch of calls, settles who waited for what has ended, and places whose turn has
//! come. Only the state that it finds counts, so a call too many does no harm.
//!
//! Invariant: rounds go one after another, over all processes (`begin`). In a line no job is placed before the head has ended,
//! and none before one that was accepted earlier. No round looks at more than a bounded number of rows.

use sqlx::Row;
use uuid::Uuid;

use crate::db::{Db, StoreError, Tx};
use crate::ids::{JobId, TenantId};

/// What happened to a job that is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It ended.
    Ended,
    /// It was accepted, or put back by hand.
    Accepted,
    /// It was accepted a moment ago.
    AcceptedAgo,
}

/// "Look at this job."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub job: JobId,
    /// Why.
    pub what: What,
    /// How many jobs it waits for, when it was accepted.
    pub waits: i32,
}

/// How much a round takes on.
#[derive(Debug, Clone, Copy)]
pub struct RoundLimit {
    /// So many calls, over all tenants.
    pub calls: i64,
    /// Waits: those of a tenant's accepted jobs, and those for all ended ones.
    pub waits: i64,
    /// Jobs to cancel.
    pub doomed: i64,
}

/// Is there a call? A look that takes no lock.
/// # Errors
/// [`StoreError`].
pub async fn is_called(db: &Db) -> Result<bool, StoreError> {
    let sql = "-- jobs::lines_store::is_called
        SELECT EXISTS (SELECT FROM ringback.job_calls) OR EXISTS (SELECT FROM ringback.job_held WHERE doomed_by IS NOT NULL)";
    Ok(sqlx::query_scalar(sql).fetch_one(db.relaxed()).await?)
}

/// Begins a round: waits for the one that is under way, in whatever process. Its commit is not waited for: a round that a crash
/// of the database forgets is done again.
/// # Errors
/// [`StoreError`].
pub async fn begin(db: &Db) -> Result<Tx, StoreError> {
    let mut tx = db.relaxed().begin().await?;
    // A statement of its own, so that the next one sees what the round before has left.
    sqlx::query("-- jobs::lines_store::begin\nSELECT pg_advisory_xact_lock(hashtext('ringback.job_held'))")
        .execute(&mut *tx)
        .await?;
    Ok(tx)
}

/// Takes a batch of calls, by turns over tenants; of each the ended ones first, for they let others go.
/// # Errors
/// [`StoreError`].
pub async fn take_calls(tx: &mut Tx, limit: RoundLimit) -> Result<Vec<Call>, StoreError> {
    let rows = sqlx::query(
        "-- jobs::lines_store::take_calls
        WITH RECURSIVE tenants AS (
          (SELECT tenant_id FROM ringback.job_calls ORDER BY tenant_id LIMIT 1)
          UNION ALL
          SELECT n.tenant_id FROM tenants t CROSS JOIN LATERAL (
            SELECT c.tenant_id FROM ringback.job_calls c WHERE c.tenant_id > t.tenant_id ORDER BY c.tenant_id LIMIT 1
          ) n
        ), shares AS MATERIALIZED (
          SELECT tenant_id, greatest(1, ceil($1::float8 / count(*) OVER ()))::int8 AS share FROM tenants
        ), picked AS MATERIALIZED (
          SELECT p.at FROM shares s CROSS JOIN LATERAL (
            SELECT c.at, sum(c.weight) OVER (ORDER BY c.what, c.id) - c.weight AS before FROM (
              SELECT c.ctid AS at, c.what, c.id, c.weight FROM ringback.job_calls c
              WHERE c.tenant_id = s.tenant_id ORDER BY c.what, c.id LIMIT s.share
            ) c
          ) p WHERE p.before < $2
        )
        DELETE FROM ringback.job_calls WHERE ctid = ANY(ARRAY(SELECT at FROM picked)) RETURNING tenant_id, job_id, what, weight",
    )
    .bind(limit.calls)
    .bind(limit.waits)
    .fetch_all(&mut **tx)
    .await?;
    let call = |row: &sqlx::postgres::PgRow| Call {
        tenant: row.get(0),
        job: row.get(1),
        what: match row.get::<i16, _>(2) {
            0 => What::Ended,
            1 => What::Accepted,
            _ => What::AcceptedAgo,
        },
        waits: row.get(3),
    };
    Ok(rows.iter().map(call).collect())
}

/// Who no longer waits.
#[derive(Debug, Default)]
pub struct Settled {
    /// Held jobs that wait for less than before.
    pub jobs: Vec<(TenantId, JobId)>,
    /// Some more waits may be for jobs that were called.
    pub more: bool,
}

/// Settles the waits for called jobs that have ended, and those of called jobs for others that have.
/// # Errors
/// [`StoreError`].
pub async fn settle(tx: &mut Tx, calls: &[Call], limit: RoundLimit) -> Result<Settled, StoreError> {
    let rows = sqlx::query(
        "-- jobs::lines_store::settle
        WITH called AS MATERIALIZED (
          SELECT DISTINCT tenant_id, job_id, ended FROM unnest($1::uuid[], $2::uuid[], $3::bool[]) AS t(tenant_id, job_id, ended)
        ), met AS MATERIALIZED (
          (SELECT w.at, w.tenant_id, w.job_id, w.after_id, e.status FROM called c CROSS JOIN LATERAL (
             SELECT e.status FROM ringback.job_ends e WHERE e.tenant_id = c.tenant_id AND e.job_id = c.job_id LIMIT 1
           ) e CROSS JOIN LATERAL (
             SELECT w.ctid AS at, w.* FROM ringback.job_waits w WHERE w.tenant_id = c.tenant_id AND w.after_id = c.job_id LIMIT $4
           ) w WHERE c.ended LIMIT $4)
          UNION
          SELECT w.at, w.tenant_id, w.job_id, w.after_id, e.status FROM called c CROSS JOIN LATERAL (
            SELECT j.after_ids FROM ringback.jobs j WHERE j.tenant_id = c.tenant_id AND j.id = c.job_id LIMIT 1
          ) j CROSS JOIN LATERAL unnest(j.after_ids) AS d(id) CROSS JOIN LATERAL (
            SELECT e.status FROM ringback.job_ends e WHERE e.tenant_id = c.tenant_id AND e.job_id = d.id LIMIT 1
          ) e CROSS JOIN LATERAL (
            SELECT w.ctid AS at, w.* FROM ringback.job_waits w
            WHERE w.tenant_id = c.tenant_id AND w.after_id = d.id AND w.job_id = c.job_id LIMIT 1
          ) w WHERE NOT c.ended
        ), gone AS (
          DELETE FROM ringback.job_waits WHERE ctid = ANY(ARRAY(SELECT at FROM met))
        ), settled AS MATERIALIZED (
          SELECT m.tenant_id, m.job_id, count(*) AS ended, (array_agg(m.after_id ORDER BY m.after_id) FILTER (WHERE m.status <> 1))[1] AS failed
          FROM met m GROUP BY m.tenant_id, m.job_id
        ), updated AS (
          UPDATE ringback.job_held h SET pending = h.pending - s.ended,
            doomed_by = coalesce(h.doomed_by, CASE WHEN h.cancel_on_failure THEN s.failed END)
          FROM (
            SELECT s.*, h.at FROM settled s CROSS JOIN LATERAL (
              SELECT h.ctid AS at FROM ringback.job_held h WHERE h.tenant_id = s.tenant_id AND h.job_id = s.job_id LIMIT 1
            ) h
          ) s WHERE h.ctid = s.at
          RETURNING h.tenant_id, h.job_id
        )
        SELECT tenant_id, job_id, (SELECT count(*) FROM met) FROM updated",
    )
    .bind(calls.iter().map(|call| call.tenant.uuid()).collect::<Vec<_>>())
    .bind(calls.iter().map(|call| call.job.uuid()).collect::<Vec<_>>())
    .bind(calls.iter().map(|call| call.what == What::Ended).collect::<Vec<_>>())
    .bind(limit.waits)
    .fetch_all(&mut **tx)
    .await?;
    let more = rows.first().is_some_and(|row| row.get::<i64, _>(2) >= limit.waits);
    Ok(Settled { jobs: rows.iter().map(|row| (row.get(0), row.get(1))).collect(), more })
}

/// What was placed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Placed {
    /// Jobs that may be handed out now.
    pub ready: i64,
    /// Jobs that wait for their time.
    pub scheduled: i64,
}

/// Places those of these jobs that wait for nothing, and in their lines, where the head has ended, the next one.
/// # Errors
/// [`StoreError`].
pub async fn place(tx: &mut Tx, jobs: &[(TenantId, JobId)]) -> Result<Placed, StoreError> {
    let row = sqlx::query(
        "-- jobs::lines_store::place
        WITH looked AS MATERIALIZED (
          SELECT t.tenant_id, t.job_id, j.queue, j.ordering_key
          FROM (SELECT DISTINCT tenant_id, job_id FROM unnest($1::uuid[], $2::uuid[]) AS t(tenant_id, job_id)) t CROSS JOIN LATERAL (
            SELECT j.queue, j.ordering_key FROM ringback.jobs j WHERE j.tenant_id = t.tenant_id AND j.id = t.job_id LIMIT 1
          ) j
        ), lines AS MATERIALIZED (
          -- A head that has ended, or that was put back behind itself by hand, is none.
          SELECT l.tenant_id, l.queue, l.ordering_key, h.at, h.job_id IS NOT NULL AND (
            EXISTS (SELECT FROM ringback.job_ends e WHERE e.tenant_id = l.tenant_id AND e.job_id = h.job_id)
            OR EXISTS (SELECT FROM ringback.job_held o WHERE o.tenant_id = l.tenant_id AND o.job_id = h.job_id)) AS over
          FROM (SELECT DISTINCT tenant_id, queue, ordering_key FROM looked WHERE ordering_key IS NOT NULL) l LEFT JOIN LATERAL (
            SELECT h.ctid AS at, h.job_id FROM ringback.job_heads h
            WHERE h.tenant_id = l.tenant_id AND h.queue = l.queue AND h.ordering_key = l.ordering_key LIMIT 1
          ) h ON true
        ), next AS MATERIALIZED (
          SELECT n.at, l.at AS head FROM lines l CROSS JOIN LATERAL (
            SELECT h.ctid AS at, h.pending, h.doomed_by FROM ringback.job_held h
            WHERE h.tenant_id = l.tenant_id AND h.queue = l.queue AND h.ordering_key = l.ordering_key ORDER BY h.place LIMIT 1
          ) n WHERE (l.at IS NULL OR l.over) AND n.pending <= 0 AND n.doomed_by IS NULL
          UNION ALL
          SELECT h.at, NULL FROM looked k CROSS JOIN LATERAL (
            SELECT h.ctid AS at, h.pending, h.doomed_by FROM ringback.job_held h WHERE h.tenant_id = k.tenant_id AND h.job_id = k.job_id LIMIT 1
          ) h WHERE k.ordering_key IS NULL AND h.pending <= 0 AND h.doomed_by IS NULL
        ), placed AS (
          DELETE FROM ringback.job_held WHERE ctid = ANY(ARRAY(SELECT at FROM next)) RETURNING *
        ), idle AS (
          DELETE FROM ringback.job_heads WHERE ctid = ANY(ARRAY(
            SELECT l.at FROM lines l WHERE l.over AND NOT EXISTS (SELECT FROM next n WHERE n.head = l.at)))
        ), led AS (
          INSERT INTO ringback.job_heads (tenant_id, queue, ordering_key, job_id)
          SELECT tenant_id, queue, ordering_key, job_id FROM placed WHERE ordering_key IS NOT NULL
          ON CONFLICT (tenant_id, queue, ordering_key) DO UPDATE SET job_id = excluded.job_id
        ), ready AS (
          -- As if it had been ready since it was accepted, or each job of a line would go behind all that came meanwhile.
          INSERT INTO ringback.job_ready (tenant_id, job_id, queue, kind, priority, ready_at, attempt)
          SELECT tenant_id, job_id, queue, kind, priority, run_at, attempt FROM placed WHERE run_at <= now()
        ), later AS (
          INSERT INTO ringback.job_scheduled (tenant_id, job_id, queue, kind, priority, due_at, attempt)
          SELECT tenant_id, job_id, queue, kind, priority, run_at, attempt FROM placed WHERE run_at > now()
        )
        SELECT count(*) FILTER (WHERE run_at <= now()), count(*) FILTER (WHERE run_at > now()) FROM placed",
    )
    .bind(jobs.iter().map(|(tenant, _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(jobs.iter().map(|(_, job)| job.uuid()).collect::<Vec<_>>())
    .fetch_one(&mut **tx)
    .await?;
    Ok(Placed { ready: row.get(0), scheduled: row.get(1) })
}

/// Leaves calls for jobs, in the caller's transaction if it has one.
/// # Errors
/// [`StoreError`].
pub async fn call(
    db: impl sqlx::PgExecutor<'_>,
    jobs: &[(TenantId, JobId)],
    what: What,
) -> Result<(), StoreError> {
    let number: i16 = match what {
        What::Ended => 0,
        What::Accepted => 1,
        What::AcceptedAgo => 2,
    };
    // Only what is held still has waits to be weighed.
    sqlx::query(
        "-- jobs::lines_store::call
        INSERT INTO ringback.job_calls (tenant_id, what, job_id, weight)
        SELECT t.tenant_id, $3, t.job_id, greatest(h.pending, 0) FROM unnest($1::uuid[], $2::uuid[]) AS t(tenant_id, job_id)
        LEFT JOIN LATERAL (
          SELECT h.pending FROM ringback.job_held h WHERE h.tenant_id = t.tenant_id AND h.job_id = t.job_id LIMIT 1
        ) h ON true",
    )
    .bind(jobs.iter().map(|(tenant, _)| tenant.uuid()).collect::<Vec<_>>())
    .bind(jobs.iter().map(|(_, job)| job.uuid()).collect::<Vec<_>>())
    .bind(number)
    .execute(db)
    .await?;
    Ok(())
}

/// Takes jobs that are to be cancelled out of those that are held, each with the job that did not succeed; by turns over tenants.
/// What they wait for besides is left: a wait that nobody is held for does nothing.
/// # Errors
/// [`StoreError`].
pub async fn take_doomed(
    tx: &mut Tx,
    limit: RoundLimit,
) -> Result<Vec<(TenantId, JobId, JobId)>, StoreError> {
    let rows = sqlx::query(
        "-- jobs::lines_store::take_doomed
        WITH RECURSIVE tenants AS (
          (SELECT tenant_id FROM ringback.job_held WHERE doomed_by IS NOT NULL ORDER BY tenant_id LIMIT 1)
          UNION ALL
          SELECT n.tenant_id FROM tenants t CROSS JOIN LATERAL (
            SELECT h.tenant_id FROM ringback.job_held h WHERE h.doomed_by IS NOT NULL AND h.tenant_id > t.tenant_id ORDER BY h.tenant_id LIMIT 1
          ) n
        ), shares AS MATERIALIZED (
          SELECT tenant_id, greatest(1, ceil($1::float8 / count(*) OVER ()))::int8 AS share FROM tenants
        )
        DELETE FROM ringback.job_held WHERE ctid = ANY(ARRAY(
          SELECT d.at FROM shares s CROSS JOIN LATERAL (
            SELECT h.ctid AS at FROM ringback.job_held h WHERE h.doomed_by IS NOT NULL AND h.tenant_id = s.tenant_id ORDER BY h.job_id LIMIT s.share
          ) d))
        RETURNING tenant_id, job_id, doomed_by",
    )
    .bind(limit.doomed)
    .fetch_all(&mut **tx)
    .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

/// Where the search for forgotten waits stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WaitCursor(Uuid, Uuid, Uuid);

/// Looks at a piece of all waits, and leaves a call for each job that has ended while one still waits for it: an end and an
/// acceptance that did not see each other. Answers where to go on, and how many there were.
/// # Errors
/// [`StoreError`].
pub async fn find_forgotten(db: &Db, from: WaitCursor, limit: i64) -> Result<(WaitCursor, i64), StoreError> {
    let row = sqlx::query(
        "-- jobs::lines_store::find_forgotten
        WITH piece AS MATERIALIZED (
          SELECT tenant_id, after_id, job_id FROM ringback.job_waits WHERE (tenant_id, after_id, job_id) > ($1, $2, $3)
          ORDER BY tenant_id, after_id, job_id LIMIT $4
        ), called AS (
          INSERT INTO ringback.job_calls (tenant_id, what, job_id)
          SELECT p.tenant_id, 0, p.after_id FROM (SELECT DISTINCT tenant_id, after_id FROM piece) p CROSS JOIN LATERAL (
            SELECT FROM ringback.job_ends e WHERE e.tenant_id = p.tenant_id AND e.job_id = p.after_id LIMIT 1
          ) e RETURNING 1
        ), last AS (
          SELECT * FROM piece ORDER BY tenant_id DESC, after_id DESC, job_id DESC LIMIT 1
        )
        SELECT (SELECT count(*) FROM piece), (SELECT count(*) FROM called), l.tenant_id, l.after_id, l.job_id
        FROM (SELECT) one LEFT JOIN last l ON true",
    )
    .bind(from.0)
    .bind(from.1)
    .bind(from.2)
    .bind(limit)
    .fetch_one(db.relaxed())
    .await?;
    let next = match (row.get(2), row.get(3), row.get(4)) {
        (Some(tenant), Some(after), Some(job)) if row.get::<i64, _>(0) == limit => {
            WaitCursor(tenant, after, job)
        }
        // The end: from the start again.
        _ => WaitCursor::default(),
    };
    Ok((next, row.get(1)))
}
