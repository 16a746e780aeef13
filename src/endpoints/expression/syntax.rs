//! [pure] From an expression's text to a syntax tree that is safe to evaluate.
//!
//! The parser recurses (4 KiB of brackets or operators take more than 8 MiB of stack), so it runs on a thread with room
//! for any 4 KiB. The tree is then checked: known names only, not too deep, no comprehension in the steps of another,
//! regular expressions that are literals and small. And it is changed: whatever will be copied (members of lists and
//! maps, both sides of `+`) goes through [`OWN`], which counts it.
//!
//! Invariant: a tree that leaves this file evaluates within 2 MiB of stack.

use std::mem;

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SourceInfo, operators,
};
use cel::parser::{Expression, ParseError};

use super::values::EventContext;
use super::{ENV, EXPRESSION_MAX_BYTES};

/// The function that counts copies. Its name cannot be written in an expression.
pub(super) const OWN: &str = "@own";

/// Measured: any 4 KiB were read within 16 MiB. Only what is used is ever backed by memory.
const PARSE_STACK_BYTES: usize = 64 * 1024 * 1024;
/// Levels of the tree; each takes less than 4 KiB of stack to evaluate.
const DEPTH_MAX: usize = 150;
/// A compiled regular expression may have so many bytes: it is compiled anew at each evaluation.
const REGEX_MAX_BYTES: usize = 64 * 1024;
const REGEXES_MAX: usize = 8;

const VARIABLES: [&str; 5] = ["id", "type", "timestamp", "data", "metadata"];
const TYPES: [&str; 10] =
    ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "uint", "optional_type"];
const FUNCTIONS: [&str; 33] = [
    "bool",
    "bytes",
    "contains",
    "double",
    "duration",
    "dyn",
    "endsWith",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
    "hasValue",
    "int",
    "matches",
    "none",
    "of",
    "ofNonZeroValue",
    "or",
    "orValue",
    "size",
    "startsWith",
    "string",
    "timestamp",
    "type",
    "uint",
    "value",
    "has",
];

/// A tree with what its evaluation may cost.
pub(super) struct Compiled {
    pub(super) expression: Expression,
    /// Does a step of a comprehension look at `data` or `metadata`?
    looks_at_data: bool,
    /// The longest list that the expression itself may make, in parts: members written down, and lists added up.
    members: usize,
    range_sums: usize,
}

impl Compiled {
    /// Bytes that the steps of the comprehensions may look at.
    pub(super) fn may_look_at(&self, event: &EventContext) -> usize {
        if !self.looks_at_data {
            return 0;
        }
        let steps = event.longest().max(self.members).saturating_mul(self.range_sums + 1);
        steps.saturating_mul(event.bytes())
    }
}

/// Reads an expression.
pub(super) fn compile(text: &str) -> Result<Compiled, String> {
    if text.len() > EXPRESSION_MAX_BYTES {
        return Err(format!("must be at most {EXPRESSION_MAX_BYTES} bytes long, and is {}", text.len()));
    }
    if text.trim().is_empty() {
        return Err("is empty; leave it out instead".to_owned());
    }
    let text = text.to_owned();
    std::thread::Builder::new()
        .name("cel".to_owned())
        .stack_size(PARSE_STACK_BYTES)
        .spawn(move || compile_here(&text))
        .ok()
        .and_then(|parsing| parsing.join().ok())
        .unwrap_or_else(|| Err("column 1: cannot be read".to_owned()))
}

fn compile_here(text: &str) -> Result<Compiled, String> {
    let parsed = ENV.parser().parse_with_source_info(text);
    let (mut expression, source) =
        parsed.map_err(|errors| errors.errors.first().map_or_else(String::new, explain))?;
    let mut check = Check::default();
    match check.visit(&mut expression, 0) {
        Err(fault) => Err(format!("{}: {}", place(text, &source, fault.at), fault.text)),
        Ok(()) => Ok(Compiled {
            expression,
            looks_at_data: check.looks_at_data,
            members: check.members,
            range_sums: check.range_sums,
        }),
    }
}

/// "Syntax error: mismatched input '>' expecting {'[', …}" without what only the grammar's author understands.
fn explain(error: &ParseError) -> String {
    let text = error.msg.strip_prefix("Syntax error: ").unwrap_or(&error.msg);
    let text = match text {
        text if text.contains("ecursi") => "is nested too deeply",
        text => text.split(" expecting").next().unwrap_or(text),
    };
    let text: String = text.chars().take(200).collect();
    let (line, column) = error.pos;
    column_text(usize::try_from(line).unwrap_or(1), usize::try_from(column).unwrap_or(1)) + ": " + &text
}

fn column_text(line: usize, column: usize) -> String {
    match line {
        0 | 1 => format!("column {}", column.max(1)),
        _ => format!("line {line}, column {}", column.max(1)),
    }
}

fn place(text: &str, source: &SourceInfo, id: u64) -> String {
    let start = source.offset_for(id).map_or(0, |(start, _)| start as usize);
    let before: String = text.chars().take(start).collect();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
    column_text(line, column)
}

struct Fault {
    at: u64,
    text: String,
}

/// What was seen so far.
#[derive(Default)]
struct Check {
    /// Names that comprehensions declare, the innermost last.
    declared: Vec<String>,
    /// Within the steps of a comprehension?
    in_steps: bool,
    in_range: bool,
    looks_at_data: bool,
    members: usize,
    range_sums: usize,
    regexes: usize,
}

