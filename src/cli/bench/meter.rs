//! Readings before and after: CPU by process, and PostgreSQL's counters.

use std::time::Instant;

use sqlx::postgres::PgConnection;

use super::procs;
use super::receiver;
use super::stats_store::{self, Counters, Ends};
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
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// The service.
    pub(super) service: Option<f64>,
    /// PostgreSQL, all its processes.
    pub(super) postgres: Option<f64>,
    /// This process without the receiver.
    pub(super) load: Option<f64>,
    /// The receiver.
    pub(super) receiver: Option<f64>,
    /// The whole machine.
    pub(super) machine: Option<f64>,
    /// When it was read.
    pub(super) at: Instant,
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
            machine: procs::cpu_of_machine(),
            at: Instant::now(),
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

    /// How the jobs ended that the database holds.
    pub(super) async fn ends(&mut self) -> Result<Ends, Failure> {
        match &mut self.connection {
            Some(connection) => stats_store::ends(connection).await.map_err(refused),
            None => Ok(Ends::default()),
        }
    }

    /// Are there events that have no position in the log yet?
    pub(super) async fn has_new_events(&mut self) -> Result<bool, Failure> {
        match &mut self.connection {
            Some(connection) => stats_store::has_new_events(connection).await.map_err(refused),
            None => Ok(false),
        }
    }

    /// How many jobs wait to be handed out.
    pub(super) async fn waiting_jobs(&mut self) -> Result<i64, Failure> {
        match &mut self.connection {
            Some(connection) => stats_store::waiting_jobs(connection).await.map_err(refused),
            None => Ok(0),
        }
    }

    /// How many deliveries are not at their end.
    pub(super) async fn waiting_deliveries(&mut self) -> Result<i64, Failure> {
        match &mut self.connection {
            Some(connection) => stats_store::waiting_deliveries(connection).await.map_err(refused),
            None => Ok(0),
        }
    }

    /// The memory that the service has now.
    pub(super) fn memory(&self) -> Option<u64> {
        self.service.and_then(procs::memory_of)
    }

    /// The most memory that the service ever had.
    pub(super) fn peak_memory(&self) -> Option<u64> {
        self.service.and_then(procs::peak_memory_of)
    }
}

impl Reading {
    /// Cores that others than we kept busy since an earlier reading.
    pub(super) fn others_cores(&self, before: &Self) -> Option<f64> {
        let ours = |reading: &Self| {
            Some(
                reading.load?
                    + reading.receiver?
                    + reading.service.unwrap_or(0.0)
                    + reading.postgres.unwrap_or(0.0),
            )
        };
        let (all, ours) = (self.machine? - before.machine?, ours(self)? - ours(before)?);
        let elapsed = (self.at - before.at).as_secs_f64();
        (elapsed > 0.0).then(|| ((all - ours) / elapsed).max(0.0))
    }
}

pub(super) fn refused(error: sqlx::Error) -> Failure {
    Failure { text: format!("the bench cannot ask its database: {error}"), code: 69 }
}
