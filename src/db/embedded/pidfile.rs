//! Reads `postmaster.pid`, by which a running server is known, and judges whether the process it names is that server.
//!
//! Called by `server`. The file survives a crash of the machine, so its process number may be nobody's or another
//! program's by now.
//! Starts and stops nothing.
//!
//! Invariant: a stale file is never removed. Its seventh line names the shared memory by which PostgreSQL itself
//! notices children of a dead server that still write to the cluster; only the process number is struck out.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::error::{EmbeddedError, io};
use super::server::is_alive;

const NAME: &str = "postmaster.pid";
/// Larger than any system's largest process number, so it is nobody's for ever.
const NO_PROCESS: &str = "2147483647";

/// The lines of `postmaster.pid` that matter here; the later ones appear as the server comes up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PidFile {
    pub(super) pid: i32,
    data_dir: PathBuf,
    pub(super) port: Option<u16>,
    pub(super) socket_dir: Option<PathBuf>,
    status: String,
}

/// Whose the process is that a pid file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A server on this very data directory.
    OurServer,
    /// A server that was started here when the folder had another path.
    MovedServer,
    /// It is gone, or the number is another program's now, or the file is a copy of another cluster's.
    Nobody,
}

impl PidFile {
    /// `None` when there is no file, or it is not written yet.
    pub(super) fn read(pgdata: &Path) -> Option<Self> {
        Self::parse(&fs::read(pgdata.join(NAME)).ok()?)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.lines();
        // A server in single-user mode writes its number with a minus.
        let pid = lines.next()?.trim().parse::<i32>().ok()?.checked_abs().filter(|pid| *pid > 0)?;
        let data_dir = PathBuf::from(lines.next()?);
        let mut rest = lines.skip(1);
        let port = rest.next().and_then(|line| line.trim().parse().ok());
        let socket_dir = rest.next().filter(|line| !line.is_empty()).map(PathBuf::from);
        let status = rest.nth(2).unwrap_or_default().trim().to_owned();
        Some(Self { pid, data_dir, port, socket_dir, status })
    }

    /// The server has said that it accepts connections.
    pub(super) fn is_ready(&self) -> bool {
        self.status == "ready"
    }

    /// The server has been told to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.status == "stopping"
    }

    /// Judges the process, for the file that was read from `pgdata`.
    pub(super) fn owner(&self, pgdata: &Path) -> Owner {
        if !is_alive(self.pid) || !is_server_of(&command_line(self.pid), &self.data_dir) {
            Owner::Nobody
        } else if is_same_folder(&self.data_dir, pgdata) {
            Owner::OurServer
        } else if Self::read(&self.data_dir).is_some_and(|there| there.pid == self.pid) {
            Owner::Nobody
        } else {
            Owner::MovedServer
        }
    }
}

/// Strikes the process number out of a stale file, if the number is in use: PostgreSQL believes any live process.
pub(super) fn disown(pgdata: &Path, stale: &PidFile) -> Result<(), EmbeddedError> {
    if !is_alive(stale.pid) {
        return Ok(());
    }
    let file = pgdata.join(NAME);
    let bytes = fs::read(&file).map_err(io("read", &file))?;
    let rest = bytes.iter().position(|byte| *byte == b'\n').map_or(&[][..], |at| &bytes[at..]);
    // Written over, not replaced: the file keeps its owner, which is not us when we are root.
    fs::write(&file, [NO_PROCESS.as_bytes(), rest].concat()).map_err(io("write", &file))
}

/// The arguments of a process; none when it is gone, or a zombie, or not to be seen.
#[cfg(target_os = "linux")]
fn command_line(pid: i32) -> Vec<Vec<u8>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

/// The arguments of a process, split at spaces; none when it is gone.
#[cfg(not(target_os = "linux"))]
fn command_line(pid: i32) -> Vec<Vec<u8>> {
    let answer = std::process::Command::new("ps").args(["-o", "command=", "-p", &pid.to_string()]).output();
    let bytes = answer.map(|output| output.stdout).unwrap_or_default();
    vec![bytes.trim_ascii().to_vec()]
}

