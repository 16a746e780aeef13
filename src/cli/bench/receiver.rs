//! The receiver of callbacks and events, and the target of `http` jobs: notes when what arrived, and answers 200 at once.
//!
//! `/callback` and `/hook/<endpoint>` are noted one by one, `/hang` never answers, `/broken` fails until it is mended, anything
//! else is counted. What the bench's
//! worker is handed (`worker`) is noted here too.
//!
//! One thread with a runtime of its own, named `bench-receive`, so that its CPU can be told from the rest. Matching of
//! arrivals with what was accepted comes later, when nothing is measured any more.
//!
//! Invariant: an arrival is noted before it is answered.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::marks::{ItemKey, item_key};
use super::wire::{Message, Wire, header};
use crate::signing::{SignedHeaders, SigningSecret, VerifyError, verify};

/// The name of the thread, at most 15 letters.
pub(super) const THREAD: &str = "bench-receive";
/// One callback in so many is kept whole, to verify its signature later…
const SAMPLE_EVERY: usize = 50;
/// … and so many at most.
const SAMPLES_MAX: usize = 400;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
const BAD_ANSWER: &[u8] = b"HTTP/1.1 500 Broken\r\ncontent-length: 0\r\n\r\n";
/// What is broken still answers one in so many well: after ten failures in a row it would be left alone for a while, and again
/// if the probe after that failed.
pub(super) const GOOD_EVERY: usize = 2;
const CONNECTIONS_MAX: u32 = 4096;
/// How far into a callback's body the id of its job is looked for.
const LOOK_WITHIN: usize = 200;
/// After the last one is there, a duplicate gets so long to show up.
const SETTLE: Duration = Duration::from_millis(300);

/// What was noted of an arrival.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    key: Option<ItemKey>,
    endpoint: usize,
    at: Instant,
}

/// An arrival as it came, for the check of its signature.
#[derive(Debug)]
struct Sample {
    endpoint: usize,
    head: Vec<u8>,
    body: Vec<u8>,
}

/// What arrived since the last [`Receiver::reset`].
#[derive(Debug, Default)]
struct Log {
    arrivals: Vec<Arrival>,
    samples: Vec<Sample>,
    window: Option<Window>,
    calls: u64,
    hanging: usize,
    broken: Broken,
}

/// What arrived at the receiver that fails until it is mended.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Broken {
    mended: bool,
    /// Requests until it was mended.
    pub(super) before: usize,
    /// Requests since.
    pub(super) since: usize,
    /// The last one since.
    pub(super) last: Option<Instant>,
}

impl Broken {
    /// Counts a request. Is it answered well?
    fn call(&mut self) -> bool {
        if self.mended {
            self.since += 1;
            self.last = Some(Instant::now());
            return true;
        }
        self.before += 1;
        self.before.is_multiple_of(GOOD_EVERY)
    }
}

impl Log {
    fn note(&mut self, arrival: Arrival) {
        self.arrivals.push(arrival);
        let count = self.arrivals.len();
        if let Some(window) = self.window.as_ref().filter(|window| count.is_multiple_of(window.arrivals)) {
            window.permits.add_permits(1);
        }
    }
}

/// Where the worker notes what it was handed.
#[derive(Debug, Clone)]
pub(super) struct Notes(Arc<Mutex<Log>>);

impl Notes {
    /// These jobs, now.
    pub(super) fn handed_out(&self, jobs: impl IntoIterator<Item = ItemKey>) {
        let at = Instant::now();
        let mut log = lock(&self.0);
        jobs.into_iter().for_each(|key| log.note(Arrival { key: Some(key), endpoint: 0, at }));
    }
}

/// Lets the next one be sent when so many arrived.
#[derive(Debug, Clone)]
pub(super) struct Window {
    /// Who sends waits for a permit of this.
    pub(super) permits: Arc<Semaphore>,
    /// So many arrivals make one permit.
    pub(super) arrivals: usize,
}

/// A running receiver; stops when dropped.
#[derive(Debug)]
pub(super) struct Receiver {
    /// Where it listens.
    pub(super) address: SocketAddr,
    log: Arc<Mutex<Log>>,
    _stop: oneshot::Sender<()>,
}

