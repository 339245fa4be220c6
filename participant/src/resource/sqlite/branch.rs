//! An open branch on SQLite: begin, run, prepare, and the end of a branch that failed.

use std::{sync::Arc, time::Duration};

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Executor, SqlSafeStr, SqliteConnection, Statement as _};
use tokio::{sync::OwnedMutexGuard, time::Instant};
use unanimity_proto::v1::{self, AbortCode};

use crate::{
    operation::{Dialect, Statement},
    participant::{BranchId, Prepare, Refusal, Vote},
    resource::{
        Failure, MARKER_COMMITTED, MARKER_PROOF,
        branches::{BranchConnection, Lease, Standing, lost},
        deadline_after,
        identifier::check,
        milliseconds, refusal,
        statement::{Ran, check_count, collect},
        within,
    },
};

use super::{
    Inner,
    changeset::{self, Direction, Session},
    journal::Record,
    values::{bind, failure, is_constraint, read_value},
    writer::{Limit, Writer},
};

/// The writer, inside a transaction. Dropped without [`Self::release`], the transaction is rolled back in a task of its own, which keeps the
/// writer until that is done.
pub(super) struct LiteBranch {
    writer: Option<OwnedMutexGuard<Writer>>,
    session: Option<Session>,
    limit: Limit,
    /// The connection's count of changed rows when the branch began.
    changes_before: i64,
    /// What a vote of yes has promised.
    promise: Option<Promise>,
}

/// What was voted on, and how it stands.
pub(super) struct Promise {
    pub(super) record: Record,
    pub(super) state: PromiseState,
}

/// How a promise stands. As long as there is one, nobody else gets the writer.
pub(super) enum PromiseState {
    /// The changes are made, and wait for COMMIT.
    Kept,
    /// The transaction is gone, by a crash or a COMMIT that failed; the changes are to be made again.
    Owed,
    /// They can't be made again: why.
    Unfit(String),
}

impl BranchConnection for LiteBranch {
    type Interrupt = Limit;

    fn interrupt(&self) -> Limit {
        self.limit.clone()
    }
}

impl Drop for LiteBranch {
    fn drop(&mut self) {
        let (Some(mut writer), session) = (self.writer.take(), self.session.take()) else {
            return;
        };
        self.limit.interrupt();
        let limit = self.limit.clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move { end(&mut writer, session, &limit, "ROLLBACK").await });
            }
            Err(_) => {
                limit.lift();
                writer.close();
            }
        }
    }
}

/// Ends the recording, then the transaction. Where that fails, the connection is closed, and SQLite rolls back.
async fn end(
    writer: &mut Writer,
    session: Option<Session>,
    limit: &Limit,
    command: &'static str,
) -> Result<(), sqlx::Error> {
    let ended = async {
        let Some(connection) = writer.opened() else {
            return if command == "ROLLBACK" {
                Ok(())
            } else {
                Err(sqlx::Error::WorkerCrashed)
            };
        };
        // The lock waits for a statement that nobody waits for any more, which the limit interrupts; from here on nothing is.
        let mut handle = connection.lock_handle().await?;
        limit.lift();
        if let Some(session) = session {
            session.end(&mut handle);
        }
        if command == "ROLLBACK" && !changeset::in_transaction(&mut handle) {
            return Ok(());
        }
        drop(handle);
        sqlx::raw_sql(command).execute(connection).await.map(drop)
    };
    let ended = ended.await;
    limit.lift();
    if ended.is_err() {
        writer.close();
    }
    ended
}

impl LiteBranch {
    pub(super) fn new(writer: OwnedMutexGuard<Writer>, limit: Limit) -> Self {
        Self {
            writer: Some(writer),
            session: None,
            limit,
            changes_before: 0,
            promise: None,
        }
    }

    pub(super) fn promising(
        writer: OwnedMutexGuard<Writer>,
        limit: Limit,
        promise: Promise,
    ) -> Self {
        let mut branch = Self::new(writer, limit);
        branch.promise = Some(promise);
        branch
    }

