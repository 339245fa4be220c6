//! Delivery: a decision is sent until the branch proves its outcome. No client's deadline stops it, and it never expires.

use crate::{
    effect::Event,
    engine::Engine,
    id::{BranchKey, Moment, ParticipantName, SessionId, TransactionId},
    input::Completion,
    outcome::{BranchState, TransactionState},
    timer::Timer,
    transaction::{Outcome, Phase},
};

/// A decision that was not answered is sent again after this long: the participant absorbs what it has done already.
pub(crate) const UNANSWERED_MS: u64 = 10_000;

impl Engine {
    /// Sends a branch what is due to it, if its participant has a session; else it waits for one to open.
    pub(crate) fn deliver(&mut self, key: BranchKey) {
        let Some(message) = self.decision_for(key) else {
            return;
        };
        let Some(session) = self.delivery_session(key) else {
            return self.park(key);
        };
        let Some(branch) = self
            .table
            .find_mut(&key.transaction)
            .and_then(|t| t.branch_mut(key.branch))
        else {
            return;
        };
        branch.attempts += 1;
        let name = branch.participant.clone();
        if let Some(participant) = self.participants.get_mut(&name) {
            participant.undelivered.remove(&key);
        }
        self.retry_in(key, UNANSWERED_MS);
        self.send(session, message);
    }

    /// The session that the branch is on, or another of the same participant: phase two may go to any. A different one at each retry. Who only
    /// asks for a proof takes no slot away: the branch may be at work where it is.
    fn delivery_session(&mut self, key: BranchKey) -> Option<SessionId> {
        let branch = self.table.find(&key.transaction)?.branch(key.branch)?;
        if branch.session.is_some() && branch.attempts == 0 {
            return branch.session;
        }
        let sessions = &self.participants.get(&branch.participant)?.sessions;
        let index = branch.attempts as usize % sessions.len().max(1);
        let session = sessions.iter().nth(index).copied()?;
        let at_work = branch.session.is_some() && self.is_proving(&key.transaction);
        if branch.session != Some(session) && !at_work {
            self.release(key);
            self.take_slot(key, session);
        }
        Some(session)
    }

    fn is_proving(&self, id: &TransactionId) -> bool {
        let transaction = self.table.find(id);
        transaction.is_some_and(|t| matches!(t.phase, Phase::Delegated { .. }))
    }

    fn park(&mut self, key: BranchKey) {
        self.forget_retry(key);
        let Some(branch) = self
            .table
            .find_mut(&key.transaction)
            .and_then(|t| t.branch_mut(key.branch))
        else {
            return;
        };
        branch.last_error = "the participant is not connected".into();
        let name = branch.participant.clone();
        self.participants
            .entry(name)
            .or_default()
            .undelivered
            .insert(key);
    }

    fn retry_in(&mut self, key: BranchKey, ms: u64) {
        self.forget_retry(key);
        let at = self.now.after_ms(ms);
        if let Some(branch) = self
            .table
            .find_mut(&key.transaction)
            .and_then(|t| t.branch_mut(key.branch))
        {
            branch.retry_at = Some(at);
            self.timers.set(at, Timer::Deliver(key));
        }
    }

    pub(crate) fn forget_retry(&mut self, key: BranchKey) {
        let branch = self
            .table
            .find_mut(&key.transaction)
            .and_then(|t| t.branch_mut(key.branch));
        if let Some(at) = branch.and_then(|b| b.retry_at.take()) {
            self.timers.clear(at, Timer::Deliver(key));
        }
    }

    pub(crate) fn deliver_again(&mut self, at: Moment, key: BranchKey) {
        let branch = self
            .table
            .find(&key.transaction)
            .and_then(|t| t.branch(key.branch));
        if branch.is_some_and(|b| b.retry_at == Some(at) && !b.state.is_settled())
            && !cfg!(unanimity_bug = "retry-forgotten")
        {
            self.deliver(key);
        }
    }

    pub(crate) fn completion(
        &mut self,
        session: SessionId,
        key: BranchKey,
        completion: Completion,
    ) {
        let speaker = self.sessions.get(&session).map(|s| s.participant.clone());
        let found = self
            .table
            .find(&key.transaction)
            .and_then(|t| Some((t.branch(key.branch)?, &t.phase)));
        let Some((branch, phase)) = found else {
            return self.stray(key, speaker, &completion);
        };
        if speaker.as_ref() != Some(&branch.participant) {
            return self.mistake(
                session,
                format!("completion of {key}, which is another participant's"),
            );
        }
        match phase {
            Phase::Committing if !branch.state.is_settled() => self.committed(key, completion),
            Phase::Aborting(_) if !branch.state.is_settled() => self.aborted(key, completion),
            Phase::Ended(Outcome::Aborted(_)) => self.aborted_late(key, completion),
            Phase::Waiting { .. }
            | Phase::Active
            | Phase::Preparing
            | Phase::Delegated { .. }
            | Phase::Deciding
            | Phase::Committing
            | Phase::Aborting(_)
            | Phase::Saga
            | Phase::Ended(Outcome::Committed | Outcome::Compensated(_) | Outcome::Heuristic(_)) => {
            }
        }
    }

