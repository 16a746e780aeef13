//! [pure] Filters and transforms: CEL expressions over an event (<https://cel.dev>), written by tenants.
//!
//! An expression sees `id`, `type`, `timestamp` (a timestamp), `data` and `metadata`. Numbers of JSON are int where they
//! have no fraction and exponent, else double; comparisons mix the two, arithmetic does not. A field that is not there is
//! an error (`has(data.x)` and `data.?x.orValue(0)` ask before), and an error ends the delivery with that reason.
//! Called by `endpoints::new_endpoint` (parse), the fan-out and the preview (evaluate). An event is turned into values
//! once ([`EventContext`]) for all the expressions that look at it.
//!
//! Invariant: whatever a tenant writes and whatever an event holds, an evaluation ends soon and within a bounded memory,
//! and neither panics nor overflows the stack (`syntax` and `values` say how).

mod syntax;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock, OnceLock};

use cel::common::types::DYN_TYPE;
use cel::{Context, Env, ExecutionError, Value};

use self::syntax::Compiled;
pub use self::values::EventContext;
use crate::clock::Timestamp;
use crate::ids::EventId;

/// An expression is at most this long.
pub const EXPRESSION_MAX_BYTES: usize = 4096;
/// What a transform makes is at most this long, as the data of an event is.
pub const RESULT_MAX_BYTES: usize = 256 * 1024;
/// Bytes that an evaluation may copy in all: the result, and lists and strings on the way to it.
const COPIED_MAX_BYTES: usize = 32 * 1024 * 1024;
/// Steps of a comprehension times bytes of data that each of them may look at: about a second.
const LOOKED_AT_MAX: usize = 1 << 28;
/// So much of an error is shown: some repeat the data.
const ERROR_MAX_CHARS: usize = 300;

/// All functions of CEL, and ours that counts what is copied.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    // Nobody else declares a name that cannot be written.
    let declared = env.add_overload(syntax::OWN, syntax::OWN, vec![DYN_TYPE], values::own);
    debug_assert!(declared.is_ok());
    Arc::new(env)
});

/// The facts that expressions look at.
#[derive(Debug, Clone, Copy)]
pub struct EventFacts<'a> {
    /// `id`, and with it `timestamp`.
    pub id: EventId,
    /// `type`.
    pub event_type: &'a str,
    /// `data`, as JSON text.
    pub data: &'a [u8],
    /// `metadata`.
    pub metadata: Option<&'a BTreeMap<String, String>>,
}

impl EventFacts<'_> {
    /// When the event was accepted.
    pub fn timestamp(&self) -> Timestamp {
        self.id.created_at()
    }
}

/// What both kinds of expressions are: a text, and what it means.
#[derive(Clone)]
struct Expression {
    text: Arc<str>,
    /// Read when it is first evaluated: most expressions come out of the database to be shown. `Err`: this build does not
    /// understand a text that an older one accepted.
    compiled: Arc<OnceLock<Result<Compiled, String>>>,
}

impl Expression {
    fn parse(text: &str) -> Result<Self, String> {
        let compiled = syntax::compile(text)?;
        Ok(Self { text: text.into(), compiled: Arc::new(OnceLock::from(Ok(compiled))) })
    }

    fn stored(text: &str) -> Self {
        Self { text: text.into(), compiled: Arc::default() }
    }

    fn run<T>(
        &self,
        event: &EventContext,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Result<T, String> {
        let compiled = self.compiled.get_or_init(|| syntax::compile(&self.text));
        let compiled = compiled.as_ref().map_err(|error| format!("it cannot be read: {error}"))?;
        if compiled.may_look_at(event) > LOOKED_AT_MAX {
            return Err(
                "the event's data is too large for a comprehension that looks at data in each of its steps"
                    .to_owned(),
            );
        }
        values::allow_copies(COPIED_MAX_BYTES);
        let mut context = Context::with_env(Arc::clone(&ENV));
        context.set_variable_resolver(event);
        // Not `resolve_val`: it is always inlined, and so recurses in our own, unoptimized code.
        let value = Value::resolve(&compiled.expression, &context).map_err(|error| describe(&error))?;
        read(&value)
    }
}

fn describe(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(name) => format!("there is no field '{}'", shortened(name)),
        ExecutionError::FunctionError { message, .. } => shortened(message),
        other => shortened(&other.to_string()),
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(ERROR_MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// An expression that says whether an event is wanted.
#[derive(Clone)]
pub struct Filter(Expression);

impl Filter {
    /// Reads an expression.
    /// # Errors
    /// What is wrong, and where: "column 14: …".
    pub fn parse(text: &str) -> Result<Self, String> {
        Expression::parse(text).map(Self)
    }

    /// One that was accepted before. If this build cannot read it any more, every evaluation says so.
    pub fn stored(text: &str) -> Self {
        Self(Expression::stored(text))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// Is the event wanted?
    /// # Errors
    /// The expression does not fit the event's data; the text becomes the delivery's reason.
    pub fn eval(&self, event: &EventContext) -> Result<bool, String> {
        self.0.run(event, |value| match value {
            Value::Bool(wanted) => Ok(*wanted),
            other => Err(format!("it gives {}, not true or false", name_of(other))),
        })
    }
}

/// An expression that makes the data of a delivery's body.
#[derive(Clone)]
pub struct Transform(Expression);

impl Transform {
    /// Reads an expression.
    /// # Errors
    /// As [`Filter::parse`].
    pub fn parse(text: &str) -> Result<Self, String> {
        Expression::parse(text).map(Self)
    }

    /// As [`Filter::stored`].
    pub fn stored(text: &str) -> Self {
        Self(Expression::stored(text))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// The data, as JSON text: the same text for the same event, at any time and in any process.
    /// # Errors
    /// As [`Filter::eval`].
    pub fn eval(&self, event: &EventContext) -> Result<String, String> {
        self.0.run(event, |value| {
            let mut text = String::new();
            values::write_json(value, &mut text)?;
            Ok(text)
        })
    }
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::String(_) => "a string",
        Value::Int(_) | Value::UInt(_) | Value::Float(_) => "a number",
        Value::List(_) => "a list",
        Value::Map(_) => "an object",
        _ => "something else",
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({:?})", self.as_str())
    }
}

impl fmt::Debug for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transform({:?})", self.as_str())
    }
}

#[cfg(test)]
mod tests;
