//! The verbs of the command line, as the real program: what they print and how they end.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A folder that the user who runs root's database can enter: otherwise the database would be put outside of it, and
/// stay there when the folder is removed.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o711)).expect("its mode can be changed");
    folder
}

fn ringback(folder: &Path, arguments: &[&str], stdin: &[u8]) -> (Option<i32>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringback"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("DATABASE_URL")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A program that does not read its input closes it, which is no fault.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin);
    let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    (status.code(), text)
}

#[test]
fn the_demo_shows_the_whole_loop_and_ends_well() {
    let folder = folder();

    let (code, text) = ringback(folder.path(), &["demo"], b"");

    assert_eq!(code, Some(0), "{text}");
    for told in
        ["job_", "202 in", "attempt 1 → receiver answered 500", "webhook-signature", "signature verified"]
    {
        assert!(text.contains(told), "no {told} in:\n{text}");
    }
    assert!(!text.contains("rbk_") && !text.contains("whsec_"), "a secret is shown:\n{text}");
}

#[test]
fn the_doctor_finds_a_new_installation_in_order_and_changes_nothing() {
    let folder = folder();
    let (code, text) = ringback(folder.path(), &["migrate"], b"");
    assert_eq!(code, Some(0), "{text}");

    let (code, text) = ringback(folder.path(), &["doctor", "--listen", "127.0.0.1:0"], b"");

    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("PostgreSQL") && !text.contains("FAIL"), "{text}");
    let (again, json) = ringback(folder.path(), &["doctor", "--listen", "127.0.0.1:0", "--json"], b"");
    assert_eq!(again, Some(0), "{json}");
    let checks: Vec<serde_json::Value> = serde_json::from_str(&json).expect("a list");
    assert!(checks.iter().all(|check| check["check"].is_string() && check["status"].is_string()), "{json}");
}

#[test]
fn verify_says_whether_a_signature_fits_and_why_not() {
    let folder = folder();
    let secret = standardwebhooks::Webhook::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a secret");
    let body = br#"{"type":"job.succeeded",  "data":{"id":1}}"#;
    let signature = secret.sign("evt_1", 1_700_000_000, body).expect("signed");
    let verify = |extra: &[&str], body: &[u8]| {
        let mut arguments =
            vec!["verify", "--secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "--id", "evt_1"];
        arguments.extend(["--timestamp", "1700000000", "--signature", signature.as_str()]);
        arguments.extend(extra);
        ringback(folder.path(), &arguments, body)
    };

    let (code, text) = verify(&["--no-tolerance"], body);
    assert_eq!((code, text.contains("verified")), (Some(0), true), "{text}");

    let (code, text) = verify(&[], body);
    assert_eq!((code, text.contains("old")), (Some(1), true), "{text}");

    // Sent with two spaces, which no framework writes: what it says then is a guess, and must stay a refusal.
    let (code, text) = verify(&["--no-tolerance"], br#"{"type":"job.succeeded","data":{"id":1}}"#);
    assert_eq!(code, Some(1), "{text}");
    let with_line_end = [body.as_slice(), b"\n"].concat();
    let (code, text) = verify(&["--no-tolerance"], &with_line_end);
    assert_eq!((code, text.contains("line end")), (Some(1), true), "{text}");
    assert!(!text.contains("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), "the secret is shown: {text}");
}

#[test]
fn wrong_words_are_answered_with_the_right_ones() {
    let folder = folder();
    let (code, text) = ringback(folder.path(), &["sreve"], b"");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("serve"), "{text}");
}