impl Receiver {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let log = Arc::new(Mutex::new(Log::default()));
        let (stop, stopped) = oneshot::channel();
        let noted = log.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        std::thread::Builder::new().name(THREAD.to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    result = accept(listener, noted) => drop(result),
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, log, _stop: stop })
    }

    /// Forgets what arrived; from now on arrivals give permits to the window.
    pub(super) fn reset(&self, window: Option<Window>) {
        let mut log = lock(&self.log);
        *log = Log { window, hanging: log.hanging, broken: log.broken, ..Log::default() };
    }

    /// For the worker.
    pub(super) fn notes(&self) -> Notes {
        Notes(self.log.clone())
    }

    /// How many requests hang now.
    pub(super) fn hanging(&self) -> usize {
        lock(&self.log).hanging
    }

    /// What the broken one got.
    pub(super) fn broken(&self) -> Broken {
        lock(&self.log).broken
    }

    /// From now on it answers well.
    pub(super) fn mend(&self) {
        lock(&self.log).broken = Broken { mended: true, ..Broken::default() };
    }

    /// From now on it fails.
    pub(super) fn break_again(&self) {
        lock(&self.log).broken = Broken::default();
    }

    /// How many requests were only counted.
    pub(super) fn calls(&self) -> u64 {
        lock(&self.log).calls
    }

    /// When what arrived, in order.
    pub(super) fn times(&self) -> Vec<Instant> {
        lock(&self.log).arrivals.iter().map(|arrival| arrival.at).collect()
    }

    /// How many arrived, duplicates included.
    pub(super) fn count(&self) -> usize {
        lock(&self.log).arrivals.len()
    }

    /// Waits until so many arrived, and a little longer for those that should not.
    pub(super) async fn wait_for(&self, count: usize, at_most: Duration) {
        let give_up = Instant::now() + at_most;
        while self.count() < count && Instant::now() < give_up {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(SETTLE).await;
    }

    /// Matches what arrived with what was sent, each to so many.
    pub(super) fn matched(&self, sent: &HashMap<ItemKey, Instant>, arrivals: usize) -> Matched {
        let log = lock(&self.log);
        let mut seen: HashSet<(ItemKey, usize)> = HashSet::with_capacity(sent.len() * arrivals);
        let mut matched = Matched { calls: log.calls, ..Matched::default() };
        for Arrival { key, endpoint, at } in &log.arrivals {
            let known = key.and_then(|key| Some((key, sent.get(&key)?)));
            let Some((key, due)) = known else {
                matched.strangers += 1;
                continue;
            };
            if !seen.insert((key, *endpoint)) {
                matched.duplicates += 1;
                continue;
            }
            matched.latencies.push(at.saturating_duration_since(*due));
        }
        matched.lost = (sent.len() * arrivals).saturating_sub(seen.len());
        matched
    }

    /// How many arrived until then.
    pub(super) fn arrived_until(&self, end: Instant) -> usize {
        lock(&self.log).arrivals.iter().filter(|arrival| arrival.at <= end).count()
    }

    /// Verifies the signatures of the samples by the secrets of their endpoints (a callback's is the first): how many
    /// were looked at, and the first failure.
    pub(super) fn verify_samples(&self, secrets: &[SigningSecret]) -> (usize, Option<VerifyError>) {
        let log = lock(&self.log);
        let now_s = crate::clock::now().timestamp();
        let check = |sample: &Sample| {
            let headers = SignedHeaders {
                id: header(&sample.head, "webhook-id"),
                timestamp: header(&sample.head, "webhook-timestamp"),
                signature: header(&sample.head, "webhook-signature"),
            };
            verify(secrets.get(sample.endpoint)?, headers, &sample.body, now_s, 300).err()
        };
        (log.samples.len(), log.samples.iter().find_map(check))
    }
}

/// What became of what was accepted.
#[derive(Debug, Default)]
pub(super) struct Matched {
    /// From due to arrival, of the first arrivals.
    pub(super) latencies: Vec<Duration>,
    /// Accepted, and never told.
    pub(super) lost: usize,
    /// Told again.
    pub(super) duplicates: usize,
    /// Told without having been accepted.
    pub(super) strangers: usize,
    /// Requests that were only counted: the calls of `http` jobs.
    pub(super) calls: u64,
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: std::net::TcpListener, log: Arc<Mutex<Log>>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX as usize));
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        while connections.try_join_next().is_some() {}
        let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(()) };
        let log = log.clone();
        connections.spawn(async move {
            // A connection that breaks is the sender's to report.
            let _ = serve(stream, &log).await;
            drop(slot);
        });
    }
}

