//! The guarded client: a request in, what became of it out.
//!
//! Called by the dispatcher's sends, the executor of `http` jobs and test sends; nothing else in the program may follow
//! a URL that a user gave. Follows no redirect, obeys no proxy of the environment, keeps no cookie, unpacks nothing and
//! tries nothing twice: every request on the wire is one attempt of its caller's.
//!
//! Order: text and literals (`target`) → every address of a name (`resolver`) → connect to exactly those → peer.
//!
//! Invariants: nothing is sent to an address that the policy refuses; one deadline spans everything from the lookup to
//! the last byte; no answer makes it hold more than the head and `keep_body_max` bytes plus one chunk.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method};
use tokio::time::timeout_at;

use super::error::{ErrorClass, Phase, SendError};
use super::resolver::{Dns, JudgingResolver};
use super::timing::{self, NoteConnecting, Timings};
use super::tls;
use crate::target::{OutboundPolicy, TargetUrl, Transport, is_reachable_by};

/// Idle connections are closed after this time: many servers close theirs after 5 s, and a request that meets a
/// closing connection is a failed attempt.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// Idle connections per origin, as many as the jobs of a process that may call one service at a time by default.
const POOL_IDLE_PER_HOST: usize = 256;
/// Connecting, all addresses and TLS included, takes no longer than this even where the deadline is a day away.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A silent peer is asked this often whether it is still there, for the sake of jobs that wait for hours.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
/// What was sent must be acknowledged within this time by the peer's kernel.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MAX: Duration = Duration::from_mins(1);
/// The longest deadline of all, that of jobs.
const TIMEOUT_MAX: Duration = Duration::from_hours(24);

/// The only way to a URL that a user gave. Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub struct GuardedClient {
    policy: Arc<OutboundPolicy>,
    /// Two, because what a name may resolve to depends on the scheme, and a resolver sees the name only.
    http: reqwest::Client,
    https: reqwest::Client,
}

impl std::fmt::Debug for GuardedClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuardedClient").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// One request. The headers are sent as they are: custom ones come from [`super::parse_custom_headers`].
#[derive(Clone, Debug)]
pub struct OutboundRequest {
    /// The method.
    pub method: Method,
    /// Where to.
    pub url: TargetUrl,
    /// All headers but `host` and `content-length`.
    pub headers: HeaderMap,
    /// The body, sent byte for byte.
    pub body: Bytes,
    /// The total deadline, from the lookup of the name to the last byte of the answer; a day at most.
    pub timeout: Duration,
    /// How many bytes of the answer's body are kept.
    pub keep_body_max: usize,
    /// How many bytes of the answer's body are read before the connection is closed.
    pub read_body_max: usize,
}

/// What became of a request.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Where the time went.
    pub timings: Timings,
    /// The peer that answered.
    pub remote_address: Option<SocketAddr>,
    /// From the call to its end, body included.
    pub duration: Duration,
    /// The answer, as soon as its head was complete, whatever became of its body.
    pub result: Result<Answer, SendError>,
}

/// An answer whose head arrived in time.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status, 200 to 999.
    pub status: u16,
    /// The headers as received.
    pub headers: HeaderMap,
    /// The first bytes of the body, at most `keep_body_max`.
    pub body: Bytes,
    /// Whether the body had, or may have had, more than was kept.
    pub truncated: bool,
    /// How reading the body ended.
    pub body_end: BodyEnd,
}

/// How reading a body ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyEnd {
    /// It was read to its end.
    Complete,
    /// It was longer than `read_body_max`.
    Cut,
    /// It did not end in time, or broke off.
    Broken(SendError),
}

/// The client could not be made: a bug in this build or its TLS library, nothing that a setting causes.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The TLS library refuses our configuration.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The HTTP library refuses our configuration.
    #[error("the HTTP client cannot be set up")]
    Http(#[from] reqwest::Error),
}

impl GuardedClient {
    /// A client that trusts the system's certificate authorities.
    ///
    /// # Errors
    /// See [`ClientError`]. Missing certificate authorities are none: then every https send says so.
    pub fn new(policy: OutboundPolicy, dns: Arc<dyn Dns>) -> Result<Self, ClientError> {
        Self::with_tls(policy, dns, tls::system_config()?)
    }

