//! What the clients have done so far, and how far they may go: shared by them and by those who watch them.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// What became of the transfers so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// The money has moved.
    pub(crate) committed: u64,
    /// Nothing happened, by the reason.
    pub(crate) aborted: BTreeMap<&'static str, u64>,
    /// Aborted for a reason that passes, by the reason, and tried again.
    pub(crate) tried_again: BTreeMap<&'static str, u64>,
    /// The outcome was unknown for a while.
    pub(crate) settled: u64,
    /// The outcome is unknown still.
    pub(crate) unknown: u64,
    /// One bank went against the decision.
    pub(crate) heuristic: u64,
}

impl Tally {
    /// All that were aborted for good.
    pub(crate) fn aborted(&self) -> u64 {
        self.aborted.values().sum()
    }

    /// All that came to an end.
    pub(crate) fn ended(&self) -> u64 {
        self.committed + self.aborted() + self.unknown + self.heuristic
    }
}

/// The state that is shared.
#[derive(Debug)]
pub(crate) struct Traffic(watch::Sender<State>);

#[derive(Debug)]
struct State {
    /// So many transfers have started.
    started: u64,
    /// So many may start.
    released: u64,
    /// More may be released yet.
    open: bool,
    tally: Tally,
}

impl State {
    fn may_start(&self) -> bool {
        self.started < self.released
    }
}

impl Traffic {
    /// None has started, and none may.
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(State {
            started: 0,
            released: 0,
            open: true,
            tally: Tally::default(),
        }))
    }

    /// Lets transfers start, up to this many in all.
    pub(crate) fn release(&self, transfers: u64) {
        self.0
            .send_modify(|state| state.released = state.released.max(transfers));
    }

    /// Lets no more start than are released.
    pub(crate) fn close(&self) {
        self.0.send_modify(|state| state.open = false);
    }

    /// So many transfers may start in all.
    pub(crate) fn released(&self) -> u64 {
        self.0.borrow().released
    }

    /// Transfers between their start and their end.
    pub(crate) fn in_flight(&self) -> u64 {
        let state = self.0.borrow();
        state.started - state.tally.ended()
    }

    /// Returns once every transfer that may start has started.
    pub(crate) async fn exhausted(&self) {
        // It fails only where the sender is gone, and that is ours.
        let _ = self
            .0
            .subscribe()
            .wait_for(|state| !state.may_start())
            .await;
    }

    /// Returns once every transfer has ended, and no other will be released.
    pub(crate) async fn finished(&self) {
        let finished = |state: &State| {
            !state.open && !state.may_start() && state.started == state.tally.ended()
        };
        let _ = self.0.subscribe().wait_for(finished).await;
    }

    /// What became of the transfers so far.
    pub(crate) fn tally(&self) -> Tally {
        self.0.borrow().tally.clone()
    }

    /// Writes down what became of a transfer.
    pub(crate) fn count(&self, change: impl FnOnce(&mut Tally)) {
        self.0.send_modify(|state| change(&mut state.tally));
    }

    /// The number of the next transfer, from 0, once it may start; `None` where there is no other.
    pub(crate) async fn start(&self) -> Option<u64> {
        let mut states = self.0.subscribe();
        loop {
            let mut number = None;
            self.0.send_if_modified(|state| {
                if state.may_start() {
                    number = Some(state.started);
                    state.started += 1;
                }
                number.is_some()
            });
            if number.is_some() {
                return number;
            }
            let state = states
                .wait_for(|state| state.may_start() || !state.open)
                .await;
            if !state.ok()?.may_start() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_transfer_starts_before_it_is_released_or_twice() {
        let traffic = Traffic::new();
        traffic.release(2);
        assert_eq!(traffic.start().await, Some(0));
        assert_eq!(traffic.start().await, Some(1));
        traffic.exhausted().await;
        assert_eq!(traffic.in_flight(), 2);
        let (number, ()) = tokio::join!(traffic.start(), async { traffic.release(3) });
        assert_eq!(number, Some(2));
        traffic.count(|tally| tally.committed += 1);
        assert_eq!(traffic.in_flight(), 2);
        traffic.close();
        assert_eq!(traffic.start().await, None);
    }
}
