//! An open branch on SQLite: begin, run, prepare, and the end of a branch that failed.

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Either, Executor, Row, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{sync::OwnedMutexGuard, time::Instant};
use unanimity_proto::v1::{self, AbortCode};

use crate::{
    operation::{Dialect, Statement, counts_changes},
    participant::{BranchId, Prepare, Refusal, Vote},
    resource::{
        CONTROL_TIMEOUT, Failure, MARKER_COMMITTED, MARKER_PROOF, MARKER_TABLE, Ran,
        branches::{BranchConnection, Lease, Standing, lost},
        identifier::check,
        milliseconds, push_row, refusal, within,
    },
};

use super::{
    Inner,
    changeset::{Recorder, ReplayError, replay},
    journal::{Journal, Record},
    values::{bind, columns, failure, is_taken, read},
};

/// How many of SQLite's steps go between two looks at the clock.
const STEPS_BETWEEN_CHECKS: i32 = 1_000;

/// What the hooks inside the writing connection ask.
struct Control {
    began: std::time::Instant,
    tickets: AtomicU64,
    /// The ticket of the branch on the connection; nought where there is none.
    current: AtomicU64,
    /// The ticket of the branch that must not go on.
    stopped: AtomicU64,
    /// When the current branch's time is over, in milliseconds from the beginning.
    deadline: AtomicU64,
    /// The agent itself is writing or committing. Anybody else's COMMIT becomes a ROLLBACK.
    may_commit: AtomicBool,
    /// The transaction was rolled back under the agent's feet.
    rolled_back: AtomicBool,
}

impl Control {
    fn may_go_on(&self) -> bool {
        let current = self.current.load(SeqCst);
        current == 0
            || (self.stopped.load(SeqCst) != current && self.began.elapsed().as_millis() < u128::from(self.deadline.load(SeqCst)))
    }

    fn limit(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        self.deadline.store(u64::try_from((self.began.elapsed() + left).as_millis()).unwrap_or(u64::MAX), SeqCst);
    }
}

/// Stops the work on a branch from elsewhere.
#[derive(Clone)]
pub(super) struct Stop {
    control: Arc<Control>,
    ticket: u64,
}

impl Stop {
    pub(super) fn stop(&self) {
        self.control.stopped.store(self.ticket, SeqCst);
    }
}

/// The only writing connection, opened where it is needed.
pub(super) struct Writer {
    connection: Option<SqliteConnection>,
    options: SqliteConnectOptions,
    control: Arc<Control>,
    /// The schema that the connection's guards against NULL in keys were made for.
    guarded: Option<i64>,
    pub(super) journal: Arc<Journal>,
    /// Unlocked when everything else is gone.
    _lock: File,
}

impl Writer {
    pub(super) fn new(options: SqliteConnectOptions, journal: Arc<Journal>, lock: File) -> Self {
        let control = Control {
            began: std::time::Instant::now(),
            tickets: AtomicU64::new(0),
            current: AtomicU64::new(0),
            stopped: AtomicU64::new(0),
            deadline: AtomicU64::new(u64::MAX),
            may_commit: AtomicBool::new(false),
            rolled_back: AtomicBool::new(false),
        };
        Self { connection: None, options, control: Arc::new(control), guarded: None, journal, _lock: lock }
    }

