//! Feeds replays: makes their deliveries page by page, never many more than are being sent, and ends what waits of those
//! that were cancelled. Next: `engine::dispatch`.
//!
//! A page is one transaction: the row's lock, the walk, the deliveries, the cursor. So a crash neither loses nor doubles
//! any, and a cancel waits for one page at most. The pace stands in the row (`next_at`), so it holds over restarts and
//! however many nodes take turns at feeding. Replays with something to do take turns as well, and rest as long as they
//! work, so that a walk over much that is not wanted takes half of one connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{jittered, pause};
use crate::courtesy::Stream;
use crate::db::{StoreError, Tx};
use crate::deliveries::end_store::EndReason;
use crate::deliveries::hand_off::Created;
use crate::deliveries::{replay_store, store as delivery_store};
use crate::endpoints::EndpointStatus;
use crate::replays::store::{self, Advance};
use crate::replays::walk::{self, Pace, Page, Walk};
use crate::replays::{Replay, ReplayStatus};
use crate::shared::Shared;
use crate::supervisor::Stop;

/// So many deliveries of a replay wait for their first try at most. Behind a receiver that does not answer, its replay
/// waits, too…
const WAITING_MAX: i64 = 1000;
/// … and one to several receivers has more room, or the dead one among them would soon stop it for all.
const WAITING_MAX_OF_ALL: i64 = 10_000;
const MAKE_MAX: usize = 200;
const LOOK: i64 = 200;
/// A page holds what is due in this time.
const BREATH: f64 = 0.1;
/// While enough of it waits.
const WHEN_FULL: Duration = Duration::from_millis(200);
/// While something of a cancelled one is on the wire.
const WHEN_FLYING: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_secs(1);
const POLL_MIN: Duration = Duration::from_millis(20);

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    loop {
        let wait = match round(&shared).await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::warn!(%error, "cannot feed replays");
                jittered(POLL)
            }
        };
        if wait.is_zero() && !stop.drain.is_cancelled() {
            continue;
        }
        if !pause(&stop, Some(&shared.wakeups.replays), wait).await {
            return;
        }
    }
}

/// A page of one replay, and a piece of a cancelled one. How long nothing more is to be done.
async fn round(shared: &Shared) -> Result<Duration, StoreError> {
    match store::next(&shared.db).await? {
        None => return Ok(jittered(POLL)),
        Some(next) if !next.is_zero() => return Ok(next.clamp(POLL_MIN, POLL)),
        Some(_) => {}
    }
    let ended = take_back(shared).await?;
    let fed = feed(shared).await?;
    // What is due and was not to be had is fed by another node.
    Ok(if ended || fed { Duration::ZERO } else { POLL_MIN })
}

async fn take_back(shared: &Shared) -> Result<bool, StoreError> {
    let mut tx = shared.db.begin().await?;
    let Some(replay) = store::take_ending(&mut tx).await? else { return Ok(false) };
    let taken = replay_store::take_back(&mut tx, replay, EndReason::REPLAY_CANCELLED).await?;
    let again_in = match (taken.left, taken.ended) {
        (false, _) => None,
        (true, 0) => Some(WHEN_FLYING),
        (true, _) => Some(Duration::ZERO),
    };
    store::taken_back(&mut tx, replay, taken.unsent, again_in).await?;
    tx.commit().await?;
    Ok(true)
}

