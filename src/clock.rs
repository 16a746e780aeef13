//! Time comes in through here: the wall clock for what is shown and signed, and RFC 3339 for both ways.
//!
//! Due times, leases and expiry are decided by PostgreSQL's clock in SQL, time limits by tokio's monotonic one;
//! this wall clock only stamps. Pure code takes a time as an argument and never asks here.

use chrono::{DateTime, SecondsFormat, Utc};

/// A moment, UTC.
pub type Timestamp = DateTime<Utc>;

/// The wall clock's time, cut to microseconds as PostgreSQL keeps them.
#[expect(clippy::disallowed_methods, reason = "this is the one place that asks the system for the time")]
pub fn now() -> Timestamp {
    let now = Utc::now();
    DateTime::from_timestamp_micros(now.timestamp_micros()).unwrap_or(now)
}

/// RFC 3339 in UTC with milliseconds and `Z`.
pub fn rfc3339(at: Timestamp) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// For `#[serde(with)]`: RFC 3339 with milliseconds, also for an `Option`.
pub mod millis {
    use serde::{Serialize, Serializer};

    use super::{Timestamp, rfc3339};

    /// What can be written as a time or as `null`.
    pub trait Moment {
        /// The text, if there is a time.
        fn text(&self) -> Option<String>;
    }
    impl Moment for Timestamp {
        fn text(&self) -> Option<String> {
            Some(rfc3339(*self))
        }
    }
    impl Moment for Option<Timestamp> {
        fn text(&self) -> Option<String> {
            self.map(rfc3339)
        }
    }

    /// Writes the time.
    pub fn serialize<T: Moment, S: Serializer>(moment: &T, serializer: S) -> Result<S::Ok, S::Error> {
        moment.text().serialize(serializer)
    }
}
