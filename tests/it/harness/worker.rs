//! `ringback worker` as a child.
//!
//! Invariant: it ends with its test, and with the test process however that ends: the guard kills it when its input closes.

use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::service::API_KEY;

/// `ringback worker` for jobs of the kind `do`.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Option<Child>,
    guard: Child,
}

impl Worker {
    /// `sh -c script` for each job of the kind `do`.
    pub(crate) fn start(url: &str, options: &[&str], script: &str) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_ringback"))
            .args(["worker", "--kind", "do"])
            .args(options)
            .args(["--", "sh", "-c", script])
            .env("RINGBACK_URL", url)
            .env("RINGBACK_API_KEY", API_KEY)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let guard = Command::new("sh")
            .args(["-c", "read _; kill -KILL \"$1\" 2>/dev/null", "guard", &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        Self { child: Some(child), guard }
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("it runs");
    }

    /// Waits for its end: exit code, and what it said.
    pub(crate) fn wait(mut self) -> (Option<i32>, String) {
        let Output { status, stderr, .. } =
            self.child.take().expect("it runs").wait_with_output().expect("it ends");
        (status.code(), String::from_utf8_lossy(&stderr).into_owned())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // First of all, or it would kill whoever has the number next.
        let _ = self.guard.kill();
        let _ = self.guard.wait();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
