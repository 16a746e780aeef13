//! Sends what is due in the lanes that this node owns. Between stop 7 and stop 8 of a job's path; next: `transmit`.
//!
//! Due deliveries come from the fan-out of this process, or by a sweep through the database: at the start, when a retry
//! is due, once a second as the net. They wait in `deliveries::scheduling`, which says whose turn it is, go off in
//! batches (one database call), and fly alone.
//!
//! Invariant: a delivery is on the wire at most once at a time. What a sweep read before a flight's record was
//! committed is thrown away (`landed_meanwhile`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::{jittered, transmit};
use crate::db::StoreError;
use crate::deliveries::Due;
use crate::deliveries::scheduling::Schedule;
use crate::deliveries::store::{self, DueCursor};
use crate::ids::{DeliveryId, fresh_uuid};
use crate::nodes;
use crate::shared::Shared;
use crate::supervisor::Stop;

/// On the wire to one receiver at a time.
const IN_FLIGHT_MAX: usize = 32;
/// Held in memory, about 150 bytes each.
const HELD_MAX: usize = 20_000;
const BATCH_MAX: usize = 256;
const SWEEP_PAGE: i64 = 2000;
const POLL: Duration = Duration::from_secs(1);
/// Retries that are due in one breath are found by one sweep.
const SWEEP_GAP: Duration = Duration::from_millis(5);

/// What a flight or a sweep tells the dispatcher.
enum News {
    /// A delivery is not in flight any more; its next try is due after this time.
    Landed { due: Due, flight: Uuid, again_in: Option<Duration> },
    /// A batch could not take off; its deliveries are in the database.
    Grounded { batch: Vec<Due>, flight: Uuid },
    /// A page of due deliveries.
    Swept(Result<Sweep, StoreError>),
}

struct Sweep {
    page: Vec<(Due, DueCursor)>,
    next_due: Option<Duration>,
}

struct Dispatcher {
    shared: Arc<Shared>,
    stop: Stop,
    schedule: Schedule,
    news: mpsc::UnboundedSender<News>,
    tasks: JoinSet<()>,
    in_flight: usize,
    flights: HashMap<Uuid, usize>,
    landed_flights: Vec<Uuid>,
    sweeping: bool,
    sweep_at: Instant,
    cursor: Option<DueCursor>,
    landed_meanwhile: HashSet<DeliveryId>,
    lanes_at: Instant,
}

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    let (news, mut heard) = mpsc::unbounded_channel();
    let mut hand_off = shared.hand_off.take().await;
    let mut dispatcher = Dispatcher {
        schedule: Schedule::new(IN_FLIGHT_MAX, HELD_MAX),
        news,
        tasks: JoinSet::new(),
        in_flight: 0,
        flights: HashMap::new(),
        landed_flights: Vec::new(),
        sweeping: false,
        sweep_at: Instant::now(),
        cursor: None,
        landed_meanwhile: HashSet::new(),
        lanes_at: Instant::now(),
        shared: shared.clone(),
        stop: stop.clone(),
    };
    loop {
        dispatcher.take_off();
        dispatcher.sweep();
        tokio::select! {
            () = stop.drain.cancelled() => break,
            Some(created) = hand_off.recv() => dispatcher.offer_all(created),
            Some(news) = heard.recv() => dispatcher.hear(news),
            () = shared.wakeups.deliveries.notified() => { dispatcher.sweep_at = Instant::now(); dispatcher.lanes_at = Instant::now(); }
            () = tokio::time::sleep_until(dispatcher.sweep_at), if !dispatcher.sweeping => {}
        }
        while let Ok(news) = heard.try_recv() {
            dispatcher.hear(news);
        }
        while dispatcher.tasks.try_join_next().is_some() {}
    }
    while dispatcher.tasks.join_next().await.is_some() {}
    if let Err(error) = nodes::store::release_lanes(&shared.db, &shared.node).await {
        tracing::warn!(%error, "cannot give the lanes back; the other nodes will take them");
    }
}

impl Dispatcher {
    fn offer_all(&mut self, created: Vec<Due>) {
        for due in created {
            // What has no room is in the database; `wants_more` says when to look for it.
            self.schedule.offer(due);
        }
    }

    /// Starts as many as there are free places, in batches.
    fn take_off(&mut self) {
        let mut free = self.shared.config.dispatcher_concurrency.saturating_sub(self.in_flight);
        while free > 0 {
            let batch: Vec<Due> =
                std::iter::from_fn(|| self.schedule.take()).take(free.min(BATCH_MAX)).collect();
            if batch.is_empty() {
                return;
            }
            free -= batch.len();
            self.in_flight += batch.len();
            let id = fresh_uuid();
            self.flights.insert(id, batch.len());
            let landed = std::mem::take(&mut self.landed_flights);
            let flight =
                Flight { id, shared: self.shared.clone(), stop: self.stop.clone(), news: self.news.clone() };
            self.tasks.spawn(flight.fly(batch, landed));
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Landed { due, flight, again_in } => {
                self.land(due, flight);
                if let Some(wait) = again_in {
                    self.sweep_at = self.sweep_at.min(Instant::now() + wait.max(SWEEP_GAP));
                }
            }
            News::Grounded { batch, flight } => {
                for due in batch {
                    self.land(due, flight);
                }
                self.sweep_at = self.sweep_at.min(Instant::now() + Duration::from_millis(500));
            }
            News::Swept(result) => self.swept(result),
        }
        if !self.sweeping && self.schedule.wants_more() {
            self.sweep_at = Instant::now();
        }
    }

