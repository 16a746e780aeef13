//! A line to the database that can be cut and mended.
//!
//! Stands between a service and its database, as a network does. Knows nothing of the protocol.
//!
//! Invariant: after `cut` no byte passes, and nobody gets through, until `mend`.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use url::Url;

#[derive(Debug, Default)]
struct Line {
    is_cut: bool,
    is_over: bool,
    connections: Vec<TcpStream>,
}

/// The line. Cut for good when it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    line: Arc<Mutex<Line>>,
}

/// Where the database is.
#[derive(Debug, Clone)]
enum Upstream {
    Unix(String),
    Tcp(String),
}

/// To read from, to write to, and to hang up with.
type Ends = (Box<dyn Read + Send>, Box<dyn Write + Send>, Box<dyn Fn() + Send>);

impl Upstream {
    fn connect(&self) -> std::io::Result<Ends> {
        Ok(match self {
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                let end = stream.try_clone()?;
                let hang_up = move || drop(end.shutdown(Shutdown::Both));
                (Box::new(stream.try_clone()?), Box::new(stream), Box::new(hang_up))
            }
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                let end = stream.try_clone()?;
                let hang_up = move || drop(end.shutdown(Shutdown::Both));
                (Box::new(stream.try_clone()?), Box::new(stream), Box::new(hang_up))
            }
        })
    }
}

fn lock(line: &Mutex<Line>) -> MutexGuard<'_, Line> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Before the database of this URL; and the URL that leads through it.
    pub(crate) fn before(url: &str) -> (Self, String) {
        let mut url = Url::parse(url).expect("a URL");
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let upstream = upstream(&mut url, address);
        let line = Arc::new(Mutex::new(Line::default()));
        let for_thread = line.clone();
        std::thread::spawn(move || accept(&listener, &upstream, &for_thread));
        (Self { address, line }, url.into())
    }

    pub(crate) fn cut(&self) {
        let mut line = lock(&self.line);
        line.is_cut = true;
        for connection in line.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn mend(&self) {
        lock(&self.line).is_cut = false;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        lock(&self.line).is_over = true;
        self.cut();
        // Wakes the accepting thread, which then ends.
        let _ = TcpStream::connect(self.address);
    }
}

/// Turns the URL of a database into that of the proxy, and tells where the database is.
fn upstream(url: &mut Url, proxy: SocketAddr) -> Upstream {
    let query: std::collections::HashMap<String, String> = url.query_pairs().into_owned().collect();
    let Some(folder) = query.get("host") else {
        let there = format!("{}:{}", url.host_str().unwrap_or("127.0.0.1"), url.port().unwrap_or(5432));
        url.set_host(Some("127.0.0.1")).expect("a URL with a host");
        url.set_port(Some(proxy.port())).expect("a URL with a host");
        return Upstream::Tcp(there);
    };
    let text = |name: &str| query.get(name).cloned().unwrap_or_default();
    let there = Upstream::Unix(format!("{folder}/.s.PGSQL.{}", text("port")));
    let text = format!("postgres://{}@{proxy}{}?sslmode=disable", text("user"), url.path());
    *url = Url::parse(&text).expect("a URL");
    there
}

fn accept(listener: &TcpListener, upstream: &Upstream, line: &Arc<Mutex<Line>>) {
    for connection in listener.incoming().flatten() {
        let mut state = lock(line);
        if state.is_over {
            return;
        }
        if !state.is_cut && pass(&connection, upstream).is_ok() {
            state.connections.push(connection);
        }
    }
}

/// Copies in both directions, until either side closes.
fn pass(connection: &TcpStream, upstream: &Upstream) -> std::io::Result<()> {
    let (mut from_server, mut to_server, hang_up) = upstream.connect()?;
    let (mut from_client, mut to_client) = (connection.try_clone()?, connection.try_clone()?);
    connection.set_nodelay(true)?;
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        hang_up();
    });
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    Ok(())
}
