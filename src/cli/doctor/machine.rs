//! The doctor's look at the machine: files and their modes, limits, certificate authorities, the address.
//!
//! Called by `doctor`. Reads and asks, and for a moment binds the address to see whether it is free.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustix::process::{Resource, geteuid, getrlimit};

use super::super::client::{Client, ClientError};
use super::report::{Check, Report, number};
use crate::config::Config;

/// Each delivery on the wire, each caller and each job that runs needs a file descriptor.
const OPEN_FILES_WANTED: u64 = 4_096;
/// What nobody but the owner may do with a key.
const GROUP_AND_OTHERS: u32 = 0o077;
/// What nobody but the owner may do with the data folder; passing through it may be needed.
const WRITE_OF_OTHERS: u32 = 0o022;

/// Examines the machine.
pub(super) async fn examine(config: &Config, report: &mut Report) {
    report.add(data_folder(&config.data_dir));
    for name in ["master-key", "api-key"] {
        report.add_all(key_file(&config.data_dir.join(name)));
    }
    report.add(open_files(getrlimit(Resource::Nofile).current));
    report.add(authorities());
    report.add(address(config).await);
}

fn data_folder(folder: &Path) -> Check {
    let shown = folder.display();
    match std::fs::metadata(folder) {
        Ok(meta) if !meta.is_dir() => Check::fail(
            "data folder",
            format!("{shown} is no folder"),
            "name another one with RINGBACK_DATA_DIR",
        ),
        Ok(meta) if meta.uid() != geteuid().as_raw() && !geteuid().is_root() => Check::fail(
            "data folder",
            format!("{shown} belongs to uid {}, and this is uid {}", meta.uid(), geteuid().as_raw()),
            "run Ringback as the user that made it, or name another one with RINGBACK_DATA_DIR",
        ),
        Ok(meta) if meta.mode() & WRITE_OF_OTHERS != 0 => Check::fail(
            "data folder",
            format!("others may write to {shown} (mode {:o})", meta.mode() & 0o777),
            format!("chmod go-w {shown}"),
        ),
        Ok(meta) => Check::ok("data folder", format!("{shown}, mode {:o}", meta.mode() & 0o777)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Check::ok("data folder", format!("{shown} is not there yet; the first start makes it"))
        }
        Err(error) => {
            Check::fail("data folder", format!("{shown}: {error}"), "name another one with RINGBACK_DATA_DIR")
        }
    }
}

/// `None`: it is not there, and may not be needed.
fn key_file(file: &Path) -> Option<Check> {
    let shown = file.display();
    match std::fs::metadata(file) {
        Ok(meta) if meta.mode() & GROUP_AND_OTHERS != 0 => Some(Check::fail(
            "key file",
            format!("others may use {shown} (mode {:o})", meta.mode() & 0o777),
            format!("chmod 600 {shown}"),
        )),
        Ok(meta) => Some(Check::ok("key file", format!("{shown}, mode {:o}", meta.mode() & 0o777))),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => Some(Check::fail(
            "key file",
            format!("{shown}: {error}"),
            "run Ringback as the user that made it",
        )),
    }
}

/// `None`: there is no limit.
fn open_files(limit: Option<u64>) -> Check {
    match limit {
        Some(limit) if limit < OPEN_FILES_WANTED => Check::warn(
            "open files",
            format!("{} at most; deliveries on the wire and callers need one each", number(limit as i64)),
            "ulimit -n 65536, or LimitNOFILE=65536 in the unit of systemd",
        ),
        Some(limit) => {
            Check::ok("open files", format!("{} at most", number(i64::try_from(limit).unwrap_or(i64::MAX))))
        }
        None => Check::ok("open files", "no limit"),
    }
}

/// The same verifier as `outbound::tls` makes.
fn authorities() -> Check {
    match rustls_platform_verifier::Verifier::new(Arc::new(rustls::crypto::ring::default_provider())) {
        Ok(_) => Check::ok("certificate authorities", "found; callbacks to https can be verified"),
        Err(error) => Check::fail(
            "certificate authorities",
            format!("none, so every callback to https fails ({error})"),
            "install the package ca-certificates, or set SSL_CERT_FILE",
        ),
    }
}

async fn address(config: &Config) -> Check {
    let address = config.listen;
    let fix = "choose another address with RINGBACK_LISTEN";
    match TcpListener::bind(address) {
        Ok(_) => Check::ok("address", format!("{address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let url = super::super::demo::reachable(address);
            let answer = match Client::new(&url, None) {
                Ok(client) => client.get("/readyz").await.map(|reply| reply.body),
                Err(error) => Err(error),
            };
            in_use(&url, answer)
        }
        Err(error) => Check::fail("address", format!("cannot listen on {address}: {error}"), fix),
    }
}

/// Somebody listens there; is it one of us?
fn in_use(url: &str, answer: Result<serde_json::Value, ClientError>) -> Check {
    let is_ours = |body: &serde_json::Value| body.get("status").is_some();
    match answer {
        Ok(body) if is_ours(&body) => {
            Check::ok("address", format!("a Ringback answers on {url} and is ready"))
        }
        Err(ClientError::Refused { status: 503, body: Some(body), detail, .. }) if is_ours(&body) => {
            Check::warn(
                "address",
                format!("a Ringback answers on {url} but is not ready: {detail}"),
                "its log has the reason; it may be stopping, or without its database",
            )
        }
        _ => Check::fail(
            "address",
            format!("another program listens on {url}"),
            "choose another address with RINGBACK_LISTEN, or stop it (ss -ltnp shows which it is)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Status;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_that_others_can_read_fails() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("api-key");
        assert_eq!(key_file(&file), None);
        std::fs::write(&file, "rbk_").expect("written");
        let with_mode = |mode| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("mode");
            key_file(&file).map(|check| check.status)
        };
        assert_eq!(
            [0o600, 0o640, 0o604].map(with_mode),
            [Some(Status::Ok), Some(Status::Fail), Some(Status::Fail)]
        );
    }

    #[test]
    fn few_open_files_are_worth_a_warning() {
        let statuses = [Some(1_024), Some(4_096), None].map(|limit| open_files(limit).status);
        assert_eq!(statuses, [Status::Warn, Status::Ok, Status::Ok]);
    }

    #[test]
    fn a_stranger_on_our_address_is_told_from_a_ringback() {
        let refused =
            |body| ClientError::Refused { request: String::new(), status: 503, detail: String::new(), body };
        let ready = serde_json::json!({ "status": "ok" });
        let stopping = serde_json::json!({ "status": "stopping" });
        assert_eq!(in_use("u", Ok(ready)).status, Status::Ok);
        assert_eq!(in_use("u", Err(refused(Some(stopping)))).status, Status::Warn);
        assert_eq!(in_use("u", Err(refused(None))).status, Status::Fail);
        assert_eq!(in_use("u", Ok(serde_json::Value::Null)).status, Status::Fail);
    }
}
