//! A saga as shown.

use crate::{
    id::{LockKey, Moment, ParticipantName, StepName, TransactionId},
    input::Payload,
    outcome::{AbortReason, TransactionState},
    saga::{Activity, Fate, Kind, Saga, SagaPhase, Step, Task},
};

/// What a transaction has beside, where it is a saga.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SagaView {
    /// Its steps.
    pub steps: Vec<StepView>,
    /// Its locks.
    pub locks: Vec<LockKey>,
    /// Their token; 0 while it waits for them.
    pub token: u64,
    /// Locks that it waits for.
    pub waiting_for: Vec<LockKey>,
    /// When it turns back unless it is past its pivot, in milliseconds since 1970; 0 where it has not begun.
    pub deadline_unix_ms: u64,
}

/// A step as shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StepView {
    /// Its name.
    pub name: StepName,
    /// Its kind.
    pub kind: Kind,
    /// Who does it.
    pub participants: Vec<ParticipantName>,
    /// Steps that come before it.
    pub after: Vec<StepName>,
    /// Where it stands.
    pub state: StepState,
    /// How often the action was sent.
    pub attempts: u32,
    /// How often the compensation was sent.
    pub compensation_attempts: u32,
    /// When it is tried again.
    pub next_attempt: Option<Moment>,
    /// What went wrong last.
    pub last_error: String,
    /// Tried so often in vain that a human should look.
    pub stuck: bool,
    /// What the action gave back, JSON.
    pub result: Option<Payload>,
    /// An operator's reason.
    pub resolution: String,
    /// Of an atomic group: the last attempt's transaction.
    pub group: Option<TransactionId>,
    /// It has a compensation.
    pub has_compensation: bool,
}

/// Where a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepState {
    /// Not started.
    Waiting,
    /// Sent, or about to be.
    Running,
    /// Failed, and will be tried again.
    Retrying,
    /// Took effect.
    Done,
    /// Took no effect, and won't be tried again.
    Failed,
    /// Whether it took effect is being asked.
    Settling,
    /// Is being undone.
    Compensating,
    /// Undone.
    Compensated,
    /// Never started.
    Skipped,
}

impl Saga {
    pub(crate) fn state(&self) -> TransactionState {
        match self.phase {
            SagaPhase::Locking => TransactionState::Waiting,
            // That it turns is told only when the record of it is durable.
            SagaPhase::Beginning
            | SagaPhase::Forward
            | SagaPhase::Settling(_)
            | SagaPhase::Turning(_) => TransactionState::Running,
            SagaPhase::Back(_) => TransactionState::Compensating,
        }
    }

    /// Why it goes, or is to go, back.
    pub(crate) fn turn_reason(&self) -> Option<&AbortReason> {
        match &self.phase {
            SagaPhase::Locking | SagaPhase::Beginning | SagaPhase::Forward => None,
            SagaPhase::Settling(reason) | SagaPhase::Turning(reason) | SagaPhase::Back(reason) => {
                Some(reason)
            }
        }
    }

    pub(crate) fn view(&self, waiting_for: Vec<LockKey>, ended: bool) -> SagaView {
        let back = matches!(self.phase, SagaPhase::Turning(_) | SagaPhase::Back(_));
        SagaView {
            steps: self
                .steps
                .iter()
                .map(|step| step.view(back, ended))
                .collect(),
            locks: self.locks.clone(),
            token: self.token,
            waiting_for,
            deadline_unix_ms: self.deadline_unix_ms,
        }
    }
}

impl Step {
    fn view(&self, back: bool, ended: bool) -> StepView {
        StepView {
            name: self.definition.name.clone(),
            kind: self.kind(),
            participants: self
                .definition
                .participants()
                .into_iter()
                .cloned()
                .collect(),
            after: self.definition.after.clone(),
            state: self.state(back, ended),
            attempts: self.attempts,
            compensation_attempts: self.compensation_attempts,
            next_attempt: match self.activity {
                Activity::Paused(_, at) => Some(at),
                Activity::Idle
                | Activity::Queued(..)
                | Activity::Running(..)
                | Activity::Grouped => None,
            },
            last_error: self.last_error.clone(),
            stuck: self.is_stuck(),
            result: self.result.clone(),
            resolution: self.resolution.clone(),
            group: self.group,
            has_compensation: self.compensation().is_some(),
        }
    }

    /// It is tried for ever, and was in vain as often as its policy allows.
    pub(crate) fn is_stuck(&self) -> bool {
        self.activity != Activity::Idle && self.failures >= self.definition.retry.max_attempts
    }

    fn state(&self, back: bool, ended: bool) -> StepState {
        match (self.activity, self.fate) {
            (
                Activity::Queued(Task::Act, _)
                | Activity::Running(Task::Act, ..)
                | Activity::Grouped,
                _,
            ) => StepState::Running,
            (Activity::Paused(Task::Act, _), _) => StepState::Retrying,
            (
                Activity::Queued(Task::Settle, _)
                | Activity::Running(Task::Settle, ..)
                | Activity::Paused(Task::Settle, _),
                _,
            ) => StepState::Settling,
            (
                Activity::Queued(Task::Undo, _)
                | Activity::Running(Task::Undo, ..)
                | Activity::Paused(Task::Undo, _),
                _,
            ) => StepState::Compensating,
            (Activity::Idle, Fate::Done) if self.undone && self.compensation().is_some() => {
                StepState::Compensated
            }
            (Activity::Idle, Fate::Done) => StepState::Done,
            (Activity::Idle, Fate::Open)
                if self.undone && self.unsettled && self.compensation().is_some() =>
            {
                StepState::Compensated
            }
            (Activity::Idle, Fate::Open | Fate::Never) if self.attempts == 0 && (back || ended) => {
                StepState::Skipped
            }
            (Activity::Idle, Fate::Never) => StepState::Failed,
            (Activity::Idle, Fate::Open) if back || ended => StepState::Failed,
            (Activity::Idle, Fate::Open) => StepState::Waiting,
        }
    }
}
