//! The one table from an error to its RFC 9457 answer. Nothing else in the program knows a status code of ours.
//!
//! Called by the middleware of `http`, which adds the request's id. Each slug has its paragraph in `docs/errors.md` and
//! its place in `openapi.yaml`; a test compares the three.

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use std::borrow::Cow;

use crate::db::StoreError;
use crate::endpoints::change::ChangeError;
use crate::fields::{Fault, Faults};
use crate::secret::SealError;
use crate::secrets::SecretError;
use crate::supervisor::TaskLost;

/// What went wrong with a request, in words that say what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No valid key.
    #[error("send a valid API key, as in: Authorization: Bearer rbk_…")]
    Unauthorized,
    /// The key may not do this.
    #[error("this key lacks the scope {0}")]
    Forbidden(Cow<'static, str>),
    /// No such route or object.
    #[error("{0}")]
    NotFound(&'static str),
    /// The route does not know the method.
    #[error("this address takes {0}")]
    MethodNotAllowed(String),
    /// The body is not JSON.
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    /// The body or an input is too large.
    #[error("{0}")]
    TooLarge(String),
    /// The body's type or encoding is not understood.
    #[error("{0}")]
    MediaType(&'static str),
    /// The body did not arrive in time.
    #[error("the body did not arrive within 10 s")]
    BodyTimeout,
    /// Fields are wrong.
    #[error("{}", summary(.0))]
    Invalid(Vec<Fault>),
    /// The key was used for another request.
    #[error("this Idempotency-Key was used for another request; use a new key for a new request")]
    KeyReused,
    /// The first request under the key is not done.
    #[error("the first request with this Idempotency-Key is still running; repeat this one later")]
    KeyRunning,
    /// The object is not the one that `If-Match` names.
    #[error("the object was changed since you read it; read it again, and decide anew")]
    PreconditionFailed,
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A secret cannot be sealed or opened.
    #[error("a secret cannot be sealed or opened")]
    Seal(#[from] SealError),
    /// A task of ours was lost.
    #[error(transparent)]
    Lost(#[from] TaskLost),
}

fn summary(faults: &[Fault]) -> String {
    match faults {
        [] => "the request is not valid".to_owned(),
        [one] => format!("{} {}", if one.pointer.is_empty() { "the body" } else { &one.pointer }, one.detail),
        [first, rest @ ..] => format!("{} {}; and {} more", first.pointer, first.detail, rest.len()),
    }
}

impl From<Faults> for ApiError {
    fn from(faults: Faults) -> Self {
        Self::Invalid(faults.into_vec())
    }
}

impl From<SecretError> for ApiError {
    fn from(error: SecretError) -> Self {
        match error {
            SecretError::Store(error) => Self::Store(error),
            SecretError::Seal(error) => Self::Seal(error),
        }
    }
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Secret(error) => error.into(),
            ChangeError::Faults(faults) => faults.into(),
            ChangeError::Changed => Self::PreconditionFailed,
        }
    }
}

/// Declares the kinds of problems together with their list, so that neither can lack what the other has.
macro_rules! kinds {
    ($($kind:ident: $status:literal, $slug:literal, $title:literal;)*) => {
        /// The kinds of problems: what a client can tell apart. Each has a paragraph in `docs/errors.md`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Kind { $(#[doc = $title] $kind,)* }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// Status, slug, title.
            const fn row(self) -> (u16, &'static str, &'static str) {
                match self { $(Self::$kind => ($status, $slug, $title),)* }
            }
        }
    };
}

kinds! {
    NotJson: 400, "not-json", "The body is not JSON";
    Unauthorized: 401, "unauthorized", "No valid API key";
    Forbidden: 403, "forbidden", "The key lacks a scope";
    NotFound: 404, "not-found", "Not found";
    MethodNotAllowed: 405, "method-not-allowed", "Method not allowed";
    BodyTimeout: 408, "body-timeout", "The body came too slowly";
    Conflict: 409, "conflict", "The object's state does not allow this";
    KeyRunning: 409, "idempotency-key-running", "The first request is still running";
    LeaseLost: 409, "lease-lost", "The lease is no longer held";
    PreconditionFailed: 412, "precondition-failed", "The object is another than the one you know";
    TooLarge: 413, "too-large", "Too large";
    MediaType: 415, "unsupported-media-type", "Unsupported media type";
    Invalid: 422, "invalid-request", "The request is not valid";
    KeyReused: 422, "idempotency-key-reused", "The Idempotency-Key belongs to another request";
    Internal: 500, "internal", "Internal error";
    Unavailable: 503, "unavailable", "The database cannot be reached";
}

impl Kind {
    /// The status of its answers.
    pub const fn status(self) -> u16 {
        self.row().0
    }

    /// Its stable name: `code`, and the end of `type`.
    pub const fn slug(self) -> &'static str {
        self.row().1
    }
}

