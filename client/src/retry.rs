//! Attempts of one request, until it is answered or time is up.
//!
//! Every call that comes through here is idempotent: a submit and a begin by their request id, a commit and an abort by the
//! transaction's id. What must never happen: that a later "not taken" hides an earlier attempt that may have been taken.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::error::{Doubt, Verdict};

const SHORTEST_CAP: Duration = Duration::from_millis(20);
const LONGEST_CAP: Duration = Duration::from_secs(1);

/// No wait is longer: clocks and gRPC deadlines can't hold any duration.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long to go on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// No attempt starts later.
    pub(crate) start_until: Instant,
    /// Nothing runs on past this; unset, the last attempt may take its full time, so that a clean answer isn't cut into a doubt.
    pub(crate) end_by: Option<Instant>,
    /// The longest that one attempt waits.
    pub(crate) attempt: Duration,
}

/// What the attempts came to.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The last attempt's verdict.
    pub(crate) last: Verdict,
    /// Whether any attempt may have been taken.
    pub(crate) doubted: bool,
}

/// Calls until an answer comes, a verdict which no retry can change, or the end of patience.
pub(crate) async fn persist<T, F, Fut>(patience: Patience, mut call: F) -> Result<T, Failure>
where
    F: FnMut(Duration) -> Fut,
    Fut: Future<Output = Result<T, Verdict>>,
{
    let mut cap = SHORTEST_CAP;
    let mut doubted = false;
    loop {
        let limit = match patience.end_by {
            Some(end) => patience
                .attempt
                .min(end.saturating_duration_since(Instant::now())),
            None => patience.attempt,
        };
        let last = match timeout(limit, call(limit)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(verdict)) => verdict,
            Err(_) => Verdict::MaybeTaken(Doubt::no_answer(format!("no answer within {limit:?}"))),
        };
        doubted |= matches!(last, Verdict::MaybeTaken(_));
        // Full jitter: callers that failed together don't come back together.
        let pause = cap
            .mul_f64(rand::random())
            .max(last.retry_after().unwrap_or_default());
        let left = patience
            .start_until
            .saturating_duration_since(Instant::now());
        if !last.is_retryable() || pause >= left {
            return Err(Failure { last, doubted });
        }
        sleep(pause).await;
        cap = (cap * 2).min(LONGEST_CAP);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::{Error, Reason};

    fn patience(start_for: Duration) -> Patience {
        Patience {
            start_until: Instant::now() + start_for,
            end_by: None,
            attempt: Duration::from_secs(5),
        }
    }

    fn busy() -> Verdict {
        Verdict::NotTaken(Error::Busy {
            reason: Reason::ParticipantBusy,
            message: "full".into(),
            retry_after: None,
        })
    }

    fn invalid() -> Verdict {
        Verdict::NotTaken(Error::invalid("branches", "wrong"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_coordinator_is_asked_until_patience_ends() {
        let attempts = Cell::new(0);
        let failure = persist(patience(Duration::from_secs(30)), |_| {
            attempts.set(attempts.get() + 1);
            async { Err::<(), _>(busy()) }
        })
        .await
        .expect_err("never taken");
        assert!(!failure.doubted);
        assert!(
            (30..200).contains(&attempts.get()),
            "{} attempts",
            attempts.get()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_retry_can_change_is_not_retried() {
        let attempts = Cell::new(0);
        let failure = persist(patience(Duration::from_secs(30)), |_| {
            attempts.set(attempts.get() + 1);
            async { Err::<(), _>(invalid()) }
        })
        .await;
        assert_eq!(failure.expect_err("invalid").last, invalid());
        assert_eq!(attempts.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_doubt_outlives_a_later_refusal() {
        let attempts = Cell::new(0);
        let failure = persist(patience(Duration::from_secs(30)), |_| {
            attempts.set(attempts.get() + 1);
            let first = attempts.get() == 1;
            async move {
                Err::<(), _>(if first {
                    Verdict::MaybeTaken(Doubt::no_answer("lost"))
                } else {
                    invalid()
                })
            }
        })
        .await
        .expect_err("invalid");
        assert!(failure.doubted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_attempt_is_a_doubt() {
        let failure = persist(patience(Duration::ZERO), |_| {
            std::future::pending::<Result<(), Verdict>>()
        })
        .await
        .expect_err("hangs");
        assert!(failure.doubted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_beyond_all_clocks_ends_the_attempts() {
        let failure = persist(patience(LONGEST_WAIT), |_| async {
            Err::<(), _>(Verdict::NotTaken(Error::Unavailable {
                reason: Reason::Draining,
                message: String::new(),
                retry_after: Some(Duration::MAX),
            }))
        })
        .await
        .expect_err("draining");
        assert!(!failure.doubted);
    }

    #[tokio::test(start_paused = true)]
    async fn the_coordinator_s_wait_is_kept() {
        let start = Instant::now();
        let attempts = Cell::new(0);
        let answer = persist(patience(Duration::from_secs(30)), |_| {
            attempts.set(attempts.get() + 1);
            let first = attempts.get() == 1;
            async move {
                if !first {
                    return Ok(());
                }
                Err(Verdict::NotTaken(Error::Unavailable {
                    reason: Reason::Draining,
                    message: String::new(),
                    retry_after: Some(Duration::from_secs(3)),
                }))
            }
        })
        .await;
        assert!(answer.is_ok());
        assert!(start.elapsed() >= Duration::from_secs(3));
    }
}
