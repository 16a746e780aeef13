//! The house rules that one crate cannot let Cargo enforce: who may use whom, where SQL stands, what `[pure]` means.
//!
//! Each rule is a function from a file's path and text to its faults, and is shown to be able to fail.

use std::path::{Path, PathBuf};

/// The modules in their line: each may use those in the rows below its own, and none in its own row.
/// A new module gets its place here.
const LINE: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["app"],
    &["http", "engine"],
    &["shared"],
    &["executors", "stream", "sending"],
    &["outbound"],
    &["schedules", "replays", "workers"],
    &["jobs"],
    &["events"],
    &["deliveries"],
    &["endpoints"],
    &["tenants", "secrets", "idempotency", "nodes"],
    &["telemetry", "keyfile", "receivers"],
    &["config", "db"],
    &["operator", "courtesy"],
    &[
        "backoff",
        "clock",
        "fields",
        "ids",
        "json",
        "secret",
        "signing",
        "supervisor",
        "target",
        "topics",
        "wakeups",
    ],
];

const ROOMS: &[&str] = &[
    "schedules",
    "replays",
    "workers",
    "jobs",
    "events",
    "deliveries",
    "endpoints",
    "tenants",
    "secrets",
    "idempotency",
    "nodes",
];

/// A room is handed values; it reads no settings, starts no task and rings no bell.
const NOT_FOR_ROOMS: &[&str] = &["telemetry", "keyfile", "config", "supervisor", "wakeups"];

/// Where SQL may stand beside `*store.rs` and `db/`.
const SQL_ELSEWHERE: &[&str] = &["executors/sql.rs"];

/// A rule: the faults of a file, told by its path below `src/` and its text.
type Rule = fn(&str, &str) -> Vec<String>;

fn row_of(module: &str) -> Option<usize> {
    LINE.iter().position(|row| row.contains(&module))
}

/// The first part of the path, without `.rs`.
fn module_of(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

fn header(text: &str) -> String {
    text.lines().take_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join("\n")
}

/// The text without comments.
fn code(text: &str) -> String {
    let without = |line: &str| match line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':')) {
        Some((at, _)) => line[..at].to_owned(),
        None => line.to_owned(),
    };
    text.lines().map(without).collect::<Vec<_>>().join("\n")
}

/// The code without the tests at its end.
fn code_without_tests(text: &str) -> String {
    let code = code(text);
    code.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Does the word stand there as a whole word?
fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = at.checked_sub(1).is_none_or(|before| !is_word_byte(text.as_bytes()[before]));
        before && text.as_bytes().get(at + word.len()).is_none_or(|after| !is_word_byte(*after))
    })
}

