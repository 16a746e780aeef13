//! [pure] Why a message is not verified, in words that help the author of a receiver.
//!
//! Called by `verify`. Asks `signing::verify` first, and whatever that accepts is verified; everything else here only
//! explains a refusal. Knows no clock: the time is handed in.
//!
//! Invariant: no reason shows a secret or a signature that would be right.

use base64::prelude::{BASE64_STANDARD, Engine};

use super::variants::variants;
use crate::signing::{SignedHeaders, SigningSecret, Verifies, VerifyError, VerifyingKey, verify};

/// From about this number on a timestamp is in milliseconds: as seconds it would be the year 5138.
const SECONDS_MAX: i64 = 100_000_000_000;
/// An HMAC-SHA256 has 32 bytes.
const DIGEST_BYTES: usize = 32;
/// A signature by Ed25519.
const SIGNATURE_BYTES: usize = 64;

const NO_MATCH: &str = "no signature matches, and none does with the changes that frameworks usually make to a body. So either\n\
    \x20 the secret is another one: of another endpoint, another tenant, or from before a rotation\n\
    \x20   (GET /v1/callback-secret for a callback_url, GET /v1/endpoints/{id}/secret for an endpoint),\n\
    \x20 or webhook-id and webhook-timestamp are not those of this message (each try has a timestamp of its own),\n\
    \x20 or the body is not what was sent: verify the raw bytes, before anything parses, decodes or trims them";

const NOT_AS_SENT: &str = "no signature matches, and the body is JSON but not written as Ringback writes it, which is \
    {\"type\":\"…\",\"timestamp\":\"…\",\"data\":…}\nin this order and without spaces. If Ringback sent it, your \
    framework parsed the body before you verified it; verify the raw bytes of the request";

/// A message as it was received.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) id: Option<&'a str>,
    pub(super) timestamp: Option<&'a str>,
    pub(super) signature: Option<&'a str>,
    pub(super) body: &'a [u8],
}

impl Message<'_> {
    fn check(&self, key: &impl Verifies, now_s: i64, tolerance_s: u32) -> Result<(), VerifyError> {
        let headers = SignedHeaders { id: self.id, timestamp: self.timestamp, signature: self.signature };
        verify(key, headers, self.body, now_s, tolerance_s)
    }

    /// Whether it was signed with the key, whenever that was.
    fn is_signed_with(&self, key: &impl Verifies) -> bool {
        let signed_at_s = self.timestamp.and_then(|text| text.parse().ok()).unwrap_or_default();
        self.check(key, signed_at_s, u32::MAX).is_ok()
    }
}

/// Verifies, and finds out why not.
/// # Errors
/// The reasons, the first one first.
pub(super) fn diagnose(
    secret_text: &str,
    message: Message<'_>,
    now_s: i64,
    tolerance_s: u32,
) -> Result<(), Vec<String>> {
    let key: VerifyingKey = secret_text.parse().map_err(|error| vec![format!("the secret: {error}")])?;
    let Err(error) = message.check(&key, now_s, tolerance_s) else { return Ok(()) };
    Err(match error {
        VerifyError::Missing(name) => vec![format!(
            "the header {name} is missing; did a proxy or a framework drop it, or is its name spelled otherwise?"
        )],
        VerifyError::Malformed("webhook-id") => vec!["the header webhook-id is empty".to_owned()],
        VerifyError::Malformed("webhook-timestamp") => vec![about_timestamp(message.timestamp)],
        VerifyError::Malformed(_) => vec![about_signature(message.signature, &key)],
        VerifyError::TooOld | VerifyError::TooNew => {
            let mut reasons = vec![about_age(message.timestamp, now_s, tolerance_s)];
            reasons.push(if message.is_signed_with(&key) {
                "The signature itself matches: for a message that was kept, --no-tolerance accepts any time"
                    .to_owned()
            } else {
                format!("Besides, {}", about_mismatch(secret_text, &key, message))
            });
            reasons
        }
        VerifyError::NoMatch => vec![about_mismatch(secret_text, &key, message)],
    })
}

fn about_timestamp(text: Option<&str>) -> String {
    let text = text.unwrap_or_default();
    let hint = if text.parse::<f64>().is_ok_and(|number| number.fract() != 0.0) {
        "without a fraction"
    } else if text.contains(['T', '-', ':']) {
        "not a date"
    } else if text.trim() != text {
        "without white space"
    } else {
        "in digits alone"
    };
    format!(
        "the header webhook-timestamp is \"{text}\"; it must be the seconds since 1970, {hint}, as in 1764547200"
    )
}

