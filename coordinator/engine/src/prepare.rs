//! The first phase: ask all branches at once, count the votes.

use crate::{
    effect::Downward,
    engine::Engine,
    id::{BranchKey, SessionId, TransactionId},
    input::Vote,
    outcome::{AbortCode, AbortReason, BranchState},
    transaction::{Outcome, Phase},
};

/// The branch that may commit in one phase.
pub(crate) const LOOKED_UP: u32 = 1;

impl Engine {
    /// Its slots are granted.
    pub(crate) fn start(&mut self, id: TransactionId) {
        if let Some(parent) = self.table.find(&id).and_then(|t| t.parent) {
            self.group_starts(parent, id);
        }
        let Some(transaction) = self.table.find_mut(&id) else {
            return;
        };
        if transaction.interactive {
            transaction.phase = Phase::Active;
            self.answer_waiters(&id);
            self.report_changed(&id);
        } else {
            self.ask_for_votes(id, false);
        }
    }

    /// An interactive transaction's client commits. Branches that it announced and never used leave without a message.
    pub(crate) fn commit_active(&mut self, id: TransactionId) {
        let Some(transaction) = self.table.find_mut(&id) else {
            return;
        };
        let unused = |b: &&crate::transaction::Branch| b.state == BranchState::Waiting;
        let keys: Vec<_> = transaction
            .branches
            .iter()
            .filter(unused)
            .map(|b| b.number)
            .collect();
        for branch in keys {
            self.settle(
                BranchKey {
                    transaction: id,
                    branch,
                },
                BranchState::ReadOnly,
            );
        }
        self.ask_for_votes(id, true);
    }

    fn ask_for_votes(&mut self, id: TransactionId, continued: bool) {
        let Some(transaction) = self.table.find_mut(&id) else {
            return;
        };
        let timeout_ms = transaction.deadline.0.saturating_sub(self.now.0).max(1);
        let request_id = transaction
            .request_id
            .as_ref()
            .map(|r| r.as_str().to_owned())
            .unwrap_or_default();
        let (traceparent, interactive) = (transaction.traceparent.clone(), transaction.interactive);
        let mut prepares = Vec::with_capacity(transaction.branches.len());
        for branch in transaction
            .branches
            .iter_mut()
            .filter(|b| !b.state.is_settled())
        {
            branch.state = BranchState::Active;
            let session = branch.session.expect("a branch that is asked holds a slot");
            let key = BranchKey {
                transaction: id,
                branch: branch.number,
            };
            let values = std::mem::take(&mut branch.values);
            prepares.push((session, key, branch.work.take(), values));
        }
        // Only branch 1: that is the one whose marker a look-up asks for after a restart, when nothing else is known of the transaction.
        // And not an open one under a request id: begun again after a restart it may go to one participant more, and be prepared; nobody looks
        // for the first one's marker then.
        let repeatable = interactive && !request_id.is_empty();
        let only = prepares.len() == 1 && prepares[0].1.branch == LOOKED_UP && !repeatable;
        let one_phase = only
            && self
                .sessions
                .get(&prepares[0].0)
                .is_some_and(|s| s.one_phase);
        transaction.phase = if one_phase {
            Phase::Delegated { proving: false }
        } else {
            Phase::Preparing
        };
        self.report_changed(&id);
        for (session, key, work, values) in prepares {
            let (request_id, traceparent) = (request_id.clone(), traceparent.clone());
            self.send(
                session,
                Downward::Prepare {
                    key,
                    continued,
                    work,
                    values,
                    one_phase,
                    request_id,
                    timeout_ms,
                    traceparent,
                },
            );
        }
        self.count_votes(id);
    }

