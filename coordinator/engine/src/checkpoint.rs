//! Checkpoints carry over what is live, so that old segments of the log can go.
//!
//! A checkpoint is fuzzy: it walks the table in the order of ids, a few at a time, while everything else goes on. What is decided after its
//! beginning stands in the log after its beginning; what it comes by is written down as it is then. Replay from its beginning therefore sees
//! each live transaction at least once, and folding twice does no harm. Only when its end is durable may older segments go.

use crate::{
    decide::heuristic_of,
    effect::Effect,
    engine::{Engine, Pending},
    id::{Seq, TransactionId},
    record::Record,
    transaction::{Outcome, Phase, Transaction},
};

/// How many transactions a step looks at.
const STEP: usize = 256;

/// The one that is under way.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub(crate) struct Checkpoint {
    running: Option<Running>,
    /// Its end is not durable yet.
    unfinished: bool,
}

#[derive(Clone, Debug, PartialEq, Hash)]
struct Running {
    begin: Seq,
    cursor: Option<TransactionId>,
}

impl Engine {
    /// One at a time: a checkpoint that fills a segment by itself would else start the next, for ever.
    pub(crate) fn begin_checkpoint(&mut self) {
        if self.checkpoint.unfinished {
            return;
        }
        self.checkpoint.unfinished = true;
        let begin = self.append(Record::CheckpointBegin {
            epoch: self.epoch,
            forgotten: self.table.forgotten(),
        });
        let registered: Vec<_> = self
            .participants
            .iter()
            .filter_map(|(name, p)| Some((name.clone(), p.recorded?)))
            .collect();
        for (name, one_phase) in registered {
            self.append(Record::Participant { name, one_phase });
        }
        self.checkpoint.running = Some(Running {
            begin,
            cursor: None,
        });
    }

    /// A step, whenever the engine is at work; the driver's ticks see to it that there is one.
    pub(crate) fn advance_checkpoint(&mut self) {
        let Some(Running { begin, cursor }) = self.checkpoint.running.take() else {
            return;
        };
        let step: Vec<_> = self
            .table
            .after(cursor)
            .take(STEP)
            .map(|t| (t.id, carried(t)))
            .collect();
        let last = step.last().map(|(id, _)| *id);
        let whole = step.len() < STEP;
        for record in step.into_iter().filter_map(|(_, record)| record) {
            self.append(record);
        }
        if whole {
            // What was forgotten since the beginning, and so was not come by, must not be presumed aborted.
            self.append(Record::CheckpointBegin {
                epoch: self.epoch,
                forgotten: self.table.forgotten(),
            });
            self.carry_resolutions();
            if cfg!(unanimity_bug = "trim-before-durable") {
                self.append(Record::CheckpointEnd);
                return self.checkpoint_ended(begin);
            }
            self.append_then(Record::CheckpointEnd, Pending::Trim(begin));
        } else {
            self.checkpoint.running = Some(Running {
                begin,
                cursor: last,
            });
        }
    }

    /// An operator's word that is on its way to disk may stand before the checkpoint's beginning, and takes effect after it came by.
    fn carry_resolutions(&mut self) {
        for (branch, resolution, reason) in self.pending_resolutions() {
            self.append(Record::Resolve {
                branch,
                resolution,
                reason,
            });
        }
    }

    pub(crate) fn checkpoint_ended(&mut self, begin: Seq) {
        self.checkpoint.unfinished = false;
        self.push(Effect::Trim(begin));
    }

    pub(crate) fn checkpoint_running(&self) -> bool {
        self.checkpoint.running.is_some()
    }
}

/// What must survive of a transaction: only a saga, or one that is decided to commit, has anything in the log.
fn carried(transaction: &Transaction) -> Option<Record> {
    if let Some(record) = transaction.saga_checkpoint() {
        return Some(Record::Saga(record));
    }
    let ended = match transaction.phase {
        Phase::Committing if cfg!(unanimity_bug = "checkpoint-drops-decided") => return None,
        // Its record may stand before the checkpoint's beginning.
        Phase::Deciding | Phase::Committing => false,
        Phase::Ended(Outcome::Committed | Outcome::Heuristic(None)) => true,
        Phase::Waiting { .. }
        | Phase::Active
        | Phase::Preparing
        | Phase::Delegated { .. }
        | Phase::Aborting(_)
        | Phase::Saga
        | Phase::Ended(
            Outcome::Aborted(_) | Outcome::Compensated(_) | Outcome::Heuristic(Some(_)),
        ) => return None,
    };
    let heuristics = transaction
        .branches
        .iter()
        .filter_map(heuristic_of)
        .collect();
    Some(Record::CheckpointTransaction {
        decision: transaction.decision(),
        ended,
        heuristics,
    })
}
