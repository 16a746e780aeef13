//! A database for each test, cloned from a migrated template.
//!
//! The first test of a process starts (or adopts) an embedded server without `fsync`; the others share it. With
//! `DATABASE_URL` set, databases are made on that server instead. `watch.sh`, a child, waits for the end of this process and
//! then stops the server unless another test process uses it, because libtest has no hook at its end.
//! Called by the harness only. Knows no table; how to migrate is handed in.
//!
//! Invariant: a template appears under its name only when it is migrated completely, and nobody is connected to it.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr as _;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex as StdMutex, OnceLock, PoisonError};
use std::time::Duration;

use ringback::db::embedded::{Embedded, EmbeddedOptions};
use sha2::{Digest as _, Sha256};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection};
use tokio::sync::{Mutex, OnceCell};
use url::Url;
use uuid::Uuid;

/// Any number that nobody else uses for an advisory lock; the template is made under it.
const TEMPLATE_LOCK: i64 = 0x5249_4E47;
const TEMPLATE_PREFIX: &str = "ringback_template_";
const TEST_PREFIX: &str = "t_";
const MAX_CONNECTIONS: u32 = 400;

const DROP_PATIENCE: Duration = Duration::from_secs(10);

/// A database to be dropped, and whom to tell.
type Drops = (String, Sender<()>);

/// A database that exists as long as this value, and belongs to one test.
#[derive(Debug)]
pub(crate) struct TestDatabase {
    name: String,
    server: &'static Server,
}

impl TestDatabase {
    /// A new database that is a copy of the template for `schema`. `schema` is any text that changes when the
    /// migrations do; `migrate` gets an empty database and is called once for each `schema`.
    pub(crate) async fn create<M, F>(schema: &str, migrate: M) -> Self
    where
        M: FnOnce(PgConnectOptions) -> F,
        F: Future<Output = ()>,
    {
        let server = Server::shared().await;
        let template = server.template(schema, migrate).await;
        let name = new_name();
        let mut admin = server.connect_as_admin().await;
        execute(&mut admin, &format!("CREATE DATABASE {name} TEMPLATE {template} {}", server.strategy)).await;
        let _ = admin.close().await;
        Self { name, server }
    }

    /// The URL of this database, as `DATABASE_URL` takes it.
    pub(crate) fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// How to connect to this database.
    pub(crate) fn options(&self) -> PgConnectOptions {
        self.server.options(&self.name)
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        // A failure is no test's business: what is left over is removed by the next run.
        let (done, wait) = channel();
        let drops = self.server.drops.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sent = drops.send((std::mem::take(&mut self.name), done));
        // On a server of our own the next run removes what the end of this process leaves; on another's nobody would.
        if sent.is_ok() && EMBEDDED.get().is_none() {
            let _ = wait.recv_timeout(DROP_PATIENCE);
        }
    }
}

/// The server that all tests of this process share.
#[derive(Debug)]
struct Server {
    /// The URL of any database on it.
    base: Url,
    /// How databases are copied. Where nothing is flushed, copying files takes a third of the time of logging pages.
    strategy: &'static str,
    ready_templates: Mutex<Vec<String>>,
    drops: StdMutex<Sender<Drops>>,
}

