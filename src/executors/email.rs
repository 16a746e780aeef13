//! The `email` kind: hands one message to the operator's mail server.
//!
//! The message's id is made of the job's, so a server or a reader can tell a repeated try from another message. What the
//! server refuses for good (5xx) fails the job at once; what may pass (4xx, connections) is tried again.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use lettre::message::header::ContentType;
use lettre::message::{Mailbox, MultiPart, SinglePart};
use lettre::transport::smtp;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use serde_json::value::to_raw_value;

use super::{Executor, refused};
use crate::fields::Faults;
use crate::jobs::email_input::{self, EmailInput};
use crate::jobs::outcome::TryResult;
use crate::jobs::{Job, JobError};
use crate::operator::{Operator, SmtpSpec};

/// How long the server may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

type Transport = AsyncSmtpTransport<Tokio1Executor>;

/// Sends mail.
pub struct EmailExecutor {
    operator: Arc<Operator>,
    transport: OnceLock<Result<Transport, String>>,
}

impl std::fmt::Debug for EmailExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmailExecutor").finish_non_exhaustive()
    }
}

impl EmailExecutor {
    /// By the server of this file.
    pub fn new(operator: Arc<Operator>) -> Self {
        Self { operator, transport: OnceLock::new() }
    }

    async fn call(&self, job: &Job) -> TryResult {
        let mut faults = Faults::default();
        let smtp = self.operator.smtp.as_ref();
        let input = email_input::parse("/input", &job.input, Some(smtp), &mut faults);
        let (Some(input), Some(smtp)) = (input.filter(|_| faults.is_empty()), smtp) else {
            return refused(faults);
        };
        let (message, id) = match message(job, &input, smtp) {
            Ok(made) => made,
            Err(text) => return failed("invalid_input", text, false),
        };
        let transport = match self.transport.get_or_init(|| connect(smtp)) {
            Ok(transport) => transport,
            Err(text) => return failed("smtp", text.clone(), false),
        };
        match transport.send(message).await {
            Ok(_) => {
                let result = to_raw_value(&serde_json::json!({ "message_id": id }));
                TryResult::Succeeded(result.unwrap_or_else(|_| serde_json::value::RawValue::NULL.to_owned()))
            }
            Err(error) => judged(&error),
        }
    }
}

impl Executor for EmailExecutor {
    fn kind(&self) -> &'static str {
        "email"
    }
    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, TryResult> {
        Box::pin(self.call(job))
    }
}

/// Connections are kept and shared; the first message opens the first one.
fn connect(smtp: &SmtpSpec) -> Result<Transport, String> {
    let url = smtp.url.expose();
    // lettre's own spelling of STARTTLS that must not fail.
    let url = match url.strip_prefix("smtp+starttls://") {
        Some(rest) => format!("smtp://{}?tls=required", rest.trim_end_matches('/')),
        None => url.clone(),
    };
    AsyncSmtpTransport::<Tokio1Executor>::from_url(&url)
        .map(|builder| builder.timeout(Some(ANSWER_TIMEOUT)).build())
        .map_err(|_| "[smtp] url of the operator's file cannot be read".to_owned())
}

fn message(job: &Job, input: &EmailInput, smtp: &SmtpSpec) -> Result<(Message, String), String> {
    let mailbox =
        |text: &str| text.parse::<Mailbox>().map_err(|error| format!("\"{text}\" is no address: {error}"));
    let from = mailbox(input.from.as_deref().or(smtp.from.as_deref()).unwrap_or_default())?;
    let id = format!("<{}@{}>", job.id, from.email.domain());
    let mut builder = Message::builder().from(from).message_id(Some(id.clone())).subject(&input.subject);
    for to in &input.to {
        builder = builder.to(mailbox(to)?);
    }
    for cc in &input.cc {
        builder = builder.cc(mailbox(cc)?);
    }
    for bcc in &input.bcc {
        builder = builder.bcc(mailbox(bcc)?);
    }
    if let Some(reply_to) = &input.reply_to {
        builder = builder.reply_to(mailbox(reply_to)?);
    }
    let part = |kind: ContentType, text: &String| SinglePart::builder().header(kind).body(text.clone());
    let message = match (&input.text, &input.html) {
        (Some(text), Some(html)) => {
            builder.multipart(MultiPart::alternative_plain_html(text.clone(), html.clone()))
        }
        (None, Some(html)) => builder.singlepart(part(ContentType::TEXT_HTML, html)),
        (text, None) => {
            builder.singlepart(part(ContentType::TEXT_PLAIN, text.as_ref().unwrap_or(&String::new())))
        }
    };
    message.map(|message| (message, id)).map_err(|error| error.to_string())
}

fn judged(error: &smtp::Error) -> TryResult {
    if error.is_timeout() {
        return failed("smtp", "the mail server did not answer in time".to_owned(), true);
    }
    let text = format!("the mail server could not be used or refused: {}", chain(error));
    failed("smtp", text, !error.is_permanent())
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

fn failed(code: &str, text: String, retryable: bool) -> TryResult {
    TryResult::Failed { error: JobError::new(code, text), retryable, retry_after: None }
}