    pub(super) async fn connect(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        if self.connection.is_none() {
            let mut opened = self.options.connect().await?;
            let mut handle = opened.lock_handle().await?;
            let (progress, commit, rollback) = (Arc::clone(&self.control), Arc::clone(&self.control), Arc::clone(&self.control));
            handle.set_progress_handler(STEPS_BETWEEN_CHECKS, move || progress.may_go_on());
            handle.set_commit_hook(move || commit.may_commit.load(SeqCst));
            handle.set_rollback_hook(move || rollback.rolled_back.store(true, SeqCst));
            drop(handle);
            self.guarded = None;
            self.connection = Some(opened);
        }
        self.connection.as_mut().ok_or(sqlx::Error::WorkerCrashed)
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Closes the connection, and with it rolls back whatever was open.
    pub(super) async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            let _ = tokio::time::timeout(CONTROL_TIMEOUT, connection.close()).await;
        }
    }

    /// The connection, for a transaction of the agent's own.
    pub(super) async fn begin_own(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        self.control.current.store(0, SeqCst);
        self.control.may_commit.store(true, SeqCst);
        self.connect().await
    }

    pub(super) fn end_own(&self) {
        self.control.may_commit.store(false, SeqCst);
    }

    /// Begins a transaction that holds the right to write, and a savepoint for what a branch does. Answers the schema's version.
    pub(super) async fn begin(&mut self, limit: Duration) -> Result<i64, sqlx::Error> {
        let script = format!(
            "PRAGMA busy_timeout = {}; BEGIN IMMEDIATE; SAVEPOINT unanimity; PRAGMA main.schema_version",
            milliseconds(limit)
        );
        let control = Arc::clone(&self.control);
        loop {
            let guarded = self.guarded;
            let connection = self.connect().await?;
            let rows = sqlx::raw_sql(AssertSqlSafe(script.clone())).fetch_all(&mut *connection).await?;
            let schema: i64 = rows.last().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
            if guarded == Some(schema) {
                control.rolled_back.store(false, SeqCst);
                return Ok(schema);
            }
            sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
            control.may_commit.store(true, SeqCst);
            let made = guard_keys(connection).await;
            control.may_commit.store(false, SeqCst);
            made?;
            self.guarded = Some(schema);
        }
    }

    /// Commits. Whoever calls this has made sure that it may.
    pub(super) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        let connection = self.begin_own().await?;
        let committed = sqlx::raw_sql("COMMIT").execute(connection).await;
        self.end_own();
        committed.map(drop)
    }

    /// Rolls back; a connection that refuses to is closed.
    pub(super) async fn rollback(&mut self) {
        self.control.current.store(0, SeqCst);
        let Some(connection) = self.connection.as_mut() else { return };
        let rollback = sqlx::raw_sql("ROLLBACK").execute(connection);
        if !matches!(tokio::time::timeout(CONTROL_TIMEOUT, rollback).await, Ok(Ok(_))) {
            self.close().await;
        }
    }
}

/// The session extension passes over rows whose primary key holds NULL, which SQLite allows in most tables: it would lose them in a crash.
/// Triggers of this connection alone refuse to touch such rows.
async fn guard_keys(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let old: Vec<String> =
        sqlx::query_scalar("SELECT name FROM temp.sqlite_schema WHERE type = 'trigger' AND name LIKE 'unanimity\\_null\\_%' ESCAPE '\\'")
            .persistent(false)
            .fetch_all(&mut *connection)
            .await?;
    let keys = sqlx::query(
        "SELECT t.name, k.name FROM main.sqlite_schema t, pragma_table_info(t.name, 'main') k \
         WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND t.sql NOT LIKE 'CREATE VIRTUAL%' \
         AND k.pk > 0 AND NOT k.\"notnull\" ORDER BY t.name, k.pk",
    )
    .persistent(false)
    .fetch_all(&mut *connection)
    .await?;
    let mut tables: Vec<(String, Vec<String>)> = Vec::new();
    for row in keys {
        let (table, column): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        match tables.last_mut() {
            Some((last, columns)) if *last == table => columns.push(column),
            _ => tables.push((table, vec![column])),
        }
    }
    let mut script: String = old.iter().map(|name| format!("DROP TRIGGER temp.{}; ", quoted(name))).collect();
    for (index, (table, columns)) in tables.iter().enumerate() {
        let null = |row: &str| columns.iter().map(|column| format!("{row}.{} IS NULL", quoted(column))).collect::<Vec<_>>().join(" OR ");
        let (old, new) = (null("OLD"), null("NEW"));
        for (event, condition) in [("INSERT", new.clone()), ("DELETE", old.clone()), ("UPDATE", format!("{old} OR {new}"))] {
            script += &format!(
                "CREATE TEMP TRIGGER unanimity_null_{index}_{event} AFTER {event} ON main.{} WHEN {condition} \
                 BEGIN SELECT RAISE(ABORT, 'a row whose primary key holds NULL can''t be part of a branch'); END; ",
                quoted(table)
            );
        }
    }
    sqlx::raw_sql(AssertSqlSafe(script)).execute(connection).await.map(drop)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The writer inside a transaction. Dropped without [`Self::undo`] or [`Self::release`] it is rolled back behind the caller's back.
pub(super) struct SqliteBranch {
    writer: Option<OwnedMutexGuard<Writer>>,
    recorder: Option<Recorder>,
    schema: i64,
    stop: Stop,
    /// The branch was prepared before a crash, and its changes don't fit any more: what is in the way. No transaction is open.
    pub(super) conflict: Option<String>,
}

impl BranchConnection for SqliteBranch {
    type Interrupt = Stop;

    fn interrupt(&self) -> Stop {
        self.stop.clone()
    }
}

impl Drop for SqliteBranch {
    fn drop(&mut self) {
        let Some(mut writer) = self.writer.take() else { return };
        let recorder = self.recorder.take();
        self.stop.stop();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(undo(writer, recorder));
            }
            // The driver closes it in its own time; the next to begin waits for that.
            Err(_) => writer.connection = None,
        }
    }
}

