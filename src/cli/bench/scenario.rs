//! The scenarios as data: what is sent, what counts as one item, in which modes it is measured.
//!
//! A new scenario is a row of [`SCENARIOS`], and a kind of work if it is of a new kind.

use std::fmt::Write as _;
use std::net::SocketAddr;

use bytes::Bytes;

use super::bare::Client;

/// One scenario.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scenario {
    /// As on the command line.
    pub(super) name: &'static str,
    /// For people.
    pub(super) about: &'static str,
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
    /// Live events at a fixed rate, alone and then beside something else.
    Beside(Beside),
    /// One endpoint gets more than it wants.
    RateLimit(Limit),
}

/// What is sent, and what it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Item {
    /// Jobs that nobody runs, so many with each request.
    StoredJob { batch: usize },
    /// An `http` job to the receiver, with a callback to it.
    CalledBackJob,
    /// An event to so many endpoints.
    Event { endpoints: usize },
}

/// Live events, and what else goes on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Beside {
    /// Endpoints that get each of the live events.
    pub(super) endpoints: usize,
    /// Live events a second.
    pub(super) per_s: f64,
    /// What must not disturb them.
    pub(super) other: Other,
    /// Their p99 from publish to arrival may grow by this factor.
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
        work: Work::Bare(Client::Guarded),
    },
    Scenario { name: "bare-reqwest", about: "the same by plain reqwest", work: Work::Bare(Client::Plain) },
    Scenario {
        name: "accept-only",
        about: "POST /v1/jobs, one job each, run by nobody",
        work: Work::Rate(Item::StoredJob { batch: 1 }),
    },
    Scenario {
        name: "accept-batch",
        about: "POST /v1/jobs/batch, 100 jobs each, run by nobody",
        work: Work::Rate(Item::StoredJob { batch: 100 }),
    },
    Scenario {
        name: "jobs-callback",
        about: "POST a job of kind http; it calls the receiver; its signed callback arrives",
        work: Work::Rate(Item::CalledBackJob),
    },
    Scenario {
        name: "fanout-1",
        about: "POST /v1/events, one event each; it arrives at one endpoint",
        work: Work::Rate(Item::Event { endpoints: 1 }),
    },
    Scenario {
        name: "fanout-10",
        about: "the same, at 10 endpoints",
        work: Work::Rate(Item::Event { endpoints: 10 }),
    },
    Scenario {
        name: "fanout-1000",
        about: "the same, at 1,000 endpoints",
        work: Work::Rate(Item::Event { endpoints: 1000 }),
    },
    Scenario {
        name: "idle-latency",
        about: "fanout-1, one at a time",
        work: Work::Idle(Item::Event { endpoints: 1 }),
    },
    Scenario {
        name: "idle-callback",
        about: "jobs-callback, one at a time",
        work: Work::Idle(Item::CalledBackJob),
    },
    Scenario {
        name: "hung-endpoints",
        about: "100 events a second to 10 endpoints, beside 1,000 that hang, each with 50 events waiting",
        work: Work::Beside(Beside {
            endpoints: 10,
            per_s: 100.0,
            other: Other::Hung { endpoints: 1000, waiting: 50, timeout_s: 5 },
            times_at_most: 2.0,
        }),
    },
    Scenario {
        name: "loud-tenant",
        about: "50 events a second to one endpoint, beside another tenant that publishes 200,000 at once",
        work: Work::Beside(Beside {
            endpoints: 1,
            per_s: 50.0,
            other: Other::LoudTenant { events: 200_000 },
            times_at_most: 2.0,
        }),
    },
    Scenario {
        name: "backlog-1m",
        about: "100 events a second to 10 endpoints, beside one that hangs with 1,000,000 waiting",
        work: Work::Beside(Beside {
            endpoints: 10,
            per_s: 100.0,
            other: Other::Backlog { waiting: 1_000_000, timeout_s: 5 },
            times_at_most: 2.0,
        }),
    },
    Scenario {
        name: "rate-limit",
        about: "an endpoint of 50 a second, with far more waiting, for a minute",
        work: Work::RateLimit(Limit { per_s: 50, burst: 50, seconds: 60 }),
    },
];

/// The topic of the events that are measured.
pub(super) const LIVE_TYPE: &str = "live.order";

impl Item {
    /// Jobs or events with each request.
    pub(super) fn batch(self) -> usize {
        match self {
            Self::StoredJob { batch } => batch,
            Self::CalledBackJob | Self::Event { .. } => 1,
        }
    }

