//! No session is given more open branches than its participant announced.

use std::collections::BTreeMap;

use unanimity_engine::{
    BranchKey, Completion, DoneStep, Downward, Record, SagaRecord, SessionId, TransactionId,
    Upward, Vote,
};

use super::{Invariant, Ledger, Verdict};
use crate::fact::{Fact, key_heard};

/// How much longer than its own time a step may take before the coordinator takes its slot back.
const GRACE_MS: u64 = 2_000;
/// The same of a question about one.
const UNANSWERED_MS: u64 = 10_000;

#[derive(Default)]
pub(crate) struct Admission {
    capacity: BTreeMap<SessionId, u32>,
    /// Where each branch is open, and until when at most.
    open: BTreeMap<BranchKey, (SessionId, u64)>,
}

impl Invariant for Admission {
    fn name(&self) -> &'static str {
        "admission"
    }

    fn observe(&mut self, now: u64, fact: &Fact<'_>, ledger: &Ledger) -> Verdict {
        match fact {
            Fact::Opened {
                session, capacity, ..
            } => _ = self.capacity.insert(*session, *capacity),
            Fact::Closed(session) => self.open.retain(|_, (at, _)| at != session),
            Fact::Died { .. } => self.open.clear(),
            Fact::Sent {
                session, message, ..
            } => return self.sent(now, *session, message),
            Fact::Heard { message, .. } => self.heard(message),
            Fact::Appended {
                record: Record::Saga(SagaRecord::Step { transaction, step }),
                ..
            } if !step.resolution.is_empty() => self.done_by_hand(*transaction, step, ledger),
            _ => {}
        }
        Ok(())
    }
}

impl Admission {
    fn sent(&mut self, now: u64, session: SessionId, message: &Downward) -> Verdict {
        let (key, until) = match message {
            Downward::Prepare { key, .. } | Downward::Execute { key, .. } => (*key, u64::MAX),
            Downward::RunStep {
                key, timeout_ms, ..
            } => (*key, now + timeout_ms + GRACE_MS),
            Downward::SettleStep { key, .. } => (*key, now + UNANSWERED_MS),
            // A decision may go to another session of the participant; it takes no new slot there from anybody.
            Downward::Commit { key, .. } | Downward::Abort { key, .. } => {
                self.open.remove(key);
                return Ok(());
            }
            Downward::Enlisted { .. }
            | Downward::Prove { .. }
            | Downward::Welcome(_)
            | Downward::ListInDoubt => return Ok(()),
        };
        self.open.retain(|_, (_, until)| *until > now);
        self.open.insert(key, (session, until));
        let open = self.open.values().filter(|(at, _)| *at == session).count();
        let most = self.capacity.get(&session).copied().unwrap_or_default();
        if open > most as usize {
            return Err(format!(
                "{key} is one too many: {open} are open on a session for {most}"
            ));
        }
        Ok(())
    }

    /// An operator's word gives a step's slot back, whatever its participant is still at.
    fn done_by_hand(&mut self, saga: TransactionId, step: &DoneStep, ledger: &Ledger) {
        let steps = ledger
            .durable
            .sagas
            .get(&saga)
            .map_or(0, |s| s.begin.steps.len() as u32);
        let back = if step.compensation { steps } else { 0 };
        self.open.remove(&BranchKey {
            transaction: saga,
            branch: step.position + 1 + back,
        });
    }

    /// Whatever ends a branch, or an attempt at a step, gives its slot back.
    fn heard(&mut self, message: &Upward) {
        let ends = match message {
            Upward::Vote { vote, .. } => !matches!(vote, Vote::Yes { .. }),
            Upward::Completion { completion, .. } | Upward::Proof { completion, .. } => {
                !matches!(completion, Completion::Retry(_))
            }
            Upward::Executed { result, .. } => result.is_err(),
            Upward::StepResult { .. } => true,
            Upward::Enlist { .. } | Upward::InDoubt(_) => false,
        };
        if let Some(key) = key_heard(message).filter(|_| ends) {
            self.open.remove(&key);
        }
    }
}
