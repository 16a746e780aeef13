//! Replays: orders to send again what failed, what was sent, or what never was.
//!
//! Holds the noun. `new_replay` reads a request, `walk` goes through its window page by page and finds what is to be sent,
//! `count` walks ahead to tell how much that is, `store` is the only SQL on `replays`, `view` shows one. Called by
//! `http::replays` and `engine::feed_replays`. Knows no HTTP, no loop.
//!
//! A replay makes new deliveries with the events' own ids, so receivers see the same `webhook-id` and the same bytes, and
//! each has its full retries. To an endpoint with an order they go in the order of the first time, one of a key at a time;
//! what is live does not wait for them.
//!
//! Invariant: the cursor and what was made of the page before it are one commit, so nothing is made twice or forgotten,
//! and of one event and receiver a replay makes one delivery.

pub mod count;
pub mod new_replay;
pub mod store;
pub mod view;
pub mod walk;

use uuid::Uuid;

use crate::clock::Timestamp;
use crate::ids::{EndpointId, ReplayId, TenantId, floor_of};
use crate::topics::Pattern;

/// Which deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Those that failed, and did not come through since.
    Failed,
    /// All that have ended.
    All,
    /// Those that were never made or never sent: of events to endpoints that subscribe to them now.
    Missing,
}

impl What {
    /// All of them by name; also what stands in `replays.what`.
    pub const WORDS: [(&'static str, Self); 3] =
        [("failed", Self::Failed), ("all", Self::All), ("missing", Self::Missing)];

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(_, what)| *what == self).map_or("failed", |(word, _)| word)
    }
}

/// Where a replay stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayStatus {
    /// It is being fed, or some of it was not tried yet.
    Running,
    /// Everything was tried once at least. What failed has its further tries, like any other delivery.
    Completed,
    /// Someone stopped it.
    Cancelled,
    /// It cannot go on; `error` says why.
    Failed,
}

impl ReplayStatus {
    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }

    /// The number in `replays.status`.
    fn code(self) -> i16 {
        match self {
            Self::Running => 1,
            Self::Completed => 2,
            Self::Cancelled => 3,
            Self::Failed => 4,
        }
    }

    fn of_code(code: i16) -> Self {
        match code {
            1 => Self::Running,
            2 => Self::Completed,
            3 => Self::Cancelled,
            _ => Self::Failed,
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// To this endpoint; `None`: to whoever it concerns.
    pub endpoint: Option<EndpointId>,
    /// Of events of these types; `None`: of all.
    pub event_types: Option<Vec<Pattern>>,
    /// Which deliveries.
    pub what: What,
    /// Made at or after this time…
    pub since: Timestamp,
    /// … and before this.
    pub until: Timestamp,
    /// So many deliveries a second.
    pub per_s: f64,
}

impl Ask {
    /// Where a walk begins.
    pub fn start(&self) -> Place {
        Place { at: floor_of(self.since), endpoint: None }
    }
}

/// Where a walk stands: behind this delivery or event; with an endpoint, behind this endpoint of the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// A delivery or an event.
    pub at: Uuid,
    /// `None`: all endpoints are done.
    pub endpoint: Option<EndpointId>,
}

/// How many deliveries a replay will make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matched {
    /// So many…
    pub count: i64,
    /// … or more, if counting took too long.
    pub exact: bool,
}

/// A replay.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub id: ReplayId,
    /// What was asked for.
    pub ask: Ask,
    /// Where it stands.
    pub status: ReplayStatus,
    /// How many it will make.
    pub matched: Matched,
    /// How many it has made.
    pub replayed: i64,
    /// Where its walk stands…
    pub place: Place,
    /// … and whether that is the end.
    pub walked: bool,
    /// Why it cannot go on.
    pub error: Option<String>,
    /// When it went on last.
    pub updated_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

impl Replay {
    /// A new one.
    pub fn new(tenant: TenantId, ask: Ask, matched: Matched) -> Self {
        let (id, place) = (ReplayId::fresh(), ask.start());
        Self {
            tenant,
            id,
            ask,
            status: ReplayStatus::Running,
            matched,
            replayed: 0,
            place,
            walked: false,
            error: None,
            updated_at: id.created_at(),
            finished_at: None,
        }
    }
}
