//! Tests of the guarded client on real sockets: a receiver that misbehaves by script, a DNS that is a table.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;
use crate::target::{NOT_ALLOWED, parse_target};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// What the receiver does on a connection after it has read a request.
#[derive(Clone, Debug)]
enum Act {
    /// Writes this to every request and keeps the connection.
    Answer(String),
    /// Writes this and closes.
    AnswerAndClose(String),
    /// Writes this and resets the connection.
    AnswerAndReset(String),
    /// Writes the first, then the second again and again with this pause between.
    Drip(String, String, Duration),
    /// Writes nothing.
    Hang,
}

struct Receiver {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Receiver {
    async fn that(act: Act) -> Self {
        Self::serving(act, None).await
    }

    #[expect(clippy::disallowed_methods, reason = "the receiver is not a task of the service")]
    async fn serving(act: Act, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (connections, requests) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<String>>>::default());
        let (counter, seen) = (Arc::clone(&connections), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let (act, seen, tls) = (act.clone(), Arc::clone(&seen), tls.clone());
                tokio::spawn(async move {
                    // How a client leaves is its own affair.
                    let _ = match tls {
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, act, &seen, |_| Ok(())).await,
                            Err(error) => Err(error),
                        },
                        None => {
                            serve(stream, act, &seen, |stream: &TcpStream| stream.set_zero_linger()).await
                        }
                    };
                });
            }
        });
        Self { address, connections, requests, task }
    }

    fn url(&self) -> String {
        format!("http://{}/hook?token=secret", self.address)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no panic").clone()
    }
}

async fn serve<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    mut stream: S,
    act: Act,
    seen: &Mutex<Vec<String>>,
    make_reset: impl Fn(&S) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let len = stream.read(&mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        seen.lock().expect("no panic").push(String::from_utf8_lossy(&buffer[..len]).into_owned());
        match &act {
            Act::Answer(text) => stream.write_all(text.as_bytes()).await?,
            Act::AnswerAndClose(text) => {
                stream.write_all(text.as_bytes()).await?;
                return stream.shutdown().await;
            }
            Act::AnswerAndReset(text) => {
                stream.write_all(text.as_bytes()).await?;
                stream.flush().await?;
                return make_reset(&stream);
            }
            Act::Drip(head, drop, pause) => {
                stream.write_all(head.as_bytes()).await?;
                loop {
                    stream.write_all(drop.as_bytes()).await?;
                    stream.flush().await?;
                    tokio::time::sleep(*pause).await;
                }
            }
            Act::Hang => std::future::pending().await,
        }
    }
}

/// Answers from a table; a name with several rows gets the next one at each lookup, the last one for ever.
#[derive(Default)]
struct Table {
    rows: HashMap<String, Vec<Vec<IpAddr>>>,
    lookups: AtomicUsize,
}

impl Table {
    fn with(name: &str, answers: &[&[&str]]) -> Arc<Self> {
        let row = |answer: &&[&str]| answer.iter().map(|ip| ip.parse().expect("an address")).collect();
        let rows = HashMap::from([(name.to_owned(), answers.iter().map(row).collect())]);
        Arc::new(Self { rows, ..Self::default() })
    }
}

impl Dns for Table {
    fn lookup(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let n = self.lookups.fetch_add(1, Ordering::SeqCst);
        let found = self.rows.get(host).and_then(|rows| rows.get(n).or(rows.last())).cloned();
        Box::pin(async move { found.ok_or_else(|| io::Error::other("no such name")) })
    }
}

fn opening(networks: &[&str]) -> OutboundPolicy {
    let allow_networks = networks.iter().map(|text| text.parse().expect("a network")).collect();
    OutboundPolicy { allow_networks, allow_http: false }
}

fn client_with(dns: Arc<Table>) -> GuardedClient {
    GuardedClient::new(opening(&["127.0.0.0/30"]), dns).expect("a client")
}

fn client() -> GuardedClient {
    client_with(Arc::default())
}

/// Judged as leniently as possible, so that the client's own judgement is what is tested.
fn request(url: &str) -> OutboundRequest {
    let lenient =
        OutboundPolicy { allow_http: true, ..opening(&["0.0.0.0/0", "::/0", "169.254.169.254/32"]) };
    OutboundRequest {
        method: Method::POST,
        url: parse_target(url, &lenient).expect("a URL"),
        headers: HeaderMap::new(),
        body: Bytes::from_static(b"{}"),
        timeout: Duration::from_secs(5),
        keep_body_max: 16 * 1024,
        read_body_max: 64 * 1024,
    }
}

