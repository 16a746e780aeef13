//! Sends what is due in the lanes that this node owns. Between stop 7 and stop 8 of a job's path; next: `transmit`.
//!
//! Due deliveries come from the fan-out of this process or by `lookups`: a sweep through what became due, refills for
//! receivers with more in the database than in memory, the first deliveries of an order key. They wait in
//! `deliveries::scheduling`, which says whose turn it is, go off in batches (`flight`, one database call), and fly alone.
//!
//! Invariant: a delivery is on the wire at most once at a time. What a look-up read before a flight's record was
//! committed is thrown away (`landed_meanwhile`).

mod aboard;
mod flight;
mod health;
mod leave;
mod lookups;
mod rates;
mod sweeps;
pub mod transmit;
mod way;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use self::flight::{Boarded, Flight};
use self::health::HealthBook;
use self::lookups::Looked;
use self::rates::{Rate, Rates};
use self::sweeps::Sweeps;
use self::transmit::Landed;
use crate::courtesy::{Pause, Stream};
use crate::db::StoreError;
use crate::db::batch::{REST_MIN, rest_after};
use crate::deliveries::hand_off::Created;
use crate::deliveries::scheduling::{Landing, LandingAnswer, Moment, Policy, Schedule, TargetRef};
use crate::deliveries::store::Loaded;
use crate::deliveries::{Due, lane_of};
use crate::endpoints::{DeliveryOrder, Endpoint, EndpointStatus};
use crate::ids::{DeliveryId, EndpointId, TenantId, fresh_uuid};
use crate::shared::Shared;
use crate::supervisor::Stop;

/// Held in memory, about 250 bytes each.
const HELD_MAX: usize = 50_000;
/// Few enough that what comes meanwhile does not wait long for the loading of others.
const BATCH_MAX: usize = 64;
/// Batches that are being loaded at a time: while two are, the next one forms, so that a busy dispatcher asks the
/// database seldom and an idle one at once.
const LOADING_MAX: usize = 2;

const POLL: Duration = Duration::from_secs(1);
/// Loaded ahead for a receiver that answers well and soon, and has no rate limit.
const AHEAD: usize = 64;

/// Other nodes may tell of due deliveries fifty times a second each; sweeps follow each other at this distance.
const SWEEP_GAP: Duration = Duration::from_millis(25);

/// What a flight or a look-up tells the dispatcher.
enum News {
    /// A delivery is not in flight any more, and its row tells so.
    Landed { due: Due, flight: Uuid, endpoint: Option<EndpointId>, landed: Landed },
    /// A batch is loaded, but for those that were `missing`: they are not due here, or are again after this time.
    Loaded {
        flight: Uuid,
        took: Duration,
        loaded: Vec<Loaded>,
        missing: Vec<Due>,
        again_in: Option<Duration>,
    },
    /// The receiver answered, or was not called; what came of it is being recorded.
    Answered { due: Due, answer: (LandingAnswer, Duration) },
    /// A look-up is done.
    Looked(Result<Looked, StoreError>),
}

/// After a batch the next one forms for a while; where another tenant has something to send, for a shorter one.
#[derive(Debug, Clone, Copy)]
struct Rest {
    at_least: Instant,
    until: Instant,
}

struct Dispatcher {
    shared: Arc<Shared>,
    stop: Stop,
    began: Instant,
    schedule: Schedule,
    rates: Rates,
    health: HealthBook,
    health_at: Instant,
    /// The last change of an endpoint that the schedule knows of.
    endpoints_change: i64,
    news: mpsc::UnboundedSender<News>,
    tasks: JoinSet<()>,
    /// Flights with deliveries still in the air, and how many.
    flights: HashMap<Uuid, usize>,
    /// Flights that need not be remembered in the database any more.
    landed_flights: Vec<Uuid>,
    loading: usize,
    /// Loaded, and waiting for a place on the wire.
    aboard: HashMap<TargetRef, VecDeque<Boarded>>,
    ground_at: Instant,
    rest: Rest,
    /// The tenants of the last batch.
    last_tenants: HashSet<TenantId>,
    looking: bool,
    look_at: Instant,
    swept_at: Option<Instant>,
    lanes_at: Instant,
    full_sweep_at: Instant,
    sweeps: Sweeps,
    landed_meanwhile: HashSet<DeliveryId>,
    /// The lanes that are this node's.
    lanes: HashSet<i16>,
    /// When another node may have called a lane's receivers for the last time; without an entry: never.
    called_at: HashMap<i16, Instant>,
    /// Lanes that are given away as soon as nothing of them is in flight.
    leaving: HashSet<i16>,
    in_flight_of: HashMap<i16, usize>,
}

