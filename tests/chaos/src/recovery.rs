//! How long it takes until work is done again after a kill: to the end of the first transaction that began after it, where the killed process
//! was needed.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Kills, and what came after.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Wait>,
    times: Vec<Duration>,
}

#[derive(Debug)]
struct Wait {
    killed: Instant,
    /// Any where it is the coordinator.
    bank: Option<usize>,
}

impl Recovery {
    /// Something was killed that this bank needs, or all do.
    pub(crate) fn killed(&self, killed: Instant, bank: Option<usize>) {
        self.state.lock().waiting.push(Wait { killed, bank });
    }

    /// A transaction that began then has committed.
    pub(crate) fn succeeded(&self, started: Instant, banks: impl Iterator<Item = usize>) {
        let mut state = self.state.lock();
        if state.waiting.is_empty() {
            return;
        }
        let banks: Vec<_> = banks.collect();
        let over = |wait: &Wait| {
            started >= wait.killed && wait.bank.is_none_or(|bank| banks.contains(&bank))
        };
        let (over, waiting) = std::mem::take(&mut state.waiting)
            .into_iter()
            .partition(over);
        state.waiting = waiting;
        let over: Vec<Wait> = over;
        state
            .times
            .extend(over.iter().map(|wait| wait.killed.elapsed()));
    }

    /// The traffic pauses: what has not been seen to recover won't be.
    pub(crate) fn give_up(&self) {
        self.state.lock().waiting.clear();
    }

    /// All times, shortest first.
    pub(crate) fn times(&self) -> Vec<Duration> {
        let mut times = self.state.lock().times.clone();
        times.sort();
        times
    }
}
