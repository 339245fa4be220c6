//! Recovery is the fold of the log: what is decided and not ended goes on being delivered, the rest is presumed aborted.
//!
//! Folding is idempotent, and a crash between any two records of a recovery is harmless: recovery writes its own epoch, and what the live
//! path would write of a saga that goes on.

use std::collections::BTreeMap;

use crate::{
    client::NEVER,
    engine::{Engine, Pending, Settings},
    id::{Epoch, LogId, Moment, ParticipantName, RequestId, Seq, TransactionId},
    outcome::{BranchState, Resolution},
    record::{Decision, Heuristic, HeuristicKind, Record},
    resolve::resolved_state,
    transaction::{Branch, Outcome, Phase, Transaction},
};

/// Whether a whole checkpoint has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Checkpointed {
    No,
    Begun,
    Whole,
}

/// The log so far, folded.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Replay {
    epoch: Epoch,
    forgotten: Option<TransactionId>,
    checkpoint: Checkpointed,
    participants: BTreeMap<ParticipantName, bool>,
    pub(crate) transactions: BTreeMap<TransactionId, Transaction>,
}

/// What a new incarnation starts from.
#[derive(Clone, Copy, Debug, PartialEq, Hash)]
pub struct Start {
    /// The number that the log gives to the next record.
    pub next_seq: Seq,
    /// Now.
    pub now: Moment,
    /// The same in milliseconds since 1970.
    pub unix_ms: u64,
    /// Random bits, for the ids of atomic groups.
    pub seed: u128,
}

impl Default for Replay {
    fn default() -> Self {
        Replay::new()
    }
}

impl Replay {
    /// Nothing read yet.
    pub fn new() -> Self {
        Replay {
            epoch: Epoch(0),
            forgotten: None,
            checkpoint: Checkpointed::No,
            participants: BTreeMap::new(),
            transactions: BTreeMap::new(),
        }
    }

