//! `ringback bench`: what this machine does with Ringback, and what it costs, against a bare loop in the same run.
//!
//! Starts everything itself: a fresh PostgreSQL and the service as a child process for each scenario (`site`), a load
//! (`load`), a receiver (`receiver`) and a worker (`worker`) in this process. `bench/README.md` says what the figures mean.
//! Everything stays on 127.0.0.1. Called by `cli`; talks to the service by HTTP only.
//!
//! Invariant: whatever ends it, no process and no file of it stays; what it found wrong makes the exit code 1.

mod api;
mod bare;
mod beside;
mod burden;
mod figures;
mod lease;
mod load;
mod marks;
mod measure;
mod meter;
mod others;
mod phase;
mod plot;
mod procs;
mod receiver;
mod replay;
mod report;
mod requests;
mod scenario;
mod site;
mod stats_store;
mod wire;
mod worker;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;

use self::figures::{Figures, Report, median};
use self::measure::Settings;
use self::procs::Machine;
use self::receiver::Receiver;
use self::scenario::{SCENARIOS, Scenario, Work};
use self::site::{Site, Source};
use super::serve::stop_signal;
use super::{Failure, output};

/// The yardstick runs in every run.
const YARDSTICK: &str = "bare";

/// What to measure.
#[derive(Debug, Args)]
pub struct Options {
    /// Which scenarios [default: all whose setup is short]; the bare loop is always measured
    #[arg(value_name = "SCENARIO", value_parser = PossibleValuesParser::new(SCENARIOS.iter().map(|one| one.name)))]
    scenarios: Vec<String>,
    /// How long each phase is
    #[arg(long, default_value_t = 20.0, value_name = "S", value_parser = seconds)]
    seconds: f64,
    /// Measure at this many items a second only [default: the top rate, then half of it]
    #[arg(long, value_name = "R", conflicts_with = "top", value_parser = rate)]
    rate: Option<f64>,
    /// Measure the top rate only
    #[arg(long)]
    top: bool,
    /// How many events or jobs wait in scenarios with a backlog [default: as the scenario says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20_000_000))]
    waiting: Option<u32>,
    /// Connections that call the API
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    callers: u16,
    /// Bytes of payload in each job
    #[arg(long, default_value_t = 1024, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    payload_bytes: u32,
    /// Measure everything so often, and tell the median run
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=25))]
    repeat: u8,
    /// JSON for machines
    #[arg(long)]
    json: bool,
    /// Write the report to this folder as well, as text, as JSON and as a picture (SVG)
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
    /// An empty database for the bench alone, which fills it [default: a fresh embedded one for each scenario]
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Where databases are made, on a real disk
    #[arg(long, default_value = ".ringback-bench", value_name = "FOLDER")]
    folder: PathBuf,
    /// Folder of initdb and postgres for the embedded database [default: found]
    #[arg(long, env = "RINGBACK_PG_BIN", value_name = "FOLDER")]
    pg_bin: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, String> {
    within(text, 0.5, 3600.0)
}

fn rate(text: &str) -> Result<f64, String> {
    within(text, 0.1, 1_000_000.0)
}

fn within(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "write a number".to_owned())?;
    if (least..=most).contains(&number) { Ok(number) } else { Err(format!("write {least} to {most}")) }
}

/// Measures, and prints what was found.
/// # Errors
/// Something could not be started, or the service lost, repeated or refused what it should not have.
pub async fn run(options: Options) -> Result<(), Failure> {
    let source = Source { database_url: options.database_url.clone(), pg_bin: options.pg_bin.clone() };
    let mut site = Site::new(source, &options.folder)?;
    let measured = tokio::select! {
        measured = measure_all(&options, &mut site) => measured,
        () = stop_signal() => Err(Failure { text: "interrupted".to_owned(), code: 1 }),
    };
    let cleaned = site.clean_up().await;
    let report = measured?;
    cleaned?;
    tell(&report, &options)
}

async fn measure_all(options: &Options, site: &mut Site) -> Result<Report, Failure> {
    let receiver = Receiver::start()
        .map_err(|error| Failure { text: format!("the receiver did not start: {error}"), code: 70 })?;
    let mut machine = Machine::describe(site.folder());
    let settings = Settings {
        duration: Duration::from_secs_f64(options.seconds),
        rate: options.rate,
        waiting: options.waiting.map(|waiting| waiting as usize),
        top_only: options.top,
        callers: usize::from(options.callers),
        payload_bytes: options.payload_bytes as usize,
    };
    let chosen = |one: &&Scenario| {
        one.name == YARDSTICK
            || (options.scenarios.is_empty() && !one.is_long)
            || options.scenarios.iter().any(|name| name == one.name)
    };
    let mut rows: Vec<Figures> = Vec::new();
    for scenario in SCENARIOS.iter().filter(chosen) {
        let mut runs: Vec<Vec<Figures>> = Vec::new();
        for number in 1..=options.repeat {
            output::note(&format!("{} ({number} of {}): {}", scenario.name, options.repeat, scenario.about));
            if let Work::Bare(client) = scenario.work {
                runs.push(vec![measure::bare(*scenario, client, settings, &receiver).await?]);
            } else {
                let (figures, version) = measure::service(*scenario, settings, &receiver, site).await?;
                machine.postgresql = version;
                runs.push(figures);
            }
        }
        rows.extend(medians(runs));
    }
    compare(&mut rows);
    Ok(Report {
        machine,
        seconds: options.seconds,
        callers: settings.callers,
        payload_bytes: settings.payload_bytes,
        median_of: usize::from(options.repeat),
        rows,
    })
}

/// One row for each mode.
fn medians(runs: Vec<Vec<Figures>>) -> Vec<Figures> {
    let modes = runs.first().map_or(0, Vec::len);
    (0..modes)
        .filter_map(|mode| median(runs.iter().filter_map(|run| run.get(mode).cloned()).collect()))
        .collect()
}

/// Sets every cost in relation to the bare loop's.
fn compare(rows: &mut [Figures]) {
    let yardstick = rows.iter().find(|row| row.scenario == YARDSTICK).and_then(|row| row.cpu.load);
    let Some(yardstick) = yardstick.filter(|cost| *cost > 0.0) else { return };
    for row in rows {
        let own = if row.scenario.starts_with(YARDSTICK) { row.cpu.load } else { row.cpu.both() };
        row.times_bare = own.map(|cost| cost / yardstick);
    }
}

fn tell(report: &Report, options: &Options) -> Result<(), Failure> {
    let text = report::text(report);
    let json = serde_json::to_string_pretty(report)
        .map_err(|error| Failure { text: error.to_string(), code: 70 })?;
    if let Some(folder) = &options.save {
        save(folder, report, &text, &json)
            .map_err(|error| Failure { text: format!("{}: {error}", folder.display()), code: 69 })?;
    }
    output::say(if options.json { &json } else { text.trim_end() });
    let faults: usize = report.rows.iter().map(|row| row.faults.len()).sum();
    if faults == 0 { Ok(()) } else { Err(Failure { text: format!("{faults} faults, see above"), code: 1 }) }
}

fn save(folder: &Path, report: &Report, text: &str, json: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let name = format!("{}-{}cores", report.machine.date, report.machine.cores);
    std::fs::write(folder.join(format!("{name}.txt")), text)?;
    std::fs::write(folder.join(format!("{name}.json")), format!("{json}\n"))?;
    std::fs::write(folder.join(format!("{name}.svg")), plot::svg(report))
}
