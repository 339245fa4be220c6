//! What became of the transfers.

use std::collections::BTreeMap;

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
}

impl example_harness::traffic::Tally for Tally {
    fn ended(&self) -> u64 {
        self.committed + self.aborted() + self.unknown + self.heuristic
    }
}
