//! From the fan-out to the dispatcher of the same process, without a detour through the database.
//!
//! Only a short cut: what does not fit in is found by the dispatcher's next sweep.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

use super::Due;

/// A bounded channel of new deliveries whose two ends are kept in one place.
#[derive(Debug)]
pub struct HandOff {
    sender: mpsc::Sender<Vec<Due>>,
    receiver: Arc<Mutex<mpsc::Receiver<Vec<Due>>>>,
}

impl HandOff {
    /// At most `batches_max` batches wait.
    pub fn new(batches_max: usize) -> Self {
        let (sender, receiver) = mpsc::channel(batches_max);
        Self { sender, receiver: Arc::new(Mutex::new(receiver)) }
    }

    /// Hands a batch over. `false`: the dispatcher is busy or not here.
    pub fn give(&self, batch: Vec<Due>) -> bool {
        self.sender.try_send(batch).is_ok()
    }

    /// The receiving end; whoever holds it is the dispatcher.
    pub async fn take(&self) -> OwnedMutexGuard<mpsc::Receiver<Vec<Due>>> {
        self.receiver.clone().lock_owned().await
    }
}
