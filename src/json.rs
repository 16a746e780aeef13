//! Strict JSON, `[pure]`: one linear look at bytes that are then stored and sent exactly as received.
//!
//! Called by the edges (`http::extract` for bodies, the SQL intake) before anything else reads the bytes.
//! Builds no tree, changes no byte and allocates only for the keys of open objects.
//!
//! Invariant: what [`validate`] accepts is one RFC 8259 value that every reader understands alike (RFC 7493,
//! I-JSON): UTF-8 without a byte order mark, no key twice in an object, no lone surrogate, no `\u0000` (PostgreSQL
//! text cannot hold it), every number within the range of a double, nesting within the given limit, nothing after
//! the value. `serde_json` accepts it too as long as `max_depth` stays under its own limit of 128. Time is linear
//! in the input (n log n in the number of keys of one object), whatever the input is.

mod fault;
mod text;

pub use fault::{JsonFault, JsonFaultKind};
use text::{decode_escapes, hex4, is_in_range, plain_prefix};

/// Objects with up to this many keys are searched for duplicates pair by pair; larger ones are sorted.
const PAIRWISE_KEYS_MAX: usize = 16;
/// A number text without a large exponent and shorter than this is below 1e299, hence finite.
const SURELY_FINITE_LEN: usize = 200;

/// What [`validate`] holds its input against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonLimits {
    /// How many arrays and objects may be open at once: 0 admits scalars only, 1 admits `[]` but not `[[]]`.
    pub max_depth: usize,
}

/// Checks that `bytes` are exactly one acceptable JSON value with optional whitespace around it.
///
/// # Errors
/// The first fault met. Duplicate keys are looked for when their object ends.
pub fn validate(bytes: &[u8], limits: &JsonLimits) -> Result<(), JsonFault> {
    let outcome = preflight(bytes).and_then(|()| Scanner::new(bytes, limits.max_depth).run());
    outcome.map_err(|(offset, kind)| JsonFault::at(bytes, offset, kind))
}

type Fault = (usize, JsonFaultKind);

/// What can be said of the bytes as a whole.
fn preflight(bytes: &[u8]) -> Result<(), Fault> {
    if u32::try_from(bytes.len()).is_err() {
        return Err((0, JsonFaultKind::TooLong));
    }
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        return Err((0, JsonFaultKind::ByteOrderMark));
    }
    std::str::from_utf8(bytes).map_err(|error| (error.valid_up_to(), JsonFaultKind::NotUtf8))?;
    Ok(())
}

/// An array or object that is not closed yet.
#[derive(Clone, Copy)]
enum Open {
    Array,
    /// The object's keys are `keys[first_key..]`.
    Object {
        first_key: usize,
    },
}

/// Where the bytes of a key are. Twelve bytes each, because a hostile body is mostly keys.
#[derive(Clone, Copy)]
struct Key {
    start: u32,
    end: u32,
    /// In `decoded` (the key had escapes) rather than in the input.
    is_decoded: bool,
}

/// A scanner over UTF-8 input; `at` is the next byte to look at.
struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    max_depth: usize,
    open: Vec<Open>,
    keys: Vec<Key>,
    /// Keys that were written with escapes, decoded, end to end.
    decoded: Vec<u8>,
}

impl<'a> Scanner<'a> {
    fn new(text: &'a [u8], max_depth: usize) -> Self {
        Self { text, at: 0, max_depth, open: Vec::new(), keys: Vec::new(), decoded: Vec::new() }
    }

    fn run(&mut self) -> Result<(), Fault> {
        self.skip_whitespace();
        loop {
            let complete = self.value()?;
            if complete && self.after_value()? {
                return Ok(());
            }
        }
    }

    /// Scans a value. False when that opened an array or object whose first value comes next.
    fn value(&mut self) -> Result<bool, Fault> {
        match self.peek()? {
            b'"' => self.string().map(|_| true),
            b'{' => self.open_object(),
            b'[' => self.open_array(),
            b'-' | b'0'..=b'9' => self.number().map(|()| true),
            b't' => self.literal(b"true"),
            b'f' => self.literal(b"false"),
            b'n' => self.literal(b"null"),
            _ => Err(self.unexpected()),
        }
    }

    /// Goes on after a complete value: closes what ends here. True when the whole document is complete.
    fn after_value(&mut self) -> Result<bool, Fault> {
        loop {
            self.skip_whitespace();
            let Some(innermost) = self.open.last().copied() else {
                return if self.at == self.text.len() {
                    Ok(true)
                } else {
                    Err((self.at, JsonFaultKind::TrailingBytes))
                };
            };
            match (innermost, self.peek()?) {
                (Open::Array, b',') => {
                    self.at += 1;
                    self.skip_whitespace();
                    return Ok(false);
                }
                (Open::Object { .. }, b',') => {
                    self.at += 1;
                    self.skip_whitespace();
                    self.key()?;
                    return Ok(false);
                }
                (Open::Array, b']') => {}
                (Open::Object { first_key }, b'}') => {
                    self.refuse_duplicates(first_key)?;
                    self.keys.truncate(first_key);
                }
                _ => return Err(self.unexpected()),
            }
            self.at += 1;
            self.open.pop();
        }
    }

    fn open_array(&mut self) -> Result<bool, Fault> {
        self.descend(Open::Array)?;
        if self.peek()? == b']' {
            self.at += 1;
            self.open.pop();
            return Ok(true);
        }
        Ok(false)
    }

    fn open_object(&mut self) -> Result<bool, Fault> {
        self.descend(Open::Object { first_key: self.keys.len() })?;
        if self.peek()? == b'}' {
            self.at += 1;
            self.open.pop();
            return Ok(true);
        }
        self.key()?;
        Ok(false)
    }