/// Whether these are the arguments of a server on that data directory. Where they come as one line, the folder is
/// looked for in it.
fn is_server_of(arguments: &[Vec<u8>], data_dir: &Path) -> bool {
    let Some((first, rest)) = arguments.split_first() else { return false };
    let data_dir = data_dir.as_os_str().as_bytes();
    let within = |line: &[u8]| line.windows(data_dir.len().max(1)).any(|part| part == data_dir);
    let is_postgres = |program: &[u8]| {
        let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        name.starts_with(b"postgres") || name.starts_with(b"postmaster")
    };
    if rest.is_empty() {
        let program = first.split(|byte| *byte == b' ').next().unwrap_or_default();
        return is_postgres(program) && within(first);
    }
    is_postgres(first) && rest.iter().any(|argument| argument == data_dir || argument.ends_with(data_dir))
}

fn is_same_folder(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: &str =
        "4711\n/d/postgres/data\n1763974800\n5432\n/d/postgres/socket\n\n  9043281         5\nready   \n";

    #[test]
    fn a_file_is_read_as_far_as_it_is_written() {
        let ready = PidFile::parse(READY.as_bytes()).unwrap();
        assert_eq!((ready.pid, ready.port, ready.is_ready()), (4711, Some(5432), true));
        assert_eq!(ready.data_dir, Path::new("/d/postgres/data"));
        assert_eq!(ready.socket_dir.as_deref(), Some(Path::new("/d/postgres/socket")));
        let early = PidFile::parse(b"4711\n/d/postgres/data\n1763974800\n").unwrap();
        assert_eq!((early.port, early.socket_dir.is_none(), early.is_ready()), (None, true, false));
        assert!(PidFile::parse(READY.replace("ready   ", "stopping").as_bytes()).unwrap().is_stopping());
    }

    #[test]
    fn what_is_not_a_pid_file_is_none() {
        for bytes in
            [&b""[..], b"\n", b"4711", b"0\n/d\n", b"many\n/d\n", b"-2147483648\n/d\n", b"\xff\xfe\n/d"]
        {
            assert_eq!(PidFile::parse(bytes), None, "{bytes:?}");
        }
        assert_eq!(PidFile::parse(b"-4711\n/d\n").unwrap().pid, 4711);
    }

    #[test]
    fn a_server_is_known_by_its_program_and_its_folder() {
        let server = |line: &str| {
            let arguments: Vec<Vec<u8>> = line.split('|').map(|part| part.as_bytes().to_vec()).collect();
            is_server_of(&arguments, Path::new("/d/data"))
        };
        assert!(server("/usr/lib/postgresql/15/bin/postgres|-D|/d/data|-k|/d/socket|"));
        assert!(server("/opt/bin/postgres -D /d/data -k /d/socket"));
        assert!(!server("/usr/lib/postgresql/15/bin/postgres|-D|/other|"));
        assert!(!server("/usr/bin/vim|/d/data|"));
        assert!(!server(""));
    }

    #[test]
    fn a_number_that_another_program_has_now_is_struck_out_and_the_rest_kept() {
        let dir = tempfile::tempdir().unwrap();
        let ours = READY.replace("4711", &std::process::id().to_string());
        fs::write(dir.path().join(NAME), &ours).unwrap();
        let stale = PidFile::read(dir.path()).unwrap();
        assert_eq!(stale.owner(dir.path()), Owner::Nobody);
        disown(dir.path(), &stale).unwrap();
        let text = fs::read_to_string(dir.path().join(NAME)).unwrap();
        assert_eq!(text, READY.replace("4711", NO_PROCESS));
        assert!(!is_alive(NO_PROCESS.parse().unwrap()));
    }
}
