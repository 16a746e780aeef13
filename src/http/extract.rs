//! What a handler takes out of a request: who asks, the body as strict JSON, ids, pages, preferences.
//!
//! Parse at the edge: behind this file there is no header and no query string. Bodies are bounded in size, depth and
//! time before anything looks at them.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::PoisonError;
use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpRequest, web};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use futures_util::StreamExt;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::problem::ApiError;
use crate::fields::{Fault, Faults};
use crate::json::{JsonLimits, validate};
use crate::shared::Shared;
use crate::tenants::{Caller, Scope, WorkerKinds, key_hash};

/// A body is at most this long…
pub const BODY_MAX_BYTES: usize = 512 * 1024;
/// … and that of a batch this.
pub const BATCH_BODY_MAX_BYTES: usize = 16 * 1024 * 1024;
/// An `input` or `data` is at most this deep.
pub const DEPTH_MAX: usize = 64;
const BODY_DEADLINE: Duration = Duration::from_secs(10);
const WAIT_MAX_S: f64 = 60.0;
const LIMIT_DEFAULT: i64 = 50;

/// Who asks, if the key is valid and may do this.
/// # Errors
/// [`ApiError::Unauthorized`], [`ApiError::Forbidden`].
pub fn caller(request: &HttpRequest, shared: &Shared, scope: &Scope) -> Result<Caller, ApiError> {
    let caller = anyone(request, shared)?;
    if caller.may(scope) { Ok(caller) } else { Err(ApiError::Forbidden(scope.word())) }
}

/// Who asks, if the key may take jobs of any kind; and of which.
/// # Errors
/// As [`caller`].
pub fn worker(request: &HttpRequest, shared: &Shared) -> Result<(Caller, WorkerKinds), ApiError> {
    let caller = anyone(request, shared)?;
    let kinds = caller.worker_kinds().ok_or(ApiError::Forbidden(Scope::Workers.word()))?;
    Ok((caller, kinds))
}

fn anyone(request: &HttpRequest, shared: &Shared) -> Result<Caller, ApiError> {
    let value = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, key) = value.and_then(|value| value.split_once(' ')).ok_or(ApiError::Unauthorized)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(ApiError::Unauthorized);
    }
    // Looked up by its hash, so what the time of the look-up tells is about the hash, not the key.
    let hash = key_hash(key.trim());
    let found = shared.keys.read().unwrap_or_else(PoisonError::into_inner).get(&hash).cloned();
    let caller = found.filter(|caller| caller.expires_at.is_none_or(|at| at > crate::clock::now()));
    caller.ok_or(ApiError::Unauthorized)
}

/// The body's bytes, within the limits.
/// # Errors
/// [`ApiError::MediaType`], [`ApiError::TooLarge`], [`ApiError::BodyTimeout`], [`ApiError::NotJson`].
pub async fn body(request: &HttpRequest, payload: web::Payload, limit: usize) -> Result<Vec<u8>, ApiError> {
    if request.headers().contains_key(header::CONTENT_ENCODING) {
        return Err(ApiError::MediaType("send the body without a Content-Encoding"));
    }
    let too_large = || ApiError::TooLarge(format!("the body may have {limit} bytes at most"));
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let read = async {
        let mut payload = payload;
        let mut bytes = Vec::with_capacity(announced.unwrap_or(1024));
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|error| ApiError::NotJson(format!("it ended early ({error})")))?;
            if bytes.len() + chunk.len() > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    tokio::time::timeout(BODY_DEADLINE, read).await.map_err(|_| ApiError::BodyTimeout)?
}

/// A body that must be JSON. `wrap` is how deep an `input` or `data` stands in it.
/// # Errors
/// As [`body`].
pub async fn json_body(
    request: &HttpRequest,
    payload: web::Payload,
    limit: usize,
    wrap: usize,
) -> Result<Vec<u8>, ApiError> {
    let bytes = unread_json(request, payload, limit).await?;
    check_json(&bytes, wrap)?;
    Ok(bytes)
}

/// A body that says it is JSON, for [`check_json`].
/// # Errors
/// As [`body`].
pub async fn unread_json(
    request: &HttpRequest,
    payload: web::Payload,
    limit: usize,
) -> Result<Vec<u8>, ApiError> {
    if media_type(request) != "application/json" {
        return Err(ApiError::MediaType("send the body as Content-Type: application/json"));
    }
    body(request, payload, limit).await
}

