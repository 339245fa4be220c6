//! An open branch on PostgreSQL: begin, run, prepare, and the end of a branch that failed.

use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection, Postgres, Row, postgres::PgRow};
use tokio::time::{Instant, timeout};
use unanimity_proto::v1::AbortCode;

use crate::{
    operation::{Dialect, Statement, changes_rows},
    participant::{BranchId, Refusal},
    resource::{
        CONTROL_TIMEOUT, Failure, MARKER_COMMITTED, MARKER_TABLE,
        branches::BranchConnection,
        connections::{Pooled, fence},
        flow::{BeginError, BranchRules, MarkError, Prepared},
        identifier::hex,
        milliseconds, refusal,
        statement::{Ran, collect},
    },
};

use super::{
    PostgresServer,
    values::{bind, failure, read_value, state},
};

/// A connection inside a transaction.
pub(crate) struct PgBranch {
    pub(super) connection: Pooled<Postgres>,
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

    fn release(self) {
        self.connection.release();
    }
}

impl PgBranch {
    /// Runs statements of our own.
    pub(super) async fn script(
        &mut self,
        what: &str,
        script: String,
        deadline: Instant,
    ) -> Result<Vec<PgRow>, Failure> {
        let answer = self.connection.script(what, script, deadline).await?;
        answer.map_err(|error| failure(what, &error))
    }
}

impl BranchRules for PostgresServer {
    const DIALECT: Dialect = Dialect::Postgres;
    type Branch = PgBranch;

    /// Begins a transaction, its time limits, and where asked for its marker row, in one round trip.
    async fn begin(
        &self,
        branch: &BranchId,
        _work: &[Statement],
        marker: Option<&str>,
        deadline: Instant,
    ) -> Result<PgBranch, BeginError> {
        let limit = milliseconds(deadline.saturating_duration_since(Instant::now()));
        let marker = marker
            .map(|request_id| format!("; {}", insert_marker(branch, request_id)))
            .unwrap_or_default();
        let script = format!(
            "BEGIN; {}; SELECT pg_backend_pid(){marker}",
            set_limit(limit)
        );
        let begun = self.connections.begin(deadline, &script);
        let (connection, answer) = begun.await.map_err(BeginError::Failed)?;
        let mut begun = PgBranch {
            connection,
            pid: 0,
            limit,
            wrote: false,
        };
        match answer {
            Ok(rows) => {
                let pid = rows.first().and_then(|row| row.try_get(0).ok());
                begun.pid = pid.unwrap_or_default();
                Ok(begun)
            }
            Err(error) => {
                self.undo(begun, false).await;
                Err(if is_taken(&error) {
                    BeginError::MarkerTaken
                } else {
                    BeginError::Failed(failure("begin", &error).refusal)
                })
            }
        }
    }

    /// Moves the server's own time limits, where the time left differs from what they say.
    async fn limit(&self, opened: &mut PgBranch, deadline: Instant) -> Result<(), Failure> {
        let limit = milliseconds(deadline.saturating_duration_since(Instant::now()));
        if opened.limit.abs_diff(limit) < 100 {
            return Ok(());
        }
        let what = "setting the time limit";
        opened.script(what, set_limit(limit), deadline).await?;
        opened.limit = limit;
        Ok(())
    }

    async fn run(
        &self,
        opened: &mut PgBranch,
        statement: &Statement,
        keep: bool,
    ) -> Result<Ran, Failure> {
        let what = format!("operation {}", statement.label);
        let query = sqlx::query_with(AssertSqlSafe(statement.sql.clone()), bind(statement)?)
            .persistent(statement.persistent);
        let connection = opened.connection.connection();
        let answers = connection
            .fetch_many(query)
            .map_ok(|answer| answer.map_left(|done| done.rows_affected()))
            .map_err(|error| failure(&what, &error));
        let ran = collect(statement, Self::DIALECT, keep, answers, read_value).await?;
        opened.wrote |= ran.result.affected_rows > 0 && changes_rows(&statement.sql, Self::DIALECT);
        Ok(ran)
    }

    /// Whoever changes anything, or locks a row, is given a transaction id.
    async fn end_read_only(
        &self,
        opened: &mut PgBranch,
        deadline: Instant,
    ) -> Result<bool, Failure> {
        let overlooked = cfg!(unanimity_bug = "change-voted-read-only");
        if opened.wrote && !overlooked {
            return Ok(false);
        }
        let assigned = "SELECT 1 WHERE pg_current_xact_id_if_assigned() IS NOT NULL";
        let rows = opened.script("read-only check", assigned.into(), deadline);
        if !rows.await?.is_empty() && !overlooked {
            return Ok(false);
        }
        let what = "end of a read-only branch";
        opened.script(what, "COMMIT".into(), deadline).await?;
        Ok(true)
    }

