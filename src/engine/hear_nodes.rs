//! Hears what other nodes and the SQL functions tell, and rings the bells of this process.
//!
//! One connection of its own that listens; when it is lost, another one is opened, and all bells are rung, because
//! something may have been missed. At each opening it says hello: the others learn that there is somebody to tell, and
//! the echo proves that messages come through. At its end it says that the others have to do all the work. Behind a pooler in transaction mode they do not: that is logged, and this
//! process goes by polling alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::jittered;
use crate::db::StoreError;
use crate::nodes::call_store::{self, Ear};
use crate::shared::Shared;
use crate::supervisor::Stop;
use crate::wakeups::{Calls, Word};

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// So long the echo of the own greeting may take.
const ECHO_MAX: Duration = Duration::from_secs(5);

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    listen(&shared, &stop).await;
    shared.wakeups.leave();
}

async fn listen(shared: &Shared, stop: &Stop) {
    let mut wait = RETRY_FIRST;
    loop {
        let began = Instant::now();
        match hear(shared, stop).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, "cannot listen to other nodes; polling goes on"),
        }
        if began.elapsed() > RETRY_MAX {
            wait = RETRY_FIRST;
        }
        tokio::select! {
            () = stop.drain.cancelled() => return,
            () = tokio::time::sleep(jittered(wait)) => {}
        }
        wait = (wait * 2).min(RETRY_MAX);
    }
}

/// Hears until it is time to stop, or until the connection is gone.
async fn hear(shared: &Shared, stop: &Stop) -> Result<(), StoreError> {
    let mut ear = Ear::open(&shared.db).await?;
    shared.wakeups.all_here();
    shared.event_bells.ring_all();
    let hello = Calls { words: [Word::Hello].into(), ..Calls::default() };
    call_store::tell(&shared.db, &hello.to_text(shared.node_id())).await?;
    let echo_by = Instant::now() + ECHO_MAX;
    let mut echo = false;
    let ended = loop {
        tokio::select! {
            () = stop.drain.cancelled() => break Ok(()),
            heard = ear.next() => match heard {
                Ok(message) => echo = take_in(shared, &message) || echo,
                Err(error) => break Err(error),
            },
            () = tokio::time::sleep_until(echo_by), if !echo => {
                echo = true;
                tracing::warn!(
                    "LISTEN brings no messages, as behind a pooler in transaction mode; work that other processes or SQL \
                     make is found by polling alone, within a second"
                );
            }
        }
    };
    ear.close().await;
    ended
}

/// Rings by what was told. `true`: it is from this process.
fn take_in(shared: &Shared, message: &str) -> bool {
    let (sender, calls) = Calls::parse(message);
    if sender == Some(shared.node_id()) {
        return true;
    }
    if sender.is_some() {
        shared.wakeups.elsewhere.set_company(true);
    }
    shared.wakeups.hear(&calls, shared.hand_off.lanes());
    if calls.words.contains(&Word::Log) {
        match calls.tenants {
            Some(tenants) => {
                shared.event_bells.ring(tenants.into_iter().map(crate::ids::TenantId::from_uuid));
            }
            None => shared.event_bells.ring_all(),
        }
    }
    false
}
