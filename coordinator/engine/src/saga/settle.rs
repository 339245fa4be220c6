//! Turning back. First everything that is not known is settled, in the order of the stages; only then can it be told whether the saga still
//! can turn, and its turn is forced into the log before a compensation is sent.

use crate::{
    effect::{Downward, Refusal},
    engine::{Engine, Pending},
    id::{BranchKey, SessionId, TransactionId},
    outcome::AbortReason,
    record::Record,
    saga::{Activity, Fate, Kind, Reference, Saga, SagaPhase, SagaRecord, Task},
};

impl Engine {
    /// There is a reason to turn, unless the saga is past its pivot.
    pub(crate) fn want_turn(&mut self, id: TransactionId, reason: AbortReason) {
        let Some(saga) = self.saga_mut(&id) else {
            return;
        };
        if saga.phase != SagaPhase::Forward || saga.is_past_pivot() {
            return;
        }
        saga.phase = SagaPhase::Settling(reason);
        for step in 0..saga.steps.len() {
            self.hold_back(id, step);
        }
        self.advance(id);
    }

    /// What was not sent isn't sent any more. What was sent is left to answer.
    fn hold_back(&mut self, id: TransactionId, step: usize) {
        let Some(saga) = self.saga(&id) else { return };
        let (key, found) = (saga.key(id, step, false), &saga.steps[step]);
        match found.activity {
            Activity::Queued(..) | Activity::Paused(..) => {
                self.release_step(key);
                if let Some(found) = self.saga_mut(&id).and_then(|s| s.steps.get_mut(step)) {
                    found.activity = Activity::Idle;
                }
            }
            Activity::Grouped => self.abort_group(id, step),
            Activity::Idle | Activity::Running(..) => {}
        }
    }

    pub(crate) fn settle_saga(&mut self, id: TransactionId) {
        let Some(saga) = self.saga_mut(&id) else {
            return;
        };
        while saga.conclude() {}
        let asking = saga.to_be_asked();
        for step in asking {
            self.start_task(id, step, Task::Settle);
        }
        let Some(saga) = self.saga_mut(&id) else {
            return;
        };
        let SagaPhase::Settling(reason) = saga.phase.clone() else {
            return;
        };
        if !saga.is_settled() {
            return;
        }
        if saga.is_past_pivot() {
            saga.phase = SagaPhase::Forward;
            for ticket in std::mem::take(&mut saga.cancels) {
                self.refuse(ticket, Refusal::TransactionDecided(id));
            }
            return self.advance(id);
        }
        saga.phase = SagaPhase::Turning(reason.clone());
        let record = SagaRecord::Turn {
            transaction: id,
            reason,
            unsettled: saga.unsettled(),
        };
        if cfg!(unanimity_bug = "turn-not-forced") {
            self.append(Record::Saga(record));
            return self.saga_turned(id);
        }
        self.append_then(Record::Saga(record), Pending::SagaTurned(id));
    }

    /// The turn is durable: it goes back, whatever happens.
    pub(crate) fn saga_turned(&mut self, id: TransactionId) {
        let Some(saga) = self.saga_mut(&id) else {
            return;
        };
        let SagaPhase::Turning(reason) = saga.phase.clone() else {
            return;
        };
        saga.phase = SagaPhase::Back(reason);
        let cancels = std::mem::take(&mut saga.cancels);
        if cfg!(unanimity_bug = "locks-released-early") {
            self.unlock(id);
        }
        self.report_changed(&id);
        for ticket in cancels {
            self.answer_view(ticket, &id);
        }
        self.advance(id);
    }

    pub(crate) fn settle_message(
        &self,
        key: BranchKey,
        step: usize,
    ) -> Option<Result<Downward, String>> {
        let attempt = self.saga(&key.transaction)?.steps.get(step)?.attempts + 1;
        let age_ms = self.step_age_ms(key.transaction, step);
        Some(Ok(Downward::SettleStep {
            key,
            attempt,
            age_ms,
        }))
    }

