//! Calls to the service that set the stage: endpoints, secrets, many events or jobs at once, another tenant.
//!
//! Called by `measure` and `beside`. Their cost is counted nowhere, but for what goes on beside a measured load.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;

use super::requests::{post, publish_batch, submit_batch};
use super::wire::{Wire, status};
use crate::cli::Failure;
use crate::db::Db;
use crate::secret::Secret;
use crate::signing::SigningSecret;
use crate::tenants::{self, key_hash, new_api_key};

/// Events or jobs with each request of many.
const MANY_PER_REQUEST: usize = 1000;
/// Connections that send many of them.
const SENDERS: usize = 8;
/// The service reads its keys once a second.
const KEYS_READ_WITHIN: Duration = Duration::from_secs(2);

fn failed(text: impl std::fmt::Display) -> Failure {
    Failure { text: text.to_string(), code: 69 }
}

/// A connection with a key.
pub(super) struct Api {
    wire: Wire,
    key: String,
}

impl Api {
    /// Connects.
    pub(super) async fn connect(address: SocketAddr, key: &str) -> Result<Self, Failure> {
        Ok(Self { wire: Wire::connect(address).await.map_err(failed)?, key: key.to_owned() })
    }

    async fn call(&mut self, request: &[u8], expected: u16) -> Result<Value, Failure> {
        self.wire.send(request).await.map_err(failed)?;
        let answer = self.wire.read().await.map_err(failed)?.ok_or_else(|| failed("no answer"))?;
        let body = String::from_utf8_lossy(answer.body);
        match status(answer.head) {
            status if status == expected => serde_json::from_str(&body).map_err(failed),
            status => Err(failed(format!("the service answered {status} in place of {expected}: {body}"))),
        }
    }

    /// What a GET answers.
    pub(super) async fn get(&mut self, path: &str) -> Result<Value, Failure> {
        let key = &self.key;
        let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\n\r\n");
        self.call(request.as_bytes(), 200).await
    }

    /// What a POST answers with this status.
    pub(super) async fn post(&mut self, path: &str, body: &str, expected: u16) -> Result<Value, Failure> {
        let request = post(path, &self.key, body);
        self.call(&request, expected).await
    }

    /// The secret that signs callbacks.
    pub(super) async fn callback_secret(&mut self) -> Result<SigningSecret, Failure> {
        secret_in(&self.get("/v1/callback-secret").await?)
    }

    /// Makes endpoints for a topic; `more`: members of the body beside URL and topic.
    pub(super) async fn endpoints(
        &mut self,
        count: usize,
        url: impl Fn(usize) -> String,
        event_type: &str,
        more: &str,
    ) -> Result<Vec<Endpoint>, Failure> {
        let mut endpoints = Vec::with_capacity(count);
        for number in 0..count {
            let (url, types) = (json!(url(number)), json!([event_type]));
            let body = format!(r#"{{"url":{url},"event_types":{types}{more}}}"#);
            let made = self.post("/v1/endpoints", &body, 201).await?;
            endpoints.push(Endpoint { id: text_in(&made, "id"), secret: secret_in(&made)? });
        }
        Ok(endpoints)
    }
}

/// An endpoint that was made.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// Its id.
    pub(super) id: String,
    /// What signs what it gets.
    pub(super) secret: SigningSecret,
}

/// A text in an answer; empty when there is none.
pub(super) fn text_in(answer: &Value, name: &str) -> String {
    answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn secret_in(answer: &Value) -> Result<SigningSecret, Failure> {
    SigningSecret::parse(&text_in(answer, "secret")).map_err(failed)
}

/// What there are many of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind<'a> {
    /// Events of a topic.
    Events(&'a str),
    /// Jobs of the worker's kind.
    Jobs,
}

/// Many events or jobs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Many<'a> {
    pub(super) address: SocketAddr,
    pub(super) key: &'a str,
    pub(super) kind: Kind<'a>,
    pub(super) count: usize,
    pub(super) payload_bytes: usize,
}

impl Many<'_> {
    /// Sends them as fast as it goes, by 1,000. Returns how long it took.
    pub(super) async fn send_all(self) -> Result<Duration, Failure> {
        let began = Instant::now();
        let requests = self.count.div_ceil(MANY_PER_REQUEST);
        let size = self.count.min(MANY_PER_REQUEST);
        let request = match self.kind {
            Kind::Events(event_type) => publish_batch(self.key, event_type, size, self.payload_bytes),
            Kind::Jobs => submit_batch(self.key, size, self.payload_bytes),
        };
        let share = |sender: usize| requests / SENDERS + usize::from(sender < requests % SENDERS);
        let senders = (0..SENDERS).map(|sender| self.send(request.clone(), share(sender)));
        futures_util::future::try_join_all(senders).await?;
        Ok(began.elapsed())
    }

    async fn send(self, request: Bytes, times: usize) -> Result<(), Failure> {
        let mut api = Api::connect(self.address, self.key).await?;
        for _ in 0..times {
            api.call(&request, 202).await?;
        }
        Ok(())
    }
}

/// Makes another tenant, and returns its key, which the service knows by then.
pub(super) async fn another_tenant(url: &str) -> Result<Secret<String>, Failure> {
    let db = Db::new(PgConnectOptions::from_str(url).map_err(failed)?, 2);
    let key = new_api_key().map_err(failed)?;
    let tenant = tenants::store::create(&db, "another").await.map_err(failed)?;
    tenants::store::add_key(&db, tenant, "bench", &key_hash(key.expose())).await.map_err(failed)?;
    tokio::time::sleep(KEYS_READ_WITHIN).await;
    Ok(key)
}