/// The loop.
pub async fn run(shared: Arc<Shared>, stop: Stop) {
    let (news, mut heard) = mpsc::unbounded_channel();
    let mut hand_off = shared.hand_off.take().await;
    let mut dispatcher = Dispatcher::new(shared.clone(), stop.clone(), news);
    loop {
        dispatcher.take_off();
        dispatcher.ground_late();
        dispatcher.look();
        let wake_at = dispatcher.wake_at();
        tokio::select! {
            () = stop.drain.cancelled() => break,
            Some(created) = hand_off.recv() => dispatcher.take_in(created),
            Some(news) = heard.recv() => dispatcher.hear(news),
            () = shared.wakeups.deliveries.notified() => dispatcher.look_soon(),
            () = shared.wakeups.lanes.notified() => dispatcher.look_at_once(),
            () = shared.wakeups.endpoints.notified() => dispatcher.read_endpoints(),
            () = tokio::time::sleep_until(wake_at) => {}
        }
        while let Ok(news) = heard.try_recv() {
            dispatcher.hear(news);
        }
        while let Ok(created) = hand_off.try_recv() {
            dispatcher.take_in(created);
        }
        while dispatcher.tasks.try_join_next().is_some() {}
        dispatcher.flush_health();
    }
    dispatcher.leave(&mut heard).await;
}

impl Dispatcher {
    fn new(shared: Arc<Shared>, stop: Stop, news: mpsc::UnboundedSender<News>) -> Self {
        let now = Instant::now();
        Self {
            schedule: Schedule::new(shared.config.dispatcher_concurrency, HELD_MAX),
            rates: Rates::default(),
            health: HealthBook::default(),
            health_at: now,
            endpoints_change: 0,
            shared,
            stop,
            began: now,
            news,
            tasks: JoinSet::new(),
            flights: HashMap::new(),
            landed_flights: Vec::new(),
            loading: 0,
            aboard: HashMap::new(),
            ground_at: now,
            rest: Rest { at_least: now, until: now },
            last_tenants: HashSet::new(),
            looking: false,
            look_at: now,
            swept_at: None,
            lanes_at: now,
            full_sweep_at: now,
            sweeps: Sweeps::default(),
            landed_meanwhile: HashSet::new(),
            lanes: HashSet::new(),
            called_at: HashMap::new(),
            leaving: HashSet::new(),
            in_flight_of: HashMap::new(),
        }
    }

    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    fn wake_at(&self) -> Instant {
        let timer = self.schedule.next_timer().map(|moment| self.began + moment);
        let look = (!self.looking).then_some(self.look_at);
        let ground = (!self.aboard.is_empty()).then_some(self.ground_at);
        let rest = [self.rest.at_least, self.rest.until].into_iter().find(|until| *until > Instant::now());
        let idle = Instant::now() + POLL;
        [timer, look, ground, rest].into_iter().flatten().min().unwrap_or(idle)
    }

    /// Sweeps at once, but not more often than a busy node of many can stand.
    fn look_soon(&mut self) {
        let now = Instant::now();
        let soon = self.swept_at.map_or(now, |swept| (swept + SWEEP_GAP).max(now));
        self.look_at = self.look_at.min(soon);
    }

    /// Sweeps at once, and looks at the lanes as well.
    fn look_at_once(&mut self) {
        self.look_at = Instant::now();
        self.lanes_at = self.look_at;
    }