/// Exhaustive, so that a new error needs a kind to compile.
fn kind_of(error: &ApiError) -> Kind {
    match error {
        ApiError::Unauthorized => Kind::Unauthorized,
        ApiError::Forbidden(_) => Kind::Forbidden,
        ApiError::NotFound(_) | ApiError::Store(StoreError::NotFound) => Kind::NotFound,
        ApiError::MethodNotAllowed(_) => Kind::MethodNotAllowed,
        ApiError::NotJson(_) => Kind::NotJson,
        ApiError::BodyTimeout => Kind::BodyTimeout,
        ApiError::TooLarge(_) => Kind::TooLarge,
        ApiError::MediaType(_) => Kind::MediaType,
        ApiError::Invalid(_) => Kind::Invalid,
        ApiError::KeyReused => Kind::KeyReused,
        ApiError::KeyRunning => Kind::KeyRunning,
        ApiError::PreconditionFailed => Kind::PreconditionFailed,
        ApiError::Store(StoreError::Conflict(_)) => Kind::Conflict,
        ApiError::Store(StoreError::LeaseLost) => Kind::LeaseLost,
        ApiError::Store(StoreError::Unavailable(_)) => Kind::Unavailable,
        ApiError::Store(StoreError::Bug(_)) | ApiError::Seal(_) | ApiError::Lost(_) => Kind::Internal,
    }
}

/// What the client is told beside the title.
fn detail(error: &ApiError) -> String {
    match error {
        ApiError::Store(StoreError::NotFound) => "there is no such object".to_owned(),
        ApiError::Store(StoreError::Unavailable(_)) => {
            "try again in a moment; repeat a POST with the same Idempotency-Key, for it may have been carried out".to_owned()
        }
        // The cause stands in the log, under the request's id.
        ApiError::Store(StoreError::Bug(_)) | ApiError::Seal(_) | ApiError::Lost(_) => {
            "something went wrong on our side; the log has more under this instance".to_owned()
        }
        other => other.to_string(),
    }
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: String,
    instance: String,
    code: &'static str,
    #[serde(skip_serializing_if = "<[Fault]>::is_empty")]
    errors: &'a [Fault],
}

impl ApiError {
    /// The answer to a request of this id.
    pub fn to_response(&self, request_id: &str) -> HttpResponse {
        let (status, slug, title) = kind_of(self).row();
        if status >= 500 {
            self.log(request_id, status);
        }
        let problem = Problem {
            r#type: format!("urn:ringback:problem:{slug}"),
            title,
            status,
            detail: detail(self),
            instance: format!("urn:ringback:request:{request_id}"),
            code: slug,
            errors: match self {
                Self::Invalid(faults) => faults,
                _ => &[],
            },
        };
        let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = HttpResponse::build(code);
        response.content_type("application/problem+json");
        match self {
            Self::Unauthorized => {
                response.insert_header((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
            }
            Self::MethodNotAllowed(allow) => {
                response.insert_header((ALLOW, allow.as_str()));
            }
            Self::Store(StoreError::Unavailable(_)) | Self::KeyRunning => {
                response.insert_header((RETRY_AFTER, "2"));
            }
            _ => {}
        }
        response.body(serde_json::to_vec(&problem).unwrap_or_default())
    }

    /// As a part of an answer that is a success as a whole: one item of many.
    pub fn to_item(&self) -> serde_json::Value {
        let (status, slug, title) = kind_of(self).row();
        let mut item = serde_json::json!({
            "type": format!("urn:ringback:problem:{slug}"),
            "title": title,
            "status": status,
            "detail": detail(self),
            "code": slug,
        });
        if let Self::Invalid(faults) = self {
            item["errors"] = serde_json::json!(faults);
        }
        item
    }

    fn log(&self, request_id: &str, status: u16) {
        let cause: &dyn std::error::Error = self;
        let mut text = cause.to_string();
        let mut source = cause.source();
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        tracing::error!(request.id = request_id, status, error = text, "a request failed");
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(kind_of(self).status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
    fn error_response(&self) -> HttpResponse {
        // The middleware makes the answer that the client gets; this one is without the request's id.
        HttpResponse::new(self.status_code())
    }
}
