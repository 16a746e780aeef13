//! Tests of reading endpoints and merge patches.

use super::*;
use crate::ids::TenantId;

fn raw(text: &str) -> Box<RawValue> {
    serde_json::from_str(text).expect("JSON")
}

fn pointers(faults: Faults) -> Vec<String> {
    let mut pointers: Vec<String> = faults.into_vec().into_iter().map(|fault| fault.pointer).collect();
    pointers.sort();
    pointers
}

fn read(text: &str) -> Result<Settings, Vec<String>> {
    parse_new(&raw(text), &OutboundPolicy::default()).map_err(pointers)
}

fn endpoint(text: &str) -> Endpoint {
    Endpoint::new(TenantId::fresh(), read(text).expect("fits"))
}

fn patched(old: &Endpoint, patch: &str) -> Result<serde_json::Value, Vec<String>> {
    let settings = parse_patch(&raw(patch), old, &OutboundPolicy::default()).map_err(pointers)?;
    Ok(shown(&Endpoint { settings, ..old.clone() }))
}

fn shown(endpoint: &Endpoint) -> serde_json::Value {
    serde_json::to_value(EndpointView::new(endpoint)).expect("JSON")
}

const FULL: &str = r#"{"url": "https://example.com/hook", "event_types": ["order.*", "job.failed"], "filter": "data.amount > 100",
    "transform": "{'text': data.text}", "description": "billing", "headers": {"x-team": "billing"}, "metadata": {"a": "b"},
    "status": "paused", "ordering": "key", "max_in_flight": 7, "rate_limit": {"per_s": 0.5, "burst": 3}, "timeout_s": 2.5,
    "retry": {"initial_s": 1, "max_attempts": 3}, "signature": "ed25519"}"#;

#[test]
fn an_endpoint_is_shown_as_it_was_given() {
    let view = shown(&endpoint(FULL));
    let given: serde_json::Value = serde_json::from_str(FULL).expect("JSON");
    for (name, value) in given.as_object().expect("an object").iter().filter(|(name, _)| *name != "retry") {
        assert_eq!(&view[name], value, "{name}");
    }
    assert_eq!(
        view["retry"],
        serde_json::json!({"initial_s": 1.0, "factor": 4.0, "max_s": 43200.0, "max_attempts": 3, "jitter": 0.5})
    );
}

#[test]
fn the_defaults_are_the_contracts() {
    let view = shown(&endpoint(r#"{"url": "https://example.com/hook"}"#));
    for (name, value) in [
        ("event_types", serde_json::json!(null)),
        ("filter", serde_json::json!(null)),
        ("status", serde_json::json!("enabled")),
        ("ordering", serde_json::json!("none")),
        ("max_in_flight", serde_json::json!(32)),
        ("rate_limit", serde_json::json!(null)),
        ("timeout_s", serde_json::json!(15.0)),
        ("signature", serde_json::json!("hmac-sha256")),
        ("headers", serde_json::json!({})),
    ] {
        assert_eq!(view[name], value, "{name}");
    }
}

#[test]
fn every_fault_is_found_with_its_pointer() {
    let faults = read(
        r#"{"url": "http://127.0.0.1/", "event_types": ["order.*", "a..b", 7], "filter": "data.amount >", "transform": "x",
        "headers": {"host": "x", "x-a": 1}, "status": "off", "ordering": 1, "max_in_flight": 0, "rate_limit": {"per_s": 0, "x": 1},
        "timeout_s": 61, "retry": {"initial_s": 0.001}, "signature": "rsa", "colour": "red"}"#,
    );
    assert_eq!(
        faults.expect_err("refused"),
        [
            "/colour",
            "/event_types/1",
            "/event_types/2",
            "/filter",
            "/headers/x-a",
            "/max_in_flight",
            "/ordering",
            "/rate_limit/per_s",
            "/rate_limit/x",
            "/retry/initial_s",
            "/signature",
            "/status",
            "/timeout_s",
            "/transform",
            "/url"
        ]
    );
    assert_eq!(
        read(r#"{"url": "https://example.com/", "headers": {"host": "x"}}"#).err(),
        Some(vec!["/headers/host".to_owned()])
    );
    assert_eq!(read("{}").err(), Some(vec!["/url".to_owned()]));
    assert_eq!(
        read(r#"{"url": null, "filter": ""}"#).err(),
        Some(vec!["/filter".to_owned(), "/url".to_owned()])
    );
    assert_eq!(
        read(r#"{"url": "https://example.com/", "event_types": []}"#).err(),
        Some(vec!["/event_types".to_owned()])
    );
    assert_eq!(
        read(r#"{"url": "https://example.com/", "rate_limit": {}}"#).err(),
        Some(vec!["/rate_limit/per_s".to_owned()])
    );
    assert_eq!(read("[]").err(), Some(vec![String::new()]));
}

#[test]
fn a_merge_patch_changes_what_it_names() {
    let old = endpoint(FULL);
    let before = shown(&old);
    let view = patched(
        &old,
        r#"{"description": "sales", "headers": {"x-team": null, "x-b": "2"}, "retry": {"factor": 2}}"#,
    )
    .expect("fits");
    assert_eq!(view["description"], "sales");
    assert_eq!(view["headers"], serde_json::json!({"x-b": "2"}));
    assert_eq!(view["retry"]["factor"], 2.0);
    assert_eq!(view["retry"]["max_attempts"], 3, "objects are merged");
    for same in ["url", "event_types", "filter", "status", "rate_limit", "timeout_s", "signature", "metadata"]
    {
        assert_eq!(view[same], before[same], "{same}");
    }
    assert_eq!(patched(&old, "{}").expect("fits"), before);
}

#[test]
fn null_in_a_patch_is_the_default() {
    let old = endpoint(FULL);
    let all = r#"{"event_types": null, "filter": null, "transform": null, "description": null, "headers": null, "metadata": null,
        "status": null, "ordering": null, "max_in_flight": null, "rate_limit": null, "timeout_s": null, "retry": null, "signature": null}"#;
    let mut view = patched(&old, all).expect("fits");
    let mut fresh = shown(&endpoint(r#"{"url": "https://example.com/hook"}"#));
    for name in ["id", "created_at", "updated_at"] {
        view[name] = serde_json::Value::Null;
        fresh[name] = serde_json::Value::Null;
    }
    assert_eq!(view, fresh);
}

#[test]
fn faults_of_a_patch_are_found() {
    let old = endpoint(FULL);
    for (patch, expected) in [
        (r#"{"url": null}"#, "/url"),
        (r#"{"url": "ftp://example.com"}"#, "/url"),
        (r#"{"id": "ep_x"}"#, "/id"),
        (r#"{"colour": null}"#, "/colour"),
        (r#"{"rate_limit": {"per_s": null}}"#, "/rate_limit/per_s"),
        (r#"{"retry": 5}"#, "/retry"),
        (r#"{"filter": "1 +"}"#, "/filter"),
        (r#""x""#, ""),
    ] {
        assert_eq!(patched(&old, patch).expect_err(patch), [expected], "{patch}");
    }
}

#[test]
fn what_a_patch_does_not_touch_is_not_judged_again() {
    let mut old = endpoint(FULL);
    old.settings.url = "http://10.0.0.1/once-allowed".to_owned();
    let view = patched(&old, r#"{"status": "disabled"}"#).expect("fits");
    assert_eq!(
        (view["status"].as_str(), view["url"].as_str()),
        (Some("disabled"), Some("http://10.0.0.1/once-allowed"))
    );
}
