//! The scenarios as data: what is sent, what counts as one item, in which modes it is measured.
//!
//! What is sent for them stands in `requests`. A new scenario is a row of [`SCENARIOS`], and a kind of work if it is of a new kind.

use std::time::Duration;

use super::bare::Client;
use super::marks::Marks;

/// One scenario.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scenario {
    /// As on the command line.
    pub(super) name: &'static str,
    /// For people.
    pub(super) about: &'static str,
    /// Takes long to set up, so it is measured only when it is named.
    pub(super) is_long: bool,
    /// What is done.
    pub(super) work: Work,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Work {
    /// The yardstick.
    Bare(Client),
    /// Items as fast as it goes, then at a fixed rate.
    Rate(Item),
    /// One at a time with a pause between.
    Idle(Item),
    /// Live events or jobs at a fixed rate, alone and then beside something else.
    Beside(Beside),
    /// Jobs that a worker of the bench's own takes and ends.
    Lease(Leasing),
    /// The top rate, without and then with a burden.
    Burdened(Burdened),
    /// One endpoint gets more than it wants.
    RateLimit(Limit),
}

/// What is sent, and what it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Item {
    /// Jobs that nobody runs, so many with each request.
    StoredJob { batch: usize },
    /// Jobs that a worker of the bench's own takes and ends, so many with each request.
    LeasedJob { batch: usize },
    /// An `http` job to the receiver, with a callback to it.
    CalledBackJob,
    /// An event to so many endpoints.
    Event { endpoints: usize },
}

/// Jobs that go through the hands of a worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Leasing {
    /// Jobs with each request that submits some.
    pub(super) batch: usize,
    /// Who takes them.
    pub(super) hands: Hands,
    /// Waiting before the worker begins, for each second of a phase.
    pub(super) waiting_per_s: usize,
}

/// How the bench's worker works.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Hands {
    /// Connections. On each it takes jobs, works, reports on them, and takes the next ones.
    pub(super) connections: usize,
    /// Jobs at a time on each.
    pub(super) max: usize,
    /// How long it works on what it took.
    pub(super) work: Duration,
}

/// Live events or jobs, and what else goes on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Beside {
    /// What is live.
    pub(super) item: Item,
    /// Requests with it a second.
    pub(super) per_s: f64,
    /// Who takes the live jobs.
    pub(super) hands: Option<Hands>,
    /// What must not disturb them.
    pub(super) other: Other,
    /// Their p99 from publish to arrival, or from submit to hand-out, may grow by this factor.
    pub(super) times_at_most: f64,
}

/// What must not disturb others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Other {
    /// Endpoints that hang until their timeout, each with events waiting.
    Hung { endpoints: usize, waiting: usize, timeout_s: u32 },
    /// Another tenant that publishes so many at once.
    LoudTenant { events: usize },
    /// A hanging endpoint with very many events waiting.
    Backlog { waiting: usize, timeout_s: u32 },
    /// Another tenant with very many jobs waiting, and who takes them all the time.
    WaitingJobs { waiting: usize, hands: Hands },
    /// A replay of failed deliveries to a receiver that was broken, at this pace at most.
    Replay { failed: usize, per_s: u32 },
}

/// A top rate, and what may not lower it by much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Burdened {
    /// What is measured.
    pub(super) item: Item,
    /// What may not lower its rate by much.
    pub(super) burden: Burden,
    /// Without the burden the rate may be higher by this factor.
    pub(super) times_at_most: f64,
}

/// What may not lower a rate by much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Burden {
    /// So many deliveries wait in all, for endpoints that hang until their timeout.
    Backlog { endpoints: usize, waiting: usize, timeout_s: u32 },
    /// A transaction elsewhere in the database holds a snapshot all the while.
    HeldSnapshot,
}

/// A rate limit, and with how much it is put to the test.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Limit {
    /// A second, on average.
    pub(super) per_s: u32,
    /// At once.
    pub(super) burst: u32,
    /// For how long arrivals are counted.
    pub(super) seconds: u32,
}

