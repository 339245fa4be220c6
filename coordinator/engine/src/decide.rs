//! The decision: commit exists once its record is durable, abort is presumed.

use crate::{
    effect::{Downward, Event, Refusal},
    engine::{Engine, Pending},
    id::{BranchKey, TransactionId},
    outcome::{AbortCode, AbortReason, BranchState},
    record::{Heuristic, HeuristicKind, Record},
    transaction::{Branch, Outcome, Phase},
};

impl Engine {
    pub(crate) fn decide(&mut self, id: TransactionId) {
        let Some(transaction) = self.table.find_mut(&id) else {
            return;
        };
        transaction.phase = Phase::Deciding;
        let record = Record::Commit(transaction.decision());
        if cfg!(unanimity_bug = "hold-back-skipped") {
            self.append(record);
            return self.decided(id);
        }
        self.append_then(record, Pending::Decide(id));
    }

    /// The record is durable: from here on it commits, whatever happens.
    pub(crate) fn decided(&mut self, id: TransactionId) {
        let Some(transaction) = self.table.find_mut(&id) else {
            return;
        };
        transaction.phase = Phase::Committing;
        self.undelivered += 1;
        let early = transaction.answer_decided;
        self.report_changed(&id);
        self.answer_cancels(&id);
        if early {
            self.answer_waiters(&id);
        }
        for key in self.unsettled(&id) {
            self.deliver(key);
        }
    }

    /// Aborts an undecided transaction: nothing is logged, its clients are answered at once, its branches are told.
    pub(crate) fn begin_abort(&mut self, id: TransactionId, reason: AbortReason) {
        self.leave_queue(&id);
        let Some(transaction) = self.table.find_mut(&id) else {
            return;
        };
        match &transaction.phase {
            Phase::Waiting { .. } | Phase::Active | Phase::Preparing | Phase::Delegated { .. } => {}
            Phase::Deciding
            | Phase::Committing
            | Phase::Aborting(_)
            | Phase::Saga
            | Phase::Ended(_) => return,
        }
        transaction.phase = Phase::Aborting(reason.clone());
        let executing: Vec<_> = transaction
            .branches
            .iter_mut()
            .flat_map(|b| b.executing.drain(..))
            .collect();
        for (_, ticket) in executing {
            self.refuse(
                ticket,
                Refusal::TransactionAborted {
                    transaction: id,
                    reason: reason.clone(),
                },
            );
        }
        self.report_changed(&id);
        self.answer_waiters(&id);
        self.answer_cancels(&id);
        for key in self.unsettled(&id) {
            let Some(branch) = self.table.find(&id).and_then(|t| t.branch(key.branch)) else {
                continue;
            };
            if branch.session.is_some() || branch.state == BranchState::Prepared {
                self.deliver(key);
            } else {
                // Never started, or gone with its session before its vote.
                self.settle(key, BranchState::Aborted);
            }
        }
        self.end_if_settled(id);
    }

    /// Branches that still have to hear the decision, or to prove that they did.
    pub(crate) fn unsettled(&self, id: &TransactionId) -> Vec<BranchKey> {
        let open = |b: &&Branch| !b.state.is_settled();
        self.table
            .find(id)
            .map(|t| t.branches.iter().filter(open).map(|b| t.key(b)).collect())
            .unwrap_or_default()
    }

    /// Notes what became of a branch, and gives its slot back.
    pub(crate) fn settle(&mut self, key: BranchKey, state: BranchState) {
        self.forget_retry(key);
        let Some(branch) = self
            .table
            .find_mut(&key.transaction)
            .and_then(|t| t.branch_mut(key.branch))
        else {
            return;
        };
        branch.state = state;
        branch.work = None;
        let name = branch.participant.clone();
        self.release(key);
        if let Some(participant) = self.participants.get_mut(&name) {
            participant.undelivered.remove(&key);
        }
    }