fn within(url: &str, timeout_ms: u64) -> OutboundRequest {
    OutboundRequest { timeout: Duration::from_millis(timeout_ms), ..request(url) }
}

fn class(exchange: &Exchange) -> &'static str {
    exchange.result.as_ref().expect_err("no answer").class.as_str()
}

fn answer(exchange: &Exchange) -> &Answer {
    exchange.result.as_ref().expect("an answer")
}

#[tokio::test]
async fn a_request_arrives_as_given_and_its_answer_comes_back() {
    let receiver = Receiver::that(Act::Answer(OK.to_owned())).await;
    let mut request = request(&receiver.url());
    request.headers.insert("webhook-id", "evt_1".parse().expect("a value"));
    request.headers.insert("user-agent", "Ringback/test".parse().expect("a value"));
    let exchange = client().send(request).await;

    let answer = answer(&exchange);
    assert_eq!((answer.status, &answer.body[..], answer.truncated), (200, &b"ok"[..], false));
    assert_eq!(answer.body_end, BodyEnd::Complete);
    assert_eq!(answer.headers["content-length"], "2");
    assert_eq!(exchange.remote_address, Some(receiver.address));
    let seen = &receiver.requests()[0];
    assert!(seen.starts_with("POST /hook?token=secret HTTP/1.1\r\n"), "{seen}");
    assert!(seen.ends_with("\r\n\r\n{}"), "{seen}");
    for line in ["webhook-id: evt_1", "user-agent: Ringback/test", "content-length: 2"] {
        assert!(seen.contains(&format!("{line}\r\n")), "{seen}");
    }
    for absent in ["accept-encoding", "referer", "cookie"] {
        assert!(!seen.contains(absent), "{seen}");
    }
}

#[tokio::test]
async fn a_connection_is_reused_and_then_has_no_times_of_its_own() {
    let receiver = Receiver::that(Act::Answer(OK.to_owned())).await;
    let client = client_with(Table::with("receiver", &[&["127.0.0.1"]]));
    let url = format!("http://receiver:{}/", receiver.address.port());
    let first = client.send(request(&url)).await;
    let second = client.send(request(&url)).await;

    assert_eq!((answer(&first).status, answer(&second).status), (200, 200));
    assert_eq!(receiver.connections(), 1);
    let Timings { dns, connect, tls, first_byte } = first.timings;
    assert!(dns.is_some() && connect.is_some() && tls.is_none() && first_byte.is_some(), "{first:?}");
    assert!(dns.unwrap_or_default() + connect.unwrap_or_default() <= first.duration);
    let Timings { dns, connect, tls, first_byte } = second.timings;
    assert!(dns.is_none() && connect.is_none() && tls.is_none() && first_byte.is_some(), "{second:?}");
}

#[tokio::test]
async fn a_literal_has_a_time_to_connect_and_none_for_dns() {
    let receiver = Receiver::that(Act::Answer(OK.to_owned())).await;
    let timings = client().send(request(&receiver.url())).await.timings;
    assert!(timings.dns.is_none() && timings.connect.is_some() && timings.tls.is_none());
}

#[tokio::test]
async fn an_unknown_name_is_a_dns_error() {
    let client = client_with(Table::with("empty", &[&[]]));
    for url in ["https://unknown.example/", "http://empty/"] {
        let exchange = client.send(request(url)).await;
        assert_eq!(class(&exchange), "dns");
        assert!(exchange.timings.dns.is_some() && exchange.timings.connect.is_none(), "{exchange:?}");
    }
}

#[tokio::test]
async fn a_closed_port_is_a_connect_error() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("an address").port()
    };
    let exchange = client().send(request(&format!("http://127.0.0.1:{port}/x?token=secret"))).await;
    assert_eq!(class(&exchange), "connect");
    let message = &exchange.result.as_ref().expect_err("no answer").message;
    assert_eq!(message, "the connection was refused");
}

#[tokio::test]
async fn silence_is_a_timeout_at_the_deadline() {
    let receiver = Receiver::that(Act::Hang).await;
    let exchange = client().send(within(&receiver.url(), 200)).await;
    assert_eq!(class(&exchange), "timeout");
    assert!(exchange.duration >= Duration::from_millis(200) && exchange.duration < Duration::from_secs(2));
    assert!(exchange.timings.connect.is_some() && exchange.timings.first_byte.is_none());
}

