//! Custom headers, `[pure]`: what a user may add to a request of ours.
//!
//! Called at registration (faults become a 422) and by whoever builds a request, so that headers stored by an older
//! build are judged by today's rule as well.
//! An allow-list by shape (token names, visible ASCII values, bounded in number and size) and a deny-list by meaning:
//! framing and hop-by-hop headers, where the request goes, what carries our signature, and what we set ourselves.
//!
//! Invariant: no accepted header can split a message, change its framing or its destination, or pass for a
//! `webhook-*` or `ringback-*` header of ours. Values are marked sensitive, so `Debug` does not print them.

use std::fmt;

use http::header::{Entry, HeaderMap, HeaderName, HeaderValue};

/// How many custom headers one request may have.
const HEADERS_MAX: usize = 32;
/// How many bytes all names and values together may have.
const HEADERS_LEN_MAX: usize = 8 * 1024;

/// What the headers are for; the two differ in what the user may decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderUse {
    /// A delivery, whose body and agent are ours.
    Delivery,
    /// A job of kind `http`, whose request is the user's.
    HttpJob,
}

/// One thing wrong with the custom headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderFault {
    /// The header as given; empty when the fault is about all of them.
    pub name: String,
    /// What is wrong.
    pub kind: HeaderFaultKind,
}

/// The ways in which a custom header is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFaultKind {
    /// The name is not a token (RFC 9110, section 5.6.2).
    #[error("the name is not a header name")]
    Name,
    /// The value has something other than visible ASCII with single bytes of space inside.
    #[error("the value may hold visible ASCII characters, and spaces inside")]
    Value,
    /// The header is not the user's to set.
    #[error("this header cannot be set")]
    Reserved,
    /// The same name again, in whatever case.
    #[error("this header is given twice")]
    Twice,
    /// More than 32 headers.
    #[error("at most 32 headers are allowed")]
    TooMany,
    /// More than 8 KiB of names and values.
    #[error("headers may have 8 KiB in all")]
    TooLong,
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() { self.kind.fmt(f) } else { write!(f, "{:?}: {}", self.name, self.kind) }
    }
}

impl std::error::Error for HeaderFault {}

/// Reads names and values into headers that may be sent.
///
/// # Errors
/// Every fault, in the order of the headers.
pub fn parse_custom_headers<'a>(
    given: impl IntoIterator<Item = (&'a str, &'a str)>,
    header_use: HeaderUse,
) -> Result<HeaderMap, Vec<HeaderFault>> {
    let mut headers = HeaderMap::new();
    let mut faults = Vec::new();
    let (mut count, mut len) = (0, 0);
    for (name, value) in given {
        count += 1;
        len += name.len() + value.len();
        if count > HEADERS_MAX || len > HEADERS_LEN_MAX {
            let kind = if count > HEADERS_MAX { HeaderFaultKind::TooMany } else { HeaderFaultKind::TooLong };
            faults.push(HeaderFault { name: String::new(), kind });
            break;
        }
        if let Err(kind) = add(&mut headers, name, value, header_use) {
            faults.push(HeaderFault { name: name.to_owned(), kind });
        }
    }
    if faults.is_empty() { Ok(headers) } else { Err(faults) }
}

fn add(
    headers: &mut HeaderMap,
    name: &str,
    value: &str,
    header_use: HeaderUse,
) -> Result<(), HeaderFaultKind> {
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| HeaderFaultKind::Name)?;
    if is_reserved(name.as_str(), header_use) {
        return Err(HeaderFaultKind::Reserved);
    }
    let is_plain = value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && value.trim() == value;
    if !is_plain {
        return Err(HeaderFaultKind::Value);
    }
    let mut value = HeaderValue::from_str(value).map_err(|_| HeaderFaultKind::Value)?;
    value.set_sensitive(true);
    match headers.entry(name) {
        Entry::Occupied(_) => Err(HeaderFaultKind::Twice),
        Entry::Vacant(vacant) => {
            vacant.insert(value);
            Ok(())
        }
    }
}

/// `name` in lower case.
fn is_reserved(name: &str, header_use: HeaderUse) -> bool {
    RESERVED.contains(&name)
        || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || header_use == HeaderUse::Delivery && RESERVED_IN_DELIVERIES.contains(&name)
}

/// Framing, hop-by-hop and routing (RFC 9110, sections 7.2 and 7.6.1; RFC 9112, section 6; RFC 7540, section 3.2.1).
const RESERVED: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
];

/// Proxies' headers, and ours; with underscores too, since CGI-like receivers read both alike.
const RESERVED_PREFIXES: [&str; 5] = ["proxy-", "webhook-", "webhook_", "ringback-", "ringback_"];