/// All there are, in the order in which they run.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "bare",
        about: "a signed POST by the dispatcher's client to the receiver, nothing else",
        is_long: false,
        work: Work::Bare(Client::Guarded),
    },
    Scenario {
        name: "bare-reqwest",
        about: "the same by plain reqwest",
        is_long: false,
        work: Work::Bare(Client::Plain),
    },
    Scenario {
        name: "accept-only",
        about: "POST /v1/jobs, one job each, run by nobody",
        is_long: false,
        work: Work::Rate(Item::StoredJob { batch: 1 }),
    },
    Scenario {
        name: "accept-batch",
        about: "POST /v1/jobs/batch, 100 jobs each, run by nobody",
        is_long: false,
        work: Work::Rate(Item::StoredJob { batch: 100 }),
    },
    Scenario {
        name: "jobs-lease",
        about: "POST /v1/jobs/batch, 100 jobs each; one worker with 4 connections leases 100 at a time and reports",
        is_long: false,
        work: Work::Lease(Leasing {
            batch: 100,
            hands: Hands { connections: 4, max: 100, work: Duration::ZERO },
            waiting_per_s: 10_000,
        }),
    },
    Scenario {
        name: "jobs-callback",
        about: "POST a job of kind http; it calls the receiver; its signed callback arrives",
        is_long: false,
        work: Work::Rate(Item::CalledBackJob),
    },
    Scenario {
        name: "fanout-1",
        about: "POST /v1/events, one event each; it arrives at one endpoint",
        is_long: false,
        work: Work::Rate(Item::Event { endpoints: 1 }),
    },
    Scenario {
        name: "fanout-10",
        about: "the same, at 10 endpoints",
        is_long: false,
        work: Work::Rate(Item::Event { endpoints: 10 }),
    },
    Scenario {
        name: "fanout-1000",
        about: "the same, at 1,000 endpoints",
        is_long: false,
        work: Work::Rate(Item::Event { endpoints: 1000 }),
    },
    Scenario {
        name: "idle-latency",
        about: "fanout-1, one at a time",
        is_long: false,
        work: Work::Idle(Item::Event { endpoints: 1 }),
    },
    Scenario {
        name: "idle-callback",
        about: "jobs-callback, one at a time",
        is_long: false,
        work: Work::Idle(Item::CalledBackJob),
    },
    Scenario {
        name: "hung-endpoints",
        about: "100 events a second to 10 endpoints, beside 1,000 that hang, each with 50 events waiting",
        is_long: false,
        work: Work::Beside(Beside {
            item: Item::Event { endpoints: 10 },
            per_s: 100.0,
            hands: None,
            other: Other::Hung { endpoints: 1000, waiting: 50, timeout_s: 5 },
            times_at_most: 2.0,
        }),
    },
    Scenario {
        name: "loud-tenant",
        about: "50 events a second to one endpoint, beside another tenant that publishes 200,000 at once",
        is_long: false,
        work: Work::Beside(Beside {
            item: Item::Event { endpoints: 1 },
            per_s: 50.0,
            hands: None,
            other: Other::LoudTenant { events: 200_000 },
            times_at_most: 2.0,
        }),
    },
    Scenario {
        name: "backlog-1m",
        about: "100 events a second to 10 endpoints, beside one that hangs with 1,000,000 waiting",
        is_long: true,
        work: Work::Beside(Beside {
            item: Item::Event { endpoints: 10 },
            per_s: 100.0,
            hands: None,
            other: Other::Backlog { waiting: 1_000_000, timeout_s: 5 },
            times_at_most: 2.0,
        }),
    },
    Scenario {
        name: "job-backlog-1m",
        about: "10 jobs a second to a worker, beside another tenant that has 1,000,000 waiting for it",
        is_long: true,
        work: Work::Beside(Beside {
            item: Item::LeasedJob { batch: 1 },
            per_s: 10.0,
            hands: Some(Hands { connections: 4, max: 100, work: Duration::ZERO }),
            other: Other::WaitingJobs {
                waiting: 1_000_000,
                hands: Hands { connections: 4, max: 100, work: Duration::from_millis(100) },
            },
            times_at_most: 2.0,
        }),
    },
    Scenario {
        name: "replay-under-load",
        about: "100 events a second to one endpoint, beside a replay of 100,000 failed deliveries to another",
        is_long: true,
        work: Work::Beside(Beside {
            item: Item::Event { endpoints: 1 },
            per_s: 100.0,
            hands: None,
            other: Other::Replay { failed: 100_000, per_s: 10_000 },
            times_at_most: 2.0,
        }),
    },
    Scenario {
        name: "backlog-5m",
        about: "fanout-1 at its top rate, without and with 5,000,000 deliveries waiting for 1,000 endpoints that hang",
        is_long: true,
        work: Work::Burdened(Burdened {
            item: Item::Event { endpoints: 1 },
            burden: Burden::Backlog { endpoints: 1000, waiting: 5_000_000, timeout_s: 5 },
            times_at_most: 1.25,
        }),
    },
    Scenario {
        name: "held-snapshot",
        about: "fanout-1 at its top rate, without and with a transaction elsewhere that holds a snapshot",
        is_long: false,
        work: Work::Burdened(Burdened {
            item: Item::Event { endpoints: 1 },
            burden: Burden::HeldSnapshot,
            times_at_most: 1.25,
        }),
    },
    Scenario {
        name: "rate-limit",
        about: "an endpoint of 50 a second, with far more waiting, for a minute",
        is_long: false,
        work: Work::RateLimit(Limit { per_s: 50, burst: 50, seconds: 60 }),
    },
];

/// The topic of the events that are measured.
pub(super) const LIVE_TYPE: &str = "live.order";

impl Item {
    /// Jobs or events with each request.
    pub(super) fn batch(self) -> usize {
        match self {
            Self::StoredJob { batch } | Self::LeasedJob { batch } => batch,
            Self::CalledBackJob | Self::Event { .. } => 1,
        }
    }

    /// How often the receiver, or the worker, is told of each of them.
    pub(super) fn arrivals(self) -> usize {
        match self {
            Self::StoredJob { .. } => 0,
            Self::LeasedJob { .. } | Self::CalledBackJob => 1,
            Self::Event { endpoints } => endpoints,
        }
    }

    /// What is counted as one: a job, or an arrival.
    pub(super) fn per_request(self) -> usize {
        self.batch() * self.arrivals().max(1)
    }

    /// How many callers of the `wanted` ones make sense.
    pub(super) fn callers(self, wanted: usize) -> usize {
        match self {
            // A few batches in flight fill the database's pipe.
            _ if self.batch() > 1 => wanted.min(8),
            _ => wanted,
        }
    }

    /// Where the ids in an answer are: each of them, if arrivals are matched with them.
    pub(super) fn marks(self, payload_bytes: usize) -> Marks {
        let before: &[u8] = match self {
            Self::StoredJob { .. } => b"",
            Self::LeasedJob { .. } | Self::CalledBackJob => br#""id":"job_"#,
            Self::Event { .. } => br#""id":"evt_"#,
        };
        Marks { before, count: self.batch(), apart: payload_bytes }
    }
}
