//! A real HTTP server that answers by a script, and can misbehave.
//!
//! Written on bare TCP, in threads: a server library would not let us hang, drip or hang up in the middle of the head.
//! Records every request as it came, and lets tests wait for the n-th one.
//!
//! Invariant: when it is dropped, all its connections are closed and its port is free.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{PATIENCE, spec};

/// What the receiver does with one request.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// A whole answer.
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// As the inner one, when the test calls `release`.
    Held(Box<Reply>),
    /// As the inner one, after a while.
    Late(Duration, Box<Reply>),
    /// No answer at all, as long as the connection lives.
    Hang,
    /// The connection is closed in the middle of the head.
    CloseInHead,
    /// Something that is not HTTP.
    Babble,
    /// A 200 and a body that comes a byte at a time and never ends.
    Drip,
    /// A 200 and a body that never ends.
    Flood,
}

impl From<u16> for Reply {
    fn from(status: u16) -> Self {
        Self::Answer(status, Vec::new(), Vec::new())
    }
}

impl Reply {
    pub(crate) fn with_header(self, name: &'static str, value: impl Into<String>) -> Self {
        match self {
            Self::Answer(status, mut headers, body) => {
                headers.push((name, value.into()));
                Self::Answer(status, headers, body)
            }
            other => other,
        }
    }

    pub(crate) fn with_body(self, body: impl Into<Vec<u8>>) -> Self {
        match self {
            Self::Answer(status, headers, _) => Self::Answer(status, headers, body.into()),
            other => other,
        }
    }

    /// Answered after a while.
    pub(crate) fn late(self, by: Duration) -> Self {
        Self::Late(by, Box::new(self))
    }

    /// Answered when the test calls `release`.
    pub(crate) fn held(self) -> Self {
        Self::Held(Box::new(self))
    }
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) at: Instant,
}