/// Is it JSON that we take? `wrap` is how deep an `input` or `data` stands in it.
/// # Errors
/// [`ApiError::NotJson`].
pub fn check_json(bytes: &[u8], wrap: usize) -> Result<(), ApiError> {
    validate(bytes, &JsonLimits { max_depth: DEPTH_MAX + wrap })
        .map_err(|fault| ApiError::NotJson(fault.to_string()))
}

/// A body that must be a JSON merge patch (RFC 7396); plain JSON is taken for one.
/// # Errors
/// As [`body`].
pub async fn patch_body(
    request: &HttpRequest,
    payload: web::Payload,
    wrap: usize,
) -> Result<Vec<u8>, ApiError> {
    if !matches!(media_type(request).as_str(), "application/merge-patch+json" | "application/json") {
        return Err(ApiError::MediaType("send the body as Content-Type: application/merge-patch+json"));
    }
    let bytes = body(request, payload, BODY_MAX_BYTES).await?;
    check_json(&bytes, wrap)?;
    Ok(bytes)
}

fn media_type(request: &HttpRequest) -> String {
    let value = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The text of a body that `json_body` accepted.
/// # Errors
/// [`ApiError::NotJson`], which the validator has ruled out.
pub fn raw(bytes: &[u8]) -> Result<&RawValue, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| ApiError::NotJson(error.to_string()))
}

/// An id out of the path. One that no object can have is not found, like any other that is not there.
/// # Errors
/// [`ApiError::NotFound`].
pub fn id<T: FromStr>(request: &HttpRequest) -> Result<T, ApiError> {
    let text = request.match_info().get("id").unwrap_or_default();
    text.parse().map_err(|_| ApiError::NotFound("there is no such object"))
}

/// A query string, taken apart; what is not asked for is a fault.
#[derive(Debug)]
pub struct Query {
    pairs: Vec<(String, String)>,
    known: Vec<&'static str>,
    faults: Faults,
}

impl Query {
    /// Of this request.
    pub fn of(request: &HttpRequest) -> Self {
        let pairs: Vec<(String, String)> =
            url::form_urlencoded::parse(request.query_string().as_bytes()).into_owned().collect();
        let mut query = Self { pairs: Vec::new(), known: Vec::new(), faults: Faults::default() };
        // PostgreSQL's text cannot hold a NUL, so nothing that is asked for can have one.
        for (name, _) in pairs.iter().filter(|(name, value)| name.contains('\0') || value.contains('\0')) {
            query.fault(name, "may not hold a NUL character");
        }
        query.pairs = pairs;
        query
    }

    /// A parameter's text.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        let place = self.pairs.iter().position(|(key, _)| key == name)?;
        Some(self.pairs.remove(place).1)
    }

    /// A parameter that must parse.
    pub fn parsed<T: FromStr>(&mut self, name: &'static str, what: &str) -> Option<T> {
        let text = self.text(name)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.fault(name, format!("must be {what}"));
        }
        value
    }

    /// One of a few words.
    pub fn word<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(name)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let list: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.fault(name, format!("must be one of: {}", list.join(", ")));
        }
        found
    }

    /// An RFC 3339 time.
    pub fn time(&mut self, name: &'static str) -> Option<crate::clock::Timestamp> {
        let at = self.parsed::<chrono::DateTime<chrono::FixedOffset>>(
            name,
            "an RFC 3339 time, as in 2030-01-31T12:00:00Z",
        )?;
        Some(at.to_utc())
    }

    /// `name[key]=value` pairs; `example` shows one.
    pub fn map(&mut self, name: &str, example: &'static str) -> BTreeMap<String, String> {
        self.known.push(example);
        let mut map = BTreeMap::new();
        self.pairs.retain(|(key, value)| {
            let inner = key.strip_prefix(name).and_then(|rest| rest.strip_prefix('[')?.strip_suffix(']'));
            // A key that comes twice stays, and is a fault in the end.
            let Some(inner) = inner.filter(|inner| !map.contains_key(*inner)) else { return true };
            map.insert(inner.to_owned(), value.clone());
            false
        });
        map
    }

    /// How long to wait, seconds.
    pub fn wait(&mut self) -> Option<Duration> {
        let seconds = self.parsed::<f64>("wait_s", "a number of seconds from 0 to 60")?;
        if (0.0..=WAIT_MAX_S).contains(&seconds) {
            return Some(Duration::from_secs_f64(seconds));
        }
        self.fault("wait_s", "must be a number of seconds from 0 to 60");
        None
    }

    /// How many objects.
    pub fn limit(&mut self) -> i64 {
        match self.parsed::<i64>("limit", "a whole number from 1 to 250") {
            Some(limit) if (1..=250).contains(&limit) => limit,
            Some(_) => {
                self.fault("limit", "must be a whole number from 1 to 250");
                LIMIT_DEFAULT
            }
            None => LIMIT_DEFAULT,
        }
    }

    /// Which page.
    pub fn page(&mut self) -> Page {
        let limit = self.limit();
        let before = self.text("cursor").and_then(|text| {
            let read = read_cursor(&text);
            if read.is_none() {
                self.fault("cursor", "is none of ours; take next_cursor from the page before");
            }
            read
        });
        Page { limit, before }
    }

    /// Notes a fault.
    pub fn fault(&mut self, name: &str, detail: impl Into<String>) {
        self.faults.add(format!("/{name}"), detail);
    }

    /// Ends the reading.
    /// # Errors
    /// [`ApiError::Invalid`] with all faults.
    pub fn finish(mut self) -> Result<(), ApiError> {
        let known = self.known.join(", ");
        for (name, _) in std::mem::take(&mut self.pairs) {
            let family = name.split_once('[').map(|(family, _)| format!("{family}[…]"));
            let is_known = self.known.iter().any(|one| *one == name || Some(*one) == family.as_deref());
            let text = match known.as_str() {
                _ if is_known => "is given twice".to_owned(),
                "" => "unknown parameter; there are none here".to_owned(),
                known => format!("unknown parameter; the known ones are: {known}"),
            };
            self.fault(&name, text);
        }
        if self.faults.is_empty() { Ok(()) } else { Err(self.faults.into()) }
    }
}

