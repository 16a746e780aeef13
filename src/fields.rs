//! [pure] Reading a JSON object field by field, collecting every fault with its JSON pointer (RFC 6901).
//!
//! Called by the rooms' `parse` functions, which turn a request's text into values that cannot be wrong. Members keep
//! their exact text (`RawValue`). `null` counts as absent. The text has passed `json::validate` before.
//!
//! Invariant: a member that nobody asked for is a fault, so a typing error is never silently ignored.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// One thing that is wrong in a request's body.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// Where, as a JSON pointer.
    pub pointer: String,
    /// What to change.
    pub detail: String,
}

/// All that was found wrong so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// At most this many are kept: an answer names faults, it does not repeat the request.
    const MAX: usize = 50;

    /// Adds one.
    pub fn add(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        if self.0.len() < Self::MAX {
            self.0.push(Fault { pointer: pointer.into(), detail: detail.into() });
        }
    }
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Is something wrong at this pointer, or below it?
    pub fn has(&self, pointer: &str) -> bool {
        self.0.iter().any(|fault| {
            fault.pointer.strip_prefix(pointer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
    /// Nothing wrong?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// As a list.
    pub fn into_vec(self) -> Vec<Fault> {
        self.0
    }
    /// The value, if nothing was wrong.
    pub fn result<T>(self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.is_empty() => Ok(value),
            _ => Err(self),
        }
    }
}

/// The members of an object in their order, values as they were written.
pub struct Members<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(map.size_hint().unwrap_or(8));
                while let Some(Name(name)) = map.next_key()? {
                    members.push((name, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

/// A name that borrows where no escape forces a copy.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// An object that is read member by member.
pub struct Fields<'a> {
    at: String,
    members: Vec<(Cow<'a, str>, &'a RawValue)>,
    asked: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// Opens the object at `at` (a JSON pointer, empty for the whole body).
    pub fn open(at: impl Into<String>, raw: &'a RawValue, faults: &mut Faults) -> Option<Self> {
        let at = at.into();
        if let Ok(Members(members)) = serde_json::from_str::<Members<'a>>(raw.get()) {
            Some(Self { at, members, asked: Vec::new() })
        } else {
            faults.add(at, format!("must be an object, not {}", type_of(raw)));
            None
        }
    }

    /// The pointer of a member.
    pub fn pointer(&self, name: &str) -> String {
        format!("{}/{}", self.at, name.replace('~', "~0").replace('/', "~1"))
    }

    /// The member's text; `null` counts as absent.
    pub fn raw(&mut self, name: &'static str) -> Option<&'a RawValue> {
        self.asked.push(name);
        let place = self.members.iter().position(|(member, _)| member == name)?;
        let (_, value) = self.members.swap_remove(place);
        (value.get() != "null").then_some(value)
    }

    /// Like [`Self::raw`], and an explicit `null` stays.
    pub fn raw_or_null(&mut self, name: &'static str) -> Option<&'a RawValue> {
        self.asked.push(name);
        let place = self.members.iter().position(|(member, _)| member == name)?;
        Some(self.members.swap_remove(place).1)
    }

    /// Notes a fault at a member.
    pub fn fault(&self, name: &str, detail: impl Into<String>, faults: &mut Faults) {
        faults.add(self.pointer(name), detail);
    }

    /// A string of a length in bytes within the range.
    pub fn string(
        &mut self,
        name: &'static str,
        length: std::ops::RangeInclusive<usize>,
        faults: &mut Faults,
    ) -> Option<String> {
        let raw = self.raw(name)?;
        let Ok(text) = serde_json::from_str::<String>(raw.get()) else {
            self.fault(name, format!("must be a string, not {}", type_of(raw)), faults);
            return None;
        };
        if !length.contains(&text.len()) {
            let detail =
                format!("must be {} to {} bytes long, and is {}", length.start(), length.end(), text.len());
            self.fault(name, detail, faults);
            return None;
        }
        Some(text)
    }

    /// A whole number within the range.
    pub fn integer(
        &mut self,
        name: &'static str,
        range: std::ops::RangeInclusive<i64>,
        faults: &mut Faults,
    ) -> Option<i64> {
        let raw = self.raw(name)?;
        match serde_json::from_str::<i64>(raw.get()) {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                let detail = format!("must be a whole number from {} to {}", range.start(), range.end());
                self.fault(name, detail, faults);
                None
            }
        }
    }

    /// A number within the range.
    pub fn number(
        &mut self,
        name: &'static str,
        range: std::ops::RangeInclusive<f64>,
        faults: &mut Faults,
    ) -> Option<f64> {
        let raw = self.raw(name)?;
        match serde_json::from_str::<f64>(raw.get()) {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                self.fault(
                    name,
                    format!("must be a number from {} to {}", range.start(), range.end()),
                    faults,
                );
                None
            }
        }
    }

    /// A number of seconds within the range, fractions allowed.
    pub fn seconds(
        &mut self,
        name: &'static str,
        range: std::ops::RangeInclusive<f64>,
        faults: &mut Faults,
    ) -> Option<Duration> {
        self.number(name, range, faults).map(Duration::from_secs_f64)
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, name: &'static str, faults: &mut Faults) -> Option<bool> {
        let raw = self.raw(name)?;
        let value = serde_json::from_str::<bool>(raw.get()).ok();
        if value.is_none() {
            self.fault(name, "must be true or false", faults);
        }
        value
    }

    /// One of a few words.
    pub fn word<T: Copy>(
        &mut self,
        name: &'static str,
        words: &[(&str, T)],
        faults: &mut Faults,
    ) -> Option<T> {
        let raw = self.raw(name)?;
        let text = serde_json::from_str::<Cow<'_, str>>(raw.get()).unwrap_or_default();
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let list: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.fault(name, format!("must be one of: {}", list.join(", ")), faults);
        }
        found
    }

    /// A list, each member's text.
    pub fn list(
        &mut self,
        name: &'static str,
        length: std::ops::RangeInclusive<usize>,
        faults: &mut Faults,
    ) -> Option<Vec<&'a RawValue>> {
        let raw = self.raw(name)?;
        match serde_json::from_str::<Vec<&'a RawValue>>(raw.get()) {
            Ok(list) if length.contains(&list.len()) => Some(list),
            Ok(list) => {
                let detail = format!(
                    "must have {} to {} members, and has {}",
                    length.start(),
                    length.end(),
                    list.len()
                );
                self.fault(name, detail, faults);
                None
            }
            Err(_) => {
                self.fault(name, format!("must be a list, not {}", type_of(raw)), faults);
                None
            }
        }
    }

    /// An object of strings: at most 50 names of at most 64 bytes, values of at most 1,024 bytes.
    pub fn strings(
        &mut self,
        name: &'static str,
        faults: &mut Faults,
    ) -> Option<std::collections::BTreeMap<String, String>> {
        let raw = self.raw(name)?;
        let before = faults.0.len();
        let inner = Self::open(self.pointer(name), raw, faults)?;
        if inner.members.len() > 50 {
            self.fault(name, "must have at most 50 members", faults);
        }
        let mut strings = std::collections::BTreeMap::new();
        for (key, value) in &inner.members {
            match serde_json::from_str::<String>(value.get()) {
                Ok(text) if text.len() <= 1024 && (1..=64).contains(&key.len()) => {
                    strings.insert(key.clone().into_owned(), text);
                }
                _ => faults.add(
                    inner.pointer(key),
                    "must be a string of at most 1,024 bytes under a name of 1 to 64 bytes",
                ),
            }
        }
        (faults.0.len() == before).then_some(strings)
    }

    /// Ends the reading: whatever was not asked for is a fault.
    pub fn finish(self, faults: &mut Faults) {
        for (name, _) in &self.members {
            let known = self.asked.join(", ");
            faults.add(self.pointer(name), format!("unknown field; the known ones are: {known}"));
        }
    }
}

