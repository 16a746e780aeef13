//! Talks to a running Ringback over its public API, as any other program would.
//!
//! Called by the verbs. Sends the API key to the address it was given and nowhere else: no redirect is followed and no
//! proxy of the environment obeyed. Decides nothing about what an answer means beyond "it is not a success".

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::secret::Secret;

/// No answer of ours takes longer but a long poll, and no verb here polls.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer that is read: a page of jobs with their results.
const ANSWER_MAX_BYTES: usize = 128 * 1024 * 1024;

/// A client for one Ringback.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<Secret<String>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.base).finish_non_exhaustive()
    }
}

/// A success.
#[derive(Debug, Clone)]
pub struct Reply {
    /// 200 to 299.
    pub status: u16,
    /// The JSON, `null` where there was none.
    pub body: Value,
    /// The body's bytes.
    pub text: Vec<u8>,
    /// From the call to the last byte.
    pub took: Duration,
}

/// A job that was lent, as the service wrote it.
#[derive(Debug, serde::Deserialize)]
pub struct LentJob {
    /// The lease.
    pub lease: String,
    /// The job's JSON, byte for byte.
    pub job: Box<serde_json::value::RawValue>,
}

impl Reply {
    /// The jobs in an answer to `POST /v1/leases`.
    pub fn lent(&self) -> Vec<LentJob> {
        #[derive(serde::Deserialize)]
        struct Lent {
            leases: Vec<LentJob>,
        }
        serde_json::from_slice::<Lent>(&self.text).map_or_else(|_| Vec::new(), |lent| lent.leases)
    }
}

/// Why there is no [`Reply`].
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no client to call with.
    #[error("the HTTP client cannot be set up: {0}")]
    Setup(String),
    /// Nobody answered.
    #[error("{request}: no answer ({reason})")]
    NoAnswer {
        /// Method and address.
        request: String,
        /// The innermost cause.
        reason: String,
    },
    /// The answer is a problem document, or anything else that is not a success.
    #[error("{request}: {status} {detail}")]
    Refused {
        /// Method and address.
        request: String,
        /// The status.
        status: u16,
        /// What the problem document says.
        detail: String,
        /// The body, if it was JSON.
        body: Option<Value>,
    },
}

impl Client {
    /// For the Ringback at `base`, as in `http://127.0.0.1:8080`.
    /// # Errors
    /// [`ClientError::Setup`].
    pub fn new(base: &str, key: Option<Secret<String>>) -> Result<Self, ClientError> {
        let base = base.trim_end_matches('/').to_owned();
        let tls = tls_for(&base).map_err(|error| ClientError::Setup(error.to_string()))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| ClientError::Setup(error.to_string()))?;
        Ok(Self { http, base, key })
    }

    /// `GET`.
    /// # Errors
    /// [`ClientError`].
    pub async fn get(&self, path: &str) -> Result<Reply, ClientError> {
        self.send(reqwest::Method::GET, path, None).await
    }

    /// `POST` of a JSON body.
    /// # Errors
    /// [`ClientError`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Reply, ClientError> {
        self.send(reqwest::Method::POST, path, Some(body)).await
    }

    /// `POST` of JSON text, for calls that take longer, or must not: the answer is waited for so long.
    /// # Errors
    /// [`ClientError`].
    pub async fn post_within(
        &self,
        path: &str,
        body: String,
        within: Duration,
    ) -> Result<Reply, ClientError> {
        self.send_within(reqwest::Method::POST, path, Some(body), within).await
    }

    async fn send(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Reply, ClientError> {
        self.send_within(method, path, body.map(Value::to_string), TIMEOUT).await
    }

    async fn send_within(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<String>,
        within: Duration,
    ) -> Result<Reply, ClientError> {
        let url = format!("{}{path}", self.base);
        let request = format!("{method} {url}");
        let mut builder = self.http.request(method, &url);
        if let Some(key) = &self.key {
            builder = builder.bearer_auth(key.expose());
        }
        if let Some(body) = body {
            builder = builder.header("content-type", "application/json").body(body);
        }
        builder = builder.timeout(within);
        let no_answer = |error: reqwest::Error| ClientError::NoAnswer {
            request: request.clone(),
            reason: innermost(&error),
        };
        let began = Instant::now();
        let mut response = builder.send().await.map_err(no_answer)?;
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(no_answer)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > ANSWER_MAX_BYTES {
                return Err(ClientError::NoAnswer { request, reason: "the answer is too large".to_owned() });
            }
        }
        let took = began.elapsed();
        let body: Option<Value> = serde_json::from_slice(&bytes).ok();
        if status.is_success() {
            return Ok(Reply { status: status.as_u16(), body: body.unwrap_or_default(), text: bytes, took });
        }
        let detail = body.as_ref().map(problem_text).unwrap_or_default();
        Err(ClientError::Refused { request, status: status.as_u16(), detail, body })
    }
}

/// The system's certificate authorities for https; nobody is trusted, and nothing loaded, for http.
fn tls_for(base: &str) -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    if !base.starts_with("https:") {
        return Ok(builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth());
    }
    let verifier = rustls_platform_verifier::Verifier::new(provider)?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// What a problem document (RFC 9457) says, in one line.
fn problem_text(body: &Value) -> String {
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut said = vec![if text("detail").is_empty() { text("title") } else { text("detail") }.to_owned()];
    for fault in body.get("errors").and_then(Value::as_array).into_iter().flatten() {
        let part = |name: &str| fault.get(name).and_then(Value::as_str).unwrap_or_default();
        said.push(format!("{} {}", part("pointer"), part("detail")));
    }
    said.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_document_becomes_one_line() {
        let body = serde_json::json!({ "title": "Invalid", "detail": "", "errors": [{ "pointer": "/kind", "detail": "is missing" }] });
        assert_eq!(problem_text(&body), "Invalid; /kind is missing");
    }

    #[test]
    fn a_client_for_http_needs_no_certificate_authorities() {
        let client = Client::new("http://127.0.0.1:1/", None).expect("client");
        assert_eq!(client.base, "http://127.0.0.1:1");
    }
}
