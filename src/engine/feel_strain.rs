//! Measures whether single steps have to wait, while a loud tenant works beside a quiet one: how long the smallest commit
//! takes, compared with calm times. `courtesy` makes pauses of it.
//!
//! A commit, because it waits for the cores as well as for the log that others write; a mere question finds both idle
//! more often than the steps of an event do.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::db::Db;
use crate::shared::Shared;
use crate::supervisor::Stop;

/// While it matters.
const EVERY: Duration = Duration::from_millis(10);
/// Otherwise.
const SELDOM: Duration = Duration::from_secs(1);
/// It may take so many times as long as in calm times, and so much longer.
const TIMES: u32 = 2;
const MORE: Duration = Duration::from_micros(700);

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    // A connection of its own: to wait for one of the pool would be no measure of the database.
    let lone = shared.db.lone_connection();
    let mut calm = None;
    loop {
        let asked = shared.courtesy.is_asked_for();
        let every = if asked { EVERY } else { SELDOM };
        if tokio::time::timeout(every, stop.drain.cancelled()).await.is_ok() {
            return;
        }
        // Where nobody does anything the disk may rest.
        if calm.is_some() && !shared.courtesy.is_active() {
            continue;
        }
        let began = Instant::now();
        // Where the database does not answer, others say it louder.
        if let Err(error) = Db::commit_nothing(&lone).await {
            tracing::debug!(%error, "cannot measure how long a commit takes");
            continue;
        }
        let took = began.elapsed();
        let before = *calm.get_or_insert(took);
        if asked {
            let factor = shared.courtesy.learn(took > before * TIMES + MORE);
            tracing::trace!(
                factor,
                took_us = took.as_micros() as u64,
                calm_us = before.as_micros() as u64,
                "a loud tenant gives way"
            );
        } else {
            calm = Some(took.min(before.mul_f64(1.1)));
        }
    }
}
