//! One scenario: fresh database and service, a warm-up, then the top rate and a fixed rate, each checked and counted.
//!
//! Called by `bench`. Every phase ends when all its callbacks came (or a limit); CPU and bytes are counted until then, so
//! that no item's cost falls into the next phase.
//!
//! Invariant: a phase's figures are told together with what went wrong in it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::bare::{self, Client};
use super::figures::{Cpu, Figures, Latency};
use super::load::{self, Load, Pace, Plan};
use super::meter::{Meter, Reading};
use super::receiver::{JobKey, Matched, Receiver};
use super::scenario::{Scenario, Work, callback_data};
use super::site::Site;
use crate::cli::Failure;
use crate::signing::SigningSecret;

/// Jobs without their callback at a time in the closed loop: enough to fill every stage, and no backlog.
const WINDOW: usize = 1024;
const WARM_UP: Duration = Duration::from_secs(2);
/// Idle means that every thread has gone to sleep.
const IDLE_PAUSE: Duration = Duration::from_millis(10);
/// The share of the top rate at which latency is measured.
const FIXED_SHARE: f64 = 0.5;
/// After the last request, the rest of the callbacks may take so long.
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) duration: Duration,
    /// Items a second, in place of a share of the top rate, which then is not measured.
    pub(super) rate: Option<f64>,
    /// Only the top rate.
    pub(super) top_only: bool,
    pub(super) callers: usize,
    pub(super) payload_bytes: usize,
}

struct Phase<'a> {
    scenario: Scenario,
    mode: &'static str,
    pace: Pace,
    plan: Plan,
    receiver: &'a Receiver,
    secret: Option<&'a SigningSecret>,
}

/// The bare loop.
pub(super) async fn bare(
    scenario: Scenario,
    client: Client,
    settings: Settings,
    receiver: &Receiver,
) -> Result<Figures, Failure> {
    let data = callback_data(receiver.address, settings.payload_bytes);
    bare::run(client, receiver.address, data.clone(), WARM_UP.as_secs_f64()).await.map_err(broken)?;
    receiver.reset(None);
    let mut meter = Meter::alone();
    let before = meter.read().await?;
    let done =
        bare::run(client, receiver.address, data, settings.duration.as_secs_f64()).await.map_err(broken)?;
    let after = meter.read().await?;
    let mut figures = Figures {
        items: done.posts,
        rate_per_s: done.posts as f64 / done.elapsed.as_secs_f64(),
        cpu: cpu(&before, &after, done.posts),
        ..empty(scenario, "top")
    };
    if done.failed > 0 {
        figures.faults.push(format!("{} of the bare loop's posts failed", done.failed));
    }
    Ok(figures)
}

/// A scenario of the service, on a fresh site. Returns the figures and PostgreSQL's version.
pub(super) async fn service(
    scenario: Scenario,
    settings: Settings,
    receiver: &Receiver,
    site: &mut Site,
) -> Result<(Vec<Figures>, String), Failure> {
    let url = site.start().await?;
    let service = site.service()?;
    let mut meter = Meter::of(service.pid, &url).await?;
    let secret = site.callback_secret().await?;
    let work = scenario.work;
    let plan = Plan {
        address: service.address,
        request: work.request(site.key(), receiver.address, settings.payload_bytes),
        callers: work.callers(settings.callers),
        pace: Pace::Closed { pause: Duration::ZERO },
        window: None,
        duration: settings.duration,
    };
    let phase = |mode, pace, duration| Phase {
        scenario,
        mode,
        pace,
        plan: Plan { duration, ..plan.clone() },
        receiver,
        secret: work.calls_back().then_some(&secret),
    };
    let full_speed = Pace::Closed { pause: Duration::ZERO };
    let mut rows = Vec::new();
    let warm_up = run(phase("warm-up", full_speed, WARM_UP), &mut meter).await?;
    if work == Work::Idle {
        rows.push(
            run(phase("idle", Pace::Closed { pause: IDLE_PAUSE }, settings.duration), &mut meter).await?,
        );
    } else {
        let mut rate = settings.rate;
        if rate.is_none() {
            let top = run(phase("top", full_speed, settings.duration), &mut meter).await?;
            rate = Some(top.rate_per_s * FIXED_SHARE);
            rows.push(top);
        }
        if let (Some(rate), false) = (rate, settings.top_only) {
            let pace = Pace::Open { per_s: (rate / work.batch() as f64).max(0.1) };
            rows.push(run(phase("fixed", pace, settings.duration), &mut meter).await?);
        }
    }
    if let Some(first) = rows.first_mut() {
        first.faults.splice(0..0, warm_up.faults);
    }
    let version = meter.version.clone();
    drop(meter);
    site.stop().await?;
    Ok((rows, version))
}

