//! How a branch on MySQL or MariaDB ends, and how that is proved.
//!
//! XAER_NOTA (1397) says nothing: the branch may have been committed before, or rolled back by hand, or be bound to another session that is
//! still connected. So XA RECOVER is read, and then the marker row, which every branch that changes anything writes: where the branch is
//! not prepared and the row not there, it did not commit.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Row, mysql::MySqlRow};
use tokio::time::Instant;
use unanimity_proto::v1::AbortCode;

use crate::{
    participant::{BranchId, InDoubt, Settled, Unavailable, Vote},
    resource::{
        CONTROL_TIMEOUT, Failure, MARKER_COMMITTED, MARKER_PROOF, MARKER_TABLE, MARKER_TOMBSTONE,
        PROVE_SECONDS, PURGE_BATCH,
        branches::{Lease, Standing, late_after_abort, late_after_commit, lost},
        identifier::{check, hex, marker_proves_absence, parse_parts},
        refusal,
    },
};

use super::{
    Inner,
    branch::{FORMAT_ID, MyBranch, xid},
    preflight::text,
    values::{failure, is_dead, number},
};

/// XAER_NOTA, XA_RBROLLBACK, XA_RBTIMEOUT, XA_RBDEADLOCK: there is no such prepared branch, for this session at least.
const GONE: [u16; 4] = [1397, 1402, 1613, 1614];

/// For how long a branch that is listed but bound to a session that just ended is waited for.
const DETACH_TRIES: u32 = 5;
const DETACH_PAUSE: Duration = Duration::from_millis(50);

/// What XA COMMIT or XA ROLLBACK came to.
pub(super) enum Finish {
    Done,
    /// There is no such prepared branch, now.
    Unknown,
    Retry(String),
}

impl Inner {
    /// See [`crate::participant::Participant::commit`].
    pub(super) async fn commit(&self, branch: &BranchId, proof: &str) -> Settled {
        if let Err(refusal) = check(branch) {
            return Settled::Lost(refusal.message);
        }
        let _call = self.branches.call(branch).await;
        let settled = match self.finish(branch, "XA COMMIT").await {
            Finish::Done => Settled::Committed,
            Finish::Retry(problem) => Settled::Retry(problem),
            Finish::Unknown => self.commit_by_marker(branch, proof).await,
        };
        match &settled {
            Settled::Committed => self.branches.ended(branch, late_after_commit(branch)),
            Settled::Aborted | Settled::Lost(_) => {
                self.branches.ended(branch, late_after_abort(branch))
            }
            Settled::Retry(_) => {}
        }
        settled
    }

    /// The outcome of a branch that is not prepared. Where the absence of the marker is a proof, a tombstone makes it one for good.
    async fn commit_by_marker(&self, branch: &BranchId, proof: &str) -> Settled {
        if proof == MARKER_PROOF && marker_proves_absence(branch, self.retention) {
            return self.prove_by_marker(branch).await;
        }
        match self.marker(branch).await {
            Ok(Some(MARKER_COMMITTED)) => Settled::Committed,
            Ok(Some(_)) => Settled::Aborted,
            Ok(None) if proof == MARKER_PROOF => Settled::Lost(format!(
                "branch {branch} is not prepared, and its marker, if it had one, may have been purged"
            )),
            Ok(None) => Settled::Lost(format!(
                "branch {branch} is not prepared, and the vote carried no proof"
            )),
            Err(problem) => Settled::Retry(problem),
        }
    }

    /// See [`crate::participant::Participant::abort`].
    pub(super) async fn abort(&self, branch: &BranchId, _proof: &str) -> Settled {
        if check(branch).is_err() {
            // Nothing of that name can ever have been prepared.
            return Settled::Aborted;
        }
        let _call = self.branches.call(branch).await;
        match self.branches.standing(branch) {
            Standing::Open(lease) => {
                let connection = lease.end(late_after_abort(branch));
                self.undo(connection, false).await;
                return Settled::Aborted;
            }
            Standing::InUse(id) => {
                self.branches.ended(branch, late_after_abort(branch));
                self.fence(id).await;
                return Settled::Aborted;
            }
            Standing::Absent | Standing::Voted(_) => {}
        }
        let settled = match self.finish(branch, "XA ROLLBACK").await {
            Finish::Done => Settled::Aborted,
            Finish::Retry(problem) => Settled::Retry(problem),
            Finish::Unknown => match self.marker(branch).await {
                Ok(Some(MARKER_COMMITTED)) => Settled::Committed,
                Ok(_) => Settled::Aborted,
                Err(problem) => Settled::Retry(problem),
            },
        };
        match settled {
            // The connection that a prepared branch is bound to must stay in the table until the branch is over.
            Settled::Retry(_)
                if matches!(
                    self.branches.standing(branch),
                    Standing::Voted(Vote::Yes { .. })
                ) => {}
            _ => self.branches.ended(branch, late_after_abort(branch)),
        }
        settled
    }

