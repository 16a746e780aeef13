//! [pure] What a phase measured, as figures for people and machines.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::procs::Machine;

/// The longest latency that is told from longer ones.
const LATENCY_MAX_US: u64 = 600_000_000;

/// A whole run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) seconds: f64,
    pub(super) callers: usize,
    pub(super) payload_bytes: usize,
    /// How many runs each figure's row is the median of.
    pub(super) median_of: usize,
    pub(super) rows: Vec<Figures>,
}

/// One scenario in one mode.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figures {
    pub(super) scenario: &'static str,
    pub(super) about: &'static str,
    /// `top`: a closed loop, as fast as it goes. `fixed`: an open loop. `idle`: one at a time. `alone`, `beside`: an open
    /// loop without and with something else. `limited`: what a rate limit lets through.
    pub(super) mode: &'static str,
    /// Items (posts, jobs, jobs with their callbacks, deliveries) in all.
    pub(super) items: u64,
    pub(super) rate_per_s: f64,
    pub(super) offered_per_s: Option<f64>,
    pub(super) accept_ms: Option<Latency>,
    pub(super) arrival_ms: Option<Latency>,
    /// CPU seconds per 1,000 items.
    pub(super) cpu: Cpu,
    /// Service and PostgreSQL together, in costs of a bare signed POST.
    pub(super) times_bare: Option<f64>,
    /// Transactions that wrote, per 1,000 items.
    pub(super) commits: Option<f64>,
    pub(super) wal_bytes: Option<f64>,
    pub(super) table_bytes: Option<f64>,
    pub(super) peak_memory_bytes: Option<u64>,
    /// Cores that other processes than ours kept busy meanwhile: how far to trust the rest.
    pub(super) others_cores: Option<f64>,
    pub(super) signatures_verified: usize,
    /// What was promised, and what was measured.
    pub(super) promises: Vec<Promise>,
    /// What else is worth telling.
    pub(super) notes: Vec<String>,
    /// What must not be; empty in a good run.
    pub(super) faults: Vec<String>,
}

/// Something that is not to exceed a limit.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Promise {
    pub(super) what: String,
    pub(super) measured: f64,
    pub(super) at_most: f64,
}

impl Promise {
    /// Is it kept?
    pub(super) fn is_kept(&self) -> bool {
        self.measured <= self.at_most
    }
}

/// CPU seconds per 1,000 items.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Cpu {
    pub(super) service: Option<f64>,
    pub(super) postgres: Option<f64>,
    /// The bench itself: its callers, or in the bare loop the client.
    pub(super) load: Option<f64>,
    pub(super) receiver: Option<f64>,
}

impl Cpu {
    /// Service and PostgreSQL, as far as they are known.
    pub(super) fn both(&self) -> Option<f64> {
        Some(self.service? + self.postgres?)
    }
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Latency {
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    #[serde(rename = "p99.9")]
    pub(super) p999: f64,
    pub(super) max: f64,
}

impl Latency {
    /// `None` when there is nothing to tell.
    pub(super) fn of(all: impl IntoIterator<Item = Duration>) -> Option<Self> {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, LATENCY_MAX_US, 3).ok()?;
        all.into_iter().for_each(|one| histogram.saturating_record((one.as_micros() as u64).max(1)));
        let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        (!histogram.is_empty()).then(|| Self {
            p50: ms(0.5),
            p90: ms(0.9),
            p99: ms(0.99),
            p999: ms(0.999),
            max: histogram.max() as f64 / 1000.0,
        })
    }
}

/// Of several runs of the same, the one in the middle by what was promised of it, or else by what it cost.
pub(super) fn median(mut runs: Vec<Figures>) -> Option<Figures> {
    let cost = |figures: &Figures| {
        let promised = figures.promises.first().map(|promise| promise.measured);
        promised.or(figures.cpu.both()).or(figures.cpu.load).unwrap_or(0.0)
    };
    runs.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
    let faults: Vec<String> = runs.iter().flat_map(|figures| figures.faults.clone()).collect();
    let middle = runs.len().saturating_sub(1) / 2;
    // A fault counts, in whichever run it was.
    (!runs.is_empty()).then(|| Figures { faults, ..runs.swap_remove(middle) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_told_to_three_digits() {
        let latency = Latency::of((1..=1000).map(Duration::from_millis)).expect("some");
        assert!((latency.p50 - 500.0).abs() < 1.0 && (latency.p99 - 990.0).abs() < 1.0, "{latency:?}");
        assert!(latency.max >= 1000.0 && latency.p999 <= latency.max);
        assert!(Latency::of([]).is_none());
    }
}