    /// Takes in what the fan-out of this process made.
    fn take_in(&mut self, created: Created) {
        if created.gap {
            self.schedule.doubt();
        }
        let now = self.now();
        for due in created.due {
            if self.keeps(due.lane) {
                self.introduce(&due, now);
                // Whoever feeds a replay may be another process in the next moment.
                if due.replay {
                    self.schedule.offer_found(due, now);
                } else {
                    self.schedule.offer(due, now);
                }
            }
        }
    }

    /// Takes in what a sweep found.
    fn take_found(&mut self, found: impl Iterator<Item = Due>) {
        let now = self.now();
        for due in found {
            if self.keeps(due.lane) {
                self.introduce(&due, now);
                self.schedule.offer_found(due, now);
            }
        }
    }

    /// Is the lane this node's, and not soon to be another's?
    fn keeps(&self, lane: i16) -> bool {
        self.lanes.contains(&lane) && !self.leaving.contains(&lane)
    }

    /// Loads what may go, in batches.
    fn take_off(&mut self) {
        let now = self.now();
        while self.loading < LOADING_MAX {
            let (moment, rest) = (Instant::now(), self.rest);
            if moment < rest.until
                && (moment < rest.at_least || !self.schedule.has_others(&self.last_tenants))
            {
                return;
            }
            let batch: Vec<Due> = std::iter::from_fn(|| self.schedule.take(now, |at| self.rates.check(at)))
                .take(BATCH_MAX)
                .collect();
            if batch.is_empty() {
                return;
            }
            self.last_tenants = batch.iter().map(|due| due.tenant).collect();
            let rest = rest_after(batch.len(), BATCH_MAX);
            self.rest = Rest { at_least: moment + rest.min(REST_MIN), until: moment + rest };
            for due in &batch {
                *self.in_flight_of.entry(due.lane).or_default() += 1;
            }
            let id = fresh_uuid();
            self.flights.insert(id, batch.len());
            let landed = std::mem::take(&mut self.landed_flights);
            self.loading += 1;
            self.tasks.spawn(self.flight(id).load(batch, landed));
        }
    }

    fn flight(&self, id: Uuid) -> Flight {
        Flight { id, shared: self.shared.clone(), stop: self.stop.clone(), news: self.news.clone() }
    }

    /// Forgets what waits in lanes that are not kept; it is in the database.
    fn keep_lanes(&mut self, keep: impl Fn(TargetRef) -> bool) {
        self.ground(|at| !keep(at));
        let now = self.now();
        self.schedule.keep_lanes(keep, now);
    }

    fn left_lane(&mut self, lane: i16) {
        if let Some(count) = self.in_flight_of.get_mut(&lane) {
            *count = count.saturating_sub(1);
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Looked(result) => self.looked(result),
            News::Loaded { flight, took, loaded, missing, again_in } => {
                self.loading -= 1;
                self.give_way(&loaded, took);
                self.loaded(flight, loaded);
                let answer = LandingAnswer::NotCalled;
                for due in missing {
                    let landed = Landed::not_called(Landing { answer, again_in });
                    let at = (due.tenant, due.target);
                    // It counts as one that flew and came back at once.
                    self.schedule.fly_unasked(at);
                    self.schedule.answered(&due, (answer, Duration::ZERO), self.began.elapsed());
                    self.landed(due, flight, None, &landed);
                }
            }
            News::Answered { due, answer } => {
                let (at, now) = ((due.tenant, due.target), self.now());
                self.schedule.answered(&due, answer, now);
                if !matches!(answer.0, LandingAnswer::Well | LandingAnswer::NotCalled) {
                    self.ground(|other| other == at);
                }
                self.board(at);
            }
            News::Landed { due, flight, endpoint, landed } => self.landed(due, flight, endpoint, &landed),
        }
    }

    /// Pauses where a loud tenant's batches would keep a quiet one waiting.
    fn give_way(&mut self, loaded: &[Loaded], took: Duration) {
        let stream = |due: &Due| if due.replay { Stream::Replays } else { Stream::Live }(due.tenant);
        let streams = || loaded.iter().map(|loaded| stream(&loaded.due));
        self.shared.courtesy.note(streams());
        // Replays pause where they are made; here a pause of theirs would keep what is live of their tenant waiting.
        if let Some(Pause { stream: Stream::Live(tenant), time }) =
            self.shared.courtesy.pause_after(streams(), took)
        {
            let now = Instant::now();
            self.last_tenants = HashSet::from([tenant]);
            self.rest = Rest { at_least: now, until: self.rest.until.max(now + time) };
        }
    }

