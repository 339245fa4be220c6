//! What participants say of steps.

use crate::{
    engine::Engine,
    id::{BranchKey, SessionId, TransactionId},
    input::{Payload, StepOutcome},
    outcome::{AbortCode, AbortReason},
    record::Record,
    saga::{Activity, DoneStep, Fate, SagaPhase, SagaRecord, Task},
};

impl Engine {
    pub(crate) fn step_result(
        &mut self,
        session: SessionId,
        key: BranchKey,
        attempt: u32,
        outcome: StepOutcome,
    ) {
        let speaker = self.sessions.get(&session).map(|s| s.participant.clone());
        let Some(saga) = self.saga(&key.transaction) else {
            return; // It is over.
        };
        let Some((step, undo)) = saga.position(key.branch) else {
            return self.mistake(session, format!("result of {key}, which has no such step"));
        };
        let found = &saga.steps[step];
        if found.participant() != speaker.as_ref() {
            return self.mistake(
                session,
                format!("result of {key}, which is another participant's"),
            );
        }
        let sent = if undo {
            found.compensation_attempts
        } else {
            found.attempts
        };
        if sent == 0 && !saga.replayed {
            return self.mistake(session, format!("result of {key}, which was not sent"));
        }
        // A question that was answered late: what is fenced stays so.
        let settling = found.activity.task() == Some(Task::Settle) && !undo;
        let current = matches!(found.activity, Activity::Running(task, _, _) if (task == Task::Undo) == undo)
            && attempt == sent;
        match outcome {
            // What took effect did so whichever attempt tells it.
            StepOutcome::Done(_) if undo => self.compensation_done(key, step),
            StepOutcome::Done(result) => self.action_done(key, step, result),
            StepOutcome::Never if settling => self.step_never(key, step),
            _ if !current => {}
            _ if undo => self.compensation_failed(key, outcome),
            StepOutcome::Never if saga.phase == SagaPhase::Forward => {
                let reason = AbortReason::own(AbortCode::BranchLost, "the step is fenced");
                self.step_refused(key, blame(reason, speaker));
            }
            StepOutcome::Never => self.step_never(key, step),
            StepOutcome::Refused(reason) => self.step_refused(key, blame(reason, speaker)),
            StepOutcome::Failed(reason) => self.step_failed(key, blame(reason, speaker), true),
            StepOutcome::Unknown(message) => {
                let reason = AbortReason::own(AbortCode::ParticipantFailure, message);
                self.step_unknown(key, blame(reason, speaker), true);
            }
            StepOutcome::Working(message) => {
                let reason =
                    AbortReason::own(AbortCode::Timeout, format!("at work still: {message}"));
                self.step_unknown(key, blame(reason, speaker), false);
            }
        }
    }

    fn action_done(&mut self, key: BranchKey, step: usize, result: Payload) {
        let id = key.transaction;
        let Some(found) = self.saga_mut(&id).and_then(|s| s.steps.get_mut(step)) else {
            return;
        };
        if found.fate != Fate::Open || found.unsettled {
            return; // A duplicate; or it is being compensated, whether it took effect or not.
        }
        if matches!(found.activity.task(), Some(Task::Act | Task::Settle)) {
            self.release_step(key);
        }
        self.mark_done(id, step, Some(result), String::new());
        self.advance(id);
    }

    /// Notes that an action took effect.
    pub(crate) fn mark_done(
        &mut self,
        id: TransactionId,
        step: usize,
        result: Option<Payload>,
        resolution: String,
    ) {
        let Some(found) = self.saga_mut(&id).and_then(|s| s.steps.get_mut(step)) else {
            return;
        };
        let logged = result.clone().filter(|_| found.wanted);
        found.result = result.filter(|result| !result.is_empty());
        found.fate = Fate::Done;
        found.doubt = false;
        found.activity = Activity::Idle;
        found.last_error.clear();
        found.resolution.clone_from(&resolution);
        self.append(Record::Saga(SagaRecord::Step {
            transaction: id,
            step: DoneStep {
                position: step as u32,
                compensation: false,
                result: logged,
                resolution,
            },
        }));
    }