async fn run(phase: Phase<'_>, meter: &mut Meter) -> Result<Figures, Failure> {
    let Phase { scenario, mode, pace, plan, receiver, secret } = phase;
    let (work, duration) = (scenario.work, plan.duration);
    let window = match pace {
        Pace::Closed { .. } if work.calls_back() => {
            Some(Arc::new(Semaphore::new(if work == Work::Idle { 1 } else { WINDOW })))
        }
        Pace::Closed { .. } | Pace::Open { .. } => None,
    };
    receiver.reset(window.clone());
    let stored_before = if work.calls_back() { 0 } else { meter.stored_jobs().await? };
    let before = meter.read().await?;
    let load = load::run(Plan { pace, window, ..plan }).await.map_err(broken)?;
    if work.calls_back() {
        receiver.wait_for(load.accepted.len(), DRAIN_PATIENCE).await;
    }
    let after = meter.read().await?;
    let items = (load.accepted.len() * work.batch()) as u64;
    let mut figures = Figures {
        items,
        offered_per_s: match pace {
            Pace::Open { per_s } => Some(per_s * work.batch() as f64),
            Pace::Closed { .. } => None,
        },
        accept_ms: Latency::of(load.accepted.iter().map(|sent| sent.answered - sent.due)),
        cpu: cpu(&before, &after, items),
        commits: per(after.counters.transactions - before.counters.transactions, items)
            .map(|one| one * 1000.0),
        wal_bytes: per(after.counters.wal - before.counters.wal, items),
        table_bytes: per(after.counters.tables - before.counters.tables, items),
        peak_memory_bytes: meter.peak_memory(),
        ..empty(scenario, mode)
    };
    let end = load.began + duration;
    check_load(&load, &mut figures.faults);
    if work.calls_back() {
        figures.rate_per_s = receiver.arrived_until(end) as f64 / duration.as_secs_f64();
        check_callbacks(&load, receiver, secret, &mut figures);
    } else {
        let in_time = load.accepted.iter().filter(|sent| sent.answered <= end).count() * work.batch();
        figures.rate_per_s = in_time as f64 / duration.as_secs_f64();
        let stored = meter.stored_jobs().await? - stored_before;
        // An answer that did not come leaves open whether its jobs were stored.
        if stored < items as i64 || (stored > items as i64 && load.broken == 0) {
            figures.faults.push(format!("{items} jobs were accepted, and {stored} are stored"));
        }
    }
    Ok(figures)
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

fn check_callbacks(load: &Load, receiver: &Receiver, secret: Option<&SigningSecret>, figures: &mut Figures) {
    let sent: HashMap<JobKey, Instant> =
        load.accepted.iter().filter_map(|sent| Some((sent.job?, sent.due))).collect();
    let Matched { latencies, lost, duplicates, strangers, calls } = receiver.matched(&sent);
    figures.callback_ms = Latency::of(latencies);
    let mut fault = |count: usize, text: &str| {
        if count > 0 {
            figures.faults.push(format!("{count} {text}"));
        }
    };
    fault(load.accepted.len() - sent.len(), "answers showed no job, or one that had been shown before");
    fault(lost, "jobs were accepted and got no callback in time");
    fault(duplicates, "callbacks came twice");
    // A request whose answer did not come may have been accepted all the same.
    fault(strangers.saturating_sub(load.broken as usize), "callbacks came for jobs that nobody submitted");
    fault(load.accepted.len().saturating_sub(calls as usize), "jobs did not call the receiver");
    if let Some(secret) = secret {
        let (looked_at, failure) = receiver.verify_samples(secret);
        figures.signatures_verified = looked_at;
        if let Some(failure) = failure {
            figures.faults.push(format!("a signature does not verify: {failure}"));
        }
    }
}

fn cpu(before: &Reading, after: &Reading, items: u64) -> Cpu {
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

fn empty(scenario: Scenario, mode: &'static str) -> Figures {
    Figures {
        scenario: scenario.name,
        about: scenario.about,
        mode,
        items: 0,
        rate_per_s: 0.0,
        offered_per_s: None,
        accept_ms: None,
        callback_ms: None,
        cpu: Cpu::default(),
        times_bare: None,
        commits: None,
        wal_bytes: None,
        table_bytes: None,
        peak_memory_bytes: None,
        signatures_verified: 0,
        faults: Vec::new(),
    }
}

fn broken(error: std::io::Error) -> Failure {
    Failure { text: format!("the load cannot be made: {error}"), code: 70 }
}