async fn serve(stream: tokio::net::TcpStream, log: &Mutex<Log>) -> io::Result<()> {
    let mut wire = Wire::on(stream)?;
    while let Some(message) = wire.read().await? {
        if message.head.starts_with(b"POST /hang") {
            lock(log).hanging += 1;
            // Until the sender has had enough.
            let gone = wire.read().await.map(drop);
            lock(log).hanging -= 1;
            return gone;
        }
        if message.head.starts_with(b"POST /broken") {
            let good = lock(log).broken.call();
            wire.send(if good { ANSWER } else { BAD_ANSWER }).await?;
            continue;
        }
        note(log, message);
        wire.send(ANSWER).await?;
    }
    Ok(())
}

/// Which job or event arrived at which endpoint, if it is one of those that are noted.
fn arrival(message: Message<'_>) -> Option<(Option<ItemKey>, usize)> {
    if message.head.starts_with(b"POST /callback") {
        let beginning = &message.body[..message.body.len().min(LOOK_WITHIN)];
        return Some((item_key(beginning, br#""data":{"id":"job_"#), 0));
    }
    let path = message.head.strip_prefix(b"POST /hook/")?;
    let digits = path.iter().take_while(|byte| byte.is_ascii_digit());
    let endpoint = digits.fold(0_usize, |number, digit| number * 10 + usize::from(digit - b'0'));
    let key = header(message.head, "webhook-id").and_then(|id| id.strip_prefix("evt_"));
    Some((key.and_then(|key| key.as_bytes().first_chunk().copied()), endpoint))
}

fn note(log: &Mutex<Log>, message: Message<'_>) {
    let arrival = arrival(message);
    let mut log = lock(log);
    let Some((key, endpoint)) = arrival else {
        log.calls += 1;
        return;
    };
    log.note(Arrival { key, endpoint, at: Instant::now() });
    if log.arrivals.len() % SAMPLE_EVERY == 1 && log.samples.len() < SAMPLES_MAX {
        log.samples.push(Sample { endpoint, head: message.head.to_vec(), body: message.body.to_vec() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &[u8; 26] = b"01jd0000000000000000000000";

    #[tokio::test]
    async fn losses_duplicates_and_strangers_are_told_apart() {
        let receiver = Receiver::start().expect("started");
        let other = *b"01jd0000000000000000000001";
        let mut wire = Wire::connect(receiver.address).await.expect("connected");
        for id in [ID, ID, b"01jd0000000000000000000002"] {
            let id = std::str::from_utf8(id).expect("text");
            let body =
                format!(r#"{{"type":"job.succeeded","timestamp":"x","data":{{"id":"job_{id}","x":1}}}}"#);
            let head = format!("POST /callback HTTP/1.1\r\ncontent-length: {}\r\n\r\n", body.len());
            wire.send(format!("{head}{body}").as_bytes()).await.expect("sent");
            assert!(wire.read().await.expect("read").expect("answer").head.starts_with(b"HTTP/1.1 200"));
        }
        let sent = HashMap::from([(*ID, Instant::now()), (other, Instant::now())]);
        let matched = receiver.matched(&sent, 1);
        assert_eq!((matched.lost, matched.duplicates, matched.strangers), (1, 1, 1));
        assert_eq!(matched.latencies.len(), 1);
    }

    #[tokio::test]
    async fn an_event_is_expected_at_each_endpoint_once() {
        let receiver = Receiver::start().expect("started");
        let permits = Arc::new(Semaphore::new(0));
        receiver.reset(Some(Window { permits: permits.clone(), arrivals: 2 }));
        let mut wire = Wire::connect(receiver.address).await.expect("connected");
        for (endpoint, id) in [(0, ID), (12, ID), (12, ID)] {
            let id = std::str::from_utf8(id).expect("text");
            let head = format!(
                "POST /hook/{endpoint} HTTP/1.1\r\nwebhook-id: evt_{id}\r\ncontent-length: 2\r\n\r\n"
            );
            wire.send(format!("{head}{{}}").as_bytes()).await.expect("sent");
            assert!(wire.read().await.expect("read").expect("answer").head.starts_with(b"HTTP/1.1 200"));
        }
        let matched = receiver.matched(&HashMap::from([(*ID, Instant::now())]), 3);
        assert_eq!((matched.lost, matched.duplicates, matched.strangers), (1, 1, 0));
        assert_eq!(permits.available_permits(), 1);
    }
}
