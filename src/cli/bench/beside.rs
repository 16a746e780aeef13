//! Live events beside something that must not disturb them, and a rate limit that is put to the test.
//!
//! Called by `measure`. The same open load is measured twice on the same site: alone, and beside the other. What counts
//! is the ratio of the two, because both see the same machine.

use std::time::{Duration, Instant};

use super::api::{Api, Many, another_tenant};
use super::figures::{Figures, Latency, Promise};
use super::load::Pace;
use super::measure::{Run, with_faults};
use super::meter::Meter;
use super::phase::{self, Phase, Stage, WARM_UP, empty};
use super::scenario::{Beside, Item, LIVE_TYPE, Limit, Other};
use crate::cli::Failure;

/// The topic of what goes on beside.
const OTHER_TYPE: &str = "other.order";
/// Waiting events need no payload to speak of.
const SMALL_PAYLOAD_BYTES: usize = 64;
/// Setting the stage may take so long.
const STAGE_PATIENCE: Duration = Duration::from_mins(10);
/// Fan-out has caught up when nothing was added for so long.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Measures the live load alone and beside the other.
pub(super) async fn run(run: &Run<'_>, beside: Beside, meter: &mut Meter) -> Result<Vec<Figures>, Failure> {
    let stage = run.stage(Item::Event { endpoints: beside.endpoints }).await?;
    let pace = Pace::Open { per_s: run.settings.rate.unwrap_or(beside.per_s) };
    let duration = run.settings.duration;
    let warm_up = phase::run(&stage, Phase { mode: "warm-up", pace, duration: WARM_UP }, meter).await?;
    let alone = phase::run(&stage, Phase { mode: "alone", pace, duration }, meter).await?;
    let phase = Phase { mode: "beside", pace, duration };
    let mut with_other = match beside.other {
        Other::Hung { endpoints, waiting, timeout_s } => {
            let hanging = Hanging { endpoints, waiting, timeout_s };
            beside_hanging(run, &stage, phase, hanging, meter).await?
        }
        Other::Backlog { waiting, timeout_s } => {
            let hanging = Hanging { endpoints: 1, waiting, timeout_s };
            beside_hanging(run, &stage, phase, hanging, meter).await?
        }
        Other::LoudTenant { events } => beside_loud(run, &stage, phase, events, meter).await?,
    };
    // What the other costs is not for each of the live items.
    with_other.cpu = super::figures::Cpu::default();
    (with_other.commits, with_other.wal_bytes, with_other.table_bytes) = (None, None, None);
    with_other.promises.extend(compare(
        "p99 from publish to arrival",
        (alone.arrival_ms, with_other.arrival_ms),
        beside.times_at_most,
    ));
    Ok(with_faults(vec![alone, with_other], warm_up.faults))
}

fn compare(what: &str, pair: (Option<Latency>, Option<Latency>), at_most: f64) -> Option<Promise> {
    let (alone, beside) = (pair.0?.p99, pair.1?.p99);
    let what = format!("{what}, {alone:.2} ms alone and {beside:.2} ms beside it, as a factor");
    Some(Promise { what, measured: beside / alone, at_most })
}

#[derive(Clone, Copy)]
struct Hanging {
    endpoints: usize,
    waiting: usize,
    timeout_s: u32,
}

async fn beside_hanging(
    run: &Run<'_>,
    stage: &Stage<'_>,
    phase: Phase,
    hanging: Hanging,
    meter: &mut Meter,
) -> Result<Figures, Failure> {
    let address = run.site.service()?.address;
    let memory_before = meter.memory();
    let mut api = Api::connect(address, run.site.key()).await?;
    let url = |number| format!("http://{}/hang/{number}", run.receiver.address);
    let more = format!(r#","timeout_s":{}"#, hanging.timeout_s);
    api.endpoints(hanging.endpoints, url, OTHER_TYPE, &more).await?;
    let many = Many {
        address,
        key: run.site.key(),
        event_type: OTHER_TYPE,
        count: hanging.waiting,
        payload_bytes: SMALL_PAYLOAD_BYTES,
    };
    many.publish().await?;
    // Some fail meanwhile and wait for their next try; none ends.
    let all = hanging.endpoints * hanging.waiting;
    let waited = waiting_for(all, meter).await?;
    let began_with = run.receiver.hanging();
    let mut figures = phase::run(stage, phase, meter).await?;
    let megabytes = |bytes: Option<u64>| bytes.map_or(0.0, |bytes| bytes as f64 / 1e6);
    figures.notes.push(format!(
        "{all} deliveries to {} hanging endpoints waited, made {:.0} s after they were published; {began_with} requests hung \
         when it began and {} when it ended; memory of the service {:.0} MB before and {:.0} MB with them, {:.0} MB at most",
        hanging.endpoints,
        waited.as_secs_f64(),
        run.receiver.hanging(),
        megabytes(memory_before),
        megabytes(meter.memory()),
        megabytes(meter.peak_memory()),
    ));
    Ok(figures)
}

/// Waits until so many deliveries are there.
async fn waiting_for(count: usize, meter: &mut Meter) -> Result<Duration, Failure> {
    let began = Instant::now();
    while meter.waiting_deliveries().await? < count as i64 {
        if began.elapsed() > STAGE_PATIENCE {
            return Err(Failure { text: format!("there are no {count} deliveries in time"), code: 1 });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(began.elapsed())
}

async fn beside_loud(
    run: &Run<'_>,
    stage: &Stage<'_>,
    phase: Phase,
    events: usize,
    meter: &mut Meter,
) -> Result<Figures, Failure> {
    let address = run.site.service()?.address;
    let key = another_tenant(run.url).await?;
    // The service reads its keys once a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut api = Api::connect(address, key.expose()).await?;
    let url = |number| format!("http://{}/other/{number}", run.receiver.address);
    api.endpoints(1, url, OTHER_TYPE, "").await?;
    let many = Many {
        address,
        key: key.expose(),
        event_type: OTHER_TYPE,
        count: events,
        payload_bytes: run.settings.payload_bytes,
    };
    let (figures, published) = tokio::join!(phase::run(stage, phase, meter), many.publish());
    let (mut figures, published) = (figures?, published?);
    figures.notes.push(format!(
        "the other tenant's {events} events were published within {:.1} s of the {:.1} s; {} of them had arrived at the end",
        published.as_secs_f64(),
        phase.duration.as_secs_f64(),
        run.receiver.calls(),
    ));
    Ok(figures)
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
    let secrets = api.endpoints(1, url, LIVE_TYPE, &more).await?;
    run.receiver.reset(None);
    let count = (burst + per_s * (seconds + 10)) as usize;
    let payload_bytes = run.settings.payload_bytes;
    let before = meter.read().await?;
    Many { address, key: run.site.key(), event_type: LIVE_TYPE, count, payload_bytes }.publish().await?;
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
    while began.elapsed() < STAGE_PATIENCE {
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