    pub(super) fn writer(&mut self) -> &mut Writer {
        self.writer
            .as_mut()
            .expect("only what ends the branch takes the writer, and it consumes the branch")
    }

    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        self.writer().connection()
    }

    /// Commits. The writer comes back with the answer: after an error the connection is closed, and before anybody else gets it, what became
    /// of the branch is to be found out.
    pub(super) async fn commit(mut self) -> (OwnedMutexGuard<Writer>, Result<(), sqlx::Error>) {
        let mut writer = self.take_writer();
        let committed = end(&mut writer, self.session.take(), &self.limit, "COMMIT").await;
        (writer, committed)
    }

    /// What was promised.
    pub(super) fn take_promise(&mut self) -> Option<Promise> {
        self.promise.take()
    }

    /// The writer, where no transaction is open on it.
    pub(super) fn into_writer(mut self) -> OwnedMutexGuard<Writer> {
        self.take_writer()
    }

    fn take_writer(&mut self) -> OwnedMutexGuard<Writer> {
        self.writer
            .take()
            .expect("only what ends the branch takes the writer, and it consumes the branch")
    }

    /// Rolls back, and lets the next one have the writer.
    pub(super) async fn rollback(mut self) {
        if let Some(mut writer) = self.writer.take() {
            // It rolls back either way: a connection on which it fails is closed.
            let _ = end(&mut writer, self.session.take(), &self.limit, "ROLLBACK").await;
        }
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
        statement.check_rows(ran.rows())?;
        Ok(ran)
    }

    async fn fetch(
        &mut self,
        statement: &Statement,
        keep: bool,
        what: &str,
    ) -> Result<Ran, Failure> {
        let connection = self.connection();
        let sql = AssertSqlSafe(statement.sql.clone()).into_sql_str();
        // SQLite takes a value that is missing for NULL.
        let prepared = connection
            .prepare(sql.clone())
            .await
            .map_err(|error| failure(what, &error))?;
        check_count(statement, prepared.parameters())?;
        let query = sqlx::query_with(sql, bind(statement)?).persistent(statement.persistent);
        let answers = connection
            .fetch_many(query)
            .map_ok(|answer| answer.map_left(|done| done.rows_affected()))
            .map_err(|error| failure(what, &error));
        collect(statement, Dialect::Sqlite, keep, answers, read_value).await
    }

    /// Writes the marker row.
    async fn mark(&mut self, branch: &BranchId, request_id: &str) -> Result<(), sqlx::Error> {
        sqlx::query("INSERT INTO unanimity_marker (transaction_id, branch, request_id, outcome) VALUES (?, ?, ?, ?)")
            .bind(branch.transaction.clone())
            .bind(branch.number)
            .bind(Some(request_id.to_owned()).filter(|id| !id.is_empty()))
            .bind(MARKER_COMMITTED)
            .execute(self.connection())
            .await
            .map(drop)
    }

    /// Whether nothing was changed, for certain. What the recording passed over is refused: it would be missing after a crash.
    async fn is_read_only(&mut self) -> Result<bool, Failure> {
        let before = self.changes_before;
        let session = self.session.take();
        let unavailable = |error: sqlx::Error| failure("read-only check", &error);
        let mut handle = self.connection().lock_handle().await.map_err(unavailable)?;
        let changed = changeset::total_changes(&mut handle) != before;
        let recorded = session
            .as_ref()
            .is_some_and(|session| !session.is_empty(&mut handle));
        let open = changeset::in_transaction(&mut handle);
        drop(handle);
        self.session = session;
        match (open, recorded, changed) {
            (false, _, _) => Err(refusal(
                AbortCode::ParticipantFailure,
                "the transaction was ended under way",
            )
            .into()),
            (true, false, false) => Ok(true),
            (true, true, _) => Ok(false),
            (true, false, true) => Err(refusal(
                AbortCode::Refused,
                "rows were changed that SQLite can't record",
            )
            .into()),
        }
    }

    /// What the branch changes, marker row included, ready to be changed again after a crash: all of it, and for certain.
    async fn capture(&mut self) -> Result<Vec<u8>, Failure> {
        let unavailable = |error: sqlx::Error| failure("prepare", &error);
        let shape = self.writer().shape().await.map_err(unavailable)?;
        let (null_keys, unique) = (shape.null_keys.clone(), shape.unique.clone());
        if let Some(table) = shape.unfit.first() {
            let message =
                format!("the primary key of {table} has several columns that may be NULL");
            return Err(refusal(AbortCode::Refused, message).into());
        }
        if let Some(search) = null_keys {
            let found: Option<String> = sqlx::query_scalar(AssertSqlSafe(search))
                .fetch_optional(self.connection())
                .await
                .map_err(unavailable)?;
            if let Some(table) = found {
                return Err(refusal(
                    AbortCode::Refused,
                    format!("a row of {table} has NULL for its primary key"),
                )
                .into());
            }
        }
        let session = self.session.take();
        let mut handle = self.connection().lock_handle().await.map_err(unavailable)?;
        let captured = session
            .as_ref()
            .map(|session| session.changeset(&mut handle))
            .transpose();
        if let Some(session) = session {
            session.end(&mut handle);
        }
        let internal =
            |problem: String| Failure::from(refusal(AbortCode::ParticipantFailure, problem));
        let changes = captured
            .map_err(|code| internal(format!("the changes can't be read: {code}")))?
            .unwrap_or_default();
        if changeset::violates_foreign_keys(&mut handle)
            .map_err(|code| internal(code.to_string()))?
        {
            return Err(refusal(AbortCode::Refused, "FOREIGN KEY constraint failed").into());
        }
        let summary = changeset::summary(&changes)
            .map_err(|code| internal(format!("the changes can't be read: {code}")))?;
        // Rows that swap unique values, say, can't be changed one after the other. Undoing and doing it all again proves that it works.
        if summary
            .updates
            .iter()
            .any(|(table, updates)| *updates > 1 && unique.contains(table))
        {
            for direction in [Direction::Backward, Direction::Forward] {
                changeset::apply(&mut handle, &changes, direction).map_err(|error| {
                    refusal(AbortCode::Refused, format!("the changes depend on an order that can't be had again after a crash: {error}"))
                })?;
            }
        }
        Ok(changes)
    }
}

