//! Executors: the kinds of work that are built in, one file each. Stop 4 of a job's path; next: `jobs::outcome`.
//!
//! To add a kind: one file with an `Executor`, one line in `ExecutorTable::new`. Called by `engine::run_jobs`, which
//! keeps the time limit and the cancelling; an executor only works and says how it went. It writes to no table.

pub mod command;
pub mod email;
pub mod http;
pub mod sql;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::fields::Faults;
use crate::jobs::outcome::TryResult;
use crate::jobs::{Job, JobError};
use crate::operator::Operator;
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
    /// All built-in kinds, with what the operator's file gives them. `guard` is this program.
    pub fn new(
        client: GuardedClient,
        operator: &Arc<Operator>,
        guard: PathBuf,
        sql: sql::SqlExecutor,
    ) -> Self {
        let executors: Vec<Box<dyn Executor>> = vec![
            Box::new(http::HttpExecutor::new(client)),
            Box::new(command::CommandExecutor::new(operator.clone(), guard)),
            Box::new(sql),
            Box::new(email::EmailExecutor::new(operator.clone())),
        ];
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

/// The operator's file changed since the job was accepted.
fn refused(faults: Faults) -> TryResult {
    let text: Vec<String> =
        faults.into_vec().into_iter().map(|fault| format!("{} {}", fault.pointer, fault.detail)).collect();
    TryResult::Failed {
        error: JobError::new("invalid_input", text.join("; ")),
        retryable: false,
        retry_after: None,
    }
}

/// Bytes as text; of cut ones, the end of a character that was cut through is dropped.
fn text_of(bytes: &[u8], truncated: bool) -> Option<&str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) if truncated && error.error_len().is_none() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    }
}
