//! Signatures, `[pure]`: Standard Webhooks, HMAC-SHA256 (`v1`) or Ed25519 (`v1a`) over `id.timestamp.body`.
//!
//! Called by `deliveries::message` (signs every try), `secrets` (makes and keeps them) and
//! `cli::verify` and `demo` (check). Knows no clock: the time is handed in.
//! Must not print a secret: `Debug` shows nothing, `Display` exists for the one answer that reveals it, and the
//! memory of a secret is wiped when it is dropped.
//!
//! Invariant: the bytes signed are the bytes given; a signature is compared in constant time, as decoded bytes, and
//! anything malformed is an error, never a pass.

mod ed25519;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

pub use ed25519::{Ed25519Key, Ed25519PublicKey};

/// What every symmetric secret begins with (Standard Webhooks, "Signature scheme").
const SECRET_PREFIX: &str = "whsec_";
/// Sizes of a symmetric secret in bytes (Standard Webhooks, "Signature scheme": 192 to 512 bits).
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// The version tag of an HMAC-SHA256 token.
const V1: &str = "v1";
/// The version tag of an Ed25519 token.
const V1A: &str = "v1a";
/// `v1,` and the padded base64 of 32 bytes.
const TOKEN_LEN: usize = 47;
/// More tokens than that in a header are not looked at: a sender has a handful of live secrets.
const TOKENS_MAX: usize = 32;

/// A symmetric signing secret, with its HMAC key made ready once.
#[derive(Clone)]
pub struct SigningSecret {
    bytes: Zeroizing<Vec<u8>>,
    /// The state after the key block: cloned for each message, which saves two of its compressions.
    keyed: Hmac<Sha256>,
}

impl SigningSecret {
    /// Reads `whsec_` and the padded base64 of 24 to 64 bytes.
    ///
    /// # Errors
    /// Anything else. The error does not repeat the text.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let encoded = text.strip_prefix(SECRET_PREFIX).ok_or(SecretError::Prefix)?;
        let bytes = BASE64.decode(encoded).map_err(|_| SecretError::Base64)?;
        Self::from_bytes(bytes)
    }

    /// Takes the raw secret, as it lies sealed in the database.
    ///
    /// # Errors
    /// A length outside 24 to 64 bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, SecretError> {
        let bytes = Zeroizing::new(bytes);
        if !SECRET_BYTES.contains(&bytes.len()) {
            return Err(SecretError::Length);
        }
        Ok(Self::keyed(bytes))
    }

    /// A new secret out of 32 random bytes that the caller drew.
    pub fn from_random(bytes: [u8; 32]) -> Self {
        Self::keyed(Zeroizing::new(bytes.to_vec()))
    }

    /// The raw secret, to be sealed for storage.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn keyed(bytes: Zeroizing<Vec<u8>>) -> Self {
        let keyed = Hmac::new_from_slice(&bytes).expect("HMAC takes a key of any length");
        Self { bytes, keyed }
    }

    fn mac(&self, webhook_id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.keyed.clone();
        mac.update(webhook_id.as_bytes());
        mac.update(b".");
        mac.update(timestamp.as_bytes());
        mac.update(b".");
        mac.update(body);
        mac
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret")
    }
}

/// Reveals the secret as `whsec_…`: for the answers that show it to its owner, and for nothing else.
impl fmt::Display for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = Zeroizing::new(BASE64.encode(self.bytes.as_slice()));
        write!(f, "{SECRET_PREFIX}{}", encoded.as_str())
    }
}

impl std::str::FromStr for SigningSecret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        Self::parse(text)
    }
}

/// How a receiver's deliveries are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureKind {
    /// With a secret that both sides know; `v1`.
    HmacSha256,
    /// With a key of which the receiver knows the public half; `v1a`.
    Ed25519,
}

impl SignatureKind {
    /// All of them by name.
    pub const WORDS: [(&'static str, Self); 2] =
        [("hmac-sha256", Self::HmacSha256), ("ed25519", Self::Ed25519)];

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::Ed25519 => "ed25519",
        }
    }
}

/// A key of either kind.
#[derive(Clone, Debug)]
pub enum SigningKey {
    /// `whsec_…`
    Hmac(SigningSecret),
    /// `whsk_…`
    Ed25519(Ed25519Key),
}

