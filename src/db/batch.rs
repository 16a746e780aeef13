//! Group commit: what arrives while a flush is in flight goes with the next one.
//!
//! There is no timer: an idle batcher flushes a single item at once, a busy one fills its batches by itself. Each caller
//! is answered after the commit that holds its item. A batch whose data PostgreSQL refuses is repeated item by item, so
//! that only the guilty caller sees the error. Used by accept, finish, publish and the recording of attempts.
//!
//! Invariant: the flush is idempotent (its items carry their ids), so a batch whose commit may or may not have
//! happened is simply sent again.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;

use super::StoreError;
use crate::supervisor::Stop;

/// How long a flush is repeated while the database cannot be reached. Callers hear of it within 6 s.
const RETRY_FOR: Duration = Duration::from_millis(4500);
/// How long a caller waits for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(5500);

type Entry<T, R> = (T, oneshot::Sender<Result<R, StoreError>>);

/// Items in, results out, in batches.
#[derive(Debug)]
pub struct Batcher<T, R> {
    sender: mpsc::Sender<Entry<T, R>>,
    receiver: Arc<Mutex<mpsc::Receiver<Entry<T, R>>>>,
    batch_max: usize,
}

impl<T, R> Clone for Batcher<T, R> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), receiver: self.receiver.clone(), batch_max: self.batch_max }
    }
}

impl<T: Send + Sync + 'static, R: Send + 'static> Batcher<T, R> {
    /// At most `waiting_max` items wait (more callers queue up behind), at most `batch_max` go in one flush.
    pub fn new(waiting_max: usize, batch_max: usize) -> Self {
        let (sender, receiver) = mpsc::channel(waiting_max);
        Self { sender, receiver: Arc::new(Mutex::new(receiver)), batch_max }
    }

    /// Hands the item over and waits for the commit that holds it.
    /// # Errors
    /// What the flush said, or [`StoreError::Unavailable`] after 5.5 s: then the outcome is unknown.
    pub async fn submit(&self, item: T) -> Result<R, StoreError> {
        let timed_out = || StoreError::Unavailable(Arc::new(sqlx::Error::PoolTimedOut));
        let (answer, answered) = oneshot::channel();
        let both = async {
            self.sender.send((item, answer)).await.map_err(|_| timed_out())?;
            answered.await.map_err(|_| timed_out())?
        };
        tokio::time::timeout(ANSWER_TIMEOUT, both).await.map_err(|_| timed_out())?
    }

    /// Hands several items over and waits for the commits that hold them. One result each, in order, as [`Self::submit`]
    /// gives it.
    pub async fn submit_all(&self, items: Vec<T>) -> Vec<Result<R, StoreError>> {
        let timed_out = || StoreError::Unavailable(Arc::new(sqlx::Error::PoolTimedOut));
        let give_up = Instant::now() + ANSWER_TIMEOUT;
        let mut waiting = Vec::with_capacity(items.len());
        for item in items {
            let (answer, answered) = oneshot::channel();
            let sent = tokio::time::timeout_at(give_up, self.sender.send((item, answer))).await;
            waiting.push(matches!(sent, Ok(Ok(()))).then_some(answered));
        }
        let mut results = Vec::with_capacity(waiting.len());
        for answered in waiting {
            results.push(match answered {
                Some(answered) => match tokio::time::timeout_at(give_up, answered).await {
                    Ok(Ok(result)) => result,
                    _ => Err(timed_out()),
                },
                None => Err(timed_out()),
            });
        }
        results
    }

    /// Hands the item over and waits as long as it takes: for results that must not be lost while the database is away.
    /// # Errors
    /// [`StoreError::Bug`], or [`StoreError::Unavailable`] when the process is ending.
    pub async fn submit_patiently(&self, item: T) -> Result<R, StoreError>
    where
        T: Clone,
    {
        loop {
            let (answer, answered) = oneshot::channel();
            let closed = || StoreError::Unavailable(Arc::new(sqlx::Error::PoolClosed));
            self.sender.send((item.clone(), answer)).await.map_err(|_| closed())?;
            match answered.await.map_err(|_| closed())? {
                Err(StoreError::Unavailable(error)) => {
                    tracing::warn!(%error, "the database cannot be reached; a result waits for it");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                other => return other,
            }
        }
    }

    /// One flusher: a loop for the supervisor. Two of them keep a second commit in flight.
    pub async fn run<F, Fut>(&self, stop: Stop, flush: F)
    where
        F: Fn(Arc<Vec<T>>) -> Fut + Sync,
        Fut: Future<Output = Result<Vec<R>, StoreError>> + Send,
    {
        let mut entries = Vec::with_capacity(self.batch_max);
        loop {
            {
                let mut receiver = self.receiver.lock().await;
                tokio::select! {
                    biased;
                    taken = receiver.recv_many(&mut entries, self.batch_max) => if taken == 0 { return },
                    () = stop.drain.cancelled() => return,
                }
            }
            let (items, answers): (Vec<T>, Vec<_>) = entries.drain(..).unzip();
            flush_and_answer(Arc::new(items), answers, &flush).await;
        }
    }
}

async fn flush_and_answer<T, R, F, Fut>(
    items: Arc<Vec<T>>,
    answers: Vec<oneshot::Sender<Result<R, StoreError>>>,
    flush: &F,
) where
    F: Fn(Arc<Vec<T>>) -> Fut,
    Fut: Future<Output = Result<Vec<R>, StoreError>>,
{
    match flush_until(&items, flush).await {
        Ok(results) => {
            debug_assert_eq!(results.len(), answers.len(), "a flush answers each item");
            for (answer, result) in answers.into_iter().zip(results) {
                // A caller that went away does not want its answer any more.
                let _ = answer.send(Ok(result));
            }
        }
        Err(StoreError::Bug(error)) if answers.len() > 1 => {
            tracing::warn!(%error, items = answers.len(), "a batch was refused; its items are tried one by one");
            let items = Arc::try_unwrap(items).unwrap_or_default();
            for (item, answer) in items.into_iter().zip(answers) {
                let one = Arc::new(vec![item]);
                let result = flush_until(&one, flush).await.and_then(|mut results| {
                    results.pop().ok_or_else(|| StoreError::Bug(Arc::new(sqlx::Error::RowNotFound)))
                });
                let _ = answer.send(result);
            }
        }
        Err(error) => {
            for answer in answers {
                let _ = answer.send(Err(error.clone()));
            }
        }
    }
}

/// Repeats a flush while the database is not there, for a while.
async fn flush_until<T, R, F, Fut>(items: &Arc<Vec<T>>, flush: &F) -> Result<Vec<R>, StoreError>
where
    F: Fn(Arc<Vec<T>>) -> Fut,
    Fut: Future<Output = Result<Vec<R>, StoreError>>,
{
    let give_up = Instant::now() + RETRY_FOR;
    loop {
        let result = tokio::time::timeout_at(give_up, flush(items.clone()))
            .await
            .unwrap_or_else(|_| Err(StoreError::Unavailable(Arc::new(sqlx::Error::PoolTimedOut))));
        match result {
            Err(StoreError::Unavailable(_)) if Instant::now() < give_up => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            other => return other,
        }
    }
}
