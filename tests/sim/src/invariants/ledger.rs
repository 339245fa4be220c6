//! What the log says, read by somebody else than the engine: what is durable, and what is on its way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use unanimity_engine::{
    BranchKey, Epoch, Parent, Record, SagaBegin, SagaRecord, Seq, TransactionId,
};

use crate::fact::Fact;

/// The log.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// All that is known to be on the disk.
    pub(crate) durable: Logged,
    pending: VecDeque<(Seq, Record)>,
}

/// What records say, taken together. Nothing is taken away by a trim: what was true stays so.
#[derive(Debug, Default)]
pub(crate) struct Logged {
    pub(crate) epoch: Epoch,
    /// Decisions to commit, with the branches that they name.
    pub(crate) commits: BTreeMap<TransactionId, BTreeSet<u32>>,
    /// Of atomic groups: their step.
    pub(crate) parents: BTreeMap<TransactionId, Parent>,
    pub(crate) resolved: BTreeSet<BranchKey>,
    pub(crate) sagas: BTreeMap<TransactionId, LoggedSaga>,
}

/// A saga.
#[derive(Debug)]
pub(crate) struct LoggedSaga {
    pub(crate) begin: SagaBegin,
    pub(crate) turned: bool,
    pub(crate) ended: bool,
    /// Position, and whether it is the compensation.
    pub(crate) done: BTreeSet<(usize, bool)>,
}

impl Ledger {
    pub(crate) fn observe(&mut self, fact: &Fact<'_>) {
        match fact {
            Fact::Appended { seq, record } => self.pending.push_back((*seq, (*record).clone())),
            Fact::Durable(upto) => self.harden(*upto),
            Fact::Died { survived } => {
                self.harden(*survived);
                self.pending.clear();
            }
            _ => {}
        }
    }

    fn harden(&mut self, upto: Seq) {
        while let Some((seq, _)) = self.pending.front()
            && *seq <= upto
        {
            if let Some((_, record)) = self.pending.pop_front() {
                self.durable.apply(record);
            }
        }
    }

    /// Records that are not known to be durable.
    pub(crate) fn pending(&self) -> impl Iterator<Item = &Record> {
        self.pending.iter().map(|(_, record)| record)
    }

    /// The saga to which a transaction belongs as a group; else itself.
    pub(crate) fn family(&self, id: TransactionId) -> TransactionId {
        self.durable
            .parents
            .get(&id)
            .map_or(id, |parent| parent.saga)
    }
}

impl Logged {
    fn apply(&mut self, record: Record) {
        match record {
            Record::Epoch(epoch) => self.epoch = epoch,
            Record::Commit(decision) | Record::CheckpointTransaction { decision, .. } => {
                let numbers = decision.branches.iter().map(|b| b.number);
                self.commits
                    .entry(decision.transaction)
                    .or_insert_with(|| numbers.collect());
                if let Some(parent) = decision.parent {
                    self.parents.insert(decision.transaction, parent);
                }
            }
            Record::Resolve { branch, .. } => _ = self.resolved.insert(branch),
            Record::Saga(record) => self.apply_saga(record),
            Record::Participant { .. }
            | Record::End { .. }
            | Record::CheckpointBegin { .. }
            | Record::CheckpointEnd => {}
        }
    }

    fn apply_saga(&mut self, record: SagaRecord) {
        match record {
            SagaRecord::Begin(begin) => self.begins(begin),
            SagaRecord::Step { transaction, step } | SagaRecord::Resolve { transaction, step } => {
                if let Some(saga) = self.sagas.get_mut(&transaction) {
                    saga.done
                        .insert((step.position as usize, step.compensation));
                }
            }
            SagaRecord::Turn { transaction, .. } => {
                if let Some(saga) = self.sagas.get_mut(&transaction) {
                    saga.turned = true;
                }
            }
            SagaRecord::End { transaction, .. } => {
                if let Some(saga) = self.sagas.get_mut(&transaction) {
                    saga.ended = true;
                }
            }
            SagaRecord::Checkpoint {
                begin,
                turn,
                done,
                ended,
                ..
            } => {
                let id = begin.transaction;
                self.begins(begin);
                if let Some(saga) = self.sagas.get_mut(&id) {
                    saga.turned |= turn.is_some();
                    saga.ended |= ended;
                    let done = done.iter().map(|d| (d.position as usize, d.compensation));
                    saga.done.extend(done);
                }
            }
        }
    }

    fn begins(&mut self, begin: SagaBegin) {
        let saga = LoggedSaga {
            turned: false,
            ended: false,
            done: BTreeSet::new(),
            begin,
        };
        self.sagas.entry(saga.begin.transaction).or_insert(saga);
    }
}
