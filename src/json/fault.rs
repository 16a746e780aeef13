//! Faults of strict JSON, `[pure]`: what was wrong, and where, in words for the sender.
//!
//! Called by the scanner beside it, which knows offsets only; line and column are counted here, once, after a fault.
//! Must not quote the input: what stands there may be a secret.
//!
//! Invariant: a fault names one byte of the input or its end.

use std::fmt;

/// Why and where the input was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonFault {
    /// The byte at which it went wrong, from 0.
    pub offset: usize,
    /// Line of that byte, from 1.
    pub line: usize,
    /// Column of that byte in characters, from 1.
    pub column: usize,
    /// What is wrong there.
    pub kind: JsonFaultKind,
}

/// The ways in which input is not acceptable JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonFaultKind {
    /// The input is over 4 GiB.
    TooLong,
    /// A byte sequence that is not UTF-8 (RFC 8259, section 8.1).
    NotUtf8,
    /// The input begins with U+FEFF.
    ByteOrderMark,
    /// The input ended before the value did; also for empty input.
    UnexpectedEnd,
    /// A byte that the grammar does not allow here.
    UnexpectedByte,
    /// A raw control character within a string.
    ControlCharacter,
    /// A backslash followed by something that is no escape.
    BadEscape,
    /// Half of a surrogate pair (RFC 7493, section 2.1).
    LoneSurrogate,
    /// The escape `\u0000`.
    NulCharacter,
    /// A number that breaks the grammar (a leading zero, a plus, a missing digit).
    BadNumber,
    /// A number beyond the range of a double (RFC 7493, section 2.2).
    NumberOutOfRange,
    /// A key that occurred before in the same object (RFC 7493, section 2.3).
    DuplicateKey,
    /// More arrays and objects inside each other than allowed.
    TooDeep,
    /// Something other than whitespace after the value.
    TrailingBytes,
}

impl JsonFault {
    pub(super) fn at(bytes: &[u8], offset: usize, kind: JsonFaultKind) -> Self {
        let before = &bytes[..offset.min(bytes.len())];
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let line = before.split(|byte| *byte == b'\n').count();
        // Continuation bytes of UTF-8 do not begin a character.
        let column = 1 + before[line_start..].iter().filter(|byte| **byte & 0xC0 != 0x80).count();
        Self { offset, line, column, kind }
    }
}

impl fmt::Display for JsonFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at line {} column {}", self.kind, self.line, self.column)
    }
}

impl std::error::Error for JsonFault {}

impl fmt::Display for JsonFaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "the document is too long",
            Self::NotUtf8 => "not UTF-8",
            Self::ByteOrderMark => "a byte order mark is not allowed",
            Self::UnexpectedEnd => "unexpected end of the document",
            Self::UnexpectedByte => "unexpected character",
            Self::ControlCharacter => "a control character must be escaped",
            Self::BadEscape => "no such escape",
            Self::LoneSurrogate => "a lone surrogate is not a character",
            Self::NulCharacter => "the character \\u0000 is not allowed",
            Self::BadNumber => "not a JSON number",
            Self::NumberOutOfRange => "the number is out of range",
            Self::DuplicateKey => "the key occurs twice in one object",
            Self::TooDeep => "nested too deeply",
            Self::TrailingBytes => "something follows the value",
        })
    }
}
