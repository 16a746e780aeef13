//! Starts, watches, restarts and drains every background task.
//!
//! Called by `app`. A loop that panics or returns early is started again; one that does so five times within a minute
//! stops the process, because a service that limps in silence is worse than one that is restarted.
//! Stopping goes in two stages: first what takes new work (HTTP, claims, lanes) drains within the grace, then what
//! carries results to the database (batches, heartbeats) ends.
//!
//! Invariant: no task of this process runs without an owner; none outlives `run_until`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const RESTARTS_MAX: usize = 5;
const RESTARTS_WITHIN: Duration = Duration::from_mins(1);
/// What is still in flight when the grace is over is given this long to be handed back.
const HAND_BACK: Duration = Duration::from_secs(5);

/// When a loop is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Takes new work: stops first and drains.
    Work,
    /// Carries results to the database: stops when all work is drained.
    Base,
}

/// How the process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It was asked to stop, and everything drained.
    Stopped,
    /// A loop died again and again.
    GaveUp(&'static str),
}

type BoxedLoop = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The signals that a loop is handed.
#[derive(Debug, Clone)]
pub struct Stop {
    /// Take no new work; drain.
    pub drain: CancellationToken,
    /// The grace is over: hand back what is left, at once.
    pub hurry: CancellationToken,
}

/// Runs short pieces of work (a request's database call) on the main runtime, where no handler, `select!` or timeout
/// can drop them halfway: a transaction that was begun is always ended.
#[derive(Debug, Clone)]
pub struct Tasks {
    handle: Handle,
    tracker: TaskTracker,
}

/// The piece of work panicked, or the runtime is shutting down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work was not finished")]
pub struct TaskLost;

impl Tasks {
    /// Runs the future to its end, whatever becomes of the caller.
    /// # Errors
    /// [`TaskLost`] when it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, TaskLost> {
        let task = self.tracker.spawn_on(work, &self.handle);
        task.await.map_err(|error| {
            tracing::error!(%error, "a task was lost");
            TaskLost
        })
    }

    /// Runs what computes for milliseconds on a thread where nobody else waits behind it.
    /// # Errors
    /// [`TaskLost`] when it panicked.
    pub async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, TaskLost> {
        self.tracker.spawn_blocking_on(work, &self.handle).await.map_err(|error| {
            tracing::error!(%error, "a computation was lost");
            TaskLost
        })
    }

    /// Starts the future and lets go of it; it is still waited for at the end.
    pub fn start(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn_on(work, &self.handle);
    }
}

/// The owner of all tasks.
#[derive(Debug)]
pub struct Supervisor {
    work: JoinSet<()>,
    base: JoinSet<()>,
    work_stop: Stop,
    base_stop: Stop,
    tasks: Tasks,
    gave_up: (
        tokio::sync::mpsc::UnboundedSender<&'static str>,
        tokio::sync::mpsc::UnboundedReceiver<&'static str>,
    ),
}

impl Supervisor {
    /// On the current tokio runtime.
    pub fn new() -> Self {
        let stop = || Stop { drain: CancellationToken::new(), hurry: CancellationToken::new() };
        Self {
            work: JoinSet::new(),
            base: JoinSet::new(),
            work_stop: stop(),
            base_stop: stop(),
            tasks: Tasks { handle: Handle::current(), tracker: TaskTracker::new() },
            gave_up: tokio::sync::mpsc::unbounded_channel(),
        }
    }

    /// For short pieces of work.
    pub fn tasks(&self) -> Tasks {
        self.tasks.clone()
    }

    /// The signals of the work stage, for code that drains without being a loop (the HTTP server).
    pub fn work_stop(&self) -> Stop {
        self.work_stop.clone()
    }

    /// Starts a loop by name. `body` is called again after a panic.
    pub fn spawn<F, Fut>(&mut self, stage: Stage, name: &'static str, body: F)
    where
        F: Fn(Stop) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let body: Arc<dyn Fn(Stop) -> BoxedLoop + Send + Sync> = Arc::new(move |stop| Box::pin(body(stop)));
        let gave_up = self.gave_up.0.clone();
        let (set, stop) = match stage {
            Stage::Work => (&mut self.work, self.work_stop.clone()),
            Stage::Base => (&mut self.base, self.base_stop.clone()),
        };
        set.spawn(async move {
            if !watch(name, &body, &stop).await {
                // The receiver is gone only when the process is ending anyway.
                let _ = gave_up.send(name);
            }
        });
    }

    /// Runs until the signal comes or a loop gives up, then drains within `grace`.
    pub async fn run_until(mut self, signal: impl Future<Output = ()>, grace: Duration) -> Ending {
        let ending = tokio::select! {
            () = signal => Ending::Stopped,
            name = self.gave_up.1.recv() => Ending::GaveUp(name.unwrap_or("unknown")),
        };
        tracing::info!(grace_s = grace.as_secs_f64(), "stopping: no new work is taken");
        self.work_stop.drain.cancel();
        if !joined(&mut self.work, grace).await {
            tracing::warn!("the grace is over: what is in flight is handed back");
            self.work_stop.hurry.cancel();
            if !joined(&mut self.work, HAND_BACK).await {
                tracing::error!("some work could not be handed back; its leases will expire");
                self.work.shutdown().await;
            }
        }
        tracing::debug!("all work is drained");
        self.tasks.tracker.close();
        if tokio::time::timeout(HAND_BACK, self.tasks.tracker.wait()).await.is_err() {
            tracing::error!("some requests were not finished");
        }
        tracing::debug!("all requests are answered");
        self.base_stop.drain.cancel();
        if !joined(&mut self.base, HAND_BACK).await {
            self.base_stop.hurry.cancel();
            self.base.shutdown().await;
        }
        tracing::debug!("all results are written");
        ending
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

async fn joined(set: &mut JoinSet<()>, within: Duration) -> bool {
    tokio::time::timeout(within, async { while set.join_next().await.is_some() {} }).await.is_ok()
}

/// Runs a loop until it is told to stop; `false` when it died too often.
async fn watch(name: &'static str, body: &Arc<dyn Fn(Stop) -> BoxedLoop + Send + Sync>, stop: &Stop) -> bool {
    let mut deaths: Vec<Instant> = Vec::new();
    loop {
        let mut one = JoinSet::new();
        one.spawn(body(stop.clone()));
        let result = one.join_next().await;
        if stop.drain.is_cancelled() {
            return true;
        }
        if let Some(Err(error)) = result {
            tracing::error!(task = name, %error, "task {name} died; it is started again");
        } else {
            tracing::error!(task = name, "task {name} ended early; it is started again");
        }
        let now = Instant::now();
        deaths.retain(|at| now.duration_since(*at) < RESTARTS_WITHIN);
        deaths.push(now);
        if deaths.len() > RESTARTS_MAX {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
