//! The placer: held jobs may be handed out when their turn has come, in their line (`ordering_key`) and after those that they
//! wait for (`after`); those that wait for a job that did not succeed are cancelled.
//!
//! Rounds go one after another over all processes, so there is no race to think about but one: an end and an acceptance whose
//! transactions did not see each other. Most of those are found by looking at each accepted job a second time, when a
//! transaction that ended something meanwhile is over; the rest by a slow walk over all waits.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{jittered, pause};
use crate::db::{StoreError, Tx};
use crate::ids::{JobId, TenantId};
use crate::jobs::finish::{Cancelled, write_cancelled};
use crate::jobs::lines_store::{self, Placed, RoundLimit, WaitCursor, What};
use crate::jobs::{JobError, read_store};
use crate::shared::Shared;
use crate::supervisor::Stop;

/// A round stays short, because all lines wait for it.
const ROUND: RoundLimit = RoundLimit { calls: 1000, waits: 2000, doomed: 200 };
/// An idle look: for calls whose bell was not heard.
const POLL: Duration = Duration::from_secs(1);
/// The same for a while after there was something. Of publishers in SQL who commit at the same time one rings the bell, perhaps a
/// moment before the others have committed.
const POLL_SOON: Duration = Duration::from_millis(100);
const SOON_FOR: Duration = Duration::from_secs(1);
/// No statement of ours that ends jobs takes longer to be committed, but in bad moments.
const SECOND_LOOK_AFTER: Duration = Duration::from_secs(2);
/// So many are remembered for a second look; the walk finds the others.
const SECOND_LOOKS_MAX: usize = 100_000;
/// One piece of the walk over all waits, and how often.
const WALK_PIECE: i64 = 1000;
const WALK_EVERY: Duration = Duration::from_secs(1);

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    let mut memory = Memory::default();
    let mut soon_until = Instant::now();
    loop {
        let turn = match turn(&shared, &mut memory).await {
            Ok(turn) => turn,
            Err(error) => {
                tracing::warn!(%error, "cannot place held jobs");
                Turn::Nothing
            }
        };
        if turn == Turn::More && !stop.drain.is_cancelled() {
            continue;
        }
        if turn != Turn::Nothing {
            soon_until = Instant::now() + SOON_FOR;
        }
        let poll = if Instant::now() < soon_until { POLL_SOON } else { POLL };
        if !pause(&stop, Some(&shared.wakeups.held), jittered(poll)).await {
            return;
        }
    }
}

/// What there was to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Nothing,
    Something,
    /// There is more.
    More,
}

/// What this process remembers between rounds; all of it may be lost.
#[derive(Debug)]
struct Memory {
    again: VecDeque<(Instant, TenantId, JobId)>,
    walked_to: WaitCursor,
    walk_at: Instant,
}

impl Default for Memory {
    fn default() -> Self {
        Self { again: VecDeque::new(), walked_to: WaitCursor::default(), walk_at: Instant::now() }
    }
}

impl Memory {
    fn remember(&mut self, tenant: TenantId, job: JobId) {
        if self.again.len() < SECOND_LOOKS_MAX {
            self.again.push_back((Instant::now() + SECOND_LOOK_AFTER, tenant, job));
        }
    }

    fn due(&mut self) -> Vec<(TenantId, JobId)> {
        let now = Instant::now();
        let count = self.again.iter().take(ROUND.calls as usize).take_while(|(at, ..)| *at <= now).count();
        self.again.drain(..count).map(|(_, tenant, job)| (tenant, job)).collect()
    }
}

/// A round, and a piece of the walk.
async fn turn(shared: &Shared, memory: &mut Memory) -> Result<Turn, StoreError> {
    let again = memory.due();
    if !again.is_empty() {
        lines_store::call(shared.db.relaxed(), &again, What::AcceptedAgo).await?;
    }
    if Instant::now() >= memory.walk_at {
        let (walked_to, found) =
            lines_store::find_forgotten(&shared.db, memory.walked_to, WALK_PIECE).await?;
        if found > 0 {
            tracing::debug!(jobs = found, "{found} jobs had ended unseen by those that wait for them");
        }
        memory.walked_to = walked_to;
        memory.walk_at = Instant::now() + WALK_EVERY;
    }
    if !lines_store::is_called(&shared.db).await? {
        return Ok(Turn::Nothing);
    }
    round(shared, memory).await
}

async fn round(shared: &Shared, memory: &mut Memory) -> Result<Turn, StoreError> {
    let mut tx = lines_store::begin(&shared.db).await?;
    let calls = lines_store::take_calls(&mut tx, ROUND).await?;
    let settled = lines_store::settle(&mut tx, &calls, ROUND).await?;
    let doomed = end_doomed(shared, &mut tx).await?;
    let mut looked: Vec<_> = calls.iter().map(|call| (call.tenant, call.job)).collect();
    looked.extend(&settled.jobs);
    looked.extend(&doomed);
    let placed = lines_store::place(&mut tx, &looked).await?;
    if settled.more {
        let ended: Vec<_> = calls.iter().filter(|call| call.what == What::Ended).collect();
        let ended: Vec<_> = ended.iter().map(|call| (call.tenant, call.job)).collect();
        lines_store::call(&mut *tx, &ended, What::Ended).await?;
    }
    tx.commit().await?;
    for call in calls.iter().filter(|call| call.what == What::Accepted && call.waits > 0) {
        memory.remember(call.tenant, call.job);
    }
    tell(shared, placed, &doomed);
    let more = settled.more || !doomed.is_empty() || calls.len() as i64 >= ROUND.calls;
    Ok(if more { Turn::More } else { Turn::Something })
}

/// Cancels what waits for a job that did not succeed; others may wait for it in turn.
async fn end_doomed(shared: &Shared, tx: &mut Tx) -> Result<Vec<(TenantId, JobId)>, StoreError> {
    let doomed = lines_store::take_doomed(tx, ROUND).await?;
    let mut by_tenant: HashMap<TenantId, HashMap<JobId, JobId>> = HashMap::new();
    for (tenant, job, by) in doomed {
        by_tenant.entry(tenant).or_default().insert(job, by);
    }
    let mut ended = Vec::new();
    for (tenant, doomed) in by_tenant {
        let ids: Vec<JobId> = doomed.keys().copied().collect();
        let stored = read_store::get_many(&mut **tx, tenant, &ids).await?;
        let cancelled: Vec<Cancelled> = stored
            .into_iter()
            .map(|stored| {
                let by = doomed.get(&stored.job.id).map(ToString::to_string).unwrap_or_default();
                let error = JobError::new(
                    "dependency_failed",
                    format!("it was to run after {by}, which did not succeed"),
                );
                // Options that cannot be opened must not keep the job from ending; the callback goes out and fails visibly.
                let options = shared.open_options(tenant, stored.job.id, stored.sealed_options.as_deref());
                Cancelled { stored, options: options.ok(), error }
            })
            .collect();
        write_cancelled(tx, &cancelled, crate::clock::now()).await?;
        ended.extend(ids.into_iter().map(|id| (tenant, id)));
    }
    Ok(ended)
}

fn tell(shared: &Shared, placed: Placed, doomed: &[(TenantId, JobId)]) {
    if placed.ready > 0 {
        shared.wakeups.jobs.notify_one();
    }
    if placed.scheduled > 0 {
        shared.wakeups.scheduled.notify_one();
    }
    if !doomed.is_empty() {
        shared.wakeups.events.notify_one();
        shared.wakeups.ended.notify_elsewhere();
    }
    for (tenant, job) in doomed {
        shared.waiters.wake(*tenant, *job);
    }
}