    fn landed(&mut self, due: Due, flight: Uuid, endpoint: Option<EndpointId>, landed: &Landed) {
        let (now, landing) = (self.now(), landed.landing);
        let waits_here = self.schedule.recorded(&due, landing, now);
        if let Some(endpoint) = endpoint {
            let open_until = self.schedule.open_until((due.tenant, due.target));
            let open_for = open_until.map(|moment| moment.saturating_sub(now));
            self.health.note(&due, endpoint, landed, open_for);
        }
        self.left_lane(due.lane);
        if self.looking {
            self.landed_meanwhile.insert(due.id);
        }
        if landing.answer == LandingAnswer::NotCalled && landing.again_in.is_some() {
            // It is due for longer than a sweep looks back.
            self.full_sweep_at = Instant::now();
        }
        // Most ordered ones wait in memory; any other is found when its time comes.
        if let (Some(wait), false) = (landing.again_in, waits_here) {
            self.look_at = self.look_at.min(Instant::now() + wait.max(lookups::GAP));
        }
        self.forget(flight);
    }

    fn forget(&mut self, flight: Uuid) {
        if let Some(left) = self.flights.get_mut(&flight) {
            *left -= 1;
            if *left == 0 {
                self.flights.remove(&flight);
                self.landed_flights.push(flight);
            }
        }
    }

    /// Tells the schedule what holds for a receiver that it does not know yet.
    fn introduce(&mut self, due: &Due, now: Moment) {
        let at = (due.tenant, due.target);
        if !self.schedule.knows(at)
            && let Some(endpoint) = self.shared.endpoints.get(due.tenant, EndpointId::from_uuid(due.target))
        {
            self.obey(&endpoint, now);
        }
    }

    /// Sets what holds for an endpoint.
    fn obey(&mut self, endpoint: &Endpoint, now: Moment) {
        let (at, settings) = ((endpoint.tenant, endpoint.id.uuid()), &endpoint.settings);
        let rate = settings
            .rate_limit
            .and_then(|rate| Some(Rate { per_s: rate.per_s, burst: std::num::NonZeroU32::new(rate.burst)? }));
        let quiet = self.called_at.get(&lane_of(at.0, at.1)).map(Instant::elapsed);
        self.rates.set(at, rate.filter(|_| !endpoint.deleted), quiet);
        let policy = Policy {
            ahead: if rate.is_some() { 0 } else { AHEAD },
            cap: if settings.ordering == DeliveryOrder::Strict { 1 } else { settings.max_in_flight as usize },
            paused: settings.status == EndpointStatus::Paused && !endpoint.deleted,
        };
        self.schedule.set_policy(at, policy, now);
    }

    /// Reads what changed of the endpoints, in a task; the bell rings again when there was something.
    fn read_endpoints(&mut self) {
        let now = self.now();
        for endpoint in self.shared.endpoints.changed_after(self.endpoints_change) {
            self.endpoints_change = endpoint.change;
            if self.schedule.knows((endpoint.tenant, endpoint.id.uuid())) {
                self.obey(&endpoint, now);
            }
        }
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            match shared.endpoints.refresh(&shared.db, &shared.sealer).await {
                Ok(true) => shared.wakeups.endpoints.notify_here(),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "cannot read the endpoints"),
            }
        });
    }

    /// Writes what was learned of endpoints, now and then, or at once when one is to be disabled.
    fn flush_health(&mut self) {
        let now = Instant::now();
        if now < self.health_at && !self.health.is_urgent() {
            return;
        }
        self.health_at = now + health::FLUSH_EVERY;
        if let Some(learned) = self.health.take() {
            self.tasks.spawn(learned.write(self.shared.clone()));
        }
    }
}
