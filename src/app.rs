//! The composition root: settings → database, keys, client → `Shared` → loops and server.
//!
//! Called by `cli::serve`, `cli::demo` and the tests. What fails here ends the start with a sentence that says what to do.
//!
//! Order of stopping: no new requests → no new claims → what is in flight finishes within the grace or is handed back →
//! results are written → the pool closes → the embedded database stops.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::config::{Config, Database};
use crate::courtesy::Courtesy;
use crate::db::batch::Batcher;
use crate::db::embedded::{Embedded, EmbeddedError, EmbeddedOptions};
use crate::db::gate::Gate;
use crate::db::migrate::{MigrationError, migrate};
use crate::db::{Db, StoreError, partitions};
use crate::deliveries::hand_off::HandOff;
use crate::endpoints::book::EndpointBook;
use crate::events::bells::Bells;
use crate::executors::ExecutorTable;
use crate::executors::sql::{Identity, SqlExecutor};
use crate::idempotency::Running;
use crate::jobs::queue_limit::{QueueLimit, QueueLimits, QueueRate};
use crate::jobs::waiters::Waiters;
use crate::nodes::Node;
use crate::operator::Operator;
use crate::outbound::{ClientError, GuardedClient, SystemDns};
use crate::secret::{SealError, Sealer, Secret};
use crate::secrets::SecretCache;
use crate::shared::{RunningJobs, Shared};
use crate::supervisor::{Ending, Stage, Stop, Supervisor};
use crate::tenants::{self, key_hash};
use crate::wakeups::{Here, Wakeups};
use crate::workers::parcel::Receipts;
use crate::workers::sightings::Sightings;
use crate::workers::waiting::WaitingWorkers;
use crate::{engine, http, keyfile};

/// The most that goes in one commit: beyond a hundred rows a batch hardly gets cheaper, but those that come meanwhile wait
/// longer for it.
const BATCH_MAX: usize = 128;
/// Requests with many jobs or events that are written at a time, in all and of one tenant.
const BULK_MAX: usize = 4;
const BULK_OF_TENANT_MAX: usize = 2;
const HAND_OFF_MAX: usize = 64;
/// A database that starts at the same time as we do is waited for so long.
const REACH_FOR: Duration = Duration::from_secs(8);

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The embedded database.
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    /// The URL of the database.
    #[error("DATABASE_URL cannot be read: {0}")]
    DatabaseUrl(sqlx::Error),
    /// The database that was named does not answer.
    #[error("cannot reach the database {0}: {1}; is DATABASE_URL right, and does PostgreSQL run there?")]
    Unreachable(String, sqlx::Error),
    /// The schema, or the connection to begin with.
    #[error(transparent)]
    Migration(#[from] MigrationError),
    /// A statement.
    #[error("the database refused: {0}")]
    Store(#[from] StoreError),
    /// The keys.
    #[error("{0}")]
    Keys(String),
    /// The master key.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The client for callbacks.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The address.
    #[error("cannot listen on {0}: {1}; choose another one with RINGBACK_LISTEN")]
    Listen(SocketAddr, std::io::Error),
}

impl StartError {
    /// From `sysexits.h`: 69 something needed is not there, 78 a setting is wrong, 70 anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Embedded(_)
            | Self::Unreachable(..)
            | Self::Migration(MigrationError::Database(_))
            | Self::Store(StoreError::Unavailable(_)) => 69,
            Self::DatabaseUrl(_) | Self::Keys(_) | Self::Seal(_) | Self::Listen(..) => 78,
            Self::Migration(_) | Self::Store(_) | Self::Client(_) => 70,
        }
    }
}

/// The database, and the server if it is ours.
#[derive(Debug)]
pub struct OpenDb {
    /// The pool.
    pub db: Db,
    /// Our own server.
    pub embedded: Option<Arc<Embedded>>,
}

