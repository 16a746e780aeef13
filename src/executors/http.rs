//! The `http` kind: calls a web service and keeps its answer.
//!
//! Through the guarded client, like everything that follows a URL of a user. Network errors, 408, 425, 429 and 5xx are
//! worth another try; any other status outside `success_status` fails the job at once.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde_json::value::to_raw_value;

use super::{Executor, refused, text_of};
use crate::backoff::parse_retry_after;
use crate::deliveries::message::USER_AGENT_TEXT;
use crate::fields::Faults;
use crate::jobs::outcome::TryResult;
use crate::jobs::{Job, JobError, http_input};
use crate::outbound::{Answer, BodyEnd, ErrorClass, GuardedClient, OutboundRequest, SendError};

/// So much of an answer's body is kept in the result; what JSON's escapes make too long goes as base64, so that the result
/// stays below 256 KiB.
const BODY_KEPT_MAX: usize = 100 * 1024;

/// Calls web services.
#[derive(Debug)]
pub struct HttpExecutor {
    client: GuardedClient,
}

impl HttpExecutor {
    /// Through this client.
    pub fn new(client: GuardedClient) -> Self {
        Self { client }
    }

    async fn call(&self, job: &Job) -> TryResult {
        let mut faults = Faults::default();
        let Some(input) = http_input::parse("/input", &job.input, self.client.policy(), &mut faults) else {
            return refused(faults);
        };
        if !faults.is_empty() {
            return refused(faults);
        }
        let mut headers = input.headers.clone();
        headers.entry(http::header::USER_AGENT).or_insert(http::HeaderValue::from_static(USER_AGENT_TEXT));
        // The key with which a service can tell a repeated try from a new order.
        if let Ok(id) = http::HeaderValue::try_from(job.id.to_string()) {
            headers.entry("idempotency-key").or_insert(id);
        }
        if let Some(Ok(parent)) = job.traceparent.as_deref().map(http::HeaderValue::try_from) {
            headers.entry("traceparent").or_insert(parent);
        }
        let request = OutboundRequest {
            method: input.method.clone(),
            url: input.url.clone(),
            headers,
            body: input.body.clone(),
            timeout: job.timeout,
            keep_body_max: BODY_KEPT_MAX,
            read_body_max: BODY_KEPT_MAX,
        };
        match self.client.send(request).await.result {
            Err(error) | Ok(Answer { body_end: BodyEnd::Broken(error), .. }) => failed(&error),
            Ok(answer) if input.is_success(answer.status) => TryResult::Succeeded(result_of(&answer)),
            Ok(answer) => wrong_status(&answer, job),
        }
    }
}

impl Executor for HttpExecutor {
    fn kind(&self) -> &'static str {
        "http"
    }
    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, TryResult> {
        Box::pin(self.call(job))
    }
}

fn failed(error: &SendError) -> TryResult {
    if error.class == ErrorClass::Timeout {
        return TryResult::TimedOut;
    }
    let retryable = error.class != ErrorClass::BlockedAddress;
    TryResult::Failed {
        error: JobError::new(error.class.as_str(), error.message.clone()),
        retryable,
        retry_after: None,
    }
}

fn wrong_status(answer: &Answer, job: &Job) -> TryResult {
    let retryable = matches!(answer.status, 408 | 425 | 429 | 500..=599);
    let retry_after =
        answer.headers.get(http::header::RETRY_AFTER).filter(|_| matches!(answer.status, 429 | 503));
    let wait = retry_after.and_then(|value| parse_retry_after(value.as_bytes(), crate::clock::now()));
    let text = format!("the service answered with status {}", answer.status);
    TryResult::Failed {
        error: JobError::new("http_status", text),
        retryable,
        retry_after: wait.map(|wait| wait.min(job.retry.max)).filter(|wait| *wait > Duration::ZERO),
    }
}

#[derive(Serialize)]
struct HttpResult<'a> {
    status: u16,
    headers: BTreeMap<&'a str, String>,
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

fn result_of(answer: &Answer) -> Box<serde_json::value::RawValue> {
    // PostgreSQL and many readers cannot hold a NUL in a text.
    let text = text_of(&answer.body, answer.truncated).filter(|text| {
        !text.contains('\0') && serde_json::to_string(text).is_ok_and(|json| json.len() <= BODY_KEPT_MAX * 2)
    });
    let result = HttpResult {
        status: answer.status,
        headers: headers_of(&answer.headers),
        body: text,
        body_base64: text.is_none().then(|| BASE64_STANDARD.encode(&answer.body)),
        truncated: answer.truncated,
    };
    to_raw_value(&result).unwrap_or_else(|_| serde_json::value::RawValue::NULL.to_owned())
}

fn headers_of(headers: &http::HeaderMap) -> BTreeMap<&str, String> {
    let mut shown = BTreeMap::new();
    for (name, value) in headers {
        let text = String::from_utf8_lossy(value.as_bytes());
        shown
            .entry(name.as_str())
            .and_modify(|before: &mut String| {
                before.push_str(", ");
                before.push_str(&text);
            })
            .or_insert_with(|| text.into_owned());
    }
    shown
}
