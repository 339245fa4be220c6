//! How a branch on MySQL or MariaDB ends, and how that is proved.
//!
//! XAER_NOTA (1397) says nothing: the branch may have been committed before, or rolled back by hand, or be bound to another session that is
//! still connected. So XA RECOVER is read, and then the marker row, which every branch that changes anything writes: where the branch is
//! not prepared and the row not there, it did not commit.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Row, mysql::MySqlRow};
use tokio::time::timeout;
use unanimity_proto::v1::AbortCode;

use crate::{
    participant::{BranchId, InDoubt, Refusal, Settled, Unavailable},
    resource::{
        CONTROL_TIMEOUT, MARKER_COMMITTED, MARKER_PROOF, MARKER_TABLE, MARKER_TOMBSTONE,
        PROVE_SECONDS, PURGE_BATCH,
        branches::{BranchConnection, Branches},
        connections::available,
        flow::{BranchRules, Marker, OutcomeRules, settled_by_marker},
        identifier::{hex, marker_proves_absence, parse_parts},
        refusal,
    },
};

use super::{
    MysqlServer,
    branch::{FORMAT_ID, MyBranch, xid},
    preflight::text,
    values::{failure, is_dead, number},
};

/// XAER_NOTA, XA_RBROLLBACK, XA_RBTIMEOUT, XA_RBDEADLOCK: there is no such prepared branch, for this session at least.
const GONE: [u16; 4] = [1397, 1402, 1613, 1614];

/// For how long a branch that is listed but bound to a session that just ended is waited for.
const DETACH_TRIES: u32 = 5;
const DETACH_PAUSE: Duration = Duration::from_millis(50);

/// The marker under a branch's key, or else under a request id.
const FIND_MARKER: &str = "SELECT transaction_id, CAST(branch AS SIGNED), CAST(outcome AS SIGNED), result FROM unanimity_marker \
     WHERE (transaction_id = ? AND branch = ?) OR request_id = ? \
     ORDER BY (transaction_id = ? AND branch = ?) DESC LIMIT 1";

/// What XA COMMIT or XA ROLLBACK came to.
enum Finish {
    Done,
    /// There is no such prepared branch, now.
    Unknown,
    Retry(String),
}

impl OutcomeRules for MysqlServer {
    async fn settle(&self, branch: &BranchId, left: &mut Option<MyBranch>) -> Settled {
        if let Some(connection) = left.take() {
            self.undo(connection, true).await;
        }
        self.prove(branch).await
    }

    /// Where the absence of the marker is a proof, a tombstone makes it one for good.
    async fn commit_prepared(
        &self,
        branch: &BranchId,
        proof: &str,
        bound: &mut Option<MyBranch>,
    ) -> Settled {
        match self.finish(branch, "XA COMMIT", bound).await {
            Finish::Done => Settled::Committed,
            Finish::Retry(problem) => Settled::Retry(problem),
            Finish::Unknown if cfg!(unanimity_bug = "mariadb-unknown-is-done") => {
                Settled::Committed
            }
            Finish::Unknown
                if proof == MARKER_PROOF && marker_proves_absence(branch, self.retention) =>
            {
                self.prove(branch).await
            }
            Finish::Unknown => match self.own_marker(branch).await {
                Ok(marker) => settled_by_marker(branch, marker, proof),
                Err(problem) => Settled::Retry(problem),
            },
        }
    }

    async fn abort_prepared(
        &self,
        branch: &BranchId,
        _proof: &str,
        bound: &mut Option<MyBranch>,
    ) -> Settled {
        match self.finish(branch, "XA ROLLBACK", bound).await {
            Finish::Done => Settled::Aborted,
            Finish::Retry(problem) => Settled::Retry(problem),
            Finish::Unknown => match self.own_marker(branch).await {
                Ok(Some(MARKER_COMMITTED)) => Settled::Committed,
                Ok(_) => Settled::Aborted,
                Err(problem) => Settled::Retry(problem),
            },
        }
    }

