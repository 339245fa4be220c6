//! An open branch on SQLite: begin, run, prepare, and the end of a branch that failed.

use std::sync::Arc;

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Executor, SqlSafeStr, SqliteConnection, Statement as _};
use tokio::{
    sync::OwnedMutexGuard,
    time::{Instant, timeout_at},
};
use unanimity_proto::v1::AbortCode;

use crate::{
    operation::{Dialect, Statement},
    participant::{BranchId, Refusal},
    resource::{
        Failure, MARKER_COMMITTED, MARKER_PROOF,
        branches::{BranchConnection, lost},
        flow::{BeginError, BranchRules, MarkError, Prepared},
        milliseconds, refusal,
        statement::{Ran, check_count, collect},
        within,
    },
};

use super::{
    SqliteFile,
    changeset::{self, Direction, Session},
    journal::Record,
    values::{bind, failure, is_constraint, read_value},
    writer::{Limit, Writer},
};

/// The writer, inside a transaction. Dropped without [`Self::release`], the transaction is rolled back in a task of its own, which keeps the
/// writer until that is done.
pub(crate) struct LiteBranch {
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

    fn release(self) {
        drop(self.into_writer());
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
        limit.unguard();
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

    /// Commits, or rolls back. After an error the connection is closed, and before anybody else gets the writer, what became of the branch is to
    /// be found out.
    pub(super) async fn end(&mut self, command: &'static str) -> Result<(), sqlx::Error> {
        let (session, limit) = (self.session.take(), self.limit.clone());
        end(self.writer(), session, &limit, command).await
    }

    /// What was promised.
    pub(super) fn take_promise(&mut self) -> Option<Promise> {
        self.promise.take()
    }

    /// The writer, where no transaction is open on it.
    pub(super) fn into_writer(mut self) -> OwnedMutexGuard<Writer> {
        self.writer
            .take()
            .expect("only what ends the branch takes the writer, and it consumes the branch")
    }

    /// Rolls back. A connection on which that fails is closed, which rolls back too.
    async fn roll_back(&mut self) {
        let _ = self.end("ROLLBACK").await;
    }

    /// Rolls back, and lets the next one have the writer.
    pub(super) async fn rollback(mut self) {
        self.roll_back().await;
        self.release();
    }

    /// Writes the marker row.
    async fn mark(&mut self, branch: &BranchId, request_id: &str) -> Result<(), MarkError> {
        let marked = sqlx::query("INSERT INTO unanimity_marker (transaction_id, branch, request_id, outcome) VALUES (?, ?, ?, ?)")
            .bind(branch.transaction.clone())
            .bind(branch.number)
            .bind(Some(request_id.to_owned()).filter(|id| !id.is_empty()))
            .bind(MARKER_COMMITTED)
            .execute(self.connection())
            .await;
        match marked {
            Ok(_) => Ok(()),
            Err(error) if is_constraint(&error) => Err(MarkError::Taken),
            Err(error) => Err(MarkError::Failed(failure("marker", &error))),
        }
    }

    /// SQLite ends a transaction by itself after some failures, whatever a service thinks of it.
    async fn check_open(&mut self) -> Result<(), Failure> {
        let handle = self.connection().lock_handle().await;
        let mut handle = handle.map_err(|error| failure("marker", &error))?;
        if changeset::in_transaction(&mut handle) {
            Ok(())
        } else {
            Err(ended_under_way())
        }
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
            (false, _, _) => Err(ended_under_way()),
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
        let (null_keys, ordered, loose) = (
            shape.null_keys.clone(),
            shape.ordered.clone(),
            shape.loose.clone(),
        );
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
        let counts = changeset::count(&changes)
            .map_err(|code| internal(format!("the changes can't be read: {code}")))?;
        let is_doubtful = |(table, changes): (&String, &i64)| {
            loose.contains(table) || (*changes > 1 && ordered.contains(table))
        };
        if !counts.iter().any(is_doubtful) {
            return Ok(changes);
        }
        // Undoing and doing it all again proves that it works.
        for direction in [Direction::Backward, Direction::Forward] {
            changeset::apply(&mut handle, &changes, direction).map_err(|error| {
                refusal(
                    AbortCode::Refused,
                    format!("the changes can't be made again after a crash: {error}"),
                )
            })?;
        }
        Ok(changes)
    }
}

fn ended_under_way() -> Failure {
    let message = "the transaction was ended under way";
    refusal(AbortCode::ParticipantFailure, message).into()
}

impl BranchRules for SqliteFile {
    const DIALECT: Dialect = Dialect::Sqlite;
    type Branch = LiteBranch;

