//! A walk through every route of a running service, with good requests and bad ones; each answer is held against the
//! specification.
//!
//! Speaks HTTP/1.1 by hand: some of these requests no client would make.

use std::net::SocketAddr;
use std::time::Duration;

use ringback::app::App;
use ringback::config::{Config, Database};
use ringback::http::ROUTES;
use ringback::secret::Secret;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::harness::service;
use crate::harness::spec::{check, check_webhook};

const KEY: &str = "rbk_0123456789abcdef0123456789abcdef";
const NOBODY: &str = "01jd7m3v6kf0qr8x2n4ab9cdef";

/// What came back.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(one, _)| one == name).map(|(_, value)| value.as_str())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

/// Sends a request and holds the answer against the specification. `extra` are header lines.
async fn send(address: SocketAddr, method: &str, path: &str, extra: &str, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{length}{extra}\r\n");
    stream.write_all(&[head.as_bytes(), body].concat()).await.expect("sent");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("an answer");
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(bytes[..end].to_vec()).expect("text");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let answer = Answer { status, headers, body: bytes[end + 4..].to_vec() };
    if let Err(fault) = check(method, path, status, answer.header("content-type"), &answer.body) {
        panic!("{fault}\n{}", String::from_utf8_lossy(&answer.body));
    }
    assert!(answer.header("request-id").is_some_and(|id| id.len() == 32), "{method} {path}: no request-id");
    answer
}

/// With the key, and JSON if there is a body.
async fn ask(address: SocketAddr, method: &str, path: &str, body: Option<Value>) -> Answer {
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let media_type = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
    let extra = format!("authorization: Bearer {KEY}\r\n{media_type}");
    send(address, method, path, &extra, body.as_bytes()).await
}

