//! What happens in a life, as the invariants see it: the engine's inputs and effects, what the log holds, and what changes in the databases.

use unanimity_engine::{
    Answer, BranchKey, Downward, Event, Found, LockKey, Record, Refusal, RequestId, Seq, SessionId,
    Ticket, TransactionView, Upward,
};

/// One thing that happened.
#[derive(Debug)]
pub(crate) enum Fact<'a> {
    /// A client asked for a transaction, and may again.
    Asked {
        unique: u128,
        request: Option<&'a RequestId>,
    },
    /// A call reached the engine.
    Called(Ticket),
    /// The engine appended a record; it may be lost still.
    Appended { seq: Seq, record: &'a Record },
    /// The engine heard that all up to this one is on disk.
    Durable(Seq),
    /// The coordinator died; of what was not known to be durable, this is the last that is.
    Died { survived: Seq },
    /// It came back. Folding the log a second time gave something else where `again` says what.
    Started { epoch: u64, again: Option<String> },
    /// A hello reached the engine.
    Opened { session: SessionId, capacity: u32 },
    /// The engine heard of a session's end.
    Closed(SessionId),
    /// A participant's message reached the engine, on a session that it knows to be open.
    Heard {
        session: SessionId,
        message: &'a Upward,
    },
    /// The engine sent a message.
    Sent {
        session: SessionId,
        message: &'a Downward,
    },
    /// The engine answered a call.
    Answered {
        ticket: Ticket,
        answer: &'a Result<Answer, Refusal>,
    },
    /// The engine reported an event.
    Reported(&'a Event),
    /// The engine ended a session.
    Refused(&'a Refusal),
    /// A record that does not read back as it was written.
    Garbled { record: &'a Record },
    /// Something changed in a database.
    Changed(Changed<'a>),
    /// What the engine holds in memory.
    Held {
        in_flight: usize,
        in_flight_max: usize,
        remembered: usize,
        remembered_max: usize,
    },
    /// All faults are over.
    Healed,
}

/// A change in a database.
#[derive(Debug)]
pub(crate) struct Changed<'a> {
    pub(crate) site: usize,
    /// The branch, the action, or for a compensation the action that it undoes.
    pub(crate) key: BranchKey,
    pub(crate) what: What,
    /// What the bank holds more, or less.
    pub(crate) by: i64,
    /// Not by an agent's doing.
    pub(crate) by_hand: bool,
    /// The locks under which a step was done, and their token.
    pub(crate) locks: &'a [LockKey],
    pub(crate) token: u64,
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Prepared,
    /// A prepared branch committed.
    Committed,
    /// A prepared branch was rolled back.
    RolledBack,
    /// Committed in one phase.
    OnePhase,
    /// A saga's action took effect.
    Done,
    /// A compensation took effect.
    Undone,
}

/// How things stand when all has come to rest.
#[derive(Debug, Default)]
pub(crate) struct End {
    /// Prepared branches that are left, with their sites.
    pub(crate) prepared: Vec<(usize, Found)>,
    /// Branches that the engine shows as not to be touched.
    pub(crate) untouchable: Vec<String>,
    pub(crate) in_flight: usize,
    pub(crate) undelivered: usize,
    pub(crate) locks: usize,
    /// Slots that are taken still, and transactions that wait for one.
    pub(crate) slots: (u32, u32),
    /// Clients that don't know what became of their request.
    pub(crate) unserved: Vec<String>,
    pub(crate) views: Vec<TransactionView>,
    /// What all accounts held at first, and hold now.
    pub(crate) money: (i64, i64),
}

/// Whether it was decided to commit, as far as a view tells.
pub(crate) fn told(view: &TransactionView) -> Option<bool> {
    use unanimity_engine::TransactionState as State;
    match view.state {
        State::Committed | State::Committing => Some(true),
        State::Aborted | State::Aborting | State::Compensating | State::Compensated => Some(false),
        State::Heuristic => Some(view.abort_reason.is_none()),
        State::Active | State::Waiting | State::Preparing | State::Running => None,
    }
}

/// The transaction that a message is about, where it is about one.
pub(crate) fn key_of(message: &Downward) -> Option<BranchKey> {
    match message {
        Downward::Prepare { key, .. }
        | Downward::Commit { key, .. }
        | Downward::Abort { key, .. }
        | Downward::Execute { key, .. }
        | Downward::RunStep { key, .. }
        | Downward::SettleStep { key, .. }
        | Downward::Prove { key } => Some(*key),
        Downward::Enlisted { result, .. } => result.as_ref().ok().copied(),
        Downward::Welcome(_) | Downward::ListInDoubt => None,
    }
}

/// The same of a participant's.
pub(crate) fn key_heard(message: &Upward) -> Option<BranchKey> {
    match message {
        Upward::Vote { key, .. }
        | Upward::Completion { key, .. }
        | Upward::Executed { key, .. }
        | Upward::StepResult { key, .. }
        | Upward::Proof { key, .. } => Some(*key),
        Upward::Enlist { .. } | Upward::InDoubt(_) => None,
    }
}
