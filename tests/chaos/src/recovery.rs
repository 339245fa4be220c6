//! How long it takes until work is done again after a kill: to the end of the first transaction that began after it, where the killed process
//! was needed.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// So many transactions that committed show that every agent of a bank has heard from the coordinator.
const LATEST: usize = 10;

/// Kills, and what came after.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Wait>,
    times: Vec<Duration>,
    /// When transactions began that committed, by bank; the latest few.
    successes: HashMap<usize, VecDeque<Instant>>,
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
        let banks: Vec<_> = banks.collect();
        for bank in &banks {
            let latest = state.successes.entry(*bank).or_default();
            latest.push_back(started);
            if latest.len() > LATEST {
                latest.pop_front();
            }
        }
        if state.waiting.is_empty() {
            return;
        }
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

    /// Whether each bank has had some transactions since that began then or later, and have committed.
    pub(crate) fn all_worked_since(&self, time: Instant, banks: usize) -> bool {
        let state = self.state.lock();
        let worked = |bank| {
            let latest = state.successes.get(&bank);
            latest.is_some_and(|latest| {
                latest.len() == LATEST && latest.iter().all(|started| *started >= time)
            })
        };
        (0..banks).all(worked)
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