    pub(crate) fn vote(&mut self, session: SessionId, key: BranchKey, vote: Vote) {
        let Some(transaction) = self.table.find(&key.transaction) else {
            return;
        };
        let Some(branch) = transaction.branch(key.branch) else {
            return self.mistake(session, format!("vote for {key}, which has no such branch"));
        };
        let voter = self.sessions.get(&session).map(|s| &s.participant);
        if voter != Some(&branch.participant) {
            return self.mistake(
                session,
                format!("vote for {key}, which is another participant's"),
            );
        }
        if branch.session != Some(session) || branch.state != BranchState::Active {
            return; // Stale or a duplicate: from a session or a phase that is over.
        }
        match &transaction.phase {
            Phase::Aborting(_) if cfg!(unanimity_bug = "vote-after-decision") => {
                if let Some(transaction) = self.table.find_mut(&key.transaction) {
                    transaction.phase = Phase::Preparing;
                }
                self.vote_in_two_phases(session, key, vote);
            }
            Phase::Preparing => self.vote_in_two_phases(session, key, vote),
            Phase::Delegated { .. } => self.vote_in_one_phase(session, key, vote),
            Phase::Aborting(_) => self.vote_after_abort(key, vote),
            Phase::Active => {
                self.mistake(session, format!("vote for {key}, which was not asked for"))
            }
            Phase::Waiting { .. }
            | Phase::Deciding
            | Phase::Committing
            | Phase::Saga
            | Phase::Ended(_) => {}
        }
    }

    fn vote_in_two_phases(&mut self, session: SessionId, key: BranchKey, vote: Vote) {
        match vote {
            Vote::Yes { proof } => {
                if let Some(branch) = self
                    .table
                    .find_mut(&key.transaction)
                    .and_then(|t| t.branch_mut(key.branch))
                {
                    branch.state = BranchState::Prepared;
                    branch.proof = proof;
                }
                self.count_votes(key.transaction);
            }
            Vote::ReadOnly => {
                self.settle(key, BranchState::ReadOnly);
                self.count_votes(key.transaction);
            }
            Vote::No(reason) => self.refused(key, reason),
            Vote::Committed | Vote::Duplicate(_) => {
                self.mistake(
                    session,
                    format!("one-phase vote for {key}, which was asked to prepare"),
                );
            }
        }
    }

    fn refused(&mut self, key: BranchKey, mut reason: AbortReason) {
        if let Some(branch) = self
            .table
            .find(&key.transaction)
            .and_then(|t| t.branch(key.branch))
        {
            reason.participant = branch.participant.as_str().into();
        }
        self.settle(key, BranchState::Aborted);
        self.begin_abort(key.transaction, reason);
    }

    /// All read-only: over, with nothing logged. All voted and one of them yes: decide.
    fn count_votes(&mut self, id: TransactionId) {
        let Some(transaction) = self.table.find(&id) else {
            return;
        };
        if transaction.phase != Phase::Preparing {
            return;
        }
        let voted = |s: BranchState| s.is_settled() || s == BranchState::Prepared;
        if !transaction.branches.iter().all(|b| voted(b.state)) {
            return;
        }
        if transaction.all_settled() {
            self.end(id, Outcome::Committed);
        } else {
            self.decide(id);
        }
    }

    fn vote_in_one_phase(&mut self, session: SessionId, key: BranchKey, vote: Vote) {
        match vote {
            Vote::Committed | Vote::ReadOnly => {
                let state = if vote == Vote::Committed {
                    BranchState::Committed
                } else {
                    BranchState::ReadOnly
                };
                self.settle(key, state);
                self.end(key.transaction, Outcome::Committed);
            }
            Vote::No(reason) => {
                self.marker_was_free(&key, &reason);
                self.refused(key, reason);
            }
            Vote::Duplicate(first) => self.duplicate(key, first),
            Vote::Yes { .. } => {
                self.mistake(
                    session,
                    format!("two-phase vote for {key}, which was asked to commit in one phase"),
                );
            }
        }
    }

    /// Operations run only once the marker of their request is written: one that was refused had not committed before. Any other failure may have
    /// come sooner.
    fn marker_was_free(&mut self, key: &BranchKey, reason: &AbortReason) {
        if reason.code == AbortCode::Refused
            && let Some(transaction) = self.table.find_mut(&key.transaction)
        {
            transaction.may_have_committed = false;
        }
    }

    /// The branch was told to abort while its vote was on its way.
    fn vote_after_abort(&mut self, key: BranchKey, vote: Vote) {
        match vote {
            Vote::Yes { proof } => {
                if let Some(branch) = self
                    .table
                    .find_mut(&key.transaction)
                    .and_then(|t| t.branch_mut(key.branch))
                {
                    branch.state = BranchState::Prepared;
                    branch.proof = proof;
                }
            }
            Vote::ReadOnly | Vote::No(_) => {
                self.settle(key, BranchState::Aborted);
                self.end_if_settled(key.transaction);
            }
            Vote::Committed | Vote::Duplicate(_) => {}
        }
    }
}
