//! The one trait between a session and whoever does the work: a service with its own logic, or the agent around a database.
//!
//! The session runtime ([`crate::session`]) calls it; it never calls the session. An implementation must be ready for every call to come
//! twice, late, or for a branch that it has never seen, and must answer the truth: "unknown" is never "done".

use std::{fmt, future::Future, time::Duration};

use unanimity_proto::v1;

/// A branch: the transaction's id, and the branch's number within it, from 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BranchId {
    /// `u1.<log id>.<epoch>.<uuid>`; only `[0-9a-z.]`, at most 64 bytes.
    pub transaction: String,
    /// From 1.
    pub number: u32,
}

/// `<transaction id>.<number>`: PostgreSQL's gid, and what people see.
impl fmt::Display for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.transaction, self.number)
    }
}

/// What to do before voting.
#[derive(Clone, Debug)]
pub struct Prepare {
    /// Which branch.
    pub branch: BranchId,
    /// The branch is open already (execute, enlist); without one, vote no rather than open a new one.
    pub continued: bool,
    /// What to run, in order.
    pub operations: Vec<v1::Operation>,
    /// Commit at once, marker row included, and vote [`Vote::Committed`].
    pub one_phase: bool,
    /// The client's request id, for the marker row; may be empty.
    pub request_id: String,
    /// Give up after this long.
    pub timeout: Duration,
    /// W3C trace context; may be empty.
    pub traceparent: String,
}

/// The answer to a prepare.
#[derive(Clone, Debug, PartialEq)]
pub enum Vote {
    /// Prepared: able to commit whatever happens.
    Yes {
        /// What proves the outcome later; at most 64 bytes, may be empty.
        proof: String,
    },
    /// Nothing was changed; the branch is over.
    ReadOnly,
    /// One phase: committed; the branch is over.
    Committed,
    /// Rolled back; the branch is over.
    No(Refusal),
    /// One phase: rolled back, because the request id had committed before, as this transaction.
    Duplicate {
        /// The transaction that committed.
        transaction: String,
    },
}

/// Why a participant said no.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The kind of reason.
    pub code: v1::AbortCode,
    /// For people; reaches the client.
    pub message: String,
}

/// What became of a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Committed, by proof.
    Committed,
    /// Rolled back, or never there.
    Aborted,
    /// Told to commit, but gone, with no proof either way.
    Lost(String),
    /// Not yet, try again later.
    Retry(String),
}

/// A prepared branch found in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InDoubt {
    /// As the database shows it.
    pub identifier: String,
    /// Parsed; `None` where it is not of our form.
    pub branch: Option<BranchId>,
}

/// A failure to reach the resource at all.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// A lock that a saga holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Its key.
    pub key: String,
    /// The saga's token. One lower than the highest that was seen of this key is refused.
    pub token: u64,
}

/// A saga's step to do, or the compensation of one.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its key: the same however often it comes.
    pub branch: BranchId,
    /// The step's name.
    pub name: String,
    /// What to run.
    pub operation: v1::Operation,
    /// The result is wanted later: keep it, so that the answer is the same when this comes again.
    pub keep_result: bool,
    /// The saga's locks.
    pub fences: Vec<Fence>,
    /// Give up after this long.
    pub timeout: Duration,
    /// Counts from 1.
    pub attempt: u32,
    /// At most this long ago it was sent for the first time; zero where this is the first time.
    pub age: Duration,
    /// W3C trace context; may be empty.
    pub traceparent: String,
}

/// What a compensation undoes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compensated {
    /// The action's key.
    pub branch: BranchId,
    /// Whether the action took effect is not known. Where it did not: do nothing, say done, and refuse it when it comes late.
    pub unsettled: bool,
    /// What the action gave back, JSON; empty where it is not known.
    pub result: String,
}

/// What became of a step or a compensation.
#[derive(Clone, Debug, PartialEq)]
pub enum StepOutcome {
    /// It took effect, now or before.
    Done {
        /// What it gave back: JSON, at most [`STEP_RESULT_BYTES`]; empty for none.
        result: String,
    },
    /// It took no effect, and trying again is of no use: the participant's own no.
    Refused(Refusal),
    /// It took no effect, but may when tried again.
    Failed(Refusal),
    /// Whether it took effect is not known.
    Unknown(String),
    /// It is at work still.
    Working(String),
    /// It took no effect, and never will.
    Never,
}

/// The longest result of a step, in bytes.
pub const STEP_RESULT_BYTES: usize = 64 << 10;

/// What a participant can do. Calls for different branches run at the same time; calls for one branch come one after the other.
/// No call is ever cancelled by the session: each runs to its end, even when the session is lost.
pub trait Participant: Send + Sync + 'static {
    /// Runs the operations and prepares the branch, or says no and leaves nothing behind.
    fn prepare(&self, prepare: Prepare) -> impl Future<Output = Vote> + Send;

    /// Commits a prepared branch. Never answers [`Settled::Committed`] without proof.
    fn commit(&self, branch: &BranchId, proof: &str) -> impl Future<Output = Settled> + Send;

    /// Rolls back a branch, open or prepared. One that was never there is aborted; one proved to have committed is
    /// [`Settled::Committed`]. A prepare of the same branch that comes later is refused.
    fn abort(&self, branch: &BranchId, proof: &str) -> impl Future<Output = Settled> + Send;

    /// Every prepared branch, ours or not.
    fn in_doubt(&self) -> impl Future<Output = Result<Vec<InDoubt>, Unavailable>> + Send;

    /// Runs one operation in an interactive branch, opening it first where `open`. A refusal rolls the branch back.
    fn operate(
        &self,
        branch: &BranchId,
        open: bool,
        operation: v1::Operation,
        timeout: Duration,
    ) -> impl Future<Output = Result<v1::OperationResult, Refusal>> + Send {
        let _ = (branch, open, operation, timeout);
        async { Err(takes_no("interactive operations")) }
    }

    /// Does a saga's step, and commits it at once. One that was done before is [`StepOutcome::Done`] and not done again, and one that
    /// was settled or compensated before is refused: [`crate::resource`] has the barrier that sees to both.
    fn execute(&self, step: Step) -> impl Future<Output = StepOutcome> + Send {
        let _ = step;
        async { StepOutcome::Refused(takes_no("saga steps")) }
    }

    /// Undoes a saga's step, once. Asked until it says done.
    fn compensate(
        &self,
        step: Step,
        compensated: Compensated,
    ) -> impl Future<Output = StepOutcome> + Send {
        let _ = (step, compensated);
        async { StepOutcome::Refused(takes_no("saga steps")) }
    }

    /// Tells whether a step took effect: [`StepOutcome::Done`], or else [`StepOutcome::Never`], after it has seen to it that it never
    /// will. Only asked of participants that announce `settles_steps`.
    fn settle(&self, branch: &BranchId, age: Duration) -> impl Future<Output = StepOutcome> + Send {
        let _ = (branch, age);
        async { StepOutcome::Unknown("this participant can't settle saga steps".into()) }
    }

    /// Settles a branch that was told to commit in one phase: committed where its marker row is there, else writes a tombstone under the
    /// same key, so that a late commit fails, and answers aborted. Only asked of participants that announce `one_phase`.
    fn prove(&self, branch: &BranchId) -> impl Future<Output = Settled> + Send {
        let _ = branch;
        async { Settled::Retry("this participant writes no marker rows".into()) }
    }
}

fn takes_no(what: &str) -> Refusal {
    Refusal {
        code: v1::AbortCode::InvalidOperation,
        message: format!("this participant takes no {what}"),
    }
}
