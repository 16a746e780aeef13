//! Stop 3 of a job's path, for kinds that are not built in: waiting jobs are lent to the workers that wait for them. Next: the
//! worker, and then `http::leases`.
//!
//! Workers that want the same (tenant, kinds, queues) are claimed for together, in one statement for the sum of their free
//! places, and share what there is by turns. Those of a loud tenant pause where quiet ones would feel it (`courtesy`). A
//! parcel whose worker has gone is given back by `settle_parcels`, and so goes to the next one.
//!
//! Invariant: every lease that is claimed here gets into a parcel.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::{jittered, pause};
use crate::courtesy::Stream;
use crate::db::StoreError;
use crate::ids::TenantId;
use crate::jobs::claim_store::{self, Claim, Claimed, Slot};
use crate::jobs::{after_store, lease_store};
use crate::shared::Shared;
use crate::supervisor::Stop;
use crate::workers::parcel::{FIRST_LEASE_MAX, Lent, Parcel};
use crate::workers::waiting::Group;
use crate::workers::{LEND_MAX, sightings, store};

/// Another process may have accepted something.
const POLL: Duration = Duration::from_secs(1);
/// As many connections as claims may have.
const CLAIMS_MAX: usize = 3;
/// With more groups than this it is worth asking first which of them could get anything.
const GROUPS_UNASKED_MAX: usize = 3;

/// Tenants whose hand-outs pause until then, because others would feel them.
type Resting = HashMap<TenantId, Instant>;

/// What a round found.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    /// More could be had at once.
    more: bool,
    /// More may be had after this time.
    next: Option<Duration>,
}

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    let mut handed_out = 0_usize;
    let mut resting = Resting::new();
    loop {
        let round = lend(&shared, &mut handed_out, &mut resting).await;
        note_sightings(&shared).await;
        if stop.drain.is_cancelled() {
            return;
        }
        if round.more {
            continue;
        }
        let wait = match shared.waiting_workers.next_end() {
            // Nobody waits: the first one rings.
            None => sightings::EVERY,
            Some(end) => {
                let poll = jittered(round.next.map_or(POLL, |next| next.min(POLL)));
                poll.min(end.saturating_duration_since(Instant::now()))
            }
        };
        if !pause(&stop, Some(&shared.wakeups.lenders), wait).await {
            return;
        }
    }
}

/// One round over all who wait now.
async fn lend(shared: &Shared, handed_out: &mut usize, resting: &mut Resting) -> Round {
    let now = Instant::now();
    resting.retain(|_, until| *until > now);
    let (pausing, groups): (Vec<_>, Vec<_>) = shared
        .waiting_workers
        .groups()
        .into_iter()
        .partition(|group| resting.contains_key(&group.wish().tenant));
    for group in &pausing {
        shared.waiting_workers.dismiss(group, now);
    }
    let ends = pausing.iter().filter_map(|group| resting.get(&group.wish().tenant));
    let mut round = Round { more: false, next: ends.min().map(|until| until.duration_since(now)) };
    if groups.is_empty() {
        return round;
    }
    let promising = match promising(shared, groups).await {
        Ok(promising) => promising,
        Err((error, groups)) => {
            for group in &groups {
                refuse(shared, group, &error);
            }
            return round;
        }
    };
    let places = LEND_MAX.min(shared.courtesy.piece_max());
    let mut claims = FuturesUnordered::new();
    let mut waiting = promising.into_iter();
    let before = *handed_out;
    loop {
        while claims.len() < CLAIMS_MAX {
            let Some(group) = waiting.next() else { break };
            claims.push(async move {
                let began = Instant::now();
                let claimed = claim(shared, &group, places, before).await;
                (group, claimed, began.elapsed())
            });
        }
        let Some((group, claimed, took)) = claims.next().await else { break };
        match claimed {
            Ok(claimed) => {
                *handed_out = handed_out.wrapping_add(claimed.leases.len());
                // Who was served waits no more; with others left, what is more is theirs.
                let others = claimed.leases.is_empty() || group.members.len() > 1;
                round.more |= claimed.more && others;
                round.next = [round.next, claimed.next].into_iter().flatten().min();
                let tenant = group.wish().tenant;
                let stream = Stream::Live(tenant);
                shared.courtesy.note(std::iter::repeat_n(stream, claimed.leases.len()));
                if let Some(pause) = shared.courtesy.pause_after(std::iter::once(stream), took) {
                    resting.insert(tenant, Instant::now() + pause.time);
                }
                hand_over(shared, &group, places, claimed);
                shared.waiting_workers.dismiss(&group, now);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot claim jobs for workers");
                refuse(shared, &group, &error);
            }
        }
    }
    round
}

