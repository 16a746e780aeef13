//! What a schedule's request may say, and what a patch changes.

use super::*;
use crate::target::OutboundPolicy;

static OUTBOUND: OutboundPolicy = OutboundPolicy { allow_networks: Vec::new(), allow_http: false };
const GOOD: &str =
    r#"{"cron": "0 3 * * *", "timezone": "Europe/Berlin", "job": {"kind": "report", "input": {"n": 1.0}}}"#;

fn context() -> Context<'static> {
    let now = chrono::DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
    Context {
        tenant: crate::ids::TenantId::from_uuid(uuid::Uuid::nil()),
        now,
        outbound: &OUTBOUND,
        operator: None,
    }
}

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).expect("JSON")
}

fn pointers(refused: Refused) -> Vec<String> {
    let Refused::Faults(faults) = refused else { panic!("too large") };
    let mut pointers: Vec<String> = faults.into_vec().into_iter().map(|fault| fault.pointer).collect();
    pointers.sort();
    pointers
}

fn faults_of(text: &str) -> Vec<String> {
    pointers(parse_new(&raw(text), context()).expect_err("refused"))
}

fn patched(patch: &str) -> Result<Settings, Vec<String>> {
    let old = parse_new(&raw(GOOD), context()).expect("fits");
    parse_patch(&raw(patch), &old, context()).map_err(pointers)
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let settings = parse_new(&raw(r#"{"cron": "@daily", "job": {"kind": "x"}}"#), context()).expect("fits");
    assert_eq!(settings.timetable.zone(), "UTC");
    assert_eq!((settings.overlap, settings.catch_up), (Overlap::Skip, CatchUp::None));
    assert_eq!(settings.status, ScheduleStatus::Active);
}

#[test]
fn every_fault_has_its_pointer() {
    assert_eq!(faults_of("{}"), ["/cron", "/job"]);
    assert_eq!(faults_of(r#"{"cron": "0 0 30 2 *", "job": {"kind": "x"}}"#), ["/cron"]);
    assert_eq!(
        faults_of(
            r#"{"cron": "x", "timezone": "Berlin", "overlap": "maybe", "tz": 1, "job": {"kind": "http", "input": {}, "priority": 1000}}"#
        ),
        ["/cron", "/job/input/url", "/job/priority", "/overlap", "/timezone", "/tz"]
    );
}

#[test]
fn what_the_schedule_decides_may_not_be_said() {
    for name in ["run_at", "delay_s", "unique_key", "after", "after_failure"] {
        let text = format!(r#"{{"cron": "@daily", "job": {{"kind": "x", "{name}": null}}}}"#);
        assert_eq!(faults_of(&text), [format!("/job/{name}")]);
        let text = format!(r#"{{"cron": "@daily", "job": {{"kind": "x", "{name}": "x"}}}}"#);
        assert_eq!(faults_of(&text), [format!("/job/{name}")]);
    }
}

#[test]
fn a_patch_changes_what_it_touches() {
    let settings =
        patched(r#"{"cron": "0 4 * * *", "job": {"queue": "slow"}, "metadata": {"a": "b"}}"#).expect("fits");
    assert_eq!((settings.timetable.cron(), settings.timetable.zone()), ("0 4 * * *", "Europe/Berlin"));
    assert_eq!(settings.job.0.get(), r#"{"kind":"report","input":{"n": 1.0},"queue":"slow"}"#);
    let settings = patched(r#"{"timezone": null, "status": "paused"}"#).expect("fits");
    assert_eq!((settings.timetable.cron(), settings.timetable.zone()), ("0 3 * * *", "UTC"));
    assert_eq!(settings.status, ScheduleStatus::Paused);
}

#[test]
fn a_patch_is_checked_like_a_new_one() {
    assert_eq!(patched(r#"{"cron": null, "job": null}"#).expect_err("refused"), ["/cron", "/job"]);
    assert_eq!(patched(r#"{"job": {"kind": null}}"#).expect_err("refused"), ["/job/kind"]);
    assert_eq!(
        patched(r#"{"timezone": "Mars/Base", "nope": 1}"#).expect_err("refused"),
        ["/nope", "/timezone"]
    );
    assert_eq!(patched("[]").expect_err("refused"), [""]);
}
