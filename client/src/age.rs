//! How long ago a request id was first sent.
//!
//! A coordinator that may have forgotten what it committed then would do the work again. It must learn an age that is never too small.

use std::{
    sync::{Arc, OnceLock},
    time::{Instant, SystemTime},
};

/// When a request id was first sent. Clones are of one request id, and share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct FirstSent(Arc<OnceLock<(Instant, SystemTime)>>);

impl FirstSent {
    /// At this time, perhaps by another process.
    pub(crate) fn at(time: SystemTime) -> Self {
        Self(Arc::new(OnceLock::from((Instant::now(), time))))
    }

    /// For the next attempt's message: unset in the first one, which is noted here.
    pub(crate) fn age(&self) -> Option<prost_types::Duration> {
        let mut is_first = false;
        let (instant, time) = self.0.get_or_init(|| {
            is_first = true;
            (Instant::now(), SystemTime::now())
        });
        if is_first {
            return None;
        }
        // The steady clock stands still while the machine sleeps, and the other one may be set back: the larger of the two.
        let age = instant.elapsed().max(time.elapsed().unwrap_or_default());
        Some(prost_types::Duration {
            seconds: age.as_secs().try_into().unwrap_or(i64::MAX),
            nanos: age
                .subsec_nanos()
                .try_into()
                .expect("below 1000000000, which fits"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_the_first_attempt_has_no_age_and_clones_share_it() {
        let first_sent = FirstSent::default();
        assert_eq!(first_sent.clone().age(), None);
        let second = first_sent.age().expect("sent before");
        let third = first_sent.age().expect("sent before");
        assert!((second.seconds, second.nanos) <= (third.seconds, third.nanos));
    }

    #[test]
    fn a_sleep_of_the_machine_counts_and_a_clock_set_back_does_not() {
        let hour = Duration::from_secs(3_600);
        let slept = FirstSent::at(SystemTime::now() - hour)
            .age()
            .expect("sent before");
        assert!((3_600..3_660).contains(&slept.seconds), "{slept:?}");
        let set_back = FirstSent::at(SystemTime::now() + hour)
            .age()
            .expect("sent before");
        assert!((0..60).contains(&set_back.seconds), "{set_back:?}");
    }
}
