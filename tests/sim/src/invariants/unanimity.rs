//! A transaction commits only where every branch that was asked voted for it, in this incarnation and before the decision.

use std::collections::{BTreeMap, BTreeSet};

use unanimity_engine::{BranchKey, Decision, Downward, Record, TransactionId, Upward, Vote};

use super::{Invariant, Ledger, Verdict};
use crate::fact::Fact;

#[derive(Default)]
pub(crate) struct Unanimity {
    asked: BTreeMap<TransactionId, BTreeSet<u32>>,
    yes: BTreeSet<BranchKey>,
    read_only: BTreeSet<BranchKey>,
    no: BTreeSet<BranchKey>,
}

impl Invariant for Unanimity {
    fn name(&self) -> &'static str {
        "unanimity"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, _ledger: &Ledger) -> Verdict {
        match fact {
            Fact::Sent {
                message: Downward::Prepare { key, .. },
                ..
            } => {
                let asked = self.asked.entry(key.transaction).or_default();
                asked.insert(key.branch);
            }
            Fact::Heard {
                message: Upward::Vote { key, vote },
                ..
            } => match vote {
                Vote::Yes { .. } => _ = self.yes.insert(*key),
                Vote::ReadOnly => _ = self.read_only.insert(*key),
                Vote::No(_) | Vote::Duplicate(_) => _ = self.no.insert(*key),
                Vote::Committed => {}
            },
            Fact::Appended {
                record: Record::Commit(decision),
                ..
            } => return self.decided(decision),
            Fact::Died { .. } => *self = Unanimity::default(),
            _ => {}
        }
        Ok(())
    }
}

impl Unanimity {
    fn decided(&self, decision: &Decision) -> Verdict {
        let id = decision.transaction;
        let key = |branch: u32| BranchKey {
            transaction: id,
            branch,
        };
        let named: BTreeSet<u32> = decision.branches.iter().map(|b| b.number).collect();
        if named.is_empty() {
            return Err(format!("{id} is decided to commit with no branch"));
        }
        if let Some(branch) = named.iter().find(|b| !self.yes.contains(&key(**b))) {
            return Err(format!(
                "{} must commit, and did not vote yes",
                key(*branch)
            ));
        }
        let asked = self.asked.get(&id).cloned().unwrap_or_default();
        let left_out = |b: &&u32| !named.contains(b) && !self.read_only.contains(&key(**b));
        if let Some(branch) = asked.iter().find(left_out) {
            return Err(format!(
                "{} was asked, and is left out of the commit",
                key(*branch)
            ));
        }
        match asked.iter().find(|b| self.no.contains(&key(**b))) {
            Some(branch) => Err(format!("{} voted no, and it commits", key(*branch))),
            None => Ok(()),
        }
    }
}
