//! What became of the orders.

use std::collections::BTreeMap;

/// What became of the orders so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// On their way to the customer.
    pub(crate) completed: u64,
    /// Undone, by the reason.
    pub(crate) compensated: BTreeMap<&'static str, u64>,
    /// Never begun, by the reason.
    pub(crate) aborted: BTreeMap<&'static str, u64>,
    /// A human must look.
    pub(crate) heuristic: u64,
    /// Nobody knows.
    pub(crate) unknown: u64,
}

impl Tally {
    /// All that were undone.
    pub(crate) fn compensated(&self) -> u64 {
        self.compensated.values().sum()
    }

    /// All that never began.
    pub(crate) fn aborted(&self) -> u64 {
        self.aborted.values().sum()
    }
}

impl example_harness::traffic::Tally for Tally {
    fn ended(&self) -> u64 {
        self.completed + self.compensated() + self.aborted() + self.heuristic + self.unknown
    }
}
