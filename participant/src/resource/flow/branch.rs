//! A branch up to its vote.

use std::time::Duration;

use tokio::time::Instant;
use unanimity_proto::v1::{self, AbortCode};

use crate::{
    operation::Statement,
    participant::{BranchId, Prepare, Refusal, Settled, Vote},
    resource::{
        Failure,
        branches::{BranchConnection, Lease, Standing, lost},
        deadline_after,
        identifier::check,
        refusal,
        statement::Ran,
        within,
    },
};

use super::{BeginError, Flow, MarkError, Marker, OutcomeRules, takes_no_more, yes};

impl<D: OutcomeRules> Flow<D> {
    /// A lease on a branch that is opened now. One that is known already is refused with what is known of it.
    pub(crate) async fn open(
        &self,
        branch: &BranchId,
        deadline: Instant,
    ) -> Result<Lease<D::Branch>, Refusal> {
        check(branch)?;
        match self.branches.standing(branch) {
            Standing::Absent => {}
            Standing::Open(lease) => return Ok(lease),
            Standing::InUse(_) => return Err(lost(format!("branch {branch} is in use"))),
            Standing::Voted(Vote::No(refusal)) => return Err(refusal),
            Standing::Voted(_) => return Err(takes_no_more(branch)),
        }
        match self.database.begin(branch, &[], None, deadline).await {
            Ok(connection) => Ok(self.branches.begin(branch, connection)),
            Err(BeginError::Failed(refusal)) => Err(refusal),
            Err(BeginError::Prepared(_) | BeginError::Elsewhere | BeginError::MarkerTaken) => Err(
                lost(format!("branch {branch} is in use, or prepared, already")),
            ),
        }
    }

    /// See [`crate::participant::Participant::operate`].
    pub(crate) async fn operate(
        &self,
        branch: &BranchId,
        open: bool,
        operation: &v1::Operation,
        timeout: Duration,
    ) -> Result<v1::OperationResult, Refusal> {
        check(branch)?;
        let deadline = deadline_after(timeout);
        let _call = self.branches.call(branch).await;
        let mut lease = match self.branches.standing(branch) {
            Standing::Absent if open => self.open(branch, deadline).await?,
            Standing::Absent => return Err(lost(format!("branch {branch} is not open here"))),
            Standing::Open(lease) if open => return Err(self.doom_opened_twice(lease).await),
            Standing::Open(lease) => lease,
            Standing::InUse(interrupt) => return Err(self.doom_in_use(branch, interrupt).await),
            Standing::Voted(Vote::No(refusal)) => return Err(refusal),
            Standing::Voted(_) => return Err(takes_no_more(branch)),
        };
        match self.run_one(&mut lease, operation, deadline).await {
            Ok(ran) => {
                failpoint!("participant.operation.ran");
                lease.finish().map(|()| ran.result)
            }
            Err(failed) => Err(self.doom(lease, failed).await),
        }
    }

    async fn run_one(
        &self,
        connection: &mut D::Branch,
        operation: &v1::Operation,
        deadline: Instant,
    ) -> Result<Ran, Failure> {
        let statement = self.catalog.resolve(operation, D::DIALECT)?;
        self.database.limit(connection, deadline).await?;
        self.run(connection, &statement, deadline, true).await
    }

    /// See [`crate::participant::Participant::prepare`].
    pub(crate) async fn prepare(&self, prepare: &Prepare) -> Vote {
        let branch = &prepare.branch;
        if let Err(refusal) = check(branch) {
            return Vote::No(refusal);
        }
        let deadline = deadline_after(prepare.timeout);
        let _call = self.branches.call(branch).await;
        let lease = match self.branches.standing(branch) {
            Standing::Voted(vote) => return vote,
            Standing::InUse(interrupt) => {
                return Vote::No(self.doom_in_use(branch, interrupt).await);
            }
            Standing::Open(lease) if prepare.continued => lease,
            Standing::Open(lease) => return Vote::No(self.doom_opened_twice(lease).await),
            Standing::Absent if prepare.continued => {
                return Vote::No(lost(format!("branch {branch} is not open here")));
            }
            Standing::Absent => match self.begin_prepare(prepare, deadline).await {
                Ok(lease) => lease,
                Err(vote) => return vote,
            },
        };
        failpoint!("participant.branch.begun");
        self.run_and_vote(prepare, lease, deadline).await
    }

