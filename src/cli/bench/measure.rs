//! One scenario: fresh database and service, a warm-up, then its phases.
//!
//! Called by `bench`. What a phase is stands in `phase`; scenarios of one load beside another in `beside`, those of a worker
//! in `lease`.

use std::time::Duration;

use super::api::Api;
use super::bare::{self, Client};
use super::beside;
use super::burden;
use super::figures::Figures;
use super::lease;
use super::load::{Pace, Plan};
use super::meter::Meter;
use super::phase::{self, Phase, Stage, WARM_UP, broken, cpu, empty};
use super::receiver::Receiver;
use super::requests::callback_data;
use super::scenario::{Item, LIVE_TYPE, Scenario, Work};
use super::site::Site;
use crate::cli::Failure;

/// Idle means that every thread has gone to sleep.
const IDLE_PAUSE: Duration = Duration::from_millis(10);
/// The share of the top rate at which latency is measured.
pub(super) const FIXED_SHARE: f64 = 0.5;
pub(super) const FULL_SPEED: Pace = Pace::Closed { pause: Duration::ZERO };

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) duration: Duration,
    /// Items a second, in place of a share of the top rate, which then is not measured.
    pub(super) rate: Option<f64>,
    /// What waits in a backlog, in place of the scenario's own number.
    pub(super) waiting: Option<usize>,
    /// Only the top rate.
    pub(super) top_only: bool,
    pub(super) callers: usize,
    pub(super) payload_bytes: usize,
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
        others_cores: after.others_cores(&before),
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
    let mut meter = Meter::of(site.service()?.pid, &url).await?;
    let run = Run { scenario, settings, receiver, site, url: &url };
    let rows = match scenario.work {
        Work::Bare(_) => Vec::new(),
        Work::Rate(item) => run.rate(item, &mut meter).await?,
        Work::Idle(item) => run.idle(item, &mut meter).await?,
        Work::Lease(leasing) => lease::run(&run, leasing, &mut meter).await?,
        Work::Beside(beside) => beside::run(&run, beside, &mut meter).await?,
        Work::Burdened(burdened) => burden::run(&run, burdened, &mut meter).await?,
        Work::RateLimit(limit) => beside::rate_limit(&run, limit, &mut meter).await?,
    };
    let version = meter.version.clone();
    drop(meter);
    site.stop().await?;
    Ok((rows, version))
}

/// A scenario that is being measured.
pub(super) struct Run<'a> {
    pub(super) scenario: Scenario,
    pub(super) settings: Settings,
    pub(super) receiver: &'a Receiver,
    pub(super) site: &'a Site,
    /// The database.
    pub(super) url: &'a str,
}

impl Run<'_> {
    /// Makes the endpoints that an item needs.
    pub(super) async fn stage(&self, item: Item) -> Result<Stage<'_>, Failure> {
        let Self { scenario, settings, receiver, site, .. } = *self;
        let address = site.service()?.address;
        let mut api = Api::connect(address, site.key()).await?;
        let secrets = match item {
            Item::StoredJob { .. } | Item::LeasedJob { .. } => Vec::new(),
            Item::CalledBackJob => vec![api.callback_secret().await?],
            Item::Event { endpoints } => {
                let url = |number| format!("http://{}/hook/{number}", receiver.address);
                let made = api.endpoints(endpoints, url, LIVE_TYPE, "").await?;
                made.into_iter().map(|endpoint| endpoint.secret).collect()
            }
        };
        let plan = Plan {
            address,
            request: item.request(site.key(), receiver.address, settings.payload_bytes),
            marks: item.marks(settings.payload_bytes),
            callers: item.callers(settings.callers),
            pace: FULL_SPEED,
            window: None,
            duration: settings.duration,
        };
        Ok(Stage { scenario, item, plan, receiver, secrets })
    }

    /// The top rate, and a share of it or the rate that was asked for.
    async fn rate(&self, item: Item, meter: &mut Meter) -> Result<Vec<Figures>, Failure> {
        let stage = self.stage(item).await?;
        let duration = self.settings.duration;
        let phase = |mode, pace, duration| Phase { mode, pace, duration };
        let mut rows = Vec::new();
        let warm_up = phase::run(&stage, phase("warm-up", FULL_SPEED, WARM_UP), meter).await?;
        let mut rate = self.settings.rate;
        if rate.is_none() {
            let top = phase::run(&stage, phase("top", FULL_SPEED, duration), meter).await?;
            rate = Some(top.rate_per_s * FIXED_SHARE);
            rows.push(top);
        }
        if let (Some(rate), false) = (rate, self.settings.top_only) {
            let pace = Pace::Open { per_s: (rate / item.per_request() as f64).max(0.1) };
            rows.push(phase::run(&stage, phase("fixed", pace, duration), meter).await?);
        }
        Ok(with_faults(rows, warm_up.faults))
    }

    async fn idle(&self, item: Item, meter: &mut Meter) -> Result<Vec<Figures>, Failure> {
        let mut stage = self.stage(item).await?;
        stage.plan.callers = 1;
        let pace = Pace::Closed { pause: IDLE_PAUSE };
        let warm_up = phase::run(&stage, Phase { mode: "warm-up", pace, duration: WARM_UP }, meter).await?;
        let duration = self.settings.duration;
        let idle = phase::run(&stage, Phase { mode: "idle", pace, duration }, meter).await?;
        Ok(with_faults(vec![idle], warm_up.faults))
    }
}

/// What went wrong while it warmed up counts as well.
pub(super) fn with_faults(mut rows: Vec<Figures>, faults: Vec<String>) -> Vec<Figures> {
    if let Some(first) = rows.first_mut() {
        first.faults.splice(0..0, faults);
    }
    rows
}
