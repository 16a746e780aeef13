//! The embedded PostgreSQL on real servers: cold, warm, adopted, crashed, shared, and in awkward folders.
//!
//! They need the server's programs on this machine and fail without them. They pass as root and as a plain user.
//! Each test has a data folder of its own, and what it started is stopped when it ends, however it ends.
//!
//! Invariant: no test leaves a server or a folder behind.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::process::{Pid, Signal, geteuid, kill_process};
use sqlx::{ConnectOptions as _, PgConnection};

use super::pidfile::PidFile;
use super::*;

/// A data folder; as root it is open to the server's user, unlike what `tempfile` makes.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        Self(dir)
    }

    fn data_dir(&self) -> PathBuf {
        self.0.path().join("data")
    }

    fn pgdata(&self) -> PathBuf {
        self.data_dir().join("postgres/data")
    }

    fn options(&self) -> EmbeddedOptions {
        options(self.data_dir())
    }

    fn server_pid(&self) -> Option<i32> {
        PidFile::read(&self.pgdata()).map(|file| file.pid)
    }

    fn kill_server(&self) {
        kill(self.server_pid().unwrap(), Signal::KILL);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(pid) = self.server_pid().filter(|pid| is_postgres(*pid)) {
            kill(pid, Signal::QUIT);
        }
    }
}

fn options(data_dir: PathBuf) -> EmbeddedOptions {
    #[expect(clippy::disallowed_methods, reason = "a test has no config.rs to read PATH for it")]
    let search_path = std::env::var_os("PATH");
    EmbeddedOptions { data_dir, pg_bin: None, search_path, max_connections: 20, durable: true }
}

fn kill(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

fn is_postgres(pid: i32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.windows(8).any(|part| part == b"postgres"))
}

async fn connect(embedded: &Embedded) -> PgConnection {
    embedded.connect_options("ringback").connect().await.unwrap()
}

async fn answers(embedded: &Embedded) -> bool {
    sqlx::query("SELECT 1").execute(&mut connect(embedded).await).await.is_ok()
}

#[tokio::test]
async fn a_cluster_is_created_once_and_keeps_its_data() {
    let folder = Folder::new();
    let began = Instant::now();
    let first = Embedded::start(&folder.options()).await.unwrap();
    println!("cold start: {:?}", began.elapsed());
    assert!(!first.adopted() && !first.is_elsewhere());
    assert!(first.version().split('.').next().unwrap().parse::<u32>().unwrap() >= 14);
    first.ensure_database("ringback").await.unwrap();
    first.ensure_database("ringback").await.unwrap();
    sqlx::query("CREATE TABLE kept AS SELECT 7 AS n").execute(&mut connect(&first).await).await.unwrap();
    let pid = folder.server_pid().unwrap();
    let began = Instant::now();
    first.stop().await.unwrap();
    println!("stop: {:?}", began.elapsed());
    assert!(!server::is_alive(pid), "the server, or its zombie, is still there");

    let began = Instant::now();
    let second = Embedded::start(&folder.options()).await.unwrap();
    println!("warm start: {:?}", began.elapsed());
    let url: sqlx::postgres::PgConnectOptions = second.url("ringback").parse().unwrap();
    let n: i32 =
        sqlx::query_scalar("SELECT n FROM kept").fetch_one(&mut url.connect().await.unwrap()).await.unwrap();
    assert_eq!(n, 7);
    for setting in ["fsync", "full_page_writes", "synchronous_commit"] {
        let shown: String = sqlx::query_scalar("SELECT current_setting($1)")
            .bind(setting)
            .fetch_one(&mut connect(&second).await)
            .await
            .unwrap();
        assert_eq!(shown, "on", "{setting}");
    }
    second.stop().await.unwrap();
}

