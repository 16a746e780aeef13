//! [pure] Values of expressions: from the JSON of an event, and to the JSON of a body; what is copied is counted.
//!
//! Invariant: the same value is always written as the same text (members sorted by name), and no evaluation copies more
//! than it is allowed to.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cel::common::types::{
    CelBool, CelBytes, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelOptional, CelString,
    CelTimestamp, CelUInt,
};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::objects::{Key, OptionalValue};
use cel::{ExecutionError, Value};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{EventFacts, RESULT_MAX_BYTES};

type Owned = Box<dyn Val>;

/// What a value takes beside its text.
const NODE_BYTES: usize = 48;

/// An event as the expressions see it: made once, shared by all of them.
pub struct EventContext {
    id: Owned,
    event_type: Owned,
    timestamp: Owned,
    data: Owned,
    metadata: Owned,
    longest: usize,
    bytes: usize,
}

impl EventContext {
    /// Turns an event into values.
    /// # Errors
    /// The data is not JSON, which cannot be where it was accepted.
    pub fn new(facts: &EventFacts<'_>) -> Result<Self, String> {
        let longest = Cell::new(facts.metadata.map_or(0, std::collections::BTreeMap::len));
        let mut deserializer = serde_json::Deserializer::from_slice(facts.data);
        let data =
            Reader { longest: &longest }.deserialize(&mut deserializer).map_err(|error| error.to_string())?;
        deserializer.end().map_err(|error| error.to_string())?;
        let metadata: HashMap<CelMapKey<'static>, Owned> = facts
            .metadata
            .into_iter()
            .flatten()
            .map(|(name, value)| (CelMapKey::from(name.clone()), string(value.clone())))
            .collect();
        let metadata_bytes: usize =
            facts.metadata.into_iter().flatten().map(|(name, value)| name.len() + value.len()).sum();
        Ok(Self {
            id: string(facts.id.to_string()),
            event_type: string(facts.event_type.to_owned()),
            timestamp: Box::new(CelTimestamp::from(facts.timestamp().fixed_offset())),
            data,
            metadata: Box::new(CelMap::from(metadata)),
            longest: longest.get(),
            bytes: facts.data.len() + metadata_bytes,
        })
    }

    /// The length of the longest list or map.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// About how much a look at all of it looks at.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl fmt::Debug for EventContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventContext").field("id", &self.id).finish_non_exhaustive()
    }
}

impl VariableResolver for EventContext {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let value = match variable.strip_prefix('.').unwrap_or(variable) {
            "data" => &self.data,
            "type" => &self.event_type,
            "id" => &self.id,
            "timestamp" => &self.timestamp,
            "metadata" => &self.metadata,
            _ => return None,
        };
        Some(CowVal::Borrowed(value.as_ref()))
    }
}

fn string(text: String) -> Owned {
    Box::new(CelString::from(text))
}

/// Reads JSON into values.
#[derive(Clone, Copy)]
struct Reader<'a> {
    longest: &'a Cell<usize>,
}