impl Server {
    async fn shared() -> &'static Self {
        static SERVER: OnceCell<Server> = OnceCell::const_new();
        SERVER.get_or_init(Self::begin).await
    }

    async fn begin() -> Self {
        let (base, strategy) = match variable("DATABASE_URL").and_then(|url| url.into_string().ok()) {
            Some(url) => (Url::parse(&url).expect("DATABASE_URL is a URL"), ""),
            None => start_embedded().await,
        };
        let (drops, names) = channel();
        let server = Self { base, strategy, ready_templates: Mutex::default(), drops: StdMutex::new(drops) };
        let admin = server.options(&server.admin_database());
        std::thread::Builder::new()
            .name("drop-test-databases".to_owned())
            .spawn(move || drop_databases(&names, &admin))
            .expect("a thread can be started");
        server
    }

    fn url(&self, database: &str) -> String {
        let mut url = self.base.clone();
        url.set_path(database);
        url.into()
    }

    fn options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::from_str(&self.url(database)).expect("a URL that sqlx reads")
    }

    /// The database in which the others are made: the one of `DATABASE_URL`, or `postgres`.
    fn admin_database(&self) -> String {
        let name = self.base.path().trim_start_matches('/');
        if name.is_empty() { "postgres".to_owned() } else { name.to_owned() }
    }

    async fn connect_as_admin(&self) -> PgConnection {
        self.options(&self.admin_database()).connect().await.expect("the test server accepts connections")
    }

    /// The name of the template for `schema`, which is made if need be.
    async fn template<M, F>(&self, schema: &str, migrate: M) -> String
    where
        M: FnOnce(PgConnectOptions) -> F,
        F: Future<Output = ()>,
    {
        let name = template_name(schema);
        let mut ready = self.ready_templates.lock().await;
        if ready.contains(&name) {
            return name;
        }
        let mut admin = self.connect_as_admin().await;
        // Held until the connection is closed; other test processes wait here.
        sqlx::query("SELECT pg_advisory_lock($1)")
            .bind(TEMPLATE_LOCK)
            .execute(&mut admin)
            .await
            .expect("a lock");
        let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(&name)
            .fetch_one(&mut admin)
            .await
            .expect("an answer");
        if !there {
            let draft = format!("{name}_draft");
            execute(&mut admin, &format!("DROP DATABASE IF EXISTS {draft} WITH (FORCE)")).await;
            execute(&mut admin, &format!("CREATE DATABASE {draft}")).await;
            migrate(self.options(&draft)).await;
            execute(&mut admin, &format!("ALTER DATABASE {draft} ALLOW_CONNECTIONS false")).await;
            evict(&mut admin, &draft).await;
            execute(&mut admin, &format!("ALTER DATABASE {draft} RENAME TO {name}")).await;
        }
        let _ = admin.close().await;
        ready.push(name.clone());
        name
    }
}

fn new_name() -> String {
    format!("{TEST_PREFIX}{}", Uuid::now_v7().simple())
}

fn template_name(schema: &str) -> String {
    Sha256::digest(schema).iter().take(8).fold(TEMPLATE_PREFIX.to_owned(), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    })
}

async fn execute(connection: &mut PgConnection, sql: &str) {
    if let Err(error) = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await {
        panic!("{sql}: {error}");
    }
}

/// Ends connections that the migration left open; a database in use cannot be renamed or copied.
async fn evict(admin: &mut PgConnection, database: &str) {
    let sql = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1";
    sqlx::query(sql).bind(database).execute(admin).await.expect("an answer");
}

/// A thread of its own: a drop may happen in any runtime, in none, and while a test panics.
fn drop_databases(names: &Receiver<Drops>, admin: &PgConnectOptions) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    for (name, done) in names {
        runtime.block_on(async {
            let Ok(mut connection) = admin.connect().await else { return };
            let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
            let _ = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
            let _ = connection.close().await;
        });
        let _ = done.send(());
    }
}

/// Our share in the embedded server, which lasts as long as this process.
static EMBEDDED: OnceLock<Embedded> = OnceLock::new();

/// Starts or adopts the embedded server, and leaves it to the watcher.
async fn start_embedded() -> (Url, &'static str) {
    let data_dir = data_dir();
    let before_us = new_name();
    let alone = watch(&data_dir);
    let options = EmbeddedOptions {
        data_dir,
        pg_bin: variable("RINGBACK_PG_BIN").map(PathBuf::from),
        search_path: variable("PATH"),
        max_connections: MAX_CONNECTIONS,
        durable: false,
    };
    let embedded = Embedded::start(&options).await.unwrap_or_else(|error| panic!("{error}"));
    let base = Url::parse(&embedded.url("postgres")).expect("our own URL");
    // PostgreSQL 14 has no choice, and does just this.
    let strategy = if embedded.version().starts_with("14.") { "" } else { "STRATEGY FILE_COPY" };
    let _ = EMBEDDED.set(embedded);
    if alone {
        remove_leftovers(&base, &before_us).await;
    }
    (base, strategy)
}