/// What a vote of yes says here.
pub(super) fn yes() -> Vote {
    Vote::Yes {
        proof: MARKER_PROOF.into(),
    }
}

/// Why a branch couldn't be begun. Nothing is left of it.
enum BeginError {
    /// The marker's key or its request id is taken.
    MarkerTaken,
    /// Anything else.
    Failed(Refusal),
}

impl Inner {
    /// Waits for the writer, then takes the write lock at once: a transaction that began by reading could find it taken later.
    async fn begin(
        &self,
        branch: &BranchId,
        deadline: Instant,
        marker: Option<&str>,
    ) -> Result<LiteBranch, BeginError> {
        let locked = tokio::time::timeout_at(deadline, Arc::clone(&self.writer).lock_owned()).await;
        let busy = || {
            BeginError::Failed(refusal(
                AbortCode::Timeout,
                "the database's only writer was busy all the time",
            ))
        };
        let writer = locked.map_err(|_| busy())?;
        let mut opened = LiteBranch::new(writer, self.limit.clone());
        let begun = within(deadline, "begin", async {
            Ok(self.start(&mut opened, deadline).await)
        });
        if let Err(failed) = begun.await.unwrap_or_else(Err) {
            opened.rollback().await;
            return Err(BeginError::Failed(failed.refusal));
        }
        let Some(request_id) = marker else {
            return Ok(opened);
        };
        match opened.mark(branch, request_id).await {
            Ok(()) => Ok(opened),
            Err(error) => {
                opened.rollback().await;
                Err(if is_constraint(&error) {
                    BeginError::MarkerTaken
                } else {
                    BeginError::Failed(failure("marker", &error).refusal)
                })
            }
        }
    }

    async fn start(&self, opened: &mut LiteBranch, deadline: Instant) -> Result<(), Failure> {
        let failed = |error: sqlx::Error| failure("begin", &error);
        opened.writer().open().await.map_err(failed)?;
        self.limit.set(deadline);
        let wait = milliseconds(deadline.saturating_duration_since(Instant::now()));
        let begin = format!("PRAGMA busy_timeout = {wait}; BEGIN IMMEDIATE");
        sqlx::raw_sql(AssertSqlSafe(begin))
            .execute(opened.connection())
            .await
            .map_err(failed)?;
        let mut handle = opened.connection().lock_handle().await.map_err(failed)?;
        let before = changeset::total_changes(&mut handle);
        let started = Session::start(&mut handle);
        drop(handle);
        opened.changes_before = before;
        opened.session =
            Some(started.map_err(|code| {
                refusal(AbortCode::ParticipantFailure, format!("begin: {code}"))
            })?);
        Ok(())
    }

    /// A lease on a branch that is opened now. One that is known already is refused with what is known of it.
    pub(super) async fn open(
        &self,
        branch: &BranchId,
        deadline: Instant,
    ) -> Result<Lease<LiteBranch>, Refusal> {
        check(branch)?;
        match self.branches.standing(branch) {
            Standing::Absent => {}
            Standing::Open(lease) => {
                self.limit.set(deadline);
                return Ok(lease);
            }
            Standing::InUse(_) => return Err(lost(format!("branch {branch} is in use"))),
            Standing::Voted(Vote::No(refusal)) => return Err(refusal),
            Standing::Voted(_) => return Err(lost(format!("branch {branch} takes no more work"))),
        }
        match self.begin(branch, deadline, None).await {
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
            Standing::InUse(limit) => return Err(self.doom_in_use(branch, &limit)),
            Standing::Voted(Vote::No(refusal)) => return Err(refusal),
            Standing::Voted(_) => return Err(lost(format!("branch {branch} takes no more work"))),
        };
        self.limit.set(deadline);
        match self.run_one(&mut lease, operation, deadline).await {
            Ok(ran) => {
                self.limit.lift();
                lease.finish().map(|()| ran.result)
            }
            Err(failed) => Err(self.doom(lease, failed).await),
        }
    }