    /// Its participant can't tell; it will be compensated, whether it took effect or not.
    pub(crate) fn leave_unsettled(&mut self, key: BranchKey, step: usize, session: SessionId) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.held.remove(&key);
        }
        let Some(found) = self
            .saga_mut(&key.transaction)
            .and_then(|s| s.steps.get_mut(step))
        else {
            return;
        };
        found.activity = Activity::Idle;
        found.unsettled = true;
        if let Some(name) = found.participant().cloned() {
            self.queue.free(name);
        }
        self.advance(key.transaction);
    }
}

impl Saga {
    /// Steps before it: those in its `after`, and all of earlier stages.
    fn before(&self, step: usize) -> impl Iterator<Item = &super::Step> {
        let found = &self.steps[step];
        self.steps.iter().enumerate().filter_map(move |(other, s)| {
            (s.kind() < found.kind() || found.after.contains(&other)).then_some(s)
        })
    }

    /// An operator's word that it was done is on its way to disk. That is waited for: it must be the same before a crash and after it.
    pub(crate) fn is_promised(&self, step: usize) -> bool {
        let mut promised = self.promised.iter().filter(|done| !done.compensation);
        promised.any(|done| done.position as usize == step)
    }

    /// Draws what follows without asking: a step that no attempt can have done was not, nor one that comes after such a step. True where
    /// something new is known.
    fn conclude(&mut self) -> bool {
        let never = |step: &usize| {
            let found = &self.steps[*step];
            let open = found.fate == Fate::Open
                && found.is_idle()
                && !found.unsettled
                && found.kind() != Kind::Retriable
                && !self.is_promised(*step);
            let doubt = found.doubt && !cfg!(unanimity_bug = "doubt-forgotten");
            open && (!doubt || self.before(*step).any(|s| s.fate == Fate::Never))
        };
        let Some(step) = (0..self.steps.len()).find(never) else {
            return false;
        };
        self.steps[step].fate = Fate::Never;
        self.steps[step].doubt = false;
        true
    }

    /// Steps that may have taken effect, and before which everything is known.
    fn to_be_asked(&self) -> Vec<usize> {
        let ask = |step: &usize| {
            let found = &self.steps[*step];
            found.fate == Fate::Open
                && found.is_idle()
                && !found.unsettled
                && found.kind() != Kind::Retriable
                && !self.is_promised(*step)
                && self.before(*step).all(|s| s.is_done() || s.unsettled)
        };
        (0..self.steps.len()).filter(ask).collect()
    }

    /// Nothing is on its way, and of everything up to the pivot it is known what became of it, or that it will be compensated either way.
    fn is_settled(&self) -> bool {
        let up_to_pivot = self.steps.iter().filter(|s| s.kind() != Kind::Retriable);
        cfg!(unanimity_bug = "turn-before-answer")
            || self.steps.iter().all(|s| s.is_idle())
                && up_to_pivot
                    .clone()
                    .all(|s| s.fate != Fate::Open || s.unsettled)
    }

    pub(crate) fn unsettled(&self) -> Vec<u32> {
        let unsettled = |step: &usize| self.steps[*step].unsettled;
        (0..self.steps.len())
            .filter(unsettled)
            .map(|step| step as u32)
            .collect()
    }

    /// Whether the saga can't turn without knowing if this step took effect: where it decides; where its compensation uses its result; and
    /// where an earlier incarnation may have done all of its stage, gone on to a later one, and told its client.
    pub(crate) fn must_know(&self, step: usize) -> bool {
        let found = &self.steps[step];
        let uses_result = |work: &super::Work| {
            let own = |reference: &Reference| matches!(reference, Reference::Result { step, .. } if *step == found.definition.name);
            work.bindings.iter().any(|binding| own(&binding.reference))
        };
        let may_have_ended = self.replayed
            && !self
                .steps
                .iter()
                .any(|s| s.fate == Fate::Never && s.kind() == Kind::Compensatable);
        found.kind() == Kind::Pivot
            || found.compensation().is_some_and(uses_result)
            || may_have_ended
    }
}
