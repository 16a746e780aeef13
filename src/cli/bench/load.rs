//! The load: callers with a kept-alive connection each, in a closed loop (as fast as answers come) or an open one.
//!
//! In the open loop requests are due on a schedule that does not wait for answers, and latency counts from the moment a
//! request was due: a stall shows in every request that should have been sent meanwhile ("coordinated omission" is
//! leaving those out). Threads of its own, named `bench-load` and `bench-pace`, so that their CPU can be told apart;
//! the pacer sleeps by the system's clock, because the runtime's timers are no finer than a millisecond.
//!
//! Invariant: count and time are bounded; a service that hangs ends the run, and the report says so.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::marks::{ItemKey, Marks};
use super::wire::{Wire, status};

/// The threads' names, at most 15 letters.
pub(super) const THREADS: [&str; 2] = ["bench-load", "bench-pace"];
/// The pacer's breath: requests that are due within it go off together.
const BREATH: Duration = Duration::from_micros(200);
/// How long an answer may take, and how long the open loop may lag behind, before the run is given up.
const PATIENCE: Duration = Duration::from_secs(20);
const ACCEPTED: u16 = 202;

/// When requests are sent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// Each caller sends the next one when its last one is answered, after this pause.
    Closed { pause: Duration },
    /// So many in all, each when a caller's last one is answered.
    Count { requests: u64 },
    /// So many a second, evenly, whatever the answers do.
    Open { per_s: f64 },
}

/// What to send.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Where to.
    pub(super) address: SocketAddr,
    /// The whole request.
    pub(super) request: Bytes,
    /// Where the ids in an answer are.
    pub(super) marks: Marks,
    /// Connections.
    pub(super) callers: usize,
    /// When.
    pub(super) pace: Pace,
    /// In the closed loop a request waits for a permit of this; the receiver gives one for each callback.
    pub(super) window: Option<Arc<Semaphore>>,
    /// For how long.
    pub(super) duration: Duration,
}

/// One accepted request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    /// When it was to be sent.
    pub(super) due: Instant,
    /// When its answer was there.
    pub(super) answered: Instant,
}

/// What came of a plan.
#[derive(Debug)]
pub(super) struct Load {
    /// When it began.
    pub(super) began: Instant,
    /// What was answered with 202.
    pub(super) accepted: Vec<Sent>,
    /// The jobs or events in the answers, and when they were due.
    pub(super) items: Vec<(ItemKey, Instant)>,
    /// Other statuses.
    pub(super) refused: BTreeMap<u16, u64>,
    /// Requests whose connection broke or that were not answered in time.
    pub(super) broken: u64,
    /// Requests of the schedule that were never sent.
    pub(super) unsent: u64,
}

struct Gate {
    plan: Plan,
    began: Instant,
    /// How many requests there are in all, and how many were taken.
    total: u64,
    taken: AtomicU64,
    due: Semaphore,
}

/// Runs a plan on threads of its own.
pub(super) async fn run(plan: Plan) -> io::Result<Load> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let total = match plan.pace {
        Pace::Open { per_s } => (per_s * plan.duration.as_secs_f64()).round() as u64,
        Pace::Closed { .. } => u64::MAX,
        Pace::Count { requests } => requests,
    };
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new().name(THREADS[0].to_owned()).spawn(move || {
        // Who asked may have been interrupted.
        let _ = tell.send(runtime.block_on(call(plan, total)));
    })?;
    told.await.map_err(|_| io::Error::other("the load's thread died"))?
}

async fn call(plan: Plan, total: u64) -> io::Result<Load> {
    let mut wires = Vec::with_capacity(plan.callers);
    for _ in 0..plan.callers {
        wires.push(Wire::connect(plan.address).await?);
    }
    let began = Instant::now();
    let gate = Arc::new(Gate { plan, began, total, taken: AtomicU64::new(0), due: Semaphore::new(0) });
    if let Pace::Open { per_s } = gate.plan.pace {
        let gate = gate.clone();
        std::thread::Builder::new().name(THREADS[1].to_owned()).spawn(move || pace(&gate, per_s))?;
    }
    let mut callers = JoinSet::new();
    for wire in wires {
        callers.spawn(caller(gate.clone(), wire));
    }
    let mut load = Load {
        began,
        accepted: Vec::new(),
        items: Vec::new(),
        refused: BTreeMap::new(),
        broken: 0,
        unsent: 0,
    };
    let mut sent = 0;
    while let Some(one) = callers.join_next().await {
        let one = one.map_err(io::Error::other)?;
        sent += one.accepted.len() as u64 + one.broken + one.refused.values().sum::<u64>();
        load.accepted.extend(one.accepted);
        load.items.extend(one.items);
        load.broken += one.broken;
        one.refused.into_iter().for_each(|(status, count)| *load.refused.entry(status).or_default() += count);
    }
    if !matches!(gate.plan.pace, Pace::Closed { .. }) {
        load.unsent = total.saturating_sub(sent);
    }
    Ok(load)
}