/// A page of a list, newest first.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// So many objects.
    pub limit: i64,
    /// Older than this one.
    pub before: Option<Uuid>,
}

fn read_cursor(text: &str) -> Option<Uuid> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
    Uuid::from_slice(&bytes).ok()
}

/// The cursor behind an object.
pub fn write_cursor(last: Uuid) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(last.as_bytes())
}

/// The tag of a version of an object.
pub fn entity_tag(version: i64) -> String {
    format!("\"{version}\"")
}

/// `If-Match` (RFC 9110, section 13.1.1): what the object's tag must be for the request to be carried out.
#[derive(Debug, Clone)]
pub struct IfMatch(Option<String>);

impl IfMatch {
    /// Of this request.
    /// # Errors
    /// [`ApiError::Invalid`] for what is no text.
    pub fn of(request: &HttpRequest) -> Result<Self, ApiError> {
        let Some(value) = request.headers().get(header::IF_MATCH) else { return Ok(Self(None)) };
        let text = value.to_str().map_err(|_| invalid("/if-match", "must be visible ASCII"))?;
        Ok(Self(Some(text.to_owned())))
    }

    /// Is an object of this version meant? A weak tag never is.
    pub fn allows(&self, version: i64) -> bool {
        let tag = entity_tag(version);
        self.0
            .as_ref()
            .is_none_or(|text| text.split(',').map(str::trim).any(|wanted| wanted == "*" || wanted == tag))
    }
}

/// `Prefer: wait=N` (RFC 7240), at most 60 s.
pub fn prefer_wait(request: &HttpRequest) -> Option<Duration> {
    let values = request.headers().get_all(header::HeaderName::from_static("prefer"));
    let mut preferences =
        values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split([',', ';']));
    let seconds = preferences.find_map(|one| {
        let (name, value) = one.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("wait")
            .then(|| value.trim().trim_matches('"').parse::<f64>().ok())?
    })?;
    // A preference that makes no sense is ignored, as the RFC wants.
    (seconds > 0.0).then(|| Duration::from_secs_f64(seconds.min(WAIT_MAX_S)))
}

/// W3C trace context, if it is well formed: `00-` trace id `-` parent id `-` flags.
pub fn traceparent(request: &HttpRequest) -> Option<String> {
    let text = request.headers().get("traceparent")?.to_str().ok()?;
    let parts: Vec<&str> = text.split('-').collect();
    let lower_hex = |part: &str, length: usize| {
        part.len() == length
            && part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let fits = matches!(parts[..], [version, trace, parent, flags]
        if version == "00" && lower_hex(trace, 32) && lower_hex(parent, 16) && lower_hex(flags, 2)
        && trace.contains(|c| c != '0') && parent.contains(|c| c != '0'));
    fits.then(|| text.to_owned())
}

/// A single wrong field.
pub fn invalid(pointer: &str, detail: &str) -> ApiError {
    ApiError::Invalid(vec![Fault { pointer: pointer.to_owned(), detail: detail.to_owned() }])
}
