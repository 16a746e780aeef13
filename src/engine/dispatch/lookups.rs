//! What the dispatcher asks the database: what became due, what more there is for a receiver, the heads of order keys,
//! which other keys there are, and now and then whether a lane has no owner.
//!
//! A sweep goes on from where the last one stood (`sweeps`), so that a receiver with a million waiting deliveries is walked
//! over once, and not once a second. Once a minute a sweep starts from the beginning, as the net under the net.

use std::collections::HashSet;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::time::Instant;

use super::sweeps::LATE;
use super::{Dispatcher, News, POLL, transmit};
use crate::clock::{self, Timestamp};
use crate::db::StoreError;
use crate::deliveries::due_store::{self, DuePage, KeyRows};
use crate::deliveries::scheduling::{BacklogRef, KeyRef, Line, LinesPage, Moment, Refill, TargetRef, Wants};
use crate::deliveries::store;
use crate::deliveries::{Due, DueCursor, lane_of};
use crate::endpoints::health_store::{self, Health};
use crate::engine::jittered;
use crate::nodes::{self, store::Holding};
use crate::shared::Shared;

const FULL_SWEEP: Duration = Duration::from_mins(1);
/// Deleted endpoints are kept in memory for so long, many times longer than it takes to see that they are.
const DELETED_KEPT: TimeDelta = TimeDelta::hours(1);
const PAGE: usize = 2000;
/// Retries that are due in one breath are found by one sweep.
pub(super) const GAP: Duration = Duration::from_millis(25);

/// What a look-up brought.
pub(super) struct Looked {
    /// `None`: there was no sweep.
    sweep: Option<Sweep>,
    refills: Vec<(Refill, DuePage)>,
    keys: Vec<(KeyRef, KeyRows)>,
    walks: Vec<((BacklogRef, Option<Line>), LinesPage)>,
    /// What this node holds now, if that was asked.
    holding: Option<Holding>,
    /// What earlier owners knew of endpoints, when there are new lanes.
    known: Vec<Health>,
}

/// A page of what became due.
pub(super) struct Sweep {
    page: DuePage,
    /// The database's time before that.
    asked_at: Timestamp,
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
        if sweep {
            self.swept_at = Some(now);
        }
        if lanes {
            self.lanes_at = now + POLL;
        }
        if sweep && now >= self.full_sweep_at {
            self.full_sweep_at = now + FULL_SWEEP;
            self.sweep_all();
            self.shared.endpoints.forget_deleted(clock::now() - DELETED_KEPT);
        }
        let (shared, news) = (self.shared.clone(), self.news.clone());
        let lanes = lanes.then(|| Lanes { leaving: self.leavable(), owned: self.lanes.clone() });
        let from = if sweep { From::Cursor(self.sweeps.next(self.now())) } else { From::Nowhere };
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
                self.keep_lanes(|_| false);
                self.sweep_all();
                self.look_at = Instant::now() + jittered(POLL);
                return;
            }
        };
        if let Some(holding) = looked.holding {
            self.hold(holding, &looked.known);
            self.read_endpoints();
        }
        if let Some(sweep) = looked.sweep {
            self.take_page(sweep);
        }
        let landed = std::mem::take(&mut self.landed_meanwhile);
        // Of a lane that was lost meanwhile nothing is taken in.
        let keeps = |(tenant, target): TargetRef| self.keeps(lane_of(tenant, target));
        let refills: Vec<_> = looked.refills.into_iter().filter(|(refill, _)| keeps(refill.of.0)).collect();
        for (refill, page) in refills {
            let rows = page.due.into_iter().filter(|due| !landed.contains(&due.id));
            self.schedule.refill(refill.of, rows, (page.more, page.settled.or(refill.from)), now);
        }
        self.landed_meanwhile = landed;
        for ((at, line), found) in looked.keys {
            if !self.keeps(lane_of(at.0, at.1)) {
                continue;
            }
            // What landed meanwhile may be shown as it was before: ask again.
            if found.rows.iter().any(|(due, _)| self.landed_meanwhile.contains(&due.id)) {
                self.schedule.key_not_loaded((at, line));
                continue;
            }
            let rows: Vec<(Due, Moment)> =
                found.rows.into_iter().map(|(due, wait)| (due, now + wait)).collect();
            self.schedule.key_loaded((at, line), rows, found.complete, now);
        }
        // Only where to look: what a walk finds is looked up before it goes.
        for (((at, kind), from), page) in looked.walks {
            if self.keeps(lane_of(at.0, at.1)) {
                self.schedule.walked((at, kind), from, &page, now);
            }
        }
        self.landed_meanwhile.clear();
    }

    /// Takes over new lanes, lets go of lost ones, and gives away what is more than its share.
    fn hold(&mut self, holding: Holding, known: &[Health]) {
        let lanes: HashSet<i16> = holding.lanes.iter().map(|(lane, _)| *lane).collect();
        let mut spare: Vec<i16> = lanes.iter().copied().collect();
        spare.sort_unstable();
        let mut leaving: HashSet<i16> = spare.into_iter().skip(holding.share).collect();
        // Once it leaves it leaves: what came meanwhile was not taken in, and what is in flight is not known any more.
        leaving.extend(self.leaving.iter().filter(|lane| lanes.contains(lane) && self.is_in_flight(**lane)));
        if lanes == self.lanes && leaving == self.leaving {
            return;
        }
        tracing::info!(
            lanes = lanes.len(),
            leaving = leaving.len(),
            "this node owns {} lanes",
            lanes.len() - leaving.len()
        );
        let kept_before: HashSet<i16> = self.lanes.difference(&self.leaving).copied().collect();
        let before = std::mem::replace(&mut self.lanes, lanes);
        self.leaving = leaving;
        let kept: HashSet<i16> = self.lanes.difference(&self.leaving).copied().collect();
        if !kept.is_subset(&kept_before) {
            self.sweep_all();
            self.health.load(known);
        }
        self.limit_anew(&before, &holding.lanes);
        self.keep_lanes(|(tenant, target)| kept.contains(&lane_of(tenant, target)));
        self.shared.hand_off.set_lanes(kept.into_iter());
        if !self.leavable().is_empty() {
            self.look_at_once();
        }
    }

    fn is_in_flight(&self, lane: i16) -> bool {
        self.in_flight_of.get(&lane).is_some_and(|count| *count > 0)
    }

    /// What is left of a receiver's rate in a lane that others had is not known: it is counted from when they left.
    fn limit_anew(&mut self, before: &HashSet<i16>, lanes: &[(i16, Option<Duration>)]) {
        let now = Instant::now();
        for (lane, quiet) in lanes.iter().filter(|(lane, _)| !before.contains(lane)) {
            let called_at = quiet.and_then(|quiet| now.checked_sub(quiet));
            self.called_at.remove(lane);
            self.called_at.extend(called_at.map(|at| (*lane, at)));
        }
        let new: HashSet<i16> = self.lanes.difference(before).copied().collect();
        if new.is_empty() {
            return;
        }
        let is_new = |(tenant, target): TargetRef| new.contains(&lane_of(tenant, target));
        self.rates.forget(is_new);
        for endpoint in self.shared.endpoints.changed_after(0) {
            let at = (endpoint.tenant, endpoint.id.uuid());
            if is_new(at) && self.schedule.knows(at) {
                self.obey(&endpoint, self.now());
            }
        }
    }

    /// The lanes that can be given away now: nothing of them is in flight.
    pub(super) fn leavable(&self) -> Vec<i16> {
        self.leaving.iter().copied().filter(|lane| !self.is_in_flight(*lane)).collect()
    }

    /// Sweeps from the beginning, and so do refills.
    pub(super) fn sweep_all(&mut self) {
        self.sweeps.rewind();
        self.schedule.rewind();
    }

    fn take_page(&mut self, sweep: Sweep) {
        let Sweep { page, asked_at, next_due } = sweep;
        let more = self.sweeps.page(&page, asked_at);
        let landed = std::mem::take(&mut self.landed_meanwhile);
        self.take_found(page.due.into_iter().filter(|due| !landed.contains(&due.id)));
        self.landed_meanwhile = landed;
        if more {
            self.look_at = Instant::now();
            return;
        }
        let poll = jittered(POLL);
        self.look_at = Instant::now() + next_due.map_or(poll, |next| next.clamp(GAP, poll));
    }
}