async fn undo(mut writer: OwnedMutexGuard<Writer>, recorder: Option<Recorder>) {
    if let Some(connection) = writer.connection.as_mut() {
        match recorder {
            Some(recorder) => recorder.stop(connection).await,
            // A statement that was given up may be running still: it has been told to stop, and holds the lock until it does.
            None => drop(connection.lock_handle().await),
        }
    }
    writer.rollback().await;
}

impl SqliteBranch {
    pub(super) fn new(writer: OwnedMutexGuard<Writer>) -> Self {
        let control = Arc::clone(&writer.control);
        let ticket = control.tickets.fetch_add(1, SeqCst) + 1;
        control.deadline.store(u64::MAX, SeqCst);
        control.may_commit.store(false, SeqCst);
        control.current.store(ticket, SeqCst);
        Self { writer: Some(writer), recorder: None, schema: 0, stop: Stop { control, ticket }, conflict: None }
    }

    pub(super) fn writer(&mut self) -> &mut Writer {
        self.writer.as_mut().expect("only undo and release take the writer, and they consume the branch")
    }

    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        self.writer().connection.as_mut().expect("an open branch has a connection: it begins with one, and only its end closes it")
    }

    pub(super) fn without_limit(&self) {
        self.stop.control.deadline.store(u64::MAX, SeqCst);
    }

    /// Rolls back.
    pub(super) async fn undo(mut self) {
        if let Some(writer) = self.writer.take() {
            undo(writer, self.recorder.take()).await;
        }
    }

    /// Lets the next one in: nothing is open any more.
    pub(super) fn release(mut self) {
        if let Some(writer) = self.writer.take() {
            writer.control.current.store(0, SeqCst);
        }
    }

    async fn start(&mut self, deadline: Instant, record: bool) -> Result<(), Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.schema = self.writer().begin(left).await.map_err(|error| failure("begin", &error))?;
        if record {
            self.recorder = Some(Recorder::start(self.connection()).await.map_err(recording)?);
        }
        Ok(())
    }

    /// Runs one statement. Rows are kept where `keep`.
    async fn run(&mut self, statement: &Statement, deadline: Instant, keep: bool) -> Result<Ran, Failure> {
        let what = format!("operation {}", statement.label);
        if Instant::now() >= deadline {
            return Err(refusal(AbortCode::Timeout, format!("{what}: no time was left")).into());
        }
        self.stop.control.limit(deadline);
        let ran = within(deadline, &what, self.fetch(statement, keep, &what)).await?;
        statement.check_rows(ran.rows())?;
        Ok(ran)
    }

    async fn fetch(&mut self, statement: &Statement, keep: bool, what: &str) -> Result<Ran, Failure> {
        let query = sqlx::query_with(AssertSqlSafe(statement.sql.clone()), bind(statement)?).persistent(statement.persistent);
        let counts = counts_changes(&statement.sql, Dialect::Sqlite);
        let (mut ran, mut bytes) = (Ran::default(), 0);
        let mut stream = self.connection().fetch_many(query);
        while let Some(item) = stream.try_next().await.map_err(|error| failure(what, &error))? {
            match item {
                Either::Left(done) if counts => ran.result.affected_rows += done.rows_affected(),
                Either::Left(_) => {}
                Either::Right(row) => {
                    ran.returned += 1;
                    if keep {
                        if ran.returned == 1 {
                            ran.result.columns = columns(&row);
                        }
                        push_row(&mut ran.result, &mut bytes, read(&row, &statement.label)?, &statement.label)?;
                    }
                }
            }
        }
        Ok(ran)
    }

    /// Whether the transaction is the one that was begun, and holds only what can be journalled.
    async fn check_whole(&mut self) -> Result<(), Failure> {
        let query = "SELECT (SELECT schema_version FROM pragma_schema_version), \
             (SELECT count(*) FROM pragma_database_list WHERE name NOT IN ('main', 'temp'))";
        let row = sqlx::query(query).fetch_one(self.connection()).await.map_err(|error| failure("check", &error))?;
        let read = |error: sqlx::Error| failure("check", &error);
        let (schema, attached): (i64, i64) = (row.try_get(0).map_err(read)?, row.try_get(1).map_err(read)?);
        if self.stop.control.rolled_back.load(SeqCst) {
            return Err(lost("the transaction was ended by somebody else than the agent").into());
        }
        if schema != self.schema {
            return Err(refusal(AbortCode::InvalidOperation, "the schema was changed, which has no place in a branch").into());
        }
        if attached != 0 {
            return Err(refusal(AbortCode::InvalidOperation, "another database was attached, which has no place in a branch").into());
        }
        Ok(())
    }

    async fn changes(&mut self) -> Result<Vec<u8>, Failure> {
        let mut recorder = self.recorder.take().ok_or_else(|| recording("nothing was recorded".into()))?;
        let changes = recorder.changeset(self.connection()).await;
        self.recorder = Some(recorder);
        changes.map_err(recording)
    }

    /// Prepares: `false` where nothing was changed.
    async fn make_durable(&mut self, branch: &BranchId, deadline: Instant) -> Result<bool, Failure> {
        self.stop.control.limit(deadline);
        self.check_whole().await?;
        if self.changes().await?.is_empty() {
            return Ok(false);
        }
        self.insert_marker(branch, "").await.map_err(|error| match is_taken(&error) {
            true => lost(format!("branch {branch} was settled before")).into(),
            false => failure("marker", &error),
        })?;
        let changes = self.changes().await?;
        if let Some(recorder) = self.recorder.take() {
            recorder.stop(self.connection()).await;
        }
        // What is voted on is what a crash would bring back: a recording that can't be applied is found out here.
        sqlx::raw_sql("ROLLBACK TO unanimity").execute(self.connection()).await.map_err(|error| failure("prepare", &error))?;
        replay(self.connection(), &changes).await.map_err(|error| match error {
            ReplayError::Conflict(conflict) => refusal(AbortCode::Refused, format!("the branch can't be prepared: {conflict}")),
            ReplayError::Failed(problem) => refusal(AbortCode::ParticipantFailure, format!("the branch can't be prepared: {problem}")),
        })?;
        if Instant::now() >= deadline {
            return Err(refusal(AbortCode::Timeout, "no time was left to prepare").into());
        }
        let journal = Arc::clone(&self.writer().journal);
        if let Err(error) = journal.write(Record { branch: branch.clone(), changes }).await {
            journal.clear();
            return Err(refusal(AbortCode::ParticipantUnavailable, format!("the prepare journal can't be written: {error}")).into());
        }
        Ok(true)
    }

    pub(super) async fn insert_marker(&mut self, branch: &BranchId, request_id: &str) -> Result<(), sqlx::Error> {
        sqlx::query("INSERT INTO main.unanimity_marker (transaction_id, branch, request_id, outcome) VALUES (?, ?, ?, ?)")
            .bind(branch.transaction.clone())
            .bind(i64::from(branch.number))
            .bind(Some(request_id.to_owned()).filter(|id| !id.is_empty()))
            .bind(MARKER_COMMITTED)
            .execute(self.connection())
            .await
            .map(drop)
    }
}

