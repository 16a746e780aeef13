//! A replay of what failed, beside live events, and how soon it stops when it is cancelled.
//!
//! Called by `others`. The receiver of what is replayed is broken until so many deliveries have failed, and is mended then.
//!
//! Invariant: what the service says it replayed is what arrived.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::api::{Api, Kind, Many, text_in};
use super::figures::{Figures, Promise};
use super::measure::Run;
use super::meter::Meter;
use super::others::{LOOK_EVERY, OTHER_TYPE, SMALL_PAYLOAD_BYTES, STAGE_PATIENCE};
use super::phase::{self, Phase, Stage};
use super::receiver::GOOD_EVERY;
use crate::cli::Failure;

/// A cancelled replay has to stop within so many seconds.
const STOPS_WITHIN_S: f64 = 5.0;
/// It is watched for so long at most until nothing of it waits …
const WATCH: Duration = Duration::from_secs(20);
/// … and so long after that, for what might still be sent.
const STRAYS: Duration = Duration::from_secs(2);

/// Runs a phase beside a replay of so many failed deliveries, with so many a second at most.
pub(super) async fn beside(
    run: &Run<'_>,
    stage: &Stage<'_>,
    phase: Phase,
    (failed, per_s): (usize, u32),
    meter: &mut Meter,
) -> Result<Figures, Failure> {
    let (endpoint, took) = fail(run, failed, meter).await?;
    run.receiver.mend();
    let asked = Instant::now();
    let order = json!({
        "endpoint_id": endpoint, "status": "failed", "since": "2020-01-01T00:00:00Z", "per_s": per_s,
    });
    let replay = api(run).await?.post("/v1/admin/replays", &order.to_string(), 202).await?;
    let path = format!("/v1/admin/replays/{}", text_in(&replay, "id"));
    let answered = asked.elapsed();
    let began = Instant::now();
    let mut figures = phase::run(stage, phase, meter).await?;
    let (sent, lasted) = (run.receiver.broken().since, began.elapsed());
    figures.notes.push(format!(
        "{failed} deliveries had failed within {:.0} s; the replay was answered after {:.1} s, matched {}, and sent {:.0} a second in the \
         {:.0} s of the phase",
        took.as_secs_f64(),
        answered.as_secs_f64(),
        number_in(&replay, "matched"),
        sent as f64 / lasted.as_secs_f64(),
        lasted.as_secs_f64(),
    ));
    if text_in(&api(run).await?.get(&path).await?, "status") == "running" {
        figures.promises.push(cancel(run, &path, meter).await?);
    } else {
        figures.notes.push("the replay was over before it could be cancelled".to_owned());
    }
    let replayed = number_in(&api(run).await?.get(&path).await?, "replayed");
    let arrived = run.receiver.broken().since;
    if replayed != arrived as u64 {
        figures.faults.push(format!("{replayed} deliveries were replayed, and {arrived} arrived"));
    }
    Ok(figures)
}

/// A connection: the service closes one that has nothing to do for a few seconds.
async fn api(run: &Run<'_>) -> Result<Api, Failure> {
    Api::connect(run.site.service()?.address, run.site.key()).await
}

/// Makes so many deliveries fail. Returns the endpoint, and how long it took.
async fn fail(run: &Run<'_>, failed: usize, meter: &mut Meter) -> Result<(String, Duration), Failure> {
    run.receiver.break_again();
    let began = Instant::now();
    let url = |_| format!("http://{}/broken", run.receiver.address);
    let made = api(run).await?.endpoints(1, url, OTHER_TYPE, r#","retry":{"max_attempts":1}"#).await?;
    let endpoint = made.into_iter().next().map(|endpoint| endpoint.id).unwrap_or_default();
    let many = Many {
        address: run.site.service()?.address,
        key: run.site.key(),
        kind: Kind::Events(OTHER_TYPE),
        count: failed * GOOD_EVERY / (GOOD_EVERY - 1),
        payload_bytes: SMALL_PAYLOAD_BYTES,
    };
    many.send_all().await?;
    while run.receiver.broken().before < many.count || meter.waiting_deliveries().await? > 0 {
        if began.elapsed() > STAGE_PATIENCE {
            let before = run.receiver.broken().before;
            return Err(Failure {
                text: format!("only {before} of {} were tried in time", many.count),
                code: 1,
            });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok((endpoint, began.elapsed()))
}

/// Cancels, and tells when the last one was sent and none waited any more.
async fn cancel(run: &Run<'_>, path: &str, meter: &mut Meter) -> Result<Promise, Failure> {
    let asked = Instant::now();
    api(run).await?.post(&format!("{path}/cancel"), "", 200).await?;
    while meter.waiting_deliveries().await? > 0 && asked.elapsed() < WATCH {
        tokio::time::sleep(LOOK_EVERY / 10).await;
    }
    let none_waits = asked.elapsed();
    tokio::time::sleep(STRAYS).await;
    let last =
        run.receiver.broken().last.map_or(Duration::ZERO, |last| last.saturating_duration_since(asked));
    Ok(Promise {
        what: format!(
            "seconds from the cancel until nothing was sent ({:.2}) and nothing waited ({:.2}) any more",
            last.as_secs_f64(),
            none_waits.as_secs_f64()
        ),
        measured: last.max(none_waits).as_secs_f64(),
        at_most: STOPS_WITHIN_S,
    })
}

fn number_in(answer: &Value, name: &str) -> u64 {
    answer.get(name).and_then(Value::as_u64).unwrap_or_default()
}