    /// Takes the next record.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Epoch(epoch) => self.epoch = self.epoch.max(epoch),
            Record::Participant { name, one_phase } => {
                *self.participants.entry(name).or_default() |= one_phase
            }
            Record::Commit(decision) => self.commit(decision),
            Record::End {
                transaction,
                heuristics,
            } => self.end(transaction, heuristics),
            Record::Resolve {
                branch,
                resolution,
                reason,
            } => {
                let kind = match resolution {
                    Resolution::Committed => HeuristicKind::ResolvedCommitted,
                    Resolution::Aborted => HeuristicKind::ResolvedAborted,
                };
                self.settle(
                    branch.transaction,
                    vec![Heuristic {
                        branch: branch.branch,
                        kind,
                        reason,
                    }],
                );
            }
            Record::Saga(record) => self.apply_saga(record),
            Record::CheckpointBegin { epoch, forgotten } => {
                self.epoch = self.epoch.max(epoch);
                self.forgotten = self.forgotten.max(forgotten);
                if self.checkpoint == Checkpointed::No {
                    self.checkpoint = Checkpointed::Begun;
                }
            }
            Record::CheckpointTransaction {
                decision,
                ended,
                heuristics,
            } => {
                let id = decision.transaction;
                // It was written from all that came before, of which this log may hold a part only.
                self.transactions.remove(&id);
                self.commit(decision);
                if ended {
                    self.end(id, heuristics);
                } else {
                    self.settle(id, heuristics);
                }
            }
            Record::CheckpointEnd => {
                if self.checkpoint == Checkpointed::Begun {
                    self.checkpoint = Checkpointed::Whole;
                }
            }
        }
    }

    /// Whether what was read, from `first` on, tells everything: the log from its very beginning, or a whole checkpoint. If not, segments are
    /// missing that no trim took away, and nothing may be presumed.
    pub fn is_whole(&self, first: Seq) -> bool {
        first.0 <= 1 || self.checkpoint == Checkpointed::Whole
    }

    /// A seeded bug, and nothing else.
    fn forget_a_commit(&mut self) {
        if cfg!(unanimity_bug = "commit-forgotten") {
            self.transactions.pop_last();
        }
    }

    fn commit(&mut self, decision: Decision) {
        let id = decision.transaction;
        let remembered = |_: &RequestId| !cfg!(unanimity_bug = "request-id-forgotten");
        self.transactions.entry(id).or_insert_with(|| Transaction {
            id,
            request_id: decision.request_id.filter(remembered),
            fingerprint: decision.fingerprint,
            traceparent: decision.traceparent,
            deadline: NEVER,
            interactive: false,
            may_have_committed: false,
            answer_decided: false,
            waiters: Vec::new(),
            cancels: Vec::new(),
            branches: decision
                .branches
                .into_iter()
                .map(|b| {
                    let mut branch = Branch::new(b.number, b.participant, None);
                    branch.state = BranchState::Prepared;
                    branch.proof = b.proof;
                    branch
                })
                .collect(),
            phase: Phase::Committing,
            saga: None,
            parent: decision.parent,
        });
    }

    fn settle(&mut self, id: TransactionId, heuristics: Vec<Heuristic>) {
        let Some(transaction) = self.transactions.get_mut(&id) else {
            return;
        };
        for heuristic in heuristics {
            let Some(branch) = transaction.branch_mut(heuristic.branch) else {
                continue;
            };
            match heuristic.kind {
                HeuristicKind::Aborted => branch.state = BranchState::HeuristicAborted,
                HeuristicKind::Lost => branch.state = BranchState::Lost,
                HeuristicKind::ResolvedCommitted => {
                    branch.state = resolved_state(true, Resolution::Committed)
                }
                HeuristicKind::ResolvedAborted => {
                    branch.state = resolved_state(true, Resolution::Aborted)
                }
            }
            match heuristic.kind {
                HeuristicKind::Aborted | HeuristicKind::Lost => {
                    branch.last_error = heuristic.reason
                }
                HeuristicKind::ResolvedCommitted | HeuristicKind::ResolvedAborted => {
                    branch.resolution = heuristic.reason
                }
            }
        }
    }

    /// Its list is the whole truth: an operator's word that came after a branch's proof counts for nothing.
    fn end(&mut self, id: TransactionId, heuristics: Vec<Heuristic>) {
        let Some(transaction) = self.transactions.get_mut(&id) else {
            return;
        };
        for branch in &mut transaction.branches {
            branch.state = BranchState::Committed;
            branch.resolution.clear();
            branch.last_error.clear();
        }
        self.settle(id, heuristics);
        let Some(transaction) = self.transactions.get_mut(&id) else {
            return;
        };
        let heuristic = transaction.branches.iter().any(|b| b.state.is_heuristic());
        transaction.phase = Phase::Ended(if heuristic {
            Outcome::Heuristic(None)
        } else {
            Outcome::Committed
        });
    }

    /// The log is read to its end, and synced: a new incarnation begins. Its first effect appends its epoch; nothing may be asked of it before
    /// that is durable.
    pub fn start(mut self, log: LogId, settings: Settings, start: Start) -> Engine {
        self.forget_a_commit();
        let (epoch, now) = (Epoch(self.epoch.0 + 1), start.now);
        let mut engine = Engine::new(settings, log, epoch, start);
        engine.append_then(Record::Epoch(epoch), Pending::Epoch);
        for (name, one_phase) in self.participants {
            let participant = engine.participants.entry(name).or_default();
            participant.registered = true;
            participant.one_phase = one_phase;
            participant.recorded = Some(one_phase);
        }
        if let Some(forgotten) = self.forgotten {
            engine.table.restore_forgotten(forgotten);
        }
        for (id, transaction) in self.transactions {
            let committing = transaction.phase == Phase::Committing;
            let live_saga = transaction.phase == Phase::Saga;
            engine.table.insert(transaction);
            if committing {
                engine.undelivered += 1;
                for key in engine.unsettled(&id) {
                    engine.deliver(key);
                }
                engine.end_if_settled(id);
            } else if !live_saga {
                engine.table.retire(now, id);
            }
        }
        engine.resume_sagas();
        engine
    }
}