/// What is known of the lanes when they are looked at.
struct Lanes {
    /// Can be given away.
    leaving: Vec<i16>,
    /// Were this node's.
    owned: HashSet<i16>,
}

/// Where a look-up sweeps from.
#[derive(Clone, Copy)]
enum From {
    /// It does not sweep.
    Nowhere,
    /// From there, or from the beginning.
    Cursor(Option<DueCursor>),
}

async fn look(shared: &Shared, lanes: Option<Lanes>, from: From, wants: Wants) -> Result<Looked, StoreError> {
    let (holding, known) = match lanes {
        Some(Lanes { leaving, owned }) => {
            let holding = take_lanes(shared, &leaving).await?;
            let known = if holding.lanes.iter().all(|(lane, _)| owned.contains(lane)) {
                Vec::new()
            } else {
                health_store::load_health(&shared.db).await?
            };
            (Some(holding), known)
        }
        None => (None, Vec::new()),
    };
    let sweep = match from {
        From::Nowhere => None,
        From::Cursor(cursor) => {
            let (asked_at, next_due) = due_store::next_due(&shared.db, shared.node_id()).await?;
            let page = due_store::due(&shared.db, shared.node_id(), cursor, (PAGE, LATE)).await?;
            Some(Sweep { page, asked_at, next_due })
        }
    };
    let pages = due_store::due_of(&shared.db, &wants.refills, LATE).await?;
    let refills = wants.refills.into_iter().zip(pages).collect();
    let heads = due_store::heads_of_keys(&shared.db, &wants.keys).await?;
    let keys = wants.keys.into_iter().map(|(key, _)| key).zip(heads).collect();
    let pages = due_store::lines_behind(&shared.db, &wants.walks).await?;
    let walks = wants.walks.into_iter().zip(pages).collect();
    Ok(Looked { sweep, refills, keys, walks, holding, known })
}

/// Gives away `leaving`, takes lanes that have no owner, and records what was on the wire when their owner died.
async fn take_lanes(shared: &Shared, leaving: &[i16]) -> Result<Holding, StoreError> {
    if !leaving.is_empty() {
        nodes::store::release_lanes(&shared.db, &shared.node, leaving).await?;
        shared.wakeups.lanes.notify_elsewhere();
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
