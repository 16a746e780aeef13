//! One phase: a load, until all that it leads to has arrived, checked and counted.
//!
//! Called by `measure`, `lease` and `beside`. CPU and bytes are counted until the last arrival (or a limit), so that no item's cost
//! falls into the next phase.
//!
//! Invariant: a phase's figures are told together with what went wrong in it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::figures::{Cpu, Figures, Latency};
use super::load::{self, Load, Pace, Plan};
use super::marks::ItemKey;
use super::meter::{Meter, Reading};
use super::receiver::{Matched, Receiver, Window};
use super::scenario::{Item, Scenario};
use super::stats_store::Counters;
use crate::cli::Failure;
use crate::signing::SigningSecret;

/// How long the load runs before anything is counted.
pub(super) const WARM_UP: Duration = Duration::from_secs(2);
/// Arrivals that are waited for at a time in the closed loop: enough to fill every stage, and no backlog …
const ARRIVALS_WINDOW: usize = 1024;
/// … and so many requests at least.
const REQUESTS_WINDOW: usize = 8;
/// After the last request, the rest of the arrivals may take so long.
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);

/// What phases have in common.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) scenario: Scenario,
    pub(super) item: Item,
    /// Pace, window and duration are the phase's.
    pub(super) plan: Plan,
    pub(super) receiver: &'a Receiver,
    /// What signs what arrives, by endpoint.
    pub(super) secrets: Vec<SigningSecret>,
}

/// A phase.
#[derive(Debug, Clone, Copy)]
pub(super) struct Phase {
    pub(super) mode: &'static str,
    pub(super) pace: Pace,
    pub(super) duration: Duration,
}

/// Runs a phase.
pub(super) async fn run(stage: &Stage<'_>, phase: Phase, meter: &mut Meter) -> Result<Figures, Failure> {
    let Stage { scenario, item, receiver, .. } = *stage;
    let Phase { mode, pace, duration } = phase;
    let window = window(stage, pace);
    receiver.reset(window.clone());
    let arrives = item.arrivals() > 0;
    let stored_before = if arrives { 0 } else { meter.stored_jobs().await? };
    let before = meter.read().await?;
    let window = window.map(|window| window.permits);
    let load = load::run(Plan { pace, window, duration, ..stage.plan.clone() }).await.map_err(broken)?;
    if arrives {
        receiver.wait_for(load.accepted.len() * item.per_request(), DRAIN_PATIENCE).await;
    }
    let after = meter.read().await?;
    let items = (load.accepted.len() * item.per_request()) as u64;
    let mut figures = Figures {
        items,
        offered_per_s: match pace {
            Pace::Open { per_s } => Some(per_s * item.per_request() as f64),
            Pace::Closed { .. } | Pace::Count { .. } => None,
        },
        accept_ms: Latency::of(load.accepted.iter().map(|sent| sent.answered - sent.due)),
        peak_memory_bytes: meter.peak_memory(),
        ..spent(scenario, mode, (&before, &after), items)
    };
    let end = match pace {
        Pace::Open { .. } | Pace::Closed { .. } => load.began + duration,
        Pace::Count { .. } => load.accepted.iter().map(|sent| sent.answered).max().unwrap_or(load.began),
    };
    let duration = end - load.began;
    check_load(&load, &mut figures.faults);
    if arrives {
        figures.rate_per_s = receiver.arrived_until(end) as f64 / duration.as_secs_f64();
        check_arrivals(&load, stage, &mut figures);
    } else {
        let in_time = load.accepted.iter().filter(|sent| sent.answered <= end).count() * item.batch();
        figures.rate_per_s = in_time as f64 / duration.as_secs_f64();
        let stored = meter.stored_jobs().await? - stored_before;
        // An answer that did not come leaves open whether its jobs were stored.
        if stored < items as i64 || (stored > items as i64 && load.broken == 0) {
            figures.faults.push(format!("{items} jobs were accepted, and {stored} are stored"));
        }
    }
    Ok(figures)
}

