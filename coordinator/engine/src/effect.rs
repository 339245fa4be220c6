//! Everything that the engine asks of its driver. By the time an effect is handed out, every record it depends on is durable.

use std::hash::{Hash, Hasher};

use crate::{
    id::{BranchKey, LockKey, ParticipantName, Seq, SessionId, Ticket, TransactionId},
    input::{Incarnation, LogPosition, Payload},
    outcome::{AbortReason, BranchState, TransactionState},
    record::Record,
    saga::{Place, SagaView},
};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum Effect {
    /// Append to the log. Records come in order, without gaps.
    Append {
        /// Its number.
        seq: Seq,
        /// What.
        record: Record,
        /// Something waits for it: sync now. Otherwise it may ride with the next one.
        forced: bool,
    },
    /// Send to a participant.
    Send {
        /// On which session.
        session: SessionId,
        /// What.
        message: Downward,
    },
    /// Answer a call. Each ticket is answered once at most.
    Answer {
        /// Whose.
        ticket: Ticket,
        /// What.
        answer: Result<Answer, Refusal>,
    },
    /// End a session: the peer is wrong.
    Close {
        /// Which.
        session: SessionId,
        /// Why.
        refusal: Refusal,
    },
    /// Records below this one are no longer needed.
    Trim(Seq),
    /// Stop at once, and do and tell nothing more: a participant has seen records of this log that are not in it, so it is an old copy, and
    /// what the missing ones decided is not known.
    Halt {
        /// Who.
        participant: ParticipantName,
        /// What it has seen.
        seen: LogPosition,
        /// The last record that was there at the start.
        found: Seq,
    },
    /// For logs, metrics and watchers.
    Report(Event),
}

/// What a participant is told.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum Downward {
    /// It is taken on.
    Welcome(Incarnation),
    /// Run, then vote.
    Prepare {
        /// Which branch.
        key: BranchKey,
        /// The branch is open already.
        continued: bool,
        /// What to run; `None` where it ran already.
        work: Option<Payload>,
        /// Values that take the place of references in it; only in a saga's atomic group.
        values: Vec<Bound>,
        /// Commit at once.
        one_phase: bool,
        /// For the marker row; may be empty.
        request_id: String,
        /// Give up after this long.
        timeout_ms: u64,
        /// W3C trace context, or empty.
        traceparent: String,
    },
    /// Decision: commit.
    Commit {
        /// Which branch.
        key: BranchKey,
        /// From its vote.
        proof: String,
    },
    /// Decision: abort.
    Abort {
        /// Which branch.
        key: BranchKey,
        /// From its vote, or empty.
        proof: String,
    },
    /// Run one operation.
    Execute {
        /// Which branch.
        key: BranchKey,
        /// Counts from 1.
        sequence: u64,
        /// Open the branch first.
        open: bool,
        /// What.
        operation: Payload,
        /// Give up after this long.
        timeout_ms: u64,
    },
    /// Answer to an enlist.
    Enlisted {
        /// From the enlist.
        correlation: u64,
        /// The branch, or why not.
        result: Result<BranchKey, String>,
    },
    /// Do a saga's step, or undo it.
    RunStep {
        /// The action's key, or the compensation's own.
        key: BranchKey,
        /// The step's name.
        step: String,
        /// One operation.
        operation: Payload,
        /// Values that take the place of references in it.
        values: Vec<Bound>,
        /// Where this is a compensation: what it undoes.
        compensates: Option<Compensates>,
        /// The result is wanted later.
        keep_result: bool,
        /// The saga's locks.
        locks: Vec<LockKey>,
        /// Their token.
        token: u64,
        /// Give up after this long.
        timeout_ms: u64,
        /// Counts from 1.
        attempt: u32,
        /// At most this long ago it was first sent; 0 where this is the first time.
        age_ms: u64,
        /// W3C trace context, or empty.
        traceparent: String,
    },
    /// Tell whether a saga's step took effect.
    SettleStep {
        /// The action's key.
        key: BranchKey,
        /// Counts from 1.
        attempt: u32,
        /// At most this long ago it was first sent.
        age_ms: u64,
    },
    /// Report prepared branches.
    ListInDoubt,
    /// Settle a one-phase branch.
    Prove {
        /// Which branch.
        key: BranchKey,
    },
}

/// What a compensation undoes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Compensates {
    /// The action's branch number.
    pub branch: u32,
    /// Whether the action took effect is not known.
    pub unsettled: bool,
    /// The action's result, JSON, where it is known.
    pub result: Option<Payload>,
}

/// A value in the place of a reference.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Bound {
    /// Where it goes.
    pub place: Place,
    /// The value.
    pub value: Scalar,
}

/// A value out of a step's result.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// Null.
    Null,
    /// A truth value.
    Boolean(bool),
    /// An integer.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
}

