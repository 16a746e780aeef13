//! [pure] The input of an `http` job: what to call, and which answers count as success.
//!
//! Called by `jobs::new_job` at acceptance (so that a fault is a 422 and not a failed job) and by `executors::http`
//! before each try (the operator's networks may have changed meanwhile). Sends nothing.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::fields::{Faults, Fields};
use crate::target::{HeaderUse, OutboundPolicy, TargetUrl, parse_custom_headers, parse_target};

/// A request that a job describes.
#[derive(Debug, Clone)]
pub struct HttpInput {
    /// GET, POST, …
    pub method: http::Method,
    /// Where to; its text was judged, its addresses not yet.
    pub url: TargetUrl,
    /// As given, and a content type where the body is JSON.
    pub headers: http::HeaderMap,
    /// A string's own bytes, or the JSON text of any other value.
    pub body: Bytes,
    /// Which statuses end the job well.
    pub success: Vec<RangeInclusive<u16>>,
}

impl HttpInput {
    /// Does this status end the job well?
    pub fn is_success(&self, status: u16) -> bool {
        self.success.iter().any(|range| range.contains(&status))
    }
}

/// Notes what is wrong with an input.
pub fn check(at: &str, raw: &RawValue, outbound: &OutboundPolicy, faults: &mut Faults) {
    parse(at, raw, outbound, faults);
}

/// Reads an input at the pointer `at`.
pub fn parse(at: &str, raw: &RawValue, outbound: &OutboundPolicy, faults: &mut Faults) -> Option<HttpInput> {
    let mut fields = Fields::open(at, raw, faults)?;
    let method = parse_method(&mut fields, faults);
    let url = parse_url(&mut fields, outbound, faults);
    let mut headers = parse_headers(&mut fields, faults);
    let body = fields.raw("body").map(|body| parse_body(body, &mut headers)).unwrap_or_default();
    let success = parse_success(&mut fields, faults);
    fields.finish(faults);
    Some(HttpInput { method: method?, url: url?, headers, body, success })
}

fn parse_method(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<http::Method> {
    use http::Method;
    let words =
        [("GET", 0), ("POST", 1), ("PUT", 2), ("PATCH", 3), ("DELETE", 4), ("HEAD", 5), ("OPTIONS", 6)];
    let methods = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
    ];
    match fields.word("method", &words, faults) {
        Some(place) => methods.into_iter().nth(place),
        None => Some(Method::GET),
    }
}

fn parse_url(fields: &mut Fields<'_>, outbound: &OutboundPolicy, faults: &mut Faults) -> Option<TargetUrl> {
    let before = faults.clone();
    let Some(text) = fields.string("url", 0..=8192, faults) else {
        if *faults == before {
            fields.fault("url", "is missing", faults);
        }
        return None;
    };
    parse_target(&text, outbound).map_err(|refusal| fields.fault("url", refusal.to_string(), faults)).ok()
}

fn parse_headers(fields: &mut Fields<'_>, faults: &mut Faults) -> http::HeaderMap {
    let given: BTreeMap<String, String> = fields.strings("headers", faults).unwrap_or_default();
    match parse_custom_headers(
        given.iter().map(|(name, value)| (name.as_str(), value.as_str())),
        HeaderUse::HttpJob,
    ) {
        Ok(headers) => headers,
        Err(wrong) => {
            for fault in wrong {
                let name = fault.name.replace('~', "~0").replace('/', "~1");
                faults.add(format!("{}/{name}", fields.pointer("headers")), fault.kind.to_string());
            }
            http::HeaderMap::new()
        }
    }
}

fn parse_body(raw: &RawValue, headers: &mut http::HeaderMap) -> Bytes {
    if let Ok(text) = serde_json::from_str::<String>(raw.get()) {
        return Bytes::from(text);
    }
    headers.entry(http::header::CONTENT_TYPE).or_insert(http::HeaderValue::from_static("application/json"));
    Bytes::from(raw.get().to_owned())
}

/// A status, a range such as "200-299", or a list of both.
fn parse_success(fields: &mut Fields<'_>, faults: &mut Faults) -> Vec<RangeInclusive<u16>> {
    let Some(raw) = fields.raw("success_status") else {
        return vec![200..=299];
    };
    let ranges = match serde_json::from_str::<Vec<&RawValue>>(raw.get()) {
        Ok(list) if (1..=50).contains(&list.len()) => list.into_iter().map(parse_range).collect(),
        Ok(_) => None,
        Err(_) => parse_range(raw).map(|range| vec![range]),
    };
    ranges.unwrap_or_else(|| {
        let detail = "must be a status, a range such as \"200-299\", or a list of them, from 100 to 599";
        fields.fault("success_status", detail, faults);
        vec![200..=299]
    })
}

fn parse_range(raw: &RawValue) -> Option<RangeInclusive<u16>> {
    let within = |status: &u16| (100..=599).contains(status);
    if let Ok(status) = serde_json::from_str::<u16>(raw.get()) {
        return within(&status).then_some(status..=status);
    }
    let text = serde_json::from_str::<String>(raw.get()).ok()?;
    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (within(&first) && within(&last) && first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<HttpInput, Vec<String>> {
        let raw: Box<RawValue> = serde_json::from_str(text).expect("JSON");
        let mut faults = Faults::default();
        let outbound = OutboundPolicy { allow_networks: Vec::new(), allow_http: false };
        let input = parse("/input", &raw, &outbound, &mut faults);
        faults
            .result(input)
            .map_err(|faults| faults.into_vec().into_iter().map(|fault| fault.pointer).collect())
    }

    #[test]
    fn the_defaults_are_get_and_2xx() {
        let input = read(r#"{"url": "https://example.com/x"}"#).expect("fits");
        assert_eq!(input.method, http::Method::GET);
        assert!(input.is_success(204) && !input.is_success(301));
    }

    #[test]
    fn a_json_body_is_sent_as_it_was_written() {
        let input = read(r#"{"url": "https://example.com/x", "method": "POST", "body": {"b": 1.0,"a":2}}"#)
            .expect("fits");
        assert_eq!(&input.body[..], br#"{"b": 1.0,"a":2}"#);
        assert_eq!(input.headers["content-type"], "application/json");
        let text = read(r#"{"url": "https://example.com/x", "body": "plain"}"#).expect("fits");
        assert_eq!(&text.body[..], b"plain");
        assert!(text.headers.is_empty());
    }

    #[test]
    fn success_may_be_a_status_a_range_or_a_list() {
        for (text, yes, no) in
            [("404", 404, 200), ("\"200-204\"", 203, 205), ("[200, \"300-399\"]", 304, 201)]
        {
            let input = read(&format!(r#"{{"url": "https://example.com/", "success_status": {text}}}"#))
                .expect("fits");
            assert!(input.is_success(yes) && !input.is_success(no), "{text}");
        }
    }

    #[test]
    fn faults_carry_pointers_into_the_input() {
        let faults = read(
            r#"{"url": "ftp://example.com", "method": "BREW", "success_status": 42, "tiemout": 1, "headers": {"host": "x"}}"#,
        );
        let mut faults = faults.expect_err("refused");
        faults.sort();
        assert_eq!(
            faults,
            ["/input/headers/host", "/input/method", "/input/success_status", "/input/tiemout", "/input/url"]
        );
    }
}