    fn descend(&mut self, into: Open) -> Result<(), Fault> {
        if self.open.len() >= self.max_depth {
            return Err((self.at, JsonFaultKind::TooDeep));
        }
        self.at += 1;
        self.open.push(into);
        self.skip_whitespace();
        Ok(())
    }

    /// Scans a key and its colon, and notes the key.
    fn key(&mut self) -> Result<(), Fault> {
        if self.peek()? != b'"' {
            return Err(self.unexpected());
        }
        let start = self.at + 1;
        let has_escapes = self.string()?;
        let raw = start..self.at - 1;
        let noted = if has_escapes {
            let from = self.decoded.len();
            decode_escapes(&self.text[raw], &mut self.decoded);
            from..self.decoded.len()
        } else {
            raw
        };
        // Both fit: the input is under 4 GiB, and decoding never makes a key longer.
        self.keys.push(Key { start: noted.start as u32, end: noted.end as u32, is_decoded: has_escapes });
        self.skip_whitespace();
        if self.peek()? != b':' {
            return Err(self.unexpected());
        }
        self.at += 1;
        self.skip_whitespace();
        Ok(())
    }

    fn refuse_duplicates(&mut self, first_key: usize) -> Result<(), Fault> {
        let (text, decoded, end) = (self.text, &self.decoded, self.at);
        let bytes_of = |key: &Key| {
            let source = if key.is_decoded { decoded.as_slice() } else { text };
            &source[key.start as usize..key.end as usize]
        };
        // A decoded key no longer knows its place in the input: then the end of the object is named.
        let fault = |key: &Key| {
            (if key.is_decoded { end } else { key.start as usize - 1 }, JsonFaultKind::DuplicateKey)
        };
        let keys = &mut self.keys[first_key..];
        if keys.len() <= PAIRWISE_KEYS_MAX {
            for (index, key) in keys.iter().enumerate() {
                if keys[..index].iter().any(|earlier| bytes_of(earlier) == bytes_of(key)) {
                    return Err(fault(key));
                }
            }
            return Ok(());
        }
        keys.sort_unstable_by(|a, b| bytes_of(a).cmp(bytes_of(b)).then(a.start.cmp(&b.start)));
        match keys.windows(2).find(|pair| bytes_of(&pair[0]) == bytes_of(&pair[1])) {
            Some(pair) => Err(fault(&pair[1])),
            None => Ok(()),
        }
    }

    /// Scans a string from its opening quote past its closing one. True when it holds escapes.
    fn string(&mut self) -> Result<bool, Fault> {
        let mut has_escapes = false;
        self.at += 1;
        loop {
            self.at += plain_prefix(&self.text[self.at..]);
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Ok(has_escapes);
                }
                b'\\' => {
                    has_escapes = true;
                    self.escape()?;
                }
                byte if byte < 0x20 => return Err((self.at, JsonFaultKind::ControlCharacter)),
                _ => self.at += 1,
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        let start = self.at;
        self.at += 1;
        match self.peek()? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 1,
            b'u' => match self.code_unit(start)? {
                0 => return Err((start, JsonFaultKind::NulCharacter)),
                0xD800..=0xDBFF => {
                    let low = self.at;
                    if !self.text[low..].starts_with(b"\\u") {
                        return Err((start, JsonFaultKind::LoneSurrogate));
                    }
                    self.at += 1;
                    if !(0xDC00..=0xDFFF).contains(&self.code_unit(low)?) {
                        return Err((start, JsonFaultKind::LoneSurrogate));
                    }
                }
                0xDC00..=0xDFFF => return Err((start, JsonFaultKind::LoneSurrogate)),
                _ => {}
            },
            _ => return Err((start, JsonFaultKind::BadEscape)),
        }
        Ok(())
    }

    /// Scans `uXXXX`.
    fn code_unit(&mut self, start: usize) -> Result<u32, Fault> {
        self.at += 1;
        let Some(digits) = self.text.get(self.at..self.at + 4) else {
            return Err((self.text.len(), JsonFaultKind::UnexpectedEnd));
        };
        let unit = hex4(digits).ok_or((start, JsonFaultKind::BadEscape))?;
        self.at += 4;
        Ok(unit)
    }

    /// RFC 8259, section 6.
    fn number(&mut self) -> Result<(), Fault> {
        let start = self.at;
        if self.text[self.at] == b'-' {
            self.at += 1;
        }
        let integer = self.digits()?;
        if integer > 1 && self.text[self.at - integer] == b'0' {
            return Err((start, JsonFaultKind::BadNumber));
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        let mut exponent = 0;
        if matches!(self.text.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.text.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            exponent = self.digits()?;
        }
        let text = &self.text[start..self.at];
        if (exponent > 2 || text.len() > SURELY_FINITE_LEN) && !is_in_range(text) {
            return Err((start, JsonFaultKind::NumberOutOfRange));
        }
        Ok(())
    }

    /// Scans one or more digits and says how many.
    fn digits(&mut self) -> Result<usize, Fault> {
        let rest = &self.text[self.at..];
        let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 {
            self.peek()?;
            return Err((self.at, JsonFaultKind::BadNumber));
        }
        self.at += count;
        Ok(count)
    }

    fn literal(&mut self, word: &[u8]) -> Result<bool, Fault> {
        for expected in word {
            if self.peek()? != *expected {
                return Err(self.unexpected());
            }
            self.at += 1;
        }
        Ok(true)
    }

    fn skip_whitespace(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Result<u8, Fault> {
        self.text.get(self.at).copied().ok_or((self.at, JsonFaultKind::UnexpectedEnd))
    }

    fn unexpected(&self) -> Fault {
        (self.at, JsonFaultKind::UnexpectedByte)
    }
}

#[cfg(test)]
mod tests;
