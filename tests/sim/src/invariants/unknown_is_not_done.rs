//! Unknown is not done: "committed" is told, and a transaction ended in the log, only when every branch has committed in its database, or stands
//! there as one that did not.

use std::collections::BTreeSet;

use unanimity_engine::{
    Answer, BranchKey, HeuristicKind, Record, TransactionId, TransactionState, TransactionView,
};

use super::{Invariant, Ledger, Verdict};
use crate::fact::{Fact, What};

#[derive(Default)]
pub(crate) struct UnknownIsNotDone {
    committed: BTreeSet<BranchKey>,
    one_phase: BTreeSet<TransactionId>,
}

impl Invariant for UnknownIsNotDone {
    fn name(&self) -> &'static str {
        "unknown_is_not_done"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, ledger: &Ledger) -> Verdict {
        match fact {
            Fact::Changed(changed) => match changed.what {
                What::Committed => _ = self.committed.insert(changed.key),
                What::OnePhase => _ = self.one_phase.insert(changed.key.transaction),
                What::Prepared | What::RolledBack | What::Done | What::Undone => {}
            },
            Fact::Answered {
                answer: Ok(Answer::Transaction(view)),
                ..
            } if view.saga.is_none() => return self.told(view, ledger),
            Fact::Appended {
                record:
                    Record::End {
                        transaction,
                        heuristics,
                    },
                ..
            } => {
                let not_done = |kind| kind != HeuristicKind::ResolvedCommitted;
                let heuristics = heuristics.iter().filter(|h| not_done(h.kind));
                let except = heuristics.map(|h| h.branch).collect();
                return self.all_committed(*transaction, &except, ledger);
            }
            _ => {}
        }
        Ok(())
    }
}

impl UnknownIsNotDone {
    fn told(&self, view: &TransactionView, ledger: &Ledger) -> Verdict {
        match view.state {
            TransactionState::Committed => self.all_committed(view.id, &BTreeSet::new(), ledger),
            TransactionState::Aborted | TransactionState::Aborting
                if self.one_phase.contains(&view.id) =>
            {
                Err(format!(
                    "{} was told aborted, and it committed in one phase",
                    view.id
                ))
            }
            _ => Ok(()),
        }
    }

    fn all_committed(&self, id: TransactionId, except: &BTreeSet<u32>, ledger: &Ledger) -> Verdict {
        // A checkpoint carries what committed in one phase as if it had been decided.
        let logged = ledger.durable.commits.get(&id);
        let Some(named) = logged.filter(|_| !self.one_phase.contains(&id)) else {
            return Ok(());
        };
        let key = |branch: u32| BranchKey {
            transaction: id,
            branch,
        };
        let missing = |b: &&u32| !except.contains(b) && !self.committed.contains(&key(**b));
        match named.iter().find(missing) {
            Some(branch) => Err(format!(
                "{id} counts as done, but {} did not commit",
                key(*branch)
            )),
            None => Ok(()),
        }
    }
}
