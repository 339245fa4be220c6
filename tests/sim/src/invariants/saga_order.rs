//! A saga's steps come in the order of their stages and of `after`; nothing is undone before what came after it, or before it is known to be done;
//! and a saga ends when all of it is done, or undone, and not before.

use std::collections::{BTreeMap, BTreeSet};

use unanimity_engine::{
    BranchKey, Compensates, Downward, Parent, Record, SagaBegin, SagaRecord, StepDefinition,
    StepKind, StepOutcome, StepWork, TransactionId, Upward,
};

use super::{Invariant, Ledger, Verdict};
use crate::fact::{Changed, End, Fact, What};

#[derive(Default)]
pub(crate) struct SagaOrder {
    done: BTreeSet<BranchKey>,
    undone: BTreeSet<BranchKey>,
    /// Actions that this incarnation heard to be done.
    heard: BTreeSet<BranchKey>,
    /// Steps whose groups committed.
    groups: BTreeMap<TransactionId, BTreeSet<usize>>,
}

impl Invariant for SagaOrder {
    fn name(&self) -> &'static str {
        "saga_order"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, ledger: &Ledger) -> Verdict {
        match fact {
            Fact::Changed(changed) => self.change(changed, ledger),
            Fact::Died { .. } => {
                self.heard.clear();
                Ok(())
            }
            Fact::Heard {
                message:
                    Upward::StepResult {
                        key,
                        outcome: StepOutcome::Done(_),
                        ..
                    },
                ..
            } => {
                self.heard.insert(*key);
                Ok(())
            }
            Fact::Sent {
                message:
                    Downward::RunStep {
                        key,
                        compensates: Some(compensates),
                        ..
                    },
                ..
            } => self.compensation_sent(*key, compensates, ledger),
            Fact::Appended {
                record: Record::Saga(SagaRecord::End { transaction, .. }),
                ..
            } => self.ends(*transaction, ledger),
            _ => Ok(()),
        }
    }

    fn at_end(&mut self, _end: &End, ledger: &Ledger) -> Verdict {
        let mut open = ledger.durable.sagas.iter().filter(|(_, saga)| !saga.ended);
        if let Some((id, _)) = open.next() {
            return Err(format!("{id} began, and its end is not in the log"));
        }
        let begun = |key: &&BranchKey| ledger.durable.sagas.contains_key(&key.transaction);
        match self.done.iter().find(|key| !begun(key)) {
            Some(key) => Err(format!("{key} took effect, of a saga that never began")),
            None => Ok(()),
        }
    }
}

impl SagaOrder {
    fn change(&mut self, changed: &Changed<'_>, ledger: &Ledger) -> Verdict {
        let key = changed.key;
        match changed.what {
            What::Committed => {
                if let Some(Parent { saga, step }) = ledger.durable.parents.get(&key.transaction) {
                    self.groups.entry(*saga).or_default().insert(*step);
                }
                Ok(())
            }
            What::Done => {
                self.done.insert(key);
                self.starts_in_order(key, ledger)
            }
            What::Undone => {
                self.undone.insert(key);
                self.is_undone_in_order(key, ledger)
            }
            What::Prepared | What::RolledBack | What::OnePhase => Ok(()),
        }
    }

    fn starts_in_order(&self, key: BranchKey, ledger: &Ledger) -> Verdict {
        let Some(saga) = ledger.durable.sagas.get(&key.transaction) else {
            return Err(format!(
                "{key} took effect before its saga's beginning was durable"
            ));
        };
        let steps = &saga.begin.steps;
        let step = &steps[position(key)];
        let before =
            |other: &StepDefinition| other.kind < step.kind || step.after.contains(&other.name);
        let missing = (0..steps.len())
            .find(|at| before(&steps[*at]) && !self.is_done(&saga.begin, *at, ledger));
        match missing {
            Some(at) => Err(format!("{key} took effect before step {}", steps[at].name)),
            None => Ok(()),
        }
    }

