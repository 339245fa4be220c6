//! What operators ask. The decision is never theirs: they can hurry its delivery, or record what they did to one branch by hand.

use crate::{
    effect::Refusal,
    engine::{Engine, Pending},
    id::{BranchKey, Ticket, TransactionId},
    outcome::{BranchState, Resolution, TransactionState},
    record::Record,
    transaction::Phase,
};

impl Engine {
    pub(crate) fn retry(&mut self, ticket: Ticket, id: TransactionId) {
        self.retry_saga(id);
        if self.is_in_delivery(&id) {
            for key in self.unsettled(&id) {
                self.deliver(key);
            }
        }
        self.lookup(ticket, id);
    }

    pub(crate) fn resolve(
        &mut self,
        ticket: Ticket,
        key: BranchKey,
        resolution: Resolution,
        reason: String,
    ) {
        if self.table.find(&key.transaction).is_none() {
            return self.refuse(
                ticket,
                Refusal::TransactionUnknown(key.transaction.to_string()),
            );
        }
        if !self.is_resolvable(key) {
            return self.refuse(ticket, Refusal::BranchNotInDoubt(key));
        }
        let record = Record::Resolve {
            branch: key,
            resolution,
            reason: reason.clone(),
        };
        self.append_then(
            record,
            Pending::Resolve {
                ticket,
                key,
                resolution,
                reason,
            },
        );
    }

    /// Decided and not settled.
    pub(crate) fn is_resolvable(&self, key: BranchKey) -> bool {
        self.table.find(&key.transaction).is_some_and(|t| {
            matches!(
                t.state(),
                TransactionState::Committing | TransactionState::Aborting
            ) && t.branch(key.branch).is_some_and(|b| !b.state.is_settled())
        })
    }

    /// The operator's word is durable. Where the branch proved its outcome in the meantime, the proof counts.
    pub(crate) fn resolved(
        &mut self,
        ticket: Ticket,
        key: BranchKey,
        resolution: Resolution,
        reason: String,
    ) {
        if self.is_resolvable(key) {
            let committing = self.table.find(&key.transaction).map(|t| t.state())
                == Some(TransactionState::Committing);
            self.settle(key, resolved_state(committing, resolution));
            if let Some(branch) = self
                .table
                .find_mut(&key.transaction)
                .and_then(|t| t.branch_mut(key.branch))
            {
                branch.resolution = reason.clone();
                if branch.state.is_heuristic() {
                    self.report_heuristic(key, &reason);
                }
            }
            self.end_if_settled(key.transaction);
        } else {
            self.take_back(key);
        }
        self.answer_view(ticket, &key.transaction);
    }

    /// A branch proved its outcome while the operator's word was on its way to disk. The log must say so too, before the end does.
    fn take_back(&mut self, key: BranchKey) {
        let Some(transaction) = self.table.find(&key.transaction) else {
            return;
        };
        let Some(branch) = transaction
            .branch(key.branch)
            .filter(|b| b.resolution.is_empty())
        else {
            return;
        };
        let resolution = match branch.state {
            BranchState::Committed => Resolution::Committed,
            _ => Resolution::Aborted,
        };
        if transaction.phase == Phase::Committing {
            self.append(Record::Resolve {
                branch: key,
                resolution,
                reason: String::new(),
            });
        }
    }
}

/// Where a branch stands after an operator's word, by the decision.
pub(crate) fn resolved_state(committing: bool, resolution: Resolution) -> BranchState {
    match (committing, resolution) {
        (true, Resolution::Committed) => BranchState::Committed,
        (true, Resolution::Aborted) => BranchState::HeuristicAborted,
        (false, Resolution::Aborted) => BranchState::Aborted,
        (false, Resolution::Committed) => BranchState::HeuristicCommitted,
    }
}