fn window(stage: &Stage<'_>, pace: Pace) -> Option<Window> {
    let arrivals = stage.item.arrivals();
    let at_a_time = match pace {
        Pace::Open { .. } | Pace::Count { .. } => return None,
        Pace::Closed { .. } if arrivals == 0 => return None,
        Pace::Closed { .. } if stage.plan.callers == 1 => 1,
        Pace::Closed { .. } => (ARRIVALS_WINDOW / stage.item.per_request()).max(REQUESTS_WINDOW),
    };
    Some(Window { permits: Arc::new(Semaphore::new(at_a_time)), arrivals: stage.item.per_request() })
}

fn check_load(load: &Load, faults: &mut Vec<String>) {
    for (status, count) in &load.refused {
        faults.push(format!("{count} requests were answered with {status}"));
    }
    if load.broken > 0 {
        faults.push(format!("{} requests got no answer", load.broken));
    }
    if load.unsent > 0 {
        faults
            .push(format!("{} requests of the schedule were never sent: the rate is too high", load.unsent));
    }
}

fn check_arrivals(load: &Load, stage: &Stage<'_>, figures: &mut Figures) {
    let Stage { item, receiver, secrets, .. } = stage;
    let sent: HashMap<ItemKey, Instant> = load.items.iter().copied().collect();
    let Matched { latencies, lost, duplicates, strangers, calls } = receiver.matched(&sent, item.arrivals());
    figures.arrival_ms = Latency::of(latencies);
    let mut fault = |count: usize, text: &str| {
        if count > 0 {
            figures.faults.push(format!("{count} {text}"));
        }
    };
    fault(
        load.accepted.len() * item.batch() - sent.len(),
        "answers showed no id, or one that had been shown before",
    );
    fault(lost, "were to arrive and did not in time");
    fault(duplicates, "arrived twice");
    // A request whose answer did not come may have been accepted all the same.
    let unknown = load.broken as usize * item.per_request();
    fault(strangers.saturating_sub(unknown), "arrived that nobody submitted");
    if *item == Item::CalledBackJob {
        fault(load.accepted.len().saturating_sub(calls as usize), "jobs did not call the receiver");
    }
    let (looked_at, failure) = receiver.verify_samples(secrets);
    figures.signatures_verified = looked_at;
    if let Some(failure) = failure {
        figures.faults.push(format!("a signature does not verify: {failure}"));
    }
}

/// Figures of what was spent between two readings.
pub(super) fn spent(
    scenario: Scenario,
    mode: &'static str,
    (before, after): (&Reading, &Reading),
    items: u64,
) -> Figures {
    let counted = |one: fn(&Counters) -> i64| per(one(&after.counters) - one(&before.counters), items);
    Figures {
        items,
        cpu: cpu(before, after, items),
        commits: counted(|counters| counters.transactions).map(|one| one * 1000.0),
        wal_bytes: counted(|counters| counters.wal),
        table_bytes: counted(|counters| counters.tables),
        others_cores: after.others_cores(before),
        ..empty(scenario, mode)
    }
}

/// CPU for each 1,000 items.
pub(super) fn cpu(before: &Reading, after: &Reading, items: u64) -> Cpu {
    let per_1000 = |before: Option<f64>, after: Option<f64>| {
        (items > 0).then_some(())?;
        Some((after? - before?) * 1000.0 / items as f64)
    };
    Cpu {
        service: per_1000(before.service, after.service),
        postgres: per_1000(before.postgres, after.postgres),
        load: per_1000(before.load, after.load),
        receiver: per_1000(before.receiver, after.receiver),
    }
}

fn per(total: i64, items: u64) -> Option<f64> {
    (items > 0).then(|| total as f64 / items as f64)
}

/// Figures without a figure.
pub(super) fn empty(scenario: Scenario, mode: &'static str) -> Figures {
    Figures {
        scenario: scenario.name,
        about: scenario.about,
        mode,
        items: 0,
        rate_per_s: 0.0,
        offered_per_s: None,
        accept_ms: None,
        arrival_ms: None,
        cpu: Cpu::default(),
        times_bare: None,
        commits: None,
        wal_bytes: None,
        table_bytes: None,
        peak_memory_bytes: None,
        others_cores: None,
        signatures_verified: 0,
        promises: Vec::new(),
        notes: Vec::new(),
        faults: Vec::new(),
    }
}

/// The load could not be made.
pub(super) fn broken(error: std::io::Error) -> Failure {
    Failure { text: format!("the load cannot be made: {error}"), code: 70 }
}