/// The service, ready to run.
#[derive(Debug)]
pub struct App {
    /// What the edges and loops share.
    pub shared: Arc<Shared>,
    /// The address that it listens on.
    pub address: SocketAddr,
    /// The operator's key, if it was made just now.
    pub fresh_key: Option<Secret<String>>,
    /// Where that key is kept.
    pub key_file: Option<std::path::PathBuf>,
    supervisor: Supervisor,
    embedded: Option<Arc<Embedded>>,
}

/// Opens the database that the settings name, starting ours if they name none.
/// # Errors
/// [`StartError`].
pub async fn open_db(config: &Config) -> Result<OpenDb, StartError> {
    let Database::External(url) = &config.database else {
        let options = EmbeddedOptions {
            data_dir: config.data_dir.clone(),
            pg_bin: config.pg_bin.clone(),
            search_path: config.search_path.clone(),
            // The pool, the presence connection, and a few for a look with psql.
            max_connections: config.db_connections + 20,
            durable: config.durable,
        };
        let embedded = Embedded::start(&options).await?;
        tracing::info!(version = embedded.version(), folder = %embedded.cluster_dir().display(), adopted = embedded.adopted(),
            "no DATABASE_URL: the embedded PostgreSQL {} in {}", embedded.version(), embedded.cluster_dir().display());
        embedded.ensure_database("ringback").await?;
        let db = Db::new(embedded.connect_options("ringback"), config.db_connections);
        return Ok(OpenDb { db, embedded: Some(Arc::new(embedded)) });
    };
    let options = PgConnectOptions::from_str(url.expose()).map_err(StartError::DatabaseUrl)?;
    reach(&options).await?;
    Ok(OpenDb { db: Db::new(options, config.db_connections), embedded: None })
}

