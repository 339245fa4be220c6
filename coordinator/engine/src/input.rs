//! Everything that can happen to the engine. Plain data: no channel, no future, no clock.

use std::sync::Arc;

use crate::{
    id::{
        BranchKey, Epoch, LockKey, LogId, ParticipantName, RequestId, Seq, SessionId, Ticket,
        TransactionId,
    },
    outcome::{AbortReason, Resolution},
    saga::StepDefinition,
};

/// Work for a participant, or a result of it, encoded by the driver; the engine never looks inside.
pub type Payload = Arc<[u8]>;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum Input {
    /// A client gives a whole transaction.
    Submit(Submit),
    /// A client gives a whole saga.
    SubmitSaga(SubmitSaga),
    /// A client opens an interactive transaction.
    Begin(Begin),
    /// A client runs an operation in an open transaction.
    Execute {
        /// Who waits.
        ticket: Ticket,
        /// The open transaction.
        transaction: TransactionId,
        /// Who runs it.
        participant: ParticipantName,
        /// What to run.
        operation: Payload,
    },
    /// A client commits an open transaction.
    Commit {
        /// Who waits.
        ticket: Ticket,
        /// The open transaction.
        transaction: TransactionId,
        /// Answer at the durable decision rather than when every branch has committed.
        answer_decided: bool,
    },
    /// A client or an operator aborts an undecided transaction, or cancels a saga.
    Abort {
        /// Who waits.
        ticket: Ticket,
        /// The undecided transaction.
        transaction: TransactionId,
        /// Why.
        reason: AbortReason,
    },
    /// Somebody wants to know what became of a transaction.
    Lookup {
        /// Who waits.
        ticket: Ticket,
        /// Which.
        transaction: TransactionId,
    },
    /// A participant's process said hello.
    SessionOpened(Opened),
    /// A session is over.
    SessionClosed(SessionId),
    /// A participant's message.
    Message {
        /// On which session.
        session: SessionId,
        /// What it says.
        message: Upward,
    },
    /// Every record up to this one is on disk.
    Durable(Seq),
    /// A deadline has come.
    Tick,
    /// Take no new transactions; abort those that are not yet committing once their time is up; start no steps of sagas any more.
    Drain,
    /// The log has begun a new segment: carry over what is live, so that old ones can go.
    Checkpoint,
    /// An operator wants a decision sent again now.
    Retry {
        /// Who waits.
        ticket: Ticket,
        /// Which.
        transaction: TransactionId,
    },
    /// An operator did a saga's step, or its compensation, by hand.
    ResolveStep {
        /// Who waits.
        ticket: Ticket,
        /// Which saga.
        transaction: TransactionId,
        /// Which step, by name.
        step: String,
        /// Why.
        reason: String,
    },
    /// An operator settled a branch by hand.
    Resolve {
        /// Who waits.
        ticket: Ticket,
        /// Which.
        branch: BranchKey,
        /// What it was made.
        resolution: Resolution,
        /// Why.
        reason: String,
    },
}

/// A whole transaction.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Submit {
    /// Who waits.
    pub ticket: Ticket,
    /// A fresh UUID v7.
    pub unique: u128,
    /// The client's idempotency key.
    pub request_id: Option<RequestId>,
    /// A hash of the content, so that a request id used for something else is noticed.
    pub fingerprint: u64,
    /// The branches, no participant twice.
    pub branches: Vec<(ParticipantName, Payload)>,
    /// Milliseconds since the client first sent the request id; 0 the first time.
    pub age_ms: u64,
    /// Milliseconds until it is aborted if undecided.
    pub timeout_ms: u64,
    /// Answer at the durable decision rather than when every branch has committed.
    pub answer_decided: bool,
    /// W3C trace context, or empty.
    pub traceparent: String,
}

/// A saga.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct SubmitSaga {
    /// Who waits.
    pub ticket: Ticket,
    /// A fresh UUID v7.
    pub unique: u128,
    /// The client's idempotency key.
    pub request_id: Option<RequestId>,
    /// A hash of the content.
    pub fingerprint: u64,
    /// Its steps, not yet checked against one another.
    pub steps: Vec<StepDefinition>,
    /// Keys that no other saga may hold until this one has ended.
    pub locks: Vec<LockKey>,
    /// Milliseconds to wait for them.
    pub lock_timeout_ms: u64,
    /// Milliseconds since the client first sent the request id; 0 the first time.
    pub age_ms: u64,
    /// Milliseconds from its beginning until it turns back, unless it is past its pivot.
    pub timeout_ms: u64,
    /// Answer when its beginning is durable rather than at its end.
    pub answer_accepted: bool,
    /// W3C trace context, or empty.
    pub traceparent: String,
}

