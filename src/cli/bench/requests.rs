//! What the bench sends: whole requests as bytes, made once and sent often.

use std::fmt::Write as _;
use std::net::SocketAddr;

use bytes::Bytes;

use super::scenario::{Item, LIVE_TYPE};

/// A kind that is not built in.
const KIND: &str = "bench";

impl Item {
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
            Self::StoredJob { batch: 1 } | Self::LeasedJob { batch: 1 } => ("/v1/jobs", job(&payload)),
            Self::StoredJob { batch } | Self::LeasedJob { batch } => {
                ("/v1/jobs/batch", jobs(batch, &payload))
            }
            Self::Event { .. } => ("/v1/events", event(LIVE_TYPE, payload_bytes)),
        };
        post(path, key, &body)
    }
}

fn job(payload: &str) -> String {
    format!(r#"{{"kind":"{KIND}","input":{{"payload":"{payload}"}}}}"#)
}

fn jobs(count: usize, payload: &str) -> String {
    format!(r#"{{"jobs":[{}]}}"#, vec![job(payload); count].join(","))
}

fn event(event_type: &str, payload_bytes: usize) -> String {
    format!(r#"{{"type":"{event_type}","data":{{"payload":"{}"}}}}"#, payload(payload_bytes))
}

/// A request that publishes so many events of a topic.
pub(super) fn publish_batch(key: &str, event_type: &str, count: usize, payload_bytes: usize) -> Bytes {
    let event = event(event_type, payload_bytes);
    post("/v1/events/batch", key, &format!(r#"{{"events":[{}]}}"#, vec![event.as_str(); count].join(",")))
}

/// A request that submits so many jobs of the worker's kind.
pub(super) fn submit_batch(key: &str, count: usize, payload_bytes: usize) -> Bytes {
    post("/v1/jobs/batch", key, &jobs(count, &payload(payload_bytes)))
}

/// A request that asks for jobs and waits for the first one.
pub(super) fn take(key: &str, max: usize, wait_s: u32) -> Bytes {
    let body =
        format!(r#"{{"worker":"bench","kinds":["{KIND}"],"max":{max},"lease_s":60,"wait_s":{wait_s}}}"#);
    post("/v1/leases", key, &body)
}

/// A request that reports success with a small result on each of these leases.
pub(super) fn report(key: &str, leases: &[String]) -> Bytes {
    let one = |lease: &String| {
        format!(r#"{{"lease":"{lease}","outcome":"succeeded","result":{{"ok":true,"width":640}}}}"#)
    };
    let reports: Vec<String> = leases.iter().map(one).collect();
    post("/v1/leases/report", key, &format!(r#"{{"reports":[{}]}}"#, reports.join(",")))
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
            Item::LeasedJob { batch: 2 },
            Item::CalledBackJob,
            Item::Event { endpoints: 7 },
        ];
        let requests = items.map(|item| item.request("rbk_x", receiver, 300));
        let others = [
            publish_batch("rbk_x", "a.b", 3, 300),
            submit_batch("rbk_x", 3, 300),
            take("rbk_x", 100, 1),
            report("rbk_x", &["lse_a".to_owned(), "lse_b".to_owned()]),
        ];
        for request in requests.iter().chain(&others) {
            let text = std::str::from_utf8(request).expect("text");
            let (_, body) = text.split_once("\r\n\r\n").expect("a head");
            assert!(serde_json::from_str::<serde_json::Value>(body).is_ok(), "{body}");
        }
        assert!(serde_json::from_slice::<serde_json::Value>(&callback_data(receiver, 300)).is_ok());
        assert_eq!(payload(300).len(), 300);
    }
}
