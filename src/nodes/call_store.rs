//! The SQL of messages between nodes: `NOTIFY` and `LISTEN` on one channel.
//!
//! Called by `engine::tell_nodes` and `engine::hear_nodes`. Knows no word of what is told. A message may be lost, and
//! behind a pooler in transaction mode all are: who depends on them polls as well.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgListener;

use crate::db::{Db, StoreError};

const CHANNEL: &str = "ringback";
/// A connection over which nothing came for so long is asked whether it still lives.
const QUIET_MAX: Duration = Duration::from_secs(20);
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Tells all nodes, this one included. A statement of its own that does not wait for the disk: at its commit it holds a
/// lock that all other notifying commits of the server wait for.
/// # Errors
/// [`StoreError`].
pub async fn tell(db: &Db, message: &str) -> Result<(), StoreError> {
    sqlx::query("-- nodes::call_store::tell\nSELECT pg_notify($1, $2)")
        .bind(CHANNEL)
        .bind(message)
        .execute(db.relaxed())
        .await?;
    Ok(())
}

/// A connection that listens.
#[derive(Debug)]
pub struct Ear {
    listener: PgListener,
    pool: PgPool,
}

impl Ear {
    /// Opens it. What is told from then on is heard.
    /// # Errors
    /// [`StoreError`].
    pub async fn open(db: &Db) -> Result<Self, StoreError> {
        let pool = db.lone_connection();
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(Self { listener, pool })
    }

    /// The next message. Nothing is lost when this future is dropped.
    /// # Errors
    /// [`StoreError`]: the connection is gone, and messages may have been missed; open another one.
    pub async fn next(&mut self) -> Result<String, StoreError> {
        let gone = || StoreError::from(sqlx::Error::WorkerCrashed);
        loop {
            match tokio::time::timeout(QUIET_MAX, self.listener.try_recv()).await {
                Ok(Ok(Some(message))) => return Ok(message.payload().to_owned()),
                Ok(Ok(None)) => return Err(gone()),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    let asked =
                        sqlx::query("-- nodes::call_store::next\nSELECT 1").execute(&mut self.listener);
                    tokio::time::timeout(ANSWER_MAX, asked).await.map_err(|_| gone())??;
                }
            }
        }
    }

    /// Closes it.
    pub async fn close(self) {
        drop(self.listener);
        if tokio::time::timeout(ANSWER_MAX, self.pool.close()).await.is_err() {
            tracing::debug!("the listening connection did not close in time");
        }
    }
}
