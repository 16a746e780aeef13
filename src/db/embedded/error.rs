//! What can go wrong with the embedded PostgreSQL, in words that an operator can act on.
//!
//! Built by the other files of this folder, shown by `main`. A message names the path or process it is about and
//! ends with what to do next; commands in it can be copied as they stand.
//! Decides nothing and runs nothing.
//!
//! Invariant: no variant is told from another by its text.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why the embedded PostgreSQL cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// No server programs on this machine (exit code 69): install them, or bring a database.
    #[error("{}", no_binaries(rejected, rustix::process::geteuid().is_root()))]
    NoBinaries {
        /// The folders that were tried, each with why it did not do.
        rejected: Vec<String>,
    },
    /// `RINGBACK_PG_BIN` names a folder that cannot be used.
    #[error(
        "no usable PostgreSQL in {}: {why}\nRINGBACK_PG_BIN must name the folder that holds `initdb` and `postgres` \
         (`pg_config --bindir` prints it); without it the usual places are searched",
        folder.display()
    )]
    UnusableFolder {
        /// The folder that was given.
        folder: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The cluster was made by another major version than any that is installed.
    #[error("{}", wrong_major(cluster, *needed, version, bin))]
    WrongMajor {
        /// The cluster's data directory.
        cluster: PathBuf,
        /// Its major version.
        needed: u32,
        /// A version that is installed.
        version: String,
        /// The folder of its programs.
        bin: PathBuf,
    },
    /// The folder belongs to another user than the one that should use it.
    #[error("{}", wrong_owner(path, *owner, *expected, hand_over))]
    WrongOwner {
        /// The folder in question.
        path: PathBuf,
        /// The uid it belongs to.
        owner: u32,
        /// The uid it should belong to.
        expected: u32,
        /// The command that gives it to that user.
        hand_over: String,
    },
    /// Root starts the server as another user, who cannot get to the cluster.
    #[error(
        "PostgreSQL does not run as root, and the user {user} cannot enter {}\n\
         Allow it with `chmod o+x {}`, or choose another folder with RINGBACK_DATA_DIR",
        path.display(), path.display()
    )]
    Unreachable {
        /// The first folder on the way that is closed.
        path: PathBuf,
        /// The user that runs the server.
        user: String,
    },
    /// Root, and no other user to run the server as.
    #[error(
        "PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody` in /etc/passwd\n\
         Create one with `useradd --system postgres`, or run Ringback as a plain user"
    )]
    NoAccount,
    /// Something that is not ours is where the socket, a lock or the cluster should be.
    #[error("{} is in the way ({why}); move it away and start again", path.display())]
    InTheWay {
        /// What is in the way.
        path: PathBuf,
        /// Why it cannot be used.
        why: &'static str,
    },
    /// A server uses the cluster that cannot be adopted: in another container, or started elsewhere.
    #[error(
        "another PostgreSQL server (process {pid}) uses {}: {why}\n\
         Stop what started it, then start again; two servers on one folder would destroy it",
        cluster.display()
    )]
    InUse {
        /// The cluster's data directory.
        cluster: PathBuf,
        /// The process that its `postmaster.pid` names.
        pid: i32,
        /// How that was seen.
        why: &'static str,
    },
    /// `initdb` failed; nothing was left behind.
    #[error("initdb could not create a cluster below {}:\n{output}", base.display())]
    InitFailed {
        /// Where the cluster should have been.
        base: PathBuf,
        /// What initdb said.
        output: String,
    },
    /// The server ended, or did not answer in time.
    #[error("PostgreSQL did not start ({why}). The end of {}:\n{last_lines}", log.display())]
    StartFailed {
        /// What was seen.
        why: String,
        /// The server's log.
        log: PathBuf,
        /// The last lines of it.
        last_lines: String,
    },
    /// The server was told to stop and has not.
    #[error(
        "PostgreSQL (process {pid}) has not stopped within {waited:?}; `kill -QUIT {pid}` stops it at once"
    )]
    StillRunning {
        /// The server's process.
        pid: i32,
        /// How long was waited.
        waited: Duration,
    },
    /// The system refused something.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// The verb.
        doing: &'static str,
        /// Its object.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The server refused a statement.
    #[error("the embedded PostgreSQL refused a statement")]
    Query(#[from] sqlx::Error),
}

