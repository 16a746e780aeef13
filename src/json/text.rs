//! The inside of JSON strings and numbers, `[pure]`: byte work for the scanner beside it.
//!
//! Called by the scanner only, on bytes that are UTF-8 already. Decides nothing about acceptance but whether a
//! number is finite; never panics, whatever it is given.
//!
//! Invariant: [`decode_escapes`] never writes more bytes than it reads.

/// How many leading bytes are neither quote, backslash nor control: eight at a time, by the usual zero-byte trick.
pub(super) fn plain_prefix(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let has_zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
    let (chunks, _) = bytes.as_chunks::<8>();
    for (index, chunk) in chunks.iter().enumerate() {
        let word = u64::from_le_bytes(*chunk);
        let quote = has_zero(word ^ (ONES * u64::from(b'"')));
        let backslash = has_zero(word ^ (ONES * u64::from(b'\\')));
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        let found = quote | backslash | control;
        if found != 0 {
            // The lowest mark is exact; borrows can only make false marks above a true one.
            return index * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let tail = chunks.len() * 8;
    let is_plain = |byte: &&u8| !matches!(**byte, b'"' | b'\\' | 0..=0x1F);
    tail + bytes[tail..].iter().take_while(is_plain).count()
}

/// Whether a number text is finite, for us and for `serde_json`, which rounds otherwise near the largest double.
pub(super) fn is_in_range(text: &[u8]) -> bool {
    let finite = std::str::from_utf8(text).ok().and_then(|text| text.parse::<f64>().ok());
    finite.is_some_and(f64::is_finite) && serde_json::from_slice::<f64>(text).is_ok_and(f64::is_finite)
}

pub(super) fn hex4(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)?))
}

/// Decodes the inside of a string that was scanned already, onto the end of `out`.
pub(super) fn decode_escapes(mut raw: &[u8], out: &mut Vec<u8>) {
    while let Some(at) = raw.iter().position(|byte| *byte == b'\\') {
        out.extend_from_slice(&raw[..at]);
        let (character, used) = decode_one(&raw[at..]);
        out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        raw = &raw[at + used..];
    }
    out.extend_from_slice(raw);
}

/// The character of the escape at the start of `raw`, and its length. The scanner has proven it well-formed; the
/// replacement character stands for what therefore cannot come.
fn decode_one(raw: &[u8]) -> (char, usize) {
    let simple = match raw.get(1).copied() {
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return decode_unicode(raw),
        Some(other) => char::from(other),
        None => char::REPLACEMENT_CHARACTER,
    };
    (simple, raw.len().min(2))
}

fn decode_unicode(raw: &[u8]) -> (char, usize) {
    let unit = |from: usize| raw.get(from..from + 4).and_then(hex4);
    let (code, used) = match (unit(2), unit(8)) {
        (Some(high @ 0xD800..=0xDBFF), Some(low @ 0xDC00..=0xDFFF)) => {
            (Some(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00)), 12)
        }
        (code, _) => (code, 6),
    };
    (code.and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER), raw.len().min(used))
}