    /// The insertion waits for a branch that holds the key and hasn't ended.
    async fn prove(&self, branch: &BranchId) -> Settled {
        let script = format!(
            "SET SESSION innodb_lock_wait_timeout = {PROVE_SECONDS}; \
             INSERT INTO {MARKER_TABLE} (transaction_id, branch, outcome) VALUES (X'{}', {}, {MARKER_TOMBSTONE})",
            hex(branch.transaction.as_bytes()),
            branch.number
        );
        match self.connections.script(&script).await {
            Ok(Ok(_)) => return Settled::Aborted,
            Ok(Err(error)) if number(&error) == 1062 => {}
            Ok(Err(error)) => return Settled::Retry(format!("branch {branch}: {error}")),
            Err(problem) => return Settled::Retry(problem),
        }
        match self.own_marker(branch).await {
            Ok(Some(MARKER_COMMITTED)) => Settled::Committed,
            Ok(Some(MARKER_TOMBSTONE)) => Settled::Aborted,
            Ok(_) => Settled::Retry(format!("branch {branch}: the marker can't be read")),
            Err(problem) => Settled::Retry(problem),
        }
    }

    async fn marker(&self, branch: &BranchId, request_id: &str) -> Result<Option<Marker>, Refusal> {
        let transaction = branch.transaction.as_bytes();
        let answer = self.connections.query(|mut connection| async {
            let found = sqlx::query(FIND_MARKER)
                .bind(transaction)
                .bind(branch.number)
                .bind(Some(request_id.as_bytes()).filter(|id| !id.is_empty()))
                .bind(transaction)
                .bind(branch.number)
                .fetch_optional(connection.connection())
                .await;
            let read = |row: MySqlRow| {
                let transaction: Vec<u8> = row.try_get(0)?;
                let result: Option<Vec<u8>> = row.try_get(3)?;
                Ok(Marker {
                    transaction: String::from_utf8_lossy(&transaction).into_owned(),
                    number: row.try_get(1)?,
                    committed: row.try_get::<i64, _>(2)? == i64::from(MARKER_COMMITTED),
                    result: String::from_utf8(result.unwrap_or_default())
                        .map_err(|error| sqlx::Error::Decode(error.into()))?,
                })
            };
            (connection, found.and_then(|row| row.map(read).transpose()))
        });
        answer
            .await
            .map_err(|problem| refusal(AbortCode::ParticipantUnavailable, problem))?
            .map_err(|error| failure("marker", &error).refusal)
    }

    async fn in_doubt(&self, _here: &Branches<MyBranch>) -> Result<Vec<InDoubt>, Unavailable> {
        let recovered = self.recover().await.map_err(Unavailable)?;
        Ok(recovered.iter().map(Recovered::in_doubt).collect())
    }

    async fn purge_batch(&self) -> Result<u64, Unavailable> {
        let script = format!(
            "SET SESSION innodb_lock_wait_timeout = 1; DELETE FROM {MARKER_TABLE} \
             WHERE created_at < NOW() - INTERVAL {} SECOND ORDER BY created_at LIMIT {PURGE_BATCH}",
            self.retention.as_secs()
        );
        let answer = self.connections.query(|mut connection| async {
            let purged = sqlx::raw_sql(AssertSqlSafe(script.clone()))
                .execute(connection.connection())
                .await;
            (connection, purged)
        });
        available(answer.await).map(|done| done.rows_affected())
    }
}