    /// How often the receiver is told of each of them.
    pub(super) fn arrivals(self) -> usize {
        match self {
            Self::StoredJob { .. } => 0,
            Self::CalledBackJob => 1,
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
            Self::StoredJob { batch } if batch > 1 => wanted.min(8),
            Self::StoredJob { .. } | Self::CalledBackJob | Self::Event { .. } => wanted,
        }
    }

    /// What stands before the id in an answer.
    pub(super) fn mark(self) -> &'static [u8] {
        match self {
            Self::StoredJob { .. } | Self::CalledBackJob => br#""id":"job_"#,
            Self::Event { .. } => br#""id":"evt_"#,
        }
    }

    /// The request, head and body.
    pub(super) fn request(self, key: &str, receiver: SocketAddr, payload_bytes: usize) -> Bytes {
        let payload = payload(payload_bytes);
        let (path, body) = match self {
            Self::CalledBackJob => (
                "/v1/jobs",
                format!(
                    r#"{{"kind":"http","input":{{"method":"POST","url":"http://{receiver}/work","body":{{"payload":"{payload}"}}}},"callback_url":"http://{receiver}/callback"}}"#
                ),
            ),
            Self::StoredJob { batch } => {
                let job = format!(r#"{{"kind":"bench","input":{{"payload":"{payload}"}}}}"#);
                match batch {
                    1 => ("/v1/jobs", job),
                    _ => {
                        ("/v1/jobs/batch", format!(r#"{{"jobs":[{}]}}"#, vec![job.as_str(); batch].join(",")))
                    }
                }
            }
            Self::Event { .. } => ("/v1/events", event(LIVE_TYPE, payload_bytes)),
        };
        post(path, key, &body)
    }
}

fn event(event_type: &str, payload_bytes: usize) -> String {
    format!(r#"{{"type":"{event_type}","data":{{"payload":"{}"}}}}"#, payload(payload_bytes))
}

/// A request that publishes so many events of a topic.
pub(super) fn publish_batch(key: &str, event_type: &str, count: usize, payload_bytes: usize) -> Bytes {
    let event = event(event_type, payload_bytes);
    post("/v1/events/batch", key, &format!(r#"{{"events":[{}]}}"#, vec![event.as_str(); count].join(",")))
}

/// A request with a JSON body, head and all.
pub(super) fn post(path: &str, key: &str, body: &str) -> Bytes {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
    );
    // Writing into a string cannot fail.
    let _ = write!(request, "content-length: {}\r\n\r\n{body}", body.len());
    Bytes::from(request)
}

/// Text that cannot be compressed well, or PostgreSQL would store less than it was given.
fn payload(bytes: usize) -> String {
    const LETTERS: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut letter = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(LETTERS[(state >> 58) as usize])
    };
    (0..bytes).map(|_| letter()).collect()
}

/// The `data` of a callback as the service would send it, for the bare loop.
pub(super) fn callback_data(receiver: SocketAddr, payload_bytes: usize) -> Bytes {
    let payload = payload(payload_bytes);
    Bytes::from(format!(
        r#"{{"id":"job_01jd0000000000000000000000","kind":"http","status":"succeeded","input":{{"method":"POST","url":"http://{receiver}/work","body":{{"payload":"{payload}"}}}},"result":{{"status":200,"headers":{{"content-type":"application/json","content-length":"2"}},"body":"{{}}"}},"error":null,"attempt":1,"max_attempts":5,"queue":"default","priority":0,"progress":null,"timeout_s":300.0,"callback_url":"http://{receiver}/callback","unique_key":null,"metadata":{{}},"cancel_requested":false,"created_at":"2026-01-01T00:00:00.000Z","run_at":"2026-01-01T00:00:00.000Z","started_at":"2026-01-01T00:00:00.000Z","finished_at":"2026-01-01T00:00:00.000Z","updated_at":"2026-01-01T00:00:00.000Z"}}"#
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_body_is_json_with_a_payload_of_the_size_asked_for() {
        let receiver = "127.0.0.1:9".parse().expect("address");
        let items = [
            Item::StoredJob { batch: 1 },
            Item::StoredJob { batch: 3 },
            Item::CalledBackJob,
            Item::Event { endpoints: 7 },
        ];
        let requests = items.map(|item| item.request("rbk_x", receiver, 300));
        for request in requests.iter().chain([&publish_batch("rbk_x", "a.b", 3, 300)]) {
            let text = std::str::from_utf8(request).expect("text");
            let (_, body) = text.split_once("\r\n\r\n").expect("a head");
            assert!(serde_json::from_str::<serde_json::Value>(body).is_ok(), "{body}");
        }
        assert!(serde_json::from_slice::<serde_json::Value>(&callback_data(receiver, 300)).is_ok());
        assert_eq!(payload(300).len(), 300);
    }
}
