//! What the service refuses, and in which words.
//!
//! That every refusal is a problem document with a request's id is checked in `harness::observed`.

use http::Method;
use serde_json::{Value, json};

use crate::harness::client::string;
use crate::harness::{Answer, Ringback};

/// The service answers, whatever was sent to it before.
async fn goes_on(ring: &Ringback) {
    ring.submit(json!({ "kind": "resize" })).await;
}

async fn post_raw(ring: &Ringback, body: impl Into<Vec<u8>>) -> Answer {
    ring.call(Method::POST, "/v1/jobs").raw_json(body).send().await
}

fn nested(depth: usize) -> String {
    format!(r#"{{"kind":"resize","input":{}{}}}"#, "[".repeat(depth), "]".repeat(depth))
}

#[tokio::test]
async fn a_body_that_two_readers_could_understand_differently_is_400() {
    let ring = Ringback::start().await;
    let cases: [(&str, Vec<u8>); 14] = [
        ("nothing", Vec::new()),
        ("no JSON", b"kind=http".to_vec()),
        ("cut off", br#"{"kind":"resize""#.to_vec()),
        ("duplicate keys", br#"{"kind":"resize","kind":"http"}"#.to_vec()),
        ("duplicate keys, one escaped", br#"{"kind":"resize","input":{"a":1,"\u0061":2}}"#.to_vec()),
        ("a lone surrogate", br#"{"kind":"resize","input":"\ud800"}"#.to_vec()),
        ("a NUL", br#"{"kind":"resize","input":"\u0000"}"#.to_vec()),
        ("too deep", nested(65).into_bytes()),
        ("out of range", br#"{"kind":"resize","input":1e999}"#.to_vec()),
        ("trailing bytes", br#"{"kind":"resize"} {}"#.to_vec()),
        ("a byte order mark", b"\xef\xbb\xbf{\"kind\":\"resize\"}".to_vec()),
        ("not UTF-8", b"{\"kind\":\"resize\",\"input\":\"\xff\"}".to_vec()),
        ("NaN", br#"{"kind":"resize","input":NaN}"#.to_vec()),
        ("a comment", br#"{"kind":"resize"/**/}"#.to_vec()),
    ];
    for (what, body) in cases {
        let answer = post_raw(&ring, body).await;
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        assert!(string(&answer.json()["type"]).ends_with(":not-json"), "{what}: {}", answer.text());
    }
    goes_on(&ring).await;
}

#[tokio::test]
async fn an_input_may_be_64_deep() {
    let ring = Ringback::start().await;
    post_raw(&ring, nested(64)).await.expect(202);
    let batch = format!(r#"{{"jobs":[{}]}}"#, nested(64));
    ring.call(Method::POST, "/v1/jobs/batch").raw_json(batch).send().await.expect(202);
    let batch = format!(r#"{{"jobs":[{}]}}"#, nested(65));
    let answer = ring.call(Method::POST, "/v1/jobs/batch").raw_json(batch).send().await;
    assert!(matches!(answer.status, 400 | 422), "{}", answer.text());
}

#[tokio::test]
async fn a_body_must_be_plain_json() {
    let ring = Ringback::start().await;
    let job = json!({ "kind": "resize" }).to_string();
    for media_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        let call = ring.call(Method::POST, "/v1/jobs").header("content-type", media_type).body(job.clone());
        call.send().await.expect(415);
    }
    ring.call(Method::POST, "/v1/jobs").body(job.clone()).send().await.expect(415);
    for encoding in ["gzip", "identity", "br"] {
        let call = ring.call(Method::POST, "/v1/jobs").header("content-encoding", encoding);
        call.raw_json(job.clone()).send().await.expect(415);
    }
    let call = ring.call(Method::POST, "/v1/jobs").header("content-type", "Application/JSON; charset=utf-8");
    call.body(job).send().await.expect(202);
}

#[tokio::test]
async fn what_is_too_large_is_413() {
    let ring = Ringback::start().await;
    let input = |bytes: usize| format!(r#"{{"kind":"resize","input":"{}"}}"#, "x".repeat(bytes - 2));
    let body = |bytes: usize| {
        let job = r#"{"kind":"resize"}"#;
        format!("{job}{}", " ".repeat(bytes - job.len()))
    };
    let batch = |input: usize| {
        let job = format!(r#"{{"kind":"resize","input":"{}"}}"#, "x".repeat(input));
        format!(r#"{{"jobs":[{}]}}"#, vec![job.as_str(); 70].join(","))
    };

    post_raw(&ring, input(256 * 1024)).await.expect(202);
    post_raw(&ring, input(256 * 1024 + 1)).await.expect(413);
    post_raw(&ring, body(512 * 1024)).await.expect(202);
    post_raw(&ring, body(512 * 1024 + 1)).await.expect(413);
    let call = |body: String| ring.call(Method::POST, "/v1/jobs/batch").raw_json(body).send();
    call(batch(200_000)).await.expect(202);
    call(batch(250_000)).await.expect(413);
    call(format!(r#"{{"jobs":[{}]}}"#, input(256 * 1024 + 1))).await.expect(413);
    goes_on(&ring).await;
}

#[tokio::test]
async fn a_wrong_field_is_named_by_its_pointer() {
    let ring = Ringback::start().await;
    let url = "https://example.com/";
    let cases = [
        ("", json!([])),
        ("", json!("resize")),
        ("/kind", json!({})),
        ("/kind", json!({ "kind": null })),
        ("/kind", json!({ "kind": 7 })),
        ("/kind", json!({ "kind": "" })),
        ("/kind", json!({ "kind": "re size" })),
        ("/kind", json!({ "kind": "x".repeat(101) })),
        ("/knid", json!({ "kind": "resize", "knid": 1 })),
        ("/a~1b~0c", json!({ "kind": "resize", "a/b~c": 1 })),
        ("/queue", json!({ "kind": "resize", "queue": "ä" })),
        ("/priority", json!({ "kind": "resize", "priority": 101 })),
        ("/priority", json!({ "kind": "resize", "priority": 1.5 })),
        ("/priority", json!({ "kind": "resize", "priority": "1" })),
        ("/run_at", json!({ "kind": "resize", "run_at": "tomorrow" })),
        ("/run_at", json!({ "kind": "resize", "run_at": "2033-01-31T12:00:00" })),
        ("/delay_s", json!({ "kind": "resize", "delay_s": -1 })),
        ("/timeout_s", json!({ "kind": "resize", "timeout_s": 0.05 })),
        ("/timeout_s", json!({ "kind": "resize", "timeout_s": 86_401 })),
        ("/max_attempts", json!({ "kind": "resize", "max_attempts": 0 })),
        ("/backoff", json!({ "kind": "resize", "backoff": 5 })),
        ("/backoff/initial_s", json!({ "kind": "resize", "backoff": {"initial_s": 0.001} })),
        ("/backoff/initial", json!({ "kind": "resize", "backoff": {"initial": 1} })),
        ("/backoff/jitter", json!({ "kind": "resize", "backoff": {"jitter": 1.01} })),
        ("/unique_key", json!({ "kind": "resize", "unique_key": "" })),
        ("/metadata", json!({ "kind": "resize", "metadata": ["a"] })),
        ("/metadata/a", json!({ "kind": "resize", "metadata": {"a": 1} })),
        ("/callback/url", json!({ "kind": "resize", "callback": {} })),
        ("/callback/timeout_s", json!({ "kind": "resize", "callback": {"url": url, "timeout_s": 61} })),
        ("/callback/secret", json!({ "kind": "resize", "callback": {"url": url, "secret": "abc"} })),
        ("/callback/on/1", json!({ "kind": "resize", "callback": {"url": url, "on": ["failed", "ended"]} })),
        (
            "/callback/headers/webhook-id",
            json!({ "kind": "resize", "callback": {"url": url, "headers": {"webhook-id": "1"}} }),
        ),
        (
            "/callback/headers/x",
            json!({ "kind": "resize", "callback": {"url": url, "headers": {"x": "a\r\nb: c"}} }),
        ),
        (
            "/callback/retry/max_attempts",
            json!({ "kind": "resize", "callback": {"url": url, "retry": {"max_attempts": 0}} }),
        ),
        ("/callback", json!({ "kind": "resize", "callback_url": url, "callback": {"url": url} })),
        ("/input", json!({ "kind": "http" })),
        ("/input/url", json!({ "kind": "http", "input": {} })),
        ("/input/method", json!({ "kind": "http", "input": {"url": url, "method": "TRACE"} })),
        ("/input/headers/host", json!({ "kind": "http", "input": {"url": url, "headers": {"host": "x"}} })),
        ("/input/success_status", json!({ "kind": "http", "input": {"url": url, "success_status": 99} })),
        ("/input/timeout", json!({ "kind": "http", "input": {"url": url, "timeout": 1} })),
    ];
    for (pointer, job) in cases {
        let answer = ring.post("/v1/jobs", job.clone()).await;
        assert_eq!(answer.status, 422, "{job}: {}", answer.text());
        assert_eq!(answer.pointers(), [pointer], "{job}: {}", answer.text());
    }
    goes_on(&ring).await;
}

#[tokio::test]
async fn all_wrong_fields_are_told_at_once() {
    let ring = Ringback::start().await;
    let job = json!({ "kind": "http", "input": {"url": "nonsense"}, "priority": 1000, "colour": "red" });
    let mut pointers = ring.post("/v1/jobs", job).await.expect(422).pointers();
    pointers.sort();
    assert_eq!(pointers, ["/colour", "/input/url", "/priority"]);
}

#[tokio::test]
async fn a_url_that_may_not_be_called_is_refused_where_it_stands() {
    let ring = Ringback::with(|config| config.outbound.allow_networks = Vec::new()).await;
    let mut sentences = std::collections::HashSet::new();
    let private = [
        "https://127.0.0.1/",
        "https://10.1.2.3/",
        "https://192.168.0.1/x",
        "https://169.254.169.254/latest",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[fd00::1]/",
        "https://0x7f000001/",
        "https://127.1/",
        "https://localhost/",
        "https://db.internal/",
        "https://printer.local/",
        "https://example.com:22/",
    ];
    let wrong = [
        "",
        "nonsense",
        "/hook",
        "ftp://example.com/",
        "http://example.com/",
        "https://user:password@example.com/",
        "https://exa mple.com/",
        "https://example.com/#fragment",
        &format!("https://example.com/{}", "x".repeat(2048)),
    ];
    for url in private.into_iter().chain(wrong) {
        let callback = ring.post("/v1/jobs", json!({ "kind": "resize", "callback_url": url })).await;
        assert_eq!(callback.status, 422, "{url}");
        assert_eq!(callback.pointers(), ["/callback_url"], "{url}");
        let input = ring.post("/v1/jobs", json!({ "kind": "http", "input": {"url": url} })).await.expect(422);
        assert_eq!(input.pointers(), ["/input/url"], "{url}");
        let inner =
            ring.post("/v1/jobs", json!({ "kind": "resize", "callback": {"url": url} })).await.expect(422);
        assert_eq!(inner.pointers(), ["/callback/url"], "{url}");
        if private.contains(&url) {
            sentences.insert(string(&callback.json()["errors"][0]["detail"]));
        }
    }
    assert_eq!(sentences.len(), 1, "one sentence for all, or it is an oracle: {sentences:?}");
}

#[tokio::test]
async fn without_a_valid_key_nothing_is_told() {
    let ring = Ringback::start().await;
    let other = "rbk_ffffffffffffffffffffffffffffffffffffffff";
    let job = ring.submit(json!({ "kind": "resize" })).await;
    for key in ["", other, "rbk_", "x"] {
        let stranger = ring.with_key(key);
        for path in ["/v1/jobs", &format!("/v1/jobs/{job}"), "/v1/deliveries", "/v1/callback-secret"] {
            let answer = stranger.get(path).await.expect(401);
            assert_eq!(answer.header("www-authenticate"), "Bearer", "{path}");
        }
        // Neither the body nor the id is looked at before the key.
        stranger.call(Method::POST, "/v1/jobs").raw_json("{").send().await.expect(401);
        stranger.get("/v1/jobs/none").await.expect(401);
    }
    let basic = ring.with_key("").call(Method::GET, "/v1/jobs").header("authorization", "Basic cmJrOg==");
    basic.send().await.expect(401);
}

#[tokio::test]
async fn what_is_not_there_is_404() {
    let ring = Ringback::start().await;
    let missing = "job_01h455vb4pex5vsknk084sn02q";
    for path in [
        "/v2/jobs".to_owned(),
        "/v1/jobs/".to_owned(),
        format!("/v1/jobs/{missing}"),
        format!("/v1/jobs/{missing}/attempts"),
        "/v1/jobs/job_none".to_owned(),
        "/v1/jobs/%00".to_owned(),
        "/v1/jobs/dlv_01h455vb4pex5vsknk084sn02q".to_owned(),
        format!("/v1/jobs/{}", "x".repeat(5000)),
        "/v1/deliveries/dlv_01h455vb4pex5vsknk084sn02q".to_owned(),
        format!("/v1/deliveries/{missing}"),
    ] {
        ring.get(&path).await.expect(404);
    }
    for path in [
        format!("/v1/jobs/{missing}/cancel"),
        format!("/v1/jobs/{missing}/retry"),
        "/v1/jobs/x/retry".to_owned(),
    ] {
        ring.act(&path).await.expect(404);
    }
    goes_on(&ring).await;
}

#[tokio::test]
async fn a_method_that_an_address_does_not_take_is_405() {
    let ring = Ringback::start().await;
    let cases = [
        (Method::DELETE, "/v1/jobs", "GET, POST"),
        (Method::GET, "/v1/jobs/batch", "POST"),
        (Method::PATCH, "/v1/jobs/job_01h455vb4pex5vsknk084sn02q", "GET"),
        (Method::GET, "/v1/jobs/job_01h455vb4pex5vsknk084sn02q/cancel", "POST"),
        (Method::PUT, "/v1/callback-secret", "GET"),
        (Method::POST, "/livez", "GET"),
    ];
    for (method, path, allow) in cases {
        let answer = ring.call(method, path).send().await.expect(405);
        assert_eq!(answer.header("allow"), allow, "{path}");
    }
}

#[tokio::test]
async fn an_unknown_query_parameter_is_422() {
    let ring = Ringback::start().await;
    let job = ring.submit(json!({ "kind": "resize" })).await;
    for (path, pointer) in [
        (format!("/v1/jobs/{job}?wait=3"), "/wait"),
        (format!("/v1/jobs/{job}?wait_s=61"), "/wait_s"),
        (format!("/v1/jobs/{job}?wait_s=-1"), "/wait_s"),
        (format!("/v1/jobs/{job}?wait_s=NaN"), "/wait_s"),
        (format!("/v1/jobs/{job}?wait_s=1&wait_s=2"), "/wait_s"),
    ] {
        assert_eq!(ring.get(&path).await.expect(422).pointers(), [pointer], "{path}");
    }
    let answer = ring.post("/v1/jobs?wait_s=3", json!({ "kind": "resize" })).await.expect(422);
    assert_eq!(answer.pointers(), ["/wait_s"]);
}

#[tokio::test]
async fn the_probes_and_the_specification_need_no_key() {
    let ring = Ringback::start().await;
    let stranger = ring.with_key("");
    for path in ["/livez", "/readyz", "/openapi.yaml"] {
        stranger.get(path).await.expect(200);
        let head = stranger.call(Method::HEAD, path).send().await.expect(200);
        assert_eq!(head.body, b"");
    }
    assert_eq!(ring.get("/readyz").await.json(), json!({ "status": "ok" }));
    assert_ne!(ring.get("/livez").await.json(), Value::Null);
}
