//! One saga at a time holds a lock: from its beginning to its end in the log, and by its token at the resource.

use std::collections::BTreeMap;

use unanimity_engine::{LockKey, Record, SagaRecord, TransactionId};

use super::{Invariant, Ledger, Verdict};
use crate::fact::{Changed, Fact};

#[derive(Default)]
pub(crate) struct LockExclusion {
    held: BTreeMap<LockKey, TransactionId>,
    /// The highest token that came with an effect.
    tokens: BTreeMap<LockKey, u64>,
}

impl Invariant for LockExclusion {
    fn name(&self) -> &'static str {
        "lock_exclusion"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, ledger: &Ledger) -> Verdict {
        match fact {
            Fact::Appended {
                record: Record::Saga(record),
                ..
            } => self.logged(record),
            Fact::Died { .. } => {
                self.held.clear();
                let live = ledger.durable.sagas.iter().filter(|(_, saga)| !saga.ended);
                for (id, saga) in live {
                    self.held
                        .extend(saga.begin.locks.iter().map(|key| (key.clone(), *id)));
                }
                Ok(())
            }
            Fact::Changed(changed) => self.change(changed),
            _ => Ok(()),
        }
    }
}

impl LockExclusion {
    fn logged(&mut self, record: &SagaRecord) -> Verdict {
        match record {
            SagaRecord::Begin(begin) => {
                for key in &begin.locks {
                    if let Some(other) = self.held.insert(key.clone(), begin.transaction) {
                        let (key, id) = (key.as_str(), begin.transaction);
                        return Err(format!("{id} begins with {key}, which {other} holds"));
                    }
                }
            }
            SagaRecord::End { transaction, .. } => self.held.retain(|_, id| id != transaction),
            SagaRecord::Step { .. }
            | SagaRecord::Turn { .. }
            | SagaRecord::Resolve { .. }
            | SagaRecord::Checkpoint { .. } => {}
        }
        Ok(())
    }

    fn change(&mut self, changed: &Changed<'_>) -> Verdict {
        for key in changed.locks {
            let highest = self.tokens.entry(key.clone()).or_default();
            if *highest > changed.token {
                return Err(format!(
                    "{} took effect under {} with token {} after {highest}",
                    changed.key,
                    key.as_str(),
                    changed.token
                ));
            }
            *highest = changed.token;
        }
        Ok(())
    }
}
