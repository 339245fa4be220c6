//! One transaction: its branches, and the phase it is in.

use crate::{
    effect::{Bound, BranchView, TransactionView},
    id::{BranchKey, Moment, ParticipantName, RequestId, SessionId, Ticket, TransactionId},
    input::Payload,
    outcome::{AbortReason, BranchState, TransactionState},
    record::{DecidedBranch, Decision},
    saga::{Parent, Saga},
};

/// A transaction that the engine remembers.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Transaction {
    pub(crate) id: TransactionId,
    pub(crate) request_id: Option<RequestId>,
    pub(crate) fingerprint: u64,
    pub(crate) traceparent: String,
    pub(crate) deadline: Moment,
    pub(crate) interactive: bool,
    /// Its request was first sent to an earlier incarnation, and may have committed there in one phase, of which the log knows nothing. Until the
    /// participant has looked for that, its abort says nothing of the request.
    pub(crate) may_have_committed: bool,
    pub(crate) answer_decided: bool,
    /// Calls to be answered when it ends (or is decided, or is opened).
    pub(crate) waiters: Vec<Ticket>,
    /// Calls to abort it that came when it could be decided either way: answered when it is.
    pub(crate) cancels: Vec<Ticket>,
    pub(crate) branches: Vec<Branch>,
    pub(crate) phase: Phase,
    /// Where it is a saga; it has no branches then.
    pub(crate) saga: Option<Box<Saga>>,
    /// Where it is the atomic group of a saga's step.
    pub(crate) parent: Option<Parent>,
}

/// Where it is. The diagram stands in the crate's documentation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// In the queue for slots, under this number; holds nothing.
    Waiting { place: u64 },
    /// Interactive: takes operations.
    Active,
    /// Asked all branches for their votes.
    Preparing,
    /// Told its only branch to commit in one phase: the outcome is the branch's to tell.
    Delegated { proving: bool },
    /// The commit record is on its way to disk. Neither outcome may be told.
    Deciding,
    /// The commit record is durable.
    Committing,
    /// Will not commit.
    Aborting(AbortReason),
    /// A saga that has not ended; it has phases of its own.
    Saga,
    /// Over.
    Ended(Outcome),
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Committed,
    Aborted(AbortReason),
    /// A saga of which nothing is left, for this reason.
    Compensated(AbortReason),
    /// Decided (commit, or abort for a reason), but a branch went against it.
    Heuristic(Option<AbortReason>),
}

/// One participant's part.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Branch {
    pub(crate) number: u32,
    pub(crate) participant: ParticipantName,
    /// The session whose slot it holds.
    pub(crate) session: Option<SessionId>,
    /// What to run at prepare.
    pub(crate) work: Option<Payload>,
    /// Values that take the place of references in it.
    pub(crate) values: Vec<Bound>,
    pub(crate) state: BranchState,
    pub(crate) proof: String,
    pub(crate) attempts: u32,
    /// When the decision, or the question for proof, is sent again.
    pub(crate) retry_at: Option<Moment>,
    pub(crate) last_error: String,
    pub(crate) resolution: String,
    /// Executes sent so far.
    pub(crate) executes: u64,
    /// Executes not yet answered.
    pub(crate) executing: Vec<(u64, Ticket)>,
}

impl Branch {
    pub(crate) fn new(number: u32, participant: ParticipantName, work: Option<Payload>) -> Self {
        Branch {
            number,
            participant,
            session: None,
            work,
            values: Vec::new(),
            state: BranchState::Waiting,
            proof: String::new(),
            attempts: 0,
            retry_at: None,
            last_error: String::new(),
            resolution: String::new(),
            executes: 0,
            executing: Vec::new(),
        }
    }
}

impl Transaction {
    /// It won't commit, but its request may have.
    pub(crate) fn is_open_to_doubt(&self) -> bool {
        let aborted = matches!(
            self.phase,
            Phase::Aborting(_) | Phase::Ended(Outcome::Aborted(_))
        );
        aborted && self.may_have_committed
    }

    pub(crate) fn key(&self, branch: &Branch) -> BranchKey {
        BranchKey {
            transaction: self.id,
            branch: branch.number,
        }
    }

    /// Branch numbers count from 1, without gaps, in a living transaction; one that was replayed holds only those that voted yes.
    pub(crate) fn branch_mut(&mut self, number: u32) -> Option<&mut Branch> {
        self.branches.iter_mut().find(|b| b.number == number)
    }

    pub(crate) fn branch(&self, number: u32) -> Option<&Branch> {
        self.branches.iter().find(|b| b.number == number)
    }

    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    pub(crate) fn all_settled(&self) -> bool {
        self.branches.iter().all(|b| b.state.is_settled())
    }

    /// The record of its commit: the branches that must commit are those that voted yes.
    pub(crate) fn decision(&self) -> Decision {
        Decision {
            transaction: self.id,
            request_id: self.request_id.clone(),
            fingerprint: self.fingerprint,
            branches: self
                .branches
                .iter()
                .filter(|b| b.state != BranchState::ReadOnly)
                .map(|b| DecidedBranch {
                    number: b.number,
                    participant: b.participant.clone(),
                    proof: b.proof.clone(),
                })
                .collect(),
            traceparent: self.traceparent.clone(),
            parent: self.parent,
        }
    }

    pub(crate) fn state(&self) -> TransactionState {
        match &self.phase {
            Phase::Waiting { .. } => TransactionState::Waiting,
            Phase::Active => TransactionState::Active,
            Phase::Preparing | Phase::Delegated { .. } | Phase::Deciding => {
                TransactionState::Preparing
            }
            Phase::Committing => TransactionState::Committing,
            Phase::Aborting(_) => TransactionState::Aborting,
            Phase::Ended(Outcome::Committed) => TransactionState::Committed,
            Phase::Saga => self
                .saga
                .as_ref()
                .map_or(TransactionState::Running, |s| s.state()),
            Phase::Ended(Outcome::Aborted(_)) => TransactionState::Aborted,
            Phase::Ended(Outcome::Compensated(_)) => TransactionState::Compensated,
            Phase::Ended(Outcome::Heuristic(_)) => TransactionState::Heuristic,
        }
    }

    pub(crate) fn abort_reason(&self) -> Option<&AbortReason> {
        match &self.phase {
            Phase::Aborting(reason)
            | Phase::Ended(
                Outcome::Aborted(reason)
                | Outcome::Compensated(reason)
                | Outcome::Heuristic(Some(reason)),
            ) => Some(reason),
            Phase::Saga => self.saga.as_ref().and_then(|saga| saga.turn_reason()),
            Phase::Waiting { .. }
            | Phase::Active
            | Phase::Preparing
            | Phase::Delegated { .. }
            | Phase::Deciding
            | Phase::Committing
            | Phase::Ended(Outcome::Committed | Outcome::Heuristic(None)) => None,
        }
    }

    pub(crate) fn view(&self) -> TransactionView {
        TransactionView {
            id: self.id,
            request_id: self
                .request_id
                .as_ref()
                .map(|r| r.as_str().to_owned())
                .unwrap_or_default(),
            state: self.state(),
            branches: self.branches.iter().map(Branch::view).collect(),
            abort_reason: self.abort_reason().cloned(),
            saga: None,
        }
    }
}

impl Branch {
    fn view(&self) -> BranchView {
        BranchView {
            number: self.number,
            participant: self.participant.clone(),
            state: self.state,
            attempts: self.attempts,
            last_error: self.last_error.clone(),
            resolution: self.resolution.clone(),
        }
    }
}
