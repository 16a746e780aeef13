//! Live events or jobs beside something that must not disturb them, and a rate limit that is put to the test.
//!
//! Called by `measure`; what goes on beside stands in `others`. The same open load is measured twice on the same site: alone, and beside the other. What counts
//! is the ratio of the two, because both see the same machine.

use std::time::{Duration, Instant};

use super::api::{Api, Kind, Many};
use super::figures::{Cpu, Figures, Latency, Promise};
use super::lease::worker;
use super::load::Pace;
use super::measure::{Run, with_faults};
use super::meter::Meter;
use super::others;
use super::phase::{self, Phase, WARM_UP, empty};
use super::scenario::{Beside, Item, LIVE_TYPE, Limit};
use crate::cli::Failure;

/// The first arrival may take so long.
const PATIENCE: Duration = Duration::from_mins(1);

/// Measures the live load alone and beside the other.
pub(super) async fn run(run: &Run<'_>, beside: Beside, meter: &mut Meter) -> Result<Vec<Figures>, Failure> {
    let mut stage = run.stage(beside.item).await?;
    let per_s = run.settings.rate.unwrap_or(beside.per_s);
    // Each connection is to have something to do every second, or the service closes it.
    stage.plan.callers = stage.plan.callers.min(per_s.ceil() as usize);
    let pace = Pace::Open { per_s };
    let duration = run.settings.duration;
    let worker = beside.hands.map(|hands| worker(run, hands)).transpose()?;
    let warm_up = phase::run(&stage, Phase { mode: "warm-up", pace, duration: WARM_UP }, meter).await?;
    let alone = phase::run(&stage, Phase { mode: "alone", pace, duration }, meter).await?;
    let phase = Phase { mode: "beside", pace, duration };
    let mut with_other = others::run(run, &stage, phase, beside.other, meter).await?;
    if let Some(worker) = worker {
        let refused = worker.stop().await?.refused;
        with_other
            .faults
            .extend((refused > 0).then(|| format!("{refused} reports on live jobs were refused")));
    }
    // What the other costs is not for each of the live items.
    with_other.cpu = Cpu::default();
    (with_other.commits, with_other.wal_bytes, with_other.table_bytes) = (None, None, None);
    let what = match beside.item {
        Item::LeasedJob { .. } => "p99 from submit to hand-out",
        _ => "p99 from publish to arrival",
    };
    let pair = (alone.arrival_ms, with_other.arrival_ms);
    // Of several runs the median is told by the first promise.
    with_other.promises.splice(0..0, compare(what, pair, beside.times_at_most));
    Ok(with_faults(vec![alone, with_other], warm_up.faults))
}

fn compare(what: &str, pair: (Option<Latency>, Option<Latency>), at_most: f64) -> Option<Promise> {
    let (alone, beside) = (pair.0?.p99, pair.1?.p99);
    let what = format!("{what}, {alone:.2} ms alone and {beside:.2} ms beside it, as a factor");
    Some(Promise { what, measured: beside / alone, at_most })
}

/// Measures what a rate limit lets through.
pub(super) async fn rate_limit(
    run: &Run<'_>,
    limit: Limit,
    meter: &mut Meter,
) -> Result<Vec<Figures>, Failure> {
    let address = run.site.service()?.address;
    let mut api = Api::connect(address, run.site.key()).await?;
    let url = |number| format!("http://{}/hook/{number}", run.receiver.address);
    let Limit { per_s, burst, seconds } = limit;
    let more = format!(r#","rate_limit":{{"per_s":{per_s},"burst":{burst}}}"#);
    let made = api.endpoints(1, url, LIVE_TYPE, &more).await?;
    let secrets: Vec<_> = made.into_iter().map(|endpoint| endpoint.secret).collect();
    run.receiver.reset(None);
    let count = (burst + per_s * (seconds + 10)) as usize;
    let payload_bytes = run.settings.payload_bytes;
    let before = meter.read().await?;
    let kind = Kind::Events(LIVE_TYPE);
    Many { address, key: run.site.key(), kind, count, payload_bytes }.send_all().await?;
    let begin = first_arrival(run).await?;
    tokio::time::sleep_until((begin + Duration::from_secs(u64::from(seconds))).into()).await;
    let after = meter.read().await?;
    let times: Vec<Duration> = run.receiver.times().iter().map(|at| at.duration_since(begin)).collect();
    let (looked_at, failure) = run.receiver.verify_samples(&secrets);
    let mut figures = Figures {
        items: times.len() as u64,
        rate_per_s: times.len() as f64 / f64::from(seconds),
        signatures_verified: looked_at,
        others_cores: after.others_cores(&before),
        peak_memory_bytes: meter.peak_memory(),
        ..empty(run.scenario, "limited")
    };
    figures.promises = promises_of(&times, limit);
    figures.faults.extend(failure.map(|failure| format!("a signature does not verify: {failure}")));
    Ok(vec![figures])
}

async fn first_arrival(run: &Run<'_>) -> Result<Instant, Failure> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(first) = run.receiver.times().first() {
            return Ok(*first);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err(Failure { text: "nothing arrived".to_owned(), code: 1 })
}

fn promises_of(times: &[Duration], limit: Limit) -> Vec<Promise> {
    let (per_s, burst) = (f64::from(limit.per_s), f64::from(limit.burst));
    let average = (times.len() as f64 - burst) / f64::from(limit.seconds);
    vec![
        Promise {
            what: format!("most arrivals within any second, at {per_s} a second and {burst} at once"),
            measured: most_within_a_second(times) as f64,
            at_most: burst + per_s,
        },
        Promise {
            what: format!("average of {average:.2} a second after the first {burst}, percent off {per_s}"),
            measured: (average / per_s - 1.0).abs() * 100.0,
            at_most: 5.0,
        },
    ]
}

/// The most arrivals in any second, wherever it begins. Times are in order.
fn most_within_a_second(times: &[Duration]) -> usize {
    let mut from = 0;
    let mut most = 0;
    for (place, time) in times.iter().enumerate() {
        while times[from] + Duration::from_secs(1) <= *time {
            from += 1;
        }
        most = most.max(place + 1 - from);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_second_may_begin_anywhere() {
        let times = [0, 500, 900, 1100, 1400, 3000].map(Duration::from_millis);
        assert_eq!(most_within_a_second(&times), 4);
        assert_eq!(most_within_a_second(&[]), 0);
    }
}
