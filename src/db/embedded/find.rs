//! Looks for the programs of a PostgreSQL server: `initdb` and `postgres`, of version 14 or newer.
//!
//! Called by `server` when a server must be started. The order: the folder the operator named (and then no other),
//! `PATH`, what `pg_config` says, the folders that packages use. A cluster that exists already needs its own major
//! version, so for it the first folder of that version wins.
//! Installs nothing and starts no server; it only asks programs for their version, as the user who will run them.
//!
//! Invariant: a folder is returned only after its `postgres` has run and named its version.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::error::EmbeddedError;
use super::place::Account;
use super::server::Settings;

const OLDEST_MAJOR: u32 = 14;
/// A program that cannot say its version in this time is not the one we look for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A folder of server programs that run, and their version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binaries {
    pub(super) dir: PathBuf,
    pub(super) version: Version,
}

/// `15.18` as (15, "15.18"); a beta is `18beta1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) major: u32,
    text: String,
}

impl Version {
    /// Reads the answer to `postgres --version`, for example `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    pub(super) fn parse(answer: &str) -> Option<Self> {
        let text = answer.split_once("(PostgreSQL)")?.1.split_whitespace().next()?;
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        Some(Self { major: text[..digits].parse().ok()?, text: text.to_owned() })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Finds programs that suit a cluster of the major version `needed`, or a new cluster when there is none.
pub(super) async fn find(
    settings: &Settings,
    account: Option<&Account>,
    cluster: &Path,
    needed: Option<u32>,
) -> Result<Binaries, EmbeddedError> {
    let mut search = Search { account, needed, rejected: Vec::new(), other_major: None, tried: Vec::new() };
    if let Some(folder) = &settings.pg_bin {
        if let Some(binaries) = search.first_suitable(vec![folder.clone()]).await {
            return Ok(binaries);
        }
        return Err(match search.other_major {
            Some(other) => other.as_wrong_major(cluster, needed),
            None => EmbeddedError::UnusableFolder { folder: folder.clone(), why: search.rejected.join("; ") },
        });
    }
    let path = settings.search_path.as_deref();
    if let Some(binaries) = search.first_suitable(on_path(path)).await {
        return Ok(binaries);
    }
    if let Some(binaries) = search.first_suitable(from_pg_config(path).await).await {
        return Ok(binaries);
    }
    if let Some(binaries) = search.first_suitable(in_known_folders(Path::new("/"))).await {
        return Ok(binaries);
    }
    Err(search.failure(cluster))
}

/// What a search has seen so far.
struct Search<'a> {
    account: Option<&'a Account>,
    needed: Option<u32>,
    rejected: Vec<String>,
    other_major: Option<Binaries>,
    tried: Vec<PathBuf>,
}

impl Search<'_> {
    async fn first_suitable(&mut self, folders: Vec<PathBuf>) -> Option<Binaries> {
        for folder in folders {
            if self.tried.contains(&folder) {
                continue;
            }
            self.tried.push(folder.clone());
            match probe(&folder, self.account).await {
                Ok(binaries) if self.suits(&binaries) => return Some(binaries),
                Ok(_) => {}
                Err(why) => self.rejected.push(format!("{}: {why}", folder.display())),
            }
        }
        None
    }

    fn suits(&mut self, binaries: &Binaries) -> bool {
        let Binaries { dir, version } = binaries;
        if version.major < OLDEST_MAJOR {
            self.rejected.push(format!("{}: {version} is older than {OLDEST_MAJOR}", dir.display()));
            return false;
        }
        let suits = self.needed.is_none_or(|needed| needed == version.major);
        if !suits && self.other_major.is_none() {
            self.other_major = Some(binaries.clone());
        }
        suits
    }

    fn failure(self, cluster: &Path) -> EmbeddedError {
        match (self.needed, self.other_major) {
            (Some(_), Some(other)) => other.as_wrong_major(cluster, self.needed),
            _ => EmbeddedError::NoBinaries { rejected: self.rejected },
        }
    }
}

impl Binaries {
    fn as_wrong_major(&self, cluster: &Path, needed: Option<u32>) -> EmbeddedError {
        EmbeddedError::WrongMajor {
            cluster: cluster.to_owned(),
            needed: needed.unwrap_or(OLDEST_MAJOR),
            version: self.version.to_string(),
            bin: self.dir.clone(),
        }
    }
}