fn leading_word(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The modules behind `crate::`, those of a group in braces as well.
fn used_modules(text: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, root) in text.match_indices("crate::") {
        if at > 0 && (is_word_byte(text.as_bytes()[at - 1]) || text.as_bytes()[at - 1] == b'$') {
            continue;
        }
        let rest = &text[at + root.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            used.push(leading_word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (place, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    used.push(leading_word(&group[start..place]));
                    start = place + 1;
                    if c == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
    }
    used.retain(|module| !module.is_empty());
    used
}

/// The arrows between modules go down the line only.
fn arrows(path: &str, text: &str) -> Vec<String> {
    let own = module_of(path);
    if own == "lib" {
        return Vec::new();
    }
    let Some(row) = row_of(own) else {
        return vec![format!("{path}: the module {own} has no place in LINE; give it one")];
    };
    let code = code(text);
    let mut faults = Vec::new();
    if code.contains("super::super::") && path.matches('/').count() < 2 {
        faults.push(format!("{path}: super::super:: hides which module is used; write crate::"));
    }
    for used in used_modules(&code).iter().filter(|used| *used != own) {
        let allowed = row_of(used).is_some_and(|other| other > row)
            && !(ROOMS.contains(&own) && NOT_FOR_ROOMS.contains(&used.as_str()));
        if !allowed {
            faults.push(format!("{path}: {own} must not use {used}"));
        }
    }
    faults
}

/// SQL stands in the stores.
fn sql_in_stores(path: &str, text: &str) -> Vec<String> {
    let allowed = path.ends_with("store.rs") || path.starts_with("db/") || SQL_ELSEWHERE.contains(&path);
    let words = ["sqlx::query", "sqlx::raw_sql", "QueryBuilder", "query!("];
    if !allowed && words.iter().any(|word| code(text).contains(word)) {
        return vec![format!("{path}: SQL stands in *store.rs and db/ only")];
    }
    Vec::new()
}

/// Every file says what it is for.
fn headers(path: &str, text: &str) -> Vec<String> {
    if header(text).len() < 10 {
        vec![format!("{path}: no //! header that says what it is for")]
    } else {
        Vec::new()
    }
}

/// What calls itself pure waits for nothing, reads no clock, draws nothing and asks no database.
fn pure_is_pure(path: &str, text: &str) -> Vec<String> {
    if !header(text).contains("[pure]") {
        return Vec::new();
    }
    let code = code_without_tests(text);
    let found = |word: &&str| if word.contains("::") { code.contains(word) } else { has_word(&code, word) };
    ["async", "await", "Clock", "clock::now", "Instant::now", "rand", "sqlx", "tokio"]
        .iter()
        .filter(|word| found(word))
        .map(|word| format!("{path}: it says [pure] and has {word}"))
        .collect()
}

/// Every file below a folder, by its path there.
fn files(folder: &Path, below: &str) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("src can be read").flatten() {
        let path = format!("{below}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            found.extend(files(&entry.path(), &format!("{path}/")));
        } else if entry.path().extension().is_some_and(|extension| extension == "rs") {
            found.push((path, entry.path()));
        }
    }
    found.sort();
    found
}

fn check(rule: Rule) {
    let sources = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "");
    assert!(sources.len() > 50, "the sources were found");
    let text = |path: &PathBuf| std::fs::read_to_string(path).expect("a source can be read");
    let faults: Vec<String> = sources.iter().flat_map(|(path, file)| rule(path, &text(file))).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn arrows_between_modules_go_one_way() {
    check(arrows);
}

#[test]
fn sql_stands_in_stores_only() {
    check(sql_in_stores);
}

#[test]
fn every_file_says_what_it_is_for() {
    check(headers);
    for (path, file) in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"), "") {
        assert_eq!(headers(&path, &std::fs::read_to_string(file).expect("a source")), Vec::<String>::new());
    }
}

#[test]
fn what_calls_itself_pure_is_pure() {
    check(pure_is_pure);
}

#[test]
fn a_wrong_arrow_is_found_however_it_is_written() {
    let wrong = [
        ("jobs/store.rs", "use crate::http::problem::ApiError;"),
        ("http/jobs.rs", "use crate::engine;"),
        ("engine/mod.rs", "fn f(x: crate::http::problem::ApiError) {}"),
        ("events/mod.rs", "use crate::{\n    clock,\n    db::{Db, Tx},\n    jobs::{self, Job},\n};"),
        ("deliveries/store.rs", "use crate::{events::store};"),
        ("idempotency/mod.rs", "use crate::tenants::Caller;"),
        ("jobs/mod.rs", "use crate::config::Config;"),
        ("ids.rs", "#[serde(with = \"crate::clock::millis\")]"),
        ("jobs/mod.rs", "use super::super::http;"),
        ("novelties/mod.rs", ""),
    ];
    for (path, text) in wrong {
        assert_eq!(arrows(path, text).len(), 1, "{path}: {text} {:?}", arrows(path, text));
    }
    let right = [
        (
            "jobs/store.rs",
            "use crate::{db::{Db, Tx}, events, jobs::Job};\n// crate::http is told elsewhere\nmacro!($crate::http);",
        ),
        ("http/jobs.rs", "use crate::jobs;\npub(crate) fn f() {}"),
        ("executors/http.rs", "use crate::outbound::Answer; use super::http;"),
        ("db/embedded/server.rs", "use super::super::Db;"),
        ("lib.rs", "pub mod anything;"),
    ];
    for (path, text) in right {
        assert_eq!(arrows(path, text), Vec::<String>::new(), "{path}: {text}");
    }
}

#[test]
fn sql_in_a_wrong_place_is_found() {
    let sql = "sqlx::query_scalar(\"SELECT 1\")";
    for path in ["http/jobs.rs", "jobs/mod.rs", "tenants/mod.rs", "database.rs"] {
        assert_eq!(sql_in_stores(path, sql).len(), 1, "{path}");
    }
    for path in ["jobs/store.rs", "jobs/lease_store.rs", "db/migrate.rs", "executors/sql.rs"] {
        assert_eq!(sql_in_stores(path, sql), Vec::<String>::new(), "{path}");
    }
    assert_eq!(sql_in_stores("jobs/mod.rs", "// sqlx::query stands elsewhere"), Vec::<String>::new());
}

#[test]
fn a_missing_header_is_found() {
    assert_eq!(headers("x.rs", "use std::fmt;\n//! Too late to be a header.").len(), 1);
    assert_eq!(headers("x.rs", "//! \nuse std::fmt;").len(), 1);
    assert_eq!(headers("x.rs", "//! What it is for.\nuse std::fmt;"), Vec::<String>::new());
}

#[test]
fn impurity_is_found() {
    for (text, count) in [
        ("async fn f() {}", 1),
        ("use rand::Rng;", 1),
        ("let at = clock::now();", 1),
        ("fn f(clock: &Clock) {}", 1),
        ("use sqlx::Row; use tokio::time;", 2),
        ("let operand = strand; // async, rand and sqlx in words\n#[cfg(test)]\nasync fn in_a_test() {}", 0),
    ] {
        assert_eq!(pure_is_pure("x.rs", &format!("//! [pure] A decision.\n{text}")).len(), count, "{text}");
        assert_eq!(pure_is_pure("x.rs", &format!("//! A loop.\n{text}")), Vec::<String>::new(), "{text}");
    }
}
