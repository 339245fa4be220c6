//! An open branch on PostgreSQL: begin, run, prepare, and the end of a branch that failed.

use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Executor, PgConnection, Postgres, Row, pool::PoolConnection,
};
use tokio::time::Instant;
use unanimity_proto::v1::{self, AbortCode};

use crate::{
    operation::{Dialect, Statement, changes_rows},
    participant::{BranchId, Prepare, Refusal, Vote},
    resource::{
        CONTROL_TIMEOUT, Failure, MARKER_COMMITTED, MARKER_TABLE,
        branches::{BranchConnection, Lease, Standing, lost},
        deadline_after,
        identifier::{check, hex},
        milliseconds, refusal,
        statement::{Ran, collect},
        within,
    },
};

use super::{
    Inner,
    values::{bind, failure, is_dead, read_value, state},
};

/// A pooled connection inside a transaction. Dropped without [`Self::release`] it closes, and PostgreSQL rolls back: sqlx knows nothing of
/// the transaction, and would hand the connection to the next borrower as it is.
pub(super) struct PgBranch {
    connection: Option<PoolConnection<Postgres>>,
    pid: i32,
    /// The `statement_timeout` in force, in milliseconds.
    limit: u64,
    /// A statement is known to have changed rows.
    wrote: bool,
}

impl BranchConnection for PgBranch {
    type Interrupt = i32;

    fn interrupt(&self) -> i32 {
        self.pid
    }
}

impl Drop for PgBranch {
    fn drop(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            connection.close_on_drop();
        }
    }
}

impl PgBranch {
    pub(super) fn new(connection: PoolConnection<Postgres>) -> Self {
        Self {
            connection: Some(connection),
            pid: 0,
            limit: 0,
            wrote: false,
        }
    }

    pub(super) fn connection(&mut self) -> &mut PgConnection {
        self.connection
            .as_mut()
            .expect("only release takes the connection, and it consumes the guard")
    }

    /// Back to the pool: the branch is over, and the connection idle.
    pub(super) fn release(mut self) {
        self.connection = None;
    }

    /// Runs one statement. Rows are kept where `keep`.
    pub(super) async fn run(
        &mut self,
        statement: &Statement,
        deadline: Instant,
        keep: bool,
    ) -> Result<Ran, Failure> {
        let what = format!("operation {}", statement.label);
        if Instant::now() >= deadline {
            return Err(refusal(AbortCode::Timeout, format!("{what}: no time was left")).into());
        }
        let ran = within(deadline, &what, self.fetch(statement, keep, &what)).await?;
        self.wrote |=
            ran.result.affected_rows > 0 && changes_rows(&statement.sql, Dialect::Postgres);
        statement.check_rows(ran.rows())?;
        Ok(ran)
    }

    async fn fetch(
        &mut self,
        statement: &Statement,
        keep: bool,
        what: &str,
    ) -> Result<Ran, Failure> {
        let query = sqlx::query_with(AssertSqlSafe(statement.sql.clone()), bind(statement)?)
            .persistent(statement.persistent);
        let answers = self
            .connection()
            .fetch_many(query)
            .map_ok(|answer| answer.map_left(|done| done.rows_affected()))
            .map_err(|error| failure(what, &error));
        collect(statement, Dialect::Postgres, keep, answers, read_value).await
    }

    /// Moves the server's own time limits, where the time left differs from what they say.
    async fn limit(&mut self, deadline: Instant) -> Result<(), Failure> {
        let limit = milliseconds(deadline.saturating_duration_since(Instant::now()));
        if self.limit.abs_diff(limit) < 100 {
            return Ok(());
        }
        let set =
            format!("SET LOCAL statement_timeout = {limit}; SET LOCAL lock_timeout = {limit}");
        within(deadline, "setting the time limit", async {
            sqlx::raw_sql(AssertSqlSafe(set))
                .execute(self.connection())
                .await
                .map_err(|error| failure("setting the time limit", &error))
        })
        .await?;
        self.limit = limit;
        Ok(())
    }
}

/// Why a branch couldn't be begun. Nothing is left of it.
pub(super) enum BeginError {
    /// The marker's key or its request id is taken.
    MarkerTaken,
    /// Anything else.
    Failed(Refusal),
}

