//! [pure] A JSON merge patch (RFC 7396) on text: what a patch does not touch keeps its bytes.
//!
//! Called by `new_schedule`. A job's input is handed on as it was written, numbers that no machine type holds included,
//! so it must not pass through a tree of values.

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::fields::Members;

/// The text that the patch makes of the old one.
pub fn merge(old: Option<&RawValue>, patch: &RawValue) -> String {
    let Some(patch) = members(patch) else { return patch.get().to_owned() };
    let mut merged: Vec<(Cow<'_, str>, Cow<'_, str>)> = old
        .and_then(members)
        .unwrap_or_default()
        .into_iter()
        .map(|(name, value)| (name, Cow::Borrowed(value.get())))
        .collect();
    for (name, value) in patch {
        let place = merged.iter().position(|(known, _)| *known == name);
        if value.get() == "null" {
            merged.retain(|(known, _)| *known != name);
            continue;
        }
        let old = place.and_then(|place| serde_json::from_str::<&RawValue>(&merged[place].1).ok());
        let text = merge(old, value);
        match place {
            Some(place) => merged[place].1 = Cow::Owned(text),
            None => merged.push((name, Cow::Owned(text))),
        }
    }
    let members: Vec<String> =
        merged.iter().map(|(name, value)| format!("{}:{value}", quoted(name))).collect();
    format!("{{{}}}", members.join(","))
}

fn members(raw: &RawValue) -> Option<Vec<(Cow<'_, str>, &RawValue)>> {
    serde_json::from_str::<Members<'_>>(raw.get()).ok().map(|Members(members)| members)
}

/// A name as JSON; a string can always be written.
pub fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(old: &str, patch: &str) -> String {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).expect("JSON");
        merge(Some(&raw(old)), &raw(patch))
    }

    // RFC 7396, appendix A.
    #[test]
    fn the_examples_of_the_rfc() {
        for (old, patch, wanted) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, r"{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
            (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
            (r#"{"a":"foo"}"#, "null", "null"),
            (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            ("[1,2]", r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            assert_eq!(merged(old, patch), wanted);
        }
    }

    #[test]
    fn what_is_not_touched_keeps_its_bytes() {
        let old = r#"{"z":{"n": 1.0,  "big":12345678901234567890},"a":1}"#;
        assert_eq!(merged(old, r#"{"a":2}"#), r#"{"z":{"n": 1.0,  "big":12345678901234567890},"a":2}"#);
        assert_eq!(merged(old, r#"{"z":{"n":2}}"#), r#"{"z":{"n":2,"big":12345678901234567890},"a":1}"#);
    }
}
