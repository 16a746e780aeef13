//! Jobs through the hands of a worker: how fast a backlog is worked off, and how long a job waits for its hand-out.
//!
//! Called by `measure`; the worker stands in `worker`. To submit and to lease are rows of their own: `submit` fills a backlog that
//! nobody takes, `top` works it off, both as fast as it goes. `fixed` does both at once, at an even pace.
//!
//! Invariant: after each of them every job that was accepted has its end, and was handed out once.

use std::time::{Duration, Instant};

use super::figures::{Figures, Latency};
use super::load::Pace;
use super::measure::{FIXED_SHARE, FULL_SPEED, Run};
use super::meter::Meter;
use super::phase::{self, Phase, Stage, WARM_UP, spent};
use super::scenario::{Hands, Item, Leasing};
use super::stats_store::Ends;
use super::worker::{Tally, Terms, Worker};
use crate::cli::Failure;

/// A backlog may take so long to be made, and so long to be worked off.
const PATIENCE: Duration = Duration::from_mins(5);
/// How soon the last report of a phase is seen.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Fan-out and the last reports may take so long after that.
const REST_PATIENCE: Duration = Duration::from_secs(30);

/// Measures.
pub(super) async fn run(run: &Run<'_>, leasing: Leasing, meter: &mut Meter) -> Result<Vec<Figures>, Failure> {
    let Leasing { batch, hands, waiting_per_s } = leasing;
    let live = run.stage(Item::LeasedJob { batch }).await?;
    let mut rows = Vec::new();
    let warm_up = Phase { mode: "warm-up", pace: FULL_SPEED, duration: WARM_UP };
    let mut warmed_up = worked(run, &live, warm_up, hands, meter).await?;
    let mut rate = run.settings.rate;
    if rate.is_none() {
        let jobs = (waiting_per_s as f64 * run.settings.duration.as_secs_f64()) as u64;
        let pace = Pace::Count { requests: jobs.div_ceil(batch as u64) };
        let stage = run.stage(Item::StoredJob { batch }).await?;
        let submit = Phase { mode: "submit", pace, duration: PATIENCE };
        let submitted = phase::run(&stage, submit, meter).await?;
        let top = work_off(run, hands, submitted.items, meter).await?;
        rate = Some(top.rate_per_s * FIXED_SHARE);
        rows.extend([submitted, top]);
    }
    if let (Some(rate), false) = (rate, run.settings.top_only) {
        let pace = Pace::Open { per_s: (rate / batch as f64).max(0.1) };
        let fixed = Phase { mode: "fixed", pace, duration: run.settings.duration };
        rows.push(worked(run, &live, fixed, hands, meter).await?);
    }
    if let Some(first) = rows.first_mut() {
        first.faults.append(&mut warmed_up.faults);
    }
    Ok(rows)
}

/// A worker for the first tenant.
pub(super) fn worker(run: &Run<'_>, hands: Hands) -> Result<Worker, Failure> {
    Worker::start(Terms {
        address: run.site.service()?.address,
        key: run.site.key().to_owned(),
        hands,
        payload_bytes: run.settings.payload_bytes,
        notes: Some(run.receiver.notes()),
    })
}

/// A phase whose jobs are taken and ended while it lasts.
async fn worked(
    run: &Run<'_>,
    live: &Stage<'_>,
    phase: Phase,
    hands: Hands,
    meter: &mut Meter,
) -> Result<Figures, Failure> {
    let before = meter.ends().await?;
    let worker = worker(run, hands)?;
    let mut figures = phase::run(live, phase, meter).await?;
    wait_for(&worker, figures.items, REST_PATIENCE).await;
    let tally = worker.stop().await?;
    figures.faults.extend(faults(figures.items, &tally, (before, meter.ends().await?)));
    Ok(figures)
}

/// What waits is taken and ended as fast as it goes.
async fn work_off(run: &Run<'_>, hands: Hands, jobs: u64, meter: &mut Meter) -> Result<Figures, Failure> {
    run.receiver.reset(None);
    let ends_before = meter.ends().await?;
    let before = meter.read().await?;
    let began = Instant::now();
    let worker = worker(run, hands)?;
    wait_for(&worker, jobs, PATIENCE).await;
    let elapsed = began.elapsed();
    // The events of the ends are work for it too.
    while meter.has_new_events().await? && began.elapsed() < elapsed + REST_PATIENCE {
        tokio::time::sleep(LOOK_EVERY * 5).await;
    }
    let after = meter.read().await?;
    let tally = worker.stop().await?;
    let mut figures = Figures {
        rate_per_s: tally.finished as f64 / elapsed.as_secs_f64(),
        peak_memory_bytes: meter.peak_memory(),
        ..spent(run.scenario, "top", (&before, &after), tally.finished)
    };
    figures.notes.extend(note(hands, &tally));
    figures.faults.extend(faults(jobs, &tally, (ends_before, meter.ends().await?)));
    Ok(figures)
}

/// Waits until so many jobs are finished, or the worker gives up.
async fn wait_for(worker: &Worker, jobs: u64, at_most: Duration) {
    let began = Instant::now();
    while worker.finished() < jobs && !worker.has_ended() && began.elapsed() < at_most {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn note(hands: Hands, tally: &Tally) -> Option<String> {
    let took = Latency::of(tally.takes.iter().copied())?;
    let reported = Latency::of(tally.reports.iter().copied())?;
    Some(format!(
        "one worker with {} connections was handed {:.1} jobs at a time, {} at most; to be handed them took it {:.1} ms (p50) and \
         {:.1} ms (p99), to report on them {:.1} ms and {:.1} ms",
        hands.connections,
        tally.finished as f64 / tally.takes.len() as f64,
        hands.max,
        took.p50,
        took.p99,
        reported.p50,
        reported.p99,
    ))
}

/// What must not be, after so many jobs were accepted.
fn faults(jobs: u64, tally: &Tally, (before, after): (Ends, Ends)) -> Vec<String> {
    let mut faults = Vec::new();
    let jobs = jobs as i64;
    let (ended, at_once) = (after.ended - before.ended, after.at_once - before.at_once);
    if ended != jobs {
        faults.push(format!("{jobs} jobs were accepted, and {ended} have an end"));
    }
    if at_once != ended {
        faults.push(format!("{} jobs failed, or were handed out more than once", ended - at_once));
    }
    if tally.refused > 0 {
        faults.push(format!("{} reports were refused", tally.refused));
    }
    if tally.finished as i64 != ended {
        faults.push(format!("{} reports were taken, and {ended} jobs have an end", tally.finished));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_accepted_job_has_one_end() {
        let ends = |ended, at_once| Ends { ended, at_once };
        let tally = |finished, refused| Tally { finished, refused, ..Tally::default() };
        assert!(faults(100, &tally(100, 0), (ends(50, 40), ends(150, 140))).is_empty());
        let count = |jobs, tally: Tally, after| faults(jobs, &tally, (ends(0, 0), after)).len();
        assert_eq!(count(100, tally(99, 0), ends(99, 99)), 1, "one has no end");
        assert_eq!(count(100, tally(100, 0), ends(100, 99)), 1, "one was handed out twice");
        assert_eq!(count(100, tally(100, 1), ends(100, 100)), 1, "a report was refused");
        assert_eq!(count(100, tally(101, 0), ends(100, 100)), 1, "one was ended twice");
    }
}
