//! Where the cluster of the embedded PostgreSQL lives, who owns it, and the locks on it.
//!
//! Called by `Embedded::start` and by `server`. A plain user's cluster is in `<data folder>/postgres`. PostgreSQL
//! refuses to run as root, so root's cluster belongs to another user (`postgres`, else `nobody`); where that user cannot
//! enter the data folder, the cluster is below `/var/lib/ringback` and the file `cluster-path` says where.
//! Starts no process.
//!
//! Invariant: what holds the cluster and its socket is a real folder of mode 0700 that belongs to the server's user.
//! Only that user and root can connect, which is why connections need no password.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::process::geteuid;
use sha2::{Digest as _, Sha256};

use super::error::{EmbeddedError, io};

/// Held shared, inside the data folder, by every process that uses the server.
pub(super) const HOLDER_LOCK: &str = "lock";
/// Held exclusively, inside the data folder, while a cluster is created and a server started or stopped.
pub(super) const START_LOCK: &str = "start.lock";
/// Names the folder of the cluster when it is not inside the data folder.
const CLUSTER_PATH: &str = "cluster-path";
/// Where root's clusters go that cannot be in the data folder.
const ROOTS_CLUSTERS: &str = "/var/lib/ringback";
/// The name of a Unix socket must fit into `sun_path`, with a zero after it.
const SOCKET_PATH_MAX: usize = 107;
const LOCK_POLL: Duration = Duration::from_millis(10);
const LOCK_POLLS: u32 = 60_000;

/// The user whom root runs the server as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The folders of one cluster.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The operator's data folder, absolute, without symbolic links.
    pub(super) data_dir: PathBuf,
    /// The cluster's own folder, of the server's user.
    pub(super) base: PathBuf,
    /// PostgreSQL's data directory inside it.
    pub(super) pgdata: PathBuf,
    /// The server's log.
    pub(super) log: PathBuf,
    /// Who runs the server; `None` is this process' own user.
    pub(super) account: Option<Account>,
}

impl Place {
    /// Finds or makes the folder of the cluster. The caller holds `start.lock`.
    pub(super) fn open(data_dir: &Path) -> Result<Self, EmbeddedError> {
        let root = geteuid().is_root();
        let inside = data_dir.join("postgres");
        let (base, account) = match pointer(data_dir)? {
            Some(base) => (base.clone(), if root { Some(account_for(&base)?) } else { None }),
            None if root => {
                let account = account_for(&inside)?;
                let stays = exists(&inside) || closed_to(&account, data_dir).is_none();
                let base =
                    if stays { inside } else { choose_elsewhere(data_dir, Path::new(ROOTS_CLUSTERS))? };
                (base, Some(account))
            }
            None => (inside, None),
        };
        if let Some(account) = &account {
            refuse_a_users_cluster(data_dir, &base, account)?;
        }
        if let (Some(account), Some(parent)) = (&account, base.parent())
            && let Some(path) = closed_to(account, parent)
        {
            return Err(EmbeddedError::Unreachable { path, user: account.name.clone() });
        }
        private_folder(&base, account.as_ref())?;
        Ok(Self {
            data_dir: data_dir.to_owned(),
            pgdata: base.join("data"),
            log: base.join("server.log"),
            base,
            account,
        })
    }

    /// The folder for the server's socket, made if need be: in the cluster's folder, or below `/tmp` when the path would
    /// be too long for a socket. Its name there is derived, so that it is found again, and its owner is checked, so
    /// that nobody else can have made it.
    pub(super) fn socket_dir(&self, port: u16) -> Result<PathBuf, EmbeddedError> {
        let inside = self.base.join("socket");
        let dir = if socket_fits(&inside, port) {
            inside
        } else {
            PathBuf::from(format!("/tmp/ringback-{}-{}", self.owner_uid(), short_hash(&self.pgdata)))
        };
        private_folder(&dir, self.account.as_ref())?;
        Ok(dir)
    }

    fn owner_uid(&self) -> u32 {
        self.account.as_ref().map_or_else(|| geteuid().as_raw(), |account| account.uid)
    }
}

