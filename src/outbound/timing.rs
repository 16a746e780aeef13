//! Where the time of a request goes: name, connection, TLS, first byte.
//!
//! The client below hides its connector, so the moments are noted from three places that it calls on its way: the
//! resolver, a layer around its connector, and the TLS session store, which is asked at the start of each handshake.
//! They find the request that they work for in a task-local cell: a connector runs within the task of the request that
//! waits for it. When another connection becomes free first, the client finishes the connector in a task of its own,
//! where there is no cell; then nothing is noted, and the request has no such times, as for any reused connection.
//!
//! Invariant: measuring decides nothing. Without a cell everything works as well.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tower::{Layer, Service};

use super::error::Phase;

tokio::task_local! {
    static CELL: Arc<Mutex<Marks>>;
}

/// How long each part of a request took; `None` where it did not happen (a reused connection has no `dns`, `connect`
/// and `tls`, a literal no `dns`, http no `tls`). Of a part that failed, the time until it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Looking up the name.
    pub dns: Option<Duration>,
    /// Connecting by TCP.
    pub connect: Option<Duration>,
    /// The TLS handshake.
    pub tls: Option<Duration>,
    /// From the connection being there until the head of the answer was complete.
    pub first_byte: Option<Duration>,
}

/// Moments of one request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks {
    pub(super) connector_began: Option<Instant>,
    pub(super) dns_began: Option<Instant>,
    pub(super) dns_ended: Option<Instant>,
    /// The addresses of a name were found and judged; TCP begins.
    pub(super) dns_passed: Option<Instant>,
    pub(super) tls_began: Option<Instant>,
    pub(super) connected: Option<Instant>,
}

/// Runs `work` with a cell for its moments, and hands them back with its outcome.
pub(super) async fn observe<F: Future>(work: F) -> (F::Output, Marks) {
    let cell = Arc::new(Mutex::new(Marks::default()));
    let outcome = CELL.scope(Arc::clone(&cell), work).await;
    let marks = *cell.lock().unwrap_or_else(PoisonError::into_inner);
    (outcome, marks)
}

/// Notes a moment, if this task belongs to a request.
pub(super) fn mark(note: impl FnOnce(&mut Marks, Instant)) {
    // The error is a connector that outlived its request: nobody asks any more.
    let _ = CELL.try_with(|cell| {
        note(&mut cell.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
    });
}

impl Marks {
    /// How far the request got.
    pub(super) fn phase(&self) -> Phase {
        if self.connected.is_some() || self.connector_began.is_none() {
            Phase::Exchanging
        } else if self.tls_began.is_some() {
            Phase::Handshaking
        } else if self.dns_began.is_some() && self.dns_passed.is_none() {
            Phase::Resolving
        } else {
            Phase::Connecting
        }
    }

    /// The times of a request that began at `began` and whose head was complete, or which failed, at `ended`.
    pub(super) fn timings(&self, began: Instant, ended: Instant, has_head: bool) -> Timings {
        let first_byte = |since: Instant| has_head.then(|| ended.saturating_duration_since(since));
        if self.connected.is_none() && (has_head || self.connector_began.is_none()) {
            return Timings { first_byte: first_byte(began), ..Timings::default() };
        }
        let until = |from: Instant, to: Option<Instant>| to.unwrap_or(ended).saturating_duration_since(from);
        let dns = self.dns_began.map(|from| until(from, self.dns_ended));
        // Without a name there is no lookup, and connecting begins at once.
        let connect_began = if self.dns_began.is_some() { self.dns_passed } else { self.connector_began };
        Timings {
            dns,
            connect: connect_began.map(|from| until(from, self.tls_began.or(self.connected))),
            tls: self.tls_began.map(|from| until(from, self.connected)),
            first_byte: first_byte(self.connected.unwrap_or(began)),
        }
    }
}

/// Notes when the client's connector begins and succeeds.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoteConnecting;

impl<S> Layer<S> for NoteConnecting {
    type Service = NotingConnector<S>;

    fn layer(&self, inner: S) -> NotingConnector<S> {
        NotingConnector { inner }
    }
}

#[derive(Clone)]
pub(super) struct NotingConnector<S> {
    inner: S,
}

impl<S, Request> Service<Request> for NotingConnector<S>
where
    S: Service<Request>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let connecting: Pin<Box<S::Future>> = Box::pin(self.inner.call(request));
        Box::pin(async move {
            mark(|marks, now| marks.connector_began = Some(now));
            let outcome = connecting.await;
            if outcome.is_ok() {
                mark(|marks, now| marks.connected = Some(now));
            }
            outcome
        })
    }
}