/// Databases of tests that were killed, and templates of other schemas. Names sort by the time they were made, so those
/// of another process that has come in the meantime are left alone.
async fn remove_leftovers(base: &Url, before_us: &str) {
    let options = PgConnectOptions::from_str(base.as_str()).expect("a URL that sqlx reads");
    let mut admin = options.connect().await.expect("the test server accepts connections");
    let sql = "SELECT datname FROM pg_database WHERE starts_with(datname, $1) OR starts_with(datname, $2) \
               ORDER BY oid DESC";
    let left: Vec<String> = sqlx::query_scalar(sql)
        .bind(TEST_PREFIX)
        .bind(TEMPLATE_PREFIX)
        .fetch_all(&mut admin)
        .await
        .expect("an answer");
    let (templates, tests): (Vec<_>, Vec<_>) =
        left.into_iter().partition(|name| name.starts_with(TEMPLATE_PREFIX));
    // The newest templates are worth keeping: a change of the migrations is often taken back.
    for name in tests.iter().filter(|name| name.as_str() < before_us).chain(templates.iter().skip(4)) {
        execute(&mut admin, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
    }
    let _ = admin.close().await;
}

/// Where the server's files are: beside the build, or below `/tmp` where the server's user cannot come there.
fn data_dir() -> PathBuf {
    let beside = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let ours = rustix::process::geteuid();
    let closed = |folder: &Path| {
        std::fs::metadata(folder)
            .is_ok_and(|meta| std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o001 == 0)
    };
    let writable = std::fs::create_dir_all(beside).is_ok() && tempfile::tempfile_in(beside).is_ok();
    if writable && !(ours.is_root() && beside.ancestors().any(closed)) {
        return beside.join(format!("postgres-{}", ours.as_raw()));
    }
    std::env::temp_dir().join(format!(
        "ringback-tests-{}-{}",
        ours.as_raw(),
        template_name(env!("CARGO_MANIFEST_DIR"))
    ))
}

/// Notes this process among the users of the server and starts the watcher. True: nobody else uses it.
fn watch(data_dir: &Path) -> bool {
    let holders = data_dir.join("holders");
    std::fs::create_dir_all(&holders).expect("the folder of the test server can be made");
    let us = std::process::id().to_string();
    std::fs::write(holders.join(&us), "").expect("a file can be written there");
    let others = std::fs::read_dir(&holders).expect("it can be listed").flatten().filter(|entry| {
        let pid = entry.file_name().to_string_lossy().parse().ok().and_then(rustix::process::Pid::from_raw);
        let other = pid.filter(|pid| pid.as_raw_nonzero().to_string() != us);
        other.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
    });
    let alone = others.count() == 0;
    let watcher = Command::new("/bin/sh")
        .args(["-c", include_str!("watch.sh"), "watch-test-server", &us])
        .arg(data_dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh can be started");
    // Never waited for: it ends after us. Its standard input stays open as long as we live.
    std::mem::forget(watcher);
    alone
}

#[expect(clippy::disallowed_methods, reason = "the tests have no config.rs to read the environment for them")]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

async fn migrate(options: PgConnectOptions) {
    let mut connection = options.connect().await.expect("the draft accepts connections");
    execute(&mut connection, "CREATE TABLE things (n int); INSERT INTO things VALUES (1)").await;
}

#[tokio::test]
async fn each_test_has_a_migrated_database_of_its_own() {
    let (one, two) =
        tokio::join!(TestDatabase::create("smoke", migrate), TestDatabase::create("smoke", migrate));
    assert_ne!(one.url(), two.url());
    execute(&mut one.options().connect().await.unwrap(), "DELETE FROM things").await;
    let mut connection = PgConnection::connect(&two.url()).await.unwrap();
    let n: i64 = sqlx::query_scalar("SELECT count(*) FROM things").fetch_one(&mut connection).await.unwrap();
    assert_eq!(n, 1);

    let began = std::time::Instant::now();
    let third = TestDatabase::create("smoke", migrate).await;
    println!("a clone: {:?}", began.elapsed());
    let eight: Vec<_> = (0..8).map(|_| TestDatabase::create("smoke", migrate)).collect();
    let eight = futures_util::future::join_all(eight).await;
    println!("nine clones: {:?}", began.elapsed());
    drop((third, eight));
}