fn about_age(text: Option<&str>, now_s: i64, tolerance_s: u32) -> String {
    let signed_at_s: i64 = text.and_then(|text| text.parse().ok()).unwrap_or_default();
    if signed_at_s > SECONDS_MAX {
        return format!("the timestamp {signed_at_s} seems to be in milliseconds; it is in seconds");
    }
    let age_s = now_s.saturating_sub(signed_at_s);
    if age_s > 0 {
        format!(
            "the timestamp is too old: it was signed {} ago, and {} are tolerated. A receiver refuses such a message, \
             since somebody may be replaying it.",
            seconds(age_s),
            seconds(i64::from(tolerance_s))
        )
    } else {
        format!(
            "the timestamp is too new: it is {} ahead of this machine's clock, and {} are tolerated. One of the two \
             clocks is wrong.",
            seconds(age_s.saturating_neg()),
            seconds(i64::from(tolerance_s))
        )
    }
}

/// `412 s`, with a readable form beside it where it is long.
fn seconds(count: i64) -> String {
    match u64::try_from(count) {
        Ok(count) if count >= 600 => {
            let long = humantime::format_duration(std::time::Duration::from_secs(count));
            format!("{count} s ({long})")
        }
        _ => format!("{count} s"),
    }
}

fn about_signature(text: Option<&str>, key: &VerifyingKey) -> String {
    let text = text.unwrap_or_default().trim();
    let version = key.version();
    let length = match key {
        VerifyingKey::Hmac(_) => DIGEST_BYTES,
        VerifyingKey::Ed25519(_) => SIGNATURE_BYTES,
    };
    let wanted = format!(
        "it must be {version}, and the base64 of {length} bytes; several are separated by spaces. Give the header whole"
    );
    let is_bare = |text: &str| BASE64_STANDARD.decode(text).is_ok_and(|bytes| bytes.len() == length);
    let bare = text.strip_prefix(version).and_then(|rest| rest.strip_prefix(',')).unwrap_or(text);
    let hint = if text.is_empty() {
        "it is empty"
    } else if is_bare(text) {
        &format!("the version at its beginning, {version}, and a comma, is missing")
    } else if bare.len() == 2 * length && bare.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        "it is in hexadecimal digits, and Standard Webhooks has base64"
    } else if text.contains(&format!("{version}=")) {
        &format!("a comma stands after {version}, not an equals sign")
    } else if text.contains(", ") || text.contains(';') {
        "several signatures are separated by single spaces"
    } else {
        "it may have been cut off or decoded"
    };
    format!("the header webhook-signature is malformed ({hint}): {wanted}")
}

/// Tries what usually goes wrong.
fn about_mismatch(secret_text: &str, key: &VerifyingKey, message: Message<'_>) -> String {
    for variant in variants(message.body) {
        if (Message { body: &variant.body, ..message }).is_signed_with(key) {
            return variant.lesson.to_owned();
        }
    }
    let (id, timestamp) = (message.id.map(str::trim), message.timestamp.map(str::trim));
    if (Message { id, timestamp, ..message }).is_signed_with(key) {
        return "the signature matches when the white space around webhook-id is removed".to_owned();
    }
    let encoded = secret_text.trim_start_matches("whsec_");
    for text in [secret_text, encoded] {
        let undecoded = SigningSecret::from_bytes(text.as_bytes().to_vec());
        if undecoded.is_ok_and(|secret| message.is_signed_with(&secret)) {
            return "the signature was made with the secret's text as the key: the key is what its base64, after whsec_, \
                    decodes to"
                .to_owned();
        }
    }
    if tokens(message.signature).all(|version| version != key.version()) {
        return match key {
            VerifyingKey::Hmac(_) => "webhook-signature holds no v1 token: this endpoint signs with ed25519 (v1a), which its public key verifies: \
                 --secret whpk_…, from GET /v1/endpoints/{id}/secret",
            VerifyingKey::Ed25519(_) => "webhook-signature holds no v1a token: the key is one of ed25519, and the sender signs with hmac-sha256 (v1), \
                 which its secret verifies: --secret whsec_…",
        }
        .to_owned();
    }
    if message.body.is_empty() {
        return "no signature matches, and the body is empty: was it read already, or is --body missing?"
            .to_owned();
    }
    if is_rewritten(message.body) { NOT_AS_SENT.to_owned() } else { NO_MATCH.to_owned() }
}

/// Whether it holds the members of a message of ours, but not in our spelling (`deliveries::message::body`).
fn is_rewritten(body: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(body) else { return false };
    let text = |name: &str| value.get(name).and_then(serde_json::Value::as_str);
    let (Some(event_type), Some(timestamp), Some(_)) = (text("type"), text("timestamp"), value.get("data"))
    else {
        return false;
    };
    let ours = format!("{{\"type\":\"{event_type}\",\"timestamp\":\"{timestamp}\",\"data\":");
    !(body.starts_with(ours.as_bytes()) && body.ends_with(b"}"))
}

fn tokens(signature: Option<&str>) -> impl Iterator<Item = &str> {
    signature
        .unwrap_or_default()
        .split(' ')
        .filter_map(|token| token.split_once(','))
        .map(|(version, _)| version)
}

#[cfg(test)]
#[path = "diagnosis_tests.rs"]
mod tests;