impl SigningKey {
    /// A new one out of 32 random bytes that the caller drew.
    pub fn from_random(kind: SignatureKind, bytes: [u8; 32]) -> Self {
        match kind {
            SignatureKind::HmacSha256 => Self::Hmac(SigningSecret::from_random(bytes)),
            SignatureKind::Ed25519 => Self::Ed25519(Ed25519Key::from_random(bytes)),
        }
    }

    /// Which kind it is.
    pub fn kind(&self) -> SignatureKind {
        match self {
            Self::Hmac(_) => SignatureKind::HmacSha256,
            Self::Ed25519(_) => SignatureKind::Ed25519,
        }
    }

    /// `whpk_…`, where there is a public half.
    pub fn public_key(&self) -> Option<String> {
        match self {
            Self::Hmac(_) => None,
            Self::Ed25519(key) => Some(key.public_key()),
        }
    }
}

impl From<SigningSecret> for SigningKey {
    fn from(secret: SigningSecret) -> Self {
        Self::Hmac(secret)
    }
}

/// Reveals the secret, as the `Display` of each kind does.
impl fmt::Display for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hmac(secret) => secret.fmt(f),
            Self::Ed25519(key) => key.fmt(f),
        }
    }
}

impl std::str::FromStr for SigningKey {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        if text.starts_with(ed25519::SECRET_PREFIX) {
            Ed25519Key::parse(text).map(Self::Ed25519)
        } else {
            SigningSecret::parse(text).map(Self::Hmac)
        }
    }
}

/// Why a text is no signing secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// It does not begin with `whsec_`.
    #[error("a secret begins with whsec_")]
    Prefix,
    /// What follows is not padded standard base64.
    #[error("after whsec_ a secret is padded base64")]
    Base64,
    /// It is shorter than 24 or longer than 64 bytes.
    #[error("a secret has 24 to 64 bytes")]
    Length,
    /// What follows `whsk_` is no Ed25519 key.
    #[error("after whsk_ a secret is the seed of an Ed25519 key, and its public key")]
    Key,
    /// What follows `whpk_` is no public key.
    #[error("after whpk_ a public key is the padded base64 of 32 bytes")]
    PublicKey,
    /// It is nothing that verifies.
    #[error("what verifies is a secret, which begins with whsec_, or a public key, which begins with whpk_")]
    NotToVerify,
}

/// The value of `webhook-signature`: one `v1,…` or `v1a,…` token for each live key, in the order given, single spaces
/// between.
pub fn sign(keys: &[SigningKey], webhook_id: &str, timestamp_s: i64, body: &[u8]) -> String {
    let timestamp = timestamp_s.to_string();
    let mut header = String::with_capacity(keys.len() * (TOKEN_LEN + 1));
    // Ed25519 reads its message twice, so it needs it in one piece.
    let mut message = Vec::new();
    for key in keys {
        if !header.is_empty() {
            header.push(' ');
        }
        match key {
            SigningKey::Hmac(secret) => {
                let digest = secret.mac(webhook_id, &timestamp, body).finalize().into_bytes();
                push_token(&mut header, V1, digest);
            }
            SigningKey::Ed25519(key) => {
                if message.is_empty() {
                    message = [webhook_id.as_bytes(), timestamp.as_bytes(), body].join(&b'.');
                }
                push_token(&mut header, V1A, key.sign(&message));
            }
        }
    }
    header
}

fn push_token(header: &mut String, version: &str, signature: impl AsRef<[u8]>) {
    header.push_str(version);
    header.push(',');
    BASE64.encode_string(signature, header);
}

/// The three headers of a signed message, as received; `None` where one is absent.
#[derive(Clone, Copy, Debug)]
pub struct SignedHeaders<'a> {
    /// `webhook-id`
    pub id: Option<&'a str>,
    /// `webhook-timestamp`
    pub timestamp: Option<&'a str>,
    /// `webhook-signature`
    pub signature: Option<&'a str>,
}

/// Why a message is not to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The named header is absent.
    #[error("the header {0} is missing")]
    Missing(&'static str),
    /// The named header cannot be read.
    #[error("the header {0} is malformed")]
    Malformed(&'static str),
    /// The message was signed longer ago than tolerated: it may be a replay by a third party.
    #[error("the timestamp is too old")]
    TooOld,
    /// The message claims to come from the future.
    #[error("the timestamp is in the future")]
    TooNew,
    /// No token of the key's version was made with it from this message.
    #[error("no signature matches")]
    NoMatch,
}

/// What a receiver holds to tell our messages from others'.
pub trait Verifies {
    /// The tag of the tokens that it is for.
    fn version(&self) -> &'static str;
    /// Whether the signature is one of this message.
    fn accepts(&self, id: &str, timestamp: &str, body: &[u8], signature: &[u8]) -> bool;
}

impl Verifies for SigningSecret {
    fn version(&self) -> &'static str {
        V1
    }

    /// In constant time, and false for any length but 32 bytes.
    fn accepts(&self, id: &str, timestamp: &str, body: &[u8], signature: &[u8]) -> bool {
        self.mac(id, timestamp, body).verify_slice(signature).is_ok()
    }
}

