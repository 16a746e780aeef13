//! Creates the cluster of the embedded PostgreSQL with `initdb`.
//!
//! Called by `server` when the data directory holds no cluster yet, under the exclusive `start.lock`.
//! initdb's own syncing flushes a thousand files one by one (3.6–4.6 s measured); one flush of the whole file system
//! before the cluster gets its name is as safe and takes 40–180 ms.
//! Starts no server.
//!
//! Invariant: the data directory appears complete and flushed, by a rename, or not at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::error::{EmbeddedError, io};
use super::find::Binaries;
use super::place::Place;
use super::server::command;

const DRAFT: &str = "data.new-";

/// Makes `place.pgdata`.
pub(super) async fn create_cluster(
    place: &Place,
    binaries: &Binaries,
    durable: bool,
) -> Result<(), EmbeddedError> {
    remove_drafts(&place.base);
    if fs::read_dir(&place.pgdata).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(EmbeddedError::InTheWay {
            path: place.pgdata.clone(),
            why: "it is not empty, and not a cluster: it has no PG_VERSION",
        });
    }
    // A name of its own: the initdb of a process that was killed may still be writing into the last one.
    let draft = place.base.join(format!("{DRAFT}{}", uuid::Uuid::now_v7().simple()));
    let created = run_initdb(place, binaries, &draft).await;
    let finished = match created {
        Ok(()) => finish(&draft, place, durable).await,
        Err(error) => Err(error),
    };
    if finished.is_err() {
        let _ = fs::remove_dir_all(&draft);
    }
    finished
}

async fn run_initdb(place: &Place, binaries: &Binaries, draft: &Path) -> Result<(), EmbeddedError> {
    let mut output = String::new();
    // C.UTF-8 sorts by bytes, knows letters, and is the same on every machine; systems without it take plain C.
    for locale in ["--locale=C.UTF-8", "--no-locale"] {
        let program = binaries.dir.join("initdb");
        let mut initdb = command(&program, place.account.as_ref());
        initdb.args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--no-instructions", locale]);
        initdb.arg(format!("--username={}", super::USER)).arg("-D").arg(draft).stdin(Stdio::null());
        let mut initdb = tokio::process::Command::from(initdb);
        let ended = initdb.kill_on_drop(true).output().await.map_err(io("run", &program))?;
        if ended.status.success() {
            return Ok(());
        }
        output =
            format!("{}{}", String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        let _ = fs::remove_dir_all(draft);
    }
    Err(EmbeddedError::InitFailed { base: place.base.clone(), output: output.trim_end().to_owned() })
}

async fn finish(draft: &Path, place: &Place, durable: bool) -> Result<(), EmbeddedError> {
    if durable {
        flush(draft.to_owned()).await?;
    }
    fs::rename(draft, &place.pgdata).map_err(io("create", &place.pgdata))?;
    if durable {
        let base = fs::File::open(&place.base).map_err(io("open", &place.base))?;
        base.sync_all().map_err(io("flush", &place.base))?;
    }
    Ok(())
}

async fn flush(folder: PathBuf) -> Result<(), EmbeddedError> {
    let flushed = tokio::task::spawn_blocking(move || {
        let dir = fs::File::open(&folder).map_err(io("open", &folder))?;
        #[cfg(target_os = "linux")]
        rustix::fs::syncfs(&dir).map_err(|error| io("flush", &folder)(error.into()))?;
        #[cfg(not(target_os = "linux"))]
        {
            drop(dir);
            rustix::fs::sync();
        }
        Ok(())
    });
    flushed.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// What interrupted attempts left. That one cannot be removed now is no reason to stop.
fn remove_drafts(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(DRAFT) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
