//! Keys that were made at the first start and are kept in the data folder, readable by nobody else.
//!
//! Called by `app` (makes and reads) and `cli` (reads). A file is complete or not there: it is written aside and renamed.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine};
use zeroize::Zeroize;

use crate::secret::{SealError, Secret, random_bytes};

/// A new master key: base64 of 32 random bytes.
/// # Errors
/// [`SealError::NoRandomness`].
pub fn new_master_key() -> Result<Secret<String>, SealError> {
    let mut bytes = random_bytes()?;
    let text = BASE64_STANDARD.encode(bytes);
    bytes.zeroize();
    Ok(Secret::new(text))
}

/// The key in the file.
/// # Errors
/// It cannot be read.
pub fn read(path: &Path) -> io::Result<Secret<String>> {
    let mut text = fs::read_to_string(path)?;
    let key = Secret::new(text.trim().to_owned());
    text.zeroize();
    Ok(key)
}

/// The key in the file, and whether it was made just now.
/// # Errors
/// The file can neither be read nor written, or there are no random bytes.
pub fn read_or_make(
    path: &Path,
    make: impl FnOnce() -> Result<Secret<String>, SealError>,
) -> io::Result<(Secret<String>, bool)> {
    match read(path) {
        Ok(key) => return Ok((key, false)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let key = make().map_err(io::Error::other)?;
    let aside = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
    file.write_all(key.expose().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    // A second process that starts at the same moment must not end up with another key.
    match fs::hard_link(&aside, path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(&aside)?;
            return Ok((read(path)?, false));
        }
        Err(error) => return Err(error),
    }
    fs::remove_file(&aside)?;
    Ok((key, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_is_private() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("api-key");
        let (first, fresh) = read_or_make(&path, new_master_key).expect("made");
        let (second, again) = read_or_make(&path, new_master_key).expect("read");
        assert!(fresh && !again && first == second);
        assert_eq!(fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
    }
}