    /// PostgreSQL answers a PREPARE in an aborted or missing transaction as if all were well, and sqlx hides the tag: only the row read back
    /// proves it. Session-level advisory locks are released here; those of the transaction pass to the prepared one.
    async fn prepare(
        &self,
        opened: &mut PgBranch,
        branch: &BranchId,
        deadline: Instant,
    ) -> Result<Prepared, Failure> {
        let script = format!(
            "PREPARE TRANSACTION '{branch}'; SELECT transaction::text, pg_snapshot_xmax(pg_current_snapshot())::text, \
             pg_advisory_unlock_all()::text FROM pg_prepared_xacts WHERE gid = '{branch}' AND database = current_database()"
        );
        let preparing = opened.connection.script("prepare", script, deadline);
        let unproved = |message: &str| refusal(AbortCode::ParticipantFailure, message);
        let refusal = match preparing.await? {
            Ok(rows) => match rows.first().map(proof) {
                Some(Some(proof)) => return Ok(detached(proof)),
                None if cfg!(unanimity_bug = "prepare-not-read-back") => {
                    return Ok(detached(String::new()));
                }
                Some(None) => unproved("PostgreSQL showed a prepared branch without its number"),
                None => unproved("PostgreSQL rolled back instead of preparing"),
            },
            Err(error) if state(&error) == "42710" => {
                return find_prepared(opened.connection.connection(), branch).await;
            }
            Err(error) => failure("prepare", &error).refusal,
        };
        // Whether it took effect isn't known.
        Err(Failure {
            refusal,
            broken: true,
        })
    }

    async fn mark(
        &self,
        opened: &mut PgBranch,
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
        opened: &mut PgBranch,
        branch: &BranchId,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        let script = format!(
            "COMMIT; SELECT outcome::text FROM {MARKER_TABLE} WHERE transaction_id = '{}' AND branch = {}",
            branch.transaction, branch.number
        );
        let connection = &mut opened.connection;
        self.connections
            .commit(connection, script, deadline, failure)
            .await
    }

    /// By ROLLBACK, or by closing the connection and ending its server process, so that no lock stays behind.
    async fn undo(&self, mut opened: PgBranch, broken: bool) {
        if !broken {
            let rollback = sqlx::raw_sql("ROLLBACK").execute(opened.connection.connection());
            if matches!(timeout(CONTROL_TIMEOUT, rollback).await, Ok(Ok(_))) {
                return opened.release();
            }
        }
        let pid = opened.pid;
        drop(opened);
        self.stop(pid).await;
    }

    /// Ends a server process of ours.
    async fn stop(&self, pid: i32) {
        if pid == 0 {
            return;
        }
        let ended = async {
            // Not from the pool: it may be used up by those that wait for this one.
            let mut side = self.options.connect().await?;
            loop {
                let there = sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND application_name = $2")
                    .bind(pid)
                    .bind(&self.application_name)
                    .fetch_optional(&mut side)
                    .await?;
                if there.is_none() {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        fence(pid, ended).await;
    }
}

fn set_limit(milliseconds: u64) -> String {
    format!("SET LOCAL statement_timeout = {milliseconds}; SET LOCAL lock_timeout = {milliseconds}")
}

/// Anybody's text as a literal, hence the hex.
pub(super) fn literal(text: &str) -> String {
    format!(
        "convert_from(decode('{}', 'hex'), 'UTF8')",
        hex(text.as_bytes())
    )
}

/// The statement that writes a branch's marker row.
fn insert_marker(branch: &BranchId, request_id: &str) -> String {
    let request = match request_id {
        "" => "NULL".to_owned(),
        text => literal(text),
    };
    format!(
        "INSERT INTO {MARKER_TABLE} (transaction_id, branch, request_id, outcome) VALUES ('{}', {}, {request}, {MARKER_COMMITTED})",
        branch.transaction, branch.number
    )
}

/// A unique key was violated.
fn is_taken(error: &sqlx::Error) -> bool {
    state(error) == "23505"
}

fn detached(proof: String) -> Prepared {
    Prepared {
        proof,
        bound: false,
    }
}

/// The branch is prepared already, by another agent or by this one before a restart: it stands, and ours is rolled back.
async fn find_prepared(
    connection: &mut PgConnection,
    branch: &BranchId,
) -> Result<Prepared, Failure> {
    let _ = sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await;
    let found = sqlx::query(
        "SELECT transaction::text, pg_snapshot_xmax(pg_current_snapshot())::text FROM pg_prepared_xacts \
         WHERE gid = $1 AND database = current_database()",
    )
    .bind(branch.to_string())
    .fetch_optional(connection)
    .await;
    let proof = found.ok().flatten().as_ref().and_then(proof);
    proof.map(detached).ok_or_else(|| {
        let message = format!("another transaction has the identifier {branch}");
        refusal(AbortCode::ParticipantFailure, message).into()
    })
}

/// The transaction's 64-bit id, as text, from what `pg_prepared_xacts` shows of it: the lower half. The upper is that of the value nearest
/// to the newest id: a prepared transaction is never 2^31 ids old, for PostgreSQL stops before that.
fn proof(row: &PgRow) -> Option<String> {
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
