//! Nobody hears "commit" before its record is durable, and nobody hears an outcome that a restart can change.

use std::collections::BTreeSet;

use unanimity_engine::{
    Answer, BranchState, Downward, Event, Refusal, TransactionId, TransactionState, TransactionView,
};

use super::{Invariant, Ledger, Verdict};
use crate::fact::{Fact, What, told};

#[derive(Default)]
pub(crate) struct DurableBeforeTold {
    /// Committed in one phase: the marker is the record.
    one_phase: BTreeSet<TransactionId>,
    /// Something of them was prepared, so they did not only read.
    prepared: BTreeSet<TransactionId>,
    /// Ended as committed, of which nothing is logged: they only read.
    read_only: BTreeSet<TransactionId>,
    epoch: u64,
}

impl Invariant for DurableBeforeTold {
    fn name(&self) -> &'static str {
        "durable_before_told"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, ledger: &Ledger) -> Verdict {
        match fact {
            Fact::Started { epoch, .. } => self.epoch = *epoch,
            Fact::Changed(changed) if changed.what == What::OnePhase => {
                self.one_phase.insert(changed.key.transaction);
            }
            Fact::Changed(changed) if changed.what == What::Prepared => {
                self.prepared.insert(changed.key.transaction);
            }
            Fact::Reported(Event::Changed(id, TransactionState::Committed))
                if !self.prepared.contains(id) =>
            {
                self.read_only.insert(*id);
            }
            Fact::Sent { message, .. } => return self.sent(message, ledger),
            Fact::Answered { answer, .. } => {
                return match answer {
                    Ok(Answer::Transaction(view)) => self.told(view, ledger),
                    Ok(Answer::Executed(_)) => Ok(()),
                    Err(Refusal::TransactionDecided(id)) => self.decided(*id, ledger),
                    Err(_) => Ok(()),
                };
            }
            _ => {}
        }
        Ok(())
    }
}

impl DurableBeforeTold {
    fn sent(&self, message: &Downward, ledger: &Ledger) -> Verdict {
        if ledger.durable.epoch.0 < self.epoch {
            return Err(format!(
                "something was sent before epoch {} was durable",
                self.epoch
            ));
        }
        match message {
            Downward::Commit { key, .. } => {
                let named = ledger.durable.commits.get(&key.transaction);
                if named.is_none_or(|named| !named.contains(&key.branch)) {
                    return Err(format!(
                        "commit of {key} was sent, which no durable record names"
                    ));
                }
            }
            Downward::RunStep {
                key, compensates, ..
            } => match ledger.durable.sagas.get(&key.transaction) {
                None => {
                    return Err(format!(
                        "{key} was sent before its saga's beginning was durable"
                    ));
                }
                Some(saga) if compensates.is_some() && !saga.turned => {
                    return Err(format!(
                        "compensation {key} was sent before the turn was durable"
                    ));
                }
                Some(_) => {}
            },
            _ => {}
        }
        Ok(())
    }

    fn told(&self, view: &TransactionView, ledger: &Ledger) -> Verdict {
        let id = view.id;
        if view.saga.is_some() {
            let saga = ledger.durable.sagas.get(&id);
            let stands = match view.state {
                TransactionState::Committed => saga.is_some(),
                TransactionState::Compensating | TransactionState::Compensated => {
                    saga.is_some_and(|saga| saga.turned)
                }
                _ => true,
            };
            return if stands {
                Ok(())
            } else {
                Err(format!(
                    "{id} was told {:?} before that was durable",
                    view.state
                ))
            };
        }
        let read_only = |view: &TransactionView| {
            let mut states = view.branches.iter().map(|b| b.state);
            !view.branches.is_empty() && states.all(|s| s == BranchState::ReadOnly)
        };
        match told(view) {
            Some(true) if !read_only(view) => self.committed(id, ledger),
            _ => Ok(()),
        }
    }

    fn committed(&self, id: TransactionId, ledger: &Ledger) -> Verdict {
        let logged = ledger.durable.commits.contains_key(&id);
        if logged || self.one_phase.contains(&id) || self.read_only.contains(&id) {
            return Ok(());
        }
        Err(format!("{id} was told to commit before that was durable"))
    }

    /// A saga is past its turn; any other is committed.
    fn decided(&self, id: TransactionId, ledger: &Ledger) -> Verdict {
        if ledger.durable.sagas.contains_key(&id) {
            return Ok(());
        }
        self.committed(id, ledger)
    }
}
