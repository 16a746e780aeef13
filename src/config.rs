//! Settings: flags, `RINGBACK_*` variables and `ringback.toml`, in that order of precedence, checked once.
//!
//! Called by `cli` at the start; nothing else reads the environment or the file. `Settings` is what was said, every
//! field optional and unchecked; `Config` is what holds, every field present and checked.
//!
//! Invariant: an unknown key or a value that makes no sense ends the start with a sentence that says what to write.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use serde::Deserialize;

use crate::operator::{CommandSpec, Operator, QueueSpec, SmtpSpec, SourceSpec};
use crate::secret::Secret;
use crate::target::OutboundPolicy;

/// A setting that cannot be used: says which, and what to write instead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

fn wrong<T>(text: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(text.into()))
}

/// What was said on the command line, in the environment, or in the file.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// An external PostgreSQL 14 or newer; without it an embedded one lives in the data folder
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    /// Embedded database and generated keys [default: ./.ringback]
    #[arg(long, env = "RINGBACK_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// The operator's file [default: ./ringback.toml if it is there]
    #[arg(long, env = "RINGBACK_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Address of the API [default: 127.0.0.1:8080]
    #[arg(long, env = "RINGBACK_LISTEN", value_name = "ADDRESS")]
    listen: Option<String>,
    /// The first admin key: rbk_ and 32 or more letters or digits [default: generated, kept in the data folder]
    #[arg(long, env = "RINGBACK_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// Base64 of 32 bytes; encrypts secrets at rest [default: generated with the embedded database]
    #[arg(long, env = "RINGBACK_MASTER_KEY", hide_env_values = true, value_name = "BASE64")]
    master_key: Option<String>,
    /// Networks that callbacks may reach although they are not public, as CIDRs with commas between
    #[arg(long, env = "RINGBACK_ALLOW_NETWORKS", value_name = "CIDRS")]
    allow_networks: Option<String>,
    /// Allow http:// callback URLs everywhere
    #[arg(long, env = "RINGBACK_ALLOW_HTTP", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    allow_http: Option<bool>,
    /// Folder of initdb and postgres for the embedded database [default: found]
    #[arg(long, env = "RINGBACK_PG_BIN", value_name = "FOLDER")]
    pg_bin: Option<PathBuf>,
    /// Log filter, as in "info" or "ringback=debug,warn" [default: info]
    #[arg(long, env = "RINGBACK_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// text, or json for one object a line [default: text]
    #[arg(long, env = "RINGBACK_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<String>,
    /// How long finished jobs, events and attempts are kept [default: 14d]
    #[arg(long, env = "RINGBACK_RETENTION", value_name = "DURATION")]
    retention: Option<String>,
    /// How long a stop waits for what is in flight [default: 25s]
    #[arg(long, env = "RINGBACK_SHUTDOWN_GRACE", value_name = "DURATION")]
    shutdown_grace: Option<String>,
    /// Which parts run in this process [default: api,dispatcher,executor,scheduler]
    #[arg(long, env = "RINGBACK_ROLES", value_name = "ROLES")]
    roles: Option<String>,
    /// Connections to PostgreSQL at most [default: 12]
    #[arg(long, env = "RINGBACK_DB_CONNECTIONS", value_name = "N")]
    db_connections: Option<u32>,
    /// Built-in jobs that run at the same time in this process [default: 256]
    #[arg(long, env = "RINGBACK_EXECUTOR_CONCURRENCY", value_name = "N")]
    executor_concurrency: Option<usize>,
    /// Deliveries on the wire at the same time from this process [default: 1024]
    #[arg(long, env = "RINGBACK_DISPATCHER_CONCURRENCY", value_name = "N")]
    dispatcher_concurrency: Option<usize>,
    #[arg(skip)]
    commands: Option<BTreeMap<String, CommandSpec>>,
    #[arg(skip)]
    sources: Option<BTreeMap<String, SourceSpec>>,
    #[arg(skip)]
    smtp: Option<SmtpSpec>,
    #[arg(skip)]
    queues: Option<BTreeMap<String, QueueSpec>>,
}