    /// Opens the branch of a prepare, once all that it asks for is known to make sense.
    async fn begin_prepare(
        &self,
        prepare: &Prepare,
        deadline: Instant,
    ) -> Result<Lease<D::Branch>, Vote> {
        let resolve = |operation| self.catalog.resolve(operation, D::DIALECT);
        let statements = prepare.operations.iter().map(resolve);
        let work: Vec<Statement> = statements.collect::<Result<_, _>>().map_err(Vote::No)?;
        let branch = &prepare.branch;
        let marked = prepare.one_phase && !cfg!(unanimity_bug = "one-phase-not-marked");
        let marker = marked.then_some(prepare.request_id.as_str());
        match self.database.begin(branch, &work, marker, deadline).await {
            Ok(connection) => Ok(self.branches.begin(branch, connection)),
            Err(BeginError::Failed(refusal)) => Err(Vote::No(refusal)),
            Err(BeginError::Elsewhere) => Err(Vote::No(lost(format!(
                "branch {branch} is open already, elsewhere"
            )))),
            Err(BeginError::Prepared(proof)) => {
                let vote = yes(proof);
                self.branches.found_prepared(branch, vote.clone(), None);
                Err(vote)
            }
            Err(BeginError::MarkerTaken) => {
                Err(self.vote_by_marker(branch, &prepare.request_id).await)
            }
        }
    }

    async fn run_and_vote(
        &self,
        prepare: &Prepare,
        mut lease: Lease<D::Branch>,
        deadline: Instant,
    ) -> Vote {
        let (branch, request_id) = (&prepare.branch, prepare.request_id.as_str());
        if let Err(failed) = self.run_all(prepare, &mut lease, deadline).await
            && !cfg!(unanimity_bug = "failure-voted-yes")
        {
            return Vote::No(self.doom(lease, failed).await);
        }
        if !prepare.one_phase {
            return self.vote(lease, deadline).await;
        }
        if prepare.continued {
            let marking = self.database.mark(&mut lease, branch, request_id, deadline);
            match marking.await {
                Ok(()) => failpoint!("participant.marker.written"),
                Err(MarkError::Taken) => {
                    self.doom(lease, lost("the marker is taken").into()).await;
                    return self.vote_by_marker(branch, request_id).await;
                }
                Err(MarkError::Failed(failed)) => return Vote::No(self.doom(lease, failed).await),
            }
        }
        self.commit_in_one_phase(lease, deadline).await
    }

    async fn run_all(
        &self,
        prepare: &Prepare,
        connection: &mut D::Branch,
        deadline: Instant,
    ) -> Result<(), Failure> {
        if prepare.continued {
            self.database.limit(connection, deadline).await?;
        }
        for operation in &prepare.operations {
            let statement = self.catalog.resolve(operation, D::DIALECT)?;
            self.run(connection, &statement, deadline, false).await?;
        }
        Ok(())
    }

    /// Runs one statement. Rows are kept where `keep`.
    pub(super) async fn run(
        &self,
        connection: &mut D::Branch,
        statement: &Statement,
        deadline: Instant,
        keep: bool,
    ) -> Result<Ran, Failure> {
        let what = format!("operation {}", statement.label);
        if Instant::now() >= deadline {
            return Err(refusal(AbortCode::Timeout, format!("{what}: no time was left")).into());
        }
        let running = self.database.run(connection, statement, keep);
        let ran = within(deadline, &what, running).await?;
        statement.check_rows(ran.rows())?;
        Ok(ran)
    }

    /// Prepares, unless nothing was changed.
    async fn vote(&self, mut lease: Lease<D::Branch>, deadline: Instant) -> Vote {
        match self.database.end_read_only(&mut lease, deadline).await {
            Ok(true) => {
                failpoint!("participant.read-only.ended");
                lease.end(Vote::ReadOnly).release();
                return Vote::ReadOnly;
            }
            Ok(false) => {}
            Err(failed) => return Vote::No(self.doom(lease, failed).await),
        }
        let branch = lease.branch().clone();
        failpoint!("participant.prepare.before");
        match self.database.prepare(&mut lease, &branch, deadline).await {
            Ok(prepared) => {
                failpoint!("participant.prepare.after");
                let vote = yes(prepared.proof);
                if let Some(detached) = lease.prepared(vote.clone(), prepared.bound) {
                    detached.release();
                }
                vote
            }
            Err(failed) => Vote::No(self.unprepare(lease, failed).await),
        }
    }