/// For `map_err`: what was being done, and to what.
pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EmbeddedError {
    move |source| EmbeddedError::Io { doing, path: path.to_owned(), source }
}

/// `root` needs no `sudo`, and often has none.
fn no_binaries(rejected: &[String], root: bool) -> String {
    let sudo = if root { "" } else { "sudo " };
    let mut text = format!(
        "no DATABASE_URL is set, and no PostgreSQL server (14 or newer) was found to embed. Any one of these will do:\n\
         \n  Debian, Ubuntu:  {sudo}apt-get install -y postgresql\
         \n  Fedora:          {sudo}dnf install -y postgresql-server\
         \n  macOS:           brew install postgresql@17\
         \n  Docker:          docker compose up\
         \n  your own server: DATABASE_URL=postgres://user:password@localhost:5432/ringback ringback serve\
         \n  another folder:  RINGBACK_PG_BIN=/opt/postgresql/bin ringback serve\n"
    );
    if !rejected.is_empty() {
        text.push_str("\nLooked at, and not used:\n");
        for reason in rejected {
            let _ = writeln!(text, "  {reason}");
        }
    }
    text.truncate(text.trim_end().len());
    text
}

fn wrong_major(cluster: &Path, needed: u32, version: &str, bin: &Path) -> String {
    let (data, bin) = (cluster.display(), bin.display());
    format!(
        "the cluster in {data} was made by PostgreSQL {needed}, but only {version} was found, in {bin}. Either\n\
         \n  install PostgreSQL {needed} beside it and start again (RINGBACK_PG_BIN may name its folder),\n\
         \nor bring the cluster to {version} as the user that owns it, with both versions installed:\n\
         \n  {bin}/initdb -U ringback --encoding=UTF8 --locale=C.UTF-8 -D {data}.new\
         \n  {bin}/pg_upgrade -U ringback -b <folder of {needed}>/bin -B {bin} -d {data} -D {data}.new\
         \n  mv {data} {data}.{needed} && mv {data}.new {data}\n\
         \nor, where {needed} can still run, dump there and restore here:\n\
         \n  pg_dump -U ringback -h <its socket folder> -Fc ringback > ringback.dump"
    )
}

fn wrong_owner(path: &Path, owner: u32, expected: u32, hand_over: &str) -> String {
    let made_by = if owner == 0 { "root".to_owned() } else { format!("uid {owner}") };
    format!(
        "{} belongs to {made_by}, and now it is to be used by uid {expected}. Run Ringback as the user that made it, or \
         hand it over while no Ringback runs:\n\n  {hand_over}\n\nor choose another folder with RINGBACK_DATA_DIR",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_programs_the_message_holds_a_way_for_every_system() {
        for root in [true, false] {
            let text = no_binaries(&["/usr/pgsql-13/bin: 13.4 is older than 14".to_owned()], root);
            for way in [
                "apt-get install -y postgresql",
                "dnf install -y postgresql-server",
                "brew install postgresql@17",
                "docker compose up",
                "DATABASE_URL=postgres://",
                "13.4 is older than 14",
            ] {
                assert!(text.contains(way), "{way} is missing in:\n{text}");
            }
            assert_eq!(text.contains("sudo"), !root);
        }
    }

    #[test]
    fn another_major_version_is_answered_with_the_upgrade() {
        let text =
            wrong_major(Path::new("/d/postgres/data"), 15, "17.2", Path::new("/usr/lib/postgresql/17/bin"));
        assert!(
            text.contains("/usr/lib/postgresql/17/bin/pg_upgrade -U ringback -b <folder of 15>/bin"),
            "{text}"
        );
    }
}
