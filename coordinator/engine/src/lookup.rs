//! Look-ups, and the proof of one-phase commits.
//!
//! A one-phase commit leaves the decision to the participant, so "not in the log, hence aborted" would be a lie about one. An id from an
//! earlier epoch that the log does not know is therefore asked of every participant that has ever been able to commit in one phase, and
//! none of them may be missing. Asking fences: where no marker row is found, a tombstone takes its place, so that the answer stays true.

use std::collections::BTreeSet;

use crate::{
    client::{NEVER, UNKNOWN_FINGERPRINT},
    deliver::UNANSWERED_MS,
    effect::{Answer, Downward, Refusal, TransactionView},
    engine::Engine,
    id::{BranchKey, Moment, ParticipantName, RequestId, SessionId, Ticket, TransactionId},
    input::Completion,
    outcome::{AbortCode, AbortReason, BranchState, TransactionState},
    prepare::LOOKED_UP,
    timer::Timer,
    transaction::{Outcome, Phase, Transaction},
};

/// A question that is on its way to the participants.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Inquiry {
    waiters: Vec<Ticket>,
    /// When whoever asked is told to ask again.
    until: Moment,
    outstanding: BTreeSet<ParticipantName>,
}

impl Engine {
    pub(crate) fn lookup(&mut self, ticket: Ticket, id: TransactionId) {
        if self.table.find(&id).is_some() {
            return self.answer_view(ticket, &id);
        }
        if id.log != self.log || id.epoch > self.epoch {
            return self.refuse(ticket, Refusal::TransactionUnknown(id.to_string()));
        }
        if self
            .table
            .forgotten()
            .is_some_and(|forgotten| id <= forgotten)
        {
            return self.refuse(ticket, Refusal::TransactionForgotten(id));
        }
        if id.epoch == self.epoch || cfg!(unanimity_bug = "one-phase-not-asked") {
            // This incarnation remembers what it committed, and this it does not: it was never decided to commit, and never will be.
            return self.answer(ticket, Ok(Answer::Transaction(presumed_aborted(id))));
        }
        self.inquire(ticket, id);
    }

    fn inquire(&mut self, ticket: Ticket, id: TransactionId) {
        if let Some(inquiry) = self.inquiries.get_mut(&id) {
            inquiry.waiters.push(ticket);
            return;
        }
        let able = self.participants.iter().filter(|(_, p)| p.one_phase);
        let asked: Vec<_> = able
            .map(|(name, p)| (name.clone(), p.sessions.first().copied()))
            .collect();
        if let Some((away, _)) = asked.iter().find(|(_, session)| session.is_none()) {
            let refusal = Refusal::OutcomePending {
                transaction: id,
                participant: away.to_string(),
            };
            return self.refuse(ticket, refusal);
        }
        let until = self.now.after_ms(UNANSWERED_MS);
        let outstanding = asked.iter().map(|(name, _)| name.clone()).collect();
        self.inquiries.insert(
            id,
            Inquiry {
                waiters: vec![ticket],
                until,
                outstanding,
            },
        );
        self.timers.set(until, Timer::Inquiry(id));
        for session in asked.into_iter().filter_map(|(_, session)| session) {
            self.send(
                session,
                Downward::Prove {
                    key: BranchKey {
                        transaction: id,
                        branch: LOOKED_UP,
                    },
                },
            );
        }
        self.close_inquiry_if_answered(id);
    }

    pub(crate) fn proof(&mut self, session: SessionId, key: BranchKey, completion: Completion) {
        let Some(name) = self.sessions.get(&session).map(|s| s.participant.clone()) else {
            return;
        };
        if self.inquiries.contains_key(&key.transaction) {
            return self.inquiry_answered(name, key.transaction, completion);
        }
        let Some(transaction) = self.table.find(&key.transaction) else {
            return;
        };
        let asked = matches!(transaction.phase, Phase::Delegated { .. });
        if !asked
            || transaction
                .branch(key.branch)
                .is_none_or(|b| b.participant != name || b.state.is_settled())
        {
            return;
        }
        match completion {
            Completion::Committed => {
                self.settle(key, BranchState::Committed);
                self.end(key.transaction, Outcome::Committed);
            }
            Completion::Aborted => {
                self.settle(key, BranchState::Aborted);
                let message =
                    "its session was lost, and it proved that it had not committed".into();
                let (code, participant) = (AbortCode::ParticipantUnavailable, name.to_string());
                self.begin_abort(
                    key.transaction,
                    AbortReason {
                        code,
                        participant,
                        message,
                    },
                );
            }
            Completion::Lost(message) | Completion::Retry(message) => self.not_yet(key, message),
        }
    }