/// Makes or checks the operator's data folder and returns its absolute path without symbolic links.
pub(super) fn open_data_dir(given: &Path) -> Result<PathBuf, EmbeddedError> {
    let root = geteuid().is_root();
    if !given.exists() {
        if let Some(parent) = given.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(io("create", parent))?;
        }
        // The server's user must pass through root's folder; the files in it have modes of their own.
        let made = DirBuilder::new().mode(if root { 0o711 } else { 0o700 }).create(given);
        made.or_else(ignore_existing).map_err(io("create", given))?;
    }
    let data_dir = given.canonicalize().map_err(io("open", given))?;
    let meta = fs::metadata(&data_dir).map_err(io("read", &data_dir))?;
    if !meta.is_dir() {
        return Err(EmbeddedError::InTheWay { path: data_dir, why: "not a folder" });
    }
    let us = geteuid().as_raw();
    if !root && meta.uid() != us {
        let hand_over = format!("sudo chown -R {us} {}", data_dir.display());
        return Err(EmbeddedError::WrongOwner { path: data_dir, owner: meta.uid(), expected: us, hand_over });
    }
    if root && meta.uid() == us && meta.mode() & 0o001 == 0 {
        set_mode(&data_dir, meta.mode() & 0o700 | 0o711)?;
    }
    Ok(data_dir)
}

/// Waits for the lock that admits one process at a time. Held until the file is dropped, or the process dies.
pub(super) async fn lock_exclusive(path: &Path) -> Result<File, EmbeddedError> {
    lock(path, FlockOperation::NonBlockingLockExclusive).await
}

/// Takes the lock that says "this process uses the server".
pub(super) async fn lock_shared(path: &Path) -> Result<File, EmbeddedError> {
    lock(path, FlockOperation::NonBlockingLockShared).await
}

/// Whether nobody else holds the lock that `held` is a share of.
pub(super) fn is_last_holder(held: &File) -> Result<bool, EmbeddedError> {
    match flock(held, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(io("lock", Path::new(HOLDER_LOCK))(error.into())),
    }
}

/// Opens a file of mode 0600 for appending, never through a symbolic link that somebody may have put there.
pub(super) fn open_own_file(path: &Path) -> Result<File, EmbeddedError> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let opened =
        OpenOptions::new().create(true).append(true).read(true).mode(0o600).custom_flags(flags).open(path);
    opened.map_err(io("open", path))
}

async fn lock(path: &Path, operation: FlockOperation) -> Result<File, EmbeddedError> {
    let file = open_own_file(path)?;
    for _ in 0..LOCK_POLLS {
        match flock(&file, operation) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {
                tokio::time::sleep(LOCK_POLL).await;
            }
            Err(error) => return Err(io("lock", path)(error.into())),
        }
    }
    Err(io("lock", path)(io::Error::new(
        io::ErrorKind::TimedOut,
        "another process has held it for ten minutes",
    )))
}

pub(super) fn pointer(data_dir: &Path) -> Result<Option<PathBuf>, EmbeddedError> {
    let file = data_dir.join(CLUSTER_PATH);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("read", &file)(error)),
    };
    let base = PathBuf::from(text.trim_end_matches('\n'));
    if base.is_absolute() {
        Ok(Some(base))
    } else {
        Err(EmbeddedError::InTheWay { path: file, why: "it does not hold an absolute path" })
    }
}

/// Picks a new folder below `parent` and writes it down before it is made. One that exists already belonged to a data
/// folder that was removed; its keys are gone, so it is left alone.
fn choose_elsewhere(data_dir: &Path, parent: &Path) -> Result<PathBuf, EmbeddedError> {
    if !parent.exists() {
        let made = DirBuilder::new().recursive(true).mode(0o711).create(parent);
        made.map_err(io("create", parent))?;
    }
    let name = short_hash(data_dir);
    let names = std::iter::once(name.clone()).chain((2..).map(|n| format!("{name}-{n}")));
    let mut free = names.map(|name| parent.join(name)).filter(|base| !exists(base));
    let base = free.next().unwrap_or_else(|| parent.join(&name));
    let (file, draft) = (data_dir.join(CLUSTER_PATH), data_dir.join("cluster-path.new"));
    fs::write(&draft, format!("{}\n", base.display())).map_err(io("write", &draft))?;
    fs::rename(&draft, &file).map_err(io("write", &file))?;
    Ok(base)
}