    /// Waits for the writer, then takes the write lock at once: a transaction that began by reading could find it taken later.
    async fn begin(
        &self,
        branch: &BranchId,
        _work: &[Statement],
        marker: Option<&str>,
        deadline: Instant,
    ) -> Result<LiteBranch, BeginError> {
        let locked = timeout_at(deadline, Arc::clone(&self.writer).lock_owned()).await;
        let writer = locked.map_err(|_| {
            let message = "the database's only writer was busy all the time";
            BeginError::Failed(refusal(AbortCode::Timeout, message))
        })?;
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
                Err(match error {
                    MarkError::Taken => BeginError::MarkerTaken,
                    MarkError::Failed(failed) => BeginError::Failed(failed.refusal),
                })
            }
        }
    }

    async fn limit(&self, _opened: &mut LiteBranch, deadline: Instant) -> Result<(), Failure> {
        self.limit.set(deadline);
        Ok(())
    }

    async fn run(
        &self,
        opened: &mut LiteBranch,
        statement: &Statement,
        keep: bool,
    ) -> Result<Ran, Failure> {
        let what = format!("operation {}", statement.label);
        let connection = opened.connection();
        let sql = AssertSqlSafe(statement.sql.clone()).into_sql_str();
        // SQLite takes a value that is missing for NULL.
        let prepared = connection
            .prepare(sql.clone())
            .await
            .map_err(|error| failure(&what, &error))?;
        check_count(statement, prepared.parameters())?;
        let query = sqlx::query_with(sql, bind(statement)?).persistent(statement.persistent);
        let answers = connection
            .fetch_many(query)
            .map_ok(|answer| answer.map_left(|done| done.rows_affected()))
            .map_err(|error| failure(&what, &error));
        collect(statement, Self::DIALECT, keep, answers, read_value).await
    }

    /// From here on nothing is interrupted.
    async fn end_read_only(
        &self,
        opened: &mut LiteBranch,
        _deadline: Instant,
    ) -> Result<bool, Failure> {
        self.limit.lift();
        self.limit.unguard();
        let read_only = opened.is_read_only().await?;
        if read_only {
            opened.roll_back().await;
        }
        Ok(read_only)
    }

    /// The changes go to the journal, and the transaction stays open.
    async fn prepare(
        &self,
        opened: &mut LiteBranch,
        branch: &BranchId,
        _deadline: Instant,
    ) -> Result<Prepared, Failure> {
        match opened.mark(branch, "").await {
            Ok(()) => {}
            Err(MarkError::Taken) => {
                return Err(lost(format!(
                    "branch {branch} has ended before: its marker is there"
                ))
                .into());
            }
            Err(MarkError::Failed(failed)) => return Err(failed),
        }
        let record = Record {
            branch: branch.clone(),
            changeset: opened.capture().await?,
        };
        let journal = Arc::clone(&self.journal);
        let written =
            tokio::task::spawn_blocking(move || journal.write(&record).map(|()| record)).await;
        let record = written.map_err(std::io::Error::other).flatten().map_err(|error| {
            tracing::error!(%error, "the prepare journal can't be written; nothing can be prepared until the agent is restarted");
            // What is in the file isn't known. If it is whole after a restart, the branch is reported in doubt, and its abort presumed.
            let message = format!("the prepare journal: {error}");
            refusal(AbortCode::ParticipantFailure, message)
        })?;
        opened.promise = Some(Promise {
            record,
            state: PromiseState::Kept,
        });
        Ok(Prepared {
            proof: MARKER_PROOF.into(),
            bound: true,
        })
    }

    /// From here on nothing is interrupted.
    async fn mark(
        &self,
        opened: &mut LiteBranch,
        branch: &BranchId,
        request_id: &str,
        _deadline: Instant,
    ) -> Result<(), MarkError> {
        self.limit.lift();
        self.limit.unguard();
        opened.check_open().await.map_err(MarkError::Failed)?;
        opened.mark(branch, request_id).await
    }

    /// However long it takes: a COMMIT can't be left half-way.
    async fn commit(
        &self,
        opened: &mut LiteBranch,
        _branch: &BranchId,
        _deadline: Instant,
    ) -> Result<(), Refusal> {
        let committed = opened.end("COMMIT").await;
        committed.map_err(|error| failure("commit", &error).refusal)
    }

    /// A statement that nobody waits for any more is interrupted first.
    async fn undo(&self, opened: LiteBranch, broken: bool) {
        if broken {
            self.limit.interrupt();
        }
        opened.rollback().await;
    }

    /// It is rolled back when the service lets go.
    async fn stop(&self, limit: Limit) {
        limit.interrupt();
    }
}

impl SqliteFile {
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
        self.limit.guard();
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
}
