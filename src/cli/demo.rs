//! `ringback demo`: the newcomer's first minute. The service, a receiver and a slow web service in this process; one
//! job goes in, its signed callback comes out, and each step is shown as it happens.
//!
//! `stage` is the user's side (the web service and the receiver), `story` what happens in which order, `screen` how it
//! looks, `by_hand` what to type next. Called by `cli`. The service is the real one, `app::App`, and is spoken to over
//! its public API only; nothing here has a short cut past it.
//!
//! Invariant: whatever happens, the service drains and the embedded database is stopped before the verb ends.

mod by_hand;
mod screen;
mod stage;
mod story;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use clap::Args;
use ipnet::{IpNet, Ipv4Net};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::by_hand::ByHand;
use self::screen::Screen;
use self::stage::Stage;
use self::story::Story;
use super::client::Client;
use super::output::Style;
use super::serve::{ended, stop_signal};
use super::{Failure, output};
use crate::app::App;
use crate::config::{Config, Database, Roles, Settings};
use crate::db::doctor as facts;
use crate::keyfile;

/// A start that was interrupted may take this long to get to a point from which it can be undone.
const START_UNDONE_WITHIN: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  ringback demo                           From POST to the verified callback, then the end
  ringback demo --keep                    The same, and it stays for curl commands of yours
  ringback demo --data-dir /tmp/ringback  In a folder that can be thrown away
  RINGBACK_LOG=debug ringback demo        With the service's log

The service listens on a free port of 127.0.0.1 unless --listen says otherwise, runs all roles, and may call \
127.0.0.0/8. Only warnings are logged unless --log says otherwise.

Exit codes: 0 the callback arrived and its signature was verified, 1 a step did not happen, 69 no database.";

/// What the verb takes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Demo {
    /// Leave service and receiver running afterwards, until Ctrl-C
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Runs the demo.
/// # Errors
/// The service did not start, a step did not happen, or a signal came before the end.
pub async fn run(demo: Demo, style: Style) -> Result<(), Failure> {
    let config = settings(demo.settings)?;
    let (config_key, data_dir) = (config.api_key.clone(), config.data_dir.clone());
    let stop = CancellationToken::new();
    let mut signals = JoinSet::new();
    signals.spawn({
        let stop = stop.clone();
        async move {
            stop_signal().await;
            stop.cancel();
        }
    });
    output::say(&format!(
        "{}: the call returns immediately; we ring you back.\n",
        style.strong(concat!("Ringback ", env!("CARGO_PKG_VERSION")))
    ));
    let began = Instant::now();
    let app = start(config, &stop).await?;
    let screen = Screen::begin(style, began.elapsed());
    let key = match (config_key, &app.key_file) {
        (Some(key), _) => Ok((key, None)),
        (None, Some(file)) => keyfile::read(file)
            .map(|key| (key, Some(data_dir.join("api-key"))))
            .map_err(|error| Failure::setting(format!("cannot read {}: {error}", file.display()))),
        (None, None) => {
            Err(Failure::setting("RINGBACK_API_KEY is not set; the demo needs it to call the API"))
        }
    };
    let story = match key {
        Ok((key, key_file)) => prepare(&app, screen, key, key_file).await,
        Err(failure) => Err(failure),
    };
    match story {
        Ok(story) => play(app, story, demo.keep, &stop).await,
        Err(failure) => {
            app.run(std::future::ready(())).await;
            Err(failure)
        }
    }
}

/// The settings of a demo: what was said, and what it cannot do without.
fn settings(settings: Settings) -> Result<Config, Failure> {
    let mut config = super::resolve(settings.quiet().on_a_free_port())?;
    config.outbound.allow_networks.push(IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)));
    config.roles = Roles { api: true, dispatcher: true, executor: true, scheduler: true };
    if matches!(config.database, Database::External(_)) && config.api_key.is_none() {
        return Err(Failure::setting(
            "RINGBACK_API_KEY is not set; with an external database the demo needs it to call the API",
        ));
    }
    Ok(config)
}

/// Builds the service. A signal in the meantime undoes the start.
async fn start(config: Config, stop: &CancellationToken) -> Result<App, Failure> {
    let mut building = pin!(App::build(config));
    tokio::select! {
        built = &mut building => return Ok(built?),
        () = stop.cancelled() => {}
    }
    // Dropped halfway, the start would leave its database running.
    if let Ok(Ok(app)) = tokio::time::timeout(START_UNDONE_WITHIN, building).await {
        app.run(std::future::ready(())).await;
    }
    Err(Failure::no("stopped before the service was ready"))
}

/// Sets the stage: everything that can be known before the first step.
async fn prepare(
    app: &App,
    screen: Screen,
    key: crate::secret::Secret<String>,
    key_file: Option<PathBuf>,
) -> Result<Story, Failure> {
    let db = &app.shared.db;
    let refused =
        |error: crate::db::StoreError| Failure::unavailable(format!("the database refused: {error}"));
    let server = facts::server(db).await.map_err(refused)?;
    let nodes = facts::nodes(db).await.map_err(refused)?;
    if let Some(other) = nodes.iter().find(|node| node.is_alive && node.id != app.shared.node_id()) {
        return Err(Failure::no(format!(
            "another Ringback ({}) works on this database and would take part of the demo's work, with settings of its \
             own. Stop it, or give the demo a folder of its own: ringback demo --data-dir .ringback-demo",
            other.name
        )));
    }
    let kind = match app.shared.config.database {
        Database::Embedded => "embedded PostgreSQL",
        Database::External(_) => "PostgreSQL",
    };
    let api = reachable(app.address);
    let client =
        Client::new(&api, Some(key)).map_err(|error| Failure { text: error.to_string(), code: 70 })?;
    let stage = Stage::open().map_err(|error| Failure::no(format!("cannot open a receiver: {error}")))?;
    screen.ready(&api, &format!("{kind} {}", server.version));
    let by_hand = ByHand { api, own: stage.url(""), key_file };
    Ok(Story { client, stage, screen, by_hand })
}

/// The story and the service side by side: when one ends, so does the other.
async fn play(app: App, mut story: Story, keep: bool, stop: &CancellationToken) -> Result<(), Failure> {
    let (over, gone) = (CancellationToken::new(), CancellationToken::new());
    let telling = async {
        let told = tokio::select! {
            told = story.tell() => told,
            () = stop.cancelled() => Err(Failure::no("stopped before the end")),
            () = gone.cancelled() => Err(Failure::no("the service ended before the demo did")),
        };
        if let Ok(secret) = &told {
            story.by_hand.show(keep, story.screen.style);
            if keep {
                tokio::select! {
                    () = story.watch(secret) => {}
                    () = stop.cancelled() => output::say(""),
                    () = gone.cancelled() => {}
                }
            }
        }
        over.cancel();
        told.map(drop)
    };
    let serving = async {
        let ending = app.run(over.cancelled()).await;
        gone.cancel();
        ending
    };
    let (told, ending) = tokio::join!(telling, serving);
    story.stage.close().await;
    ended(ending)?;
    told
}

/// The URL under which this machine reaches what listens on `address`.
pub(super) fn reachable(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_listens_everywhere_is_called_on_this_machine() {
        let url = |text: &str| reachable(text.parse().expect("address"));
        assert_eq!(url("0.0.0.0:80"), "http://127.0.0.1:80");
        assert_eq!(url("[::]:8080"), "http://[::1]:8080");
        assert_eq!(url("192.0.2.7:1"), "http://192.0.2.7:1");
    }
}
