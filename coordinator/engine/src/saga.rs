//! Sagas: steps that each commit at once, and compensations that undo them.
//!
//! ```text
//!  Locking ──granted──▶ Beginning ──durable──▶ Forward ──all done──▶ Ended (committed)
//!                                               │   ▲
//!             a refusal, exhausted attempts, the │   │ all that could fail had happened:
//!             deadline, a client's cancel        ▼   │ too late to turn
//!                                              Settling ──▶ Turning ──durable──▶ Back ──all undone──▶ Ended (compensated)
//! ```
//!
//! Compensatable steps come first, then the pivot, then the retriable ones; `docs/decisions/2026-11-21-sagas.md` has the reasons.
//! An action's branch number is its step's position, from 1; its compensation's is that and the number of steps. A key never changes,
//! however often it is sent: the participant's marker under it makes it happen once.

mod begin;
mod definition;
mod drain;
mod end;
mod group;
mod lock;
mod record;
mod reference;
mod replay;
mod result;
mod run;
mod settle;
mod undo;
mod view;

use crate::{
    id::{BranchKey, LockKey, Moment, ParticipantName, SessionId, Ticket, TransactionId},
    input::Payload,
    outcome::AbortReason,
};

pub use definition::{Kind, RetryPolicy, StepDefinition, StepWork, Work};
pub use lock::LockView;
pub use record::{DoneStep, SagaBegin, SagaRecord};
pub use reference::{Argument, Binding, MalformedReference, Place, Reference};
pub use view::{SagaView, StepState, StepView};

pub(crate) use lock::Locks;
pub(crate) use record::WireSaga;

/// The largest result of a step, in bytes.
pub const RESULT_BYTES: usize = 64 << 10;

/// What a saga has beside what every transaction has.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Saga {
    pub(crate) steps: Vec<Step>,
    pub(crate) locks: Vec<LockKey>,
    pub(crate) phase: SagaPhase,
    /// Number of its begin record; 0 while it waits for its locks.
    pub(crate) token: u64,
    /// Milliseconds from its beginning until it turns back.
    pub(crate) timeout_ms: u64,
    /// The same as a point in time, since 1970; 0 before its beginning.
    pub(crate) deadline_unix_ms: u64,
    /// It began in an earlier incarnation: a step of which nothing is known may have been sent.
    pub(crate) replayed: bool,
    /// So was its turn: what undoes it may have been sent by an earlier incarnation.
    pub(crate) turn_replayed: bool,
    /// A reason to turn that came before it had begun.
    pub(crate) wanted: Option<AbortReason>,
    /// What will be done once a record of it, on its way to disk, is durable. A checkpoint carries it: that record may stand before it.
    pub(crate) promised: Vec<DoneStep>,
    /// Those of the waiting calls that are to be answered when it has begun rather than when it ends.
    pub(crate) early: Vec<Ticket>,
    /// Calls that cancel it.
    pub(crate) cancels: Vec<Ticket>,
    /// A branch of one of its groups went against the decision.
    pub(crate) heuristic: bool,
}

/// Where it is. The diagram stands above.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SagaPhase {
    /// Waits for its locks; nothing is in the log.
    Locking,
    /// The begin record is on its way to disk.
    Beginning,
    /// Its steps run.
    Forward,
    /// Will turn if it still can: what is not known is being asked.
    Settling(AbortReason),
    /// The turn record is on its way to disk.
    Turning(AbortReason),
    /// Its compensations run.
    Back(AbortReason),
}

/// A step as it stands.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Step {
    pub(crate) definition: StepDefinition,
    /// Positions of those in `after`.
    pub(crate) after: Vec<usize>,
    /// Something refers to its result.
    pub(crate) wanted: bool,
    pub(crate) fate: Fate,
    /// An attempt ended without a known outcome, so it may have taken effect, or may still.
    pub(crate) doubt: bool,
    /// It can't be settled, and will be compensated either way.
    pub(crate) unsettled: bool,
    /// Its compensation is done, or there was nothing to undo.
    pub(crate) undone: bool,
    pub(crate) activity: Activity,
    /// How often the action was sent, or settling was asked; echoed by the participant.
    pub(crate) attempts: u32,
    pub(crate) compensation_attempts: u32,
    /// Attempts in vain since the task began.
    pub(crate) failures: u32,
    pub(crate) first_sent: Option<Moment>,
    pub(crate) compensation_first_sent: Option<Moment>,
    pub(crate) last_error: String,
    pub(crate) result: Option<Payload>,
    pub(crate) resolution: String,
    /// Of an atomic group: the last attempt.
    pub(crate) group: Option<TransactionId>,
}

/// What became of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    Open,
    Done,
    /// It took no effect and never will.
    Never,
}

/// What is being done about a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Activity {
    Idle,
    /// Waits for a slot under this place.
    Queued(Task, u64),
    /// Sent; overdue then.
    Running(Task, SessionId, Moment),
    /// To be tried again then.
    Paused(Task, Moment),
    /// The group's transaction is at work.
    Grouped,
}

/// What for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    /// Do it.
    Act,
    /// Find out whether it was done.
    Settle,
    /// Undo it.
    Undo,
}

/// The step of which a transaction is the atomic group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Parent {
    /// The saga.
    pub saga: TransactionId,
    /// The step's position, from 0.
    pub step: usize,
}

impl Step {
    pub(crate) fn new(definition: StepDefinition, after: Vec<usize>, wanted: bool) -> Self {
        Step {
            definition,
            after,
            wanted,
            fate: Fate::Open,
            doubt: false,
            unsettled: false,
            undone: false,
            activity: Activity::Idle,
            attempts: 0,
            compensation_attempts: 0,
            failures: 0,
            first_sent: None,
            compensation_first_sent: None,
            last_error: String::new(),
            result: None,
            resolution: String::new(),
            group: None,
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.definition.kind
    }

    pub(crate) fn is_done(&self) -> bool {
        self.fate == Fate::Done
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.activity == Activity::Idle
    }

    /// The only participant; `None` for a group.
    pub(crate) fn participant(&self) -> Option<&ParticipantName> {
        match &self.definition.work {
            StepWork::Single { participant, .. } => Some(participant),
            StepWork::Group(_) => None,
        }
    }

    pub(crate) fn compensation(&self) -> Option<&Work> {
        match &self.definition.work {
            StepWork::Single { compensation, .. } => compensation.as_ref(),
            StepWork::Group(_) => None,
        }
    }
}

impl Saga {
    /// Those of earlier stages are done, so a step of this kind may start.
    pub(crate) fn is_open(&self, kind: Kind) -> bool {
        self.steps.iter().all(|s| s.kind() >= kind || s.is_done())
    }

    /// From here on it only goes forward.
    pub(crate) fn is_past_pivot(&self) -> bool {
        self.is_open(Kind::Retriable)
    }

    /// The position and the direction that a branch number stands for.
    pub(crate) fn position(&self, branch: u32) -> Option<(usize, bool)> {
        let (index, steps) = ((branch as usize).checked_sub(1)?, self.steps.len());
        (index < 2 * steps).then_some((index % steps, index >= steps))
    }

    /// The key of an action, or of its compensation.
    pub(crate) fn key(&self, id: TransactionId, step: usize, undo: bool) -> BranchKey {
        let number = step + 1 + if undo { self.steps.len() } else { 0 };
        BranchKey {
            transaction: id,
            branch: number as u32,
        }
    }

    /// It stands in the log, or is about to.
    pub(crate) fn has_begun(&self) -> bool {
        !matches!(self.phase, SagaPhase::Locking | SagaPhase::Beginning)
    }
}