/// What a JSON value is, in words.
pub fn type_of(raw: &RawValue) -> &'static str {
    match raw.get().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        serde_json::from_str(text).expect("JSON")
    }

    #[test]
    fn every_fault_is_found_with_its_pointer() {
        let body = raw(r#"{"a": 7, "b": "x", "c/d": 1, "e": null}"#);
        let mut faults = Faults::default();
        let mut fields = Fields::open("", &body, &mut faults).expect("object");
        assert_eq!(fields.string("a", 1..=10, &mut faults), None);
        assert_eq!(fields.integer("b", 1..=10, &mut faults), None);
        assert_eq!(fields.string("e", 1..=10, &mut faults), None);
        fields.finish(&mut faults);
        let found: Vec<_> = faults.into_vec().into_iter().map(|fault| fault.pointer).collect();
        assert_eq!(found, ["/a", "/b", "/c~1d"]);
    }

    #[test]
    fn a_value_keeps_its_text() {
        let body = raw(r#"{"input": {"b":1.0, "a": 12345678901234567890}}"#);
        let mut faults = Faults::default();
        let mut fields = Fields::open("", &body, &mut faults).expect("object");
        assert_eq!(fields.raw("input").expect("there").get(), r#"{"b":1.0, "a": 12345678901234567890}"#);
    }
}