/// Lets requests go when they are due.
fn pace(gate: &Gate, per_s: f64) {
    let mut let_go = 0;
    while let_go < gate.total && gate.began.elapsed() < gate.plan.duration + PATIENCE {
        let due = ((gate.began.elapsed().as_secs_f64() * per_s) as u64 + 1).min(gate.total);
        gate.due.add_permits(usize::try_from(due - let_go).unwrap_or(0));
        let_go = due;
        let next = gate.began + Duration::from_secs_f64(let_go as f64 / per_s);
        std::thread::sleep(next.saturating_duration_since(Instant::now()).max(BREATH));
    }
    // Who waits for another one shall see that there is none.
    gate.due.close();
}

impl Gate {
    /// Waits for the turn of the next request, and says when it was due; `None`: that was all.
    async fn next(&self) -> Option<Instant> {
        let end = self.began + self.plan.duration;
        match self.plan.pace {
            Pace::Closed { pause } => {
                if let Some(window) = &self.plan.window {
                    let wait = tokio::time::timeout_at(end.into(), window.acquire());
                    wait.await.ok()?.ok()?.forget();
                }
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
                let now = Instant::now();
                (now < end).then_some(now)
            }
            Pace::Count { .. } => {
                let number = self.taken.fetch_add(1, Ordering::Relaxed);
                let now = Instant::now();
                (number < self.total && now < end).then_some(now)
            }
            Pace::Open { per_s } => {
                // A closed gate has let all requests go; what was not taken yet is overdue.
                if let Ok(permit) = self.due.acquire().await {
                    permit.forget();
                }
                let number = self.taken.fetch_add(1, Ordering::Relaxed);
                let due = self.began + Duration::from_secs_f64(number as f64 / per_s);
                (number < self.total && Instant::now() < end + PATIENCE).then_some(due)
            }
        }
    }
}

#[derive(Default)]
struct Called {
    accepted: Vec<Sent>,
    items: Vec<(ItemKey, Instant)>,
    refused: BTreeMap<u16, u64>,
    broken: u64,
}

async fn caller(gate: Arc<Gate>, mut wire: Wire) -> Called {
    let mut called = Called::default();
    let mut found = Vec::with_capacity(gate.plan.marks.count);
    while let Some(due) = gate.next().await {
        match tokio::time::timeout(PATIENCE, exchange(&mut wire, &gate.plan, &mut found)).await {
            Ok(Ok(ACCEPTED)) => {
                called.accepted.push(Sent { due, answered: Instant::now() });
                called.items.extend(found.drain(..).map(|key| (key, due)));
            }
            Ok(Ok(status)) => *called.refused.entry(status).or_default() += 1,
            Ok(Err(_)) | Err(_) => {
                called.broken += 1;
                match Wire::connect(gate.plan.address).await {
                    Ok(fresh) => wire = fresh,
                    Err(_) => return called,
                }
            }
        }
    }
    called
}

/// Returns the status. What was accepted is put into `found`.
async fn exchange(wire: &mut Wire, plan: &Plan, found: &mut Vec<ItemKey>) -> io::Result<u16> {
    wire.send(&plan.request).await?;
    let Some(answer) = wire.read().await? else {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no answer"));
    };
    let status = status(answer.head);
    if status == ACCEPTED {
        found.extend(plan.marks.keys(answer.body));
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers at once, but for one stall.
    async fn stalling(listener: tokio::net::TcpListener, stall: Duration) {
        let (stream, _) = listener.accept().await.expect("accepted");
        let mut wire = Wire::on(stream).expect("wire");
        let mut count = 0;
        while let Ok(Some(_)) = wire.read().await {
            count += 1;
            if count == 20 {
                tokio::time::sleep(stall).await;
            }
            if wire.send(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").await.is_err() {
                return;
            }
        }
    }

    #[tokio::test]
    async fn a_stall_counts_for_all_that_were_due_meanwhile() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let plan = Plan {
            address: listener.local_addr().expect("address"),
            request: Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n"),
            marks: Marks { before: b"", count: 1, apart: 0 },
            callers: 1,
            pace: Pace::Open { per_s: 200.0 },
            window: None,
            duration: Duration::from_millis(500),
        };
        let stall = Duration::from_millis(200);
        let (load, ()) = tokio::join!(run(plan), stalling(listener, stall));
        let load = load.expect("load");
        assert_eq!((load.accepted.len(), load.unsent, load.broken), (100, 0, 0));
        let late = |sent: &&Sent| sent.answered - sent.due > Duration::from_millis(100);
        // Some twenty requests were due in the first half of the stall; a closed loop would have seen one late answer.
        assert!(load.accepted.iter().filter(late).count() >= 15);
    }
}