#[tokio::test]
async fn a_dripping_head_is_a_timeout_too() {
    let head = "HTTP/1.1 200 OK\r\n".to_owned();
    let receiver = Receiver::that(Act::Drip(head, "x: y\r\n".to_owned(), Duration::from_millis(30))).await;
    assert_eq!(class(&client().send(within(&receiver.url(), 300)).await), "timeout");
    let informed = "HTTP/1.1 103 Early Hints\r\n\r\n".to_owned();
    let receiver = Receiver::that(Act::Drip(String::new(), informed, Duration::from_millis(1))).await;
    assert_eq!(class(&client().send(within(&receiver.url(), 300)).await), "timeout");
}

#[tokio::test]
async fn an_end_before_the_head_is_complete_is_a_reset() {
    for part in ["", "HTTP/1.1 200 OK\r\ncontent-le"] {
        for act in [Act::AnswerAndReset(part.to_owned()), Act::AnswerAndClose(part.to_owned())] {
            let receiver = Receiver::that(act.clone()).await;
            let exchange = client().send(request(&receiver.url())).await;
            assert_eq!(class(&exchange), "reset", "{act:?}");
            assert_eq!(receiver.requests().len(), 1, "never sent again");
        }
    }
}

#[tokio::test]
async fn garbage_is_a_protocol_error() {
    let many = "x: y\r\n".repeat(200);
    for text in [
        "SSH-2.0-OpenSSH_9.6\r\n\r\n".to_owned(),
        "HTTP/1.1 abc OK\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nbad header\r\n\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
        format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(600_000)),
    ] {
        let receiver = Receiver::that(Act::Answer(text)).await;
        assert_eq!(class(&client().send(request(&receiver.url())).await), "protocol");
    }
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let target = Receiver::that(Act::Answer(OK.to_owned())).await;
    let location = format!("http://{}/", target.address);
    let text = format!("HTTP/1.1 307 Moved\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
    let receiver = Receiver::that(Act::Answer(text)).await;
    let exchange = client().send(request(&receiver.url())).await;
    assert_eq!(answer(&exchange).status, 307);
    assert_eq!(answer(&exchange).headers["location"], location.as_str());
    assert_eq!((receiver.requests().len(), target.connections()), (1, 0));
}

#[tokio::test]
async fn an_endless_body_is_cut_and_still_an_answer() {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(4096));
    let receiver = Receiver::that(Act::Drip(head, chunk, Duration::ZERO)).await;
    let exchange = client().send(request(&receiver.url())).await;
    let answer = answer(&exchange);
    assert_eq!((answer.status, answer.body.len(), answer.truncated), (200, 16 * 1024, true));
    assert_eq!(answer.body_end, BodyEnd::Cut);
}

#[tokio::test]
async fn a_body_between_the_limits_is_read_to_its_end_and_kept_in_part() {
    for (len, kept) in [(16 * 1024, 16 * 1024), (64 * 1024, 16 * 1024)] {
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {len}\r\n\r\n{}", "x".repeat(len));
        let receiver = Receiver::that(Act::Answer(text)).await;
        let client = client();
        for _ in 0..2 {
            let exchange = client.send(request(&receiver.url())).await;
            let answer = answer(&exchange);
            assert_eq!((answer.body.len(), answer.truncated), (kept, len > kept));
            assert_eq!(answer.body_end, BodyEnd::Complete);
        }
        assert_eq!(receiver.connections(), 1);
    }
}