/// Waits for a database that is just starting, and says what is wrong with one that does not answer.
async fn reach(options: &PgConnectOptions) -> Result<(), StartError> {
    let give_up = tokio::time::Instant::now() + REACH_FOR;
    loop {
        let error = match options.connect().await {
            Ok(connection) => {
                // Whether it closes well tells nothing.
                drop(connection.close().await);
                return Ok(());
            }
            Err(error) => error,
        };
        // Nobody listens yet, or the server says that it is starting; a wrong password will not get better.
        let starting = matches!(&error, sqlx::Error::Io(_))
            || error
                .as_database_error()
                .and_then(sqlx::error::DatabaseError::code)
                .is_some_and(|code| code == "57P03");
        if !starting || tokio::time::Instant::now() > give_up {
            let name = format!(
                "{}:{}/{}",
                options.get_host(),
                options.get_port(),
                options.get_database().unwrap_or_default()
            );
            return Err(StartError::Unreachable(name, error));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

impl OpenDb {
    /// Closes the pool and stops our own server, unless another process uses it.
    pub async fn close(self) {
        self.db.close().await;
        close_embedded(self.embedded).await;
    }
}

async fn close_embedded(embedded: Option<Arc<Embedded>>) {
    let Some(embedded) = embedded.and_then(|embedded| Arc::try_unwrap(embedded).ok()) else { return };
    if let Err(error) = embedded.stop().await {
        tracing::warn!(%error, "the embedded PostgreSQL was not stopped; the next start adopts it");
    }
}

impl App {
    /// Builds everything; nothing runs yet but the database.
    /// # Errors
    /// [`StartError`].
    pub async fn build(config: Config) -> Result<Self, StartError> {
        let listener =
            TcpListener::bind(config.listen).map_err(|error| StartError::Listen(config.listen, error))?;
        let address = listener.local_addr().map_err(|error| StartError::Listen(config.listen, error))?;
        let open = open_db(&config).await?;
        match Self::build_on(config, &open, address).await {
            Ok((shared, mut supervisor, fresh_key, key_file)) => {
                engine::start(&mut supervisor, &shared);
                if shared.config.roles.api {
                    serve(&mut supervisor, listener, &shared);
                }
                if let Some(embedded) = &open.embedded {
                    keep_running(&mut supervisor, embedded.clone());
                }
                Ok(Self { shared, address, fresh_key, key_file, supervisor, embedded: open.embedded })
            }
            Err(error) => {
                open.close().await;
                Err(error)
            }
        }
    }

    async fn build_on(config: Config, open: &OpenDb, address: SocketAddr) -> Result<Built, StartError> {
        let db = open.db.clone();
        let applied = migrate(&db).await?;
        if applied > 0 {
            tracing::info!(applied, "{applied} migrations applied");
        }
        partitions::make_ahead(&db).await?;
        let sealer = open_sealer(&config, &db).await?;
        let (fresh_key, key_file) = operator_key(&config, &db).await?;
        let client = GuardedClient::new(config.outbound.clone(), Arc::new(SystemDns::default()))?;
        let supervisor = Supervisor::new();
        let own = Identity::of(db.pool()).await.map_err(crate::db::StoreError::from)?;
        let sql = SqlExecutor::new(config.operator.clone(), own, supervisor.tasks());
        let shared = Arc::new(Shared {
            address,
            sealer,
            node: Node::fresh(config.roles.dispatcher),
            tasks: supervisor.tasks(),
            stop: supervisor.work_stop(),
            requests: tokio_util::task::TaskTracker::new(),
            executors: ExecutorTable::new(client.clone(), &config.operator, config.own_program.clone(), sql),
            queue_limits: queue_limits(&config.operator),
            client,
            accept: Batcher::new(BATCH_MAX),
            publish: Batcher::new(BATCH_MAX),
            finish: Batcher::new(BATCH_MAX),
            record: Batcher::new(BATCH_MAX),
            courtesy: Courtesy::default(),
            bulk: Gate::new(BULK_MAX, BULK_OF_TENANT_MAX),
            hand_off: HandOff::new(HAND_OFF_MAX),
            waiters: Waiters::default(),
            waiting_workers: WaitingWorkers::default(),
            receipts: Receipts::default(),
            sightings: Sightings::default(),
            event_bells: Bells::default(),
            running_keys: Running::default(),
            wakeups: Wakeups::new(Here {
                dispatcher: config.roles.dispatcher,
                scheduler: config.roles.scheduler,
            }),
            keys: RwLock::new(HashMap::new()),
            secrets: SecretCache::default(),
            endpoints: EndpointBook::default(),
            running_jobs: RunningJobs::default(),
            db,
            config,
        });
        // The node is on record before it takes a lease, or others would think that the lease's holder is gone.
        crate::nodes::store::heartbeat(&shared.db, &shared.node).await?;
        engine::refresh_keys::refresh(&shared).await?;
        Ok((shared, supervisor, fresh_key, key_file))
    }

    /// Runs until the signal comes, then drains.
    pub async fn run(self, signal: impl Future<Output = ()>) -> Ending {
        let grace = self.shared.config.shutdown_grace;
        let ending = self.supervisor.run_until(signal, grace).await;
        self.shared.db.close().await;
        tracing::debug!("the pool is closed");
        close_embedded(self.embedded).await;
        ending
    }
}

type Built = (Arc<Shared>, Supervisor, Option<Secret<String>>, Option<std::path::PathBuf>);

async fn open_sealer(config: &Config, db: &Db) -> Result<Sealer, StartError> {
    let text = match (&config.master_key, &config.database) {
        (Some(key), _) => key.clone(),
        (None, Database::Embedded) => {
            keyfile::read_or_make(&config.data_dir.join("master-key"), keyfile::new_master_key)
                .map_err(|error| {
                    StartError::Keys(format!("the master key in {}: {error}", config.data_dir.display()))
                })?
                .0
        }
        (None, Database::External(_)) => {
            return Err(StartError::Keys(
                "RINGBACK_MASTER_KEY is not set; with an external database it is needed to encrypt secrets at rest. Make one, and keep it: openssl rand -base64 32".to_owned(),
            ));
        }
    };
    let sealer = Sealer::from_base64(text.expose())?;
    if tenants::store::know_master_key(db, sealer.key_id()).await? {
        return Ok(sealer);
    }
    Err(StartError::Keys("RINGBACK_MASTER_KEY is not the key that this database's secrets were encrypted with; set the former one".to_owned()))
}

/// The operator's key: the given one, or in embedded mode the one in the data folder, made at the first start.
async fn operator_key(
    config: &Config,
    db: &Db,
) -> Result<(Option<Secret<String>>, Option<std::path::PathBuf>), StartError> {
    let tenant = tenants::store::first_tenant(db).await?;
    if let Some(key) = &config.api_key {
        tenants::store::set_operator_key(db, tenant, &key_hash(key.expose())).await?;
        return Ok((None, None));
    }
    match config.database {
        Database::External(_) if tenants::store::has_keys(db).await? => Ok((None, None)),
        Database::External(_) => Err(StartError::Keys(
            "RINGBACK_API_KEY is not set, and the database has no key yet; make one, and keep it: echo rbk_$(openssl rand -hex 20)".to_owned(),
        )),
        Database::Embedded => {
            let file = key_file(&config.data_dir);
            let (key, fresh) = keyfile::read_or_make(&file, tenants::new_api_key)
                .map_err(|error| StartError::Keys(format!("the API key in {}: {error}", file.display())))?;
            tenants::store::set_operator_key(db, tenant, &key_hash(key.expose())).await?;
            Ok((fresh.then_some(key), Some(file)))
        }
    }
}

/// Where the operator's key is kept in embedded mode.
pub fn key_file(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("api-key")
}

/// The API as a task of the supervisor: stops taking requests at once, and ends when those under way are answered.
fn serve(supervisor: &mut Supervisor, listener: TcpListener, shared: &Arc<Shared>) {
    let shared = shared.clone();
    supervisor.spawn(Stage::Work, "http", move |stop: Stop| {
        let (shared, listener) = (shared.clone(), listener.try_clone());
        async move {
            let server = match listener.and_then(|listener| http::server(listener, shared.clone())) {
                Ok(server) => server,
                Err(error) => {
                    tracing::error!(%error, "cannot serve the API");
                    return;
                }
            };
            let handle = server.handle();
            let drain = async {
                stop.drain.cancelled().await;
                handle.pause().await;
                shared.requests.close();
                tokio::select! {
                    () = shared.requests.wait() => {}
                    () = stop.hurry.cancelled() => {}
                }
                // Idle keep-alive connections would be waited for by a graceful stop.
                handle.stop(false).await;
            };
            let (served, ()) = tokio::join!(server, drain);
            if let Err(error) = served {
                tracing::error!(%error, "the API's server failed");
            }
        }
    });
}

/// Looks after our own database server.
fn keep_running(supervisor: &mut Supervisor, embedded: Arc<Embedded>) {
    supervisor.spawn(Stage::Base, "embedded", move |stop| {
        let embedded = embedded.clone();
        async move {
            while tokio::time::timeout(Duration::from_secs(1), stop.drain.cancelled()).await.is_err() {
                match embedded.keep_running().await {
                    Ok(false) => {}
                    Ok(true) => tracing::warn!("the embedded PostgreSQL was gone; it was started again"),
                    Err(error) => {
                        tracing::error!(%error, "the embedded PostgreSQL is gone and cannot be started");
                    }
                }
            }
        }
    });
}

/// The limits that hold for queues, by name.
fn queue_limits(operator: &Operator) -> QueueLimits {
    let limit = |(name, spec): (&String, &crate::operator::QueueSpec)| {
        let rate = spec.rate_limit.map(|rate| QueueRate { per_s: rate.per_s, burst: rate.burst() });
        (name.clone(), QueueLimit { concurrency: spec.concurrency, rate })
    };
    operator.queues.iter().map(limit).collect()
}
