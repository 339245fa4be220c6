//! An open branch on MySQL or MariaDB: begin, run, prepare, and the end of a branch that failed.

use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Executor, MySql, MySqlConnection, Row, SqlSafeStr,
    Statement as _, mysql::MySqlRow, pool::PoolConnection,
};
use tokio::time::Instant;
use unanimity_proto::v1::{self, AbortCode};

use crate::{
    operation::{Dialect, Statement, changes_rows, first_keyword},
    participant::{BranchId, Prepare, Refusal, Vote},
    resource::{
        CONTROL_TIMEOUT, Failure, MARKER_COMMITTED, MARKER_PROOF, MARKER_TABLE,
        branches::{BranchConnection, Lease, Standing, lost},
        deadline_after,
        identifier::{check, hex},
        refusal,
        statement::{Ran, check_count, collect},
        within,
    },
};

use super::{
    Inner,
    preflight::{Flavour, text},
    values::{bind, failure, is_dead, number, read_value},
};

/// Marks our ids among all that XA RECOVER lists.
pub(super) const FORMAT_ID: i64 = 0x554E;

/// Rows written by this session so far. Exact and its own, unlike `innodb_trx`, which is a copy up to 100 ms old: a write that is missed
/// here would be committed outside the transaction.
const WRITES: &str = "SHOW SESSION STATUS WHERE Variable_name IN ('Handler_write', 'Handler_update', 'Handler_delete')";

/// An XA id, in hex: ids take no parameters.
pub(super) fn xid(branch: &BranchId) -> String {
    format!(
        "X'{}',X'{}',{FORMAT_ID}",
        hex(branch.transaction.as_bytes()),
        hex(branch.number.to_string().as_bytes())
    )
}

/// How the branch was begun.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// `XA START`.
    Xa,
    /// `BEGIN`: one phase, known from the start.
    Local,
}

/// A pooled connection inside a branch. Dropped without [`Self::release`] it closes, and the server rolls back, or keeps what is prepared:
/// sqlx knows nothing of the branch, and would hand the connection to the next borrower as it is.
pub(super) struct MyBranch {
    connection: Option<PoolConnection<MySql>>,
    id: u64,
    mode: Mode,
    xid: String,
    /// The lock waits in force, in seconds.
    limit: u64,
    /// A statement is known to have changed rows.
    wrote: bool,
    /// What [`WRITES`] came to at the beginning, where the branch may turn out to have changed nothing.
    writes: Option<u64>,
}

impl BranchConnection for MyBranch {
    type Interrupt = u64;

    fn interrupt(&self) -> u64 {
        self.id
    }
}

impl Drop for MyBranch {
    fn drop(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            connection.close_on_drop();
        }
    }
}

impl MyBranch {
    pub(super) fn new(connection: PoolConnection<MySql>) -> Self {
        Self {
            connection: Some(connection),
            id: 0,
            mode: Mode::Local,
            xid: String::new(),
            limit: 0,
            wrote: false,
            writes: None,
        }
    }

    pub(super) fn connection(&mut self) -> &mut MySqlConnection {
        self.connection
            .as_mut()
            .expect("only release takes the connection, and it consumes the guard")
    }

