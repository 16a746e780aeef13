//! The user's side of the demo: a web service that takes its time, and a receiver that fails once.
//!
//! Called by `demo` and `story`. A real HTTP server on a free port of 127.0.0.1; what it sees goes to the story over a
//! channel, in the order in which it happened. Knows nothing of Ringback and verifies nothing.
//!
//! Invariant: headers and body of a callback are handed on as they arrived.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::http::StatusCode;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// How long the report takes to make: long enough to see that the call did not wait for it.
const REPORT_TAKES: Duration = Duration::from_millis(400);
/// What the receiver saw and nobody has looked at yet; more are answered with 503.
const SEEN_MAX: usize = 1024;
/// An event carries up to 256 KiB of input and as much of a result, escaped.
const BODY_MAX_BYTES: usize = 4 * 1024 * 1024;

/// What happened on the user's side.
#[derive(Debug)]
pub(super) enum Seen {
    /// The web service made its report, and answers with this status.
    Reported(u16),
    /// The receiver was called.
    CalledBack(Callback),
}

/// A callback as it arrived.
#[derive(Debug, Clone)]
pub(super) struct Callback {
    /// Those of Standard Webhooks first, then by name.
    pub(super) headers: Vec<(String, String)>,
    /// Byte for byte.
    pub(super) body: web::Bytes,
    /// What the receiver answered.
    pub(super) answered: u16,
}

impl Callback {
    /// The value of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(held, _)| held == name).map(|(_, value)| value.as_str())
    }
}

/// The server.
#[derive(Debug)]
pub(super) struct Stage {
    address: SocketAddr,
    /// What happened, in order.
    pub(super) seen: mpsc::Receiver<Seen>,
    handle: ServerHandle,
    server: JoinSet<std::io::Result<()>>,
}

impl Stage {
    /// Starts it.
    /// # Errors
    /// No port of 127.0.0.1 is free.
    pub(super) fn open() -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (sender, seen) = mpsc::channel(SEEN_MAX);
        let desk = web::Data::new(Desk { seen: sender, has_failed: AtomicBool::new(false) });
        let server = HttpServer::new(move || {
            App::new()
                .app_data(desk.clone())
                .app_data(web::PayloadConfig::new(BODY_MAX_BYTES))
                .route("/report", web::get().to(report))
                .route("/callback", web::post().to(callback))
        })
        .workers(1)
        .disable_signals()
        .shutdown_timeout(1)
        .listen(listener)?
        .run();
        let handle = server.handle();
        let mut owner = JoinSet::new();
        owner.spawn(server);
        Ok(Self { address, seen, handle, server: owner })
    }

    /// The address of a path on it.
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Stops it.
    pub(super) async fn close(mut self) {
        self.handle.stop(false).await;
        while self.server.join_next().await.is_some() {}
    }
}

struct Desk {
    seen: mpsc::Sender<Seen>,
    has_failed: AtomicBool,
}

/// `GET /report`: some work that takes a while.
async fn report(desk: web::Data<Desk>) -> HttpResponse {
    tokio::time::sleep(REPORT_TAKES).await;
    let _ = desk.seen.try_send(Seen::Reported(200));
    HttpResponse::Ok().json(serde_json::json!({ "report": "thumbnails", "images": 24, "failed": 0 }))
}

/// `POST /callback`: fails at the first call, as receivers do while they are being deployed.
async fn callback(request: HttpRequest, body: web::Bytes, desk: web::Data<Desk>) -> HttpResponse {
    let status = if desk.has_failed.swap(true, Ordering::Relaxed) { 200 } else { 500 };
    let headers = request.headers().iter();
    let mut headers: Vec<(String, String)> = headers
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    headers.sort_by_key(|(name, _)| (rank(name), name.clone()));
    let seen = Seen::CalledBack(Callback { headers, body, answered: status });
    let status = if desk.seen.try_send(seen).is_ok() { status } else { 503 };
    HttpResponse::build(StatusCode::from_u16(status).unwrap_or_default()).finish()
}

/// The signed ones first, in the order in which they are signed.
fn rank(name: &str) -> usize {
    let first = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    first.iter().position(|signed| *signed == name).unwrap_or(first.len())
}
