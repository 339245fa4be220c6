//! The time of the engine, which only goes forward, beside the time of the world, which people read.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use unanimity_engine::Moment;

/// Wake up at least so often, so that sleeping has an end.
const IDLE: Duration = Duration::from_secs(3_600);

/// The clock of one engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

/// One moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// The engine's.
    pub(crate) moment: Moment,
    /// Milliseconds since 1970.
    pub(crate) unix_ms: u64,
}

impl Clock {
    /// Starts now.
    pub(crate) fn start() -> Self {
        Clock(Instant::now())
    }

    /// The moment that is now.
    pub(crate) fn moment(self) -> Moment {
        Moment(self.0.elapsed().as_millis() as u64)
    }

    /// The same, on both clocks.
    pub(crate) fn now(self) -> Now {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        Now {
            moment: self.moment(),
            unix_ms: since_1970.unwrap_or_default().as_millis() as u64,
        }
    }

    /// Never earlier than the moment, which is rounded down.
    pub(crate) fn instant(self, moment: Moment) -> Instant {
        let bounded = Duration::from_millis(moment.0).min(self.0.elapsed() + IDLE);
        self.0 + bounded
    }
}

impl Now {
    /// When a moment is, or was, in milliseconds since 1970, as the world's clock goes now.
    pub(crate) fn unix_ms_at(self, moment: Moment) -> u64 {
        let ahead = moment.0.saturating_sub(self.moment.0);
        let behind = self.moment.0.saturating_sub(moment.0);
        self.unix_ms.saturating_add(ahead).saturating_sub(behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_told_by_the_world_s_clock() {
        let now = Now {
            moment: Moment(100),
            unix_ms: 5_000,
        };
        assert_eq!(now.unix_ms_at(Moment(100)), 5_000);
        assert_eq!(now.unix_ms_at(Moment(350)), 5_250);
        assert_eq!(now.unix_ms_at(Moment(40)), 4_940);
        assert_eq!(now.unix_ms_at(Moment(u64::MAX)), u64::MAX);
    }
}
