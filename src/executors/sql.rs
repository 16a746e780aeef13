//! The `sql` kind: asks a database that the operator's file names, and keeps the rows.
//!
//! Each job in a transaction of its own, read-only unless the source says otherwise, with PostgreSQL's own limits on time and
//! locks. PostgreSQL itself turns values into JSON and parameters into the types that the statement wants of them, so every
//! type that it knows is welcome: the statement is prepared and executed with literals (`jobs::sql_input`). Connections are
//! wiped (`DISCARD ALL`) before another job has them.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgTransaction};
use sqlx::{AssertSqlSafe, Column, Connection as _, Either, Executor as _, Row, SqlSafeStr, Statement};

use super::{Executor, refused};
use crate::fields::Faults;
use crate::jobs::outcome::TryResult;
use crate::jobs::sql_input::{self, Ask, SqlInput};
use crate::jobs::{Job, JobError};
use crate::operator::{Operator, SourceSpec};

/// A function of PostgreSQL takes at most this many arguments, and rows are made by one.
const COLUMNS_MAX: usize = 100;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// Asks databases.
#[derive(Debug)]
pub struct SqlExecutor {
    operator: Arc<Operator>,
    pools: Mutex<HashMap<String, PgPool>>,
}

#[derive(Serialize)]
struct SqlResult {
    columns: Vec<String>,
    rows: Vec<Box<RawValue>>,
    row_count: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

/// Why a statement gave no rows.
enum SqlError {
    Database(sqlx::Error),
    Params(String),
}

impl From<sqlx::Error> for SqlError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl SqlExecutor {
    /// For the sources of this file.
    pub fn new(operator: Arc<Operator>) -> Self {
        Self { operator, pools: Mutex::default() }
    }

    async fn call(&self, job: &Job) -> TryResult {
        let mut faults = Faults::default();
        let input = sql_input::parse("/input", &job.input, Some(&self.operator.sources), &mut faults);
        let Some(input) = input.filter(|_| faults.is_empty()) else { return refused(faults) };
        let Some(source) = self.operator.sources.get(&input.source) else { return refused(faults) };
        let sql = match &input.ask {
            Ask::Query(query) => query,
            Ask::Statement(name) => match source.statements.get(name) {
                Some(sql) => sql,
                None => return refused(faults),
            },
        };
        let asked = match self.pool(&input.source, source) {
            Ok(pool) => ask(&pool, source, sql, &input).await,
            Err(error) => Err(error.into()),
        };
        match asked {
            Ok(result) => {
                TryResult::Succeeded(to_raw_value(&result).unwrap_or_else(|_| RawValue::NULL.to_owned()))
            }
            Err(SqlError::Params(text)) => failed("invalid_input", text, false),
            Err(SqlError::Database(error)) => judged(&error),
        }
    }

    fn pool(&self, name: &str, source: &SourceSpec) -> Result<PgPool, sqlx::Error> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(name) {
            return Ok(pool.clone());
        }
        let options = PgConnectOptions::from_str(source.url.expose())?.application_name("ringback sql job");
        let pool = PgPoolOptions::new()
            .max_connections(source.connections)
            .min_connections(0)
            .idle_timeout(IDLE_TIMEOUT)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // What a statement of a job set in its session must not meet the next job.
            .after_release(|connection, _| {
                Box::pin(async move {
                    connection.clear_cached_statements().await?;
                    sqlx::raw_sql("DISCARD ALL").execute(&mut *connection).await?;
                    Ok(true)
                })
            })
            .connect_lazy_with(options);
        pools.insert(name.to_owned(), pool.clone());
        Ok(pool)
    }
}

impl Executor for SqlExecutor {
    fn kind(&self) -> &'static str {
        "sql"
    }
    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, TryResult> {
        Box::pin(self.call(job))
    }
}