fn recording(problem: String) -> Failure {
    refusal(AbortCode::ParticipantFailure, format!("the changes can't be recorded: {problem}")).into()
}

impl Inner {
    /// Waits for the only writer, and begins.
    async fn begin(&self, deadline: Instant, record: bool) -> Result<SqliteBranch, Refusal> {
        let slot = Arc::clone(&self.writer).lock_owned();
        let writer = tokio::time::timeout_at(deadline, slot).await.map_err(|_| {
            refusal(AbortCode::Timeout, "another branch holds this database's only writer, and did not end in time")
        })?;
        let mut branch = SqliteBranch::new(writer);
        match within(deadline, "begin", branch.start(deadline, record)).await {
            Ok(()) => Ok(branch),
            Err(failed) => {
                branch.writer().close().await;
                branch.release();
                Err(failed.refusal)
            }
        }
    }

    /// A lease on a branch that is opened now. One that is known already is refused with what is known of it.
    pub(super) async fn open(&self, branch: &BranchId, deadline: Instant) -> Result<Lease<SqliteBranch>, Refusal> {
        check(branch)?;
        match self.branches.standing(branch) {
            Standing::Absent => {}
            Standing::Open(lease) => return Ok(lease),
            Standing::InUse(_) => return Err(lost(format!("branch {branch} is in use"))),
            Standing::Voted(Vote::No(refusal)) => return Err(refusal),
            Standing::Voted(_) => return Err(lost(format!("branch {branch} takes no more work"))),
        }
        let connection = self.begin(deadline, true).await?;
        Ok(self.branches.begin(branch, connection))
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
        let deadline = Instant::now() + timeout;
        let _call = self.branches.call(branch).await;
        let mut lease = match self.branches.standing(branch) {
            Standing::Absent if open => self.open(branch, deadline).await?,
            Standing::Absent => return Err(lost(format!("branch {branch} is not open here"))),
            Standing::Open(lease) if open => {
                return Err(self.doom(lease, lost(format!("branch {branch} was open already")).into()).await);
            }
            Standing::Open(lease) => lease,
            Standing::InUse(stop) => return Err(self.doom_in_use(branch, &stop)),
            Standing::Voted(Vote::No(refusal)) => return Err(refusal),
            Standing::Voted(_) => return Err(lost(format!("branch {branch} takes no more work"))),
        };
        let ran = match self.catalog.resolve(operation, Dialect::Sqlite) {
            Ok(statement) => lease.run(&statement, deadline, true).await,
            Err(refusal) => Err(refusal.into()),
        };
        match ran {
            Ok(ran) => lease.finish().map(|()| ran.result),
            Err(failed) => Err(self.doom(lease, failed).await),
        }
    }