    pub(crate) fn end_if_settled(&mut self, id: TransactionId) {
        let Some(transaction) = self.table.find(&id).filter(|t| t.all_settled()) else {
            return;
        };
        let heuristic = transaction.branches.iter().any(|b| b.state.is_heuristic());
        let outcome = match &transaction.phase {
            Phase::Committing if heuristic => Outcome::Heuristic(None),
            Phase::Committing => Outcome::Committed,
            Phase::Aborting(reason) if heuristic => Outcome::Heuristic(Some(reason.clone())),
            Phase::Aborting(reason) => Outcome::Aborted(reason.clone()),
            Phase::Waiting { .. }
            | Phase::Active
            | Phase::Preparing
            | Phase::Delegated { .. }
            | Phase::Deciding
            | Phase::Saga
            | Phase::Ended(_) => return,
        };
        if transaction.phase == Phase::Committing {
            self.undelivered -= 1;
            let heuristics = transaction
                .branches
                .iter()
                .filter_map(heuristic_of)
                .collect();
            self.append(Record::End {
                transaction: id,
                heuristics,
            });
        }
        self.end(id, outcome);
    }

    pub(crate) fn end(&mut self, id: TransactionId, outcome: Outcome) {
        let Some(transaction) = self.table.find_mut(&id) else {
            return;
        };
        let parent = transaction.parent;
        transaction.phase = Phase::Ended(outcome.clone());
        transaction.traceparent = String::new();
        let deadline = transaction.deadline;
        self.timers
            .clear(deadline, crate::timer::Timer::Deadline(id));
        self.table.retire(self.now, id);
        self.report_changed(&id);
        self.answer_waiters(&id);
        self.answer_cancels(&id);
        if let Some(parent) = parent {
            self.group_ended(parent, id, &outcome);
        }
    }

    /// A one-phase branch found that its request id had committed before, as another transaction: that one is the answer.
    pub(crate) fn duplicate(&mut self, key: BranchKey, first: TransactionId) {
        let request = self
            .table
            .find(&key.transaction)
            .and_then(|t| t.request_id.clone());
        let waiters = self
            .table
            .find_mut(&key.transaction)
            .map(|t| std::mem::take(&mut t.waiters))
            .unwrap_or_default();
        self.settle(key, BranchState::Aborted);
        let message = format!("its request id had committed before, as {first}");
        self.end(
            key.transaction,
            Outcome::Aborted(AbortReason::own(AbortCode::Client, message)),
        );
        if self.table.find(&first).is_none() {
            self.remember_committed(first, request.clone());
        }
        if let Some(request) = request {
            self.table.alias(request, first);
        }
        for ticket in waiters {
            self.answer_view(ticket, &first);
        }
    }

    pub(crate) fn report_heuristic(&mut self, key: BranchKey, message: &str) {
        let Some(branch) = self
            .table
            .find(&key.transaction)
            .and_then(|t| t.branch(key.branch))
        else {
            return;
        };
        let (participant, state, message) =
            (branch.participant.clone(), branch.state, message.to_owned());
        self.report(Event::Heuristic {
            key,
            participant,
            state,
            message,
        });
    }

    /// The message that carries the decision to a branch.
    pub(crate) fn decision_for(&self, key: BranchKey) -> Option<Downward> {
        let transaction = self.table.find(&key.transaction)?;
        let proof = transaction.branch(key.branch)?.proof.clone();
        match &transaction.phase {
            Phase::Committing => Some(Downward::Commit { key, proof }),
            Phase::Aborting(_) => Some(Downward::Abort { key, proof }),
            Phase::Delegated { .. } => Some(Downward::Prove { key }),
            Phase::Waiting { .. }
            | Phase::Active
            | Phase::Preparing
            | Phase::Deciding
            | Phase::Saga
            | Phase::Ended(_) => None,
        }
    }
}

/// How a branch of a committed transaction ended, where that must be kept.
pub(crate) fn heuristic_of(branch: &Branch) -> Option<Heuristic> {
    let resolved = !branch.resolution.is_empty();
    let kind = match branch.state {
        BranchState::HeuristicAborted if resolved => HeuristicKind::ResolvedAborted,
        BranchState::HeuristicAborted => HeuristicKind::Aborted,
        BranchState::Lost => HeuristicKind::Lost,
        BranchState::Committed if resolved => HeuristicKind::ResolvedCommitted,
        BranchState::Committed
        | BranchState::Waiting
        | BranchState::Active
        | BranchState::Prepared
        | BranchState::ReadOnly
        | BranchState::Aborted
        | BranchState::HeuristicCommitted => return None,
    };
    let reason = if resolved {
        branch.resolution.clone()
    } else {
        branch.last_error.clone()
    };
    Some(Heuristic {
        branch: branch.number,
        kind,
        reason,
    })
}
