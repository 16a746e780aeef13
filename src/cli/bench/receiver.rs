//! The receiver of callbacks, and the target of `http` jobs: answers 200 at once, and notes when what arrived.
//!
//! One thread with a runtime of its own, named `bench-receive`, so that its CPU can be told from the rest. Matching of
//! arrivals with what was accepted comes later, when nothing is measured any more.
//!
//! Invariant: an arrival is noted before it is answered.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::wire::{Message, Wire, header};
use crate::signing::{SignedHeaders, SigningSecret, VerifyError, verify};

/// The name of the thread, at most 15 letters.
pub(super) const THREAD: &str = "bench-receive";
/// One callback in so many is kept whole, to verify its signature later…
const SAMPLE_EVERY: usize = 50;
/// … and so many at most.
const SAMPLES_MAX: usize = 400;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
const CONNECTIONS_MAX: u32 = 4096;
/// How far into a callback's body the id of its job is looked for.
const LOOK_WITHIN: usize = 200;
/// After the last one is there, a duplicate gets so long to show up.
const SETTLE: Duration = Duration::from_millis(300);

/// The 26 letters of a job's id.
pub(super) type JobKey = [u8; 26];

/// Finds `mark` and takes the letters of the id behind it.
pub(super) fn job_key(text: &[u8], mark: &[u8]) -> Option<JobKey> {
    let place = text.windows(mark.len()).position(|window| window == mark)?;
    text.get(place + mark.len()..)?.first_chunk().copied()
}

/// A callback as it came, for the check of its signature.
#[derive(Debug)]
struct Sample {
    head: Vec<u8>,
    body: Vec<u8>,
}

/// What arrived since the last [`Receiver::reset`].
#[derive(Debug, Default)]
struct Log {
    arrivals: Vec<(Option<JobKey>, Instant)>,
    samples: Vec<Sample>,
    window: Option<Arc<Semaphore>>,
    calls: u64,
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

    /// Forgets what arrived; from now on each callback gives a permit to the window.
    pub(super) fn reset(&self, window: Option<Arc<Semaphore>>) {
        *lock(&self.log) = Log { window, ..Log::default() };
    }

    /// How many callbacks arrived, duplicates included.
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

    /// Matches what arrived with what was sent, by job.
    pub(super) fn matched(&self, sent: &HashMap<JobKey, Instant>) -> Matched {
        let log = lock(&self.log);
        let mut seen: HashMap<JobKey, u32> = HashMap::with_capacity(sent.len());
        let mut matched = Matched { calls: log.calls, ..Matched::default() };
        for (key, at) in &log.arrivals {
            let known = key.and_then(|key| Some((key, sent.get(&key)?)));
            let Some((key, due)) = known else {
                matched.strangers += 1;
                continue;
            };
            let times = seen.entry(key).or_default();
            *times += 1;
            if *times > 1 {
                matched.duplicates += 1;
                continue;
            }
            matched.latencies.push(at.saturating_duration_since(*due));
        }
        matched.lost = sent.len() - seen.len();
        matched
    }

    /// How many callbacks arrived until then.
    pub(super) fn arrived_until(&self, end: Instant) -> usize {
        lock(&self.log).arrivals.iter().filter(|(_, at)| *at <= end).count()
    }

    /// Verifies the signatures of the samples: how many were looked at, and the first failure.
    pub(super) fn verify_samples(&self, secret: &SigningSecret) -> (usize, Option<VerifyError>) {
        let log = lock(&self.log);
        let now_s = crate::clock::now().timestamp();
        let check = |sample: &Sample| {
            let headers = SignedHeaders {
                id: header(&sample.head, "webhook-id"),
                timestamp: header(&sample.head, "webhook-timestamp"),
                signature: header(&sample.head, "webhook-signature"),
            };
            verify(secret, headers, &sample.body, now_s, 300).err()
        };
        (log.samples.len(), log.samples.iter().find_map(check))
    }
}

/// What became of the accepted jobs' callbacks.
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
    /// Calls of `http` jobs.
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
        note(log, message);
        wire.send(ANSWER).await?;
    }
    Ok(())
}

fn note(log: &Mutex<Log>, message: Message<'_>) {
    let is_callback = message.head.starts_with(b"POST /callback");
    let beginning = &message.body[..message.body.len().min(LOOK_WITHIN)];
    let key = if is_callback { job_key(beginning, br#""data":{"id":"job_"#) } else { None };
    let mut log = lock(log);
    if !is_callback {
        log.calls += 1;
        return;
    }
    log.arrivals.push((key, Instant::now()));
    if log.arrivals.len() % SAMPLE_EVERY == 1 && log.samples.len() < SAMPLES_MAX {
        log.samples.push(Sample { head: message.head.to_vec(), body: message.body.to_vec() });
    }
    if let Some(window) = &log.window {
        window.add_permits(1);
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
        let matched = receiver.matched(&sent);
        assert_eq!((matched.lost, matched.duplicates, matched.strangers), (1, 1, 1));
        assert_eq!(matched.latencies.len(), 1);
    }
}