    fn land(&mut self, due: Due, flight: Uuid) {
        self.in_flight -= 1;
        self.schedule.finished(&due);
        if self.sweeping {
            self.landed_meanwhile.insert(due.id);
        }
        if let Some(left) = self.flights.get_mut(&flight) {
            *left -= 1;
            if *left == 0 {
                self.flights.remove(&flight);
                self.landed_flights.push(flight);
            }
        }
    }

    /// Starts a sweep, if it is time for one and none is under way.
    fn sweep(&mut self) {
        let now = Instant::now();
        if self.sweeping || now < self.sweep_at {
            return;
        }
        self.sweeping = true;
        self.landed_meanwhile.clear();
        let lanes = now >= self.lanes_at;
        if lanes {
            self.lanes_at = now + POLL;
        }
        let (shared, news, cursor) = (self.shared.clone(), self.news.clone(), self.cursor);
        self.tasks.spawn(async move {
            let result = look(&shared, lanes, cursor).await;
            // The dispatcher is gone only when the process is ending.
            let _ = news.send(News::Swept(result));
        });
    }

    fn swept(&mut self, result: Result<Sweep, StoreError>) {
        self.sweeping = false;
        let sweep = match result {
            Ok(sweep) => sweep,
            Err(error) => {
                tracing::warn!(%error, "cannot look for due deliveries");
                self.cursor = None;
                self.sweep_at = Instant::now() + jittered(POLL);
                return;
            }
        };
        let whole_page = sweep.page.len() as i64 == SWEEP_PAGE;
        for (due, cursor) in sweep.page {
            if self.landed_meanwhile.contains(&due.id) {
                continue;
            }
            // One receiver without room does not keep those behind it from being offered.
            self.schedule.offer(due);
            self.cursor = Some(cursor);
        }
        self.landed_meanwhile.clear();
        if whole_page && self.schedule.has_room() {
            self.sweep_at = Instant::now();
            return;
        }
        if whole_page {
            self.schedule.note_more();
        }
        self.cursor = None;
        let poll = jittered(POLL);
        self.sweep_at = Instant::now() + sweep.next_due.map_or(poll, |next| next.clamp(SWEEP_GAP, poll));
    }
}

/// One page of due deliveries; now and then it also looks for lanes without an owner, and for what was lost with one.
async fn look(shared: &Shared, lanes: bool, cursor: Option<DueCursor>) -> Result<Sweep, StoreError> {
    if lanes {
        let taken = nodes::store::take_lanes(&shared.db, &shared.node).await?;
        if taken > 0 {
            tracing::info!(lanes = taken, "{taken} lanes are this node's now");
        }
        let lost = nodes::store::lost_flights(&shared.db).await?;
        if !lost.is_empty() {
            tracing::warn!(
                deliveries = lost.len(),
                "{} deliveries were on the wire when their node died; they are sent again",
                lost.len()
            );
            let records: Vec<_> = lost.into_iter().map(transmit::crashed).collect();
            store::record(&shared.db, shared.node_id(), &records).await?;
        }
    }
    let page = store::due(&shared.db, shared.node_id(), cursor, SWEEP_PAGE).await?;
    let next_due = store::next_due(&shared.db, shared.node_id()).await?;
    Ok(Sweep { page, next_due })
}

/// A batch on its way.
struct Flight {
    id: Uuid,
    shared: Arc<Shared>,
    stop: Stop,
    news: mpsc::UnboundedSender<News>,
}

impl Flight {
    /// Loads the batch and sends each of it. `landed`: former flights that need not be remembered any more.
    async fn fly(self, batch: Vec<Due>, landed: Vec<Uuid>) {
        let Self { id: flight, shared, stop, news } = self;
        let loaded = match store::take_off(&shared.db, shared.node_id(), flight, &batch, &landed).await {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::warn!(%error, "cannot load deliveries; they are tried again");
                // The dispatcher is gone only when the process is ending.
                let _ = news.send(News::Grounded { batch, flight });
                return;
            }
        };
        // What is not there any more was ended elsewhere, or its lane is another node's.
        let there: HashSet<DeliveryId> = loaded.iter().map(|loaded| loaded.due.id).collect();
        for due in batch.iter().filter(|due| !there.contains(&due.id)) {
            let _ = news.send(News::Landed { due: *due, flight, again_in: None });
        }
        let mut flying = JoinSet::new();
        for one in loaded {
            let (shared, stop, news) = (shared.clone(), stop.clone(), news.clone());
            flying.spawn(async move {
                let due = one.due;
                let again_in = transmit::transmit(&shared, &stop, one).await;
                let _ = news.send(News::Landed { due, flight, again_in });
            });
        }
        while flying.join_next().await.is_some() {}
    }
}