async fn ask(pool: &PgPool, source: &SourceSpec, sql: &str, input: &SqlInput) -> Result<SqlResult, SqlError> {
    let begin = if source.read_only { "BEGIN READ ONLY" } else { "BEGIN" };
    let mut tx: PgTransaction<'_> = pool.begin_with(begin).await?;
    let limits = format!(
        "SET LOCAL statement_timeout = '{}ms'; SET LOCAL lock_timeout = '{}ms'; SET LOCAL standard_conforming_strings = on",
        (source.statement_timeout_s * 1000.0).ceil(),
        (source.lock_timeout_s * 1000.0).ceil()
    );
    sqlx::raw_sql(AssertSqlSafe(limits)).execute(&mut *tx).await?;
    let sql = sql.trim_end_matches(|c: char| c.is_whitespace() || c == ';');
    // The extended protocol takes one statement and no second one, whatever the text holds.
    let described = (&mut *tx).prepare(AssertSqlSafe(sql.to_owned()).into_sql_str()).await?;
    let columns: Vec<String> = described.columns().iter().map(|column| column.name().to_owned()).collect();
    if columns.len() > COLUMNS_MAX {
        return Err(SqlError::Params(format!(
            "the statement has {} columns; {COLUMNS_MAX} are the most",
            columns.len()
        )));
    }
    let wrapped = wrap(sql, columns.len(), source.max_rows);
    (&mut *tx).prepare(AssertSqlSafe(wrapped.clone()).into_sql_str()).await?;
    sqlx::raw_sql(AssertSqlSafe(format!("PREPARE ringback_job AS {wrapped}"))).execute(&mut *tx).await?;
    let types: Vec<String> = sqlx::query_scalar(
        "SELECT parameter_types::text[] FROM pg_catalog.pg_prepared_statements WHERE name = 'ringback_job'",
    )
    .persistent(false)
    .fetch_one(&mut *tx)
    .await?;
    let execute = execute_text(&types, &input.params).map_err(SqlError::Params)?;
    let mut result = SqlResult { columns, rows: Vec::new(), row_count: 0, truncated: false };
    let mut bytes = 0;
    {
        let mut found = sqlx::raw_sql(AssertSqlSafe(execute)).fetch_many(&mut *tx);
        while let Some(one) = found.next().await {
            match one? {
                Either::Left(done) if result.columns.is_empty() => result.row_count += done.rows_affected(),
                Either::Left(_) => {}
                Either::Right(row) => {
                    let text: String = row.try_get(0)?;
                    bytes += text.len();
                    result.truncated |= result.rows.len() == source.max_rows || bytes > source.max_bytes;
                    if !result.truncated {
                        let row = RawValue::from_string(text)
                            .map_err(|error| SqlError::Params(error.to_string()))?;
                        result.rows.push(row);
                    }
                }
            }
        }
    }
    if !result.columns.is_empty() {
        result.row_count = result.rows.len() as u64;
    }
    tx.commit().await?;
    Ok(result)
}

/// The statement so that each row comes as one JSON list, written by PostgreSQL; one that gives no rows stays as it is.
fn wrap(sql: &str, columns: usize, max_rows: usize) -> String {
    if columns == 0 {
        return sql.to_owned();
    }
    let names: Vec<String> = (1..=columns).map(|at| format!("c{at}")).collect();
    let names = names.join(", ");
    format!(
        "WITH ringback_rows ({names}) AS (\n{sql}\n) SELECT pg_catalog.json_build_array({names})::text FROM ringback_rows LIMIT {}",
        max_rows + 1
    )
}

fn execute_text(types: &[String], params: &[Box<RawValue>]) -> Result<String, String> {
    if types.len() != params.len() {
        return Err(format!(
            "/input/params has {} values; the statement wants {}",
            params.len(),
            types.len()
        ));
    }
    if types.is_empty() {
        return Ok("EXECUTE ringback_job".to_owned());
    }
    let mut literals = Vec::with_capacity(types.len());
    for (at, (kind, raw)) in types.iter().zip(params).enumerate() {
        let literal = sql_input::literal(raw, kind.ends_with("[]"));
        literals.push(literal.map_err(|text| format!("/input/params/{at}: {text}"))?);
    }
    Ok(format!("EXECUTE ringback_job({})", literals.join(", ")))
}

/// Whether another try is of use: the classes of SQLSTATE (PostgreSQL, appendix A) for connections, resources, conflicts
/// and limits pass; what is wrong with the statement, its rights or its data does not.
fn judged(error: &sqlx::Error) -> TryResult {
    let Some(database) = error.as_database_error() else {
        return failed("source_unreachable", format!("the source cannot be reached: {error}"), true);
    };
    let state = database.code().unwrap_or_default().into_owned();
    let passes = matches!(state.get(..2), Some("08" | "40" | "53" | "55" | "57" | "58"));
    failed("sql", format!("SQLSTATE {state}: {}", database.message()), passes)
}

fn failed(code: &str, text: String, retryable: bool) -> TryResult {
    TryResult::Failed { error: JobError::new(code, text), retryable, retry_after: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_as_lists_and_one_more_than_is_kept() {
        assert_eq!(wrap("UPDATE t SET a = 1", 0, 10), "UPDATE t SET a = 1");
        let wrapped = wrap("SELECT 1, 2 -- both", 2, 10);
        assert!(
            wrapped.contains("(c1, c2) AS (\nSELECT 1, 2 -- both\n)") && wrapped.ends_with("LIMIT 11"),
            "{wrapped}"
        );
    }
}
