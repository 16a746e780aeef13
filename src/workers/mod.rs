//! Workers: programs outside, in any language, that take jobs of their kinds under leases and report on them.
//!
//! `wish` and `report` read what they ask for and tell, `waiting` holds those who wait for work, `parcel` is what they are
//! handed, `store` the SQL of extending, reporting and giving back, `sightings` who was seen when. How jobs are chosen stands
//! in `jobs::claim_store`, what an end means in `jobs::outcome`. Called by `http::leases` and `engine::lend_jobs`.
//!
//! Invariant: whatever a worker does with a lease is checked against the lease's row in the statement that does it.

pub mod parcel;
pub mod report;
pub mod sightings;
pub mod store;
pub mod waiting;
pub mod wish;

use std::fmt;
use std::str::FromStr;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use uuid::Uuid;

use crate::ids::JobId;

/// A hand-out has at most this many jobs.
pub const LEND_MAX: usize = 500;
/// One call extends or reports at most this many leases.
pub const LEASES_MAX: usize = 1000;
/// A result is at most this long, as JSON text; a checkpoint too.
pub const RESULT_MAX_BYTES: usize = 256 * 1024;

const PREFIX: &str = "lse_";

/// A lease as a worker holds it: `lse_` and base64url of the job's id and the token of this hand-out. Whoever has it may end
/// the try, if the API key is the tenant's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseKey {
    /// The job.
    pub job: JobId,
    /// New at each hand-out.
    pub token: Uuid,
}

/// It is a secret, so no log gets to see the token.
impl fmt::Debug for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseKey").field("job", &self.job).finish_non_exhaustive()
    }
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(self.job.uuid().as_bytes());
        bytes[16..].copy_from_slice(self.token.as_bytes());
        write!(f, "{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// The text is no lease that we ever gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no lease of ours")]
pub struct NoLease;

impl FromStr for LeaseKey {
    type Err = NoLease;
    fn from_str(text: &str) -> Result<Self, NoLease> {
        let encoded = text.strip_prefix(PREFIX).ok_or(NoLease)?;
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(encoded).map_err(|_| NoLease)?;
        let (job, token) = bytes.split_at_checked(16).ok_or(NoLease)?;
        let uuid = |bytes| Uuid::from_slice(bytes).map_err(|_| NoLease);
        Ok(Self { job: JobId::from_uuid(uuid(job)?), token: uuid(token)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_lease_survives_writing_and_reading(job: u128, token: u128) {
            let key = LeaseKey { job: JobId::from_uuid(Uuid::from_u128(job)), token: Uuid::from_u128(token) };
            prop_assert_eq!(key.to_string().parse::<LeaseKey>(), Ok(key));
            let shown = format!("{key:?}");
            prop_assert!(!shown.contains(&key.token.to_string()));
        }

        #[test]
        fn no_text_panics(text in "(lse_)?\\PC{0,60}") {
            let _ = text.parse::<LeaseKey>();
        }
    }
}