impl Received {
    /// A header's text; empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("visible ASCII"))
    }

    /// What does not fit `openapi.yaml`, where it is one of our messages.
    fn fault(&self) -> Option<String> {
        let fault = self
            .headers
            .contains_key("webhook-id")
            .then(|| spec::check_webhook(&self.body).err())
            .flatten()?;
        Some(format!("{}: {fault}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

#[derive(Debug)]
struct State {
    script: Vec<Reply>,
    received: Vec<Received>,
    /// What does not fit `openapi.yaml` in one of them.
    fault: Option<String>,
    connections: Vec<TcpStream>,
    released: bool,
    closed: bool,
    /// Requests that have come and are not answered, and the most there ever were.
    open: usize,
    open_max: usize,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Rings at `release` and at the end.
    gate: Condvar,
    /// How many requests have come.
    count: watch::Sender<usize>,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server.
#[derive(Debug)]
pub(crate) struct Receiver {
    address: SocketAddr,
    inner: Arc<Inner>,
}

impl Receiver {
    /// Answers every request with 200.
    pub(crate) fn ok() -> Self {
        Self::answering([200])
    }

    /// Answers the requests in their order; the last reply is repeated.
    pub(crate) fn answering<R: Into<Reply>>(script: impl IntoIterator<Item = R>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = State {
            script: script.into_iter().map(Into::into).collect(),
            received: Vec::new(),
            fault: None,
            connections: Vec::new(),
            released: false,
            closed: false,
            open: 0,
            open_max: 0,
        };
        let inner =
            Arc::new(Inner { state: Mutex::new(state), gate: Condvar::new(), count: watch::channel(0).0 });
        let for_thread = inner.clone();
        std::thread::spawn(move || accept(&listener, &for_thread));
        Self { address, inner }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets all held answers go, also those to come.
    pub(crate) fn release(&self) {
        self.inner.lock().released = true;
        self.inner.gate.notify_all();
    }

    /// What has come so far.
    pub(crate) fn received(&self) -> Vec<Received> {
        let state = self.inner.lock();
        assert_eq!(state.fault, None, "a message that openapi.yaml does not describe");
        state.received.clone()
    }

    /// So many requests were under way together at most.
    pub(crate) fn together_max(&self) -> usize {
        self.inner.lock().open_max
    }

    /// The n-th request (1, 2, …), as soon as it has come.
    pub(crate) async fn nth(&self, n: usize) -> Received {
        let mut count = self.inner.count.subscribe();
        // What the wait gives back locks the count, which a new request must be able to raise.
        let came = tokio::time::timeout(PATIENCE, count.wait_for(|count| *count >= n)).await.is_ok();
        assert!(came, "request {n} did not come within {PATIENCE:?}; {} came", self.received().len());
        self.received().swap_remove(n - 1)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let connections = {
            let mut state = self.inner.lock();
            state.closed = true;
            std::mem::take(&mut state.connections)
        };
        self.inner.gate.notify_all();
        for connection in connections {
            let _ = connection.shutdown(Shutdown::Both);
        }
        // Wakes the accepting thread, which then ends.
        let _ = TcpStream::connect(self.address);
    }
}

fn accept(listener: &TcpListener, inner: &Arc<Inner>) {
    for connection in listener.incoming().flatten() {
        {
            let mut state = inner.lock();
            if state.closed {
                return;
            }
            if let Ok(copy) = connection.try_clone() {
                state.connections.push(copy);
            }
        }
        let inner = inner.clone();
        std::thread::spawn(move || {
            let _ = serve(&connection, &inner);
            // The copy for the end keeps the socket open otherwise.
            let _ = connection.shutdown(Shutdown::Both);
        });
    }
}

/// Serves one connection until either side closes it.
fn serve(connection: &TcpStream, inner: &Inner) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection);
    while let Some(request) = read_request(&mut reader)? {
        let fault = request.fault();
        let reply = {
            let mut state = inner.lock();
            state.fault = state.fault.take().or(fault);
            state.received.push(request);
            state.open += 1;
            state.open_max = state.open_max.max(state.open);
            let place = state.received.len().min(state.script.len()) - 1;
            inner.count.send_replace(state.received.len());
            state.script[place].clone()
        };
        // Before the answer: the next request may come as soon as it is there.
        let reply = wait(inner, &reply);
        inner.lock().open -= 1;
        if !answer(connection, reply)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Waits until it is time for the answer.
fn wait<'a>(inner: &Inner, reply: &'a Reply) -> &'a Reply {
    match reply {
        Reply::Held(reply) => {
            let mut state = inner.lock();
            while !state.released && !state.closed {
                state = inner.gate.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            drop(state);
            wait(inner, reply)
        }
        Reply::Late(by, reply) => {
            std::thread::sleep(*by);
            wait(inner, reply)
        }
        reply => reply,
    }
}

/// Answers one request. `false`: the connection is of no use any more.
fn answer(mut connection: &TcpStream, reply: &Reply) -> std::io::Result<bool> {
    match reply {
        Reply::Answer(status, headers, body) => {
            let mut head = format!("HTTP/1.1 {status} Status\r\n");
            for (name, value) in headers {
                let _ = write!(head, "{name}: {value}\r\n");
            }
            if *status != 204 && *status != 304 {
                let _ = write!(head, "content-length: {}\r\n", body.len());
            }
            connection.write_all(&[head.as_bytes(), b"\r\n", body].concat())?;
            return Ok(true);
        }
        // They were waited for.
        Reply::Held(reply) | Reply::Late(_, reply) => return answer(connection, reply),
        // Ends when the other side, or the end of the test, closes the connection.
        Reply::Hang => drop(connection.read(&mut [0])?),
        Reply::CloseInHead => connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-le")?,
        Reply::Babble => connection.write_all(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")?,
        Reply::Drip => {
            connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")?;
            connection.set_read_timeout(Some(Duration::from_millis(50)))?;
            while connection.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
            {
                connection.write_all(b".")?;
            }
        }
        Reply::Flood => {
            connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            loop {
                connection.write_all(&[b'.'; 8192])?;
            }
        }
    }
    Ok(false)
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> std::io::Result<Option<Received>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = http::HeaderMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        let name = http::HeaderName::try_from(name).expect("the service sends header names");
        headers.append(name, value.trim().parse().expect("the service sends header values"));
    }
    let length = headers
        .get("content-length")
        .map_or(0, |value| value.to_str().expect("ASCII").parse().expect("a length"));
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Received { method, path, headers, body, at: Instant::now() }))
}