    /// Back to the pool: the branch is over, or prepared and detached, and the connection idle.
    pub(super) fn release(mut self) {
        self.connection = None;
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Runs statements of our own.
    async fn script(
        &mut self,
        what: &str,
        script: String,
        deadline: Instant,
    ) -> Result<Vec<MySqlRow>, Failure> {
        within(deadline, what, async {
            let ran = sqlx::raw_sql(AssertSqlSafe(script))
                .fetch_all(self.connection())
                .await;
            ran.map_err(|error| failure(what, &error))
        })
        .await
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
        self.wrote |= ran.result.affected_rows > 0 && changes_rows(&statement.sql, Dialect::Mysql);
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
        // The driver finds out a wrong count only after it has begun to talk, and the connection would be lost.
        let prepared = connection
            .prepare(sql.clone())
            .await
            .map_err(|error| failure(what, &error))?;
        check_count(statement, prepared.parameters())?;
        let query = sqlx::query_with(sql, bind(statement)?);
        let answers = connection
            .fetch_many(query)
            .map_ok(|answer| answer.map_left(|done| done.rows_affected()))
            .map_err(|error| failure(what, &error));
        collect(statement, Dialect::Mysql, keep, answers, read_value).await
    }

    /// Moves the server's own lock waits, where the time left differs from what they say. They are whole seconds: the finer limit is ours,
    /// and past it the connection is killed.
    async fn limit(&mut self, deadline: Instant) -> Result<(), Failure> {
        let limit = seconds_left(deadline);
        if self.limit != limit {
            self.script("setting the time limit", set_limit(limit), deadline)
                .await?;
            self.limit = limit;
        }
        Ok(())
    }

    /// Whether nothing was changed, for certain.
    async fn is_read_only(&mut self, deadline: Instant) -> Result<bool, Failure> {
        let Some(before) = self.writes.filter(|_| !self.wrote) else {
            return Ok(false);
        };
        let rows = self
            .script("read-only check", WRITES.into(), deadline)
            .await?;
        Ok(sum(&rows) == Some(before))
    }
}

fn seconds_left(deadline: Instant) -> u64 {
    deadline
        .saturating_duration_since(Instant::now())
        .as_secs()
        .clamp(1, 1 << 20)
}

fn set_limit(seconds: u64) -> String {
    format!("SET SESSION innodb_lock_wait_timeout = {seconds}, lock_wait_timeout = {seconds}")
}

/// The sum of what [`WRITES`] shows, if that is all three.
fn sum(rows: &[MySqlRow]) -> Option<u64> {
    let counters: Vec<u64> = rows
        .iter()
        .filter(|row| row.len() == 2)
        .filter_map(|row| text(row, 1).parse().ok())
        .collect();
    (counters.len() == 3).then(|| counters.iter().sum())
}

/// The statement that writes a branch's marker row.
fn insert_marker(branch: &BranchId, request_id: &str) -> String {
    let request = match request_id {
        "" => "NULL".to_owned(),
        text => format!("X'{}'", hex(text.as_bytes())),
    };
    format!(
        "INSERT INTO {MARKER_TABLE} (transaction_id, branch, request_id, outcome) VALUES (X'{}', {}, {request}, {MARKER_COMMITTED})",
        hex(branch.transaction.as_bytes()),
        branch.number
    )
}

/// What a vote of yes says here.
fn yes() -> Vote {
    Vote::Yes {
        proof: MARKER_PROOF.into(),
    }
}

/// How to begin.
struct Begin {
    mode: Mode,
    marker: Option<String>,
    may_be_read_only: bool,
}

/// Why a branch couldn't be begun. Nothing is left of it.
enum BeginError {
    /// The marker's key or its request id is taken.
    MarkerTaken,
    /// The XA id is in use already.
    IdTaken,
    /// Anything else.
    Failed(Refusal),
}

impl Inner {
    /// Begins in one round trip. Connections that the server has closed meanwhile are thrown away: nothing was done on them yet.
    async fn begin(
        &self,
        branch: &BranchId,
        begin: Begin,
        deadline: Instant,
    ) -> Result<MyBranch, BeginError> {
        let (xid, limit) = (xid(branch), seconds_left(deadline));
        let start = if begin.mode == Mode::Xa {
            format!("XA START {xid}")
        } else {
            "BEGIN".into()
        };
        let mut script = format!("{}; SELECT CONNECTION_ID(); {start}", set_limit(limit));
        begin
            .marker
            .iter()
            .for_each(|insert| script += &format!("; {insert}"));
        if begin.may_be_read_only {
            script += &format!("; {WRITES}");
        }
        let unavailable = |problem: String| {
            BeginError::Failed(refusal(AbortCode::ParticipantUnavailable, problem))
        };
        let mut problem = String::new();
        for _ in 0..=self.connections {
            let acquired = tokio::time::timeout_at(deadline, self.pool.acquire()).await;
            let connection = acquired
                .map_err(|_| {
                    unavailable("no connection to the database became free in time".into())
                })?
                .map_err(|error| unavailable(format!("no connection to the database: {error}")))?;
            let mut opened = MyBranch::new(connection);
            (opened.mode, opened.xid, opened.limit) = (begin.mode, xid.clone(), limit);
            let begun = within(deadline, "begin", async {
                Ok(sqlx::raw_sql(AssertSqlSafe(script.clone()))
                    .fetch_all(opened.connection())
                    .await)
            });
            match begun
                .await
                .map_err(|failed| BeginError::Failed(failed.refusal))?
            {
                Ok(rows) => {
                    opened.id = rows
                        .first()
                        .and_then(|row| text(row, 0).parse().ok())
                        .unwrap_or_default();
                    opened.writes = if begin.may_be_read_only {
                        sum(&rows[1..])
                    } else {
                        None
                    };
                    return Ok(opened);
                }
                Err(error) if is_dead(&error) => problem = error.to_string(),
                Err(error) if number(&error) == 1062 => {
                    self.undo(opened, false).await;
                    return Err(BeginError::MarkerTaken);
                }
                // The connection is closed rather than rolled back: an XA ROLLBACK after an XA START that failed could hit another's branch.
                Err(error) if number(&error) == 1440 => return Err(BeginError::IdTaken),
                Err(error) => return Err(BeginError::Failed(failure("begin", &error).refusal)),
            }
        }
        Err(unavailable(format!(
            "no connection to the database: {problem}"
        )))
    }