    /// See [`crate::participant::Participant::prepare`].
    pub(super) async fn prepare(&self, prepare: &Prepare) -> Vote {
        let branch = &prepare.branch;
        if let Err(refusal) = check(branch) {
            return Vote::No(refusal);
        }
        let deadline = Instant::now() + prepare.timeout;
        let _call = self.branches.call(branch).await;
        let lease = match self.branches.standing(branch) {
            Standing::Voted(vote) => return vote,
            Standing::InUse(stop) => return Vote::No(self.doom_in_use(branch, &stop)),
            Standing::Open(lease) if prepare.continued => lease,
            Standing::Open(lease) => {
                return Vote::No(self.doom(lease, lost(format!("branch {branch} was open already")).into()).await);
            }
            Standing::Absent if prepare.continued => return Vote::No(lost(format!("branch {branch} is not open here"))),
            Standing::Absent => match self.begin_prepare(prepare, deadline).await {
                Ok(lease) => lease,
                Err(vote) => return vote,
            },
        };
        self.run_and_vote(prepare, lease, deadline).await
    }

    /// Opens the branch of a prepare. In one phase nothing needs to be recorded, and the marker goes first: what was done before isn't
    /// done again.
    async fn begin_prepare(&self, prepare: &Prepare, deadline: Instant) -> Result<Lease<SqliteBranch>, Vote> {
        for operation in &prepare.operations {
            self.catalog.resolve(operation, Dialect::Sqlite).map_err(Vote::No)?;
        }
        let connection = self.begin(deadline, !prepare.one_phase).await.map_err(Vote::No)?;
        let lease = self.branches.begin(&prepare.branch, connection);
        if prepare.one_phase { self.mark(prepare, lease).await } else { Ok(lease) }
    }

