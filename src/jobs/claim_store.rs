//! The SQL of hand-out (stop 3 of a job's path): which lines wait, and their jobs under leases. Next: `executors`.
//!
//! Called by `engine::run_jobs` and whoever lends to workers outside. How many places a line gets is decided in `turns`, how
//! many a limited queue may hand out in `queue_limit`; what becomes of a lease stands in `lease_store`.
//!
//! Invariant: a claim takes at most as many as there are slots; nothing of a paused queue; of a limited queue only under the
//! lock of its row. Durability is not waited for: a claim that a crash of the database forgets only repeats work.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgExecutor, Row};
use uuid::Uuid;

use super::lease_store::Lease;
use super::queue_limit::{QueueLimit, QueueLimits};
use super::turns::{self, Line, Share};
use super::{Job, Told, Tries};
use crate::clock::Timestamp;
use crate::db::{Db, StoreError};
use crate::ids::TenantId;

/// A place for a job.
#[derive(Debug, Clone, Copy)]
pub struct Slot<'a> {
    /// Who will run it.
    pub worker: &'a str,
    /// How long the lease is to be.
    pub lease: Duration,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The node that runs the jobs; `None`: workers outside, whose leases end by their expiry only, and at the latest with
    /// the job's `timeout_s`.
    pub node: Option<Uuid>,
    /// Only this tenant's; `None`: all tenants'.
    pub tenant: Option<TenantId>,
    /// Only of these kinds.
    pub kinds: &'a [&'a str],
    /// Only of these queues; `None`: all.
    pub queues: Option<&'a [&'a str]>,
    /// One for each job that can be taken.
    pub slots: &'a [Slot<'a>],
    /// How many jobs the caller has handed out before: one in 16 goes by age.
    pub handed_out: usize,
}

/// What was handed out.
#[derive(Debug, Default)]
pub struct Claimed {
    /// Each with the number of its slot.
    pub leases: Vec<(usize, Lease)>,
    /// More may be waiting that could be had at once.
    pub more: bool,
    /// More is waiting that may be handed out after this time.
    pub next: Option<Duration>,
}

/// Hands out waiting jobs, by turns over tenants and their lines.
/// # Errors
/// [`StoreError`]; what was handed out in an earlier step of the same claim stays leased and expires.
pub async fn claim(db: &Db, claim: &Claim<'_>, limits: &QueueLimits) -> Result<Claimed, StoreError> {
    let mut lines = waiting_lines(db, claim).await?;
    let limited: BTreeSet<String> =
        lines.iter().filter(|line| limits.contains_key(&line.queue)).map(|line| line.queue.clone()).collect();
    let (mut claimed, mut passed_over) = (Claimed::default(), false);
    // Limited queues first: the places that they may not use go to the others.
    for queue in limited {
        let Some(limit) = limits.get(&queue) else { continue };
        let shares = deal(&lines, claim, &claimed);
        lines.retain(|line| line.queue != queue);
        let shares: Vec<Share> = shares.into_iter().filter(|share| share.line.queue == queue).collect();
        passed_over |= shares.is_empty();
        claim_limited(db, claim, *limit, shares, &mut claimed).await?;
    }
    let shares = deal(&lines, claim, &claimed);
    if !shares.is_empty() {
        let leases = take(db.relaxed(), claim, claimed.leases.len(), &shares).await?;
        claimed.more |= used_up(&shares, &leases);
        claimed.leases.extend(leases);
    }
    claimed.more |= passed_over && claimed.leases.is_empty();
    Ok(claimed)
}

fn deal(lines: &[Line], claim: &Claim<'_>, claimed: &Claimed) -> Vec<Share> {
    let taken = claimed.leases.len();
    let places = claim.slots.len().saturating_sub(taken);
    turns::deal(lines.to_vec(), places, claim.handed_out.wrapping_add(taken), &mut |n| {
        rand::random_range(0..n)
    })
}

/// Did a line use up its share? Then it may have more, while another did not need its own.
fn used_up(shares: &[Share], leases: &[(usize, Lease)]) -> bool {
    let mut taken: HashMap<(TenantId, &str, &str), usize> = HashMap::new();
    for (_, Lease { job, .. }) in leases {
        *taken.entry((job.tenant, &job.queue, &job.kind)).or_default() += 1;
    }
    shares.iter().any(|Share { line, places, .. }| {
        taken
            .get(&(line.tenant, line.queue.as_str(), line.kind.as_str()))
            .is_some_and(|taken| taken >= places)
    })
}

/// The lines of all tenants in which jobs of these kinds wait.
/// # Errors
/// [`StoreError`].
pub async fn lines_of(db: &Db, kinds: &[&str]) -> Result<Vec<Line>, StoreError> {
    let claim = Claim { node: None, tenant: None, kinds, queues: None, slots: &[], handed_out: 0 };
    waiting_lines(db, &claim).await
}