/// The statement that writes a branch's marker row. The request id is anybody's text, hence the hex.
fn insert_marker(branch: &BranchId, request_id: &str) -> String {
    let request = match request_id {
        "" => "NULL".to_owned(),
        text => format!(
            "convert_from(decode('{}', 'hex'), 'UTF8')",
            hex(text.as_bytes())
        ),
    };
    format!(
        "INSERT INTO {MARKER_TABLE} (transaction_id, branch, request_id, outcome) VALUES ('{}', {}, {request}, {MARKER_COMMITTED})",
        branch.transaction, branch.number
    )
}

impl Inner {
    /// Begins a transaction, its time limits, and where asked for its marker row, in one round trip. Connections that the server has
    /// closed meanwhile are thrown away: nothing was done on them yet.
    async fn begin(
        &self,
        deadline: Instant,
        marker: Option<String>,
    ) -> Result<PgBranch, BeginError> {
        let limit = milliseconds(deadline.saturating_duration_since(Instant::now()));
        let marker = marker
            .map(|insert| format!("; {insert}"))
            .unwrap_or_default();
        let script = format!(
            "BEGIN; SET LOCAL statement_timeout = {limit}; SET LOCAL lock_timeout = {limit}; SELECT pg_backend_pid(){marker}"
        );
        let unavailable = |problem: String| {
            BeginError::Failed(refusal(AbortCode::ParticipantUnavailable, problem))
        };
        let mut problem = String::new();
        for _ in 0..=self.connections {
            let acquired = tokio::time::timeout_at(deadline, self.pool.acquire()).await;
            let connection = acquired
                .map_err(|_| unavailable("no connection to PostgreSQL became free in time".into()))?
                .map_err(|error| unavailable(format!("no connection to PostgreSQL: {error}")))?;
            let mut branch = PgBranch::new(connection);
            let begun = within(deadline, "begin", async {
                Ok(sqlx::raw_sql(AssertSqlSafe(script.clone()))
                    .fetch_all(branch.connection())
                    .await)
            });
            match begun
                .await
                .map_err(|failed| BeginError::Failed(failed.refusal))?
            {
                Ok(rows) => {
                    branch.pid = rows
                        .first()
                        .and_then(|row| row.try_get(0).ok())
                        .unwrap_or_default();
                    branch.limit = limit;
                    return Ok(branch);
                }
                Err(error) if is_dead(&error) => problem = error.to_string(),
                Err(error) => {
                    self.undo(branch, false).await;
                    let taken = state(&error) == "23505";
                    return Err(if taken {
                        BeginError::MarkerTaken
                    } else {
                        BeginError::Failed(failure("begin", &error).refusal)
                    });
                }
            }
        }
        Err(unavailable(format!(
            "no connection to PostgreSQL: {problem}"
        )))
    }

    /// A lease on a branch that is opened now. One that is known already is refused with what is known of it.
    pub(super) async fn open(
        &self,
        branch: &BranchId,
        deadline: Instant,
    ) -> Result<Lease<PgBranch>, Refusal> {
        check(branch)?;
        match self.branches.standing(branch) {
            Standing::Absent => {}
            Standing::Open(lease) => return Ok(lease),
            Standing::InUse(_) => return Err(lost(format!("branch {branch} is in use"))),
            Standing::Voted(Vote::No(refusal)) => return Err(refusal),
            Standing::Voted(_) => return Err(lost(format!("branch {branch} takes no more work"))),
        }
        match self.begin(deadline, None).await {
            Ok(connection) => Ok(self.branches.begin(branch, connection)),
            Err(BeginError::Failed(refusal)) => Err(refusal),
            Err(BeginError::MarkerTaken) => unreachable!("no marker was written"),
        }
    }