#[tokio::test]
async fn a_dripping_body_ends_at_the_deadline_and_is_still_an_answer() {
    let head = "HTTP/1.1 201 Created\r\ncontent-length: 100000\r\n\r\n".to_owned();
    let receiver = Receiver::that(Act::Drip(head, "x".to_owned(), Duration::from_millis(20))).await;
    let exchange = client().send(within(&receiver.url(), 300)).await;
    let answer = answer(&exchange);
    assert_eq!((answer.status, answer.truncated), (201, true));
    assert!(!answer.body.is_empty());
    assert!(matches!(&answer.body_end, BodyEnd::Broken(error) if error.class == ErrorClass::Timeout));
    assert!(exchange.duration < Duration::from_secs(2));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_still_an_answer() {
    let text = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_owned();
    let receiver = Receiver::that(Act::AnswerAndClose(text)).await;
    let exchange = client().send(request(&receiver.url())).await;
    let answer = answer(&exchange);
    assert_eq!((answer.status, &answer.body[..], answer.truncated), (200, &b"half"[..], true));
    assert!(
        matches!(&answer.body_end, BodyEnd::Broken(error) if error.class == ErrorClass::Reset),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_blocked_target_is_never_connected_to() {
    let receiver = Receiver::that(Act::Answer(OK.to_owned())).await;
    let port = receiver.address.port();
    let mixed: &[&str] = &["1.1.1.1", "127.0.0.1"];
    for (policy, answers) in [
        (OutboundPolicy::default(), &["127.0.0.1"][..]),
        (OutboundPolicy::default(), mixed),
        (OutboundPolicy { allow_http: true, ..OutboundPolicy::default() }, mixed),
        (opening(&["127.0.0.2/32"]), &["127.0.0.2", "127.0.0.1"]),
        (opening(&["127.0.0.0/8"]), &["127.0.0.1", "::ffff:127.0.0.1"]),
        (opening(&["127.0.0.0/8"]), &["127.0.0.1", "169.254.169.254"]),
    ] {
        let dns = Table::with("hook.example", &[answers]);
        let client = GuardedClient::new(policy.clone(), dns).expect("a client");
        for url in [format!("https://hook.example:{port}/"), format!("http://hook.example:{port}/")] {
            let exchange = client.send(request(&url)).await;
            assert_eq!(class(&exchange), "blocked_address", "{url} {policy:?}");
            assert_eq!(exchange.result.expect_err("blocked").message, NOT_ALLOWED);
            assert_eq!(exchange.remote_address, None);
        }
    }
    let public_only =
        GuardedClient::new(OutboundPolicy::default(), Arc::<Table>::default()).expect("a client");
    for url in [format!("http://127.0.0.1:{port}/"), format!("https://127.0.0.1:{port}/")] {
        let exchange = public_only.send(request(&url)).await;
        assert_eq!(class(&exchange), "blocked_address");
    }
    // Where nothing listens it looks the same.
    let exchange = public_only.send(request("https://10.255.255.1:9999/")).await;
    assert_eq!(exchange.result.expect_err("blocked").message, NOT_ALLOWED);
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn http_to_a_name_reaches_the_opened_networks_only() {
    let client = client_with(Table::with("hook.example", &[&["1.1.1.1"]]));
    assert_eq!(class(&client.send(request("http://hook.example/")).await), "blocked_address");
}

#[tokio::test]
async fn a_name_that_is_rebound_is_judged_anew() {
    let text = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let receiver = Receiver::that(Act::AnswerAndClose(text.to_owned())).await;
    let dns = Table::with("hook.example", &[&["127.0.0.1"], &["127.0.0.9"]]);
    let client = client_with(Arc::clone(&dns));
    let url = format!("http://hook.example:{}/", receiver.address.port());
    assert_eq!(answer(&client.send(request(&url)).await).status, 200);
    assert_eq!(class(&client.send(request(&url)).await), "blocked_address");
    assert_eq!((receiver.connections(), dns.lookups.load(Ordering::SeqCst)), (1, 2));
}

#[tokio::test]
async fn the_environments_proxies_are_ignored() {
    // A client of this crate's own settings, made while the environment names a proxy; the child process is this test.
    const MARK: &str = "RINGBACK_TEST_IN_CHILD";
    #[expect(clippy::disallowed_methods, reason = "a mark for the child process")]
    let is_child = std::env::var_os(MARK).is_some();
    if is_child {
        let receiver = Receiver::that(Act::Answer(OK.to_owned())).await;
        assert_eq!(answer(&client().send(request(&receiver.url())).await).status, 200);
        assert_eq!(receiver.connections(), 1);
        return;
    }
    let name = "outbound::client::tests::the_environments_proxies_are_ignored";
    let mut child = tokio::process::Command::new(std::env::current_exe().expect("this program"));
    child.args(["--exact", name]).env(MARK, "1");
    for variable in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        child.env(variable, "http://127.0.0.1:1");
    }
    let output = child.output().await.expect("runs");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

mod with_tls {
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    use super::*;

    struct Certified {
        acceptor: tokio_rustls::TlsAcceptor,
        trusting: rustls::ClientConfig,
    }

    fn certified_for(name: &str) -> Certified {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a key pair");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a root");
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&provider),
        )
        .build()
        .expect("a verifier");
        let trusting = tls::config_with(provider, verifier).expect("a configuration");
        Certified { acceptor: Arc::new(server).into(), trusting }
    }

    fn trusting_client(certified: &Certified) -> GuardedClient {
        let dns = Table::with("hook.example", &[&["127.0.0.1"]]);
        GuardedClient::with_tls(opening(&["127.0.0.0/8"]), dns, certified.trusting.clone()).expect("a client")
    }

    #[tokio::test]
    async fn a_trusted_receiver_is_reached_and_the_handshake_is_timed() {
        let certified = certified_for("hook.example");
        let receiver = Receiver::serving(Act::Answer(OK.to_owned()), Some(certified.acceptor.clone())).await;
        let client = trusting_client(&certified);
        let url = format!("https://hook.example:{}/", receiver.address.port());
        let first = client.send(request(&url)).await;
        assert_eq!(answer(&first).status, 200);
        let Timings { dns, connect, tls, first_byte } = first.timings;
        assert!(dns.is_some() && connect.is_some() && tls.is_some() && first_byte.is_some(), "{first:?}");
        let second = client.send(request(&url)).await;
        assert_eq!((second.timings.connect, second.timings.tls), (None, None));
        assert_eq!((answer(&second).status, receiver.connections()), (200, 1));
    }

    #[tokio::test]
    async fn a_certificate_that_nobody_vouches_for_is_a_tls_error() {
        let certified = certified_for("hook.example");
        let receiver = Receiver::serving(Act::Answer(OK.to_owned()), Some(certified.acceptor.clone())).await;
        let client = client_with(Table::with("hook.example", &[&["127.0.0.1"]]));
        let exchange =
            client.send(request(&format!("https://hook.example:{}/", receiver.address.port()))).await;
        assert_eq!(class(&exchange), "tls", "{exchange:?}");
        assert!(receiver.requests().is_empty());
        assert!(exchange.timings.tls.is_some());
    }

    #[tokio::test]
    async fn a_certificate_for_another_host_is_a_tls_error() {
        let certified = certified_for("other.example");
        let receiver = Receiver::serving(Act::Answer(OK.to_owned()), Some(certified.acceptor.clone())).await;
        let client = trusting_client(&certified);
        let exchange =
            client.send(request(&format!("https://hook.example:{}/", receiver.address.port()))).await;
        assert_eq!(class(&exchange), "tls");
        assert_eq!(exchange.result.expect_err("refused").message, "the certificate is for another host");
    }

    #[tokio::test]
    async fn plain_http_and_a_closed_handshake_are_tls_errors() {
        let certified = certified_for("hook.example");
        let client = trusting_client(&certified);
        for act in [
            Act::AnswerAndClose("HTTP/1.1 400 Bad Request\r\n\r\n".to_owned()),
            Act::AnswerAndClose(String::new()),
            Act::AnswerAndReset(String::new()),
        ] {
            let receiver = Receiver::that(act).await;
            let url = format!("https://hook.example:{}/", receiver.address.port());
            assert_eq!(class(&client.send(request(&url)).await), "tls");
        }
        let receiver = Receiver::that(Act::Hang).await;
        let url = format!("https://hook.example:{}/", receiver.address.port());
        let exchange = client.send(within(&url, 200)).await;
        assert_eq!(class(&exchange), "timeout");
        let message = exchange.result.expect_err("no answer").message;
        assert_eq!(message, "timed out during the TLS handshake");
    }

    #[tokio::test]
    async fn without_certificate_authorities_https_says_so() {
        let certified = certified_for("hook.example");
        let receiver = Receiver::serving(Act::Answer(OK.to_owned()), Some(certified.acceptor.clone())).await;
        let dns = Table::with("hook.example", &[&["127.0.0.1"]]);
        let config = tls::config_without_authorities().expect("a configuration");
        let client = GuardedClient::with_tls(opening(&["127.0.0.0/8"]), dns, config).expect("a client");
        let exchange =
            client.send(request(&format!("https://hook.example:{}/", receiver.address.port()))).await;
        assert_eq!(class(&exchange), "tls");
        assert!(exchange.result.expect_err("refused").message.contains("certificate authorities"));
    }
}
