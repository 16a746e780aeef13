//! The loops: what runs without being asked. Each one looks at the database, calls one room, and stores what came of it.
//!
//! | loop | role | woken by | at the latest |
//! |---|---|---|---|
//! | `heartbeat` | all | cancel | 1 s |
//! | `feel_strain` | all | – | 1 s; 10 ms while a loud tenant works beside a quiet one |
//! | `tell_nodes` | all | bells for other nodes | – |
//! | `hear_nodes` | all | other nodes, SQL | – |
//! | `reap_nodes` | all | – | 1 s |
//! | `run_jobs` | executor | accept, promote, expire, SQL | 1 s |
//! | `lend_jobs` | api | workers that ask, accept, promote, expire, SQL | 1 s, if someone waits |
//! | `settle_parcels` | api | hand-outs | – |
//! | `expire_leases` | scheduler | reap | 0.5 s |
//! | `place_held` | scheduler | accept, finish, cancel, SQL | 1 s |
//! | `promote_due` | scheduler | accept, retry, SQL | the next due time, 1 s |
//! | `fire_schedules` | scheduler | changes of schedules | the next due time, 1 s |
//! | `fan_out` | dispatcher | finish, publish, SQL | 1 s; 0.1 s for a second after there was something |
//! | `feed_replays` | dispatcher | replays made or cancelled | the next page's time, 1 s |
//! | `dispatch` | dispatcher | fan-out, replays, outcomes | the next due time, 1 s |
//! | `wake_waiters` | api | ends in other nodes | 1 s, if someone waits |
//! | `refresh_keys` | api | – | 1 s |
//! | `maintain` | scheduler | – | 10 min |
//!
//! Most bells ring in other nodes as well (`wakeups`). Called by `app`, which hands them to the supervisor. Knows no HTTP.

pub mod batches;
pub mod dispatch;
pub mod expire_leases;
pub mod fan_out;
pub mod feed_replays;
pub mod feel_strain;
pub mod fire_schedules;
pub mod hear_nodes;
pub mod heartbeat;
pub mod lend_jobs;
pub mod maintain;
pub mod place_held;
pub mod promote_due;
pub mod reap_nodes;
pub mod refresh_keys;
pub mod run_jobs;
pub mod settle_parcels;
pub mod tell_nodes;
pub mod wake_waiters;

use std::sync::Arc;
use std::time::Duration;

use crate::shared::Shared;
use crate::supervisor::{Stage, Stop, Supervisor};
use crate::wakeups::Bell;

/// Starts all loops of this process's roles.
pub fn start(supervisor: &mut Supervisor, shared: &Arc<Shared>) {
    macro_rules! start {
        ($stage:ident, $name:ident) => {
            start!($stage, stringify!($name), $name::run)
        };
        ($stage:ident, $name:expr, $body:path) => {{
            let shared = shared.clone();
            supervisor.spawn(Stage::$stage, $name, move |stop| $body(shared.clone(), stop));
        }};
    }
    let roles = shared.config.roles;
    start!(Base, heartbeat);
    start!(Base, tell_nodes);
    start!(Work, feel_strain);
    // Two flushers where somebody waits: while one batch's commit is in flight, the next one forms and goes.
    for _ in 0..2 {
        start!(Base, "accept", batches::accept);
        start!(Base, "publish", batches::publish);
    }
    start!(Base, "finish", batches::finish);
    start!(Base, "record", batches::record);
    start!(Work, hear_nodes);
    start!(Work, reap_nodes);
    if roles.api {
        start!(Work, refresh_keys);
        start!(Work, wake_waiters);
        start!(Work, lend_jobs);
        start!(Base, settle_parcels);
    }
    if roles.executor {
        start!(Work, run_jobs);
    }
    if roles.scheduler {
        start!(Work, expire_leases);
        start!(Work, promote_due);
        start!(Work, fire_schedules);
        start!(Work, place_held);
        start!(Work, maintain);
    }
    if roles.dispatcher {
        start!(Work, fan_out);
        start!(Work, feed_replays);
        start!(Work, dispatch);
    }
}

/// Waits for the bell or for the time, whichever comes first. `false`: it is time to stop.
async fn pause(stop: &Stop, bell: Option<&Bell>, at_most: Duration) -> bool {
    let rung = async {
        match bell {
            Some(bell) => bell.notified().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop.drain.cancelled() => false,
        () = rung => true,
        () = tokio::time::sleep(at_most) => true,
    }
}

/// A wait of about this long: processes that started together must not ask together for ever.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.85..=1.15))
}
