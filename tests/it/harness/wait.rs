//! Waiting for conditions, with a deadline.
//!
//! Where the service offers a signal (a long poll, a callback) tests wait for that. For the rest there is `eventually`,
//! which asks again and again: how long the answer takes decides nothing but how long the test takes.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// What takes longer than this will not happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Asks until the answer fits, and returns it.
pub(crate) async fn eventually<T: Debug>(
    what: &str,
    mut ask: impl AsyncFnMut() -> T,
    fits: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if fits(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}; the last answer: {answer:?}");
        tokio::time::sleep(ASK_EVERY).await;
    }
}
