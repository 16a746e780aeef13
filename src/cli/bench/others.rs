//! What goes on beside live events or jobs, and must not disturb them.
//!
//! Called by `beside`. Each sets its stage first, and then runs the phase of the live ones; a replay stands in `replay`.

use std::time::{Duration, Instant};

use super::api::{Api, Kind, Many, another_tenant};
use super::figures::Figures;
use super::measure::Run;
use super::meter::Meter;
use super::phase::{self, Phase, Stage};
use super::replay;
use super::scenario::{Hands, Other};
use super::worker::{Terms, Worker};
use crate::cli::Failure;

/// The topic of what goes on beside.
pub(super) const OTHER_TYPE: &str = "other.order";
/// What waits needs no payload to speak of.
pub(super) const SMALL_PAYLOAD_BYTES: usize = 64;
/// Setting the stage may take so long.
pub(super) const STAGE_PATIENCE: Duration = Duration::from_mins(30);
/// How often it is looked whether all deliveries were made.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Runs a phase beside the other.
pub(super) async fn run(
    run: &Run<'_>,
    stage: &Stage<'_>,
    phase: Phase,
    other: Other,
    meter: &mut Meter,
) -> Result<Figures, Failure> {
    let scaled = |waiting| run.settings.waiting.unwrap_or(waiting);
    match other {
        Other::Hung { endpoints, waiting, timeout_s } => {
            let hanging = Hanging { endpoints, waiting, timeout_s };
            beside_hanging(run, stage, phase, hanging, meter).await
        }
        Other::Backlog { waiting, timeout_s } => {
            let hanging = Hanging { endpoints: 1, waiting: scaled(waiting), timeout_s };
            beside_hanging(run, stage, phase, hanging, meter).await
        }
        Other::LoudTenant { events } => beside_loud(run, stage, phase, events, meter).await,
        Other::Replay { failed, per_s } => {
            replay::beside(run, stage, phase, (scaled(failed), per_s), meter).await
        }
        Other::WaitingJobs { waiting, hands } => {
            beside_jobs(run, stage, phase, (scaled(waiting), hands), meter).await
        }
    }
}

/// Endpoints that hang, with so many deliveries waiting for each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hanging {
    pub(super) endpoints: usize,
    pub(super) waiting: usize,
    pub(super) timeout_s: u32,
}

/// Runs a phase while deliveries wait for endpoints that hang.
pub(super) async fn beside_hanging(
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
        kind: Kind::Events(OTHER_TYPE),
        count: hanging.waiting,
        payload_bytes: SMALL_PAYLOAD_BYTES,
    };
    many.send_all().await?;
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
    loop {
        let asked = Instant::now();
        if meter.waiting_deliveries().await? >= count as i64 {
            return Ok(began.elapsed());
        }
        if began.elapsed() > STAGE_PATIENCE {
            return Err(Failure { text: format!("there are no {count} deliveries in time"), code: 1 });
        }
        // To count millions is work; most of the time is to be left for what is counted.
        tokio::time::sleep(LOOK_EVERY.max(asked.elapsed() * 5)).await;
    }
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
    let mut api = Api::connect(address, key.expose()).await?;
    let url = |number| format!("http://{}/other/{number}", run.receiver.address);
    api.endpoints(1, url, OTHER_TYPE, "").await?;
    let many = Many {
        address,
        key: key.expose(),
        kind: Kind::Events(OTHER_TYPE),
        count: events,
        payload_bytes: run.settings.payload_bytes,
    };
    let (figures, published) = tokio::join!(phase::run(stage, phase, meter), many.send_all());
    let (mut figures, published) = (figures?, published?);
    figures.notes.push(format!(
        "the other tenant's {events} events were published within {:.1} s of the {:.1} s; {} of them had arrived at the end",
        published.as_secs_f64(),
        phase.duration.as_secs_f64(),
        run.receiver.calls(),
    ));
    Ok(figures)
}

/// Another tenant's jobs wait for the same worker, which takes them all the time.
async fn beside_jobs(
    run: &Run<'_>,
    stage: &Stage<'_>,
    phase: Phase,
    (waiting, hands): (usize, Hands),
    meter: &mut Meter,
) -> Result<Figures, Failure> {
    let address = run.site.service()?.address;
    let key = another_tenant(run.url).await?;
    let payload_bytes = SMALL_PAYLOAD_BYTES;
    let many = Many { address, key: key.expose(), kind: Kind::Jobs, count: waiting, payload_bytes };
    let submitted = many.send_all().await?;
    let waiting = meter.waiting_jobs().await?;
    let worker = Worker::start(Terms {
        address,
        key: key.expose().to_owned(),
        hands,
        payload_bytes,
        // Only live jobs are matched with what was submitted.
        notes: None,
    })?;
    let began = Instant::now();
    let mut figures = phase::run(stage, phase, meter).await?;
    let per_s = worker.finished() as f64 / began.elapsed().as_secs_f64();
    let tally = worker.stop().await?;
    let left = meter.waiting_jobs().await?;
    figures.notes.push(format!(
        "{waiting} jobs of another tenant, submitted within {:.0} s, waited when it began and {left} when it ended; the worker \
         finished {per_s:.0} of them a second, with {} connections, {} jobs at a time on each and {} ms of work on those",
        submitted.as_secs_f64(),
        hands.connections,
        hands.max,
        hands.work.as_millis(),
    ));
    if left == 0 {
        figures.faults.push("the other tenant's jobs were all taken before the end".to_owned());
    }
    if tally.refused > 0 {
        figures.faults.push(format!("{} reports on the other tenant's jobs were refused", tally.refused));
    }
    Ok(figures)
}