#[tokio::test]
async fn nobody_else_can_enter_the_cluster_or_its_socket() {
    let folder = Folder::new();
    let embedded = Embedded::start(&folder.options()).await.unwrap();
    for private in [embedded.cluster_dir().to_owned(), embedded.socket_dir.clone(), folder.pgdata()] {
        assert_eq!(std::fs::metadata(&private).unwrap().mode() & 0o077, 0, "{}", private.display());
    }
    let mode = std::fs::metadata(folder.data_dir()).unwrap().mode() & 0o777;
    assert_eq!(mode, if geteuid().is_root() { 0o711 } else { 0o700 });
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_whose_process_of_ours_went_away_is_adopted() {
    let folder = Folder::new();
    drop(Embedded::start(&folder.options()).await.unwrap());
    let pid = folder.server_pid().unwrap();
    let began = Instant::now();
    let again = Embedded::start(&folder.options()).await.unwrap();
    println!("adoption: {:?}", began.elapsed());
    assert!(again.adopted());
    assert_eq!(folder.server_pid(), Some(pid));
    again.stop().await.unwrap();
    assert_eq!(folder.server_pid(), None, "the last user stops an adopted server too");
}

/// Run by the next test in a process of its own, in the folder of the test; does nothing otherwise.
#[tokio::test]
#[ignore = "the child of the next test"]
async fn child_that_starts_a_server_and_waits_to_be_killed() {
    if Path::new("wanted").exists() {
        std::mem::forget(Embedded::start(&options(PathBuf::from("data"))).await.unwrap());
        std::fs::write("started", "").unwrap();
        std::future::pending::<()>().await;
    }
}

#[tokio::test]
async fn after_a_kill_9_the_server_lives_on_and_is_adopted() {
    let folder = Folder::new();
    let cwd = folder.0.path();
    std::fs::write(cwd.join("wanted"), "").unwrap();
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "db::embedded::tests::child_that_starts_a_server_and_waits_to_be_killed",
        ])
        .current_dir(cwd)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    while !cwd.join("started").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the child ended early");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    child.kill().await.unwrap();
    let embedded = Embedded::start(&folder.options()).await.unwrap();
    assert!(embedded.adopted());
    embedded.ensure_database("ringback").await.unwrap();
    assert!(answers(&embedded).await);
    embedded.stop().await.unwrap();
    assert_eq!(folder.server_pid(), None);
}

#[tokio::test]
async fn a_server_that_was_killed_is_started_anew() {
    let folder = Folder::new();
    let first = Embedded::start(&folder.options()).await.unwrap();
    first.ensure_database("ringback").await.unwrap();
    assert!(!first.keep_running().await.unwrap());
    folder.kill_server();
    while !first.keep_running().await.unwrap() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert!(answers(&first).await);

    folder.kill_server();
    drop(first);
    let second = Embedded::start(&folder.options()).await.unwrap();
    assert!(!second.adopted());
    assert!(answers(&second).await);
    second.stop().await.unwrap();
}

#[tokio::test]
async fn a_pid_file_whose_number_is_another_programs_is_stale() {
    let folder = Folder::new();
    let first = Embedded::start(&folder.options()).await.unwrap();
    first.ensure_database("ringback").await.unwrap();
    let file = folder.pgdata().join("postmaster.pid");
    let text = std::fs::read_to_string(&file).unwrap();
    first.stop().await.unwrap();
    let (_, rest) = text.split_once('\n').unwrap();
    std::fs::write(&file, format!("{}\n{rest}", std::process::id())).unwrap();
    let owner = std::fs::metadata(folder.pgdata()).unwrap();
    chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();

    let second = Embedded::start(&folder.options()).await.unwrap();
    assert!(!second.adopted());
    assert!(answers(&second).await);
    second.stop().await.unwrap();
}

#[tokio::test]
async fn of_two_users_only_the_last_one_stops_the_server() {
    let folder = Folder::new();
    let options = folder.options();
    let (one, two) = tokio::join!(Embedded::start(&options), Embedded::start(&options));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_ne!(one.adopted(), two.adopted(), "one starts, the other adopts");
    two.ensure_database("ringback").await.unwrap();
    one.stop().await.unwrap();
    assert!(answers(&two).await);
    two.stop().await.unwrap();
    assert_eq!(folder.server_pid(), None);
}