    /// Nobody but the branch knows whether a one-phase commit happened.
    pub(crate) fn ask_for_proof(&mut self, id: TransactionId) {
        let Some(transaction) = self.table.find_mut(&id) else {
            return;
        };
        transaction.phase = Phase::Delegated { proving: true };
        for key in self.unsettled(&id) {
            self.deliver(key);
        }
    }

    fn inquiry_answered(
        &mut self,
        name: ParticipantName,
        id: TransactionId,
        completion: Completion,
    ) {
        match completion {
            Completion::Committed => self.close_inquiry(id, Outcome::Committed),
            Completion::Aborted => {
                if let Some(inquiry) = self.inquiries.get_mut(&id) {
                    inquiry.outstanding.remove(&name);
                }
                self.close_inquiry_if_answered(id);
            }
            Completion::Lost(_) | Completion::Retry(_) => self.postpone_inquiry(id, &name),
        }
    }

    fn close_inquiry_if_answered(&mut self, id: TransactionId) {
        if self
            .inquiries
            .get(&id)
            .is_some_and(|i| i.outstanding.is_empty())
        {
            let message = "the coordinator restarted before it had decided";
            self.close_inquiry(
                id,
                Outcome::Aborted(AbortReason::own(AbortCode::CoordinatorRestart, message)),
            );
        }
    }

    fn close_inquiry(&mut self, id: TransactionId, outcome: Outcome) {
        let Some(inquiry) = self.take_inquiry(id) else {
            return;
        };
        self.remember(id, None, outcome);
        for ticket in inquiry.waiters {
            self.answer_view(ticket, &id);
        }
    }

    fn take_inquiry(&mut self, id: TransactionId) -> Option<Inquiry> {
        let inquiry = self.inquiries.remove(&id)?;
        self.timers.clear(inquiry.until, Timer::Inquiry(id));
        Some(inquiry)
    }

    fn postpone_inquiry(&mut self, id: TransactionId, name: &ParticipantName) {
        let Some(inquiry) = self.take_inquiry(id) else {
            return;
        };
        for ticket in inquiry.waiters {
            let refusal = Refusal::OutcomePending {
                transaction: id,
                participant: name.to_string(),
            };
            self.refuse(ticket, refusal);
        }
    }

    /// Somebody did not answer: whoever asked must ask again.
    pub(crate) fn inquiry_is_late(&mut self, at: Moment, id: TransactionId) {
        let inquiry = self.inquiries.get(&id).filter(|i| i.until == at);
        if let Some(name) = inquiry.and_then(|i| i.outstanding.first().cloned()) {
            self.postpone_inquiry(id, &name);
        }
    }

    /// A session of its participant, perhaps the one that was asked, went away: whoever asked must ask again.
    pub(crate) fn drop_inquiries(&mut self, name: &ParticipantName) {
        let waits =
            |(id, i): (&TransactionId, &Inquiry)| i.outstanding.contains(name).then_some(*id);
        let cut: Vec<_> = self.inquiries.iter().filter_map(waits).collect();
        for id in cut {
            self.postpone_inquiry(id, name);
        }
    }

    /// Takes in that a transaction of an earlier epoch had committed in one phase.
    pub(crate) fn remember_committed(&mut self, id: TransactionId, request_id: Option<RequestId>) {
        self.remember(id, request_id, Outcome::Committed);
    }

    fn remember(&mut self, id: TransactionId, request_id: Option<RequestId>, outcome: Outcome) {
        if self.table.find(&id).is_some() {
            return; // A look-up and a repeated request may find out at the same time.
        }
        self.table.insert(Transaction {
            id,
            request_id,
            fingerprint: UNKNOWN_FINGERPRINT,
            traceparent: String::new(),
            deadline: NEVER,
            interactive: false,
            may_have_committed: false,
            answer_decided: false,
            waiters: Vec::new(),
            cancels: Vec::new(),
            branches: Vec::new(),
            phase: Phase::Ended(outcome),
            saga: None,
            parent: None,
        });
        self.table.retire(self.now, id);
    }
}

/// Of an id of this incarnation that is not remembered.
fn presumed_aborted(id: TransactionId) -> TransactionView {
    let message = "it is not remembered, so it was never decided to commit";
    TransactionView {
        id,
        request_id: String::new(),
        state: TransactionState::Aborted,
        branches: Vec::new(),
        abort_reason: Some(AbortReason::own(AbortCode::BranchLost, message)),
        saga: None,
    }
}
