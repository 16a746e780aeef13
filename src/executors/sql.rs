//! The `sql` kind: asks a database that the operator's file names, and keeps the rows.
//!
//! Each job in a transaction of its own, read-only unless the source says otherwise, with PostgreSQL's own limits on time and
//! locks. PostgreSQL itself turns values into JSON and parameters into the types that the statement wants of them, so every
//! type that it knows is welcome: the statement is prepared and executed with literals (`jobs::sql_input`). Connections are
//! wiped (`DISCARD ALL`) before another job has them. The transaction runs as a task of its own, which nobody drops halfway;
//! when its job is over before it, PostgreSQL is asked to stop the statement.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{
    AssertSqlSafe, Column, Connection as _, Either, Executor as _, PgExecutor, Row, SqlSafeStr, Statement,
};
use tokio::sync::{Semaphore, oneshot};

use super::{Executor, refused};
use crate::fields::Faults;
use crate::jobs::outcome::TryResult;
use crate::jobs::sql_input::{self, Ask};
use crate::jobs::{Job, JobError};
use crate::operator::{Operator, SourceSpec};
use crate::supervisor::Tasks;

/// A function of PostgreSQL takes at most this many arguments, and rows are made by one.
const COLUMNS_MAX: usize = 100;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// Which database a connection sees, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    system: String,
    database: String,
    user: String,
}

impl Identity {
    /// Of this connection.
    /// # Errors
    /// PostgreSQL's.
    pub async fn of(db: impl PgExecutor<'_>) -> Result<Self, sqlx::Error> {
        let row = sqlx::query(
            "-- executors::sql::identity
            SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()), current_database()::text, current_user::text",
        )
        .persistent(false)
        .fetch_one(db)
        .await?;
        Ok(Self { system: row.try_get(0)?, database: row.try_get(1)?, user: row.try_get(2)? })
    }
}

/// Asks databases.
#[derive(Debug)]
pub struct SqlExecutor {
    operator: Arc<Operator>,
    own: Identity,
    tasks: Tasks,
    places: Mutex<HashMap<String, Place>>,
}

/// A source's connections, and whose turn it is to have one.
#[derive(Debug, Clone)]
struct Place {
    pool: PgPool,
    turns: Arc<Semaphore>,
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
    Input(String),
}

impl From<sqlx::Error> for SqlError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl SqlExecutor {
    /// For the sources of this file. `own`: the service's database, which no job sees with the service's rights.
    pub fn new(operator: Arc<Operator>, own: Identity, tasks: Tasks) -> Self {
        Self { operator, own, tasks, places: Mutex::default() }
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
        let place = match self.place(&input.source, source) {
            Ok(place) => place,
            Err(error) => return judged(&error),
        };
        // To wait for a turn is no failure and costs no try; the job's own timeout bounds it.
        let Ok(turn) = place.turns.acquire_owned().await else {
            return failed("source_unreachable", "the service is stopping".to_owned(), true);
        };
        let order = Order {
            pool: place.pool,
            read_only: source.read_only,
            statement_timeout_s: source.statement_timeout_s.min(job.timeout.as_secs_f64()),
            lock_timeout_s: source.lock_timeout_s,
            max_rows: source.max_rows,
            max_bytes: source.max_bytes,
            sql: sql.trim_end_matches(|c: char| c.is_whitespace() || c == ';').to_owned(),
            params: input.params,
            own: self.own.clone(),
        };
        let (job_is_over, _job_goes_on) = oneshot::channel();
        let done = self.tasks.run(async move {
            let done = order.carry_out(job_is_over).await;
            drop(turn);
            done
        });
        match done.await {
            Ok(Ok(result)) => {
                TryResult::Succeeded(to_raw_value(&result).unwrap_or_else(|_| RawValue::NULL.to_owned()))
            }
            Ok(Err(SqlError::Input(text))) => failed("invalid_input", text, false),
            Ok(Err(SqlError::Database(error))) => judged(&error),
            Err(lost) => failed("sql", lost.to_string(), true),
        }
    }