impl Check {
    fn visit(&mut self, node: &mut IdedExpr, depth: usize) -> Result<(), Fault> {
        let at = node.id;
        let fault = |text: &str| Err(Fault { at, text: text.to_owned() });
        if depth > DEPTH_MAX {
            return fault("is nested too deeply");
        }
        match &mut node.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => self.visit_name(name, at),
            Expr::Select(select) => self.visit(&mut select.operand, depth + 1),
            Expr::Call(call) => self.visit_call(call, at, depth),
            Expr::List(list) => {
                self.members = self.members.max(list.elements.len());
                list.elements.iter_mut().try_for_each(|member| self.visit_owned(member, depth))
            }
            Expr::Map(map) => {
                self.members = self.members.max(map.entries.len());
                for entry in &mut map.entries {
                    let EntryExpr::MapEntry(entry) = &mut entry.expr else {
                        return fault("this kind of value is not known here");
                    };
                    self.visit_owned(&mut entry.key, depth)?;
                    self.visit_owned(&mut entry.value, depth)?;
                }
                Ok(())
            }
            Expr::Comprehension(_) if self.in_steps => fault("a comprehension inside another is not allowed"),
            Expr::Comprehension(comprehension) => self.visit_comprehension(comprehension, depth),
            Expr::Struct(_) | Expr::Unspecified => fault("this kind of value is not known here"),
        }
    }

    fn visit_name(&mut self, name: &str, at: u64) -> Result<(), Fault> {
        if self.declared.iter().any(|declared| declared == name) {
            return Ok(());
        }
        let name = name.strip_prefix('.').unwrap_or(name);
        self.looks_at_data |= self.in_steps && matches!(name, "data" | "metadata");
        if VARIABLES.contains(&name) || TYPES.contains(&name) {
            return Ok(());
        }
        let shown: String = name.chars().take(50).collect();
        let text = format!("'{shown}' is not known; the variables are {}", VARIABLES.join(", "));
        Err(Fault { at, text })
    }

    fn visit_call(&mut self, call: &mut CallExpr, at: u64, depth: usize) -> Result<(), Fault> {
        let name = call.func_name.as_str();
        // The names of operators cannot be written.
        let is_operator = name.bytes().any(|byte| !byte.is_ascii_alphanumeric() && byte != b'_');
        if !is_operator && !FUNCTIONS.contains(&name) {
            let shown: String = name.chars().take(50).collect();
            return Err(Fault { at, text: format!("there is no function '{shown}'") });
        }
        if name == "matches" {
            self.check_regex(call).map_err(|text| Fault { at, text })?;
        }
        let is_library = |target: &IdedExpr| matches!(&target.expr, Expr::Ident(name) if name == "optional");
        if let Some(target) = call.target.as_mut().filter(|target| !is_library(target)) {
            self.visit(target, depth + 1)?;
        }
        let appends = matches!(call.args.first(), Some(IdedExpr { expr: Expr::Ident(name), .. }) if name.starts_with('@'));
        if call.func_name != operators::ADD || appends {
            return call.args.iter_mut().try_for_each(|argument| self.visit(argument, depth + 1));
        }
        self.range_sums += usize::from(self.in_range);
        call.args.iter_mut().try_for_each(|argument| self.visit_owned(argument, depth))
    }

    /// What is copied where it stands.
    fn visit_owned(&mut self, node: &mut IdedExpr, depth: usize) -> Result<(), Fault> {
        // Two levels: the copy and what is copied.
        self.visit(node, depth + 2)?;
        if !matches!(node.expr, Expr::Literal(_)) {
            let id = node.id;
            let owned = CallExpr { func_name: OWN.to_owned(), target: None, args: vec![mem::take(node)] };
            *node = IdedExpr { id, expr: Expr::Call(owned) };
        }
        Ok(())
    }

    fn visit_comprehension(&mut self, one: &mut ComprehensionExpr, depth: usize) -> Result<(), Fault> {
        let in_range = mem::replace(&mut self.in_range, true);
        self.visit(&mut one.iter_range, depth + 1)?;
        self.in_range = in_range;
        self.visit(&mut one.accu_init, depth + 1)?;
        let before = self.declared.len();
        self.declared.extend([one.iter_var.clone(), one.accu_var.clone()]);
        self.declared.extend(one.iter_var2.clone());
        self.in_steps = true;
        for part in [&mut one.loop_cond, &mut one.loop_step, &mut one.result] {
            self.visit(part, depth + 1)?;
        }
        self.in_steps = false;
        self.declared.truncate(before);
        Ok(())
    }

    /// The evaluator compiles a regular expression each time it meets it.
    fn check_regex(&mut self, call: &CallExpr) -> Result<(), String> {
        self.regexes += 1;
        if self.in_steps || self.regexes > REGEXES_MAX {
            return Err(format!("matches() may be used {REGEXES_MAX} times, and not inside a comprehension"));
        }
        let Some(IdedExpr { expr: Expr::Literal(LiteralValue::String(pattern)), .. }) = call.args.last()
        else {
            return Err("the pattern of matches() must be written out".to_owned());
        };
        let built = regex::RegexBuilder::new(pattern.inner()).size_limit(REGEX_MAX_BYTES).build();
        match built {
            Ok(_) => Ok(()),
            Err(regex::Error::CompiledTooBig(_)) => Err("the pattern of matches() is too large".to_owned()),
            Err(_) => Err("the pattern of matches() is not a regular expression".to_owned()),
        }
    }
}
