//! No transaction has one branch committed and another rolled back, unless somebody did it by hand; and of a decision to commit every branch does.

use std::collections::{BTreeMap, BTreeSet};

use unanimity_engine::{BranchKey, TransactionId};

use super::{Invariant, Ledger, Verdict};
use crate::fact::{End, Fact, What};

#[derive(Default)]
pub(crate) struct Agreement {
    committed: BTreeMap<TransactionId, BranchKey>,
    rolled_back: BTreeMap<TransactionId, BranchKey>,
    /// Every branch that committed.
    all: BTreeSet<BranchKey>,
    by_hand: BTreeSet<BranchKey>,
}

impl Invariant for Agreement {
    fn name(&self) -> &'static str {
        "agreement"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, _ledger: &Ledger) -> Verdict {
        let Fact::Changed(changed) = fact else {
            return Ok(());
        };
        if changed.by_hand {
            self.by_hand.insert(changed.key);
            return Ok(());
        }
        let id = changed.key.transaction;
        match changed.what {
            What::Committed | What::OnePhase => {
                self.all.insert(changed.key);
                self.committed.insert(id, changed.key);
            }
            What::RolledBack => _ = self.rolled_back.insert(id, changed.key),
            What::Prepared | What::Done | What::Undone => return Ok(()),
        }
        match (self.committed.get(&id), self.rolled_back.get(&id)) {
            (Some(one), Some(other)) => Err(format!("{one} committed and {other} was rolled back")),
            _ => Ok(()),
        }
    }

    fn at_end(&mut self, _end: &End, ledger: &Ledger) -> Verdict {
        let named = ledger.durable.commits.iter().flat_map(|(id, branches)| {
            branches.iter().map(|branch| BranchKey {
                transaction: *id,
                branch: *branch,
            })
        });
        for key in named {
            if !self.all.contains(&key) && !self.by_hand.contains(&key) {
                return Err(format!("{key} never committed, though that was decided"));
            }
        }
        Ok(())
    }
}