/// Which parts of the service run in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "four independent switches are what it is")]
pub struct Roles {
    /// Serves the HTTP API.
    pub api: bool,
    /// Sends deliveries.
    pub dispatcher: bool,
    /// Runs built-in jobs.
    pub executor: bool,
    /// Periodic work: due jobs, expired leases, retention.
    pub scheduler: bool,
}

/// Where PostgreSQL is.
#[derive(Debug, Clone)]
pub enum Database {
    /// Somebody else's.
    External(Secret<String>),
    /// Ours, in the data folder.
    Embedded,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The settings that hold.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where PostgreSQL is.
    pub database: Database,
    /// The data folder.
    pub data_dir: PathBuf,
    /// Where the API listens.
    pub listen: SocketAddr,
    /// The operator's key, if it was given.
    pub api_key: Option<Secret<String>>,
    /// The master key, if it was given.
    pub master_key: Option<Secret<String>>,
    /// Which addresses callbacks may reach.
    pub outbound: OutboundPolicy,
    /// PostgreSQL's programs, if they were named.
    pub pg_bin: Option<PathBuf>,
    /// `PATH`, to look for PostgreSQL's programs.
    pub search_path: Option<OsString>,
    /// Log filter.
    pub log: String,
    /// Log format.
    pub log_format: LogFormat,
    /// How long history is kept.
    pub retention: Duration,
    /// How long a stop waits.
    pub shutdown_grace: Duration,
    /// What runs here.
    pub roles: Roles,
    /// Connections at most.
    pub db_connections: u32,
    /// Built-in jobs at a time.
    pub executor_concurrency: usize,
    /// Deliveries at a time.
    pub dispatcher_concurrency: usize,
    /// What jobs may use, and how fast queues go: in the file only.
    pub operator: Arc<Operator>,
    /// This program, which stands between a `command` job and the service.
    pub own_program: PathBuf,
    /// `false` only for tests: an embedded database that does not survive a power cut.
    pub durable: bool,
}

impl Settings {
    /// With logs of warnings only, unless someone said otherwise: for verbs that show their own progress.
    #[must_use]
    pub fn quiet(self) -> Self {
        Self { log: self.log.or_else(|| Some("warn".to_owned())), ..self }
    }

    /// On a free port of this machine, unless an address was said.
    #[must_use]
    pub fn on_a_free_port(self) -> Self {
        Self { listen: self.listen.or_else(|| Some("127.0.0.1:0".to_owned())), ..self }
    }

