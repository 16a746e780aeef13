//! Readings before and after: CPU by process, and PostgreSQL's counters.

use sqlx::postgres::PgConnection;

use super::procs;
use super::receiver;
use super::stats_store::{self, Counters};
use crate::cli::Failure;

/// Reads everything that counts up.
#[derive(Debug)]
pub(super) struct Meter {
    service: Option<u32>,
    postmaster: Option<u32>,
    connection: Option<PgConnection>,
    /// PostgreSQL's version.
    pub(super) version: String,
}

/// All counters at one moment; CPU in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reading {
    /// The service.
    pub(super) service: Option<f64>,
    /// PostgreSQL, all its processes.
    pub(super) postgres: Option<f64>,
    /// This process without the receiver.
    pub(super) load: Option<f64>,
    /// The receiver.
    pub(super) receiver: Option<f64>,
    /// PostgreSQL's own counters.
    pub(super) counters: Counters,
}

impl Meter {
    /// For this process alone.
    pub(super) fn alone() -> Self {
        Self { service: None, postmaster: None, connection: None, version: String::new() }
    }

    /// For the service and its database.
    pub(super) async fn of(service: u32, url: &str) -> Result<Self, Failure> {
        let (connection, version, backend) = stats_store::connect(url).await.map_err(refused)?;
        Ok(Self {
            service: Some(service),
            postmaster: procs::postmaster_of(backend),
            connection: Some(connection),
            version,
        })
    }

    /// Reads.
    pub(super) async fn read(&mut self) -> Result<Reading, Failure> {
        let counters = match &mut self.connection {
            Some(connection) => stats_store::read(connection).await.map_err(refused)?,
            None => Counters::default(),
        };
        let own = procs::own_cpu(receiver::THREAD);
        Ok(Reading {
            service: self.service.and_then(procs::cpu_of),
            postgres: self.postmaster.and_then(procs::cpu_of_family),
            load: own.map(|(all, receiver)| all - receiver),
            receiver: own.map(|(_, receiver)| receiver),
            counters,
        })
    }

    /// How many jobs the database holds.
    pub(super) async fn stored_jobs(&mut self) -> Result<i64, Failure> {
        match &mut self.connection {
            Some(connection) => stats_store::jobs(connection).await.map_err(refused),
            None => Ok(0),
        }
    }

    /// The most memory that the service ever had.
    pub(super) fn peak_memory(&self) -> Option<u64> {
        self.service.and_then(procs::peak_memory_of)
    }
}

fn refused(error: sqlx::Error) -> Failure {
    Failure { text: format!("the bench cannot ask its database: {error}"), code: 69 }
}
