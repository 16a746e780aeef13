//! The desk: which leases are held, how they are kept, and the reports on their way to the service.
//!
//! Called by `worker` and `program`. Leases are extended all together; reports go as they come, many in one call when the service
//! is slow, and are repeated until they are answered.
//!
//! Invariant: a lease is kept until its report was answered, or it is lost; who holds a lost one is told at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::{BACKOFF, is_final};
use crate::cli::client::Client;
use crate::cli::output;

/// Results may have 256 KiB each, a call 16 MiB.
const BATCH_MAX: usize = 50;

/// Why a program is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Someone cancelled the job.
    Cancelled,
    /// The lease is lost.
    Lost,
    /// This worker is to stop.
    Stopping,
}

/// A lease in someone's hands.
#[derive(Debug)]
pub(super) struct Held {
    /// The lease.
    pub(super) lease: String,
    stop: watch::Receiver<Option<Why>>,
}

impl Held {
    /// Completes when the program is to stop.
    pub(super) async fn stopped(&self) -> Why {
        let mut stop = self.stop.clone();
        // Nobody left who could say it: the lease is not kept any more.
        stop.wait_for(Option::is_some).await.ok().and_then(|why| *why).unwrap_or(Why::Lost)
    }
}

struct Kept {
    stop: watch::Sender<Option<Why>>,
    /// Until then it is surely ours.
    until: Instant,
}

/// A report on its way.
#[derive(Debug)]
pub(super) struct Report {
    lease: String,
    /// As JSON.
    text: String,
    /// Whom to tell that it was answered; `None`: it ends the lease.
    answered: Option<oneshot::Sender<()>>,
}

/// The desk.
pub(super) struct Desk {
    client: Client,
    lease: Duration,
    kept: Mutex<HashMap<String, Kept>>,
    emptied: Notify,
    reports: mpsc::UnboundedSender<Report>,
}

impl Desk {
    /// An empty one; reports come out at the other end.
    pub(super) fn new(client: Client, lease: Duration) -> (Self, mpsc::UnboundedReceiver<Report>) {
        let (reports, out) = mpsc::unbounded_channel();
        (Self { client, lease, kept: Mutex::default(), emptied: Notify::new(), reports }, out)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease that was just handed out.
    pub(super) fn take(&self, lease: &str) -> Held {
        let (stop, stopped) = watch::channel(None);
        self.lock().insert(lease.to_owned(), Kept { stop, until: Instant::now() + self.lease });
        Held { lease: lease.to_owned(), stop: stopped }
    }

    /// Nobody cares for it any more.
    pub(super) fn drop_lease(&self, lease: &str) {
        let mut kept = self.lock();
        kept.remove(lease);
        if kept.is_empty() {
            self.emptied.notify_waiters();
        }
    }

    /// Reports the end of a try.
    pub(super) fn report(&self, lease: String, text: String) {
        // The other end lives as long as the desk.
        let _ = self.reports.send(Report { lease, text, answered: None });
    }

    /// Reports progress; the receiver hears of the answer.
    pub(super) fn tell(&self, lease: &str, told: Map<String, Value>) -> oneshot::Receiver<()> {
        let (answered, answer) = oneshot::channel();
        let text = json!({ "lease": lease, "outcome": "progress", "progress": told }).to_string();
        let _ = self.reports.send(Report { lease: lease.to_owned(), text, answered: Some(answered) });
        answer
    }

    /// All programs are to stop, and their jobs to be given back.
    pub(super) fn stop_all(&self) {
        self.lock().values().for_each(|kept| stop(kept, Why::Stopping));
    }

    /// Completes when no lease is held any more.
    pub(super) async fn nothing_left(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if self.lock().is_empty() {
                return;
            }
            emptied.await;
        }
    }
}

/// The first reason counts.
fn stop(kept: &Kept, why: Why) {
    kept.stop.send_if_modified(|stopped| {
        let first = stopped.is_none();
        stopped.get_or_insert(why);
        first
    });
}

