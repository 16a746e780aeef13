//! [pure] The input of a `command` job: which of the operator's programs, with what in its placeholders and on its stdin.
//!
//! Called by `jobs::new_job` at acceptance and by `executors::command` before each try (the operator's file may have changed
//! meanwhile). Runs nothing.
//!
//! Invariant: an argument of the request takes the place of a whole argument and of nothing else; no shell ever sees it.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::value::RawValue;

use crate::fields::{Faults, Fields, type_of};
use crate::operator::{CommandSpec, placeholder};

const NAME_MAX: usize = 100;
/// An argument is at most this long.
const ARG_MAX: usize = 16 * 1024;

/// What a job wants to be run.
#[derive(Debug, Clone)]
pub struct CommandInput {
    /// The command's name in the operator's file.
    pub name: String,
    /// For its placeholders.
    pub args: BTreeMap<String, String>,
    /// For its stdin.
    pub stdin: Vec<u8>,
}

/// Reads an input at the pointer `at`. With the operator's commands also: is there one of this name, and do the arguments
/// fill its placeholders?
pub fn parse(
    at: &str,
    raw: &RawValue,
    commands: Option<&BTreeMap<String, CommandSpec>>,
    faults: &mut Faults,
) -> Option<CommandInput> {
    let mut fields = Fields::open(at, raw, faults)?;
    let before = faults.clone();
    let name = fields.string("name", 1..=NAME_MAX, faults);
    if name.is_none() && *faults == before {
        fields.fault("name", "is missing; name a command of the operator's file", faults);
    }
    let args = parse_args(&mut fields, faults);
    let stdin = parse_stdin(&mut fields, faults);
    let name_at = fields.pointer("name");
    let args_at = fields.pointer("args");
    fields.finish(faults);
    let (name, args) = (name?, args?);
    if let Some(commands) = commands {
        match commands.get(&name) {
            Some(spec) => check_args(&args_at, spec, &args, faults),
            None => faults.add(name_at, "no command of this name is configured"),
        }
    }
    Some(CommandInput { name, args, stdin })
}