/// The lines in which something waits. A loose index scan: its cost is that of the lines, not of the jobs in them.
async fn waiting_lines(db: &Db, claim: &Claim<'_>) -> Result<Vec<Line>, StoreError> {
    macro_rules! lines {
        ($name:literal, $first:literal, $next:literal) => {
            concat!(
                "-- jobs::claim_store::", $name, "
                WITH RECURSIVE lines AS (
                  (SELECT tenant_id, queue, kind FROM ringback.job_ready r WHERE ", $first, " ORDER BY tenant_id, queue, kind LIMIT 1)
                  UNION ALL
                  SELECT n.tenant_id, n.queue, n.kind FROM lines l CROSS JOIN LATERAL (
                    SELECT r.tenant_id, r.queue, r.kind FROM ringback.job_ready r
                    WHERE ", $next, " ORDER BY r.tenant_id, r.queue, r.kind LIMIT 1
                  ) n
                )
                SELECT tenant_id, queue, kind FROM lines l
                WHERE kind = ANY($1) AND ($2::text[] IS NULL OR queue = ANY($2))
                  AND NOT EXISTS (SELECT FROM ringback.paused_queues p WHERE p.tenant_id = l.tenant_id AND p.queue = l.queue)"
            )
        };
    }
    let sql = match claim.tenant {
        None => {
            lines!("waiting_lines", "true", "(r.tenant_id, r.queue, r.kind) > (l.tenant_id, l.queue, l.kind)")
        }
        Some(_) => lines!(
            "waiting_lines_of",
            "r.tenant_id = $3",
            "r.tenant_id = $3 AND (r.queue, r.kind) > (l.queue, l.kind)"
        ),
    };
    let mut query = sqlx::query(sql).bind(claim.kinds).bind(claim.queues);
    if let Some(tenant) = claim.tenant {
        query = query.bind(tenant);
    }
    let rows = query.fetch_all(db.pool()).await?;
    Ok(rows.iter().map(|row| Line { tenant: row.get(0), queue: row.get(1), kind: row.get(2) }).collect())
}

/// Takes jobs out of lines and puts them under leases; the slots from `first` on are used.
async fn take(
    db: impl PgExecutor<'_>,
    claim: &Claim<'_>,
    first: usize,
    shares: &[Share],
) -> Result<Vec<(usize, Lease)>, StoreError> {
    let slots = claim.slots.get(first..).unwrap_or_default();
    let rows = sqlx::query(
        "-- jobs::claim_store::take
        WITH wanted AS MATERIALIZED (
          SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::int8[], $5::int8[]) AS t(tenant_id, queue, kind, places, by_age)
        ), aged AS MATERIALIZED (
          -- Who waits longest is the first of some priority, so only the first ones are compared.
          SELECT w.*, ARRAY(
            WITH RECURSIVE heads AS (
              (SELECT r.priority, r.ready_at, r.job_id, r.ctid AS at FROM ringback.job_ready r
               WHERE r.tenant_id = w.tenant_id AND r.queue = w.queue AND r.kind = w.kind
               ORDER BY r.priority DESC, r.ready_at, r.job_id LIMIT 1)
              UNION ALL
              SELECT n.priority, n.ready_at, n.job_id, n.at FROM heads h CROSS JOIN LATERAL (
                SELECT r.priority, r.ready_at, r.job_id, r.ctid AS at FROM ringback.job_ready r
                WHERE r.tenant_id = w.tenant_id AND r.queue = w.queue AND r.kind = w.kind AND r.priority < h.priority
                ORDER BY r.priority DESC, r.ready_at, r.job_id LIMIT 1
              ) n
            )
            SELECT at FROM heads ORDER BY ready_at, job_id LIMIT w.by_age
          ) AS heads
          FROM wanted w
        ), oldest AS MATERIALIZED (
          SELECT r.ctid AS at FROM ringback.job_ready r
          WHERE r.ctid = ANY(ARRAY(SELECT unnest(heads) FROM aged)) FOR UPDATE SKIP LOCKED
        ), highest AS MATERIALIZED (
          SELECT r.at FROM aged w CROSS JOIN LATERAL (
            SELECT r.ctid AS at FROM ringback.job_ready r
            WHERE r.tenant_id = w.tenant_id AND r.queue = w.queue AND r.kind = w.kind AND r.ctid <> ALL(w.heads)
            ORDER BY r.priority DESC, r.ready_at, r.job_id LIMIT w.places - cardinality(w.heads) FOR UPDATE SKIP LOCKED
          ) r
        ), taken AS (
          DELETE FROM ringback.job_ready WHERE ctid = ANY(ARRAY(SELECT at FROM oldest UNION ALL SELECT at FROM highest)) RETURNING *
        ), full_jobs AS MATERIALIZED (
          SELECT t.attempt + 1 AS attempt, t.tries + 1 AS tries, t.crashes, now() AS started_at, gen_random_uuid() AS token,
            row_number() OVER (ORDER BY t.priority DESC, t.ready_at, t.job_id) AS slot,
            j.tenant_id, j.id, j.kind, j.queue, j.priority, j.run_at, j.timeout_ms, j.max_attempts, j.backoff, j.unique_key,
            j.input, j.metadata::text AS metadata, j.callback_url, j.callback_options, j.traceparent, j.schedule_id, j.nominal_at,
            p.progress, p.checkpoint, j.ordering_key, j.after_ids, j.after_failure
          FROM taken t CROSS JOIN LATERAL (SELECT * FROM ringback.jobs j WHERE j.tenant_id = t.tenant_id AND j.id = t.job_id LIMIT 1) j
          LEFT JOIN LATERAL (SELECT p.progress, p.checkpoint FROM ringback.job_progress p WHERE p.tenant_id = t.tenant_id AND p.job_id = t.job_id LIMIT 1) p ON true
        ), leased AS (
          INSERT INTO ringback.job_leases (tenant_id, job_id, token, holder, worker, queue, kind, priority, attempt, tries, crashes,
            started_at, expires_at, deadline)
          SELECT tenant_id, id, token, $6::uuid, ($7::text[])[slot], queue, kind, priority, attempt, tries, crashes, started_at,
            started_at + CASE WHEN $6 IS NULL THEN least(($8::float8[])[slot], timeout_ms / 1000.0) ELSE ($8::float8[])[slot] END * interval '1 s',
            CASE WHEN $6 IS NULL THEN started_at + timeout_ms * interval '1 ms' END
          FROM full_jobs
        )
        SELECT * FROM full_jobs ORDER BY slot",
    )
    .bind(shares.iter().map(|share| share.line.tenant.uuid()).collect::<Vec<_>>())
    .bind(shares.iter().map(|share| share.line.queue.as_str()).collect::<Vec<_>>())
    .bind(shares.iter().map(|share| share.line.kind.as_str()).collect::<Vec<_>>())
    .bind(shares.iter().map(|share| share.places as i64).collect::<Vec<_>>())
    .bind(shares.iter().map(|share| share.by_age as i64).collect::<Vec<_>>())
    .bind(claim.node)
    .bind(slots.iter().map(|slot| slot.worker).collect::<Vec<_>>())
    .bind(slots.iter().map(|slot| slot.lease.as_secs_f64()).collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    let leases = rows.iter().enumerate().map(|(at, row)| Ok((first + at, Lease::from_row(row)?)));
    leases.collect::<Result<_, sqlx::Error>>().map_err(StoreError::from)
}