/// What describes the body and the sender of a delivery.
const RESERVED_IN_DELIVERIES: [&str; 7] = [
    "accept-encoding",
    "content-encoding",
    "content-type",
    "range",
    "traceparent",
    "tracestate",
    "user-agent",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::HeaderFaultKind as K;
    use super::*;

    fn fault(name: &str, value: &str, header_use: HeaderUse) -> Option<HeaderFaultKind> {
        parse_custom_headers([(name, value)], header_use).err().map(|faults| faults[0].kind)
    }

    #[test]
    fn ordinary_headers_are_taken() {
        for (name, value) in
            [("X-Team", "billing"), ("authorization", "Bearer a b=="), ("x_1", ""), ("Cookie", "a=b; c")]
        {
            assert_eq!(fault(name, value, HeaderUse::Delivery), None, "{name}");
        }
        let headers =
            parse_custom_headers([("X-Team", "billing")], HeaderUse::Delivery).expect("good headers");
        assert_eq!(headers["x-team"], "billing");
        assert!(!format!("{headers:?}").contains("billing"));
    }

    #[test]
    fn framing_routing_and_our_own_headers_are_refused() {
        for name in [
            "Host",
            "Content-Length",
            "Transfer-Encoding",
            "Connection",
            "Keep-Alive",
            "TE",
            "Trailer",
            "Upgrade",
            "Expect",
            "Proxy-Authorization",
            "Proxy-Connection",
            "proxy-x",
            "webhook-id",
            "Webhook-Signature",
            "webhook_id",
            "Ringback-Delivery",
            "ringback_attempt",
            "HTTP2-Settings",
        ] {
            for header_use in [HeaderUse::Delivery, HeaderUse::HttpJob] {
                assert_eq!(fault(name, "x", header_use), Some(K::Reserved), "{name}");
            }
        }
        for name in ["Content-Type", "User-Agent", "traceparent", "Accept-Encoding", "content-encoding"] {
            assert_eq!(fault(name, "x", HeaderUse::Delivery), Some(K::Reserved), "{name}");
            assert_eq!(fault(name, "x", HeaderUse::HttpJob), None, "{name}");
        }
    }

    #[test]
    fn what_could_split_a_message_is_refused() {
        for name in ["", " ", "a b", "a:b", "a\r\nb", "ä", "a\0", "(x)"] {
            assert_eq!(fault(name, "x", HeaderUse::HttpJob), Some(K::Name), "{name:?}");
        }
        for value in ["a\r\nb: c", "a\nb", "a\0", "\tx", "a\tb", " a", "a ", "ä", "\u{7f}"] {
            assert_eq!(fault("x", value, HeaderUse::HttpJob), Some(K::Value), "{value:?}");
        }
    }

    #[test]
    fn number_size_and_repetition_are_bounded() {
        let names: Vec<String> = (0..33).map(|n| format!("x-{n}")).collect();
        let take = |n: usize| names.iter().take(n).map(|name| (name.as_str(), "v"));
        assert!(parse_custom_headers(take(32), HeaderUse::Delivery).is_ok());
        let all = parse_custom_headers(take(33), HeaderUse::Delivery).expect_err("33 are too many");
        assert_eq!(all, [HeaderFault { name: String::new(), kind: K::TooMany }]);
        assert_eq!(fault("x", &"v".repeat(8 * 1024), HeaderUse::Delivery), Some(K::TooLong));
        let twice = parse_custom_headers([("x-a", "1"), ("X-A", "2")], HeaderUse::Delivery);
        assert_eq!(twice.expect_err("twice")[0].kind, K::Twice);
        let both =
            parse_custom_headers([("host", "x"), ("ä", "y")], HeaderUse::Delivery).expect_err("two faults");
        assert_eq!(both.iter().map(|fault| fault.kind).collect::<Vec<_>>(), [K::Reserved, K::Name]);
    }

    proptest! {
        #[test]
        fn an_accepted_header_is_one_line(name in "\\PC{0,8}|[a-z-]{1,8}", value in "[\\x00-\\x7f]{0,8}|[ -~]{0,8}") {
            if let Ok(headers) = parse_custom_headers([(name.as_str(), value.as_str())], HeaderUse::HttpJob) {
                for (name, value) in &headers {
                    prop_assert!(!name.as_str().contains(|c: char| c.is_control() || c == ':' || c == ' '));
                    prop_assert!(value.as_bytes().iter().all(|byte| (0x20..0x7f).contains(byte)));
                }
            }
        }
    }
}
