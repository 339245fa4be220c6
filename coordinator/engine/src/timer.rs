//! Every deadline in one table. A timer that no longer applies is absorbed when it fires: nothing is ever taken out early.

use std::collections::BTreeSet;

use crate::id::{BranchKey, Moment, TransactionId};

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// An undecided transaction's time is up.
    Deadline(TransactionId),
    /// A decision, or a question for proof, is to be sent again.
    Deliver(BranchKey),
    /// A saga's step, or its compensation, is overdue or to be tried again.
    Step(BranchKey),
    /// A question about an earlier epoch's transaction was not answered.
    Inquiry(TransactionId),
    /// Ask the participants for their prepared branches.
    Scan,
}

#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub(crate) struct Timers(BTreeSet<(Moment, Timer)>);

impl Timers {
    pub(crate) fn set(&mut self, at: Moment, timer: Timer) {
        self.0.insert((at, timer));
    }

    pub(crate) fn clear(&mut self, at: Moment, timer: Timer) {
        self.0.remove(&(at, timer));
    }

    pub(crate) fn next(&self) -> Option<Moment> {
        self.0.first().map(|(at, _)| *at)
    }

    pub(crate) fn pop_due(&mut self, now: Moment) -> Option<(Moment, Timer)> {
        if self.next()? > now {
            return None;
        }
        self.0.pop_first()
    }
}
