//! Executors: the kinds of work that are built in, one file each. Stop 4 of a job's path; next: `jobs::outcome`.
//!
//! To add a kind: one file with an `Executor`, one line in `ExecutorTable::new`. Called by `engine::run_jobs`, which
//! keeps the time limit and the cancelling; an executor only works and says how it went. It writes to no table.

pub mod http;

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::jobs::Job;
use crate::jobs::outcome::TryResult;
use crate::outbound::GuardedClient;

/// Runs one kind of job.
pub trait Executor: Send + Sync + 'static {
    /// The kind's name.
    fn kind(&self) -> &'static str;
    /// Runs one try. Dropping the future stops it.
    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, TryResult>;
}

/// Who runs what.
#[derive(Clone)]
pub struct ExecutorTable(Arc<HashMap<&'static str, Box<dyn Executor>>>);

impl std::fmt::Debug for ExecutorTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl ExecutorTable {
    /// All built-in kinds.
    pub fn new(client: GuardedClient) -> Self {
        let executors: Vec<Box<dyn Executor>> = vec![Box::new(http::HttpExecutor::new(client))];
        Self(Arc::new(executors.into_iter().map(|executor| (executor.kind(), executor)).collect()))
    }

    /// The kinds that this table can run.
    pub fn kinds(&self) -> Vec<&'static str> {
        self.0.keys().copied().collect()
    }

    /// The executor of a kind.
    pub fn get(&self, kind: &str) -> Option<&dyn Executor> {
        self.0.get(kind).map(Box::as_ref)
    }
}
