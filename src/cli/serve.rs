//! `ringback serve`: the service, until a signal stops it.

use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, output};
use crate::app::App;
use crate::config::Config;
use crate::supervisor::Ending;

/// Runs the service.
/// # Errors
/// It did not start, or a loop of it gave up.
pub async fn run(config: Config) -> Result<(), Failure> {
    // From here on a signal is heard, also while the database starts.
    let stop = stop_signal();
    let app = App::build(config).await?;
    if let (Some(key), Some(file)) = (&app.fresh_key, &app.key_file) {
        output::say(&format!(
            "The operator's API key, shown this once and kept in {}:\n{}",
            file.display(),
            key.expose()
        ));
    }
    output::say(&format!("Ringback {} listens on http://{}", env!("CARGO_PKG_VERSION"), app.address));
    ended(app.run(stop).await)
}

/// What the end of the service means to the shell.
/// # Errors
/// A loop gave up.
pub fn ended(ending: Ending) -> Result<(), Failure> {
    match ending {
        Ending::Stopped => Ok(()),
        Ending::GaveUp(name) => Err(Failure {
            text: format!("the task {name} died again and again; the log has the reason"),
            code: 70,
        }),
    }
}

/// Completes at SIGTERM or SIGINT; listens from the moment of the call.
pub fn stop_signal() -> impl Future<Output = ()> {
    let listening = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async move {
        let (Ok(mut terminate), Ok(mut interrupt)) = listening else {
            tracing::error!("cannot listen for signals; only kill -9 will stop this process");
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}
