//! [pure] Topics: the types of events, and the patterns of those who want to hear of them.
//!
//! A type is names of letters, digits, `_` and `-`, joined by dots (`order.paid`). In a pattern a segment may also be
//! `*` (any one segment) or `**` (one or more). Called by `events` and `endpoints` (parse) and by the fan-out, once for
//! each event and endpoint (match), so matching allocates nothing.
//!
//! Invariant: matching takes at most segments × segments steps, whatever stands in a pattern.

use std::fmt;

/// A type or pattern is at most this long…
pub const TOPIC_MAX_BYTES: usize = 255;
/// … and has at most so many segments.
pub const SEGMENTS_MAX: usize = 16;
/// An endpoint has at most so many patterns.
pub const PATTERNS_MAX: usize = 100;

const ONE: &str = "*";
const MANY: &str = "**";

/// Why a text is no topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Empty, or longer than allowed.
    #[error("must be 1 to {TOPIC_MAX_BYTES} bytes long")]
    Length,
    /// More dots than allowed.
    #[error("must have at most {SEGMENTS_MAX} names between its dots")]
    Segments,
    /// Something else between two dots.
    #[error("must be names of letters, digits, '_' and '-', joined by dots, as in order.paid")]
    Name,
    /// As [`Self::Name`], where stars are allowed.
    #[error(
        "must be names of letters, digits, '_' and '-', or * for any one name, or ** for one or more, joined by dots, as in order.*"
    )]
    Segment,
}

/// The type of an event, if the text can be one.
/// # Errors
/// [`TopicError`].
pub fn parse_event_type(text: &str) -> Result<&str, TopicError> {
    check(text)?;
    if text.split('.').all(is_name) { Ok(text) } else { Err(TopicError::Name) }
}

fn check(text: &str) -> Result<(), TopicError> {
    if !(1..=TOPIC_MAX_BYTES).contains(&text.len()) {
        return Err(TopicError::Length);
    }
    if text.bytes().filter(|byte| *byte == b'.').count() >= SEGMENTS_MAX {
        return Err(TopicError::Segments);
    }
    Ok(())
}

