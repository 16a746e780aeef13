//! [pure] The input of an `sql` job: which statement on which of the operator's data sources, with which parameters.
//!
//! Called by `jobs::new_job` at acceptance and by `executors::sql` before each try. Asks no database.
//!
//! Invariant: parameters are values for `$1`, `$2`, …; they never become text of the statement.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::fields::{Faults, Fields};
use crate::operator::SourceSpec;

const NAME_MAX: usize = 100;
const PARAMS_MAX: usize = 1000;

/// What a job asks.
#[derive(Debug, Clone)]
pub struct SqlInput {
    /// The source's name in the operator's file.
    pub source: String,
    /// What to ask.
    pub ask: Ask,
    /// The values of `$1`, `$2`, …
    pub params: Vec<Box<RawValue>>,
}

/// A statement of the operator, or one that the job brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// By name.
    Statement(String),
    /// As it stands; only where the source allows it.
    Query(String),
}

/// Reads an input at the pointer `at`. With the operator's sources also: are source and statement there?
pub fn parse(
    at: &str,
    raw: &RawValue,
    sources: Option<&BTreeMap<String, SourceSpec>>,
    faults: &mut Faults,
) -> Option<SqlInput> {
    let mut fields = Fields::open(at, raw, faults)?;
    let before = faults.clone();
    let source = fields.string("source", 1..=NAME_MAX, faults);
    if source.is_none() && *faults == before {
        fields.fault("source", "is missing; name a source of the operator's file", faults);
    }
    let before = faults.clone();
    let statement = fields.string("statement", 1..=NAME_MAX, faults);
    let query = fields.string("query", 1..=super::INPUT_MAX_BYTES, faults);
    let params = fields.list("params", 0..=PARAMS_MAX, faults);
    let params = params.map(|list| list.iter().map(|raw| (*raw).to_owned()).collect()).unwrap_or_default();
    let ask = match (statement, query) {
        (Some(statement), None) => Some(Ask::Statement(statement)),
        (None, Some(query)) => Some(Ask::Query(query)),
        (Some(_), Some(_)) => {
            fields.fault("query", "at most one of statement and query may be given", faults);
            None
        }
        (None, None) => {
            if *faults == before {
                fields.fault("statement", "is missing; name a statement of the source", faults);
            }
            None
        }
    };
    let pointers = ["source", "statement", "query"].map(|name| fields.pointer(name));
    fields.finish(faults);
    let (source, ask) = (source?, ask?);
    if let Some(sources) = sources {
        let [source_at, statement_at, query_at] = pointers;
        match (sources.get(&source), &ask) {
            (None, _) => faults.add(source_at, "no source of this name is configured"),
            (Some(spec), Ask::Statement(name)) if !spec.statements.contains_key(name) => {
                faults.add(statement_at, "the source has no statement of this name");
            }
            (Some(spec), Ask::Query(_)) if !spec.allow_query => {
                faults.add(query_at, "the source allows named statements only");
            }
            _ => {}
        }
    }
    Some(SqlInput { source, ask, params })
}

/// A value as a literal that PostgreSQL reads as the type of its parameter: `NULL`, or text in quotes. Of an array
/// (`is_array`) the JSON list becomes PostgreSQL's own notation.
pub fn literal(raw: &RawValue, is_array: bool) -> Result<String, String> {
    let value: serde_json::Value = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
    let text = match &value {
        serde_json::Value::Null => return Ok("NULL".to_owned()),
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(items) if is_array => array(items)?,
        // The text as it came: numbers keep all their digits.
        _ => raw.get().to_owned(),
    };
    if text.contains('\0') {
        return Err("a parameter must not contain a NUL".to_owned());
    }
    let quoted = text.replace('\\', "\\\\").replace('\'', "''");
    Ok(format!("E'{quoted}'"))
}

fn array(items: &[serde_json::Value]) -> Result<String, String> {
    let one = |item: &serde_json::Value| match item {
        serde_json::Value::Null => Ok("NULL".to_owned()),
        serde_json::Value::Array(inner) => array(inner),
        serde_json::Value::String(text) => Ok(quoted(text)),
        other => Ok(quoted(&other.to_string())),
    };
    let items: Result<Vec<String>, String> = items.iter().map(one).collect();
    Ok(format!("{{{}}}", items?.join(",")))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn faults_of(input: &str) -> Vec<String> {
        let spec: SourceSpec =
            toml::from_str("url = \"postgres://h/d\"\nstatements = { sales = \"SELECT 1\" }")
                .expect("parses");
        let sources = [("shop".to_owned(), spec)].into();
        let (raw, mut faults) = (RawValue::from_string(input.to_owned()).expect("JSON"), Faults::default());
        parse("/input", &raw, Some(&sources), &mut faults);
        faults.into_vec().into_iter().map(|fault| fault.pointer).collect()
    }

    #[test]
    fn only_what_the_operator_named_can_be_asked() {
        assert_eq!(
            faults_of(r#"{"source": "shop", "statement": "sales", "params": [1, null]}"#),
            Vec::<String>::new()
        );
        assert_eq!(faults_of(r#"{"source": "shop", "statement": "other"}"#), ["/input/statement"]);
        assert_eq!(faults_of(r#"{"source": "shop", "query": "SELECT 1"}"#), ["/input/query"]);
        assert_eq!(faults_of(r#"{"source": "x", "statement": "sales"}"#), ["/input/source"]);
        assert_eq!(faults_of(r#"{"source": "shop", "statement": "sales", "query": "x"}"#), ["/input/query"]);
        assert_eq!(faults_of("{}"), ["/input/source", "/input/statement"]);
    }

    #[test]
    fn values_become_literals() {
        let of =
            |json: &str, is_array| literal(&RawValue::from_string(json.to_owned()).expect("JSON"), is_array);
        assert_eq!(of("null", false), Ok("NULL".to_owned()));
        assert_eq!(of("12345678901234567890.123", false), Ok("E'12345678901234567890.123'".to_owned()));
        assert_eq!(of(r#""it's \\""#, false), Ok(r"E'it''s \\'".to_owned()));
        assert_eq!(of(r#"[1, "a\"b", null]"#, true), Ok(r#"E'{"1","a\\"b",NULL}'"#.to_owned()));
        assert_eq!(of(r#"{"a": 1}"#, false), Ok(r#"E'{"a": 1}'"#.to_owned()));
    }

    proptest! {
        #[test]
        fn no_value_leaves_its_quotes(text in "\\PC*") {
            let raw = serde_json::value::to_raw_value(&text).expect("JSON");
            let literal = literal(&raw, false).expect("a literal");
            let inner = literal.strip_prefix("E'").and_then(|rest| rest.strip_suffix('\'')).expect("in quotes");
            let mut rest = inner.chars();
            while let Some(c) = rest.next() {
                if c == '\'' { prop_assert_eq!(rest.next(), Some('\'')); }
                if c == '\\' { prop_assert_eq!(rest.next(), Some('\\')); }
            }
        }
    }
}
