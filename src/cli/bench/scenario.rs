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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// The yardstick.
    Bare(Client),
    /// Jobs that nobody runs, so many with each request.
    Accept { batch: usize },
    /// `http` jobs to the receiver, with a callback to it.
    JobsCallback,
    /// The same, one at a time with a pause between.
    Idle,
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
        work: Work::Accept { batch: 1 },
    },
    Scenario {
        name: "accept-batch",
        about: "POST /v1/jobs/batch, 100 jobs each, run by nobody",
        work: Work::Accept { batch: 100 },
    },
    Scenario {
        name: "jobs-callback",
        about: "POST a job of kind http; it calls the receiver; its signed callback arrives",
        work: Work::JobsCallback,
    },
    Scenario { name: "idle-latency", about: "jobs-callback, one at a time", work: Work::Idle },
];

impl Work {
    /// Jobs with each request.
    pub(super) fn batch(self) -> usize {
        match self {
            Self::Accept { batch } => batch,
            Self::Bare(_) | Self::JobsCallback | Self::Idle => 1,
        }
    }

    /// Does each job end in a callback?
    pub(super) fn calls_back(self) -> bool {
        matches!(self, Self::JobsCallback | Self::Idle)
    }

    /// How many callers of the `wanted` ones make sense.
    pub(super) fn callers(self, wanted: usize) -> usize {
        match self {
            Self::Idle => 1,
            // A few batches in flight fill the database's pipe.
            Self::Accept { batch } if batch > 1 => wanted.min(8),
            Self::Bare(_) | Self::Accept { .. } | Self::JobsCallback => wanted,
        }
    }

    /// The request, head and body.
    pub(super) fn request(self, key: &str, receiver: SocketAddr, payload_bytes: usize) -> Bytes {
        let payload = payload(payload_bytes);
        let job = if self.calls_back() {
            format!(
                r#"{{"kind":"http","input":{{"method":"POST","url":"http://{receiver}/work","body":{{"payload":"{payload}"}}}},"callback_url":"http://{receiver}/callback"}}"#
            )
        } else {
            format!(r#"{{"kind":"bench","input":{{"payload":"{payload}"}}}}"#)
        };
        let batch = self.batch();
        let (path, body) = match batch {
            1 => ("/v1/jobs", job),
            _ => ("/v1/jobs/batch", format!(r#"{{"jobs":[{}]}}"#, vec![job.as_str(); batch].join(","))),
        };
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        );
        // Writing into a string cannot fail.
        let _ = write!(request, "content-length: {}\r\n\r\n{body}", body.len());
        Bytes::from(request)
    }
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
        for scenario in SCENARIOS {
            let request = scenario.work.request("rbk_x", receiver, 300);
            let text = std::str::from_utf8(&request).expect("text");
            let (_, body) = text.split_once("\r\n\r\n").expect("a head");
            assert!(serde_json::from_str::<serde_json::Value>(body).is_ok(), "{body}");
        }
        assert!(serde_json::from_slice::<serde_json::Value>(&callback_data(receiver, 300)).is_ok());
        assert_eq!(payload(300).len(), 300);
    }
}
