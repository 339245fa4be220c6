//! How long to wait before the next try: full jitter under a ceiling that doubles.
//!
//! Full jitter spreads the participants of a restarted coordinator, which all lost their sessions in the same moment.

use std::time::{Duration, Instant};

/// Waits that grow.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    tries: u32,
}

impl Backoff {
    /// Waits up to `first`, then up to twice as long, and so on up to `longest`.
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            tries: 0,
        }
    }

    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        self.ceiling().mul_f64(rand::random::<f64>())
    }

    /// The next wait for what only a human can cure: at least half the ceiling, so that the log stays readable.
    pub(crate) fn next_slow(&mut self) -> Duration {
        self.ceiling().mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }

    fn ceiling(&mut self) -> Duration {
        let factor = 2_u32.saturating_pow(self.tries);
        self.tries = self.tries.saturating_add(1);
        self.first.saturating_mul(factor).min(self.longest)
    }
}

/// While something is away, this often a warning.
const WARNING_INTERVAL: Duration = Duration::from_secs(30);

/// Keeps a log readable while something is tried again and again.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    last: Option<Instant>,
}

impl Warnings {
    /// Whether a warning is due: at first, and then now and again. In between, say it at debug level.
    pub(crate) fn due(&mut self) -> bool {
        let due = self
            .last
            .is_none_or(|last| last.elapsed() >= WARNING_INTERVAL);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_longest() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let ceilings: Vec<u128> = (0..8).map(|_| backoff.ceiling().as_millis()).collect();
        assert_eq!(ceilings, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
        backoff.tries = u32::MAX;
        assert!(backoff.next() <= Duration::from_secs(2));
        assert!(backoff.next_slow() >= Duration::from_secs(1));
    }
}
