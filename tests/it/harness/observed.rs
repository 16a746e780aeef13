//! Every answer that a test gets passes here: what holds for all of them is checked once, in one place.
//!
//! Called by `client`.

use http::HeaderMap;
use serde_json::Value;

use super::spec;

/// Checks an answer to `method` `path` (with its query) against what holds for every answer.
pub(crate) fn observed(method: &str, path: &str, status: u16, headers: &HeaderMap, body: &[u8]) {
    let what = format!("{method} {path} → {status} {}", String::from_utf8_lossy(body));
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let id = text("request-id");
    assert!(!id.is_empty(), "no request-id: {what}");
    assert!(status < 500 || status == 503, "a fault of the service: {what}");
    if status >= 400 && !is_probe(path) && method != "HEAD" {
        assert_eq!(text("content-type"), "application/problem+json", "{what}");
        check_problem(&serde_json::from_slice(body).expect("a problem is JSON"), status, id, &what);
    }
    // What no operation answers (an address or a method that does not exist) is in no specification.
    let nowhere = status == 405 || what.contains("there is no such address");
    if !nowhere && let Err(fault) = spec::check(method, path, status, Some(text("content-type")), body) {
        panic!("{fault}");
    }
}

/// A probe says in its own words that the service is stopping.
fn is_probe(path: &str) -> bool {
    path == "/readyz"
}

fn check_problem(problem: &Value, status: u16, id: &str, what: &str) {
    for field in ["type", "title", "detail", "instance"] {
        assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "no {field}: {what}");
    }
    assert_eq!(problem["status"], status, "{what}");
    assert!(problem["instance"].as_str().is_some_and(|text| text.contains(id)), "whose instance? {what}");
    if let Some(errors) = problem.get("errors") {
        assert_eq!(status, 422, "{what}");
        for error in errors.as_array().expect("errors is a list") {
            assert!(error["pointer"].is_string() && error["detail"].is_string(), "{what}");
        }
    }
}
