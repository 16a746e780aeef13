//! What happens in the demo, in order, and what is said when a step does not happen.
//!
//! Called by `demo`. Submits over the public API, waits for what the stage sees, verifies as a receiver would.
//!
//! Invariant: the story ends well only if the callback came twice with the same bytes, both signatures were verified, and
//! it told of the job that was submitted.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::Failure;
use super::super::client::{Client, ClientError};
use super::by_hand::ByHand;
use super::screen::{Screen, shown};
use super::stage::{Callback, Seen, Stage};
use crate::clock;
use crate::signing::{SignedHeaders, SigningSecret, verify};

/// Each step takes well under a second where nothing is wrong.
const STEP_WITHIN: Duration = Duration::from_secs(15);
/// As the libraries of Standard Webhooks have it.
const TOLERANCE_S: u32 = 300;

/// The story and what it is played with.
#[derive(Debug)]
pub(super) struct Story {
    /// Talks to the service.
    pub(super) client: Client,
    /// The user's side.
    pub(super) stage: Stage,
    /// Where it is shown.
    pub(super) screen: Screen,
    /// What to type next.
    pub(super) by_hand: ByHand,
}

impl Story {
    /// Plays it. Gives the secret with which further callbacks can be verified.
    /// # Errors
    /// The step that did not happen, and how things stand then.
    pub(super) async fn tell(&mut self) -> Result<SigningSecret, Failure> {
        let secret = self.secret().await?;
        let job = self.submit().await?;
        match self.next("the job was not executed", &job).await? {
            Seen::Reported(status) => {
                self.screen.step(&format!("executed: GET {} → {status}", self.stage.url("/report")));
            }
            Seen::CalledBack(_) => {
                return Err(self.stuck("the job ended without calling the web service", &job).await);
            }
        }
        let first = self.callback("the callback did not arrive", &job).await?;
        let aside = self.screen.style.faint("(it fails once on purpose)");
        self.screen.step(&format!("callback, attempt 1 → receiver answered {} {aside}", first.answered));
        let second = self.callback("the callback was not sent again after it had failed", &job).await?;
        self.screen.step(&format!("callback, attempt 2 → {}", second.answered));
        self.show(&second);
        self.prove(&secret, &job, &[first, second])?;
        Ok(secret)
    }

    /// Shows further callbacks, each in a line, until it is dropped.
    pub(super) async fn watch(&mut self, secret: &SigningSecret) {
        while let Some(seen) = self.stage.seen.recv().await {
            match seen {
                Seen::Reported(status) => self.screen.step(&format!("GET /report → {status}")),
                Seen::CalledBack(callback) => {
                    let about = about(&callback.body);
                    let verdict = match check(secret, &callback) {
                        Ok(()) => self.screen.style.good("verified"),
                        Err(reason) => self.screen.style.bad(&reason),
                    };
                    self.screen.step(&format!("callback {about} → {}, {verdict}", callback.answered));
                }
            }
        }
    }

    async fn secret(&self) -> Result<SigningSecret, Failure> {
        let reply = self.client.get("/v1/callback-secret").await.map_err(|error| not_answered(&error))?;
        let text = reply.body.get("secret").and_then(Value::as_str).unwrap_or_default();
        SigningSecret::parse(text)
            .map_err(|error| Failure::no(format!("the callback secret cannot be used: {error}")))
    }

    async fn submit(&self) -> Result<String, Failure> {
        let order = json!({
            "kind": "http",
            "input": { "method": "GET", "url": self.stage.url("/report") },
            "callback": { "url": self.stage.url("/callback"), "retry": { "initial_s": 0.5 } },
            "metadata": { "from": "ringback demo" },
        });
        let reply = self.client.post("/v1/jobs", &order).await.map_err(|error| not_answered(&error))?;
        let id = reply.body.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        let took = reply.took.as_millis();
        let id_shown = self.screen.style.strong(&id);
        self.screen.step(&format!("POST /v1/jobs → {} in {took} ms   {id_shown}", reply.status));
        Ok(id)
    }

    async fn callback(&mut self, otherwise: &str, job: &str) -> Result<Callback, Failure> {
        match self.next(otherwise, job).await? {
            Seen::CalledBack(callback) => Ok(callback),
            Seen::Reported(_) => Err(self.stuck("the job was executed twice", job).await),
        }
    }

    async fn next(&mut self, otherwise: &str, job: &str) -> Result<Seen, Failure> {
        match tokio::time::timeout(STEP_WITHIN, self.stage.seen.recv()).await {
            Ok(Some(seen)) => Ok(seen),
            _ => Err(self.stuck(&format!("{otherwise} within {} s", STEP_WITHIN.as_secs()), job).await),
        }
    }

    /// The failure of a step, with how the job and its delivery stand.
    async fn stuck(&self, what: &str, job: &str) -> Failure {
        let mut text = format!("the demo failed: {what}");
        for path in [format!("/v1/jobs/{job}"), format!("/v1/deliveries?job_id={job}")] {
            let said = match self.client.get(&path).await {
                Ok(reply) => shown(reply.body.to_string().as_bytes()),
                Err(error) => error.to_string(),
            };
            // Writing to a String cannot fail.
            let _ = write!(text, "\n  GET {path}: {said}");
        }
        text.push_str(
            "\nRINGBACK_LOG=debug shows what the service does, and ringback doctor what may be wrong around it",
        );
        Failure::no(text)
    }

    fn show(&self, callback: &Callback) {
        for (name, value) in &callback.headers {
            self.screen.detail(name, value);
        }
        self.screen.detail("body", &shown(&callback.body));
    }

    fn prove(&self, secret: &SigningSecret, job: &str, tries: &[Callback; 2]) -> Result<(), Failure> {
        let [first, second] = tries;
        for callback in tries {
            check(secret, callback)
                .map_err(|reason| Failure::no(format!("the signature was not verified: {reason}")))?;
        }
        if first.body != second.body || first.header("webhook-id") != second.header("webhook-id") {
            return Err(Failure::no("the second try did not carry the same message as the first one"));
        }
        let told: Value = serde_json::from_slice(&second.body).unwrap_or_default();
        if told.pointer("/data/id").and_then(Value::as_str) != Some(job) {
            return Err(Failure::no(format!("the callback does not tell of {job}")));
        }
        self.screen.proven("signature verified with the tenant's callback secret; same bytes on both tries");
        Ok(())
    }
}

fn not_answered(error: &ClientError) -> Failure {
    Failure::no(format!("the demo failed: {error}"))
}

fn check(secret: &SigningSecret, callback: &Callback) -> Result<(), String> {
    let headers = SignedHeaders {
        id: callback.header("webhook-id"),
        timestamp: callback.header("webhook-timestamp"),
        signature: callback.header("webhook-signature"),
    };
    verify(secret, headers, &callback.body, clock::now().timestamp(), TOLERANCE_S)
        .map_err(|error| error.to_string())
}

/// What a callback tells, in a few words: its type, and the job it is about.
fn about(body: &[u8]) -> String {
    let told: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |pointer: &str| told.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    format!("{} {}", text("/type"), text("/data/id"))
}
