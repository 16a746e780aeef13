//! [pure] What a worker reports: the items of `POST /v1/leases/report` become `Report`s, each for itself, or faults.
//!
//! Called by `http::leases`. Whether the lease is still held is told by the database.
//!
//! Invariant: a report that is wrong spoils no other one of the same request.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::value::RawValue;

use super::{LEASES_MAX, LeaseKey, RESULT_MAX_BYTES};
use crate::fields::{Faults, Fields};
use crate::jobs::outcome::TryResult;
use crate::jobs::{JobError, Told};

/// What is longer is cut: an error that is too long to be kept must not keep a job from failing.
const MESSAGE_MAX: usize = 4 * 1024;
const TRACEBACK_MAX: usize = 16 * 1024;
const RETRY_AFTER_RANGE_S: std::ops::RangeInclusive<f64> = 0.0..=31_557_600.0;

/// What became of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Succeeded,
    /// Not done.
    Failed,
    /// Given back.
    Released,
    /// It goes on.
    Progress,
}

impl Outcome {
    /// All of them by name.
    pub const WORDS: [(&'static str, Self); 4] = [
        ("succeeded", Self::Succeeded),
        ("failed", Self::Failed),
        ("released", Self::Released),
        ("progress", Self::Progress),
    ];
}

/// One report.
#[derive(Debug, Clone)]
pub struct Report {
    /// The right to make it; `None`: the text is no lease, so nobody holds it.
    pub key: Option<LeaseKey>,
    /// What became of the try.
    pub outcome: Outcome,
    /// What is told of the job meanwhile.
    pub told: Told,
    /// The result or the error.
    result: Option<Box<RawValue>>,
    error: Option<Failed>,
}

#[derive(Debug, Clone)]
struct Failed {
    error: JobError,
    retryable: bool,
    retry_after: Option<Duration>,
}

impl Report {
    /// Does it tell anything of the job beside its end?
    pub fn tells(&self) -> bool {
        self.told.progress.is_some() || self.told.checkpoint.is_some()
    }

    /// What it says of the try, if that has ended.
    pub fn try_result(&self) -> Option<TryResult> {
        match self.outcome {
            Outcome::Succeeded => {
                Some(TryResult::Succeeded(self.result.clone().unwrap_or_else(|| RawValue::NULL.to_owned())))
            }
            Outcome::Failed => Some(match self.error.clone() {
                Some(Failed { error, retryable, retry_after }) => {
                    TryResult::Failed { error, retryable, retry_after }
                }
                None => TryResult::Failed {
                    error: JobError::new("failed", "the worker gave no reason"),
                    retryable: true,
                    retry_after: None,
                },
            }),
            Outcome::Released | Outcome::Progress => None,
        }
    }
}

/// One item of the request: the text of its lease as it came (`null` where there is none), and what was read.
#[derive(Debug)]
pub struct Item<'a> {
    /// To be repeated in the answer.
    pub lease: Option<&'a RawValue>,
    /// The report, or what is wrong with it.
    pub report: Result<Report, Faults>,
}

/// Reads the body of `POST /v1/leases/report`.
/// # Errors
/// Faults of the body as a whole; those of items stand in the items.
pub fn parse(raw: &RawValue) -> Result<Vec<Item<'_>>, Faults> {
    let mut faults = Faults::default();
    let Some(mut fields) = Fields::open("", raw, &mut faults) else { return Err(faults) };
    let list = fields.list("reports", 1..=LEASES_MAX, &mut faults);
    if list.is_none() && faults.is_empty() {
        fields.fault("reports", "is missing; send {\"reports\": [ … ]}", &mut faults);
    }
    fields.finish(&mut faults);
    let list = faults.result(list)?;
    Ok(list
        .into_iter()
        .enumerate()
        .map(|(index, raw)| parse_item(&format!("/reports/{index}"), raw))
        .collect())
}

