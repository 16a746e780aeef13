//! Measures whether single steps have to wait, while a loud tenant works beside a quiet one: how long the smallest
//! question to the database takes, compared with calm times. `courtesy` makes pauses of it.

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
/// An answer may take so many times as long as in calm times, and so much longer.
const TIMES: u32 = 2;
const MORE: Duration = Duration::from_micros(700);

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    // A connection of its own: to wait for one of the pool would be no measure of the database.
    let lone = shared.db.lone_connection();
    let mut calm = Duration::from_millis(1);
    loop {
        let asked = shared.courtesy.is_asked_for();
        let every = if asked { EVERY } else { SELDOM };
        if tokio::time::timeout(every, stop.drain.cancelled()).await.is_ok() {
            return;
        }
        let began = Instant::now();
        // Where the database does not answer, others say so.
        if Db::ask(&lone).await.is_err() {
            continue;
        }
        let took = began.elapsed();
        if asked {
            let factor = shared.courtesy.learn(took > calm * TIMES + MORE);
            tracing::trace!(
                factor,
                took_us = took.as_micros() as u64,
                calm_us = calm.as_micros() as u64,
                "a loud tenant gives way"
            );
        } else {
            calm = took.min(calm.mul_f64(1.1));
        }
    }
}