    /// Reads the file, fills the gaps with the defaults, and checks everything.
    /// # Errors
    /// [`ConfigError`] names the setting and says what to write.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let said = match read_file(self.config.as_deref())? {
            Some(file) => self.or(file),
            None => self,
        };
        said.check()
    }

    fn or(self, file: Self) -> Self {
        macro_rules! first {
            ($($field:ident),*) => { Self { $($field: self.$field.or(file.$field)),* } };
        }
        first!(
            database_url,
            data_dir,
            config,
            listen,
            api_key,
            master_key,
            allow_networks,
            allow_http,
            pg_bin,
            log,
            log_format,
            retention,
            shutdown_grace,
            roles,
            db_connections,
            executor_concurrency,
            dispatcher_concurrency,
            commands,
            sources,
            smtp,
            queues
        )
    }

    fn check(self) -> Result<Config, ConfigError> {
        let database_url = self.database_url.filter(|url| !url.is_empty());
        if let Some(url) = &database_url
            && !(url.starts_with("postgres://") || url.starts_with("postgresql://"))
        {
            return wrong(
                "DATABASE_URL must begin with postgres://, as in postgres://user:password@host:5432/database",
            );
        }
        let operator = Operator {
            commands: self.commands.unwrap_or_default(),
            sources: self.sources.unwrap_or_default(),
            smtp: self.smtp,
            queues: self.queues.unwrap_or_default(),
        };
        if let Some(fault) = operator.faults().into_iter().next() {
            return wrong(format!("ringback.toml: {fault}"));
        }
        if let Some(name) = own_database(&operator, database_url.as_deref()) {
            return wrong(format!(
                "ringback.toml: [sources.{name}] url is the service's own database with its own rights; make a role that can only read what jobs may see"
            ));
        }
        Ok(Config {
            operator: Arc::new(operator),
            own_program: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("ringback")),
            database: database_url.map_or(Database::Embedded, |url| Database::External(Secret::new(url))),
            data_dir: self.data_dir.unwrap_or_else(|| PathBuf::from("./.ringback")),
            listen: parse_listen(self.listen.as_deref().unwrap_or("127.0.0.1:8080"))?,
            api_key: self.api_key.filter(|key| !key.is_empty()).map(parse_api_key).transpose()?,
            master_key: self.master_key.filter(|key| !key.is_empty()).map(Secret::new),
            outbound: OutboundPolicy {
                allow_networks: parse_networks(self.allow_networks.as_deref().unwrap_or_default())?,
                allow_http: self.allow_http.unwrap_or(false),
            },
            pg_bin: self.pg_bin,
            #[expect(clippy::disallowed_methods, reason = "the place where the environment is read")]
            search_path: std::env::var_os("PATH"),
            log: self.log.unwrap_or_else(|| "info".to_owned()),
            log_format: match self.log_format.as_deref() {
                None | Some("text") => LogFormat::Text,
                Some("json") => LogFormat::Json,
                Some(other) => {
                    return wrong(format!("RINGBACK_LOG_FORMAT is \"{other}\"; write text or json"));
                }
            },
            retention: parse_duration("RINGBACK_RETENTION", self.retention.as_deref().unwrap_or("14d"))?
                .max(Duration::from_hours(1)),
            shutdown_grace: parse_duration(
                "RINGBACK_SHUTDOWN_GRACE",
                self.shutdown_grace.as_deref().unwrap_or("25s"),
            )?,
            roles: parse_roles(self.roles.as_deref())?,
            db_connections: between("RINGBACK_DB_CONNECTIONS", self.db_connections.unwrap_or(12), 4, 500)?,
            executor_concurrency: between(
                "RINGBACK_EXECUTOR_CONCURRENCY",
                self.executor_concurrency.unwrap_or(256),
                1,
                10_000,
            )?,
            dispatcher_concurrency: between(
                "RINGBACK_DISPATCHER_CONCURRENCY",
                self.dispatcher_concurrency.unwrap_or(1024),
                1,
                50_000,
            )?,
            durable: true,
        })
    }
}

/// The PATH of this process and nothing else, with all defaults: for tests and the demo, which change fields.
impl Config {
    /// All defaults, whatever environment and file say.
    /// # Errors
    /// None in practice: the defaults are checked like everything else.
    pub fn defaults() -> Result<Self, ConfigError> {
        Settings::default().check()
    }
}

fn read_file(named: Option<&Path>) -> Result<Option<Settings>, ConfigError> {
    let path = named.unwrap_or(Path::new("./ringback.toml"));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => return Ok(None),
        Err(error) => return wrong(format!("cannot read {}: {error}", path.display())),
    };
    match toml::from_str(&text) {
        Ok(settings) => Ok(Some(settings)),
        Err(error) => wrong(format!("{}: {}", path.display(), error.to_string().trim_end())),
    }
}

/// A source that would give jobs the service's own rights on its own database.
fn own_database<'a>(operator: &'a Operator, database_url: Option<&str>) -> Option<&'a str> {
    let place = |text: &str| {
        let url = url::Url::parse(text).ok()?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let database = url.path().trim_matches('/').to_owned();
        Some((host, url.port().unwrap_or(5432), database, url.username().to_owned()))
    };
    let own = place(database_url?)?;
    let is_own = |source: &SourceSpec| place(source.url.expose()) == Some(own.clone());
    operator.sources.iter().find(|(_, source)| is_own(source)).map(|(name, _)| name.as_str())
}

fn parse_listen(text: &str) -> Result<SocketAddr, ConfigError> {
    use std::net::ToSocketAddrs;
    text.to_socket_addrs().ok().and_then(|mut addresses| addresses.next()).map_or_else(
        || wrong(format!("RINGBACK_LISTEN is \"{text}\"; write an address and a port, as in 127.0.0.1:8080")),
        Ok,
    )
}

