//! Looks at what an embedded PostgreSQL would be made of, and touches nothing: no folder, no lock, no server.
//!
//! Called by `cli::doctor` before it decides whether there is a server to start.

use std::path::PathBuf;

use super::error::{EmbeddedError, io};
use super::find::find;
use super::place::pointer;
use super::{EmbeddedOptions, Settings};

/// What is there.
#[derive(Debug, Clone)]
pub struct Look {
    /// The cluster's data directory, if one was made already.
    pub cluster: Option<PathBuf>,
    /// The folder of the programs that would run it.
    pub programs: PathBuf,
    /// Their version, as in `15.18`.
    pub version: String,
}

/// Finds the cluster and the programs for it.
/// # Errors
/// There are no programs, or none of the cluster's version.
pub async fn look(options: &EmbeddedOptions) -> Result<Look, EmbeddedError> {
    let base = pointer(&options.data_dir)?.unwrap_or_else(|| options.data_dir.join("postgres"));
    let pgdata = base.join("data");
    let file = pgdata.join("PG_VERSION");
    let needed = match std::fs::read_to_string(&file) {
        Ok(text) => text.trim().parse().ok(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(io("read", &file)(error)),
    };
    let settings = Settings {
        pg_bin: options.pg_bin.clone(),
        search_path: options.search_path.clone(),
        max_connections: options.max_connections,
        durable: options.durable,
    };
    let binaries = find(&settings, None, &pgdata, needed).await?;
    Ok(Look {
        cluster: needed.map(|_: u32| pgdata),
        programs: binaries.dir,
        version: binaries.version.to_string(),
    })
}