async fn feed(shared: &Shared) -> Result<bool, StoreError> {
    let mut tx = shared.db.begin().await?;
    let Some(replay) = store::take_running(&mut tx).await? else { return Ok(false) };
    match feed_page(shared, &mut tx, &replay).await {
        Ok(page) => {
            tx.commit().await?;
            let due = page.map(|page| page.due(replay.tenant)).unwrap_or_default();
            // The dispatcher takes no replayed delivery for the next one of its key, so there is no gap to tell of.
            super::fan_out::hand_over(shared, Created { due, gap: false });
            Ok(true)
        }
        Err(StoreError::Bug(error)) => {
            // It would fail again and again, and keep the others from their turn.
            tracing::error!(replay.id = %replay.id, %error, "a replay cannot go on");
            drop(tx);
            let mut tx = shared.db.begin().await?;
            fail(&mut tx, &replay, "something went wrong on our side; the log has more").await?;
            tx.commit().await?;
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

async fn fail(tx: &mut Tx, replay: &Replay, why: &'static str) -> Result<(), StoreError> {
    let end = Some((ReplayStatus::Failed, Some(why)));
    store::advance(tx, replay, &Advance { end, ..stay(replay, Duration::ZERO) }).await
}

/// It goes on where it stands, after this time.
fn stay(replay: &Replay, wait: Duration) -> Advance {
    Advance { place: replay.place, walked: replay.walked, made: 0, wait, end: None }
}

/// Makes the next page of a replay that was taken. `None`: there was nothing to make.
async fn feed_page(shared: &Shared, tx: &mut Tx, replay: &Replay) -> Result<Option<Page>, StoreError> {
    let began = Instant::now();
    super::fan_out::refresh(shared).await?;
    if let Some(why) = obstacle(shared, replay) {
        fail(tx, replay, why).await?;
        return Ok(None);
    }
    let waiting_max = if replay.ask.endpoint.is_some() { WAITING_MAX } else { WAITING_MAX_OF_ALL };
    let waiting = replay_store::waiting(tx, replay.id, waiting_max).await?;
    if replay.walked || waiting >= waiting_max {
        let end = (replay.walked && waiting == 0).then_some((ReplayStatus::Completed, None));
        store::advance(tx, replay, &Advance { end, ..stay(replay, WHEN_FULL) }).await?;
        return Ok(None);
    }
    let room = usize::try_from(waiting_max - waiting).unwrap_or(1);
    let courtesy = &shared.courtesy;
    let make = at_once(replay.ask.per_s).min(room).min(courtesy.piece_max());
    let page = next_page(shared, tx, replay, make).await?;
    let stream = Stream::Replays(replay.tenant);
    courtesy.note(std::iter::repeat_n(stream, usize::try_from(page.count()).unwrap_or_default()));
    let took = began.elapsed();
    let rest = courtesy.pause_after(std::iter::once(stream), took).map_or(took, |pause| pause.time.max(took));
    let pace = Duration::from_secs_f64(page.count() as f64 / replay.ask.per_s);
    let advance = Advance {
        place: page.place,
        walked: page.done,
        made: page.count(),
        wait: pace.max(rest),
        end: (page.done && waiting + page.count() == 0).then_some((ReplayStatus::Completed, None)),
    };
    store::advance(tx, replay, &advance).await?;
    Ok(Some(page))
}

async fn next_page(shared: &Shared, tx: &mut Tx, replay: &Replay, make: usize) -> Result<Page, StoreError> {
    let walk = Walk { tenant: replay.tenant, replay: replay.id, ask: &replay.ask, book: &shared.endpoints };
    let mut page = walk::page(tx, &walk, replay.place, Pace { look: LOOK, make }).await?;
    if page.is_ordered() {
        page.move_behind(replay_store::fresh_positions(tx).await?);
    }
    replay_store::create_again(tx, (replay.tenant, replay.id), &page.again).await?;
    if !page.fresh.is_empty() {
        delivery_store::create(tx, &page.fresh).await?;
    }
    if !page.failed.is_empty() {
        delivery_store::create_failed(tx, &page.failed).await?;
    }
    Ok(page)
}

/// Why a replay to one endpoint cannot go on.
fn obstacle(shared: &Shared, replay: &Replay) -> Option<&'static str> {
    let id = replay.ask.endpoint?;
    match shared.endpoints.get(replay.tenant, id) {
        None => Some("the endpoint was deleted"),
        Some(endpoint) if endpoint.settings.status == EndpointStatus::Disabled => {
            Some("the endpoint was disabled")
        }
        Some(_) => None,
    }
}

/// So many are made at a time.
fn at_once(per_s: f64) -> usize {
    ((per_s * BREATH) as usize).clamp(1, MAKE_MAX)
}
