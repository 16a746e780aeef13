//! [pure] What a worker asks for: a request's text becomes a `Wish` for jobs or an `Extension`, or a list of faults.
//!
//! Called by `http::leases`. Which kinds the caller's key may take is not decided here.

use std::time::Duration;

use serde_json::value::RawValue;

use super::{LEASES_MAX, LEND_MAX};
use crate::fields::{Faults, Fields};
use crate::ids::TenantId;
use crate::jobs::{NAME_MAX, is_name};

/// A worker says so many kinds or queues at most.
const NAMES_MAX: usize = 100;
const LEASE_RANGE_S: std::ops::RangeInclusive<f64> = 1.0..=3600.0;
const WAIT_RANGE_S: std::ops::RangeInclusive<f64> = 0.0..=60.0;
const LEASE_DEFAULT: Duration = Duration::from_secs(30);
const WORKER_DEFAULT: &str = "unnamed";

/// A worker that wants jobs.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// Whose jobs.
    pub tenant: TenantId,
    /// What the worker calls itself; it is written down with each try.
    pub worker: String,
    /// Of these kinds; in order, none twice.
    pub kinds: Vec<String>,
    /// Only of these queues; in order, none twice.
    pub queues: Option<Vec<String>>,
    /// So many at most.
    pub max: usize,
    /// For so long.
    pub lease: Duration,
    /// How long it waits for the first one.
    pub wait: Duration,
}

/// Reads the body of `POST /v1/leases`. `built_in`: the kinds that the service runs by itself.
/// # Errors
/// All faults.
pub fn parse(tenant: TenantId, raw: &RawValue, built_in: &[&str]) -> Result<Wish, Faults> {
    let mut faults = Faults::default();
    let Some(mut fields) = Fields::open("", raw, &mut faults) else { return Err(faults) };
    let worker = fields.string("worker", 1..=NAME_MAX, &mut faults);
    let kinds = parse_names(&mut fields, "kinds", &mut faults);
    if kinds.is_none() && !faults.has("/kinds") {
        fields.fault(
            "kinds",
            "is missing; say which kinds of jobs the worker takes, as in [\"resize\"]",
            &mut faults,
        );
    }
    for (index, kind) in kinds.iter().flatten().enumerate() {
        if built_in.contains(&kind.as_str()) {
            faults.add(
                format!("{}/{index}", fields.pointer("kinds")),
                format!(
                    "{kind} is built in: the service runs such jobs by itself, and hands them to no worker"
                ),
            );
        }
    }
    let queues = parse_names(&mut fields, "queues", &mut faults);
    let max = fields.integer("max", 1..=LEND_MAX as i64, &mut faults);
    let lease = fields.seconds("lease_s", LEASE_RANGE_S, &mut faults);
    let wait = fields.seconds("wait_s", WAIT_RANGE_S, &mut faults);
    fields.finish(&mut faults);
    faults.result(kinds.map(|kinds| Wish {
        tenant,
        worker: worker.unwrap_or_else(|| WORKER_DEFAULT.to_owned()),
        kinds: ordered(kinds),
        queues: queues.map(ordered),
        max: max.and_then(|max| usize::try_from(max).ok()).unwrap_or(1),
        lease: lease.unwrap_or(LEASE_DEFAULT),
        wait: wait.unwrap_or_default(),
    }))
}

fn parse_names(fields: &mut Fields<'_>, name: &'static str, faults: &mut Faults) -> Option<Vec<String>> {
    let list = fields.list(name, 1..=NAMES_MAX, faults)?;
    let mut names = Vec::with_capacity(list.len());
    for (index, raw) in list.iter().enumerate() {
        match serde_json::from_str::<String>(raw.get()) {
            Ok(text) if is_name(&text) => names.push(text),
            _ => faults.add(
                format!("{}/{index}", fields.pointer(name)),
                "must be letters, digits, '_', '-' and '.' only, up to 100 of them",
            ),
        }
    }
    Some(names)
}

/// Workers that want the same are asked for together, however they write it.
fn ordered(mut names: Vec<String>) -> Vec<String> {
    names.sort_unstable();
    names.dedup();
    names
}

/// Leases that are to go on.
#[derive(Debug, Clone, PartialEq)]
pub struct Extension {
    /// Their texts, as they came.
    pub leases: Vec<String>,
    /// For so long from now.
    pub lease: Duration,
}

/// Reads the body of `POST /v1/leases/extend`.
/// # Errors
/// All faults.
pub fn parse_extension(raw: &RawValue) -> Result<Extension, Faults> {
    let mut faults = Faults::default();
    let Some(mut fields) = Fields::open("", raw, &mut faults) else { return Err(faults) };
    let list = fields.list("leases", 1..=LEASES_MAX, &mut faults);
    if list.is_none() && faults.is_empty() {
        fields.fault("leases", "is missing; send the leases as they were handed out", &mut faults);
    }
    let mut leases = Vec::new();
    for (index, raw) in list.iter().flatten().enumerate() {
        match serde_json::from_str::<String>(raw.get()) {
            Ok(text) => leases.push(text),
            Err(_) => faults.add(format!("{}/{index}", fields.pointer("leases")), "must be a string"),
        }
    }
    let lease = fields.seconds("lease_s", LEASE_RANGE_S, &mut faults);
    fields.finish(&mut faults);
    faults.result(list.map(|_| Extension { leases, lease: lease.unwrap_or(LEASE_DEFAULT) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Wish, Vec<String>> {
        let raw: Box<RawValue> = serde_json::from_str(text).expect("JSON");
        let tenant = TenantId::from_uuid(uuid::Uuid::from_u128(7));
        parse(tenant, &raw, &["http"])
            .map_err(|faults| faults.into_vec().into_iter().map(|fault| fault.pointer).collect())
    }

    #[test]
    fn a_wish_has_defaults_and_an_order() {
        let wish = read(r#"{"kinds": ["b", "a", "b"], "queues": null}"#).expect("a wish");
        assert_eq!((wish.kinds, wish.queues, wish.max), (vec!["a".to_owned(), "b".to_owned()], None, 1));
        assert_eq!(
            (wish.lease, wish.wait, wish.worker),
            (LEASE_DEFAULT, Duration::ZERO, "unnamed".to_owned())
        );
    }

    #[test]
    fn each_fault_is_named() {
        assert_eq!(read("[]"), Err(vec![String::new()]));
        assert_eq!(read("{}"), Err(vec!["/kinds".to_owned()]));
        assert_eq!(read(r#"{"kinds": 7}"#), Err(vec!["/kinds".to_owned()]));
        assert_eq!(read(r#"{"kinds": ["x", "http"]}"#), Err(vec!["/kinds/1".to_owned()]));
        assert_eq!(
            read(r#"{"kinds": ["a b"], "max": 0, "lease_s": 0.5, "wait_s": 61, "more": 1}"#),
            Err(["/kinds/0", "/max", "/lease_s", "/wait_s", "/more"].map(str::to_owned).to_vec())
        );
    }
}