/// An interactive transaction.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Begin {
    /// Who waits.
    pub ticket: Ticket,
    /// A fresh UUID v7.
    pub unique: u128,
    /// The client's idempotency key.
    pub request_id: Option<RequestId>,
    /// Who will take part.
    pub participants: Vec<ParticipantName>,
    /// Milliseconds since the client first sent the request id; 0 the first time.
    pub age_ms: u64,
    /// Milliseconds until it is aborted if undecided.
    pub timeout_ms: u64,
    /// W3C trace context, or empty.
    pub traceparent: String,
}

/// A session's hello.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Opened {
    /// The new session.
    pub session: SessionId,
    /// Who.
    pub participant: ParticipantName,
    /// Which process, for people.
    pub agent: String,
    /// The database's identity.
    pub resource: String,
    /// Branches it can hold open at once.
    pub capacity: u32,
    /// It can prove a one-phase commit.
    pub one_phase: bool,
    /// It can tell whether a saga's step took effect.
    pub settles_steps: bool,
    /// How far it has seen this log, or others, go.
    pub seen: Vec<LogPosition>,
    /// Prepared branches in the database.
    pub in_doubt: Vec<Found>,
}

/// A record that was on disk, as somebody was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogPosition {
    /// Of which log.
    pub log: LogId,
    /// Who told it.
    pub epoch: Epoch,
    /// Its number.
    pub seq: Seq,
    /// From the welcome.
    pub instance: u64,
}

/// A prepared branch that a participant found in its database.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Found {
    /// As the database shows it.
    pub identifier: String,
    /// Parsed; `None` where it is not of our form.
    pub key: Option<BranchKey>,
}

/// What a participant says.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum Upward {
    /// Answer to a prepare.
    Vote {
        /// Which branch.
        key: BranchKey,
        /// The vote.
        vote: Vote,
    },
    /// Answer to a commit or an abort.
    Completion {
        /// Which branch.
        key: BranchKey,
        /// What became of it.
        completion: Completion,
    },
    /// Answer to an execute.
    Executed {
        /// Which branch.
        key: BranchKey,
        /// From the execute.
        sequence: u64,
        /// Rows, or why it was rolled back.
        result: Result<Payload, AbortReason>,
    },
    /// A service joins a transaction.
    Enlist {
        /// To be echoed.
        correlation: u64,
        /// Which transaction; `None` where its id was malformed.
        transaction: Option<TransactionId>,
    },
    /// Answer to a list-in-doubt.
    InDoubt(Vec<Found>),
    /// Answer to a run-step or a settle-step.
    StepResult {
        /// Which action or compensation.
        key: BranchKey,
        /// From the request.
        attempt: u32,
        /// What became of it.
        outcome: StepOutcome,
    },
    /// Answer to a prove.
    Proof {
        /// Which branch.
        key: BranchKey,
        /// Committed, aborted, or not yet.
        completion: Completion,
    },
}

/// A vote.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Vote {
    /// Prepared.
    Yes {
        /// Proves the outcome later.
        proof: String,
    },
    /// Nothing changed; over.
    ReadOnly,
    /// One phase: committed; over.
    Committed,
    /// Rolled back; over.
    No(AbortReason),
    /// One phase: rolled back, because the request id had committed before.
    Duplicate(TransactionId),
}

/// What became of a saga's step, or of a compensation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StepOutcome {
    /// It took effect, now or before; with its result as JSON, which may be empty.
    Done(Payload),
    /// It took no effect, and trying again is of no use.
    Refused(AbortReason),
    /// It took no effect, but may when tried again.
    Failed(AbortReason),
    /// Whether it took effect is not known.
    Unknown(String),
    /// It is at work still.
    Working(String),
    /// It took no effect, and never will.
    Never,
}

/// What became of a branch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Completion {
    /// Committed, by proof.
    Committed,
    /// Rolled back, or never there.
    Aborted,
    /// Gone, with no proof either way.
    Lost(String),
    /// Not yet.
    Retry(String),
}

/// Incarnation and log of this coordinator, for [`crate::effect::Downward::Welcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Incarnation {
    /// The log.
    pub log: LogId,
    /// The epoch.
    pub epoch: Epoch,
    /// A random number: two that run on copies of one log may come to the same epoch.
    pub instance: u64,
}