impl MysqlServer {
    /// Runs XA COMMIT or XA ROLLBACK, on the connection that the branch is bound to where this process has it, else on any. Both can be
    /// sent again without harm.
    async fn finish(
        &self,
        branch: &BranchId,
        command: &str,
        bound: &mut Option<MyBranch>,
    ) -> Finish {
        if let Some(finish) = self.finish_bound(branch, command, bound).await {
            return finish;
        }
        failpoint!("participant.mysql.finish.detached");
        let script = format!("{command} {}", xid(branch));
        for attempt in 0.. {
            match self.connections.script(&script).await {
                Ok(Ok(_)) => return Finish::Done,
                Ok(Err(error)) if GONE.contains(&number(&error)) => match self
                    .is_listed(branch)
                    .await
                {
                    Ok(false) => return Finish::Unknown,
                    Ok(true) if attempt < DETACH_TRIES => tokio::time::sleep(DETACH_PAUSE).await,
                    Ok(true) => {
                        return Finish::Retry(format!(
                            "branch {branch} is bound to a session that is still connected"
                        ));
                    }
                    Err(problem) => return Finish::Retry(problem),
                },
                Ok(Err(error)) => {
                    return Finish::Retry(format!("{command} of branch {branch}: {error}"));
                }
                Err(problem) => return Finish::Retry(problem),
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// Finishes on the connection that the branch is bound to. `None`: there is none, or it is lost or knows no such branch; try another.
    async fn finish_bound(
        &self,
        branch: &BranchId,
        command: &str,
        bound: &mut Option<MyBranch>,
    ) -> Option<Finish> {
        let mut prepared = bound.take()?;
        let script = AssertSqlSafe(format!("{command} {}", xid(branch)));
        failpoint!("participant.mysql.finish.bound");
        let finishing = sqlx::raw_sql(script).execute(prepared.connection.connection());
        match timeout(CONTROL_TIMEOUT, finishing).await {
            Ok(Ok(_)) => {
                prepared.release();
                Some(Finish::Done)
            }
            Ok(Err(error)) if !is_dead(&error) && !GONE.contains(&number(&error)) => {
                // Read-only for a backup, or a lock wait: it stays prepared, and bound.
                *bound = Some(prepared);
                Some(Finish::Retry(format!(
                    "{command} of branch {branch}: {error}"
                )))
            }
            _ => {
                self.undo(prepared, true).await;
                None
            }
        }
    }

    async fn recover(&self) -> Result<Vec<Recovered>, String> {
        let answer = self.connections.script("XA RECOVER").await?;
        let rows = answer.map_err(|error| format!("XA RECOVER: {error}"))?;
        Ok(rows.iter().filter_map(Recovered::read).collect())
    }

    /// Whether the server lists the branch as prepared.
    pub(super) async fn is_listed(&self, branch: &BranchId) -> Result<bool, String> {
        let number = branch.number.to_string();
        let is_it = |found: &Recovered| {
            found.format == FORMAT_ID
                && found.gtrid == branch.transaction.as_bytes()
                && found.bqual == number.as_bytes()
        };
        Ok(self.recover().await?.iter().any(is_it))
    }

    /// The outcome in the branch's marker row. A locking read: it waits for a branch that holds the row and hasn't ended, so that "not there"
    /// is final.
    pub(super) async fn own_marker(&self, branch: &BranchId) -> Result<Option<i32>, String> {
        let script = format!(
            "SET SESSION innodb_lock_wait_timeout = {PROVE_SECONDS}; SELECT outcome FROM {MARKER_TABLE} \
             WHERE transaction_id = X'{}' AND branch = {} LOCK IN SHARE MODE",
            hex(branch.transaction.as_bytes()),
            branch.number
        );
        let answer = self.connections.script(&script).await?;
        let rows = answer.map_err(|error| format!("the marker of branch {branch}: {error}"))?;
        match rows.first().map(|row| text(row, 0).parse()) {
            None => Ok(None),
            Some(Ok(outcome)) => Ok(Some(outcome)),
            Some(Err(_)) => Err(format!("the marker of branch {branch} can't be read")),
        }
    }
}

/// A row of XA RECOVER.
struct Recovered {
    format: i64,
    gtrid: Vec<u8>,
    bqual: Vec<u8>,
}

impl Recovered {
    fn read(row: &MySqlRow) -> Option<Self> {
        // MariaDB gives the ids as bytes, MySQL as text: the bytes are the same.
        let data: Vec<u8> = row.try_get_unchecked(3).ok()?;
        let (gtrid, bqual) = data.split_at_checked(text(row, 1).parse().ok()?)?;
        Some(Self {
            format: text(row, 0).parse().ok()?,
            gtrid: gtrid.to_vec(),
            bqual: bqual.to_vec(),
        })
    }

    fn in_doubt(&self) -> InDoubt {
        let parts = std::str::from_utf8(&self.gtrid)
            .ok()
            .zip(std::str::from_utf8(&self.bqual).ok());
        let branch = parts
            .filter(|_| self.format == FORMAT_ID)
            .and_then(|(transaction, number)| parse_parts(transaction, number));
        InDoubt {
            identifier: format!(
                "X'{}',X'{}',{}",
                hex(&self.gtrid),
                hex(&self.bqual),
                self.format
            ),
            branch,
        }
    }
}