/// The groups for which something waits; the others whose time is over are answered with nothing.
async fn promising(shared: &Shared, groups: Vec<Group>) -> Result<Vec<Group>, (StoreError, Vec<Group>)> {
    if groups.len() <= GROUPS_UNASKED_MAX {
        return Ok(groups);
    }
    let mut kinds: Vec<&str> =
        groups.iter().flat_map(|group| group.wish().kinds.iter().map(String::as_str)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let lines = match claim_store::lines_of(&shared.db, &kinds).await {
        Ok(lines) => lines,
        Err(error) => return Err((error, groups)),
    };
    let now = Instant::now();
    let (promising, others): (Vec<_>, Vec<_>) = groups.into_iter().partition(|group| {
        let wish = group.wish();
        lines.iter().any(|line| {
            line.tenant == wish.tenant
                && wish.kinds.contains(&line.kind)
                && wish.queues.as_ref().is_none_or(|queues| queues.contains(&line.queue))
        })
    });
    for group in &others {
        shared.waiting_workers.dismiss(group, now);
    }
    Ok(promising)
}

async fn claim(
    shared: &Shared,
    group: &Group,
    places: usize,
    handed_out: usize,
) -> Result<Claimed, StoreError> {
    let wish = group.wish();
    let kinds: Vec<&str> = wish.kinds.iter().map(String::as_str).collect();
    let queues: Option<Vec<&str>> =
        wish.queues.as_ref().map(|queues| queues.iter().map(String::as_str).collect());
    let slots: Vec<Slot<'_>> = group
        .slots(places)
        .into_iter()
        .map(|member| Slot { worker: &member.wish.worker, lease: member.wish.lease.min(FIRST_LEASE_MAX) })
        .collect();
    let claim = Claim {
        node: None,
        tenant: Some(wish.tenant),
        kinds: &kinds,
        queues: queues.as_deref(),
        slots: &slots,
        handed_out,
    };
    let mut claimed = claim_store::claim(&shared.db, &claim, &shared.queue_limits).await?;
    if let Err(error) = after_store::attach(&shared.db, &mut claimed.leases).await {
        // Without the results the worker could not do its work.
        let tokens: Vec<_> = claimed.leases.iter().map(|(_, lease)| lease.token).collect();
        lease_store::release(&shared.db, &tokens).await?;
        return Err(error);
    }
    Ok(claimed)
}

/// Each job to the worker whose place it got.
fn hand_over(shared: &Shared, group: &Group, places: usize, claimed: Claimed) {
    let slots = group.slots(places);
    let mut shares: HashMap<u64, Vec<Lent>> = HashMap::new();
    for (slot, lease) in claimed.leases {
        // A claim has no more leases than slots.
        let Some(member) = slots.get(slot) else { continue };
        shares.entry(member.number).or_default().push(Lent::new(lease, member.wish.lease));
    }
    for member in &group.members {
        let Some(lent) = shares.remove(&member.number) else { continue };
        let wish = &member.wish;
        let parcel = Parcel::new(wish.tenant, lent, wish.lease, shared.receipts.clone());
        shared.waiting_workers.answer(member.number, Ok(Some(parcel)));
    }
}

fn refuse(shared: &Shared, group: &Group, error: &StoreError) {
    for member in &group.members {
        shared.waiting_workers.answer(member.number, Err(error.clone()));
    }
}

async fn note_sightings(shared: &Shared) {
    for group in shared.waiting_workers.groups() {
        for member in group.members.iter().take(1) {
            for kind in &member.wish.kinds {
                shared.sightings.saw(member.wish.tenant, kind, &member.wish.worker);
            }
        }
    }
    let due = shared.sightings.due(Instant::now());
    if due.is_empty() {
        return;
    }
    if let Err(error) = store::note_sightings(&shared.db, &due).await {
        tracing::warn!(%error, "cannot note which workers were seen");
    }
}