    fn place(&self, name: &str, source: &SourceSpec) -> Result<Place, sqlx::Error> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.get(name) {
            return Ok(place.clone());
        }
        let options = PgConnectOptions::from_str(source.url.expose())?.application_name("ringback sql job");
        let pool = PgPoolOptions::new()
            // One more, to ask for the end of a statement.
            .max_connections(source.connections + 1)
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
        let place = Place { pool, turns: Arc::new(Semaphore::new(source.connections as usize)) };
        places.insert(name.to_owned(), place.clone());
        Ok(place)
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

/// A statement with all that it needs, so that it can be carried out whatever becomes of its job.
struct Order {
    pool: PgPool,
    read_only: bool,
    statement_timeout_s: f64,
    lock_timeout_s: f64,
    max_rows: usize,
    max_bytes: usize,
    sql: String,
    params: Vec<Box<RawValue>>,
    own: Identity,
}

impl Order {
    async fn carry_out(&self, mut job_is_over: oneshot::Sender<()>) -> Result<SqlResult, SqlError> {
        let begin = if self.read_only { "BEGIN READ ONLY" } else { "BEGIN" };
        let mut tx = self.pool.begin_with(begin).await?;
        if Identity::of(&mut *tx).await? == self.own {
            let text =
                "the source is the service's own database with its own rights; give it a role of its own";
            return Err(SqlError::Input(text.to_owned()));
        }
        let pid: i32 = sqlx::query_scalar("SELECT pg_catalog.pg_backend_pid()")
            .persistent(false)
            .fetch_one(&mut *tx)
            .await?;
        let result = {
            let mut asked = std::pin::pin!(self.ask(&mut tx));
            tokio::select! {
                result = &mut asked => result,
                () = job_is_over.closed() => {
                    let stop = sqlx::query("SELECT pg_catalog.pg_cancel_backend($1)").persistent(false).bind(pid);
                    if let Err(error) = stop.execute(&self.pool).await {
                        tracing::warn!(%error, "a statement cannot be stopped; its timeout will end it");
                    }
                    asked.await
                }
            }
        }?;
        tx.commit().await?;
        Ok(result)
    }

    async fn ask(&self, connection: &mut PgConnection) -> Result<SqlResult, SqlError> {
        let limits = format!(
            "SET LOCAL statement_timeout = '{}ms'; SET LOCAL lock_timeout = '{}ms'; SET LOCAL standard_conforming_strings = on",
            (self.statement_timeout_s * 1000.0).ceil(),
            (self.lock_timeout_s * 1000.0).ceil()
        );
        sqlx::raw_sql(AssertSqlSafe(limits)).execute(&mut *connection).await?;
        // The extended protocol takes one statement and no second one, whatever the text holds.
        let described = connection.prepare(AssertSqlSafe(self.sql.clone()).into_sql_str()).await?;
        let columns: Vec<String> =
            described.columns().iter().map(|column| column.name().to_owned()).collect();
        if columns.len() > COLUMNS_MAX {
            let text = format!("the statement has {} columns; {COLUMNS_MAX} are the most", columns.len());
            return Err(SqlError::Input(text));
        }
        let wrapped = wrap(&self.sql, columns.len(), self.max_rows, self.max_bytes);
        connection.prepare(AssertSqlSafe(wrapped.clone()).into_sql_str()).await?;
        let prepare = format!("PREPARE ringback_job AS {wrapped}");
        sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *connection).await?;
        let types: Vec<String> = sqlx::query_scalar(
            "SELECT parameter_types::text[] FROM pg_catalog.pg_prepared_statements WHERE name = 'ringback_job'",
        )
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?;
        let execute = execute_text(&types, &self.params).map_err(SqlError::Input)?;
        let mut result = SqlResult { columns, rows: Vec::new(), row_count: 0, truncated: false };
        let mut found = sqlx::raw_sql(AssertSqlSafe(execute)).fetch_many(&mut *connection);
        while let Some(one) = found.next().await {
            match one? {
                Either::Left(done) if result.columns.is_empty() => result.row_count += done.rows_affected(),
                Either::Left(_) => {}
                Either::Right(row) => match row.try_get::<Option<String>, _>(0)? {
                    Some(text) if result.rows.len() < self.max_rows => {
                        let row = RawValue::from_string(text);
                        result.rows.push(row.map_err(|error| SqlError::Input(error.to_string()))?);
                        result.row_count += 1;
                    }
                    _ => result.truncated = true,
                },
            }
        }
        Ok(result)
    }
}

/// The statement so that each row comes as one JSON list, written by PostgreSQL, as long as all of them fit into `max_bytes`
/// and `max_rows`; the first that does not comes as NULL, or as one too many. A statement without rows stays as it is.
fn wrap(sql: &str, columns: usize, max_rows: usize, max_bytes: usize) -> String {
    if columns == 0 {
        return sql.to_owned();
    }
    let names: Vec<String> = (1..=columns).map(|at| format!("c{at}")).collect();
    let names = names.join(", ");
    format!(
        "WITH ringback_rows ({names}) AS (
{sql}
), ringback_texts AS (
  SELECT pg_catalog.json_build_array({names})::text AS one FROM ringback_rows LIMIT {}
), ringback_sums AS (
  SELECT one, pg_catalog.sum(pg_catalog.octet_length(one)) OVER (ROWS UNBOUNDED PRECEDING) AS bytes FROM ringback_texts
)
SELECT CASE WHEN bytes <= {max_bytes} THEN one END FROM ringback_sums WHERE bytes - pg_catalog.octet_length(one) <= {max_bytes}",
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
        assert_eq!(wrap("UPDATE t SET a = 1", 0, 10, 100), "UPDATE t SET a = 1");
        let wrapped = wrap("SELECT 1, 2 -- both", 2, 10, 100);
        assert!(
            wrapped.contains("(c1, c2) AS (\nSELECT 1, 2 -- both\n)") && wrapped.contains("LIMIT 11"),
            "{wrapped}"
        );
    }
}