    /// Rolls back after a prepare whose outcome may not be known: the connection first, so that nothing comes late, then what it may have
    /// prepared. If the database is away, so is the answer: what is found prepared afterwards is in doubt, and its abort is presumed.
    async fn unprepare(&self, lease: Lease<D::Branch>, failed: Failure) -> Refusal {
        let (branch, broken) = (lease.branch().clone(), failed.broken);
        let refusal = self.doom(lease, failed).await;
        if broken {
            let _ = self.database.abort_prepared(&branch, "", &mut None).await;
        }
        refusal
    }

    /// Commits. Where no clear answer came the truth is found out, however long the database is away: this vote is the decision.
    async fn commit_in_one_phase(&self, mut lease: Lease<D::Branch>, deadline: Instant) -> Vote {
        let branch = lease.branch().clone();
        failpoint!("participant.one-phase.before");
        let committed = self.database.commit(&mut lease, &branch, deadline).await;
        failpoint!("participant.one-phase.after");
        let Err(refusal) = committed else {
            lease.end(Vote::Committed).release();
            return Vote::Committed;
        };
        let connection = lease.end(Vote::No(refusal.clone()));
        let vote = if self.settle_one_phase(&branch, connection).await {
            Vote::Committed
        } else {
            Vote::No(refusal)
        };
        self.branches.ended(&branch, vote.clone());
        vote
    }

    /// Whether a branch told to commit in one phase did so. Asks until it knows.
    async fn settle_one_phase(&self, branch: &BranchId, connection: D::Branch) -> bool {
        let (mut left, mut pause) = (Some(connection), Duration::from_millis(20));
        let committed = loop {
            match self.database.settle(branch, &mut left).await {
                Settled::Committed => break true,
                Settled::Aborted => break false,
                Settled::Lost(problem) | Settled::Retry(problem) => {
                    tracing::warn!(%branch, problem, "the outcome of a one-phase commit is not known yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
        };
        if let Some(connection) = left {
            connection.release();
        }
        committed
    }

    /// The vote of a branch whose marker's key, or request id, was taken before.
    async fn vote_by_marker(&self, branch: &BranchId, request_id: &str) -> Vote {
        let is_own = |marker: &Marker| {
            marker.transaction == branch.transaction && marker.number == i64::from(branch.number)
        };
        let vote = match self.database.marker(branch, request_id).await {
            Ok(Some(marker)) if !is_own(&marker) => Vote::Duplicate {
                transaction: marker.transaction,
            },
            Ok(Some(marker)) if marker.committed => Vote::Committed,
            Ok(Some(_)) => Vote::No(lost(format!(
                "branch {branch} was settled before: it did not commit"
            ))),
            Ok(None) => Vote::No(refusal(
                AbortCode::Conflict,
                "a transaction with the same request id was just undone",
            )),
            Err(refusal) => Vote::No(refusal),
        };
        self.branches.ended(branch, vote.clone());
        vote
    }

    /// Rolls back an open branch.
    async fn doom(&self, lease: Lease<D::Branch>, failed: Failure) -> Refusal {
        let connection = lease.end(Vote::No(failed.refusal.clone()));
        failpoint!("participant.undo.before");
        self.database.undo(connection, failed.broken).await;
        failed.refusal
    }

    async fn doom_opened_twice(&self, lease: Lease<D::Branch>) -> Refusal {
        let refusal = lost(format!("branch {} was open already", lease.branch()));
        self.doom(lease, refusal.into()).await
    }

    /// Rolls back a branch that a service holds just now.
    async fn doom_in_use(
        &self,
        branch: &BranchId,
        interrupt: <D::Branch as BranchConnection>::Interrupt,
    ) -> Refusal {
        let refusal = lost(format!(
            "branch {branch} was still in use, and is rolled back"
        ));
        self.branches.ended(branch, Vote::No(refusal.clone()));
        self.database.stop(interrupt).await;
        refusal
    }
}
