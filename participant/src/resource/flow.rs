//! The way of a branch, which is the same over every database: begun, run, voted on; then committed, aborted or proved.
//!
//! ```text
//!   prepare ─▶ begin ─▶ run … ─▶ end_read_only ─▶ prepare ─▶ yes ─▶ commit_prepared or abort_prepared
//!                                                     (one phase) ─▶ mark, commit ─▶ committed; settle, where no answer came
//! ```
//!
//! What a database does in its own way is in two traits, for the two halves of a branch's life: [`BranchRules`] up to the vote, and
//! [`OutcomeRules`] after it. The table of branches is kept here, and nowhere else: a database is given a connection, and says what became
//! of it. All calls of one branch come one after the other.
//!
//! A saga's step is a branch that commits in one phase, and has no vote to remember: `step` is its way, and [`StepRules`] what it asks besides.

mod branch;
mod outcome;
mod step;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    operation::{Catalog, Dialect, Statement},
    participant::{BranchId, InDoubt, Refusal, Settled, Unavailable, Vote},
};

use super::{
    Failure,
    branches::{BranchConnection, Branches, lost},
    statement::Ran,
};

pub(crate) use outcome::settled_by_marker;

/// How a branch is worked on, up to its vote.
pub(crate) trait BranchRules: Send + Sync + 'static {
    /// What its statements are written in.
    const DIALECT: Dialect;

    /// A connection inside a branch.
    type Branch: BranchConnection;

    /// Opens a branch. `work` is what it will run, as far as that is known. With a request id in `marker` it will commit in one phase: the
    /// marker goes first, so that two with one request id wait for each other.
    fn begin(
        &self,
        branch: &BranchId,
        work: &[Statement],
        marker: Option<&str>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Self::Branch, BeginError>> + Send;

    /// Moves the time limit of an open branch.
    fn limit(
        &self,
        opened: &mut Self::Branch,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Runs one statement. Rows are kept where `keep`. Dropped when its time is up, and then undone as broken.
    fn run(
        &self,
        opened: &mut Self::Branch,
        statement: &Statement,
        keep: bool,
    ) -> impl Future<Output = Result<Ran, Failure>> + Send;

    /// Ends a branch that has changed nothing, for certain, and says whether it was one.
    fn end_read_only(
        &self,
        opened: &mut Self::Branch,
        deadline: Instant,
    ) -> impl Future<Output = Result<bool, Failure>> + Send;

    /// Makes the branch able to commit, whatever happens. After a failure that broke the connection it may be prepared all the same.
    fn prepare(
        &self,
        opened: &mut Self::Branch,
        branch: &BranchId,
        deadline: Instant,
    ) -> impl Future<Output = Result<Prepared, Failure>> + Send;

    /// Writes the marker row of a branch that was begun without.
    fn mark(
        &self,
        opened: &mut Self::Branch,
        branch: &BranchId,
        request_id: &str,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), MarkError>> + Send;

    /// Commits, the marker row included. A refusal is no proof that it did not: that is for [`OutcomeRules::settle`] to find out.
    fn commit(
        &self,
        opened: &mut Self::Branch,
        branch: &BranchId,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Rolls back, where nothing is prepared. Where `broken`, a statement may be running still: it is stopped first.
    fn undo(&self, opened: Self::Branch, broken: bool) -> impl Future<Output = ()> + Send;

    /// Stops the work of a branch that a service holds just now, and sees to it that it is rolled back.
    fn stop(
        &self,
        interrupt: <Self::Branch as BranchConnection>::Interrupt,
    ) -> impl Future<Output = ()> + Send;
}

/// How a branch ends after its vote, and how that is proved.
pub(crate) trait OutcomeRules: BranchRules {
    /// Says what became of a branch whose [`BranchRules::commit`] brought no clear answer. Asked until it knows; `left` is what is left of the
    /// connection.
    fn settle(
        &self,
        branch: &BranchId,
        left: &mut Option<Self::Branch>,
    ) -> impl Future<Output = Settled> + Send;

    /// Commits a prepared branch, or proves what became of it. `bound` is the connection that it is bound to, where there is one; what is left
    /// there is kept for the next try.
    fn commit_prepared(
        &self,
        branch: &BranchId,
        proof: &str,
        bound: &mut Option<Self::Branch>,
    ) -> impl Future<Output = Settled> + Send;

    /// Rolls back a branch that may be prepared, or proves that it committed. `bound` as above.
    fn abort_prepared(
        &self,
        branch: &BranchId,
        proof: &str,
        bound: &mut Option<Self::Branch>,
    ) -> impl Future<Output = Settled> + Send;

    /// Competes for the marker's key. Whoever has the row has decided: the branch by its commit, or the tombstone.
    fn prove(&self, branch: &BranchId) -> impl Future<Output = Settled> + Send;

    /// The marker row under the branch's key, or else under the request id.
    fn marker(
        &self,
        branch: &BranchId,
        request_id: &str,
    ) -> impl Future<Output = Result<Option<Marker>, Refusal>> + Send;

    /// Every prepared branch of the database. `here` knows those of this process.
    fn in_doubt(
        &self,
        here: &Branches<Self::Branch>,
    ) -> impl Future<Output = Result<Vec<InDoubt>, Unavailable>> + Send;

    /// Deletes at most [`super::PURGE_BATCH`] marker rows older than the retention, and says how many.
    fn purge_batch(&self) -> impl Future<Output = Result<u64, Unavailable>> + Send;
}

/// What a saga's steps ask of a database besides. All but [`StepRules::find_out`] happen in the step's own local transaction.
pub(crate) trait StepRules: OutcomeRules {
    /// Raises a lock's token, unless it is higher, and says where it stands then. Until the branch ends nobody else can raise it.
    fn raise(
        &self,
        opened: &mut Self::Branch,
        key: &str,
        token: i64,
        deadline: Instant,
    ) -> impl Future<Output = Result<i64, Failure>> + Send;

    /// Competes for the marker's key of an action: where there is none, a tombstone is written. Says what was there before. Waits for an action
    /// that is at work.
    fn contest(
        &self,
        opened: &mut Self::Branch,
        action: &BranchId,
        deadline: Instant,
    ) -> impl Future<Output = Result<Undone, Failure>> + Send;

    /// Keeps the result in the branch's own marker row.
    fn keep(
        &self,
        opened: &mut Self::Branch,
        branch: &BranchId,
        result: &str,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Says what became of a branch whose [`BranchRules::commit`] brought no clear answer, as [`OutcomeRules::settle`] does, but leaves no
    /// tombstone: the step may come again.
    fn find_out(
        &self,
        branch: &BranchId,
        left: &mut Option<Self::Branch>,
    ) -> impl Future<Output = Settled> + Send;
}

/// A branch that was prepared.
pub(crate) struct Prepared {
    /// What proves the outcome later.
    pub(crate) proof: String,
    /// It stays on its connection until its end.
    pub(crate) bound: bool,
}

/// A marker row, as found.
pub(crate) struct Marker {
    pub(crate) transaction: String,
    pub(crate) number: i64,
    /// Else it is a tombstone.
    pub(crate) committed: bool,
    /// What a saga's step gave back, where it was to be kept.
    pub(crate) result: String,
}

/// What was found under the key of an action that is to be undone.
pub(crate) enum Undone {
    Committed,
    /// It never took effect, and never will.
    Tombstone,
    /// Nothing; now there is a tombstone.
    Absent,
}

/// Why a branch couldn't be begun. Nothing is left of it.
pub(crate) enum BeginError {
    /// The marker's key or its request id is taken.
    MarkerTaken,
    /// It is prepared already, by another agent or by this one before a restart, and stands, with this proof.
    Prepared(String),
    /// It is open elsewhere.
    Elsewhere,
    /// Anything else.
    Failed(Refusal),
}

/// Why a marker couldn't be written.
pub(crate) enum MarkError {
    /// Its key or its request id is taken.
    Taken,
    /// Anything else.
    Failed(Failure),
}

/// A database as a participant.
pub(crate) struct Flow<D: OutcomeRules> {
    pub(crate) database: D,
    pub(crate) branches: Arc<Branches<D::Branch>>,
    catalog: Catalog,
    identity: String,
    capacity: u32,
    /// How long marker rows are kept.
    retention: Duration,
}

impl<D: OutcomeRules> Flow<D> {
    pub(crate) fn new(
        database: D,
        catalog: Catalog,
        identity: String,
        capacity: u32,
        retention: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            database,
            branches: Branches::new(),
            catalog,
            identity,
            capacity,
            retention,
        })
    }

    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }
}

/// A vote of yes.
pub(crate) fn yes(proof: impl Into<String>) -> Vote {
    Vote::Yes {
        proof: proof.into(),
    }
}

fn takes_no_more(branch: &BranchId) -> Refusal {
    lost(format!("branch {branch} takes no more work"))
}