    /// Runs XA COMMIT or XA ROLLBACK, on the connection that the branch is bound to where this process has it, else on any. Both can be
    /// sent again without harm.
    pub(super) async fn finish(&self, branch: &BranchId, command: &str) -> Finish {
        if let Some(bound) = self.branches.prepared_connection(branch)
            && let Some(finish) = self.finish_bound(branch, bound, command).await
        {
            return finish;
        }
        for attempt in 0.. {
            let answer = self.control(|mut connection| async {
                let ran = sqlx::raw_sql(AssertSqlSafe(format!("{command} {}", xid(branch))))
                    .execute(connection.connection())
                    .await;
                (connection, ran.map(drop))
            });
            match answer.await {
                Ok(Ok(())) => return Finish::Done,
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

    /// Finishes on the connection that the branch is bound to. `None`: the connection is lost or knows no such branch; try another.
    async fn finish_bound(
        &self,
        branch: &BranchId,
        mut bound: MyBranch,
        command: &str,
    ) -> Option<Finish> {
        let id = bound.id();
        let script = AssertSqlSafe(format!("{command} {}", xid(branch)));
        let ran = tokio::time::timeout(
            CONTROL_TIMEOUT,
            sqlx::raw_sql(script).execute(bound.connection()),
        )
        .await;
        match ran {
            Ok(Ok(_)) => {
                bound.release();
                Some(Finish::Done)
            }
            Ok(Err(error)) if !is_dead(&error) && !GONE.contains(&number(&error)) => {
                // Read-only for a backup, or a lock wait: it stays prepared, and bound.
                self.branches.keep_connection(branch, bound);
                Some(Finish::Retry(format!(
                    "{command} of branch {branch}: {error}"
                )))
            }
            _ => {
                drop(bound);
                self.fence(id).await;
                None
            }
        }
    }

    /// Runs statements of our own on a pooled connection, once more for each connection that the server has closed meanwhile.
    async fn control<T, W>(
        &self,
        work: impl Fn(MyBranch) -> W,
    ) -> Result<Result<T, sqlx::Error>, String>
    where
        W: Future<Output = (MyBranch, Result<T, sqlx::Error>)>,
    {
        let deadline = Instant::now() + CONTROL_TIMEOUT;
        let mut problem = String::new();
        for _ in 0..=self.connections {
            let acquired = tokio::time::timeout_at(deadline, self.pool.acquire()).await;
            let connection = acquired
                .map_err(|_| "no connection to the database became free".to_owned())?
                .map_err(|error| format!("no connection to the database: {error}"))?;
            let ran = tokio::time::timeout_at(deadline, work(MyBranch::new(connection))).await;
            let (connection, answer) = ran.map_err(|_| "the database doesn't answer".to_owned())?;
            match answer {
                Err(error) if is_dead(&error) => problem = format!("the database: {error}"),
                // After an error the connection may be in some state: it is closed.
                Err(error) => return Ok(Err(error)),
                Ok(value) => {
                    connection.release();
                    return Ok(Ok(value));
                }
            }
        }
        Err(problem)
    }

    async fn recover(&self) -> Result<Vec<Recovered>, String> {
        let answer = self.control(|mut connection| async {
            let rows = sqlx::raw_sql("XA RECOVER")
                .fetch_all(connection.connection())
                .await;
            (connection, rows)
        });
        let rows = answer
            .await?
            .map_err(|error| format!("XA RECOVER: {error}"))?;
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

    /// See [`crate::participant::Participant::in_doubt`].
    pub(super) async fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        Ok(self
            .recover()
            .await
            .map_err(Unavailable)?
            .iter()
            .map(Recovered::in_doubt)
            .collect())
    }

    /// The marker's outcome. A locking read: it waits for a branch that holds the row and hasn't ended, so that "not there" is final.
    async fn marker(&self, branch: &BranchId) -> Result<Option<i32>, String> {
        let script = format!(
            "SET SESSION innodb_lock_wait_timeout = {PROVE_SECONDS}; SELECT outcome FROM {MARKER_TABLE} \
             WHERE transaction_id = X'{}' AND branch = {} LOCK IN SHARE MODE",
            hex(branch.transaction.as_bytes()),
            branch.number
        );
        let answer = self.control(|mut connection| {
            let script = AssertSqlSafe(script.clone());
            async {
                let rows = sqlx::raw_sql(script)
                    .fetch_all(connection.connection())
                    .await;
                (connection, rows)
            }
        });
        let rows = answer
            .await?
            .map_err(|error| format!("the marker of branch {branch}: {error}"))?;
        match rows.first().map(|row| text(row, 0).parse()) {
            None => Ok(None),
            Some(Ok(outcome)) => Ok(Some(outcome)),
            Some(Err(_)) => Err(format!("the marker of branch {branch} can't be read")),
        }
    }

    /// Commits. Where no clear answer came the truth is found out, however long the database is away: this vote is the decision.
    pub(super) async fn commit_in_one_phase(
        &self,
        mut lease: Lease<MyBranch>,
        commit: String,
        deadline: Instant,
    ) -> Vote {
        let branch = lease.branch().clone();
        // The marker is read back in the same message: that is the proof.
        let script = format!(
            "{commit}; SELECT outcome FROM {MARKER_TABLE} WHERE transaction_id = X'{}' AND branch = {}",
            hex(branch.transaction.as_bytes()),
            branch.number
        );
        let committing = sqlx::raw_sql(AssertSqlSafe(script)).fetch_all(lease.connection());
        let limit = deadline.max(Instant::now() + CONTROL_TIMEOUT);
        let failed = match tokio::time::timeout_at(limit, committing).await {
            Ok(Ok(rows)) if !rows.is_empty() => {
                lease.end(Vote::Committed).release();
                return Vote::Committed;
            }
            Ok(Ok(_)) => {
                let message = "the database rolled back instead of committing";
                Failure {
                    refusal: refusal(AbortCode::ParticipantFailure, message),
                    broken: true,
                }
            }
            Ok(Err(error)) => Failure {
                broken: true,
                ..failure("commit", &error)
            },
            Err(_) => Failure {
                refusal: refusal(
                    AbortCode::Timeout,
                    "the database doesn't answer to the commit",
                ),
                broken: true,
            },
        };
        let refusal = self.doom(lease, failed).await;
        let vote = if self.settle(&branch).await {
            Vote::Committed
        } else {
            Vote::No(refusal)
        };
        self.branches.ended(&branch, vote.clone());
        vote
    }

    /// Whether a branch told to commit in one phase did so. Asks until it knows.
    async fn settle(&self, branch: &BranchId) -> bool {
        let mut pause = Duration::from_millis(20);
        loop {
            match self.prove_by_marker(branch).await {
                Settled::Committed => return true,
                Settled::Aborted => return false,
                Settled::Lost(problem) | Settled::Retry(problem) => {
                    tracing::warn!(%branch, problem, "the outcome of a one-phase commit is not known yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
        }
    }

    /// See [`crate::participant::Participant::prove`].
    pub(super) async fn prove(&self, branch: &BranchId) -> Settled {
        if check(branch).is_err() {
            return Settled::Aborted;
        }
        let _call = self.branches.call(branch).await;
        let settled = self.prove_by_marker(branch).await;
        match &settled {
            Settled::Committed => self.branches.ended(branch, Vote::Committed),
            Settled::Aborted => self.branches.ended(branch, late_after_abort(branch)),
            Settled::Lost(_) | Settled::Retry(_) => {}
        }
        settled
    }

    /// Competes for the marker's key. Whoever has the row has decided: the branch by its commit, or the tombstone. The insertion waits for
    /// a branch that holds the key and hasn't ended.
    async fn prove_by_marker(&self, branch: &BranchId) -> Settled {
        let script = format!(
            "SET SESSION innodb_lock_wait_timeout = {PROVE_SECONDS}; \
             INSERT INTO {MARKER_TABLE} (transaction_id, branch, outcome) VALUES (X'{}', {}, {MARKER_TOMBSTONE})",
            hex(branch.transaction.as_bytes()),
            branch.number
        );
        let answer = self.control(|mut connection| {
            let script = AssertSqlSafe(script.clone());
            async {
                let inserted = sqlx::raw_sql(script).execute(connection.connection()).await;
                (connection, inserted.map(drop))
            }
        });
        match answer.await {
            Ok(Ok(())) => return Settled::Aborted,
            Ok(Err(error)) if number(&error) == 1062 => {}
            Ok(Err(error)) => return Settled::Retry(format!("branch {branch}: {error}")),
            Err(problem) => return Settled::Retry(problem),
        }
        match self.marker(branch).await {
            Ok(Some(MARKER_COMMITTED)) => Settled::Committed,
            Ok(Some(MARKER_TOMBSTONE)) => Settled::Aborted,
            Ok(_) => Settled::Retry(format!("branch {branch}: the marker can't be read")),
            Err(problem) => Settled::Retry(problem),
        }
    }

    /// The vote of a branch whose marker's key, or request id, was taken before.
    pub(super) async fn vote_by_marker(&self, branch: &BranchId, request_id: &str) -> Vote {
        let answer = self.control(|mut connection| async {
            let query = "SELECT transaction_id, CAST(branch AS SIGNED), CAST(outcome AS SIGNED) FROM unanimity_marker \
                 WHERE (transaction_id = ? AND branch = ?) OR request_id = ? \
                 ORDER BY (transaction_id = ? AND branch = ?) DESC LIMIT 1";
            let row = sqlx::query(query)
                .bind(branch.transaction.as_bytes())
                .bind(branch.number)
                .bind(Some(request_id.as_bytes()).filter(|id| !id.is_empty()))
                .bind(branch.transaction.as_bytes())
                .bind(branch.number)
                .fetch_optional(connection.connection())
                .await;
            let read = row.and_then(|row| {
                row.map(|row| Ok((row.try_get::<Vec<u8>, _>(0)?, row.try_get::<i64, _>(1)?, row.try_get::<i64, _>(2)?))).transpose()
            });
            (connection, read)
        });
        let vote = match answer.await {
            Ok(Ok(Some((transaction, number, outcome)))) => {
                let own = transaction == branch.transaction.as_bytes()
                    && number == i64::from(branch.number);
                match (own, outcome == i64::from(MARKER_COMMITTED)) {
                    (true, true) => Vote::Committed,
                    (true, false) => Vote::No(lost(format!(
                        "branch {branch} was settled before: it did not commit"
                    ))),
                    (false, _) => Vote::Duplicate {
                        transaction: String::from_utf8_lossy(&transaction).into_owned(),
                    },
                }
            }
            Ok(Ok(None)) => Vote::No(refusal(
                AbortCode::Conflict,
                "a transaction with the same request id was just undone",
            )),
            Ok(Err(error)) => Vote::No(failure("marker", &error).refusal),
            Err(problem) => Vote::No(refusal(AbortCode::ParticipantUnavailable, problem)),
        };
        self.branches.ended(branch, vote.clone());
        vote
    }

    /// See [`super::MysqlResource::purge`].
    pub(super) async fn purge(&self) -> Result<u64, Unavailable> {
        let seconds = self.retention.as_secs();
        let script = format!(
            "SET SESSION innodb_lock_wait_timeout = 1; DELETE FROM {MARKER_TABLE} \
             WHERE created_at < NOW() - INTERVAL {seconds} SECOND ORDER BY created_at LIMIT {PURGE_BATCH}"
        );
        let mut purged = 0;
        loop {
            let answer = self.control(|mut connection| {
                let script = AssertSqlSafe(script.clone());
                async {
                    let ran = sqlx::raw_sql(script).execute(connection.connection()).await;
                    (connection, ran)
                }
            });
            let done = answer
                .await
                .map_err(Unavailable)?
                .map_err(|error| Unavailable(error.to_string()))?;
            purged += done.rows_affected();
            if done.rows_affected() < PURGE_BATCH {
                return Ok(purged);
            }
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