fn parse_api_key(key: String) -> Result<Secret<String>, ConfigError> {
    let fits = key
        .strip_prefix("rbk_")
        .is_some_and(|rest| rest.len() >= 32 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    if fits {
        Ok(Secret::new(key))
    } else {
        wrong(
            "RINGBACK_API_KEY must be rbk_ and at least 32 letters or digits; make one with: echo rbk_$(openssl rand -hex 20)",
        )
    }
}

fn parse_networks(text: &str) -> Result<Vec<IpNet>, ConfigError> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| {
        part.parse::<IpNet>().or_else(|_| {
            wrong(format!("RINGBACK_ALLOW_NETWORKS: \"{part}\" is no network; write CIDRs, as in 127.0.0.0/8,::1/128"))
        })
    }).collect()
}

fn parse_duration(name: &str, text: &str) -> Result<Duration, ConfigError> {
    humantime::parse_duration(text)
        .or_else(|_| wrong(format!("{name} is \"{text}\"; write a duration, as in 30s, 12h or 14d")))
}

fn between<T: PartialOrd + std::fmt::Display>(
    name: &str,
    value: T,
    least: T,
    most: T,
) -> Result<T, ConfigError> {
    if value < least || value > most {
        return wrong(format!("{name} is {value}; write a number from {least} to {most}"));
    }
    Ok(value)
}

fn parse_roles(text: Option<&str>) -> Result<Roles, ConfigError> {
    let Some(text) = text else {
        return Ok(Roles { api: true, dispatcher: true, executor: true, scheduler: true });
    };
    let mut roles = Roles { api: false, dispatcher: false, executor: false, scheduler: false };
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part {
            "api" => roles.api = true,
            "dispatcher" => roles.dispatcher = true,
            "executor" => roles.executor = true,
            "scheduler" => roles.scheduler = true,
            other => {
                return wrong(format!(
                    "RINGBACK_ROLES: \"{other}\" is no role; write some of api,dispatcher,executor,scheduler"
                ));
            }
        }
    }
    if roles == (Roles { api: false, dispatcher: false, executor: false, scheduler: false }) {
        return wrong("RINGBACK_ROLES is empty; write some of api,dispatcher,executor,scheduler");
    }
    Ok(roles)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut Settings)) -> Result<Config, String> {
        let mut settings = Settings::default();
        change(&mut settings);
        settings.check().map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let config = check(|_| ()).expect("defaults");
        assert_eq!(config.listen, "127.0.0.1:8080".parse().expect("address"));
        assert_eq!(config.retention, Duration::from_hours(14 * 24));
        assert_eq!(config.shutdown_grace, Duration::from_secs(25));
        assert!(!config.outbound.allow_http && config.outbound.allow_networks.is_empty());
    }

    #[test]
    fn a_wrong_value_is_answered_with_what_to_write() {
        type Change = fn(&mut Settings);
        let cases: [(Change, &str); 5] = [
            (|s| s.listen = Some("8080".into()), "127.0.0.1:8080"),
            (|s| s.api_key = Some("secret".into()), "rbk_"),
            (|s| s.allow_networks = Some("10.0.0.0".into()), "CIDR"),
            (|s| s.roles = Some("worker".into()), "executor"),
            (|s| s.retention = Some("two weeks".into()), "14d"),
        ];
        for (change, wanted) in cases {
            let error = check(change).expect_err("refused");
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn an_unknown_key_in_the_file_is_an_error() {
        let error = toml::from_str::<Settings>("lisen = \"127.0.0.1:1\"").expect_err("refused").to_string();
        assert!(error.contains("lisen"), "{error}");
    }

    #[test]
    fn a_flag_goes_before_the_file() {
        let file: Settings = toml::from_str("listen = \"127.0.0.1:1\"\nlog = \"debug\"").expect("file");
        let said = Settings { listen: Some("127.0.0.1:2".into()), ..Settings::default() }.or(file);
        assert_eq!((said.listen.as_deref(), said.log.as_deref()), (Some("127.0.0.1:2"), Some("debug")));
    }
}
