//! What the dispatcher asks the database: what became due, what more there is for a receiver, the heads of order keys,
//! and now and then whether a lane has no owner.
//!
//! A sweep goes on from where the last one stood (less an overlap, for commits that come late), so that a receiver with
//! a million waiting deliveries is walked over once, and not once a second. Once a minute a sweep starts from the
//! beginning, as the net under the net.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::{Dispatcher, News, transmit};
use crate::db::StoreError;
use crate::deliveries::scheduling::{BacklogRef, KeyRef, Moment, TargetRef, Wants};
use crate::deliveries::store::{self, DueCursor, KeyRows};
use crate::deliveries::{Due, lane_of};
use crate::endpoints::health_store::{self, Health};
use crate::engine::jittered;
use crate::nodes::{self, store::Holding};
use crate::shared::Shared;

const POLL: Duration = Duration::from_secs(1);
const FULL_SWEEP: Duration = Duration::from_mins(1);
const PAGE: i64 = 2000;
const REFILL: i64 = 1024;
/// Commits may become visible so much later than the time that stands in their rows.
const OVERLAP: Duration = Duration::from_secs(5);
/// Retries that are due in one breath are found by one sweep.
pub(super) const GAP: Duration = Duration::from_millis(5);

/// What a look-up brought.
pub(super) struct Looked {
    /// `None`: there was no sweep.
    sweep: Option<Sweep>,
    refills: Vec<(BacklogRef, Vec<Due>)>,
    keys: Vec<KeyRows>,
    asked_keys: Vec<KeyRef>,
    /// What this node holds now, if that was asked.
    holding: Option<Holding>,
    /// What earlier owners knew of endpoints, when lanes are asked for.
    known: Vec<Health>,
}

/// A page of what became due.
pub(super) struct Sweep {
    page: Vec<(Due, DueCursor)>,
    next_due: Option<Duration>,
}

impl Dispatcher {
    /// Starts a look-up, if there is something to ask and none is under way.
    pub(super) fn look(&mut self) {
        let now = Instant::now();
        if self.looking {
            return;
        }
        let wants = self.schedule.wants();
        let sweep = now >= self.look_at;
        if !sweep && wants == Wants::default() {
            return;
        }
        self.looking = true;
        self.landed_meanwhile.clear();
        let lanes = sweep && now >= self.lanes_at;
        if lanes {
            self.lanes_at = now + POLL;
        }
        if sweep && now >= self.full_sweep_at {
            self.full_sweep_at = now + FULL_SWEEP;
            self.cursor = None;
        }
        let (shared, news) = (self.shared.clone(), self.news.clone());
        let lanes = lanes.then(|| self.leavable());
        let from = if sweep { From::Cursor(self.cursor) } else { From::Nowhere };
        self.tasks.spawn(async move {
            let result = look(&shared, lanes, from, wants).await;
            // The dispatcher is gone only when the process is ending.
            drop(news.send(News::Looked(result)));
        });
    }

    /// Takes in what a look-up brought.
    pub(super) fn looked(&mut self, result: Result<Looked, StoreError>) {
        self.looking = false;
        let now = self.now();
        let looked = match result {
            Ok(looked) => looked,
            Err(error) => {
                tracing::warn!(%error, "cannot look for due deliveries");
                self.schedule.keep_lanes(|_| false, now);
                self.cursor = None;
                self.look_at = Instant::now() + jittered(POLL);
                return;
            }
        };
        if let Some(holding) = looked.holding {
            self.hold(holding, &looked.known, now);
            self.read_endpoints();
        }
        if let Some(sweep) = looked.sweep {
            self.take_page(sweep);
        }
        let landed = std::mem::take(&mut self.landed_meanwhile);
        for (at, rows) in looked.refills {
            let more = rows.len() as i64 == REFILL;
            self.schedule.refill(at, rows.into_iter().filter(|due| !landed.contains(&due.id)), more, now);
        }
        self.landed_meanwhile = landed;
        for (at, line) in looked.asked_keys {
            let rows = looked.keys.iter().find(|rows| rows.target == at && rows.line == line);
            let landed = |due: &Due| self.landed_meanwhile.contains(&due.id);
            match rows {
                // What landed meanwhile may be shown as it was before: ask again.
                Some(found) if found.rows.iter().any(|(due, _)| landed(due)) => {
                    self.schedule.key_not_loaded((at, line));
                }
                Some(found) => {
                    let rows: Vec<(Due, Moment)> =
                        found.rows.iter().map(|(due, wait)| (*due, now + *wait)).collect();
                    self.schedule.key_loaded((at, line), rows, found.complete, now);
                }
                None => self.schedule.key_loaded((at, line), Vec::new(), true, now),
            }
        }
        self.landed_meanwhile.clear();
    }