fn parse_item<'a>(at: &str, raw: &'a RawValue) -> Item<'a> {
    let mut faults = Faults::default();
    let Some(mut fields) = Fields::open(at, raw, &mut faults) else {
        return Item { lease: None, report: Err(faults) };
    };
    let lease = fields.raw("lease");
    let text = lease.map(|raw| serde_json::from_str::<String>(raw.get()));
    match &text {
        None => fields.fault("lease", "is missing; send the lease as it was handed out", &mut faults),
        Some(Err(_)) => fields.fault("lease", "must be a string", &mut faults),
        Some(Ok(_)) => {}
    }
    let outcome = fields.word("outcome", &Outcome::WORDS, &mut faults);
    if outcome.is_none() && !faults.has(&fields.pointer("outcome")) {
        fields.fault("outcome", "is missing; write succeeded, failed, released or progress", &mut faults);
    }
    let result = parse_limited(&mut fields, "result", &mut faults);
    let error = parse_error(&mut fields, &mut faults);
    let told = parse_told(&mut fields, &mut faults);
    fields.finish(&mut faults);
    if result.is_some() && !matches!(outcome, Some(Outcome::Succeeded) | None) {
        faults.add(format!("{at}/result"), "goes with the outcome succeeded only");
    }
    if error.is_some() && !matches!(outcome, Some(Outcome::Failed) | None) {
        faults.add(format!("{at}/error"), "goes with the outcome failed only");
    }
    let key = text.and_then(Result::ok).and_then(|text| text.parse().ok());
    let report = outcome.map(|outcome| Report { key, outcome, told, result, error });
    // A lease that is no text cannot be repeated as one.
    let lease = lease.filter(|raw| raw.get().starts_with('"'));
    Item { lease, report: faults.result(report) }
}

fn parse_limited(fields: &mut Fields<'_>, name: &'static str, faults: &mut Faults) -> Option<Box<RawValue>> {
    let raw = fields.raw(name)?;
    if raw.get().len() > RESULT_MAX_BYTES {
        let detail = format!(
            "may have {RESULT_MAX_BYTES} bytes at most, and has {}; keep it elsewhere and send where it is",
            raw.get().len()
        );
        fields.fault(name, detail, faults);
        return None;
    }
    Some(raw.to_owned())
}