/// Makes the folder, or checks that the one which is there is nobody else's.
fn private_folder(path: &Path, account: Option<&Account>) -> Result<(), EmbeddedError> {
    let expected = account.map_or_else(|| geteuid().as_raw(), |account| account.uid);
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {
            if let Some(account) = account {
                chown(path, Some(account.uid), Some(account.gid)).map_err(io("chown", path))?;
            }
            return Ok(());
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io("create", path)(error)),
    }
    let meta = fs::symlink_metadata(path).map_err(io("read", path))?;
    if !meta.is_dir() {
        return Err(EmbeddedError::InTheWay { path: path.to_owned(), why: "not a folder" });
    }
    // A root that was killed between making the folder and giving it away left it empty.
    if let (Some(account), 0) = (account, meta.uid())
        && fs::read_dir(path).map_err(io("read", path))?.next().is_none()
    {
        chown(path, Some(account.uid), Some(account.gid)).map_err(io("chown", path))?;
        return set_mode(path, 0o700);
    }
    if meta.uid() != expected {
        let sudo = if geteuid().is_root() { "" } else { "sudo " };
        let hand_over = format!("{sudo}chown -R {expected} {}", path.display());
        return Err(EmbeddedError::WrongOwner {
            path: path.to_owned(),
            owner: meta.uid(),
            expected,
            hand_over,
        });
    }
    if meta.mode() & 0o077 != 0 { set_mode(path, 0o700) } else { Ok(()) }
}

/// Root, in the data folder of a plain user: says so, before the folder's mode is found to be in the way.
fn refuse_a_users_cluster(data_dir: &Path, base: &Path, account: &Account) -> Result<(), EmbeddedError> {
    let owner = fs::symlink_metadata(base).map_or(0, |meta| meta.uid());
    if owner == 0 || owner == account.uid {
        return Ok(());
    }
    let (data_dir, shown, expected) = (data_dir.display(), base.display(), account.uid);
    let hand_over = format!("chown -R 0 {data_dir} && chown -R {expected} {shown}");
    Err(EmbeddedError::WrongOwner { path: base.to_owned(), owner, expected, hand_over })
}

/// The user that owns the cluster if it exists, else the first of `postgres` and `nobody`.
fn account_for(base: &Path) -> Result<Account, EmbeddedError> {
    let file = Path::new("/etc/passwd");
    let passwd = fs::read_to_string(file).map_err(io("read", file))?;
    let accounts = accounts(&passwd);
    let owner = fs::symlink_metadata(base).ok().map(|meta| meta.uid());
    let of_owner = accounts.iter().find(|account| Some(account.uid) == owner);
    of_owner.or(accounts.first()).cloned().ok_or(EmbeddedError::NoAccount)
}

/// The users that root may run the server as, in the order of preference. Read from the file and not by the system's
/// resolver, because PostgreSQL needs an entry that it can look up as well.
fn accounts(passwd: &str) -> Vec<Account> {
    let read = |line: &str| -> Option<Account> {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?.to_owned(), fields.next()?);
        // macOS writes nobody's ids as -2.
        let mut id = || fields.next()?.parse::<i64>().ok().map(|id| id as u32);
        Some(Account { name, uid: id()?, gid: id()? })
    };
    let all: Vec<Account> = passwd.lines().filter_map(read).filter(|account| account.uid != 0).collect();
    let named = |name: &str| all.iter().find(|account| account.name == name).cloned();
    ["postgres", "nobody"].into_iter().filter_map(named).collect()
}

