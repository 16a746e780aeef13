//! A small client of the API that speaks the tests' language.
//!
//! Used for the service in this process and for the real program alike.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, Method};
use serde_json::{Value, json};

use super::{PATIENCE, eventually, observed};

/// Speaks to one service with one key.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    base: String,
    key: String,
    http: reqwest::Client,
}

/// An answer, read completely.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// A header's text; empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("visible ASCII"))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The answer, if it has this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// The pointers of a 422, in the order given.
    #[track_caller]
    pub(crate) fn pointers(&self) -> Vec<String> {
        let json = self.json();
        let errors = json["errors"].as_array().unwrap_or_else(|| panic!("no errors: {json}"));
        errors.iter().map(|error| string(&error["pointer"])).collect()
    }
}

/// The text in a JSON string.
#[track_caller]
pub(crate) fn string(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no string: {value}")).to_owned()
}

/// A request that is being put together.
#[must_use = "it is sent by send()"]
#[derive(Debug)]
pub(crate) struct Call {
    request: reqwest::RequestBuilder,
    method: Method,
    path: String,
}

impl Call {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.raw_json(body.to_string())
    }

    /// A body that is sent byte for byte as JSON.
    pub(crate) fn raw_json(self, body: impl Into<Vec<u8>>) -> Self {
        self.header("content-type", "application/json").body(body)
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.request = self.request.body(body.into());
        self
    }

    pub(crate) async fn send(self) -> Answer {
        self.try_send().await.expect("the service answers")
    }

    /// As `send`, for a service that may be gone.
    pub(crate) async fn try_send(self) -> Result<Answer, reqwest::Error> {
        let response = self.request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await?.to_vec();
        observed(self.method.as_str(), &self.path, status, &headers, &body);
        Ok(Answer { status, headers, body })
    }
}

impl Client {
    pub(crate) fn new(address: SocketAddr, key: &str) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS 1.2 and 1.3")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let builder =
            reqwest::Client::builder().no_proxy().timeout(PATIENCE * 2).tls_backend_preconfigured(tls);
        let http = builder.build().expect("a client");
        Self { base: format!("http://{address}"), key: key.to_owned(), http }
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        self.base.clone()
    }

    /// The same service with another key.
    pub(crate) fn with_key(&self, key: &str) -> Self {
        Self { key: key.to_owned(), ..self.clone() }
    }

    /// A request; without an `Authorization` where the key is empty.
    pub(crate) fn call(&self, method: Method, path: &str) -> Call {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.base));
        if !self.key.is_empty() {
            request = request.bearer_auth(&self.key);
        }
        Call { request, method, path: path.to_owned() }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path).send().await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path).json(&body).send().await
    }

    /// A POST without a body.
    pub(crate) async fn act(&self, path: &str) -> Answer {
        self.call(Method::POST, path).send().await
    }

    /// A job that is accepted; its id.
    pub(crate) async fn submit(&self, job: Value) -> String {
        string(&self.post("/v1/jobs", job).await.expect(202).json()["id"])
    }

    /// An event that is published; its id.
    pub(crate) async fn publish(&self, event_type: &str, data: Value) -> String {
        let event = json!({ "type": event_type, "data": data });
        string(&self.post("/v1/events", event).await.expect(202).json()["id"])
    }

    pub(crate) async fn job(&self, id: &str) -> Value {
        self.get(&format!("/v1/jobs/{id}")).await.expect(200).json()
    }

    /// The job when it has ended.
    pub(crate) async fn wait_for_end(&self, id: &str) -> Value {
        let path = format!("/v1/jobs/{id}?wait_s=40");
        let job = self.get(&path).await.expect(200).json();
        assert!(!job["finished_at"].is_null(), "not ended within 40 s: {job}");
        job
    }

    pub(crate) async fn wait_for_status(&self, id: &str, status: &str) -> Value {
        eventually(status, async || self.job(id).await, |job| job["status"] == status).await
    }

    pub(crate) async fn attempts(&self, id: &str) -> Vec<Value> {
        list(&self.get(&format!("/v1/jobs/{id}/attempts")).await.expect(200).json())
    }

    /// A page of deliveries; `query` may be empty.
    pub(crate) async fn deliveries(&self, query: &str) -> Vec<Value> {
        list(&self.get(&format!("/v1/deliveries?{query}")).await.expect(200).json())
    }

    pub(crate) async fn delivery(&self, id: &str) -> Value {
        self.get(&format!("/v1/deliveries/{id}")).await.expect(200).json()
    }

    /// The only delivery of a job's callback, with its attempts, as soon as it has this status.
    pub(crate) async fn wait_for_delivery(&self, job: &str, status: &str) -> Value {
        let query = format!("job_id={job}");
        let fits = |found: &Vec<Value>| found.iter().any(|one| one["status"] == status);
        let found = eventually(status, async || self.deliveries(&query).await, fits).await;
        assert_eq!(found.len(), 1, "{found:?}");
        self.delivery(&string(&found[0]["id"])).await
    }

    /// The delivery as soon as it has been tried so often.
    pub(crate) async fn wait_for_attempts(&self, job: &str, count: u64) -> Value {
        let query = format!("job_id={job}");
        let fits = |found: &Vec<Value>| found.iter().any(|one| one["attempt"].as_u64() >= Some(count));
        let found = eventually("attempts", async || self.deliveries(&query).await, fits).await;
        self.delivery(&string(&found[0]["id"])).await
    }

    /// What receivers of callbacks verify with.
    pub(crate) async fn callback_secret(&self) -> String {
        string(&self.get("/v1/callback-secret").await.expect(200).json()["secret"])
    }
}

/// The objects of a list's page.
#[track_caller]
pub(crate) fn list(page: &Value) -> Vec<Value> {
    page["data"].as_array().unwrap_or_else(|| panic!("no list: {page}")).clone()
}

/// An `http` job that gets `url`, and nothing else.
pub(crate) fn get_job(url: &str) -> Value {
    json!({ "kind": "http", "input": { "url": url } })
}

/// An `http` job that gets `url`, is told of at `callback`, and whose tries follow quickly.
pub(crate) fn job_with_callback(url: &str, callback: &str) -> Value {
    json!({ "kind": "http", "input": { "url": url }, "callback": { "url": callback, "retry": quick(5) } })
}

/// Waits of about 10 ms between so many tries.
pub(crate) fn quick(max_attempts: u32) -> Value {
    json!({ "initial_s": 0.01, "factor": 1, "max_s": 10, "jitter": 0, "max_attempts": max_attempts })
}
