//! An open branch on MySQL or MariaDB: begin, run, prepare, and the end of a branch that failed.

use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Executor, MySql, Row, SqlSafeStr, Statement as _,
    mysql::MySqlRow,
};
use tokio::time::{Instant, timeout};
use unanimity_proto::v1::AbortCode;

use crate::{
    operation::{Dialect, Statement, changes_rows, first_keyword},
    participant::{BranchId, Refusal},
    resource::{
        CONTROL_TIMEOUT, Failure, MARKER_COMMITTED, MARKER_PROOF, MARKER_TABLE,
        branches::{BranchConnection, lost},
        connections::{Pooled, fence},
        flow::{BeginError, BranchRules, MarkError, Prepared},
        identifier::hex,
        refusal,
        statement::{Ran, check_count, collect},
    },
};

use super::{
    MysqlServer,
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

/// A connection inside a branch.
pub(crate) struct MyBranch {
    pub(super) connection: Pooled<MySql>,
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

    fn release(self) {
        self.connection.release();
    }
}

impl MyBranch {
    /// Runs statements of our own.
    pub(super) async fn script(
        &mut self,
        what: &str,
        script: String,
        deadline: Instant,
    ) -> Result<Vec<MySqlRow>, Failure> {
        let answer = self.connection.script(what, script, deadline).await?;
        answer.map_err(|error| failure(what, &error))
    }

    /// What commits the branch, unprepared.
    fn end_and_commit(&self) -> String {
        match self.mode {
            Mode::Local => "COMMIT".into(),
            Mode::Xa => format!("XA END {0}; XA COMMIT {0} ONE PHASE", self.xid),
        }
    }

    async fn roll_back(&mut self) -> Result<(), sqlx::Error> {
        let (mode, xid) = (self.mode, self.xid.as_str());
        let connection = self.connection.connection();
        if mode == Mode::Local {
            return sqlx::raw_sql("ROLLBACK")
                .execute(connection)
                .await
                .map(drop);
        }
        // Refused where the branch is marked for rollback, or prepared; rolling back is what counts, and only works after it.
        let ended = sqlx::raw_sql(AssertSqlSafe(format!("XA END {xid}")))
            .execute(&mut *connection)
            .await;
        if let Err(error) = ended
            && is_dead(&error)
        {
            return Err(error);
        }
        sqlx::raw_sql(AssertSqlSafe(format!("XA ROLLBACK {xid}")))
            .execute(connection)
            .await
            .map(drop)
    }
}

impl BranchRules for MysqlServer {
    const DIALECT: Dialect = Dialect::Mysql;
    type Branch = MyBranch;

    /// Begins in one round trip. In one phase a plain transaction will do, unless a procedure is called: inside XA the server keeps it from
    /// committing on its own.
    async fn begin(
        &self,
        branch: &BranchId,
        work: &[Statement],
        marker: Option<&str>,
        deadline: Instant,
    ) -> Result<MyBranch, BeginError> {
        let (xid, limit) = (xid(branch), seconds_left(deadline));
        let (mode, start) = if marker.is_some() && !work.iter().any(calls) {
            (Mode::Local, "BEGIN".to_owned())
        } else {
            (Mode::Xa, format!("XA START {xid}"))
        };
        let may_be_read_only = marker.is_none() && work.iter().all(reads);
        let mut script = format!("{}; SELECT CONNECTION_ID(); {start}", set_limit(limit));
        if let Some(request_id) = marker {
            script += &format!("; {}", insert_marker(branch, request_id));
        }
        if may_be_read_only {
            script += &format!("; {WRITES}");
        }
        let begun = self.connections.begin(deadline, &script);
        let (connection, answer) = begun.await.map_err(BeginError::Failed)?;
        let mut begun = MyBranch {
            connection,
            id: 0,
            mode,
            xid,
            limit,
            wrote: false,
            writes: None,
        };
        match answer {
            Ok(rows) => {
                let id = rows.first().and_then(|row| text(row, 0).parse().ok());
                begun.id = id.unwrap_or_default();
                begun.writes = may_be_read_only.then(|| sum(&rows[1..])).flatten();
                Ok(begun)
            }
            Err(error) if is_taken(&error) => {
                self.undo(begun, false).await;
                Err(BeginError::MarkerTaken)
            }
            // The connection is closed rather than rolled back: an XA ROLLBACK after an XA START that failed could hit another's branch.
            Err(error) => {
                drop(begun);
                Err(if number(&error) == 1440 {
                    self.find_prepared(branch).await
                } else {
                    BeginError::Failed(failure("begin", &error).refusal)
                })
            }
        }
    }

    /// Moves the server's own lock waits, where the time left differs from what they say. They are whole seconds: the finer limit is ours,
    /// and past it the connection is killed.
    async fn limit(&self, opened: &mut MyBranch, deadline: Instant) -> Result<(), Failure> {
        let limit = seconds_left(deadline);
        if opened.limit != limit {
            opened
                .script("setting the time limit", set_limit(limit), deadline)
                .await?;
            opened.limit = limit;
        }
        Ok(())
    }

    async fn run(
        &self,
        opened: &mut MyBranch,
        statement: &Statement,
        keep: bool,
    ) -> Result<Ran, Failure> {
        let what = format!("operation {}", statement.label);
        let connection = opened.connection.connection();
        let sql = AssertSqlSafe(statement.sql.clone()).into_sql_str();
        // The driver finds out a wrong count only after it has begun to talk, and the connection would be lost.
        let prepared = connection
            .prepare(sql.clone())
            .await
            .map_err(|error| failure(&what, &error))?;
        check_count(statement, prepared.parameters())?;
        let query = sqlx::query_with(sql, bind(statement)?);
        let answers = connection
            .fetch_many(query)
            .map_ok(|answer| answer.map_left(|done| done.rows_affected()))
            .map_err(|error| failure(&what, &error));
        let ran = collect(statement, Self::DIALECT, keep, answers, read_value).await?;
        opened.wrote |= ran.result.affected_rows > 0 && changes_rows(&statement.sql, Self::DIALECT);
        Ok(ran)
    }

    /// A branch that only read is never prepared, for MariaDB loses it with its connection.
    async fn end_read_only(
        &self,
        opened: &mut MyBranch,
        deadline: Instant,
    ) -> Result<bool, Failure> {
        let Some(before) = opened.writes.filter(|_| !opened.wrote) else {
            return Ok(false);
        };
        let rows = opened
            .script("read-only check", WRITES.into(), deadline)
            .await?;
        if sum(&rows) != Some(before) {
            return Ok(false);
        }
        let end = opened.end_and_commit();
        opened
            .script("end of a read-only branch", end, deadline)
            .await?;
        Ok(true)
    }

    /// Prepares, with the marker row inside.
    async fn prepare(
        &self,
        opened: &mut MyBranch,
        branch: &BranchId,
        deadline: Instant,
    ) -> Result<Prepared, Failure> {
        let script = format!(
            "{}; XA END {1}; XA PREPARE {1}",
            insert_marker(branch, ""),
            opened.xid
        );
        let answer = opened.connection.script("prepare", script, deadline);
        match answer.await? {
            Ok(_) => Ok(Prepared {
                proof: MARKER_PROOF.into(),
                bound: self.flavour == Flavour::Mariadb,
            }),
            Err(error) if is_taken(&error) => Err(lost(format!(
                "branch {branch} has ended before: its marker is there"
            ))
            .into()),
            Err(error) => Err(failure("prepare", &error)),
        }
    }

    async fn mark(
        &self,
        opened: &mut MyBranch,
        branch: &BranchId,
        request_id: &str,
        deadline: Instant,
    ) -> Result<(), MarkError> {
        let insert = insert_marker(branch, request_id);
        let inserting = opened.connection.script("marker", insert, deadline);
        match inserting.await.map_err(MarkError::Failed)? {
            Ok(_) => Ok(()),
            Err(error) if is_taken(&error) => Err(MarkError::Taken),
            Err(error) => Err(MarkError::Failed(failure("marker", &error))),
        }
    }

    async fn commit(
        &self,
        opened: &mut MyBranch,
        branch: &BranchId,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        let script = format!(
            "{}; SELECT outcome FROM {MARKER_TABLE} WHERE transaction_id = X'{}' AND branch = {}",
            opened.end_and_commit(),
            hex(branch.transaction.as_bytes()),
            branch.number
        );
        let connection = &mut opened.connection;
        self.connections
            .commit(connection, script, deadline, failure)
            .await
    }

    /// By rolling back, or by closing the connection and killing its session, so that no lock stays behind.
    async fn undo(&self, mut opened: MyBranch, broken: bool) {
        if !broken
            && matches!(
                timeout(CONTROL_TIMEOUT, opened.roll_back()).await,
                Ok(Ok(()))
            )
        {
            return opened.release();
        }
        let id = opened.id;
        drop(opened);
        self.stop(id).await;
    }

    /// Kills a session of ours.
    async fn stop(&self, id: u64) {
        if id == 0 {
            return;
        }
        let killed = async {
            // Not from the pool: it may be used up by those that wait for this one.
            let mut side = self.options.connect().await?;
            loop {
                let there =
                    sqlx::query("SELECT 1 FROM information_schema.processlist WHERE id = ?")
                        .bind(id)
                        .fetch_optional(&mut side);
                if there.await?.is_none() {
                    return Ok(());
                }
                // It may be gone by now.
                let _ = sqlx::raw_sql(AssertSqlSafe(format!("KILL {id}")))
                    .execute(&mut side)
                    .await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        fence(id, killed).await;
    }
}

impl MysqlServer {
    /// The XA id is in use, by another agent or by this one before a restart. Where the branch is prepared, it stands.
    async fn find_prepared(&self, branch: &BranchId) -> BeginError {
        match self.is_listed(branch).await {
            Ok(true) => BeginError::Prepared(MARKER_PROOF.into()),
            Ok(false) => BeginError::Elsewhere,
            Err(problem) => BeginError::Failed(refusal(AbortCode::ParticipantUnavailable, problem)),
        }
    }
}

fn first_word_is(statement: &Statement, words: &[&str]) -> bool {
    words.contains(&first_keyword(&statement.sql, Dialect::Mysql).as_str())
}

/// Whether a statement calls a procedure.
fn calls(statement: &Statement) -> bool {
    first_word_is(statement, &["CALL"])
}

/// Whether a statement is likely to change nothing.
fn reads(statement: &Statement) -> bool {
    first_word_is(
        statement,
        &["SELECT", "WITH", "VALUES", "TABLE", "SHOW", ""],
    )
}

/// A unique key was violated.
fn is_taken(error: &sqlx::Error) -> bool {
    number(error) == 1062
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
