//! The bench's own worker: takes jobs over HTTP, works on them for as long as it is told to, and reports success on all of them
//! in one request.
//!
//! Called by `lease` and `beside`. One thread with a runtime of its own, named `bench-worker`; each connection takes, works
//! and reports in turn. It stops between two rounds only, so that no lease is left behind.
//!
//! Invariant: what it counts as finished was answered with 200, job by job.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::marks::{ItemKey, behind, item_key};
use super::phase::broken;
use super::receiver::Notes;
use super::requests::{report, take};
use super::scenario::Hands;
use super::wire::{Wire, status};
use crate::cli::Failure;

/// The thread's name, at most 15 letters.
const THREAD: &str = "bench-worker";
/// A poll waits so long for the first job; to stop takes as long.
const WAIT_S: u32 = 1;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// `lse_` and 43 letters.
const LEASE_LEN: usize = 47;
/// The job's id follows its lease within so many bytes.
const ID_WITHIN: usize = 200;

/// For whom it works, and how.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) address: SocketAddr,
    pub(super) key: String,
    pub(super) hands: Hands,
    /// A job's payload has so many bytes.
    pub(super) payload_bytes: usize,
    /// Where it notes what it was handed.
    pub(super) notes: Option<Notes>,
}

/// What it did.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Jobs whose report was answered with 200.
    pub(super) finished: u64,
    /// Jobs whose report was answered with anything else.
    pub(super) refused: u64,
    /// How long it took to be handed jobs, each time that there were some; waiting for them counts.
    pub(super) takes: Vec<Duration>,
    /// How long reports took.
    pub(super) reports: Vec<Duration>,
}

/// A running worker. Dropped, it stops after its round.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    told: Option<oneshot::Receiver<io::Result<Tally>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stopped: AtomicBool,
    finished: AtomicU64,
}

impl Worker {
    /// Starts it.
    pub(super) fn start(terms: Terms) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(broken)?;
        let shared = Arc::new(Shared::default());
        let (tell, told) = oneshot::channel();
        let inside = shared.clone();
        let thread = std::thread::Builder::new().name(THREAD.to_owned());
        // Who asked may have been interrupted.
        let work = move || drop(tell.send(runtime.block_on(work(terms, inside))));
        thread.spawn(work).map_err(broken)?;
        Ok(Self { shared, told: Some(told) })
    }

    /// Jobs finished so far.
    pub(super) fn finished(&self) -> u64 {
        self.shared.finished.load(Ordering::Relaxed)
    }

    /// Has it given up?
    pub(super) fn has_ended(&self) -> bool {
        self.told.as_ref().is_none_or(|told| !told.is_empty())
    }

    /// Lets it end its round, and tells what it did.
    pub(super) async fn stop(mut self) -> Result<Tally, Failure> {
        self.shared.stopped.store(true, Ordering::Relaxed);
        let died = || io::Error::other("the worker's thread died");
        let Some(told) = self.told.take() else { return Err(broken(died())) };
        told.await.map_err(|_| broken(died()))?.map_err(broken)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
    }
}

async fn work(terms: Terms, shared: Arc<Shared>) -> io::Result<Tally> {
    let mut connections = JoinSet::new();
    for _ in 0..terms.hands.connections {
        connections.spawn(rounds(terms.clone(), shared.clone()));
    }
    let mut tally = Tally::default();
    while let Some(one) = connections.join_next().await {
        let one = one.map_err(io::Error::other)??;
        tally.finished += one.finished;
        tally.refused += one.refused;
        tally.takes.extend(one.takes);
        tally.reports.extend(one.reports);
    }
    Ok(tally)
}

async fn rounds(terms: Terms, shared: Arc<Shared>) -> io::Result<Tally> {
    let mut wire = Wire::connect(terms.address).await?;
    let request = take(&terms.key, terms.hands.max, WAIT_S);
    let mut tally = Tally::default();
    while !shared.stopped.load(Ordering::Relaxed) {
        let began = Instant::now();
        let answer = exchange(&mut wire, &request).await?;
        let (leases, jobs) = leases(answer, terms.payload_bytes);
        if leases.is_empty() {
            continue;
        }
        if let Some(notes) = &terms.notes {
            notes.handed_out(jobs);
        }
        tally.takes.push(began.elapsed());
        if !terms.hands.work.is_zero() {
            tokio::time::sleep(terms.hands.work).await;
        }
        let began = Instant::now();
        let answer = exchange(&mut wire, &report(&terms.key, &leases)).await?;
        let good = behind(answer, br#""status":200"#, LEASE_LEN).count().min(leases.len()) as u64;
        tally.reports.push(began.elapsed());
        tally.finished += good;
        tally.refused += leases.len() as u64 - good;
        shared.finished.fetch_add(good, Ordering::Relaxed);
    }
    Ok(tally)
}

/// Sends, and reads an answer of 200.
async fn exchange<'a>(wire: &'a mut Wire, request: &Bytes) -> io::Result<&'a [u8]> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the worker got no answer");
    tokio::time::timeout(PATIENCE, wire.send(request)).await.map_err(late)??;
    let answer = tokio::time::timeout(PATIENCE, wire.read()).await.map_err(late)??;
    let answer = answer.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "no answer"))?;
    match status(answer.head) {
        200 => Ok(answer.body),
        status => {
            let mut text = format!("the worker was answered with {status}: ");
            // Writing into a string cannot fail.
            let _ = write!(text, "{}", String::from_utf8_lossy(answer.body));
            Err(io::Error::other(text))
        }
    }
}

/// The leases in an answer, and their jobs.
fn leases(answer: &[u8], payload_bytes: usize) -> (Vec<String>, Vec<ItemKey>) {
    let (mut leases, mut jobs) = (Vec::new(), Vec::new());
    for text in behind(answer, br#""lease":""#, payload_bytes) {
        let lease = text.get(..LEASE_LEN).and_then(|lease| std::str::from_utf8(lease).ok());
        let job = item_key(&text[..text.len().min(ID_WITHIN)], br#""id":"job_"#);
        leases.extend(lease.map(str::to_owned));
        jobs.extend(job);
    }
    (leases, jobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lease_comes_with_its_job() {
        let payload = "p".repeat(300);
        let one = |digit: u8| {
            let lease = format!("lse_{}{digit}", "a".repeat(42));
            format!(
                r#"{{"lease":"{lease}","expires_at":"2026-01-01T00:00:00.000Z","job":{{"id":"job_01jd000000000000000000000{digit}","kind":"bench","input":{{"payload":"{payload}"}}}}}}"#
            )
        };
        let answer = format!(r#"{{"leases":[{},{}]}}"#, one(1), one(2));
        let (leases, jobs) = leases(answer.as_bytes(), 300);
        assert_eq!(leases.iter().map(|lease| &lease[46..]).collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(jobs.iter().map(|job| job[25]).collect::<Vec<_>>(), [b'1', b'2']);
        assert!(super::leases(br#"{"leases":[]}"#, 300).0.is_empty());
    }
}
