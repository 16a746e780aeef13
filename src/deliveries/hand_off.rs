//! From the fan-out to the dispatcher of the same process, without a detour through the database.
//!
//! Only a short cut: what does not fit in is found by the dispatcher's next sweep.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

use super::Due;

/// What was created together.
#[derive(Debug)]
pub struct Created {
    /// The deliveries, in the order of their positions.
    pub due: Vec<Due>,
    /// Since the batch before there may be others in the database with earlier positions: another process made them, or
    /// they did not fit in here.
    pub gap: bool,
}

/// A bounded channel of new deliveries whose two ends are kept in one place.
#[derive(Debug)]
pub struct HandOff {
    sender: mpsc::Sender<Created>,
    receiver: Arc<Mutex<mpsc::Receiver<Created>>>,
    lanes: AtomicU64,
}

impl HandOff {
    /// At most `batches_max` batches wait.
    pub fn new(batches_max: usize) -> Self {
        let (sender, receiver) = mpsc::channel(batches_max);
        Self { sender, receiver: Arc::new(Mutex::new(receiver)), lanes: AtomicU64::new(0) }
    }

    /// Hands a batch over. `false`: the dispatcher is busy or not here.
    pub fn give(&self, batch: Created) -> bool {
        self.sender.try_send(batch).is_ok()
    }

    /// The lanes that the dispatcher of this process owns, a bit for each.
    pub fn lanes(&self) -> u64 {
        self.lanes.load(Ordering::Relaxed)
    }

    /// Says which lanes the dispatcher owns.
    pub fn set_lanes(&self, lanes: impl Iterator<Item = i16>) {
        self.lanes.store(lanes.fold(0, |bits, lane| bits | bit(lane)), Ordering::Relaxed);
    }

    /// Which lanes of other processes a batch has something for, a bit for each.
    pub fn foreign_lanes(&self, batch: &[Due]) -> u64 {
        batch.iter().fold(0, |bits, due| bits | bit(due.lane)) & !self.lanes()
    }

    /// The receiving end; whoever holds it is the dispatcher.
    pub async fn take(&self) -> OwnedMutexGuard<mpsc::Receiver<Created>> {
        self.receiver.clone().lock_owned().await
    }
}

fn bit(lane: i16) -> u64 {
    // There are 64 lanes (`nodes::LANES`), numbered from 0.
    1u64.checked_shl(u32::from(lane.unsigned_abs())).unwrap_or(0)
}