async fn probe(folder: &Path, account: Option<&Account>) -> Result<Binaries, String> {
    for program in ["initdb", "postgres"] {
        if !folder.join(program).is_file() {
            return Err(format!("holds no `{program}`"));
        }
    }
    let mut command = super::server::command(&folder.join("postgres"), account);
    command.arg("--version");
    let answer = answer_of(command).await?;
    let version = Version::parse(&answer)
        .ok_or_else(|| format!("`postgres --version` says {:?}", answer.trim_end()))?;
    Ok(Binaries { dir: folder.to_owned(), version })
}

async fn answer_of(command: std::process::Command) -> Result<String, String> {
    let mut command = tokio::process::Command::from(command);
    let answer =
        tokio::time::timeout(PATIENCE, command.stdin(Stdio::null()).kill_on_drop(true).output()).await;
    let output = answer.map_err(|_| "does not answer".to_owned())?.map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The folders where `PATH` leads to; symbolic links are followed, since the other programs are beside their target.
fn on_path(path: Option<&OsStr>) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for folder in path.into_iter().flat_map(std::env::split_paths).filter(|folder| folder.is_absolute()) {
        for program in ["initdb", "postgres"] {
            let target = folder.join(program).canonicalize().ok();
            folders.extend(
                target.filter(|file| file.is_file()).and_then(|file| file.parent().map(Path::to_owned)),
            );
        }
    }
    folders
}

async fn from_pg_config(path: Option<&OsStr>) -> Vec<PathBuf> {
    let folders = path.into_iter().flat_map(std::env::split_paths).filter(|folder| folder.is_absolute());
    let mut files = folders.map(|folder| folder.join("pg_config")).filter(|file| file.is_file());
    let Some(pg_config) = files.next() else { return Vec::new() };
    let mut command = super::server::command(&pg_config, None);
    command.arg("--bindir");
    let answer = answer_of(command).await.unwrap_or_default();
    let folder = PathBuf::from(answer.trim_end());
    if folder.is_absolute() { vec![folder] } else { Vec::new() }
}

/// Where packages put the programs, newest version first. `root` is `/`, except in tests.
fn in_known_folders(root: &Path) -> Vec<PathBuf> {
    // (parent, what the version's folder is called, where the programs are in it)
    let versioned = [
        ("usr/lib/postgresql", "", "bin"),
        ("usr", "pgsql-", "bin"),
        ("opt/homebrew/opt", "postgresql@", "bin"),
        ("usr/local/opt", "postgresql@", "bin"),
        ("Applications/Postgres.app/Contents/Versions", "", "bin"),
    ];
    // Distributions without the version in the path: the source's default, Arch and Fedora, Alpine.
    let plain = ["usr/local/pgsql/bin", "usr/bin", "usr/libexec/postgresql"];
    let mut folders = Vec::new();
    for (parent, prefix, bin) in versioned {
        let entries = std::fs::read_dir(root.join(parent)).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        folders.extend(newest_first(names, prefix).iter().map(|name| root.join(parent).join(name).join(bin)));
    }
    let alpine = std::fs::read_dir(root.join("usr/libexec")).into_iter().flatten().flatten();
    let alpine = alpine.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    folders.extend(newest_first(alpine, "postgresql").iter().map(|name| root.join("usr/libexec").join(name)));
    folders.extend(plain.iter().map(|folder| root.join(folder)));
    folders.retain(|folder| folder.join("postgres").is_file());
    folders
}

