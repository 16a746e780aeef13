//! Secrets: a value that never prints, and sealing with the operator's master key.
//!
//! A sealed record is `key id (4 bytes) ‖ nonce (24) ‖ XChaCha20-Poly1305 ciphertext`, with tenant, owner and column
//! as associated data: a record that is moved to another row no longer opens. Called by the rooms that keep signing
//! secrets and custom header values. Does no I/O; randomness is the system's.
//!
//! Invariant: no `Debug`, `Display` or error of this file shows a secret.

use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use rand::TryRngCore;
use rand::rngs::OsRng;
use sha2::{Digest, Sha256};
use uuid::Uuid;
use zeroize::Zeroize;

const NONCE_LEN: usize = 24;
const KEY_ID_LEN: usize = 4;

/// A value that must not be shown. `Debug` prints nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Wraps it.
    pub fn new(value: T) -> Self {
        Self(value)
    }
    /// The value, for the one place that needs it.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl<'de> serde::Deserialize<'de> for Secret<String> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Why a record could not be opened, or a key not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The master key's text is wrong.
    #[error("RINGBACK_MASTER_KEY must be base64 of exactly 32 bytes; make one with: openssl rand -base64 32")]
    BadKey,
    /// Sealed under another master key, or not a record at all, or moved from another row.
    #[error("a stored secret cannot be opened with this RINGBACK_MASTER_KEY")]
    CannotOpen,
    /// The system gave no random bytes.
    #[error("the system's random generator failed")]
    NoRandomness,
}

/// 32 random bytes of the system.
pub fn random_bytes() -> Result<[u8; 32], SealError> {
    let mut bytes = [0u8; 32];
    OsRng.try_fill_bytes(&mut bytes).map_err(|_| SealError::NoRandomness)?;
    Ok(bytes)
}

/// Which row and column a sealed value belongs to.
#[derive(Debug, Clone, Copy)]
pub struct SealContext {
    /// Whose it is.
    pub tenant: Uuid,
    /// The object that holds it.
    pub owner: Uuid,
    /// The column's name.
    pub column: &'static str,
}

impl SealContext {
    fn associated_data(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(32 + self.column.len());
        data.extend_from_slice(self.tenant.as_bytes());
        data.extend_from_slice(self.owner.as_bytes());
        data.extend_from_slice(self.column.as_bytes());
        data
    }
}

/// Seals and opens with the master key.
#[derive(Clone)]
pub struct Sealer {
    cipher: XChaCha20Poly1305,
    key_id: [u8; KEY_ID_LEN],
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("key_id", &self.key_id()).finish_non_exhaustive()
    }
}

impl Sealer {
    /// From base64 of 32 bytes, as `openssl rand -base64 32` prints it.
    /// # Errors
    /// [`SealError::BadKey`].
    pub fn from_base64(text: &str) -> Result<Self, SealError> {
        let mut bytes = BASE64_STANDARD.decode(text.trim()).map_err(|_| SealError::BadKey)?;
        let cipher = XChaCha20Poly1305::new_from_slice(&bytes).map_err(|_| SealError::BadKey)?;
        let mut hasher = Sha256::new();
        hasher.update(b"ringback master key id");
        hasher.update(&bytes);
        let digest = hasher.finalize();
        bytes.zeroize();
        Ok(Self { cipher, key_id: [digest[0], digest[1], digest[2], digest[3]] })
    }

    /// A number that tells master keys apart and gives nothing of them away.
    pub fn key_id(&self) -> i32 {
        i32::from_be_bytes(self.key_id)
    }

    /// Encrypts for one row.
    /// # Errors
    /// [`SealError::NoRandomness`].
    pub fn seal(&self, context: &SealContext, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let random = random_bytes()?;
        let nonce = XNonce::try_from(&random[..NONCE_LEN]).map_err(|_| SealError::NoRandomness)?;
        let payload = Payload { msg: plain, aad: &context.associated_data() };
        let sealed = self.cipher.encrypt(&nonce, payload).map_err(|_| SealError::NoRandomness)?;
        let mut record = Vec::with_capacity(KEY_ID_LEN + NONCE_LEN + sealed.len());
        record.extend_from_slice(&self.key_id);
        record.extend_from_slice(&nonce);
        record.extend_from_slice(&sealed);
        Ok(record)
    }

    /// Decrypts what was sealed for the same row.
    /// # Errors
    /// [`SealError::CannotOpen`].
    pub fn open(&self, context: &SealContext, record: &[u8]) -> Result<Secret<Vec<u8>>, SealError> {
        let rest = record.strip_prefix(&self.key_id).ok_or(SealError::CannotOpen)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN).ok_or(SealError::CannotOpen)?;
        let nonce = XNonce::try_from(nonce).map_err(|_| SealError::CannotOpen)?;
        let payload = Payload { msg: sealed, aad: &context.associated_data() };
        self.cipher.decrypt(&nonce, payload).map(Secret::new).map_err(|_| SealError::CannotOpen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(byte: u8) -> Sealer {
        Sealer::from_base64(&BASE64_STANDARD.encode([byte; 32])).expect("32 bytes")
    }
    fn context(owner: u128) -> SealContext {
        SealContext { tenant: Uuid::from_u128(1), owner: Uuid::from_u128(owner), column: "secret" }
    }

    #[test]
    fn what_is_sealed_opens_in_the_same_row_only() {
        let record = sealer(1).seal(&context(7), b"whsec").expect("seal");
        assert_eq!(sealer(1).open(&context(7), &record).expect("open").expose(), b"whsec");
        assert_eq!(sealer(1).open(&context(8), &record).err(), Some(SealError::CannotOpen));
        assert_eq!(sealer(2).open(&context(7), &record).err(), Some(SealError::CannotOpen));
        assert_eq!(sealer(1).open(&context(7), &record[..9]).err(), Some(SealError::CannotOpen));
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        assert_eq!(Sealer::from_base64(&BASE64_STANDARD.encode([1; 31])).err(), Some(SealError::BadKey));
        assert_eq!(Sealer::from_base64("nonsense!").err(), Some(SealError::BadKey));
    }

    #[test]
    fn a_secret_never_prints() {
        assert_eq!(format!("{:?}", Secret::new(String::from("rbk_x"))), "[secret]");
    }
}
