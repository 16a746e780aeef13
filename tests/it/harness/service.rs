//! The service in this process, on a database of its own.
//!
//! It runs in a thread with a runtime of its own, as in `ringback serve`, and stops as on SIGTERM when it is dropped.
//!
//! Invariant: a service that did not end well (a task died, a lease or node was left behind) fails its test.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ringback::app::App;
use ringback::config::{Config, Database};
use ringback::db::{Db, migrate::migrate, partitions};
use ringback::secret::Secret;
use ringback::supervisor::Ending;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, PgConnection};
use tokio::sync::oneshot;
use tracing::field::{Field, Visit};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use super::Client;
use super::database::TestDatabase;

/// The operator's key of every service that tests start.
pub(crate) const API_KEY: &str = "rbk_0123456789abcdefghijABCDEFGHIJ0123456789";
/// Base64 of 32 bytes.
pub(crate) const MASTER_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const GRACE: Duration = Duration::from_secs(5);

/// A running service. Speaks the API by itself.
#[derive(Debug)]
pub(crate) struct Ringback {
    client: Client,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), String>>>,
    /// Dropped after the service has ended.
    database: TestDatabase,
}

impl Deref for Ringback {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Ringback {
    /// With the tests' settings.
    pub(crate) async fn start() -> Self {
        Self::with(|_| ()).await
    }

    /// With settings that differ from the tests'.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let database = database().await;
        let mut config = settings(&database.url());
        change(&mut config);
        watch_for_errors();
        let name = format!("ring-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let (started, start) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let options = database.options();
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || run(&name, config, options, started, stopped))
            .expect("a thread can be started");
        let address =
            start.await.expect("the service starts or says why").unwrap_or_else(|error| panic!("{error}"));
        let client = Client::new(address, API_KEY);
        Self { client, stop: Some(stop), thread: Some(thread), database }
    }
}

impl Ringback {
    /// Puts the database into a state that the API alone does not lead to.
    pub(crate) async fn put(&self, sql: String) {
        sqlx::Executor::execute(&mut self.sql().await, sqlx::AssertSqlSafe(sql)).await.expect("a statement");
    }

    /// Where the service's database is.
    pub(crate) fn database_url(&self) -> String {
        self.database.url()
    }

    /// A tenant, another one than the first, and a key of it with these scopes.
    pub(crate) async fn other_tenant(&self, scopes: &str) -> Client {
        self.put("INSERT INTO ringback.tenants (id, name) VALUES (ringback.uuid_v7(), 'other')".to_owned())
            .await;
        self.key_of("other", scopes).await
    }

    /// A key with these scopes for the tenant of this name, or for the first one.
    pub(crate) async fn key_of(&self, tenant: &str, scopes: &str) -> Client {
        let key = format!("rbk_{}", uuid::Uuid::now_v7().simple());
        self.put(format!(
            "INSERT INTO ringback.api_keys (tenant_id, id, name, key_hash, scopes)
             SELECT id, ringback.uuid_v7(), 'k', sha256('{key}'::bytea), '{{{scopes}}}' FROM ringback.tenants
             WHERE name = '{tenant}' OR ('{tenant}' = '' AND is_first)"
        ))
        .await;
        let client = self.client.with_key(&key);
        let known = async || client.get("/v1/jobs").await.status;
        super::eventually("the key is known", known, |status| *status != 401).await;
        client
    }

    /// A connection of a user's own to the service's database.
    pub(crate) async fn sql(&self) -> PgConnection {
        self.database.options().connect().await.expect("the test server accepts connections")
    }
}

impl Drop for Ringback {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            match ended {
                Some(Ok(Ok(()))) | None => {}
                Some(Ok(Err(text))) => panic!("the service did not end well: {text}"),
                Some(Err(_)) => panic!("the service panicked"),
            }
        }
    }
}

/// A database with our schema and no rows.
pub(crate) async fn database() -> TestDatabase {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("migrations").flatten().map(|file| file.path()).collect();
    files.sort();
    let mut schema = String::from(env!("CARGO_MANIFEST_DIR"));
    for file in files {
        schema.push_str(&std::fs::read_to_string(file).expect("a migration"));
    }
    // Partitions are made for the days ahead; tomorrow's template has others.
    schema.push_str(&ringback::clock::now().date_naive().to_string());
    TestDatabase::create(&schema, async |options| {
        let db = Db::new(options, 2);
        migrate(&db).await.expect("the migrations run");
        partitions::make_ahead(&db).await.expect("partitions");
        db.close().await;
    })
    .await
}

fn settings(url: &str) -> Config {
    let mut config = Config::defaults().expect("the defaults fit");
    config.database = Database::External(Secret::new(url.to_owned()));
    config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.api_key = Some(Secret::new(API_KEY.to_owned()));
    config.master_key = Some(Secret::new(MASTER_KEY.to_owned()));
    config.outbound.allow_networks = vec!["127.0.0.0/8".parse().expect("a network")];
    config.shutdown_grace = GRACE;
    config.own_program = env!("CARGO_BIN_EXE_ringback").into();
    config
}

fn run(
    name: &str,
    config: Config,
    options: PgConnectOptions,
    started: oneshot::Sender<Result<SocketAddr, String>>,
    stopped: oneshot::Receiver<()>,
) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let app = match App::build(config).await {
            Ok(app) => app,
            Err(error) => {
                let _ = started.send(Err(error.to_string()));
                return Ok(());
            }
        };
        let _ = started.send(Ok(app.address));
        let ending = app
            .run(async {
                // A test that was ended without a word stops it as well.
                let _ = stopped.await;
            })
            .await;
        if ending != Ending::Stopped {
            return Err(format!("{ending:?}"));
        }
        nothing_is_left(&options).await
    })?;
    let errors = ERRORS.lock().unwrap_or_else(PoisonError::into_inner);
    let ours: Vec<_> =
        errors.iter().filter(|(thread, _)| thread == name).map(|(_, text)| text.as_str()).collect();
    if ours.is_empty() { Ok(()) } else { Err(ours.join("; ")) }
}

/// After a stop, the service holds nothing any more.
async fn nothing_is_left(options: &PgConnectOptions) -> Result<(), String> {
    let mut connection = options.connect().await.map_err(|error| error.to_string())?;
    // A worker outside keeps its lease when the service stops.
    let sql = "SELECT (SELECT count(*) FROM ringback.job_leases WHERE holder IS NOT NULL), (SELECT count(*) FROM ringback.nodes), \
               (SELECT count(*) FROM ringback.lanes WHERE owner IS NOT NULL)";
    let left: (i64, i64, i64) =
        sqlx::query_as(sql).fetch_one(&mut connection).await.map_err(|error| error.to_string())?;
    if left == (0, 0, 0) { Ok(()) } else { Err(format!("leases, nodes, lanes left behind: {left:?}")) }
}

/// What services logged as an error, by the name of their threads.
static ERRORS: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

struct ErrorWatch;

impl<S: tracing::Subscriber> Layer<S> for ErrorWatch {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        ERRORS.lock().unwrap_or_else(PoisonError::into_inner).push((thread, text.0));
    }
}

#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write as _;
        let _ = write!(self.0, "{}={value:?} ", field.name());
    }
}

fn watch_for_errors() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = tracing_subscriber::registry().with(ErrorWatch.with_filter(LevelFilter::ERROR)).try_init();
    });
}
