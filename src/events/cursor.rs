//! [pure] A place in the log, as clients hold it.
//!
//! Called by whatever reads the log for a client: `http::events`, and the streams. To clients it is a text without
//! meaning; inside it is the last position that was looked at.
//!
//! Invariant: what comes after a cursor is the same whichever way it is read.

use std::fmt;
use std::str::FromStr;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};

/// After this position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor(i64);

/// Text that is no cursor of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is none of ours; take next_cursor from an answer, or now")]
pub struct CursorError;

impl Cursor {
    /// Before everything.
    pub const START: Self = Self(0);

    /// Behind this position.
    pub const fn after(position: i64) -> Self {
        Self(position)
    }

    /// The last position that was looked at.
    pub const fn position(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_URL_SAFE_NO_PAD.encode(self.0.to_be_bytes()))
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError)?;
        let position = i64::from_be_bytes(bytes.try_into().map_err(|_| CursorError)?);
        if position < 0 { Err(CursorError) } else { Ok(Self(position)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_survives_writing_and_reading(position in 0..=i64::MAX) {
            let text = Cursor::after(position).to_string();
            prop_assert_eq!(text.parse(), Ok(Cursor::after(position)));
            prop_assert_eq!(text.len(), 11);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,24}") {
            let _ = text.parse::<Cursor>();
        }
    }

    #[test]
    fn what_is_none_of_ours_is_refused() {
        for text in ["", "now", "0", "AAAAAAAAAA", "AAAAAAAAAAAA", "__________8", "AAAAAAAAAAA="] {
            assert_eq!(text.parse::<Cursor>(), Err(CursorError), "{text}");
        }
    }
}