    /// It is fenced: it took no effect and never will.
    fn step_never(&mut self, key: BranchKey, step: usize) {
        self.release_step(key);
        if let Some(found) = self
            .saga_mut(&key.transaction)
            .and_then(|s| s.steps.get_mut(step))
        {
            found.activity = Activity::Idle;
            found.doubt = false;
        }
        if let Some(saga) = self.saga_mut(&key.transaction)
            && !saga.is_promised(step)
        {
            saga.steps[step].fate = Fate::Never;
        }
        self.advance(key.transaction);
    }

    /// A refusal is the participant's own no.
    pub(crate) fn step_refused(&mut self, key: BranchKey, reason: AbortReason) {
        let id = key.transaction;
        let Some((step, saga)) = self
            .saga(&id)
            .and_then(|s| Some((s.position(key.branch)?.0, s)))
        else {
            return;
        };
        let found = &saga.steps[step];
        let forward = saga.phase == SagaPhase::Forward;
        match found.activity.task() {
            Some(Task::Act) if forward && found.kind() != super::Kind::Retriable => {
                self.release_step(key);
                self.idle_after(id, step, &reason);
                self.want_turn(id, reason);
            }
            // Sent again because its participant can't settle: this is its answer.
            Some(Task::Settle) if !self.was_asked_to_settle(found.activity) => {
                self.note_error(id, step, &reason);
                self.step_never(key, step);
            }
            Some(Task::Act | Task::Settle | Task::Undo) => self.step_failed(key, reason, true),
            None => {}
        }
    }

    fn was_asked_to_settle(&self, activity: Activity) -> bool {
        let Activity::Running(Task::Settle, session, _) = activity else {
            return false;
        };
        self.sessions.get(&session).is_some_and(|s| s.settles_steps)
    }

    fn idle_after(&mut self, id: TransactionId, step: usize, reason: &AbortReason) {
        self.note_error(id, step, reason);
        if let Some(found) = self.saga_mut(&id).and_then(|s| s.steps.get_mut(step)) {
            found.activity = Activity::Idle;
        }
    }

    fn note_error(&mut self, id: TransactionId, step: usize, reason: &AbortReason) {
        if let Some(found) = self.saga_mut(&id).and_then(|s| s.steps.get_mut(step)) {
            found.last_error.clone_from(&reason.message);
        }
    }

    /// An attempt ended, and nobody knows how: it may have taken effect, or may still.
    pub(crate) fn step_unknown(&mut self, key: BranchKey, reason: AbortReason, counts: bool) {
        if let Some(saga) = self.saga_mut(&key.transaction)
            && let Some((step, false)) = saga.position(key.branch)
        {
            saga.steps[step].doubt = true;
        }
        self.step_failed(key, reason, counts);
    }

    /// Its session was lost.
    pub(crate) fn step_cut_off(&mut self, key: BranchKey) {
        let message = "its session was lost before it answered";
        self.step_unknown(
            key,
            AbortReason::own(AbortCode::ParticipantUnavailable, message),
            true,
        );
    }

    fn compensation_failed(&mut self, key: BranchKey, outcome: StepOutcome) {
        let own = |message: String| AbortReason::own(AbortCode::ParticipantFailure, message);
        match outcome {
            StepOutcome::Refused(reason) | StepOutcome::Failed(reason) => {
                self.step_failed(key, reason, true)
            }
            StepOutcome::Unknown(message) => self.step_failed(key, own(message), true),
            StepOutcome::Working(message) => {
                self.step_failed(key, own(format!("at work still: {message}")), false)
            }
            StepOutcome::Never => {
                self.step_failed(key, own("the compensation itself is fenced".into()), true)
            }
            StepOutcome::Done(_) => {}
        }
    }
}

fn blame(mut reason: AbortReason, speaker: Option<crate::id::ParticipantName>) -> AbortReason {
    reason.participant = speaker.map(|name| name.to_string()).unwrap_or_default();
    reason
}
