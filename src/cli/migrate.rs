//! `ringback migrate`: the schema up to date, and nothing else.

use super::{Failure, output};
use crate::app::{StartError, open_db};
use crate::config::Config;
use crate::db::migrate::migrate;

/// Migrates.
/// # Errors
/// The database is not there, or its schema is not one that this build can bring up to date.
pub async fn run(config: Config) -> Result<(), Failure> {
    let open = open_db(&config).await?;
    let result = migrate(&open.db).await;
    open.close().await;
    match result.map_err(StartError::from)? {
        0 => output::say("The schema is up to date."),
        applied => output::say(&format!("{applied} migrations applied; the schema is up to date.")),
    }
    Ok(())
}
