//! `ringback doctor`: what is wrong with this machine, these settings and this database, and how to fix each.
//!
//! `machine` looks at files, limits and the address; `database` judges what `db::doctor` tells; `report` shows it.
//! Called by `cli`. A server that it started itself is stopped again; one that ran before is left running.
//!
//! Invariant: nothing is changed. It migrates nothing, creates no cluster and no key, and writes no row.

mod database;
mod machine;
mod report;

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};

use self::report::{Check, Report};
use super::Failure;
use super::output::Style;
use crate::config::{Config, Database, Settings};
use crate::db::Db;
use crate::db::embedded::{self, Embedded, EmbeddedOptions};

/// A database that does not answer in this time is not there.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// One asks, and one is spare.
const CONNECTIONS: u32 = 2;

const EXAMPLES: &str = "\
Examples:
  ringback doctor                         Beside a running service, or before the first start
  ringback doctor --json | jq '.[] | select(.status != \"ok\")'
  DATABASE_URL=postgres://… ringback doctor

It changes nothing: it neither migrates nor makes a database, a folder or a key.

Exit codes: 0 nothing failed (there may be warnings), 1 something failed, 69 no database can be reached.";

/// What the verb takes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Doctor {
    /// A list of {check, status, finding, fix} for machines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Examines everything.
/// # Errors
/// Something failed.
pub async fn run(doctor: Doctor, style: Style) -> Result<(), Failure> {
    let mut report = Report::open(style, doctor.json);
    let is_reached = match super::resolve(doctor.settings.quiet()) {
        Ok(config) => {
            report.add(Check::ok("settings", settings_found(&config)));
            machine::examine(&config, &mut report).await;
            examine_database(&config, &mut report).await
        }
        Err(failure) => {
            report.add(Check::fail(
                "settings",
                failure.text,
                "correct it; ringback serve --help lists the settings",
            ));
            true
        }
    };
    let failed = report.end();
    if !is_reached {
        return Err(Failure::unavailable("no database can be reached"));
    }
    match failed {
        0 => Ok(()),
        1 => Err(Failure::no("one check failed")),
        failed => Err(Failure::no(format!("{failed} checks failed"))),
    }
}

fn settings_found(config: &Config) -> String {
    let database = match config.database {
        Database::Embedded => "embedded database",
        Database::External(_) => "database of DATABASE_URL",
    };
    format!("readable; {database}, data folder {}", config.data_dir.display())
}

/// `false`: there is no database to be reached.
async fn examine_database(config: &Config, report: &mut Report) -> bool {
    match &config.database {
        Database::External(url) => match connect(url.expose()).await {
            Ok(db) => {
                database::examine(&db, config, report).await;
                db.close().await;
                true
            }
            Err(reason) => {
                report.add(Check::fail(
                    "database",
                    format!("DATABASE_URL cannot be reached: {reason}"),
                    "start the server, or correct the URL: postgres://user:password@host:5432/database",
                ));
                false
            }
        },
        Database::Embedded => examine_embedded(config, report).await,
    }
}

async fn connect(url: &str) -> Result<Db, String> {
    let options = PgConnectOptions::from_str(url).map_err(|error| error.to_string())?;
    try_once(&options).await?;
    Ok(Db::new(options, CONNECTIONS))
}

/// The pool would only say that it waited in vain; one connection says why.
async fn try_once(options: &PgConnectOptions) -> Result<(), String> {
    let connection = tokio::time::timeout(CONNECT_WITHIN, options.connect())
        .await
        .map_err(|_| format!("no answer within {} s", CONNECT_WITHIN.as_secs()))?
        .map_err(|error| error.to_string())?;
    // It has answered; how it ends does not matter.
    let _ = connection.close().await;
    Ok(())
}

async fn examine_embedded(config: &Config, report: &mut Report) -> bool {
    let options = EmbeddedOptions {
        data_dir: config.data_dir.clone(),
        pg_bin: config.pg_bin.clone(),
        search_path: config.search_path.clone(),
        max_connections: config.db_connections + 20,
        durable: config.durable,
    };
    let look = match embedded::look(&options).await {
        Ok(look) => look,
        Err(error) => {
            let fix = "install PostgreSQL as said above, or give DATABASE_URL or RINGBACK_PG_BIN";
            report.add(Check::fail("PostgreSQL programs", error.to_string(), fix));
            return false;
        }
    };
    report.add(Check::ok("PostgreSQL programs", format!("{} in {}", look.version, look.programs.display())));
    if look.cluster.is_none() {
        report.add(Check::ok("database", "none yet; the first ringback serve or demo makes it"));
        return true;
    }
    let server = match Embedded::start(&options).await {
        Ok(server) => server,
        Err(error) => {
            report.add(Check::fail(
                "database",
                error.to_string(),
                "see above; ringback serve needs it as well",
            ));
            return false;
        }
    };
    let is_reached = examine_started(&server, config, report).await;
    if !server.adopted()
        && let Err(error) = server.stop().await
    {
        report.add(Check::warn("database", error.to_string(), "the next start adopts it"));
    }
    is_reached
}

async fn examine_started(server: &Embedded, config: &Config, report: &mut Report) -> bool {
    let options = server.connect_options("ringback");
    if let Err(reason) = try_once(&options).await {
        report.add(Check::fail(
            "database",
            format!("the embedded server runs, but not the database ringback: {reason}"),
            "ringback migrate makes it",
        ));
        return false;
    }
    let how = if server.adopted() { "ran already" } else { "started for this look" };
    report.add(Check::ok("database", format!("{} ({how})", server.cluster_dir().display())));
    let db = Db::new(options, CONNECTIONS);
    database::examine(&db, config, report).await;
    db.close().await;
    true
}