    pub(super) fn with_tls(
        policy: OutboundPolicy,
        dns: Arc<dyn Dns>,
        tls: rustls::ClientConfig,
    ) -> Result<Self, ClientError> {
        let policy = Arc::new(policy);
        let resolver = |transport, dns| JudgingResolver { dns, policy: Arc::clone(&policy), transport };
        let http = build(resolver(Transport::Http, Arc::clone(&dns)), tls.clone())?;
        let https = build(resolver(Transport::Https, dns), tls)?;
        Ok(Self { policy, http, https })
    }

    /// What may be called.
    pub fn policy(&self) -> &OutboundPolicy {
        &self.policy
    }

    /// Sends one request once, and says what became of it. Dropping the future closes the connection.
    pub async fn send(&self, request: OutboundRequest) -> Exchange {
        let began = Instant::now();
        if request.url.judge(&self.policy).is_err() {
            return Exchange {
                timings: Timings::default(),
                remote_address: None,
                duration: began.elapsed(),
                result: Err(SendError::blocked()),
            };
        }
        let deadline = tokio::time::Instant::now() + request.timeout.min(TIMEOUT_MAX);
        let limits = BodyLimits { deadline, keep: request.keep_body_max, read: request.read_body_max };
        let transport = request.url.transport();
        let (head, marks) = timing::observe(timeout_at(deadline, self.execute(request))).await;
        let timings = marks.timings(began, Instant::now(), matches!(head, Ok(Ok(_))));
        let (remote_address, result) = match head {
            Ok(Ok(response)) => (response.remote_addr(), self.receive(response, transport, limits).await),
            Ok(Err(error)) => (None, Err(SendError::of(&error, marks.phase()))),
            Err(_) => (None, Err(SendError::timed_out(marks.phase()))),
        };
        let remote_address = remote_address.filter(|_| result.is_ok());
        Exchange { timings, remote_address, duration: began.elapsed(), result }
    }

    async fn execute(&self, request: OutboundRequest) -> Result<reqwest::Response, reqwest::Error> {
        let client = match request.url.transport() {
            Transport::Http => &self.http,
            Transport::Https => &self.https,
        };
        let mut outgoing = reqwest::Request::new(request.method, request.url.url().clone());
        *outgoing.headers_mut() = request.headers;
        *outgoing.body_mut() = Some(request.body.into());
        client.execute(outgoing).await
    }

    async fn receive(
        &self,
        response: reqwest::Response,
        transport: Transport,
        limits: BodyLimits,
    ) -> Result<Answer, SendError> {
        // What connected was judged before; this holds even if a layer below should one day look up names itself.
        let is_allowed = |peer: SocketAddr| is_reachable_by(transport, peer.ip(), &self.policy);
        if !response.remote_addr().is_some_and(is_allowed) {
            return Err(SendError::blocked());
        }
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let (body, truncated, body_end) = limits.read(response).await;
        Ok(Answer { status, headers, body, truncated, body_end })
    }
}

#[derive(Clone, Copy)]
struct BodyLimits {
    deadline: tokio::time::Instant,
    keep: usize,
    read: usize,
}

impl BodyLimits {
    /// Reads as much as the limits allow. What is over them is not read: the connection is closed instead.
    async fn read(self, mut response: reqwest::Response) -> (Bytes, bool, BodyEnd) {
        let (mut kept, mut read) = (BytesMut::new(), 0);
        let end = loop {
            let chunk = match timeout_at(self.deadline, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => break BodyEnd::Complete,
                Ok(Err(error)) => break BodyEnd::Broken(SendError::of(&error, Phase::Exchanging)),
                Err(_) => {
                    let message = "timed out while reading the body of the answer";
                    break BodyEnd::Broken(SendError::new(ErrorClass::Timeout, message));
                }
            };
            let room = self.keep.min(self.read).saturating_sub(kept.len());
            kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
            read += chunk.len();
            if read > self.read {
                break BodyEnd::Cut;
            }
        };
        let truncated = read > kept.len() || end != BodyEnd::Complete;
        (kept.freeze(), truncated, end)
    }
}

fn build(resolver: JudgingResolver, tls: rustls::ClientConfig) -> Result<reqwest::Client, ClientError> {
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(Arc::new(resolver))
        .connector_layer(NoteConnecting)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .retry(reqwest::retry::never())
        .http1_only()
        .connect_timeout(CONNECT_MAX)
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(POOL_IDLE_PER_HOST)
        .tcp_nodelay(true)
        .tcp_keepalive(KEEPALIVE_EVERY);
    #[cfg(target_os = "linux")]
    let builder = builder.tcp_user_timeout(UNACKNOWLEDGED_MAX);
    Ok(builder.build()?)
}

#[cfg(test)]
mod tests;
