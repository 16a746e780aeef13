//! The gates that keep the specification true: what `openapi.yaml` and `docs/errors.md` say is what the service does.
//!
//! The answers of all other tests are held against the specification by the harness; here stand the gates that look at
//! the specification as a whole, and a walk through every route.

use std::collections::BTreeSet;

use ringback::http::ROUTES;
use ringback::http::problem::Kind;
use serde_json::{Value, json};

use crate::harness::spec::{self, DOCUMENT, fits, resolve, validator};

mod walk;

#[test]
fn every_kind_of_problem_has_a_page_and_a_place_in_the_specification() {
    let kinds: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.slug()).collect();
    assert_eq!(kinds.len(), Kind::ALL.len(), "two kinds share a slug");

    let page = include_str!("../../docs/errors.md");
    let headings: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(kinds, headings, "problem.rs and the headings of docs/errors.md");

    let codes = DOCUMENT["components"]["schemas"]["Problem"]["properties"]["code"]["enum"].as_array();
    let codes: BTreeSet<&str> = codes.expect("an enum").iter().filter_map(Value::as_str).collect();
    assert_eq!(kinds, codes, "problem.rs and the codes in openapi.yaml");
}

#[test]
fn every_paragraph_on_a_problem_names_its_status() {
    let page = include_str!("../../docs/errors.md");
    for kind in Kind::ALL {
        let start = format!("\n## {}\n\nStatus {}", kind.slug(), kind.status());
        assert!(
            page.contains(&start),
            "docs/errors.md: the paragraph {} begins with its status",
            kind.slug()
        );
    }
}

#[test]
fn every_answer_with_a_problem_is_of_a_kind_that_has_this_status() {
    for (name, response) in DOCUMENT["components"]["responses"].as_object().expect("responses") {
        let Some(media) = response.pointer("/content/application~1problem+json") else { continue };
        let bound = &media["schema"]["allOf"][1]["properties"];
        let status = bound["status"]["const"].as_u64();
        let codes = match &bound["code"] {
            Value::Object(one) if one.contains_key("const") => vec![one["const"].clone()],
            several => several["enum"].as_array().cloned().unwrap_or_default(),
        };
        assert!(!codes.is_empty(), "{name} does not say which codes it has");
        for code in codes {
            let kind = Kind::ALL.iter().find(|kind| code == kind.slug());
            assert_eq!(kind.map(|kind| u64::from(kind.status())), status, "{name}: {code}");
        }
    }
}

#[test]
fn the_specification_has_exactly_the_routes_that_are_served() {
    let routes: BTreeSet<(String, String)> = ROUTES
        .iter()
        .flat_map(|(path, methods)| methods.iter().map(|method| ((*path).to_owned(), (*method).to_owned())))
        .collect();
    let operations: BTreeSet<_> = spec::operations().into_iter().collect();
    assert_eq!(routes, operations, "http::ROUTES and openapi.yaml");
}

#[test]
fn every_example_fits_its_schema() {
    let mut seen = 0;
    examples(&DOCUMENT, "#", &mut |at, schema, example| {
        seen += 1;
        if let Err(fault) = fits(&validator(&DOCUMENT, schema), example) {
            panic!("the example at {at} is wrong: {fault}");
        }
    });
    assert!(seen > 30, "only {seen} examples were found");
}

/// Calls `judge` for each example beside a schema, wherever it stands: media types, parameters, headers, schemas.
fn examples(value: &Value, at: &str, judge: &mut impl FnMut(&str, &Value, &Value)) {
    if let Value::Array(list) = value {
        for (index, one) in list.iter().enumerate() {
            examples(one, &format!("{at}/{index}"), judge);
        }
    }
    let Value::Object(map) = value else { return };
    for (name, one) in map {
        if name != "example" && name != "examples" {
            examples(one, &format!("{at}/{name}"), judge);
        }
    }
    let schema = map.get("schema").unwrap_or(value);
    if let Some(example) = map.get("example") {
        judge(at, schema, example);
    }
    match map.get("examples") {
        Some(Value::Array(list)) => list.iter().for_each(|one| judge(at, schema, one)),
        Some(Value::Object(named)) if map.contains_key("schema") => {
            for one in named.values() {
                judge(at, schema, &resolve(&DOCUMENT, one)["value"]);
            }
        }
        _ => {}
    }
}

#[test]
fn every_operation_is_described_for_people() {
    let mut ids = BTreeSet::new();
    for (path, method) in spec::operations() {
        let operation = &DOCUMENT["paths"][&path][method.to_ascii_lowercase()];
        for field in ["operationId", "summary"] {
            assert!(operation[field].is_string(), "{method} {path} has no {field}");
        }
        assert!(
            ids.insert(operation["operationId"].to_string()),
            "{method} {path}: the operationId is taken"
        );
        assert_eq!(operation["tags"].as_array().map(Vec::len), Some(1), "{method} {path} has one tag");
        for (status, response) in operation["responses"].as_object().expect("responses") {
            let headers = &resolve(&DOCUMENT, response)["headers"];
            let wanted = json!({ "$ref": "#/components/headers/RequestId" });
            assert_eq!(headers["request-id"], wanted, "{method} {path} {status} has its request-id");
        }
    }
}