    async fn run_one(
        &self,
        lease: &mut Lease<LiteBranch>,
        operation: &v1::Operation,
        deadline: Instant,
    ) -> Result<Ran, Failure> {
        let statement = self.catalog.resolve(operation, Dialect::Sqlite)?;
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
            Standing::InUse(limit) => return Vote::No(self.doom_in_use(branch, &limit)),
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

    /// Opens the branch of a prepare. In one phase the marker goes first.
    async fn begin_prepare(
        &self,
        prepare: &Prepare,
        deadline: Instant,
    ) -> Result<Lease<LiteBranch>, Vote> {
        for operation in &prepare.operations {
            self.catalog
                .resolve(operation, Dialect::Sqlite)
                .map_err(Vote::No)?;
        }
        let branch = &prepare.branch;
        let marker = prepare.one_phase.then_some(prepare.request_id.as_str());
        match self.begin(branch, deadline, marker).await {
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
        mut lease: Lease<LiteBranch>,
        deadline: Instant,
    ) -> Vote {
        self.limit.set(deadline);
        for operation in &prepare.operations {
            let ran = match self.catalog.resolve(operation, Dialect::Sqlite) {
                Ok(statement) => lease.run(&statement, deadline, false).await,
                Err(refusal) => Err(refusal.into()),
            };
            if let Err(failed) = ran {
                return Vote::No(self.doom(lease, failed).await);
            }
        }
        self.limit.lift();
        if !prepare.one_phase {
            return self.vote(lease).await;
        }
        if prepare.continued
            && let Err(error) = lease.mark(&prepare.branch, &prepare.request_id).await
        {
            let failed = if is_constraint(&error) {
                lost("the marker is taken").into()
            } else {
                failure("marker", &error)
            };
            let refusal = self.doom(lease, failed).await;
            return if is_constraint(&error) {
                self.vote_by_marker(&prepare.branch, &prepare.request_id)
                    .await
            } else {
                Vote::No(refusal)
            };
        }
        self.commit_in_one_phase(lease).await
    }

    /// Prepares, unless nothing was changed: the changes go to the journal, and the transaction stays open.
    async fn vote(&self, mut lease: Lease<LiteBranch>) -> Vote {
        match lease.is_read_only().await {
            Ok(true) => {
                lease.end(Vote::ReadOnly).rollback().await;
                return Vote::ReadOnly;
            }
            Ok(false) => {}
            Err(failed) => return Vote::No(self.doom(lease, failed).await),
        }
        let branch = lease.branch().clone();
        match lease.mark(&branch, "").await {
            Ok(()) => {}
            Err(error) if is_constraint(&error) => {
                let refusal = lost(format!(
                    "branch {branch} has ended before: its marker is there"
                ));
                return Vote::No(self.doom(lease, refusal.into()).await);
            }
            Err(error) => return Vote::No(self.doom(lease, failure("marker", &error)).await),
        }
        let changeset = match lease.capture().await {
            Ok(changeset) => changeset,
            Err(failed) => return Vote::No(self.doom(lease, failed).await),
        };
        let (journal, record) = (Arc::clone(&self.journal), Record { branch, changeset });
        let written =
            tokio::task::spawn_blocking(move || journal.write(&record).map(|()| record)).await;
        match written.map_err(std::io::Error::other).flatten() {
            Ok(record) => {
                lease.promise = Some(Promise {
                    record,
                    state: PromiseState::Kept,
                });
                lease.prepared(yes(), true);
                yes()
            }
            Err(error) => {
                tracing::error!(%error, "the prepare journal can't be written; nothing can be prepared until the agent is restarted");
                // What is in the file isn't known. If it is whole after a restart, the branch is reported in doubt, and its abort presumed.
                let refusal = refusal(
                    AbortCode::ParticipantFailure,
                    format!("the prepare journal: {error}"),
                );
                Vote::No(self.doom(lease, refusal.into()).await)
            }
        }
    }

    /// Rolls back an open branch.
    pub(super) async fn doom(&self, lease: Lease<LiteBranch>, failed: Failure) -> Refusal {
        let connection = lease.end(Vote::No(failed.refusal.clone()));
        // A statement that nobody waits for any more is interrupted first.
        if failed.broken {
            self.limit.interrupt();
        }
        connection.rollback().await;
        failed.refusal
    }

    /// Ends a branch that a service holds just now: its statements are interrupted, and it is rolled back when the service lets go.
    pub(super) fn doom_in_use(&self, branch: &BranchId, limit: &Limit) -> Refusal {
        let refusal = lost(format!(
            "branch {branch} was still in use, and is rolled back"
        ));
        self.branches.ended(branch, Vote::No(refusal.clone()));
        limit.interrupt();
        refusal
    }
}