fn parse_error(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<Failed> {
    let raw = fields.raw("error")?;
    let mut inner = Fields::open(fields.pointer("error"), raw, faults)?;
    let any = 0..=usize::MAX;
    let message = inner.string("message", any.clone(), faults).unwrap_or_default();
    let error = JobError {
        code: inner.string("code", 1..=100, faults).unwrap_or_else(|| "failed".to_owned()),
        message: head(message, MESSAGE_MAX),
        class: inner.string("class", any.clone(), faults).map(|class| head(class, MESSAGE_MAX)),
        traceback: inner.string("traceback", any, faults).map(|traceback| tail(traceback, TRACEBACK_MAX)),
    };
    let retryable = inner.boolean("retryable", faults).unwrap_or(true);
    let retry_after = inner.seconds("retry_after_s", RETRY_AFTER_RANGE_S, faults);
    inner.finish(faults);
    Some(Failed { error, retryable, retry_after })
}

fn parse_told(fields: &mut Fields<'_>, faults: &mut Faults) -> Told {
    let Some(raw) = fields.raw("progress") else { return Told::default() };
    let Some(mut inner) = Fields::open(fields.pointer("progress"), raw, faults) else {
        return Told::default();
    };
    let percent = inner.number("percent", 0.0..=100.0, faults);
    let message = inner.string("message", 0..=1024, faults);
    let checkpoint = parse_limited(&mut inner, "checkpoint", faults);
    inner.finish(faults);
    Told { progress: write_progress(percent, message), checkpoint }
}

/// As it is stored and shown.
fn write_progress(percent: Option<f64>, message: Option<String>) -> Option<Box<RawValue>> {
    #[derive(serde::Serialize)]
    struct Progress {
        percent: Option<f64>,
        message: Option<String>,
    }
    if percent.is_none() && message.is_none() {
        return None;
    }
    serde_json::value::to_raw_value(&Progress { percent, message }).ok()
}

fn head(mut text: String, max: usize) -> String {
    text.truncate(text.floor_char_boundary(max));
    text
}

/// The end of a stack says most.
fn tail(text: String, max: usize) -> String {
    let from = text.ceil_char_boundary(text.len().saturating_sub(max));
    text[from..].to_owned()
}

/// Sorts reports into rounds that are carried out one after another: within one, no lease comes twice, so that several reports
/// on one lease count in the order in which they stand.
pub fn rounds(keys: impl Iterator<Item = Option<LeaseKey>>) -> Vec<Vec<usize>> {
    let mut rounds: Vec<(HashSet<LeaseKey>, Vec<usize>)> = Vec::new();
    for (index, key) in keys.enumerate() {
        let Some(key) = key else { continue };
        // Behind the last round that has it, or in the first one.
        let at = rounds.iter().rposition(|(seen, _)| seen.contains(&key)).map_or(0, |last| last + 1);
        if at == rounds.len() {
            rounds.push(Default::default());
        }
        rounds[at].0.insert(key);
        rounds[at].1.push(index);
    }
    rounds.into_iter().map(|(_, items)| items).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::ids::JobId;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn key(job: u128) -> LeaseKey {
        LeaseKey { job: JobId::from_uuid(Uuid::from_u128(job)), token: Uuid::from_u128(1) }
    }

    fn pointers(item: &str) -> Vec<String> {
        let raw: Box<RawValue> = serde_json::from_str(&format!(r#"{{"reports": [{item}]}}"#)).expect("JSON");
        let mut items = parse(&raw).expect("a list");
        items.remove(0).report.err().map_or(Vec::new(), |faults| {
            faults.into_vec().into_iter().map(|fault| fault.pointer.replace("/reports/0", "")).collect()
        })
    }

    #[test]
    fn each_item_has_its_own_faults() {
        let lease = key(7);
        assert_eq!(
            pointers(&format!(r#"{{"lease": "{lease}", "outcome": "succeeded"}}"#)),
            Vec::<String>::new()
        );
        assert_eq!(pointers("7"), [""]);
        assert_eq!(pointers("{}"), ["/lease", "/outcome"]);
        assert_eq!(pointers(r#"{"lease": 7, "outcome": "done"}"#), ["/lease", "/outcome"]);
        assert_eq!(pointers(r#"{"lease": "x", "outcome": "failed", "result": 1}"#), ["/result"]);
        assert_eq!(
            pointers(r#"{"lease": "x", "outcome": "released", "error": {"message": "m"}}"#),
            ["/error"]
        );
        assert_eq!(
            pointers(r#"{"lease": "x", "outcome": "progress", "progress": {"percent": 101, "stage": 1}}"#),
            ["/progress/percent", "/progress/stage"]
        );
        let long = "x".repeat(RESULT_MAX_BYTES);
        assert_eq!(
            pointers(&format!(r#"{{"lease": "x", "outcome": "succeeded", "result": "{long}"}}"#)),
            ["/result"]
        );
    }

    #[test]
    fn what_is_too_long_in_an_error_is_cut() {
        let (message, traceback) = ("é".repeat(4000), "ü".repeat(20_000));
        let item = format!(
            r#"{{"reports": [{{"lease": "x", "outcome": "failed", "error": {{"message": "{message}", "traceback": "{traceback}"}}}}]}}"#
        );
        let raw: Box<RawValue> = serde_json::from_str(&item).expect("JSON");
        let report = parse(&raw).expect("a list").remove(0).report.expect("a report");
        let Some(TryResult::Failed { error, retryable: true, retry_after: None }) = report.try_result()
        else {
            panic!("not failed");
        };
        assert_eq!(
            (error.message.len(), error.traceback.map(|text| text.len())),
            (MESSAGE_MAX, Some(TRACEBACK_MAX))
        );
    }

    proptest! {
        #[test]
        fn rounds_keep_the_order_of_each_lease(jobs in prop::collection::vec(0u128..6, 0..40)) {
            let rounds = rounds(jobs.iter().map(|job| Some(key(*job))));
            prop_assert_eq!(rounds.iter().map(Vec::len).sum::<usize>(), jobs.len());
            let mut last = std::collections::HashMap::new();
            for round in &rounds {
                let mut seen = HashSet::new();
                for index in round {
                    prop_assert!(seen.insert(jobs[*index]), "twice in a round");
                    if let Some(before) = last.insert(jobs[*index], *index) {
                        prop_assert!(before < *index, "out of order");
                    }
                }
            }
        }
    }
}
