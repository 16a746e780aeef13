//! The flushers: what was handed to a batcher goes to the database, many at a time.

use std::sync::Arc;

use crate::courtesy::Stream;
use crate::db::batch::Tenanted;
use crate::events;
use crate::jobs::lease_store::Then;
use crate::jobs::{finish as job_finish, store as job_store};
use crate::shared::Shared;
use crate::supervisor::Stop;

/// Stop 2 of a job's path: accepted jobs become rows, and the executors hear of them.
pub async fn accept(shared: Arc<Shared>, stop: Stop) {
    let flush = |batch: Arc<Vec<job_store::Accept>>| {
        let shared = shared.clone();
        async move {
            let answers = job_store::accept(shared.db.pool(), &batch).await?;
            shared.courtesy.note(batch.iter().map(Tenanted::tenant).map(Stream::Live));
            let wakeups = &shared.wakeups;
            wakeups.jobs.notify_one();
            if batch.iter().any(|item| item.job.is_held()) {
                wakeups.held.notify_one();
            }
            let now = crate::clock::now();
            if batch.iter().any(|item| item.job.run_at > now) {
                wakeups.scheduled.notify_one();
            }
            Ok(answers)
        }
    };
    shared.accept.run(stop, false, flush).await;
}

/// Published events become rows, and the fan-out hears of them.
pub async fn publish(shared: Arc<Shared>, stop: Stop) {
    let flush = |batch: Arc<Vec<events::publish::Publish>>| {
        let shared = shared.clone();
        async move {
            let answers = events::publish::write(&shared.db, &batch).await?;
            shared.wakeups.events.notify_one();
            shared.courtesy.note_published(batch.iter().map(Tenanted::tenant));
            Ok(answers)
        }
    };
    shared.publish.run(stop, false, flush).await;
}

/// Stop 6: ends of tries and their events.
pub async fn finish(shared: Arc<Shared>, stop: Stop) {
    let flush = |batch: Arc<Vec<job_finish::Finish>>| {
        let (db, wakeups, waiters) = (shared.db.clone(), shared.wakeups.clone(), shared.waiters.clone());
        let limits = !shared.queue_limits.is_empty();
        async move {
            let ended = job_finish::write(db, batch.clone()).await?;
            wakeups.events.notify_one();
            if ended.called {
                wakeups.held.notify_one();
            }
            // An end makes room in its queue.
            if limits {
                wakeups.jobs.notify_one();
            }
            if batch.iter().any(|finish| matches!(finish.end.then, Then::Again(_))) {
                wakeups.scheduled.notify_one();
                wakeups.jobs.notify_one();
            }
            let mut over = batch.iter().filter(|finish| finish.event.is_some()).peekable();
            if over.peek().is_some() {
                wakeups.ended.notify_elsewhere();
            }
            for finish in over {
                waiters.wake(finish.end.tenant, finish.end.job);
            }
            Ok(ended.held)
        }
    };
    shared.finish.run(stop, true, flush).await;
}

/// Stop 9: tries of deliveries.
pub async fn record(shared: Arc<Shared>, stop: Stop) {
    let flush = |batch: Arc<Vec<crate::deliveries::store::Record>>| {
        let (db, owner) = (shared.db.clone(), shared.node_id());
        async move { crate::deliveries::store::record(&db, owner, &batch).await }
    };
    shared.record.run(stop, true, flush).await;
}