/// A float by its bits, where adding zero makes -0.0 the 0.0 that it equals; JSON knows no NaN.
impl Hash for Scalar {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Scalar::Null => 0_u8.hash(state),
            Scalar::Boolean(value) => (1_u8, value).hash(state),
            Scalar::Integer(value) => (2_u8, value).hash(state),
            Scalar::Float(value) => (3_u8, (value + 0.0).to_bits()).hash(state),
            Scalar::Text(value) => (4_u8, value).hash(state),
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum Answer {
    /// A transaction as it stands.
    Transaction(TransactionView),
    /// What an operation gave back.
    Executed(Payload),
}

/// Why a call was not taken: whose fault, and what may be done now. One table in the coordinator maps these to codes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// No participant of this name has ever registered.
    #[error(
        "participant {0:?} is unknown: none of that name has ever connected; see `unanimity participant list`"
    )]
    ParticipantUnknown(String),
    /// It has no session now.
    #[error("participant {0:?} is not connected now; try again")]
    ParticipantUnavailable(String),
    /// An interactive transaction wanted one more participant, which has no slot free now.
    #[error(
        "participant {0:?} has no slot free for a transaction that already holds others; name all participants at begin"
    )]
    ParticipantBusy(String),
    /// A submit without branches, or with a participant twice.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field.
        field: String,
        /// What is wrong and how to mend it.
        problem: String,
    },
    /// Too many branches.
    #[error("branches: {given} given, at most {limit} allowed")]
    TooManyBranches {
        /// How many came.
        given: usize,
        /// How many may.
        limit: usize,
    },
    /// Too much work.
    #[error("branches: {given} bytes of operations given, at most {limit} allowed")]
    PayloadTooLarge {
        /// How many bytes came.
        given: usize,
        /// How many may.
        limit: usize,
    },
    /// The request id was used before for something else.
    #[error(
        "request_id: {0:?} was used before for a transaction with other content; use a fresh one"
    )]
    RequestIdReused(String),
    /// It came again so late that what it did the first time may be forgotten.
    #[error(
        "request_id: {0:?} was first sent so long ago that its outcome may be forgotten; nothing was done now, ask the databases themselves"
    )]
    RequestIdForgotten(String),
    /// The engine is full.
    #[error("{0} transactions are in flight, which is the limit; try again later")]
    TooManyTransactions(usize),
    /// The coordinator is on its way down.
    #[error("the coordinator is draining; try another, or again after its restart")]
    Draining,
    /// The coordinator is on its way down, and the saga goes on after its restart.
    #[error("the coordinator is going down; saga {0} goes on after its restart, so ask again then")]
    Interrupted(TransactionId),
    /// Nothing is known of it, and nothing can be presumed.
    #[error("transaction {0} is unknown here")]
    TransactionUnknown(String),
    /// It ended so long ago that its outcome is no longer kept.
    #[error("transaction {0} is older than the outcomes that are kept")]
    TransactionForgotten(TransactionId),
    /// It is decided, so it can't be aborted any more.
    #[error("transaction {0} is decided to commit")]
    TransactionDecided(TransactionId),
    /// It takes no operations and no commit: it was submitted whole, or it is past that.
    #[error("transaction {0} is not open for operations")]
    TransactionNotOpen(TransactionId),
    /// The transaction was aborted under an operation.
    #[error("transaction {transaction} was aborted: {}", reason.message)]
    TransactionAborted {
        /// Which.
        transaction: TransactionId,
        /// Why.
        reason: AbortReason,
    },
    /// Its outcome can't be told before a participant answers that is away now.
    #[error(
        "the outcome of {transaction} must be asked of participant {participant:?}, which is not connected now; try again"
    )]
    OutcomePending {
        /// Which.
        transaction: TransactionId,
        /// Who.
        participant: String,
    },
    /// The saga has no such step, or none that could be marked done now.
    #[error("step {step:?} of {transaction} is not being tried now")]
    StepNotTried {
        /// Which saga.
        transaction: TransactionId,
        /// What was asked for.
        step: String,
    },
    /// There is no such branch, or it is settled.
    #[error("branch {0} is not waiting for its outcome")]
    BranchNotInDoubt(BranchKey),
    /// The participant's hello contradicts another session's.
    #[error(
        "participant {participant:?} serves resource {held:?}, but this agent came with {given:?}; give each database its own name"
    )]
    ResourceMismatch {
        /// Who.
        participant: String,
        /// The resource of the sessions that are open.
        held: String,
        /// What the new one said.
        given: String,
    },
}

/// A transaction as shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TransactionView {
    /// Which.
    pub id: TransactionId,
    /// The client's key.
    pub request_id: String,
    /// Where it stands.
    pub state: TransactionState,
    /// Its branches.
    pub branches: Vec<BranchView>,
    /// Why it was aborted, or turned back.
    pub abort_reason: Option<AbortReason>,
    /// Where it is a saga.
    pub saga: Option<Box<SagaView>>,
}

/// A branch as shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BranchView {
    /// From 1.
    pub number: u32,
    /// Who.
    pub participant: ParticipantName,
    /// Where it stands.
    pub state: BranchState,
    /// How often the decision was sent.
    pub attempts: u32,
    /// What went wrong last.
    pub last_error: String,
    /// An operator's reason.
    pub resolution: String,
}

/// For logs, metrics and watchers.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum Event {
    /// A transaction changed its state; `Engine::transaction` shows it.
    Changed(TransactionId, TransactionState),
    /// A branch went against the decision: a human must look.
    Heuristic {
        /// Which.
        key: BranchKey,
        /// Where.
        participant: ParticipantName,
        /// How.
        state: BranchState,
        /// What was said of it.
        message: String,
    },
    /// A saga's step, or its compensation, was tried so often in vain that a human should look.
    Stuck {
        /// Which saga.
        transaction: TransactionId,
        /// Which step.
        step: String,
        /// Its compensation rather than its action.
        compensation: bool,
        /// What was said of it last.
        message: String,
    },
    /// A prepared branch that this coordinator must not touch was found.
    Untouchable {
        /// Where.
        participant: ParticipantName,
        /// Which.
        identifier: String,
        /// Why not.
        why: crate::in_doubt::Kind,
    },
    /// A decision was asked for again because the participant could not carry it out yet.
    Retrying {
        /// Which.
        key: BranchKey,
        /// Where.
        participant: ParticipantName,
        /// How often it was sent so far.
        attempts: u32,
        /// What it said.
        message: String,
    },
    /// A peer's message was refused.
    PeerMistake {
        /// Who.
        session: SessionId,
        /// What.
        mistake: String,
    },
}