#[tokio::test]
async fn a_folder_too_deep_for_a_socket_has_it_in_a_private_folder_elsewhere() {
    let folder = Folder::new();
    let deep = folder.0.path().join("d".repeat(60)).join("e".repeat(60));
    let embedded = Embedded::start(&options(deep)).await.unwrap();
    let socket_dir = embedded.socket_dir.clone();
    assert!(socket_dir.starts_with("/tmp"), "{}", socket_dir.display());
    assert_eq!(std::fs::metadata(&socket_dir).unwrap().mode() & 0o777, 0o700);
    embedded.ensure_database("ringback").await.unwrap();
    assert!(answers(&embedded).await);
    embedded.stop().await.unwrap();
    std::fs::remove_dir(&socket_dir).unwrap();
}

#[tokio::test]
async fn an_interrupted_creation_leaves_nothing_that_matters() {
    let folder = Folder::new();
    let base = folder.data_dir().join("postgres");
    Embedded::start(&folder.options()).await.unwrap().stop().await.unwrap();
    std::fs::rename(folder.pgdata(), base.join("data.new-killed")).unwrap();
    let embedded = Embedded::start(&folder.options()).await.unwrap();
    assert!(!base.join("data.new-killed").exists());
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_failed_start_shows_the_end_of_the_log() {
    let folder = Folder::new();
    Embedded::start(&folder.options()).await.unwrap().stop().await.unwrap();
    std::fs::write(folder.pgdata().join("postgresql.auto.conf"), "no_such_setting = 1\n").unwrap();
    let failed = Embedded::start(&folder.options()).await.err().unwrap();
    assert!(matches!(failed, EmbeddedError::StartFailed { .. }), "{failed}");
    assert!(failed.to_string().contains("no_such_setting"), "{failed}");
}

#[tokio::test]
async fn a_cluster_of_another_major_version_is_refused_and_left_alone() {
    let folder = Folder::new();
    Embedded::start(&folder.options()).await.unwrap().stop().await.unwrap();
    std::fs::write(folder.pgdata().join("PG_VERSION"), "9999\n").unwrap();
    let refused = Embedded::start(&folder.options()).await.err().unwrap();
    assert!(matches!(refused, EmbeddedError::WrongMajor { needed: 9999, .. }), "{refused}");
    assert!(refused.to_string().contains("pg_upgrade"), "{refused}");
}

#[tokio::test]
async fn a_cluster_of_another_user_is_refused_with_the_way_out() {
    if !geteuid().is_root() {
        return;
    }
    let folder = Folder::new();
    Embedded::start(&folder.options()).await.unwrap().stop().await.unwrap();
    chown(folder.data_dir().join("postgres"), Some(54_321), None).unwrap();
    let refused = Embedded::start(&folder.options()).await.err().unwrap();
    assert!(matches!(refused, EmbeddedError::WrongOwner { owner: 54_321, .. }), "{refused}");
    assert!(refused.to_string().contains("&& chown -R"), "{refused}");
}

#[tokio::test]
async fn root_puts_a_cluster_elsewhere_that_the_server_could_not_reach() {
    if !geteuid().is_root() {
        return;
    }
    let folder = Folder::new();
    std::fs::set_permissions(folder.0.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let first = Embedded::start(&folder.options()).await.unwrap();
    let base = first.cluster_dir().to_owned();
    assert!(first.is_elsewhere() && base.starts_with("/var/lib/ringback"), "{}", base.display());
    let told = std::fs::read_to_string(folder.data_dir().join("cluster-path")).unwrap();
    assert_eq!(told.trim_end(), base.to_str().unwrap());
    first.ensure_database("ringback").await.unwrap();
    first.stop().await.unwrap();
    let second = Embedded::start(&folder.options()).await.unwrap();
    assert_eq!(second.cluster_dir(), base);
    assert!(answers(&second).await);
    second.stop().await.unwrap();
    std::fs::remove_dir_all(base).unwrap();
}