fn is_name(segment: &str) -> bool {
    !segment.is_empty()
        && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// What types someone wants to hear of.
#[derive(Clone, PartialEq, Eq)]
pub struct Pattern {
    text: Box<str>,
    /// Without stars it is compared as a whole.
    is_plain: bool,
}

impl Pattern {
    /// Reads a pattern such as `order.*`.
    /// # Errors
    /// [`TopicError`].
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        check(text)?;
        if !text.split('.').all(|segment| segment == ONE || segment == MANY || is_name(segment)) {
            return Err(TopicError::Segment);
        }
        Ok(Self { text: text.into(), is_plain: !text.contains('*') })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Does it stand for this type?
    pub fn matches(&self, event_type: &str) -> bool {
        if self.is_plain {
            return *self.text == *event_type;
        }
        let (mut pattern, mut topic) = (self.text.split('.'), event_type.split('.'));
        // Behind the last `**`: the rest of the pattern, and of the type if that `**` takes what it has so far.
        let mut last_many = None;
        loop {
            let fits = match (pattern.next(), topic.next()) {
                (None, None) => return true,
                // Something is wanted and nothing is left; a longer `**` would leave even less.
                (Some(_), None) => return false,
                (Some(MANY), Some(_)) => {
                    last_many = Some((pattern.clone(), topic.clone()));
                    true
                }
                (Some(segment), Some(name)) => segment == ONE || segment == name,
                (None, Some(_)) => false,
            };
            if fits {
                continue;
            }
            // The last `**` takes one segment more. Those before it need not: it can take whatever they could.
            let Some((rest, left)) = &mut last_many else { return false };
            if left.next().is_none() {
                return false;
            }
            (pattern, topic) = (rest.clone(), left.clone());
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// Does one of them stand for this type? `None` of them stands for all (an endpoint without `event_types`).
pub fn matches(patterns: Option<&[Pattern]>, event_type: &str) -> bool {
    patterns.is_none_or(|patterns| patterns.iter().any(|pattern| pattern.matches(event_type)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matched(pattern: &str, event_type: &str) -> bool {
        Pattern::parse(pattern).expect("a pattern").matches(event_type)
    }

    #[test]
    fn a_star_is_one_segment_and_two_are_one_or_more() {
        for (pattern, yes, no) in [
            ("order.paid", &["order.paid"][..], &["order", "order.paid.late", "order.pai", "Order.paid"][..]),
            ("order.*", &["order.paid", "order.x-y_1"], &["order", "order.paid.late", "orders.paid"]),
            ("*", &["order"], &["order.paid"]),
            ("**", &["order", "order.paid", "a.b.c.d"], &[]),
            ("order.**", &["order.paid", "order.paid.late"], &["order", "orders.paid"]),
            ("**.failed", &["job.failed", "a.b.failed", "failed.failed"], &["failed", "job.failed.twice"]),
            ("a.**.b.**.c", &["a.x.b.y.c", "a.b.b.b.c", "a.x.b.b.z.c"], &["a.b.c", "a.b.y.c", "a.x.b.c"]),
            ("**.*", &["a.b", "a.b.c"], &["a"]),
        ] {
            for event_type in yes {
                assert!(matched(pattern, event_type), "{pattern} {event_type}");
            }
            for event_type in no {
                assert!(!matched(pattern, event_type), "{pattern} {event_type}");
            }
        }
    }

    #[test]
    fn no_patterns_at_all_stand_for_everything() {
        assert!(matches(None, "order.paid"));
        assert!(!matches(Some(&[]), "order.paid"));
    }

    #[test]
    fn what_is_no_topic_is_refused() {
        let many = vec!["a"; SEGMENTS_MAX].join(".");
        assert_eq!(parse_event_type(&many), Ok(many.as_str()));
        assert_eq!(parse_event_type(&format!("{many}.a")), Err(TopicError::Segments));
        assert_eq!(parse_event_type(&"a".repeat(TOPIC_MAX_BYTES)).map(str::len), Ok(TOPIC_MAX_BYTES));
        assert_eq!(parse_event_type(&"a".repeat(TOPIC_MAX_BYTES + 1)), Err(TopicError::Length));
        assert_eq!(parse_event_type(""), Err(TopicError::Length));
        for text in [".", "a.", ".a", "a..b", "a b", "ä", "a.*", "a\0", "a/b"] {
            assert_eq!(parse_event_type(text), Err(TopicError::Name), "{text:?}");
        }
        for text in [".", "a.", "***", "a*", "*a", "a.b*", "a..**"] {
            assert_eq!(Pattern::parse(text), Err(TopicError::Segment), "{text:?}");
        }
    }

    /// The meaning, without regard to time.
    fn means(pattern: &[&str], topic: &[&str]) -> bool {
        match (pattern, topic) {
            ([], []) => true,
            ([MANY, rest @ ..], [_, left @ ..]) => means(rest, left) || means(pattern, left),
            ([first, rest @ ..], [name, left @ ..]) => (*first == ONE || first == name) && means(rest, left),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_is_what_it_means(
            pattern in proptest::collection::vec(prop_oneof!["a", "b", "\\*", "\\*\\*"], 1..8),
            topic in proptest::collection::vec("[ab]", 1..9),
        ) {
            let expected = means(
                &pattern.iter().map(String::as_str).collect::<Vec<_>>(),
                &topic.iter().map(String::as_str).collect::<Vec<_>>(),
            );
            prop_assert_eq!(matched(&pattern.join("."), &topic.join(".")), expected);
        }

        #[test]
        fn an_accepted_type_matches_itself_and_needs_no_escape(text in "[a-zA-Z0-9_.*-]{0,24}|\\PC{0,12}") {
            if let Ok(event_type) = parse_event_type(&text) {
                prop_assert!(matched(event_type, event_type) && matched("**", event_type));
                prop_assert!(event_type.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte)));
            }
            let _ = Pattern::parse(&text).map(|pattern| pattern.matches(&text));
        }
    }
}
