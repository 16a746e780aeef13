//! [pure] What the operator's file says of work: which programs, data sources and mail server jobs may use, and how fast
//! queues go.
//!
//! Called by `config`, which reads and checks it once, by `jobs` (is what a job asks for there?) and by `executors`. A
//! request can only name what stands here; it never brings a program, an address of a database or a server of its own.
//!
//! Invariant: an unknown key, or a value that makes no sense, ends the start with its place in the file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::secret::Secret;

/// All of it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Operator {
    /// `[commands.NAME]`.
    pub commands: BTreeMap<String, CommandSpec>,
    /// `[sources.NAME]`.
    pub sources: BTreeMap<String, SourceSpec>,
    /// `[smtp]`.
    pub smtp: Option<SmtpSpec>,
    /// `[queues.NAME]`.
    pub queues: BTreeMap<String, QueueSpec>,
}

/// A program that jobs may run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandSpec {
    /// Where it is; an absolute path.
    pub program: PathBuf,
    /// Its arguments; one that is `{name}` as a whole comes from the job's `input.args.name`.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its whole environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Where it runs; absent: an empty folder of its own, which goes with it.
    pub cwd: Option<PathBuf>,
    /// How long it may run, beside the job's own `timeout_s`, seconds.
    pub timeout_s: Option<f64>,
    /// So many bytes of stdout and of stderr are kept, each.
    #[serde(default = "output_max")]
    pub max_output: usize,
}

/// A database that jobs may ask.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSpec {
    /// Where it is.
    pub url: Secret<String>,
    /// In a read-only transaction.
    #[serde(default = "yes")]
    pub read_only: bool,
    /// Jobs may bring a statement of their own.
    #[serde(default)]
    pub allow_query: bool,
    /// So many rows are kept.
    #[serde(default = "rows_max")]
    pub max_rows: usize,
    /// So many bytes of rows are kept.
    #[serde(default = "bytes_max")]
    pub max_bytes: usize,
    /// PostgreSQL's `statement_timeout`, seconds.
    #[serde(default = "statement_timeout")]
    pub statement_timeout_s: f64,
    /// PostgreSQL's `lock_timeout`, seconds.
    #[serde(default = "lock_timeout")]
    pub lock_timeout_s: f64,
    /// Connections at most.
    #[serde(default = "connections")]
    pub connections: u32,
    /// The statements, by name.
    #[serde(default)]
    pub statements: BTreeMap<String, String>,
}

/// The server that sends mail.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmtpSpec {
    /// `smtp://`, `smtps://` or `smtp+starttls://`, with user and password where it wants them.
    pub url: Secret<String>,
    /// The sender of messages that name none.
    pub from: Option<String>,
}

/// How fast a queue goes, over all tenants and processes.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueSpec {
    /// So many of its jobs run at the same time.
    pub concurrency: Option<u32>,
    /// So many are handed out.
    pub rate_limit: Option<RateSpec>,
}

/// A rate.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateSpec {
    /// For each second.
    pub per_s: f64,
    /// At once; absent: what comes together in a second, at least one.
    pub burst: Option<u32>,
}

impl RateSpec {
    /// At once, as said or by default.
    pub fn burst(&self) -> u32 {
        self.burst.unwrap_or_else(|| self.per_s.ceil().clamp(1.0, 1e6) as u32)
    }
}

fn yes() -> bool {
    true
}
fn output_max() -> usize {
    64 * 1024
}
fn rows_max() -> usize {
    10_000
}
fn bytes_max() -> usize {
    200 * 1024
}
fn statement_timeout() -> f64 {
    30.0
}
fn lock_timeout() -> f64 {
    5.0
}
fn connections() -> u32 {
    4
}

/// The name between the braces of an argument that is a placeholder as a whole.
pub fn placeholder(arg: &str) -> Option<&str> {
    let name = arg.strip_prefix('{')?.strip_suffix('}')?;
    let fits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    fits.then_some(name)
}

impl Operator {
    /// What makes no sense: the place in the file, and what to write instead.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Faults::default();
        for (name, command) in &self.commands {
            command.check(&format!("[commands.{name}]"), &mut faults);
        }
        for (name, source) in &self.sources {
            source.check(&format!("[sources.{name}]"), &mut faults);
        }
        if let Some(smtp) = &self.smtp {
            let url = smtp.url.expose();
            let known =
                ["smtp://", "smtps://", "smtp+starttls://"].iter().any(|scheme| url.starts_with(scheme));
            let text =
                "url must begin with smtp://, smtps:// or smtp+starttls://, as in smtps://user:password@host";
            faults.check(known, "[smtp]", text);
        }
        for (name, queue) in &self.queues {
            queue.check(&format!("[queues.{name}]"), &mut faults);
        }
        faults.0
    }
}