fn parse_args(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<BTreeMap<String, String>> {
    let Some(raw) = fields.raw("args") else { return Some(BTreeMap::new()) };
    let at = fields.pointer("args");
    let Ok(given) = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(raw.get()) else {
        faults.add(at, "must be an object, as in {\"size\": \"100x100\"}: one value for each placeholder");
        return None;
    };
    let mut args = BTreeMap::new();
    for (name, raw) in given {
        let text = match type_of(&raw) {
            "a string" => serde_json::from_str::<String>(raw.get()).ok(),
            "a number" | "a boolean" => Some(raw.get().to_owned()),
            _ => None,
        };
        match text {
            Some(text) if text.len() > ARG_MAX => {
                faults.add(member(&at, &name), "must be at most 16384 bytes");
            }
            Some(text) if text.contains('\0') => faults.add(member(&at, &name), "must not contain a NUL"),
            Some(text) => {
                args.insert(name, text);
            }
            None => faults.add(member(&at, &name), "must be a string, a number or a boolean"),
        }
    }
    Some(args)
}

fn parse_stdin(fields: &mut Fields<'_>, faults: &mut Faults) -> Vec<u8> {
    let text = fields.string("stdin", 0..=super::INPUT_MAX_BYTES, faults);
    let base64 = fields.string("stdin_base64", 0..=super::INPUT_MAX_BYTES, faults);
    match (text, base64) {
        (Some(_), Some(_)) => {
            fields.fault("stdin_base64", "at most one of stdin and stdin_base64 may be given", faults);
            Vec::new()
        }
        (Some(text), None) => text.into_bytes(),
        (None, Some(base64)) => BASE64_STANDARD.decode(base64).unwrap_or_else(|_| {
            fields.fault("stdin_base64", "must be base64, as of RFC 4648 with padding", faults);
            Vec::new()
        }),
        (None, None) => Vec::new(),
    }
}

fn check_args(at: &str, spec: &CommandSpec, args: &BTreeMap<String, String>, faults: &mut Faults) {
    let wanted: Vec<&str> = spec.args.iter().filter_map(|arg| placeholder(arg)).collect();
    for name in &wanted {
        if !args.contains_key(*name) {
            faults.add(member(at, name), "is missing; the command has a placeholder of this name");
        }
    }
    for (name, value) in args {
        if !wanted.contains(&name.as_str()) {
            faults.add(member(at, name), "the command has no placeholder of this name");
        } else if value.starts_with('-') && !after_double_dash(spec, name) {
            faults.add(
                member(at, name),
                "must not begin with '-': the program would take it for an option (behind a \"--\" in the operator's args it may)",
            );
        }
    }
}

/// The pointer to a member (RFC 6901).
fn member(at: &str, name: &str) -> String {
    format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// Does a `--` stand before each place of this placeholder? Then no program takes its value for an option. A negative
/// number is an option to most programs too, so it needs the `--` as well.
fn after_double_dash(spec: &CommandSpec, name: &str) -> bool {
    let dashes = spec.args.iter().position(|arg| arg == "--");
    let first = spec.args.iter().position(|arg| placeholder(arg) == Some(name));
    matches!((dashes, first), (Some(dashes), Some(first)) if dashes < first)
}

/// The arguments of the program, placeholders filled. `None`: one of them is missing.
pub fn fill(spec: &CommandSpec, args: &BTreeMap<String, String>) -> Option<Vec<String>> {
    let one = |arg: &String| match placeholder(arg) {
        Some(name) => args.get(name).cloned(),
        None => Some(arg.clone()),
    };
    spec.args.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn faults_of(input: &str) -> Vec<String> {
        let spec: CommandSpec =
            toml::from_str("program = \"/bin/x\"\nargs = [\"-s\", \"{size}\", \"--\", \"{file}\"]")
                .expect("parses");
        let commands = [("thumb".to_owned(), spec)].into();
        let (raw, mut faults) = (RawValue::from_string(input.to_owned()).expect("JSON"), Faults::default());
        parse("/input", &raw, Some(&commands), &mut faults);
        faults.into_vec().into_iter().map(|fault| fault.pointer).collect()
    }

    #[test]
    fn arguments_fill_the_placeholders_and_nothing_else() {
        assert_eq!(
            faults_of(r#"{"name": "thumb", "args": {"size": 10, "file": "-a"}, "stdin": "x"}"#),
            Vec::<String>::new()
        );
        assert_eq!(
            faults_of(r#"{"name": "thumb", "args": {"size": "-rf", "file": "a"}}"#),
            ["/input/args/size"]
        );
        assert_eq!(faults_of(r#"{"name": "thumb", "args": {"size": "1"}}"#), ["/input/args/file"]);
        assert_eq!(
            faults_of(r#"{"name": "thumb", "args": {"size": "1", "file": "a", "x": "1"}}"#),
            ["/input/args/x"]
        );
        assert_eq!(
            faults_of(r#"{"name": "thumb", "args": {"size": null, "file": "a"}}"#)[0],
            "/input/args/size"
        );
        assert_eq!(faults_of(r#"{"name": "rm"}"#), ["/input/name"]);
        assert_eq!(faults_of("{}"), ["/input/name"]);
        assert_eq!(
            faults_of(
                r#"{"name": "thumb", "args": {"size": 1, "file": "a"}, "stdin": "a", "stdin_base64": "YQ=="}"#
            ),
            ["/input/stdin_base64"]
        );
    }

    proptest! {
        #[test]
        fn there_are_as_many_arguments_as_the_operator_wrote(value in "\\PC*") {
            let spec: CommandSpec = toml::from_str("program = \"/bin/x\"\nargs = [\"a\", \"{v}\", \"b\"]").expect("parses");
            let filled = fill(&spec, &[("v".to_owned(), value.clone())].into()).expect("filled");
            prop_assert_eq!(filled, vec!["a".to_owned(), value, "b".to_owned()]);
        }
    }
}