impl Verifies for Ed25519PublicKey {
    fn version(&self) -> &'static str {
        V1A
    }

    fn accepts(&self, id: &str, timestamp: &str, body: &[u8], signature: &[u8]) -> bool {
        self.accepts(&[id.as_bytes(), timestamp.as_bytes(), body].join(&b'.'), signature)
    }
}

/// A key of either kind that verifies.
#[derive(Clone, Debug)]
pub enum VerifyingKey {
    /// `whsec_…`
    Hmac(SigningSecret),
    /// `whpk_…`, or that of a `whsk_…`
    Ed25519(Ed25519PublicKey),
}

impl Verifies for VerifyingKey {
    fn version(&self) -> &'static str {
        match self {
            Self::Hmac(secret) => secret.version(),
            Self::Ed25519(key) => key.version(),
        }
    }

    fn accepts(&self, id: &str, timestamp: &str, body: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Hmac(secret) => secret.accepts(id, timestamp, body, signature),
            Self::Ed25519(key) => Verifies::accepts(key, id, timestamp, body, signature),
        }
    }
}

impl std::str::FromStr for VerifyingKey {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        if text.starts_with(SECRET_PREFIX) {
            SigningSecret::parse(text).map(Self::Hmac)
        } else if text.starts_with(ed25519::PUBLIC_PREFIX) {
            Ed25519PublicKey::parse(text).map(Self::Ed25519)
        } else if text.starts_with(ed25519::SECRET_PREFIX) {
            Ed25519Key::parse(text).map(|key| Self::Ed25519(key.public()))
        } else {
            Err(SecretError::NotToVerify)
        }
    }
}

/// Checks a received message against one key.
///
/// `tolerance_s` bounds the distance between `now_s` and the timestamp in both directions (the libraries of Standard
/// Webhooks use 300). Tokens of other versions are passed over, so that a sender can add them.
///
/// # Errors
/// See [`VerifyError`]; every doubt is an error.
pub fn verify(
    key: &impl Verifies,
    headers: SignedHeaders<'_>,
    body: &[u8],
    now_s: i64,
    tolerance_s: u32,
) -> Result<(), VerifyError> {
    let id = headers.id.ok_or(VerifyError::Missing("webhook-id"))?;
    let timestamp = headers.timestamp.ok_or(VerifyError::Missing("webhook-timestamp"))?;
    let signature = headers.signature.ok_or(VerifyError::Missing("webhook-signature"))?;
    if id.is_empty() {
        return Err(VerifyError::Malformed("webhook-id"));
    }
    let signed_at_s = parse_timestamp(timestamp).ok_or(VerifyError::Malformed("webhook-timestamp"))?;
    let age_s = now_s.saturating_sub(signed_at_s);
    if age_s > i64::from(tolerance_s) {
        return Err(VerifyError::TooOld);
    }
    if age_s < -i64::from(tolerance_s) {
        return Err(VerifyError::TooNew);
    }
    let mut is_malformed = true;
    for token in signature.split(' ').take(TOKENS_MAX) {
        let Some((version, encoded)) = token.split_once(',') else { continue };
        if version != key.version() {
            is_malformed = false;
            continue;
        }
        let Ok(signature) = BASE64.decode(encoded) else { continue };
        is_malformed = false;
        if key.accepts(id, timestamp, body, &signature) {
            return Ok(());
        }
    }
    Err(if is_malformed { VerifyError::Malformed("webhook-signature") } else { VerifyError::NoMatch })
}

/// Whole seconds in the one canonical spelling: the text itself is signed, so `+1` or `01` would be another message.
fn parse_timestamp(text: &str) -> Option<i64> {
    let seconds: i64 = text.parse().ok()?;
    (seconds >= 0 && seconds.to_string() == text).then_some(seconds)
}

#[cfg(test)]
mod tests;