    /// A lease on a branch that is opened now. One that is known already is refused with what is known of it.
    pub(super) async fn open(
        &self,
        branch: &BranchId,
        deadline: Instant,
    ) -> Result<Lease<MyBranch>, Refusal> {
        check(branch)?;
        match self.branches.standing(branch) {
            Standing::Absent => {}
            Standing::Open(lease) => return Ok(lease),
            Standing::InUse(_) => return Err(lost(format!("branch {branch} is in use"))),
            Standing::Voted(Vote::No(refusal)) => return Err(refusal),
            Standing::Voted(_) => return Err(lost(format!("branch {branch} takes no more work"))),
        }
        let begin = Begin {
            mode: Mode::Xa,
            marker: None,
            may_be_read_only: true,
        };
        match self.begin(branch, begin, deadline).await {
            Ok(connection) => Ok(self.branches.begin(branch, connection)),
            Err(BeginError::Failed(refusal)) => Err(refusal),
            Err(BeginError::IdTaken | BeginError::MarkerTaken) => Err(lost(format!(
                "branch {branch} is in use, or prepared, already"
            ))),
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
            Standing::InUse(id) => return Err(self.doom_in_use(branch, id).await),
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
        lease: &mut Lease<MyBranch>,
        operation: &v1::Operation,
        deadline: Instant,
    ) -> Result<Ran, Failure> {
        let statement = self.catalog.resolve(operation, Dialect::Mysql)?;
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
            Standing::InUse(id) => return Vote::No(self.doom_in_use(branch, id).await),
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

    /// Opens the branch of a prepare. In one phase the marker goes first, so that two with one request id wait for each other; and a plain
    /// transaction will do, unless a procedure is called: inside XA the server keeps it from committing on its own.
    async fn begin_prepare(
        &self,
        prepare: &Prepare,
        deadline: Instant,
    ) -> Result<Lease<MyBranch>, Vote> {
        let resolve = |operation| self.catalog.resolve(operation, Dialect::Mysql);
        let statements: Vec<Statement> = prepare
            .operations
            .iter()
            .map(resolve)
            .collect::<Result<_, _>>()
            .map_err(Vote::No)?;
        let first_word_is = |word: &[&str], statement: &Statement| {
            word.contains(&first_keyword(&statement.sql, Dialect::Mysql).as_str())
        };
        let calls = statements
            .iter()
            .any(|statement| first_word_is(&["CALL"], statement));
        let reads = statements.iter().all(|statement| {
            first_word_is(
                &["SELECT", "WITH", "VALUES", "TABLE", "SHOW", ""],
                statement,
            )
        });
        let branch = &prepare.branch;
        let begin = Begin {
            mode: if prepare.one_phase && !calls {
                Mode::Local
            } else {
                Mode::Xa
            },
            marker: prepare
                .one_phase
                .then(|| insert_marker(branch, &prepare.request_id)),
            may_be_read_only: reads && !prepare.one_phase,
        };
        match self.begin(branch, begin, deadline).await {
            Ok(connection) => Ok(self.branches.begin(branch, connection)),
            Err(BeginError::Failed(refusal)) => Err(Vote::No(refusal)),
            Err(BeginError::MarkerTaken) => {
                Err(self.vote_by_marker(branch, &prepare.request_id).await)
            }
            Err(BeginError::IdTaken) => Err(self.vote_as_found(branch).await),
        }
    }

    async fn run_and_vote(
        &self,
        prepare: &Prepare,
        mut lease: Lease<MyBranch>,
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
                Ok(Err(error)) if number(&error) == 1062 => {
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
        let commit = match lease.mode {
            Mode::Local => "COMMIT".into(),
            Mode::Xa => format!("XA END {0}; XA COMMIT {0} ONE PHASE", lease.xid),
        };
        self.commit_in_one_phase(lease, commit, deadline).await
    }

    async fn run_all(
        &self,
        prepare: &Prepare,
        lease: &mut Lease<MyBranch>,
        deadline: Instant,
    ) -> Result<(), Failure> {
        if prepare.continued {
            lease.limit(deadline).await?;
        }
        for operation in &prepare.operations {
            let statement = self.catalog.resolve(operation, Dialect::Mysql)?;
            lease.run(&statement, deadline, false).await?;
        }
        Ok(())
    }

    /// Prepares, with the marker row inside, unless nothing was changed: a branch that only read is never prepared, for MariaDB loses it
    /// with its connection.
    async fn vote(&self, mut lease: Lease<MyBranch>, deadline: Instant) -> Vote {
        match lease.is_read_only(deadline).await {
            Ok(true) => {
                let end = format!("XA END {0}; XA COMMIT {0} ONE PHASE", lease.xid);
                return match lease
                    .script("end of a read-only branch", end, deadline)
                    .await
                {
                    Ok(_) => {
                        lease.end(Vote::ReadOnly).release();
                        Vote::ReadOnly
                    }
                    Err(failed) => Vote::No(self.doom(lease, failed).await),
                };
            }
            Ok(false) => {}
            Err(failed) => return Vote::No(self.doom(lease, failed).await),
        }
        let script = format!(
            "{}; XA END {1}; XA PREPARE {1}",
            insert_marker(lease.branch(), ""),
            lease.xid
        );
        let answer = within(deadline, "prepare", async {
            Ok(sqlx::raw_sql(AssertSqlSafe(script))
                .execute(lease.connection())
                .await)
        });
        match answer.await {
            Ok(Ok(_)) => {
                if let Some(detached) = lease.prepared(yes(), self.flavour == Flavour::Mariadb) {
                    detached.release();
                }
                yes()
            }
            Ok(Err(error)) if number(&error) == 1062 => {
                let refusal = lost(format!(
                    "branch {} has ended before: its marker is there",
                    lease.branch()
                ));
                Vote::No(self.doom(lease, refusal.into()).await)
            }
            Ok(Err(error)) => Vote::No(self.unprepare(lease, failure("prepare", &error)).await),
            Err(failed) => Vote::No(self.unprepare(lease, failed).await),
        }
    }

    /// The branch exists already, by another agent or by this one before a restart. Where it is prepared, it stands.
    async fn vote_as_found(&self, branch: &BranchId) -> Vote {
        match self.is_listed(branch).await {
            Ok(true) => {
                self.branches.found_prepared(branch, yes(), None);
                yes()
            }
            Ok(false) => Vote::No(lost(format!("branch {branch} is open already, elsewhere"))),
            Err(problem) => Vote::No(refusal(AbortCode::ParticipantUnavailable, problem)),
        }
    }

    /// Rolls back after an XA PREPARE whose outcome isn't known: the session first, so that nothing comes late, then what it may have
    /// prepared. If the database is away, so is the answer: what is found prepared afterwards is in doubt, and its abort is presumed.
    async fn unprepare(&self, lease: Lease<MyBranch>, failed: Failure) -> Refusal {
        let branch = lease.branch().clone();
        let broken = failed.broken;
        let refusal = self.doom(lease, failed).await;
        if broken {
            let _ = self.finish(&branch, "XA ROLLBACK").await;
        }
        refusal
    }

    /// Rolls back an open branch.
    pub(super) async fn doom(&self, lease: Lease<MyBranch>, failed: Failure) -> Refusal {
        let connection = lease.end(Vote::No(failed.refusal.clone()));
        self.undo(connection, failed.broken).await;
        failed.refusal
    }

    /// Rolls back a branch that a service holds just now.
    pub(super) async fn doom_in_use(&self, branch: &BranchId, id: u64) -> Refusal {
        let refusal = lost(format!(
            "branch {branch} was still in use, and is rolled back"
        ));
        self.branches.ended(branch, Vote::No(refusal.clone()));
        self.fence(id).await;
        refusal
    }

    /// Ends the branch of a connection: by rolling back, or by closing it and killing its session, so that no lock stays behind.
    pub(super) async fn undo(&self, mut branch: MyBranch, broken: bool) {
        if !broken {
            let (mode, xid) = (branch.mode, branch.xid.clone());
            let rollback = async {
                if mode == Mode::Local {
                    return sqlx::raw_sql("ROLLBACK").execute(branch.connection()).await;
                }
                // Refused where the branch is marked for rollback, or prepared; rolling back is what counts, and only works after it.
                let ended = sqlx::raw_sql(AssertSqlSafe(format!("XA END {xid}")))
                    .execute(branch.connection())
                    .await;
                if let Err(error) = ended
                    && is_dead(&error)
                {
                    return Err(error);
                }
                sqlx::raw_sql(AssertSqlSafe(format!("XA ROLLBACK {xid}")))
                    .execute(branch.connection())
                    .await
            };
            if matches!(
                tokio::time::timeout(CONTROL_TIMEOUT, rollback).await,
                Ok(Ok(_))
            ) {
                return branch.release();
            }
        }
        let id = branch.id;
        drop(branch);
        self.fence(id).await;
    }

    /// Kills a session of ours, and waits until it is gone: until then it could still act on what it was sent.
    pub(super) async fn fence(&self, id: u64) {
        if id == 0 {
            return;
        }
        let killed = tokio::time::timeout(CONTROL_TIMEOUT, async {
            // Not from the pool: it may be used up by those that wait for this one.
            let mut side = self.options.connect().await?;
            loop {
                let there =
                    sqlx::query("SELECT 1 FROM information_schema.processlist WHERE id = ?")
                        .bind(id)
                        .fetch_optional(&mut side);
                if there.await?.is_none() {
                    return Ok::<(), sqlx::Error>(());
                }
                // It may be gone by now.
                let _ = sqlx::raw_sql(AssertSqlSafe(format!("KILL {id}")))
                    .execute(&mut side)
                    .await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        match killed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(id, %error, "could not kill an abandoned session"),
            Err(_) => tracing::warn!(id, "an abandoned session does not end"),
        }
    }
}
