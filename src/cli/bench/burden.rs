//! The top rate without and with a burden: what it may not cost is the rate.
//!
//! Called by `measure`. Both are measured on the same site, the burden comes between them.

use super::figures::{Figures, Promise};
use super::measure::{FULL_SPEED, Run, with_faults};
use super::meter::{Meter, refused};
use super::others::{Hanging, beside_hanging};
use super::phase::{self, Phase, WARM_UP};
use super::scenario::{Burden, Burdened};
use super::stats_store::Snapshot;
use crate::cli::Failure;

/// Measures the top rate alone and with the burden.
pub(super) async fn run(
    run: &Run<'_>,
    burdened: Burdened,
    meter: &mut Meter,
) -> Result<Vec<Figures>, Failure> {
    let Burdened { item, burden, times_at_most } = burdened;
    let stage = run.stage(item).await?;
    let duration = run.settings.duration;
    let phase = |mode, duration| Phase { mode, pace: FULL_SPEED, duration };
    let warm_up = phase::run(&stage, phase("warm-up", WARM_UP), meter).await?;
    let alone = phase::run(&stage, phase("alone", duration), meter).await?;
    let phase = phase("beside", duration);
    let mut with_burden = match burden {
        Burden::Backlog { endpoints, waiting, timeout_s } => {
            let waiting = run.settings.waiting.unwrap_or(waiting).div_ceil(endpoints);
            beside_hanging(run, &stage, phase, Hanging { endpoints, waiting, timeout_s }, meter).await?
        }
        Burden::HeldSnapshot => {
            let snapshot = Snapshot::take(run.url).await.map_err(refused)?;
            let mut figures = phase::run(&stage, phase, meter).await?;
            let age = snapshot.release().await.map_err(refused)?;
            figures.notes.push(format!("the snapshot was {age} transactions old when it was given back"));
            figures
        }
    };
    let (without, with) = (alone.rate_per_s, with_burden.rate_per_s);
    with_burden.promises.push(Promise {
        what: format!("rate, {without:.0}/s without and {with:.0}/s with it, as a factor"),
        measured: if with > 0.0 { without / with } else { f64::MAX },
        at_most: times_at_most,
    });
    Ok(with_faults(vec![alone, with_burden], warm_up.faults))
}