impl<'r> FromRow<'r, PgRow> for Lease {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            job: Job::from_row(row)?,
            sealed_options: row.try_get("callback_options")?,
            token: row.try_get("token")?,
            tries: Tries {
                attempt: row.try_get("attempt")?,
                counted: row.try_get("tries")?,
                crashes: row.try_get("crashes")?,
            },
            started_at: row.try_get("started_at")?,
            after_results: Vec::new(),
            told: Told::from_row(row)?,
        })
    }
}

/// Hands out what a limited queue may hand out now; all shares are of this queue. The lock of its row makes the counts hold over all processes.
async fn claim_limited(
    db: &Db,
    claim: &Claim<'_>,
    limit: QueueLimit,
    shares: Vec<Share>,
    claimed: &mut Claimed,
) -> Result<(), StoreError> {
    let Some(queue) = shares.first().map(|share| share.line.queue.clone()) else { return Ok(()) };
    let wanted: usize = shares.iter().map(|share| share.places).sum();
    let mut tx = db.begin().await?;
    let row = sqlx::query(
        "-- jobs::claim_store::lock_limited
        INSERT INTO ringback.limited_queues (queue) VALUES ($1) ON CONFLICT (queue) DO UPDATE SET queue = excluded.queue
        RETURNING next_at, clock_timestamp()",
    )
    .bind(&queue)
    .fetch_one(&mut *tx)
    .await?;
    let (next_at, now): (Option<Timestamp>, Timestamp) = (row.get(0), row.get(1));
    let running: i64 = sqlx::query_scalar(
        "-- jobs::claim_store::running_in\nSELECT count(*) FROM ringback.job_leases WHERE queue = $1",
    )
    .bind(&queue)
    .fetch_one(&mut *tx)
    .await?;
    let allowed = limit.allow(wanted, usize::try_from(running).unwrap_or(0), next_at, now);
    claimed.next = [claimed.next, allowed.next].into_iter().flatten().min();
    let shares = turns::trim(shares, allowed.jobs, claim.handed_out, &mut |n| rand::random_range(0..n));
    if !shares.is_empty() {
        let leases = take(&mut *tx, claim, claimed.leases.len(), &shares).await?;
        sqlx::query("-- jobs::claim_store::use_rate\nUPDATE ringback.limited_queues SET next_at = $2 WHERE queue = $1")
            .bind(&queue)
            .bind(limit.used_until(leases.len(), next_at, now))
            .execute(&mut *tx)
            .await?;
        claimed.more |= allowed.jobs == wanted && used_up(&shares, &leases);
        claimed.leases.extend(leases);
    }
    Ok(tx.commit().await?)
}