impl Reader<'_> {
    fn note(self, length: usize) {
        self.longest.set(self.longest.get().max(length));
    }
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Owned;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Owned, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Owned;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Owned, E> {
        Ok(Box::new(CelNull))
    }
    fn visit_bool<E>(self, value: bool) -> Result<Owned, E> {
        Ok(Box::new(CelBool::from(value)))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Owned, E> {
        Ok(Box::new(CelInt::from(value)))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Owned, E> {
        Ok(match i64::try_from(value) {
            Ok(value) => Box::new(CelInt::from(value)),
            Err(_) => Box::new(CelUInt::from(value)),
        })
    }
    fn visit_f64<E>(self, value: f64) -> Result<Owned, E> {
        Ok(Box::new(CelDouble::from(value)))
    }
    fn visit_str<E>(self, value: &str) -> Result<Owned, E> {
        Ok(string(value.to_owned()))
    }
    fn visit_string<E>(self, value: String) -> Result<Owned, E> {
        Ok(string(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Owned, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = seq.next_element_seed(self)? {
            members.push(member);
        }
        self.note(members.len());
        Ok(Box::new(CelList::from(members)))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Owned, A::Error> {
        let mut members = HashMap::new();
        while let Some(name) = map.next_key::<String>()? {
            members.insert(CelMapKey::from(name), map.next_value_seed(self)?);
        }
        self.note(members.len());
        Ok(Box::new(CelMap::from(members)))
    }
}

thread_local! {
    /// What the evaluation on this thread may still copy. An evaluation never leaves its thread.
    static LEFT: Cell<usize> = const { Cell::new(0) };
}

/// Before each evaluation.
pub(super) fn allow_copies(bytes: usize) {
    LEFT.set(bytes);
}

/// The function behind [`super::syntax::OWN`]: gives back what it was given, and counts it.
pub(super) fn own<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let value = args.into_iter().next().ok_or(ExecutionError::MissingArgumentOrTarget)?;
    let mut left = LEFT.get();
    if weigh(&*value, &mut left).is_none() {
        return Err(ExecutionError::function_error("+", "it copies too much of the event's data"));
    }
    LEFT.set(left);
    Ok(value)
}

/// Takes a value's size from what is left; `None`: that is not enough.
fn weigh(value: &dyn Val, left: &mut usize) -> Option<()> {
    let mut take = |bytes: usize| left.checked_sub(bytes).map(|rest| *left = rest);
    take(NODE_BYTES)?;
    if let Some(text) = value.downcast_ref::<CelString>() {
        take(text.inner().len())
    } else if let Some(list) = value.downcast_ref::<CelList>() {
        list.inner().iter().try_for_each(|member| weigh(member.as_ref(), left))
    } else if let Some(map) = value.downcast_ref::<CelMap>() {
        map.inner().iter().try_for_each(|(name, member)| {
            weigh(name.inner(), left)?;
            weigh(member.as_ref(), left)
        })
    } else if let Some(bytes) = value.downcast_ref::<CelBytes>() {
        take(bytes.inner().len())
    } else if let Some(inner) = value.downcast_ref::<CelOptional>().and_then(CelOptional::option) {
        weigh(inner, left)
    } else {
        Some(())
    }
}

/// Writes a value as JSON.
pub(super) fn write_json(value: &Value, out: &mut String) -> Result<(), String> {
    if out.len() > RESULT_MAX_BYTES {
        return Err(format!("it gives more than {RESULT_MAX_BYTES} bytes"));
    }
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(value) => push(out, value),
        Value::Int(number) => push(out, number),
        Value::UInt(number) => push(out, number),
        Value::Float(number) => {
            let number = serde_json::Number::from_f64(*number);
            push(out, &number.ok_or_else(|| "it gives a number that JSON cannot hold".to_owned())?);
        }
        Value::String(text) => return write_string(text, out),
        Value::Bytes(bytes) => return write_string(&BASE64.encode(bytes.as_slice()), out),
        Value::Timestamp(at) => return write_string(&crate::clock::rfc3339(at.to_utc()), out),
        Value::Duration(duration) => {
            return write_string(&format!("{}s", duration.as_seconds_f64()), out);
        }
        Value::List(list) => {
            out.push('[');
            for (place, member) in list.iter().enumerate() {
                if place > 0 {
                    out.push(',');
                }
                write_json(member, out)?;
            }
            out.push(']');
        }
        Value::Map(map) => return write_map(&map.map, out),
        Value::Opaque(opaque) => {
            let optional = opaque.downcast_ref::<OptionalValue>();
            let optional = optional.ok_or_else(|| "it gives what JSON cannot hold".to_owned())?;
            return write_json(optional.value().unwrap_or(&Value::Null), out);
        }
        _ => return Err("it gives what JSON cannot hold".to_owned()),
    }
    Ok(())
}

fn write_map(map: &HashMap<Key, Value>, out: &mut String) -> Result<(), String> {
    let mut members: Vec<(String, &Value)> =
        map.iter().map(|(name, member)| (name.to_string(), member)).collect();
    members.sort_by(|one, other| one.0.cmp(&other.0));
    if members.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err("it gives an object with the same name twice".to_owned());
    }
    out.push('{');
    for (place, (name, member)) in members.into_iter().enumerate() {
        if place > 0 {
            out.push(',');
        }
        write_string(&name, out)?;
        out.push(':');
        write_json(member, out)?;
    }
    out.push('}');
    Ok(())
}

fn push(out: &mut String, value: &impl fmt::Display) {
    // Writing to a String cannot fail.
    let _ = write!(out, "{value}");
}

fn write_string(text: &str, out: &mut String) -> Result<(), String> {
    if out.len() + text.len() > RESULT_MAX_BYTES {
        return Err(format!("it gives more than {RESULT_MAX_BYTES} bytes"));
    }
    if text.contains('\0') {
        return Err("it gives a text with a zero byte".to_owned());
    }
    out.push_str(&serde_json::to_string(text).map_err(|error| error.to_string())?);
    Ok(())
}
