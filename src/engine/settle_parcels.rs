//! Settles what became of hand-outs to workers: what was not delivered is given back at once, what was gets the length of lease
//! that its worker asked for.
//!
//! Ends after all requests are answered, so that those whose client vanished at the last moment are settled too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::shared::Shared;
use crate::supervisor::Stop;
use crate::workers::parcel::Receipt;
use crate::workers::store::{self, Held};

const BATCH_MAX: usize = 256;

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    let Some(mut receipts) = shared.receipts.take() else { return };
    let mut batch = Vec::with_capacity(BATCH_MAX);
    loop {
        tokio::select! {
            biased;
            taken = receipts.recv_many(&mut batch, BATCH_MAX) => if taken == 0 { break },
            () = stop.drain.cancelled() => break,
        }
        settle(&shared, std::mem::take(&mut batch)).await;
    }
    shared.receipts.put_back(receipts);
}

/// One statement for each tenant and length.
async fn settle(shared: &Shared, batch: Vec<Receipt>) {
    let mut together: HashMap<_, Vec<_>> = HashMap::new();
    for Receipt { tenant, leases, delivered } in batch {
        together.entry((tenant, delivered)).or_default().extend(leases);
    }
    for ((tenant, delivered), leases) in together {
        settle_one(shared, &Held { tenant, kinds: None, leases }, delivered).await;
    }
}

async fn settle_one(shared: &Shared, held: &Held, delivered: Option<Duration>) {
    let count = held.leases.len();
    if let Some(lease) = delivered {
        if let Err(error) = store::lengthen(&shared.db, held, lease).await {
            tracing::warn!(%error, "{count} leases stay shorter than their worker asked for");
        }
        return;
    }
    match store::release(&shared.db, held).await {
        Ok(back) => {
            tracing::info!(
                jobs = back.len(),
                "a worker vanished before it was answered: {} jobs are given back",
                back.len()
            );
            shared.wakeups.jobs.notify_one();
        }
        Err(error) => {
            tracing::warn!(%error, "{count} jobs of a worker that vanished cannot be given back; their leases will expire");
        }
    }
}