/// The first folder on the way to `path` (and `path` itself) that the account cannot enter.
fn closed_to(account: &Account, path: &Path) -> Option<PathBuf> {
    let mut folders: Vec<&Path> = path.ancestors().collect();
    folders.reverse();
    let closed = |folder: &&Path| fs::metadata(folder).is_ok_and(|meta| !may_enter(account, &meta));
    folders.into_iter().find(closed).map(Path::to_owned)
}

fn may_enter(account: &Account, meta: &fs::Metadata) -> bool {
    let bit = match meta {
        meta if meta.uid() == account.uid => 0o100,
        meta if meta.gid() == account.gid => 0o010,
        _ => 0o001,
    };
    meta.mode() & bit != 0
}

fn socket_fits(dir: &Path, port: u16) -> bool {
    dir.join(format!(".s.PGSQL.{port}")).as_os_str().len() <= SOCKET_PATH_MAX
}

/// Sixteen hexadecimal digits that stand for a path.
fn short_hash(path: &Path) -> String {
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    digest.iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn set_mode(path: &Path, mode: u32) -> Result<(), EmbeddedError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io("change the mode of", path))
}

fn ignore_existing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\nbroken\nnobody:*:-2:-2::/:/bin/false\n\
                          postgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\n";

    #[test]
    fn root_runs_the_server_as_postgres_else_as_nobody() {
        let names = |passwd| {
            accounts(passwd).into_iter().map(|account| (account.name, account.uid)).collect::<Vec<_>>()
        };
        assert_eq!(names(PASSWD), [("postgres".to_owned(), 101), ("nobody".to_owned(), u32::MAX - 1)]);
        assert_eq!(names("postgres:x:0:0::/:/bin/sh"), []);
    }

    #[test]
    fn a_folder_is_entered_by_the_bits_of_its_owner_group_or_others() {
        let dir = tempfile::tempdir().unwrap();
        let meta = fs::metadata(dir.path()).unwrap();
        let account = |uid, gid| Account { name: "someone".to_owned(), uid, gid };
        set_mode(dir.path(), 0o710).unwrap();
        assert_eq!(closed_to(&account(meta.uid(), 54_321), dir.path()), None);
        assert_eq!(closed_to(&account(54_321, meta.gid()), dir.path()), None);
        assert_eq!(closed_to(&account(54_321, 54_321), dir.path()), Some(dir.path().to_owned()));
        set_mode(dir.path(), 0o701).unwrap();
        assert_eq!(closed_to(&account(54_321, 54_321), dir.path()), None);
        assert_eq!(closed_to(&account(54_321, meta.gid()), dir.path()), Some(dir.path().to_owned()));
    }

    #[test]
    fn a_socket_path_of_107_bytes_fits_and_one_of_108_does_not() {
        let dir = |length: usize| PathBuf::from(format!("/{}", "d".repeat(length - 1)));
        let name = "/.s.PGSQL.5432".len();
        assert!(socket_fits(&dir(SOCKET_PATH_MAX - name), 5432));
        assert!(!socket_fits(&dir(SOCKET_PATH_MAX - name + 1), 5432));
    }

    #[test]
    fn a_cluster_elsewhere_is_written_down_and_never_takes_the_place_of_an_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let (data_dir, parent) = (dir.path().join("data"), dir.path().join("clusters"));
        fs::create_dir(&data_dir).unwrap();
        let first = choose_elsewhere(&data_dir, &parent).unwrap();
        assert_eq!(pointer(&data_dir).unwrap(), Some(first.clone()));
        fs::create_dir(&first).unwrap();
        let second = choose_elsewhere(&data_dir, &parent).unwrap();
        assert_ne!(first, second);
        assert_eq!(pointer(&data_dir).unwrap(), Some(second));
    }

    #[test]
    fn a_link_or_a_file_in_place_of_a_private_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        std::os::unix::fs::symlink("/tmp", &path).unwrap();
        let refused = private_folder(&path, None).unwrap_err();
        assert!(matches!(refused, EmbeddedError::InTheWay { .. }), "{refused}");
    }
}
