//! Logs: text for people, JSON on request. Bodies, secrets and addresses of people never go in.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::config::{Config, LogFormat};

/// Starts writing logs to the standard error. A second call changes nothing.
/// # Errors
/// The filter cannot be read.
pub fn start(config: &Config) -> Result<(), String> {
    // What these two tell at info is of no use to an operator; a filter that names them is still obeyed.
    let filter =
        EnvFilter::try_new(format!("sqlx=warn,actix_server=warn,{}", config.log)).map_err(|error| {
            format!(
                "RINGBACK_LOG is \"{}\" ({error}); write a filter, as in info or ringback=debug,warn",
                config.log
            )
        })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE);
    // The tests start many services in one process; the first one's logger serves all.
    let _ = match config.log_format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => {
            builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).compact().try_init()
        }
    };
    Ok(())
}