/// Starts the service on a database of its own, lets the test use it, and stops it.
async fn with_service<F: Future<Output = ()>>(test: impl FnOnce(SocketAddr) -> F) {
    let database = service::database().await;
    let mut config = Config::defaults().expect("defaults");
    config.database = Database::External(Secret::new(database.url()));
    config.listen = "127.0.0.1:0".parse().expect("an address");
    config.api_key = Some(Secret::new(KEY.to_owned()));
    config.master_key = Some(Secret::new("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned()));
    config.outbound.allow_networks = vec!["127.0.0.0/8".parse().expect("a network")];
    let app = App::build(config).await.expect("the service starts");
    let address = app.address;
    let (stop, stopped) = oneshot::channel::<()>();
    let tested = async move {
        test(address).await;
        drop(stop);
    };
    let signal = async move { drop(stopped.await) };
    tokio::join!(app.run(signal), tested);
}

/// A receiver that answers the first call with 200 and hands its body out.
async fn receive(listener: TcpListener) -> Vec<u8> {
    let (mut stream, _) = listener.accept().await.expect("a call");
    let mut bytes = Vec::new();
    let body = loop {
        stream.read_buf(&mut bytes).await.expect("a request");
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        if bytes.len() >= end + 4 + length.unwrap_or(0) {
            break bytes[end + 4..].to_vec();
        }
    };
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        .await
        .expect("answered");
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_is_served_and_knows_its_methods() {
    with_service(|address| async move {
        for (template, methods) in ROUTES {
            let path = template.replace("{id}", &format!("job_{NOBODY}"));
            for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
                let answer = ask(address, method, &path, None).await;
                let taken = methods.contains(&method);
                assert_eq!(answer.status == 405, !taken, "{method} {path}: {}", answer.status);
                if taken && answer.status == 404 {
                    assert!(
                        !String::from_utf8_lossy(&answer.body).contains("no such address"),
                        "{method} {path}"
                    );
                } else if !taken {
                    assert_eq!(answer.header("allow"), Some(methods.join(", ").as_str()), "{method} {path}");
                }
            }
            let head = send(address, "HEAD", &path, &format!("authorization: Bearer {KEY}\r\n"), b"").await;
            assert_eq!(head.status == 405, !methods.contains(&"GET"), "HEAD {path}: {}", head.status);
            let without_key = send(address, methods[0], &path, "", b"").await;
            let needs_key = path.starts_with("/v1/");
            assert_eq!(without_key.status == 401, needs_key, "{path} without a key: {}", without_key.status);
            assert_eq!(without_key.header("www-authenticate"), needs_key.then_some("Bearer"), "{path}");
        }
        assert_eq!(ask(address, "GET", "/v1/nothing", None).await.status, 404);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_described_from_its_post_to_its_callback() {
    let receiver = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let target = format!("http://{}/hook", receiver.local_addr().expect("bound"));
    with_service(|address| async move {
        let openapi = format!("http://{address}/openapi.yaml");
        let order = json!({"kind": "http", "input": {"url": openapi}, "callback_url": target, "metadata": {"order": "A"}});
        let accepted = ask(address, "POST", "/v1/jobs", Some(order)).await;
        assert_eq!(accepted.status, 202);
        let place = accepted.header("location").expect("a location").to_owned();
        assert_eq!(place, format!("/v1/jobs/{}", accepted.json()["id"].as_str().expect("an id")));

        let body = tokio::time::timeout(Duration::from_secs(20), receive(receiver)).await.expect("a callback");
        assert_eq!(check_webhook(&body), Ok(()));

        let job = ask(address, "GET", &format!("{place}?wait_s=20"), None).await;
        assert_eq!(job.json()["status"], "succeeded", "{}", job.json());
        assert_eq!(ask(address, "GET", &format!("{place}/attempts"), None).await.status, 200);
        assert_eq!(ask(address, "GET", "/v1/jobs?status=succeeded&metadata%5Border%5D=A", None).await.status, 200);
        assert_eq!(ask(address, "POST", &format!("{place}/cancel"), None).await.status, 409);
        assert_eq!(ask(address, "POST", &format!("{place}/retry"), None).await.status, 409);

        let list = ask(address, "GET", "/v1/deliveries", None).await.json();
        let id = list["data"][0]["id"].as_str().expect("a delivery").to_owned();
        let delivery = ask(address, "GET", &format!("/v1/deliveries/{id}"), None).await.json();
        assert!(delivery["attempts"].as_array().is_some_and(|attempts| attempts.len() <= 1), "{delivery}");
        assert_eq!(ask(address, "POST", &format!("/v1/deliveries/{id}/retry"), None).await.status, 409);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_requests_of_all_sorts_are_described() {
    with_service(|address| async move {
        let later = || json!({"kind": "resize", "input": [1, null, {"a": 1.5}], "delay_s": 3600});
        let batch = ask(address, "POST", "/v1/jobs/batch", Some(json!({"jobs": [later(), later(), later()]}))).await;
        assert_eq!(batch.status, 202);
        let page = ask(address, "GET", "/v1/jobs?limit=2&kind=resize&queue=default", None).await;
        let cursor = page.json()["next_cursor"].as_str().expect("a next page").to_owned();
        assert_eq!(page.header("link").map(|link| link.contains(&cursor)), Some(true));
        let last = ask(address, "GET", &format!("/v1/jobs?limit=2&cursor={cursor}"), None).await.json();
        assert_eq!((last["data"].as_array().map(Vec::len), &last["next_cursor"]), (Some(1), &Value::Null));

        let id = last["data"][0]["id"].as_str().expect("an id").to_owned();
        let cancelled = ask(address, "POST", &format!("/v1/jobs/{id}/cancel"), None).await.json();
        assert_eq!(cancelled["status"], "cancelled");
        assert_eq!(ask(address, "POST", &format!("/v1/jobs/{id}/retry"), None).await.json()["status"], "queued");

        let unique = || json!({"kind": "resize", "unique_key": "one", "callback": {
            "url": "http://127.0.0.1:19999/", "headers": {"x-a": "b"}, "on": ["failed"], "timeout_s": 1, "retry": {"max_attempts": 1}}});
        let statuses = [
            ask(address, "POST", "/v1/jobs", Some(unique())).await.status,
            ask(address, "POST", "/v1/jobs", Some(unique())).await.status,
        ];
        assert_eq!(statuses, [202, 200]);

        let head = format!("authorization: Bearer {KEY}\r\ncontent-type: application/json\r\nidempotency-key: \"k\"\r\n");
        let post = |body: &'static [u8]| send(address, "POST", "/v1/jobs", &head, body);
        assert_eq!(post(br#"{"kind": "x"}"#).await.status, 202);
        assert_eq!(post(br#"{"kind": "x"}"#).await.header("idempotency-replayed"), Some("true"));
        assert_eq!(post(br#"{"kind": "y"}"#).await.json()["code"], "idempotency-key-reused");

        let preferring = format!("authorization: Bearer {KEY}\r\ncontent-type: application/json\r\nprefer: wait=10\r\n");
        let failing = json!({"kind": "http", "input": {"url": format!("http://{address}/nothing")}}).to_string();
        let failed = send(address, "POST", "/v1/jobs", &preferring, failing.as_bytes()).await;
        assert_eq!((failed.status, &failed.json()["status"]), (200, &json!("failed")));
        assert_eq!(failed.header("preference-applied"), Some("wait=10"));

        assert_eq!(ask(address, "GET", "/v1/callback-secret", None).await.status, 200);
        let rotated = ask(address, "POST", "/v1/callback-secret/rotate", Some(json!({"overlap_s": 60}))).await;
        assert_eq!(rotated.json()["previous"].as_array().map(Vec::len), Some(1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_of_all_sorts_are_described() {
    with_service(|address| async move {
        let post = |path: &'static str, body: &'static str| async move {
            let extra = format!("authorization: Bearer {KEY}\r\ncontent-type: application/json\r\n");
            send(address, "POST", path, &extra, body.as_bytes()).await.status
        };
        for path in ["/v1/jobs", "/v1/jobs/batch", "/v1/callback-secret/rotate"] {
            for (body, status) in
                [("{", 400), ("[]", 422), ("{\"x\": 1}", 422), ("{\"a\": 1, \"a\": 1}", 400)]
            {
                assert_eq!(post(path, body).await, status, "{path} {body}");
            }
            let keyed = format!("authorization: Bearer {KEY}\r\n");
            let zipped = format!("{keyed}content-type: application/json\r\ncontent-encoding: gzip\r\n");
            let large = format!("{keyed}content-type: application/json\r\ncontent-length: 17000000\r\n");
            assert_eq!(send(address, "POST", path, &keyed, b"{}").await.status, 415, "{path}");
            assert_eq!(send(address, "POST", path, &zipped, b"{}").await.status, 415, "{path}");
            assert_eq!(send(address, "POST", path, &large, b"").await.status, 413, "{path}");
        }
        assert_eq!(post("/v1/jobs", "{\"kind\": \"http\"}").await, 422, "an http job needs an input");
        let job = format!("/v1/jobs/job_{NOBODY}");
        for (method, path, status) in [
            ("GET", "/v1/jobs?limit=0", 422),
            ("GET", "/v1/jobs?status=done", 422),
            ("GET", "/v1/jobs?kind=%00", 422),
            ("GET", "/v1/jobs?metadata%5Ba%5D=%00", 422),
            ("GET", "/v1/jobs?limit=1&limit=2", 422),
            ("GET", "/v1/jobs?cursor=x", 422),
            ("GET", "/v1/jobs?metadata=1", 422),
            ("GET", "/v1/jobs?metadata%5Ba%5D=1&metadata%5Ba%5D=2", 422),
            ("POST", "/v1/jobs?limit=2", 422),
            ("POST", "/v1/jobs/batch?x=2", 422),
            ("GET", "/v1/deliveries?since=yesterday", 422),
            ("GET", "/v1/deliveries?event_type=%00", 422),
            ("GET", "/v1/deliveries?job_id=evt_1", 422),
            ("GET", "/livez?x", 422),
            ("GET", "/readyz?x", 422),
            ("GET", "/openapi.yaml?x", 422),
            ("GET", &job, 404),
            ("GET", &format!("{job}?wait_s=61"), 422),
            ("GET", "/v1/jobs/nonsense", 404),
            ("GET", &format!("{job}/attempts"), 404),
            ("POST", &format!("{job}/cancel"), 404),
            ("POST", &format!("{job}/retry"), 404),
            ("GET", &format!("/v1/deliveries/dlv_{NOBODY}"), 404),
            ("POST", &format!("/v1/deliveries/dlv_{NOBODY}/retry"), 404),
        ] {
            assert_eq!(ask(address, method, path, None).await.status, status, "{method} {path}");
        }
    })
    .await;
}
