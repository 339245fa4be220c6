//! A decision is stable: what was told of an outcome is never told otherwise, and nothing is done against it.

use std::collections::{BTreeMap, BTreeSet};

use unanimity_engine::{
    Answer, BranchKey, Downward, Record, Refusal, TransactionId, TransactionView,
};

use super::{Invariant, Ledger, Verdict};
use crate::fact::{Changed, Fact, What, told};

#[derive(Default)]
pub(crate) struct DecisionStable {
    /// Whether it was told that it commits.
    told: BTreeMap<TransactionId, bool>,
    /// Transactions that changed something for good.
    changed: BTreeSet<TransactionId>,
    committed: BTreeSet<BranchKey>,
}

impl Invariant for DecisionStable {
    fn name(&self) -> &'static str {
        "decision_stable"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, ledger: &Ledger) -> Verdict {
        match fact {
            Fact::Answered {
                answer: Ok(Answer::Transaction(view)),
                ..
            } => self.told_by(view, ledger),
            Fact::Answered {
                answer: Err(Refusal::TransactionDecided(id)),
                ..
            } => {
                if self.is_kept(id, ledger) {
                    self.tell(*id, true)
                } else {
                    Ok(())
                }
            }
            Fact::Answered {
                answer: Err(Refusal::TransactionAborted { transaction, .. }),
                ..
            } => self.tell(*transaction, false),
            Fact::Appended {
                record: Record::Commit(decision),
                ..
            } if self.told.get(&decision.transaction) == Some(&false) => Err(format!(
                "{} is decided to commit, after abort was told",
                decision.transaction
            )),
            Fact::Sent {
                message: Downward::Abort { key, .. },
                ..
            } => match ledger.durable.commits.get(&key.transaction) {
                // One that committed long ago, and is forgotten, can't be harmed.
                Some(named) if named.contains(&key.branch) && !self.committed.contains(key) => Err(
                    format!("abort of {key} was sent, which is decided to commit"),
                ),
                _ => Ok(()),
            },
            Fact::Changed(changed) if !changed.by_hand => self.change(changed),
            _ => Ok(()),
        }
    }
}

impl DecisionStable {
    fn told_by(&mut self, view: &TransactionView, ledger: &Ledger) -> Verdict {
        let Some(commits) = told(view) else {
            return Ok(());
        };
        if commits && !self.is_kept(&view.id, ledger) {
            return Ok(());
        }
        self.tell(view.id, commits)
    }

    /// Of one that only read nothing is logged; after a restart it counts as aborted, which changes nothing.
    fn is_kept(&self, id: &TransactionId, ledger: &Ledger) -> bool {
        let logged = &ledger.durable;
        logged.commits.contains_key(id)
            || logged.sagas.contains_key(id)
            || self.changed.contains(id)
    }

    fn tell(&mut self, id: TransactionId, commits: bool) -> Verdict {
        let word = |commits: bool| if commits { "commit" } else { "abort" };
        match self.told.insert(id, commits) {
            Some(before) if before != commits => Err(format!(
                "{id} was told to {}, and now to {}",
                word(before),
                word(commits)
            )),
            _ => Ok(()),
        }
    }

    fn change(&mut self, changed: &Changed<'_>) -> Verdict {
        let id = changed.key.transaction;
        let commits = match changed.what {
            What::Committed | What::OnePhase => true,
            What::RolledBack => false,
            What::Done | What::Undone => {
                self.changed.insert(id);
                return Ok(());
            }
            What::Prepared => return Ok(()),
        };
        if commits {
            self.changed.insert(id);
            self.committed.insert(changed.key);
        }
        match self.told.get(&id) {
            Some(before) if *before != commits => Err(format!(
                "{} at {} against what was told",
                if commits { "commits" } else { "is rolled back" },
                changed.key
            )),
            _ => Ok(()),
        }
    }
}
