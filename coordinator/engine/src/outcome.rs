//! What can become of a transaction and of a branch.

/// Why a transaction was aborted, or a participant said no.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AbortReason {
    /// The kind.
    pub code: AbortCode,
    /// Who said no; empty where nobody did.
    pub participant: String,
    /// For people.
    pub message: String,
}

impl AbortReason {
    /// A reason that no participant gave.
    pub(crate) fn own(code: AbortCode, message: impl Into<String>) -> Self {
        AbortReason {
            code,
            participant: String::new(),
            message: message.into(),
        }
    }
}

/// The kind of reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AbortCode {
    /// The participant's own no.
    Refused,
    /// A client, or an operator, asked for it.
    Client,
    /// Its time was up.
    Timeout,
    /// A participant could not be reached.
    ParticipantUnavailable,
    /// Deadlock or serialisation failure.
    Conflict,
    /// The branch was unknown, fenced or over.
    BranchLost,
    /// An operation or parameter was wrong.
    InvalidOperation,
    /// The participant failed.
    ParticipantFailure,
    /// The coordinator restarted before it had decided.
    CoordinatorRestart,
}

/// Where a transaction stands, as shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransactionState {
    /// Open, takes operations.
    Active,
    /// Waits for slots.
    Waiting,
    /// Votes come in, or the decision is on its way to disk.
    Preparing,
    /// Decided to commit.
    Committing,
    /// Decided to abort.
    Aborting,
    /// Every branch committed.
    Committed,
    /// No branch committed.
    Aborted,
    /// A branch went against the decision.
    Heuristic,
    /// A saga on its way forward.
    Running,
    /// A saga that undoes what it did.
    Compensating,
    /// A saga of which nothing is left.
    Compensated,
}

/// Where a branch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BranchState {
    /// Not started.
    Waiting,
    /// Works, or was asked for its vote.
    Active,
    /// Voted yes.
    Prepared,
    /// Voted read-only.
    ReadOnly,
    /// Committed.
    Committed,
    /// Rolled back.
    Aborted,
    /// Committed against an abort.
    HeuristicCommitted,
    /// Rolled back against a commit.
    HeuristicAborted,
    /// Gone without proof.
    Lost,
}

impl BranchState {
    /// Nothing more is to be heard or sent.
    pub fn is_settled(self) -> bool {
        match self {
            BranchState::Waiting | BranchState::Active | BranchState::Prepared => false,
            BranchState::ReadOnly
            | BranchState::Committed
            | BranchState::Aborted
            | BranchState::HeuristicCommitted
            | BranchState::HeuristicAborted
            | BranchState::Lost => true,
        }
    }

    /// It went against the decision, or nobody knows.
    pub fn is_heuristic(self) -> bool {
        matches!(
            self,
            BranchState::HeuristicCommitted | BranchState::HeuristicAborted | BranchState::Lost
        )
    }
}

/// What an operator made of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// Committed.
    Committed,
    /// Rolled back.
    Aborted,
}