    fn committed(&mut self, key: BranchKey, completion: Completion) {
        match completion {
            Completion::Committed => self.settle(key, BranchState::Committed),
            Completion::Aborted => {
                let message = "rolled back, although it was prepared and the decision is commit";
                self.settle_against(key, BranchState::HeuristicAborted, message);
            }
            Completion::Lost(_) if cfg!(unanimity_bug = "unknown-is-done") => {
                self.settle(key, BranchState::Committed);
            }
            Completion::Lost(message) => self.settle_against(key, BranchState::Lost, &message),
            Completion::Retry(message) => return self.not_yet(key, message),
        }
        self.end_if_settled(key.transaction);
    }

    fn aborted(&mut self, key: BranchKey, completion: Completion) {
        match completion {
            Completion::Aborted | Completion::Lost(_) => self.settle(key, BranchState::Aborted),
            Completion::Committed => {
                let message = "committed, although the decision is abort";
                self.settle_against(key, BranchState::HeuristicCommitted, message);
            }
            Completion::Retry(message) => return self.not_yet(key, message),
        }
        self.end_if_settled(key.transaction);
    }

    /// A branch that was out of reach when its transaction aborted was found prepared later, and told to abort.
    fn aborted_late(&mut self, key: BranchKey, completion: Completion) {
        if completion != Completion::Committed {
            return;
        }
        self.settle_against(
            key,
            BranchState::HeuristicCommitted,
            "committed, although the decision is abort",
        );
        if let Some(transaction) = self.table.find_mut(&key.transaction)
            && let Phase::Ended(Outcome::Aborted(reason)) = &transaction.phase
        {
            transaction.phase = Phase::Ended(Outcome::Heuristic(Some(reason.clone())));
            self.report_changed(&key.transaction);
        }
    }

    /// Of a transaction that is not remembered: it was presumed aborted, unless it may have committed and been forgotten since. An alarm about
    /// that one would have a human undo what is right.
    fn stray(&mut self, key: BranchKey, speaker: Option<ParticipantName>, completion: &Completion) {
        let (Some(participant), Completion::Committed) = (speaker, completion) else {
            return;
        };
        let forgotten = self.table.forgotten();
        if forgotten.is_some_and(|forgotten| key.transaction <= forgotten) {
            return;
        }
        let message =
            "committed, although its transaction is not remembered and was presumed aborted"
                .to_owned();
        self.report(Event::Heuristic {
            key,
            participant,
            state: BranchState::HeuristicCommitted,
            message,
        });
    }

    fn settle_against(&mut self, key: BranchKey, state: BranchState, message: &str) {
        self.settle(key, state);
        if let Some(branch) = self
            .table
            .find_mut(&key.transaction)
            .and_then(|t| t.branch_mut(key.branch))
        {
            branch.last_error = message.to_owned();
        }
        self.report_heuristic(key, message);
    }

    /// Pauses, doubling up to the longest, spread by up to a half so that many branches do not come back at once.
    pub(crate) fn not_yet(&mut self, key: BranchKey, message: String) {
        let Some(branch) = self
            .table
            .find_mut(&key.transaction)
            .and_then(|t| t.branch_mut(key.branch))
        else {
            return;
        };
        branch.last_error = message.clone();
        let (attempts, participant) = (branch.attempts, branch.participant.clone());
        let longest = self.settings.retry_max_ms.max(1);
        let pause = self
            .settings
            .retry_min_ms
            .saturating_mul(1 << attempts.min(16))
            .clamp(1, longest);
        let spread = (key.transaction.unique as u64
            ^ u64::from(attempts).wrapping_mul(0x9E37_79B9_7F4A_7C15))
            % (pause / 2 + 1);
        self.retry_in(key, pause - spread);
        self.report(Event::Retrying {
            key,
            participant,
            attempts,
            message,
        });
    }

    /// Whether it is decided, so that an operator may hurry it or settle it by hand.
    pub(crate) fn is_in_delivery(&self, id: &TransactionId) -> bool {
        self.table.find(id).is_some_and(|t| {
            matches!(
                t.state(),
                TransactionState::Committing | TransactionState::Aborting
            ) || matches!(t.phase, Phase::Delegated { proving: true })
        })
    }
}
