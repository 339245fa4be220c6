//! Waiting for what will happen, rather than for time to pass.

use std::{
    fmt::Debug,
    future::Future,
    thread,
    time::{Duration, Instant},
};

/// How long anything may take that should take no time. Machines that build and test at once are slow.
pub const PATIENCE: Duration = Duration::from_secs(30);

const POLL: Duration = Duration::from_millis(10);

/// Looks until there is something to see.
///
/// # Panics
/// Where there is nothing within [`PATIENCE`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(POLL).await;
    }
}

/// Looks until what is seen is this.
///
/// # Panics
/// Where it isn't within [`PATIENCE`]; says what was seen last.
pub async fn becomes<T: PartialEq + Debug, F: Future<Output = T>>(
    what: &str,
    expected: T,
    mut look: impl FnMut() -> F,
) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look().await;
        if seen == expected {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{what}: {seen:?} rather than {expected:?} after {PATIENCE:?}"
        );
        tokio::time::sleep(POLL).await;
    }
}

/// As [`eventually`], on a thread.
///
/// # Panics
/// Where there is nothing within [`PATIENCE`].
pub fn eventually_blocking<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(POLL);
    }
}