/// The names that are `prefix` and a number, highest number first. `9.6` counts as 9, and `latest` not at all.
fn newest_first(names: Vec<String>, prefix: &str) -> Vec<String> {
    let number = |name: &str| -> Option<u32> { name.strip_prefix(prefix)?.split('.').next()?.parse().ok() };
    let mut found: Vec<(u32, String)> =
        names.into_iter().filter_map(|name| number(&name).map(|number| (number, name))).collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn fake_programs(folder: &Path, version: &str) {
        std::fs::create_dir_all(folder).unwrap();
        for program in ["initdb", "postgres"] {
            // Written by a child, since a program that some process still has open for writing cannot be run.
            let script =
                format!("printf '#!/bin/sh\\necho \"postgres (PostgreSQL) {version}\"\\n' > {program}");
            let script = format!("{script} && chmod 755 {program}");
            let written =
                std::process::Command::new("/bin/sh").arg("-c").arg(script).current_dir(folder).status();
            assert!(written.unwrap().success());
        }
    }

    fn settings(pg_bin: Option<&Path>, path: Option<&Path>) -> Settings {
        Settings {
            pg_bin: pg_bin.map(Path::to_owned),
            search_path: path.map(|path| path.as_os_str().to_owned()),
            max_connections: 10,
            durable: false,
        }
    }

    #[test]
    fn versions_are_read_from_what_the_server_says() {
        let version = |text| Version::parse(text).map(|version| (version.major, version.text));
        let debian = version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n");
        assert_eq!(debian, Some((15, "15.18".to_owned())));
        assert_eq!(version("postgres (PostgreSQL) 18beta1"), Some((18, "18beta1".to_owned())));
        assert_eq!(version("postgres (PostgreSQL) 9.6.24"), Some((9, "9.6.24".to_owned())));
        assert_eq!(version("psql 15"), None);
        assert_eq!(version("postgres (PostgreSQL) devel"), None);
    }

    #[test]
    fn the_newest_folder_comes_first_by_number_not_by_letter() {
        let names = ["9.6", "14", "latest", "100", "15"].map(str::to_owned).to_vec();
        assert_eq!(newest_first(names, ""), ["100", "15", "14", "9.6"]);
        let names = ["postgresql@9", "postgresql@17", "postgresql", "redis"].map(str::to_owned).to_vec();
        assert_eq!(newest_first(names, "postgresql@"), ["postgresql@17", "postgresql@9"]);
    }

    #[test]
    fn known_folders_are_listed_newest_first() {
        let root = tempfile::tempdir().unwrap();
        for folder in
            ["usr/lib/postgresql/14/bin", "usr/lib/postgresql/16/bin", "usr/pgsql-15/bin", "usr/bin"]
        {
            fake_programs(&root.path().join(folder), "1");
        }
        let found = in_known_folders(root.path());
        let found: Vec<_> =
            found.iter().map(|path| path.strip_prefix(root.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(
            found,
            ["usr/lib/postgresql/16/bin", "usr/lib/postgresql/14/bin", "usr/pgsql-15/bin", "usr/bin"]
        );
    }

    #[tokio::test]
    async fn a_link_on_the_path_leads_to_the_folder_of_its_target() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        fake_programs(&root.join("real"), "16.1");
        std::fs::create_dir(root.join("links")).unwrap();
        symlink(root.join("real/initdb"), root.join("links/initdb")).unwrap();
        let found =
            find(&settings(None, Some(&root.join("links"))), None, Path::new("/d"), None).await.unwrap();
        assert_eq!((found.dir, found.version.major), (root.join("real"), 16));
    }

    #[tokio::test]
    async fn a_folder_without_programs_is_refused_by_name() {
        let empty = tempfile::tempdir().unwrap();
        let refused =
            find(&settings(Some(empty.path()), None), None, Path::new("/d"), None).await.unwrap_err();
        assert!(matches!(refused, EmbeddedError::UnusableFolder { .. }), "{refused}");
        assert!(refused.to_string().contains("holds no `initdb`"), "{refused}");
    }

    #[tokio::test]
    async fn versions_that_are_too_old_or_of_another_major_are_refused() {
        let root = tempfile::tempdir().unwrap();
        fake_programs(&root.path().join("13"), "13.9");
        fake_programs(&root.path().join("16"), "16.2");
        let old = find(&settings(Some(&root.path().join("13")), None), None, Path::new("/d"), None)
            .await
            .unwrap_err();
        assert!(old.to_string().contains("13.9 is older than 14"), "{old}");
        let other = settings(Some(&root.path().join("16")), None);
        let other = find(&other, None, Path::new("/d"), Some(15)).await.unwrap_err();
        assert!(matches!(other, EmbeddedError::WrongMajor { needed: 15, .. }), "{other}");
    }

    #[tokio::test]
    async fn where_nothing_is_found_the_failure_lists_what_was_seen() {
        let root = tempfile::tempdir().unwrap();
        fake_programs(&root.path().join("a"), "12.1");
        let mut search = Search {
            account: None,
            needed: None,
            rejected: Vec::new(),
            other_major: None,
            tried: Vec::new(),
        };
        assert_eq!(search.first_suitable(vec![root.path().join("a"), root.path().join("a")]).await, None);
        let failure = search.failure(Path::new("/d"));
        let EmbeddedError::NoBinaries { rejected } = &failure else { panic!("{failure}") };
        assert_eq!(rejected.len(), 1);
        assert!(failure.to_string().contains("apt-get install -y postgresql"), "{failure}");
    }
}