    /// Writes the marker of a branch that commits in one phase.
    async fn mark(&self, prepare: &Prepare, mut lease: Lease<SqliteBranch>) -> Result<Lease<SqliteBranch>, Vote> {
        match lease.insert_marker(&prepare.branch, &prepare.request_id).await {
            Ok(()) => Ok(lease),
            Err(error) if is_taken(&error) => {
                self.doom(lease, lost("the marker is taken").into()).await;
                Err(self.vote_by_marker(&prepare.branch, &prepare.request_id).await)
            }
            Err(error) => Err(Vote::No(self.doom(lease, failure("marker", &error)).await)),
        }
    }

    async fn run_and_vote(&self, prepare: &Prepare, mut lease: Lease<SqliteBranch>, deadline: Instant) -> Vote {
        for operation in &prepare.operations {
            let ran = match self.catalog.resolve(operation, Dialect::Sqlite) {
                Ok(statement) => lease.run(&statement, deadline, false).await.map(drop),
                Err(refusal) => Err(refusal.into()),
            };
            if let Err(failed) = ran {
                return Vote::No(self.doom(lease, failed).await);
            }
        }
        if !prepare.one_phase {
            return self.vote(lease, deadline).await;
        }
        if let Err(failed) = lease.check_whole().await {
            return Vote::No(self.doom(lease, failed).await);
        }
        if prepare.continued {
            lease = match self.mark(prepare, lease).await {
                Ok(lease) => lease,
                Err(vote) => return vote,
            };
        }
        self.commit_in_one_phase(lease).await
    }

    /// Prepares, unless nothing was changed.
    async fn vote(&self, mut lease: Lease<SqliteBranch>, deadline: Instant) -> Vote {
        let branch = lease.branch().clone();
        match lease.make_durable(&branch, deadline).await {
            Ok(true) => {
                let vote = yes();
                lease.without_limit();
                lease.prepared(vote.clone(), true);
                vote
            }
            Ok(false) => {
                lease.end(Vote::ReadOnly).undo().await;
                Vote::ReadOnly
            }
            Err(failed) => Vote::No(self.doom(lease, failed).await),
        }
    }

    /// Rolls back an open branch.
    pub(super) async fn doom(&self, lease: Lease<SqliteBranch>, failed: Failure) -> Refusal {
        let connection = lease.end(Vote::No(failed.refusal.clone()));
        connection.stop.stop();
        connection.undo().await;
        failed.refusal
    }

    /// Ends a branch that a service holds just now. What it still runs is interrupted; it rolls back when the service lets go, and can't
    /// commit until then.
    fn doom_in_use(&self, branch: &BranchId, stop: &Stop) -> Refusal {
        let refusal = lost(format!("branch {branch} was still in use, and is rolled back"));
        stop.stop();
        self.branches.ended(branch, Vote::No(refusal.clone()));
        refusal
    }
}

/// The vote of a prepared branch.
pub(super) fn yes() -> Vote {
    Vote::Yes { proof: MARKER_PROOF.into(), marker: true }
}

/// The statement that reads a branch's marker row.
pub(super) async fn read_marker(connection: &mut SqliteConnection, branch: &BranchId) -> Result<Option<i32>, sqlx::Error> {
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT outcome FROM main.{MARKER_TABLE} WHERE transaction_id = ? AND branch = ?")))
        .bind(branch.transaction.clone())
        .bind(i64::from(branch.number))
        .fetch_optional(connection)
        .await
}