    /// Takes over new lanes, lets go of lost ones, and gives away what is more than its share.
    fn hold(&mut self, holding: Holding, known: &[Health], now: Moment) {
        let lanes: HashSet<i16> = holding.lanes.into_iter().collect();
        let mut spare: Vec<i16> = lanes.iter().copied().collect();
        spare.sort_unstable();
        let leaving: HashSet<i16> = spare.into_iter().skip(holding.share).collect();
        if lanes == self.lanes && leaving == self.leaving {
            return;
        }
        tracing::info!(
            lanes = lanes.len(),
            leaving = leaving.len(),
            "this node owns {} lanes",
            lanes.len() - leaving.len()
        );
        if !lanes.is_subset(&self.lanes) {
            self.cursor = None;
            self.health.load(known);
        }
        (self.lanes, self.leaving) = (lanes, leaving);
        let kept = |(tenant, target): TargetRef| {
            let lane = lane_of(tenant, target);
            self.lanes.contains(&lane) && !self.leaving.contains(&lane)
        };
        self.schedule.keep_lanes(kept, now);
    }

    /// The lanes that can be given away now: nothing of them is in flight.
    fn leavable(&self) -> Vec<i16> {
        let idle = |lane: &&i16| self.in_flight_of.get(lane).is_none_or(|count| *count == 0);
        self.leaving.iter().filter(idle).copied().collect()
    }

    fn take_page(&mut self, sweep: Sweep) {
        let Sweep { page, next_due } = sweep;
        let whole = page.len() as i64 == PAGE;
        let last = page.last().map(|(_, cursor)| *cursor);
        let landed = std::mem::take(&mut self.landed_meanwhile);
        self.offer_all(
            page.into_iter().map(|(due, _)| due).filter(|due| !landed.contains(&due.id)).collect(),
        );
        self.landed_meanwhile = landed;
        if whole {
            self.cursor = last;
            self.look_at = Instant::now();
            return;
        }
        self.cursor = last.or(self.cursor).map(|(at, id)| (at - OVERLAP, id));
        let poll = jittered(POLL);
        self.look_at = Instant::now() + next_due.map_or(poll, |next| next.clamp(GAP, poll));
    }
}

/// Where a look-up sweeps from.
#[derive(Clone, Copy)]
enum From {
    /// It does not sweep.
    Nowhere,
    /// From there, or from the beginning.
    Cursor(Option<DueCursor>),
}

async fn look(
    shared: &Shared,
    lanes: Option<Vec<i16>>,
    from: From,
    wants: Wants,
) -> Result<Looked, StoreError> {
    let (holding, known) = match lanes {
        Some(leaving) => {
            (Some(take_lanes(shared, &leaving).await?), health_store::load_health(&shared.db).await?)
        }
        None => (None, Vec::new()),
    };
    let sweep = match from {
        From::Nowhere => None,
        From::Cursor(cursor) => {
            let page = store::due(&shared.db, shared.node_id(), cursor, PAGE).await?;
            Some(Sweep { page, next_due: store::next_due(&shared.db, shared.node_id()).await? })
        }
    };
    let mut refills = Vec::new();
    for at in wants.refills {
        refills.push((at, store::due_of(&shared.db, at, REFILL).await?));
    }
    let keys = if wants.keys.is_empty() {
        Vec::new()
    } else {
        store::heads_of_keys(&shared.db, &wants.keys).await?
    };
    Ok(Looked { sweep, refills, keys, asked_keys: wants.keys, holding, known })
}

/// Gives away `leaving`, takes lanes that have no owner, and records what was on the wire when their owner died.
async fn take_lanes(shared: &Shared, leaving: &[i16]) -> Result<Holding, StoreError> {
    if !leaving.is_empty() {
        nodes::store::release_lanes(&shared.db, &shared.node, leaving).await?;
    }
    let holding = nodes::store::take_lanes(&shared.db, &shared.node).await?;
    let lost = nodes::store::lost_flights(&shared.db, &shared.node).await?;
    if !lost.is_empty() {
        tracing::warn!(
            deliveries = lost.len(),
            "{} deliveries were on the wire when their node died; they are sent again",
            lost.len()
        );
        let records: Vec<_> = lost.into_iter().map(transmit::crashed).collect();
        store::record(&shared.db, shared.node_id(), &records).await?;
    }
    nodes::store::forget_flights(&shared.db).await?;
    Ok(holding)
}