/// Keeps all leases, for ever.
pub(super) async fn extend(desk: Arc<Desk>) {
    let every = desk.lease / 3;
    let mut wait = every;
    loop {
        tokio::time::sleep(wait).await;
        let leases: Vec<String> = desk.lock().keys().cloned().collect();
        let asked = Instant::now();
        let mut failed = false;
        for some in leases.chunks(1000) {
            let body = json!({ "leases": some, "lease_s": desk.lease.as_secs_f64() }).to_string();
            match desk.client.post_within("/v1/leases/extend", body, every.max(Duration::from_secs(1))).await
            {
                Ok(reply) => {
                    let answers = reply.body["leases"].as_array().cloned().unwrap_or_default();
                    for answer in &answers {
                        note_answer(&desk, asked, answer);
                    }
                }
                Err(error) => {
                    failed = true;
                    output::note(&format!("leases cannot be extended: {error}"));
                }
            }
        }
        // Whoever could not be asked for so long may have been given to another.
        desk.lock()
            .values()
            .filter(|kept| kept.until <= Instant::now())
            .for_each(|kept| stop(kept, Why::Lost));
        wait = if failed { (every / 4).min(Duration::from_secs(1)) } else { every };
    }
}

fn note_answer(desk: &Desk, asked: Instant, answer: &Value) {
    let mut kept = desk.lock();
    let Some(kept) = answer["lease"].as_str().and_then(|lease| kept.get_mut(lease)) else { return };
    if answer["status"] != 200 {
        stop(kept, Why::Lost);
    } else if answer["cancelled"] == true {
        stop(kept, Why::Cancelled);
    } else {
        kept.until = asked + desk.lease;
    }
}

/// Carries reports to the service, for ever.
pub(super) async fn report(desk: Arc<Desk>, mut reports: mpsc::UnboundedReceiver<Report>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while reports.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let texts: Vec<&str> = batch.iter().map(|report| report.text.as_str()).collect();
        let body = format!("{{\"reports\":[{}]}}", texts.join(","));
        let answers = carry(&desk, body).await;
        for (index, report) in batch.drain(..).enumerate() {
            settle(&desk, report, answers.get(index).unwrap_or(&Value::Null));
        }
    }
}

/// Repeats the call until it is answered. Reports may be repeated: the same one is answered the same.
async fn carry(desk: &Desk, body: String) -> Vec<Value> {
    let mut wait = BACKOFF.0;
    loop {
        match desk.client.post_within("/v1/leases/report", body.clone(), Duration::from_secs(10)).await {
            Ok(reply) => return reply.body["reports"].as_array().cloned().unwrap_or_default(),
            Err(error) if is_final(&error) => {
                output::note(&format!("reports were refused: {error}"));
                return Vec::new();
            }
            Err(error) => output::note(&format!("{error}; trying again in {:.1} s", wait.as_secs_f64())),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(BACKOFF.1);
    }
}

fn settle(desk: &Desk, report: Report, answer: &Value) {
    let detail = answer["problem"]["detail"].as_str().unwrap_or("it was not answered");
    match (answer["status"].as_i64(), report.answered) {
        (Some(200), None) => {}
        (Some(200), Some(answered)) => {
            // Its program may have ended meanwhile.
            let _ = answered.send(());
            return;
        }
        (Some(409), Some(answered)) => {
            let _ = answered.send(());
            // Lost or cancelled: the extension tells which; nothing more will be heard of it.
            return;
        }
        (_, Some(answered)) => {
            output::note(&format!("progress was refused: {detail}"));
            let _ = answered.send(());
            return;
        }
        (Some(422), None) => {
            output::note(&format!("a result was refused: {detail}"));
            let error = json!({ "code": "result_refused", "message": detail, "retryable": false });
            let text = json!({ "lease": report.lease, "outcome": "failed", "error": error }).to_string();
            // A second refusal would come again and again.
            if !report.text.contains("result_refused") {
                desk.report(report.lease, text);
                return;
            }
        }
        (_, None) => output::note(&format!("a report changed nothing: {detail}")),
    }
    desk.drop_lease(&report.lease);
}