#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn check(&mut self, fits: bool, at: &str, text: &str) {
        if !fits {
            self.0.push(format!("{at} {text}"));
        }
    }
}

fn is_wait(seconds: f64) -> bool {
    (0.001..=86_400.0).contains(&seconds)
}

impl CommandSpec {
    fn check(&self, at: &str, faults: &mut Faults) {
        let program = "program must be an absolute path, as in \"/usr/bin/convert\"";
        faults.check(self.program.is_absolute(), at, program);
        let cwd = self.cwd.as_ref().is_none_or(|cwd| cwd.is_absolute());
        faults.check(cwd, at, "cwd must be an absolute path");
        faults.check(self.timeout_s.is_none_or(is_wait), at, "timeout_s must be from 0.001 to 86400");
        let output = (1..=output_max()).contains(&self.max_output);
        faults.check(output, at, "max_output must be from 1 to 65536");
        // An argument in braces that is no placeholder is a slip of the pen; braces elsewhere are the program's own.
        let slip = |arg: &String| arg.starts_with('{') && arg.ends_with('}') && placeholder(arg).is_none();
        let text = "args: a placeholder is an argument of its own, \"{name}\" of letters, digits and '_'";
        faults.check(!self.args.iter().any(slip), at, text);
    }
}

impl SourceSpec {
    fn check(&self, at: &str, faults: &mut Faults) {
        let url = self.url.expose();
        let postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
        faults.check(
            postgres,
            at,
            "url must begin with postgres://, as in postgres://reader@host:5432/database",
        );
        faults.check(
            is_wait(self.statement_timeout_s),
            at,
            "statement_timeout_s must be from 0.001 to 86400",
        );
        faults.check(is_wait(self.lock_timeout_s), at, "lock_timeout_s must be from 0.001 to 86400");
        faults.check((1..=1_000_000).contains(&self.max_rows), at, "max_rows must be from 1 to 1000000");
        faults.check((1..=bytes_max()).contains(&self.max_bytes), at, "max_bytes must be from 1 to 204800");
        faults.check((1..=100).contains(&self.connections), at, "connections must be from 1 to 100");
        let asked = self.allow_query || !self.statements.is_empty();
        faults.check(asked, at, "has no statements; name some, or set allow_query = true");
    }
}

impl QueueSpec {
    fn check(&self, at: &str, faults: &mut Faults) {
        let text = "concurrency must be at least 1; to stop a queue, pause it";
        faults.check(self.concurrency != Some(0), at, text);
        let per_s = self.rate_limit.is_none_or(|rate| (0.001..=100_000.0).contains(&rate.per_s));
        faults.check(per_s, at, "rate_limit.per_s must be from 0.001 to 100000");
        let burst = self.rate_limit.is_none_or(|rate| (1..=1_000_000).contains(&rate.burst()));
        faults.check(burst, at, "rate_limit.burst must be from 1 to 1000000");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_is_an_argument_as_a_whole() {
        assert_eq!(placeholder("{size}"), Some("size"));
        for other in ["size", "x{size}", "{size}x", "{}", "{a b}", "{a}{b}"] {
            assert_eq!(placeholder(other), None, "{other}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_told_with_its_place() {
        let command: CommandSpec =
            toml::from_str("program = \"convert\"\nargs = [\"{a b}\"]").expect("parses");
        let source: SourceSpec = toml::from_str("url = \"mysql://x\"").expect("parses");
        let queue: QueueSpec = toml::from_str("concurrency = 0\nrate_limit = { per_s = 0 }").expect("parses");
        let operator = Operator {
            commands: [("thumb".to_owned(), command)].into(),
            sources: [("shop".to_owned(), source)].into(),
            smtp: Some(toml::from_str("url = \"http://x\"").expect("parses")),
            queues: [("mail".to_owned(), queue)].into(),
        };
        let faults = operator.faults();
        for place in [
            "[commands.thumb] program",
            "[commands.thumb] args",
            "[sources.shop] url",
            "no statements",
            "[smtp] url",
            "concurrency",
            "per_s",
        ] {
            assert!(faults.iter().any(|fault| fault.contains(place)), "{place}: {faults:?}");
        }
    }

    #[test]
    fn an_unknown_key_is_an_error_and_a_url_is_not_shown() {
        assert!(toml::from_str::<CommandSpec>("program = \"/x\"\nargz = []").is_err());
        let source: SourceSpec = toml::from_str("url = \"postgres://a:hidden@h/d\"").expect("parses");
        assert!(!format!("{source:?}").contains("hidden"));
    }
}
