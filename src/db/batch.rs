//! Group commit: what arrives while a flush is in flight goes with the next one.
//!
//! There is no timer: an idle batcher flushes a single item at once, a busy one fills its batches by itself. Each caller
//! is answered after the commit that holds its item. Tenants take turns, so a batch of a few hundred holds an item of each
//! that has one waiting. A batch whose data PostgreSQL refuses is repeated item by item, so
//! that only the guilty caller sees the error. Used by accept, finish, publish and the recording of attempts.
//!
//! Invariant: the flush is idempotent (its items carry their ids), so a batch whose commit may or may not have
//! happened is simply sent again.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::StoreError;
use super::turns::Turns;
use crate::ids::TenantId;
use crate::supervisor::Stop;

/// How long a flush is repeated while the database cannot be reached. Callers hear of it within 6 s.
const RETRY_FOR: Duration = Duration::from_millis(4500);
/// How long a caller waits for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(5500);

/// A rest lasts so long for each item of the batch, …
const REST_EACH: Duration = Duration::from_micros(200);
/// … but so long at most, …
const REST_MAX: Duration = Duration::from_millis(4);
/// … and no longer than this when another tenant brings something.
pub const REST_MIN: Duration = Duration::from_millis(1);

type Answer<R> = oneshot::Sender<Result<R, StoreError>>;

/// An item of somebody's.
pub trait Tenanted {
    /// Whose it is.
    fn tenant(&self) -> TenantId;
}

/// Items in, results out, in batches.
#[derive(Debug)]
pub struct Batcher<T, R> {
    line: Arc<Line<T, R>>,
    batch_max: usize,
}

#[derive(Debug)]
struct Line<T, R> {
    waiting: Mutex<Turns<(T, Answer<R>)>>,
    bell: Notify,
    /// The tenants of the last batch, where flushers rest; …
    last: Mutex<HashSet<TenantId>>,
    /// … one that is none of them is not kept waiting for long for their sake.
    urgent: Notify,
}

impl<T, R> Line<T, R> {
    fn remember(&self, tenants: impl Iterator<Item = TenantId>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = tenants.collect();
    }

    fn is_new(&self, tenant: TenantId) -> bool {
        !self.last.lock().unwrap_or_else(PoisonError::into_inner).contains(&tenant)
    }
}

/// How long the next batch may form after one of so many, where nobody waits for it: the busier, the longer, so that a
/// commit is shared by many. A full one needs no more time.
pub fn rest_after(count: usize, batch_max: usize) -> Duration {
    if count >= batch_max {
        Duration::ZERO
    } else {
        REST_MAX.min(REST_EACH * u32::try_from(count).unwrap_or(u32::MAX))
    }
}

impl<T, R> Clone for Batcher<T, R> {
    fn clone(&self) -> Self {
        Self { line: self.line.clone(), batch_max: self.batch_max }
    }
}

impl<T: Tenanted + Send + Sync + 'static, R: Send + 'static> Batcher<T, R> {
    /// At most `batch_max` items go in one flush. How many wait is bounded by their callers, each of whom has one.
    pub fn new(batch_max: usize) -> Self {
        let line = Line {
            waiting: Mutex::new(Turns::default()),
            bell: Notify::new(),
            last: Mutex::default(),
            urgent: Notify::new(),
        };
        Self { line: Arc::new(line), batch_max }
    }

    /// Puts an item in line; its answer comes with the commit that holds it.
    fn hand_over(&self, item: T) -> oneshot::Receiver<Result<R, StoreError>> {
        let (answer, answered) = oneshot::channel();
        let tenant = item.tenant();
        self.lock().push(tenant, (item, answer));
        self.line.bell.notify_one();
        if self.line.is_new(tenant) {
            self.line.urgent.notify_one();
        }
        answered
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Turns<(T, Answer<R>)>> {
        self.line.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next batch, by turns over tenants; empty: nothing waits.
    fn take(&self) -> (Vec<T>, Vec<Answer<R>>) {
        let mut waiting = self.lock();
        // Who gave up has been told that nothing is known, and tries again. While the database is away nothing piles up.
        let batch = std::iter::from_fn(|| waiting.pop())
            .map(|(_, entry)| entry)
            .filter(|(_, answer)| !answer.is_closed())
            .take(self.batch_max)
            .unzip();
        if !waiting.is_empty() {
            // For the other flusher.
            self.line.bell.notify_one();
        }
        batch
    }

    /// Hands the item over and waits for the commit that holds it.
    /// # Errors
    /// What the flush said, or [`StoreError::Unavailable`] after 5.5 s: then the outcome is unknown.
    pub async fn submit(&self, item: T) -> Result<R, StoreError> {
        let timed_out = || StoreError::Unavailable(Arc::new(sqlx::Error::PoolTimedOut));
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, self.hand_over(item)).await;
        answered.map_err(|_| timed_out())?.map_err(|_| timed_out())?
    }

    /// Hands several items over and waits for the commits that hold them. One result each, in order, as [`Self::submit`]
    /// gives it.
    pub async fn submit_all(&self, items: Vec<T>) -> Vec<Result<R, StoreError>> {
        let timed_out = || StoreError::Unavailable(Arc::new(sqlx::Error::PoolTimedOut));
        let give_up = Instant::now() + ANSWER_TIMEOUT;
        let waiting: Vec<_> = items.into_iter().map(|item| self.hand_over(item)).collect();
        let mut results = Vec::with_capacity(waiting.len());
        for answered in waiting {
            results.push(match tokio::time::timeout_at(give_up, answered).await {
                Ok(Ok(result)) => result,
                _ => Err(timed_out()),
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
            let closed = || StoreError::Unavailable(Arc::new(sqlx::Error::PoolClosed));
            match self.hand_over(item.clone()).await.map_err(|_| closed())? {
                Err(StoreError::Unavailable(error)) => {
                    tracing::warn!(%error, "the database cannot be reached; a result waits for it");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                other => return other,
            }
        }
    }

    /// One flusher: a loop for the supervisor. Two of them keep a second commit in flight; one that `rests` after a flush,
    /// while the next batch forms, spends a commit on more items, and nobody may be waiting for these.
    pub async fn run<F, Fut>(&self, stop: Stop, rests: bool, flush: F)
    where
        F: Fn(Arc<Vec<T>>) -> Fut + Sync,
        Fut: Future<Output = Result<Vec<R>, StoreError>> + Send,
    {
        loop {
            let (items, answers) = self.take();
            if !items.is_empty() {
                let rest = rest_after(items.len(), self.batch_max);
                if rests {
                    self.line.remember(items.iter().map(Tenanted::tenant));
                }
                flush_and_answer(Arc::new(items), answers, &flush).await;
                if rests {
                    tokio::time::sleep(rest.min(REST_MIN)).await;
                    tokio::select! {
                        () = tokio::time::sleep(rest.saturating_sub(REST_MIN)) => {}
                        () = self.line.urgent.notified() => {}
                        () = stop.drain.cancelled() => {}
                    }
                }
                continue;
            }
            tokio::select! {
                biased;
                () = self.line.bell.notified() => {}
                () = stop.drain.cancelled() => return,
            }
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