    /// See [`crate::participant::Participant::execute`].
    pub(super) async fn execute(
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
            Standing::Open(lease) if open => {
                return Err(self
                    .doom(
                        lease,
                        lost(format!("branch {branch} was open already")).into(),
                    )
                    .await);
            }
            Standing::Open(lease) => lease,
            Standing::InUse(pid) => return Err(self.doom_in_use(branch, pid).await),
            Standing::Voted(Vote::No(refusal)) => return Err(refusal),
            Standing::Voted(_) => return Err(lost(format!("branch {branch} takes no more work"))),
        };
        match self.run_one(&mut lease, operation, deadline).await {
            Ok(ran) => lease.finish().map(|()| ran.result),
            Err(failed) => Err(self.doom(lease, failed).await),
        }
    }

    async fn run_one(
        &self,
        lease: &mut Lease<PgBranch>,
        operation: &v1::Operation,
        deadline: Instant,
    ) -> Result<Ran, Failure> {
        let statement = self.catalog.resolve(operation, Dialect::Postgres)?;
        lease.limit(deadline).await?;
        lease.run(&statement, deadline, true).await
    }

    /// See [`crate::participant::Participant::prepare`].
    pub(super) async fn prepare(&self, prepare: &Prepare) -> Vote {
        let branch = &prepare.branch;
        if let Err(refusal) = check(branch) {
            return Vote::No(refusal);
        }
        let deadline = deadline_after(prepare.timeout);
        let _call = self.branches.call(branch).await;
        let lease = match self.branches.standing(branch) {
            Standing::Voted(vote) => return vote,
            Standing::InUse(pid) => return Vote::No(self.doom_in_use(branch, pid).await),
            Standing::Open(lease) if prepare.continued => lease,
            Standing::Open(lease) => {
                return Vote::No(
                    self.doom(
                        lease,
                        lost(format!("branch {branch} was open already")).into(),
                    )
                    .await,
                );
            }
            Standing::Absent if prepare.continued => {
                return Vote::No(lost(format!("branch {branch} is not open here")));
            }
            Standing::Absent => match self.begin_prepare(prepare, deadline).await {
                Ok(lease) => lease,
                Err(vote) => return vote,
            },
        };
        self.run_and_vote(prepare, lease, deadline).await
    }

    /// Opens the branch of a prepare. In one phase the marker goes first, so that two with one request id wait for each other.
    async fn begin_prepare(
        &self,
        prepare: &Prepare,
        deadline: Instant,
    ) -> Result<Lease<PgBranch>, Vote> {
        for operation in &prepare.operations {
            self.catalog
                .resolve(operation, Dialect::Postgres)
                .map_err(Vote::No)?;
        }
        let branch = &prepare.branch;
        let marker = prepare
            .one_phase
            .then(|| insert_marker(branch, &prepare.request_id));
        match self.begin(deadline, marker).await {
            Ok(connection) => Ok(self.branches.begin(branch, connection)),
            Err(BeginError::Failed(refusal)) => Err(Vote::No(refusal)),
            Err(BeginError::MarkerTaken) => {
                Err(self.vote_by_marker(branch, &prepare.request_id).await)
            }
        }
    }

    async fn run_and_vote(
        &self,
        prepare: &Prepare,
        mut lease: Lease<PgBranch>,
        deadline: Instant,
    ) -> Vote {
        if let Err(failed) = self.run_all(prepare, &mut lease, deadline).await {
            return Vote::No(self.doom(lease, failed).await);
        }
        if !prepare.one_phase {
            return self.vote(lease, deadline).await;
        }
        if prepare.continued {
            let insert = insert_marker(&prepare.branch, &prepare.request_id);
            let inserted = within(deadline, "marker", async {
                Ok(sqlx::raw_sql(AssertSqlSafe(insert))
                    .execute(lease.connection())
                    .await)
            });
            match inserted.await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) if state(&error) == "23505" => {
                    self.doom(lease, lost("the marker is taken").into()).await;
                    return self
                        .vote_by_marker(&prepare.branch, &prepare.request_id)
                        .await;
                }
                Ok(Err(error)) => {
                    return Vote::No(self.doom(lease, failure("marker", &error)).await);
                }
                Err(failed) => return Vote::No(self.doom(lease, failed).await),
            }
        }
        self.commit_in_one_phase(lease, deadline).await
    }

    async fn run_all(
        &self,
        prepare: &Prepare,
        lease: &mut Lease<PgBranch>,
        deadline: Instant,
    ) -> Result<(), Failure> {
        if prepare.continued {
            lease.limit(deadline).await?;
        }
        for operation in &prepare.operations {
            let statement = self.catalog.resolve(operation, Dialect::Postgres)?;
            lease.run(&statement, deadline, false).await?;
        }
        Ok(())
    }

    /// Prepares, unless nothing was changed.
    async fn vote(&self, mut lease: Lease<PgBranch>, deadline: Instant) -> Vote {
        if !lease.wrote {
            let assigned = within(deadline, "read-only check", async {
                sqlx::query_scalar::<_, Option<String>>(
                    "SELECT pg_current_xact_id_if_assigned()::text",
                )
                .fetch_one(lease.connection())
                .await
                .map_err(|error| failure("read-only check", &error))
            });
            match assigned.await {
                Ok(Some(_)) => {}
                Ok(None) => return self.vote_read_only(lease, deadline).await,
                Err(failed) => return Vote::No(self.doom(lease, failed).await),
            }
        }
        let branch = lease.branch().clone();
        // PostgreSQL answers a PREPARE in an aborted or missing transaction as if all were well, and sqlx hides the tag: only the row read
        // back proves it. Session-level advisory locks are released here; those of the transaction pass to the prepared one.
        let script = format!(
            "PREPARE TRANSACTION '{branch}'; SELECT transaction::text, pg_snapshot_xmax(pg_current_snapshot())::text, \
             pg_advisory_unlock_all()::text FROM pg_prepared_xacts WHERE gid = '{branch}' AND database = current_database()"
        );
        let answer = within(deadline, "prepare", async {
            Ok(sqlx::raw_sql(AssertSqlSafe(script))
                .fetch_optional(lease.connection())
                .await)
        });
        match answer.await {
            Ok(Ok(Some(row))) => match proof(&row) {
                Some(proof) => {
                    let vote = Vote::Yes { proof };
                    if let Some(connection) = lease.prepared(vote.clone(), false) {
                        connection.release();
                    }
                    vote
                }
                None => {
                    let refusal = refusal(
                        AbortCode::ParticipantFailure,
                        "PostgreSQL showed a prepared branch without its number",
                    );
                    Vote::No(
                        self.unprepare(
                            lease,
                            Failure {
                                refusal,
                                broken: true,
                            },
                        )
                        .await,
                    )
                }
            },
            Ok(Ok(None)) => {
                let refusal = refusal(
                    AbortCode::ParticipantFailure,
                    "PostgreSQL rolled back instead of preparing",
                );
                Vote::No(
                    self.unprepare(
                        lease,
                        Failure {
                            refusal,
                            broken: true,
                        },
                    )
                    .await,
                )
            }
            Ok(Err(error)) if state(&error) == "42710" => self.vote_as_prepared(lease).await,
            Ok(Err(error)) => Vote::No(self.unprepare(lease, failure("prepare", &error)).await),
            Err(failed) => Vote::No(self.unprepare(lease, failed).await),
        }
    }

    async fn vote_read_only(&self, mut lease: Lease<PgBranch>, deadline: Instant) -> Vote {
        let committed = within(deadline, "end of a read-only branch", async {
            let ended = sqlx::raw_sql("COMMIT").execute(lease.connection()).await;
            ended.map_err(|error| failure("end of a read-only branch", &error))
        });
        match committed.await {
            Ok(_) => {
                lease.end(Vote::ReadOnly).release();
                Vote::ReadOnly
            }
            Err(failed) => Vote::No(self.doom(lease, failed).await),
        }
    }

    /// The branch is prepared already, by another agent or by this one before a restart: it stands, and ours is rolled back.
    async fn vote_as_prepared(&self, mut lease: Lease<PgBranch>) -> Vote {
        let gid = lease.branch().to_string();
        let _ = sqlx::raw_sql("ROLLBACK").execute(lease.connection()).await;
        let found = sqlx::query(
            "SELECT transaction::text, pg_snapshot_xmax(pg_current_snapshot())::text FROM pg_prepared_xacts \
             WHERE gid = $1 AND database = current_database()",
        )
        .bind(gid)
        .fetch_optional(lease.connection())
        .await;
        match found.ok().flatten().as_ref().and_then(proof) {
            Some(proof) => {
                let vote = Vote::Yes { proof };
                if let Some(connection) = lease.prepared(vote.clone(), false) {
                    connection.release();
                }
                vote
            }
            None => {
                let message = format!("another transaction has the identifier {}", lease.branch());
                Vote::No(
                    self.doom(
                        lease,
                        refusal(AbortCode::ParticipantFailure, message).into(),
                    )
                    .await,
                )
            }
        }
    }

    /// Rolls back after a PREPARE whose outcome isn't known: the session first, so that nothing comes late, then what it may have prepared.
    /// If the database is away, so is the answer: what is found prepared afterwards is in doubt, and its abort is presumed.
    async fn unprepare(&self, lease: Lease<PgBranch>, failed: Failure) -> Refusal {
        let branch = lease.branch().clone();
        let refusal = self
            .doom(
                lease,
                Failure {
                    broken: true,
                    ..failed
                },
            )
            .await;
        let _ = self.finish(&branch, "ROLLBACK PREPARED").await;
        refusal
    }

    /// Rolls back an open branch.
    pub(super) async fn doom(&self, lease: Lease<PgBranch>, failed: Failure) -> Refusal {
        let connection = lease.end(Vote::No(failed.refusal.clone()));
        self.undo(connection, failed.broken).await;
        failed.refusal
    }

    /// Rolls back a branch that a service holds just now.
    pub(super) async fn doom_in_use(&self, branch: &BranchId, pid: i32) -> Refusal {
        let refusal = lost(format!(
            "branch {branch} was still in use, and is rolled back"
        ));
        self.branches.ended(branch, Vote::No(refusal.clone()));
        self.fence(pid).await;
        refusal
    }

    /// Ends the transaction of a connection: by ROLLBACK, or by closing it and ending its server process, so that no lock stays behind.
    pub(super) async fn undo(&self, mut branch: PgBranch, broken: bool) {
        if !broken {
            let rollback = sqlx::raw_sql("ROLLBACK").execute(branch.connection());
            if matches!(
                tokio::time::timeout(CONTROL_TIMEOUT, rollback).await,
                Ok(Ok(_))
            ) {
                return branch.release();
            }
        }
        let pid = branch.pid;
        drop(branch);
        self.fence(pid).await;
    }

    /// Ends a server process of ours, and waits until it is gone: until then it could still act on what it was sent.
    pub(super) async fn fence(&self, pid: i32) {
        if pid == 0 {
            return;
        }
        let ended = tokio::time::timeout(CONTROL_TIMEOUT, async {
            // Not from the pool: it may be used up by those that wait for this one.
            let mut side = self.options.connect().await?;
            loop {
                let there = sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND application_name = $2")
                    .bind(pid)
                    .bind(&self.application_name)
                    .fetch_optional(&mut side)
                    .await?;
                if there.is_none() {
                    return Ok::<(), sqlx::Error>(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        match ended.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(pid, %error, "could not end an abandoned PostgreSQL session")
            }
            Err(_) => tracing::warn!(pid, "an abandoned PostgreSQL session does not end"),
        }
    }
}

/// The transaction's 64-bit id, as text, from what `pg_prepared_xacts` shows of it: the lower half. The upper is that of the value nearest
/// to the newest id: a prepared transaction is never 2^31 ids old, for PostgreSQL stops before that.
fn proof(row: &sqlx::postgres::PgRow) -> Option<String> {
    let low: u32 = row.try_get::<String, _>(0).ok()?.parse().ok()?;
    let newest: u64 = row.try_get::<String, _>(1).ok()?.parse().ok()?;
    full_xid(low, newest).map(|xid| xid.to_string())
}

fn full_xid(low: u32, newest: u64) -> Option<u64> {
    const EPOCH: i128 = 1 << 32;
    let base = i128::from(newest) / EPOCH * EPOCH + i128::from(low);
    let nearest = [base - EPOCH, base, base + EPOCH]
        .into_iter()
        .min_by_key(|xid| (xid - i128::from(newest)).abs());
    nearest.and_then(|xid| u64::try_from(xid).ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
mod tests {
    use super::*;

    #[test]
    fn the_upper_half_of_a_transaction_id_is_that_of_the_newest_unless_it_wrapped_between() {
        assert_eq!(full_xid(750, 751), Some(750));
        assert_eq!(full_xid(752, 751), Some(752));
        assert_eq!(full_xid(u32::MAX, (1 << 32) + 5), Some(u64::from(u32::MAX)));
        assert_eq!(full_xid(5, u64::from(u32::MAX)), Some((1 << 32) + 5));
        assert_eq!(full_xid(7, (3 << 32) + 9), Some((3 << 32) + 7));
    }
}
