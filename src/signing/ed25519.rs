//! Ed25519 keys, `[pure]`: the asymmetric half of Standard Webhooks, for receivers that shall verify but not sign.
//!
//! Called by the file above, which puts the tokens of both halves into one header. The written forms are those of the
//! reference implementation: `whsk_` and base64 of seed and public key, `whpk_` and base64 of the public key.
//!
//! Invariant: the two halves of a key belong together, and neither `Debug` nor an error shows the secret one.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use zeroize::Zeroizing;

use super::SecretError;

/// What every secret key begins with.
pub(super) const SECRET_PREFIX: &str = "whsk_";
/// What every public key begins with.
pub(super) const PUBLIC_PREFIX: &str = "whpk_";
const SEED_LEN: usize = 32;
const PUBLIC_LEN: usize = 32;

/// An Ed25519 key pair, made ready once.
#[derive(Clone)]
pub struct Ed25519Key {
    seed: Zeroizing<[u8; SEED_LEN]>,
    pair: Arc<Ed25519KeyPair>,
}

impl Ed25519Key {
    /// Reads `whsk_` and the padded base64 of a seed, with or without the public key behind it.
    /// # Errors
    /// Anything else, or a public key that is not the seed's.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let encoded = text.strip_prefix(SECRET_PREFIX).ok_or(SecretError::Prefix)?;
        let bytes = Zeroizing::new(BASE64.decode(encoded).map_err(|_| SecretError::Base64)?);
        let (seed, public) = bytes.split_first_chunk::<SEED_LEN>().ok_or(SecretError::Key)?;
        let key = Self::from_random(*seed);
        if public.is_empty() || public == key.pair.public_key().as_ref() {
            Ok(key)
        } else {
            Err(SecretError::Key)
        }
    }

    /// A new key out of 32 random bytes that the caller drew.
    pub fn from_random(seed: [u8; SEED_LEN]) -> Self {
        Self { seed: Zeroizing::new(seed), pair: Arc::new(pair_of(&seed)) }
    }

    /// The public key, `whpk_…`: what a receiver is configured with.
    pub fn public_key(&self) -> String {
        format!("{PUBLIC_PREFIX}{}", BASE64.encode(self.pair.public_key()))
    }

    /// The half that verifies.
    pub fn public(&self) -> Ed25519PublicKey {
        let mut bytes = [0; PUBLIC_LEN];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        Ed25519PublicKey(bytes)
    }

    /// The 64 bytes of a signature.
    pub(super) fn sign(&self, message: &[u8]) -> impl AsRef<[u8]> + use<> {
        self.pair.sign(message)
    }
}

/// The public half of a key: it verifies, and cannot sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ed25519PublicKey([u8; PUBLIC_LEN]);

impl Ed25519PublicKey {
    /// Reads `whpk_` and the padded base64 of 32 bytes.
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let encoded = text.strip_prefix(PUBLIC_PREFIX).ok_or(SecretError::Prefix)?;
        let bytes = BASE64.decode(encoded).map_err(|_| SecretError::PublicKey)?;
        bytes.try_into().map(Self).map_err(|_| SecretError::PublicKey)
    }

    /// Whether the signature was made of this message with the other half.
    pub(super) fn accepts(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}

fn pair_of(seed: &[u8; SEED_LEN]) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(seed).expect("any 32 bytes are a seed")
}

impl fmt::Debug for Ed25519Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ed25519Key")
    }
}

/// Reveals the secret as `whsk_…`: for the answers that show it to its owner, and for nothing else.
impl fmt::Display for Ed25519Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Zeroizing::new([0; 2 * SEED_LEN]);
        bytes[..SEED_LEN].copy_from_slice(self.seed.as_slice());
        bytes[SEED_LEN..].copy_from_slice(self.pair.public_key().as_ref());
        let encoded = Zeroizing::new(BASE64.encode(bytes.as_slice()));
        write!(f, "{SECRET_PREFIX}{}", encoded.as_str())
    }
}
