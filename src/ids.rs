//! Ids: a UUIDv7 inside, a TypeID outside (`job_01jd…`), one type for each noun.
//!
//! A TypeID is a prefix, `_`, and the 128 bits in 26 letters of Crockford's base32, lower case
//! (<https://github.com/jetify-com/typeid>, spec 0.3). Both forms sort by the time of making.
//! Called by everything; knows nothing but `uuid`.
//!
//! Invariant: an id of one noun cannot be passed for another's, and text that no id can have never reaches SQL.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const SUFFIX_LEN: usize = 26;

/// Text that is no id of the wanted noun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id of the form {0}_ and 26 letters or digits")]
pub struct IdError(&'static str);

/// A fresh UUIDv7; within one process each is greater than the one before.
pub fn fresh_uuid() -> Uuid {
    Uuid::now_v7()
}

/// The millisecond that a UUIDv7 carries.
pub fn time_of(id: Uuid) -> DateTime<Utc> {
    let millis = i64::try_from(id.as_u128() >> 80).unwrap_or(0);
    DateTime::from_timestamp_millis(millis).unwrap_or_default()
}

/// The smallest UUID of a moment: everything made at or after it sorts behind.
pub fn floor_of(at: DateTime<Utc>) -> Uuid {
    let millis = u128::try_from(at.timestamp_millis().max(0)).unwrap_or(0);
    Uuid::from_u128(millis << 80)
}

fn encode(id: Uuid, out: &mut String) {
    let bits = id.as_u128();
    for place in (0..SUFFIX_LEN).rev() {
        let index = (bits >> (5 * place)) & 31;
        out.push(char::from(ALPHABET[index as usize]));
    }
}

fn decode(suffix: &str) -> Option<Uuid> {
    let bytes = suffix.as_bytes();
    // 26 × 5 = 130 bits: the first letter may carry three.
    if bytes.len() != SUFFIX_LEN || !(b'0'..=b'7').contains(&bytes[0]) {
        return None;
    }
    bytes
        .iter()
        .try_fold(0u128, |bits, byte| {
            let value = ALPHABET.iter().position(|letter| letter == byte)?;
            Some((bits << 5) | value as u128)
        })
        .map(Uuid::from_u128)
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type)]
        #[sqlx(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// The prefix in the written form.
            pub const PREFIX: &'static str = $prefix;
            /// A new one, greater than all that this process made before.
            pub fn fresh() -> Self { Self(fresh_uuid()) }
            /// From the database.
            pub const fn from_uuid(id: Uuid) -> Self { Self(id) }
            /// For the database.
            pub const fn uuid(self) -> Uuid { self.0 }
            /// When it was made, to the millisecond.
            pub fn created_at(self) -> DateTime<Utc> { time_of(self.0) }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut text = String::with_capacity($prefix.len() + 1 + SUFFIX_LEN);
                text.push_str($prefix);
                text.push('_');
                encode(self.0, &mut text);
                f.write_str(&text)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(self, f) }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                text.strip_prefix($prefix)
                    .and_then(|rest| rest.strip_prefix('_'))
                    .and_then(decode)
                    .map(Self)
                    .ok_or(IdError($prefix))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

ids! {
    /// Whose data it is.
    TenantId = "ten";
    /// An API key.
    KeyId = "key";
    /// Work to do.
    JobId = "job";
    /// A fact.
    EventId = "evt";
    /// Who wants to hear.
    EndpointId = "ep";
    /// One event on its way to one receiver.
    DeliveryId = "dlv";
    /// An order to send again what was or was not sent.
    ReplayId = "rpl";
    /// What runs again and again.
    ScheduleId = "sch";
    /// One try of a delivery.
    AttemptId = "att";
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_written_form_is_a_typeid() {
        // From the TypeID specification's valid.json.
        let id = JobId::from_uuid(Uuid::from_u128(0x0188_bac7_4afa_78aa_bc3b_bd1e_ef28_d881));
        assert_eq!(id.to_string(), "job_01h2xcejqtf2nbrexx3vqjhp41");
    }

    #[test]
    fn text_that_is_no_id_is_refused() {
        for text in [
            "",
            "job_",
            "job_01h2xcejqtf2nbrexx3vqjhp4",
            "evt_01h2xcejqtf2nbrexx3vqjhp41",
            "job_81h2xcejqtf2nbrexx3vqjhp41",
            "job_01H2XCEJQTF2NBREXX3VQJHP41",
            "job_01h2xcejqtf2nbrexx3vqjhpu1",
        ] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
    }

    #[test]
    fn fresh_ids_grow() {
        let ids: Vec<JobId> = (0..1000).map(|_| JobId::fresh()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1] && pair[0].to_string() < pair[1].to_string()));
    }

    proptest! {
        #[test]
        fn every_id_survives_writing_and_reading(bits: u128) {
            let id = EventId::from_uuid(Uuid::from_u128(bits));
            prop_assert_eq!(id.to_string().parse::<EventId>(), Ok(id));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<JobId>();
        }
    }
}