    /// In its database, or by what the log says of groups and of what operators did.
    fn is_done(&self, begin: &SagaBegin, at: usize, ledger: &Ledger) -> bool {
        let id = begin.transaction;
        let logged = ledger
            .durable
            .sagas
            .get(&id)
            .is_some_and(|s| s.done.contains(&(at, false)));
        let committed = self
            .groups
            .get(&id)
            .is_some_and(|groups| groups.contains(&at));
        logged
            || committed
            || self.done.contains(&action(id, at))
            || is_pending(id, at, false, ledger)
    }

    fn is_undone_in_order(&self, key: BranchKey, ledger: &Ledger) -> Verdict {
        if !self.done.contains(&key) {
            return Err(format!("{key} was undone, and had never been done"));
        }
        let Some(saga) = ledger
            .durable
            .sagas
            .get(&key.transaction)
            .filter(|s| s.turned)
        else {
            return Err(format!(
                "{key} was undone before its saga's turn was durable"
            ));
        };
        let steps = &saga.begin.steps;
        let owed = |at: &usize| {
            let later = action(key.transaction, *at);
            comes_before(steps, position(key), *at)
                && undoes(&steps[*at])
                && self.done.contains(&later)
                && !self.undone.contains(&later)
                && !saga.done.contains(&(*at, true))
                && !is_pending(key.transaction, *at, true, ledger)
        };
        match (0..steps.len()).find(owed) {
            Some(at) => Err(format!("{key} was undone before step {}", steps[at].name)),
            None => Ok(()),
        }
    }

    fn compensation_sent(
        &self,
        key: BranchKey,
        compensates: &Compensates,
        ledger: &Ledger,
    ) -> Verdict {
        let id = key.transaction;
        let branch = compensates.branch;
        let action = BranchKey {
            transaction: id,
            branch,
        };
        let at = position(action);
        let logged = ledger
            .durable
            .sagas
            .get(&id)
            .is_some_and(|s| s.done.contains(&(at, false)));
        let known = logged || self.heard.contains(&action) || is_pending(id, at, false, ledger);
        if compensates.unsettled || known {
            return Ok(());
        }
        Err(format!(
            "compensation {key} was sent before its step's answer"
        ))
    }

    fn ends(&self, id: TransactionId, ledger: &Ledger) -> Verdict {
        let Some(saga) = ledger.durable.sagas.get(&id) else {
            return Err(format!("{id} ends, and its beginning is not durable"));
        };
        for (at, step) in saga.begin.steps.iter().enumerate() {
            let done = self.is_done(&saga.begin, at, ledger);
            let key = action(id, at);
            let undone = self.undone.contains(&key)
                || saga.done.contains(&(at, true))
                || is_pending(id, at, true, ledger);
            if !saga.turned && (!done || undone) {
                return Err(format!("{id} ends as committed before step {}", step.name));
            }
            let kept = self.done.contains(&key) && !undone && undoes(step);
            let decisive = step.kind != StepKind::Compensatable && done;
            if saga.turned && (kept || decisive) {
                return Err(format!(
                    "{id} ends as compensated with step {} done",
                    step.name
                ));
            }
        }
        Ok(())
    }
}

fn action(transaction: TransactionId, at: usize) -> BranchKey {
    BranchKey {
        transaction,
        branch: at as u32 + 1,
    }
}

fn position(action: BranchKey) -> usize {
    action.branch as usize - 1
}

fn undoes(step: &StepDefinition) -> bool {
    matches!(
        &step.work,
        StepWork::Single {
            compensation: Some(_),
            ..
        }
    )
}

/// Whether a record on its way to disk says that it is done.
fn is_pending(id: TransactionId, at: usize, compensation: bool, ledger: &Ledger) -> bool {
    ledger.pending().any(|record| match record {
        Record::Saga(
            SagaRecord::Step { transaction, step } | SagaRecord::Resolve { transaction, step },
        ) => {
            *transaction == id && (step.position as usize, step.compensation) == (at, compensation)
        }
        Record::Commit(decision) => {
            !compensation && decision.parent == Some(Parent { saga: id, step: at })
        }
        _ => false,
    })
}

/// Over any number of steps.
fn comes_before(steps: &[StepDefinition], before: usize, step: usize) -> bool {
    let direct = (0..steps.len()).filter(|at| steps[step].after.contains(&steps[*at].name));
    direct
        .into_iter()
        .any(|at| at == before || comes_before(steps, before, at))
}
