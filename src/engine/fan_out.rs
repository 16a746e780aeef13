//! Stop 7 of a job's path: committed events get their positions in the log, and a delivery for each receiver. Next:
//! `engine::dispatch`.
//!
//! One transaction numbers a batch and creates its deliveries, so each event is fanned out exactly once, in the order
//! of the log, also across a crash. Today the receivers are callbacks.

use std::sync::Arc;
use std::time::Duration;

use super::{jittered, pause};
use crate::db::StoreError;
use crate::deliveries::{self, Due, NewDelivery};
use crate::events;
use crate::ids::DeliveryId;
use crate::shared::Shared;
use crate::supervisor::Stop;

const BATCH_MAX: i64 = 1000;
/// What is published from SQL rings no bell and waits at most this long.
const POLL: Duration = Duration::from_millis(250);

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    loop {
        let more = match fan_out(&shared).await {
            Ok((numbered, created)) => {
                if !created.is_empty() && !shared.hand_off.give(created) {
                    // The dispatcher is busy; it finds them in the database.
                    shared.wakeups.deliveries.notify_one();
                }
                numbered as i64 >= BATCH_MAX
            }
            Err(error) => {
                tracing::warn!(%error, "cannot fan events out");
                false
            }
        };
        if more && !stop.drain.is_cancelled() {
            continue;
        }
        if !pause(&stop, Some(&shared.wakeups.events), jittered(POLL)).await {
            return;
        }
    }
}

async fn fan_out(shared: &Shared) -> Result<(usize, Vec<Due>), StoreError> {
    if !events::store::is_any_waiting(&shared.db).await? {
        return Ok((0, Vec::new()));
    }
    let mut tx = shared.db.begin().await?;
    let numbered = events::store::number(&mut tx, BATCH_MAX).await?;
    let created: Vec<NewDelivery> = numbered
        .iter()
        .filter_map(|event| {
            let callback = event.callback?;
            Some(NewDelivery {
                tenant: event.tenant,
                id: DeliveryId::fresh(),
                event: event.event,
                event_type: event.event_type.clone(),
                job: callback.job,
                target: callback.target,
                order: None,
                position: event.position,
            })
        })
        .collect();
    if !created.is_empty() {
        deliveries::store::create(&mut tx, &created).await?;
    }
    tx.commit().await?;
    shared.event_bells.ring(numbered.iter().map(|event| event.tenant));
    let due = created.iter().map(NewDelivery::due);
    Ok((numbered.len(), due.collect()))
}
