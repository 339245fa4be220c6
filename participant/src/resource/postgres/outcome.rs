//! How a branch on PostgreSQL ends, and how that is proved.
//!
//! `COMMIT PREPARED` of an unknown name says nothing: it may have been committed before, or rolled back by hand. What became of the
//! transaction is in the commit log, under the id that the vote carried: `pg_xact_status`. In one phase it is the marker row.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Row};
use tokio::time::Instant;
use unanimity_proto::v1::AbortCode;

use crate::{
    participant::{BranchId, InDoubt, Settled, Unavailable, Vote},
    resource::{
        CONTROL_TIMEOUT, Failure, MARKER_COMMITTED, MARKER_TABLE, MARKER_TOMBSTONE, PROVE_SECONDS,
        PURGE_BATCH,
        branches::{Lease, Standing, late_after_abort, late_after_commit, lost},
        identifier::{check, parse_gid},
        refusal,
    },
};

use super::{
    Inner,
    branch::PgBranch,
    values::{failure, is_dead, state},
};

/// What `COMMIT PREPARED` or `ROLLBACK PREPARED` came to.
pub(super) enum Finish {
    Done,
    /// There is no such prepared transaction, now.
    Unknown,
    Retry(String),
}

/// What the commit log says of a transaction id.
enum Status {
    Committed,
    Aborted,
    InProgress,
    /// It doesn't say: no id, one too old, or none of this database.
    Unknown(String),
}

impl Inner {
    /// See [`crate::participant::Participant::commit`].
    pub(super) async fn commit(&self, branch: &BranchId, proof: &str) -> Settled {
        if let Err(refusal) = check(branch) {
            return Settled::Lost(refusal.message);
        }
        let _call = self.branches.call(branch).await;
        let settled = match self.finish(branch, "COMMIT PREPARED").await {
            Finish::Done => Settled::Committed,
            Finish::Retry(problem) => Settled::Retry(problem),
            Finish::Unknown => match self.status(branch, proof).await {
                Ok(Status::Committed) => Settled::Committed,
                Ok(Status::Aborted) => Settled::Aborted,
                Ok(Status::InProgress) => {
                    Settled::Retry(format!("branch {branch} is being ended elsewhere"))
                }
                Ok(Status::Unknown(why)) => {
                    Settled::Lost(format!("branch {branch} is not prepared, and {why}"))
                }
                Err(problem) => Settled::Retry(problem),
            },
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

    /// See [`crate::participant::Participant::abort`].
    pub(super) async fn abort(&self, branch: &BranchId, proof: &str) -> Settled {
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
            Standing::InUse(pid) => {
                self.branches.ended(branch, late_after_abort(branch));
                self.fence(pid).await;
                return Settled::Aborted;
            }
            Standing::Absent | Standing::Voted(_) => {}
        }
        self.branches.ended(branch, late_after_abort(branch));
        match self.finish(branch, "ROLLBACK PREPARED").await {
            Finish::Done => Settled::Aborted,
            Finish::Retry(problem) => Settled::Retry(problem),
            Finish::Unknown if proof.is_empty() => Settled::Aborted,
            Finish::Unknown => match self.status(branch, proof).await {
                Ok(Status::Committed) => Settled::Committed,
                Ok(Status::Aborted | Status::Unknown(_)) => Settled::Aborted,
                Ok(Status::InProgress) => {
                    Settled::Retry(format!("branch {branch} is being ended elsewhere"))
                }
                Err(problem) => Settled::Retry(problem),
            },
        }
    }

    /// Runs `COMMIT PREPARED` or `ROLLBACK PREPARED`; both can be sent again without harm.
    pub(super) async fn finish(&self, branch: &BranchId, command: &str) -> Finish {
        let answer = self.control(|mut connection| async {
            let ran = sqlx::raw_sql(AssertSqlSafe(format!("{command} '{branch}'")))
                .execute(connection.connection())
                .await;
            (connection, ran.map(drop))
        });
        let error = match answer.await {
            Ok(Ok(())) => return Finish::Done,
            Ok(Err(error)) => error,
            Err(problem) => return Finish::Retry(problem),
        };
        match state(&error).as_str() {
            "42704" => Finish::Unknown,
            "55000" => Finish::Retry(format!(
                "branch {branch} is busy: somebody else is ending it"
            )),
            "42501" => Finish::Retry(format!(
                "branch {branch} belongs to another role: {error}; let every agent of the participant use one role"
            )),
            _ => Finish::Retry(format!("{command} of branch {branch}: {error}")),
        }
    }

    /// Runs statements of our own on a pooled connection, once more for each connection that the server has closed meanwhile.
    async fn control<T, W>(
        &self,
        work: impl Fn(PgBranch) -> W,
    ) -> Result<Result<T, sqlx::Error>, String>
    where
        W: Future<Output = (PgBranch, Result<T, sqlx::Error>)>,
    {
        let deadline = Instant::now() + CONTROL_TIMEOUT;
        let mut problem = String::new();
        for _ in 0..=self.connections {
            let acquired = tokio::time::timeout_at(deadline, self.pool.acquire()).await;
            let connection = acquired
                .map_err(|_| "no connection to PostgreSQL became free".to_owned())?
                .map_err(|error| format!("no connection to PostgreSQL: {error}"))?;
            let ran = tokio::time::timeout_at(deadline, work(PgBranch::new(connection))).await;
            let (connection, answer) = ran.map_err(|_| "PostgreSQL doesn't answer".to_owned())?;
            match answer {
                Err(error) if is_dead(&error) => problem = format!("PostgreSQL: {error}"),
                // After an error the connection may be inside a transaction: it is closed.
                Err(error) => return Ok(Err(error)),
                Ok(value) => {
                    connection.release();
                    return Ok(Ok(value));
                }
            }
        }
        Err(problem)
    }

    /// What became of the transaction that the vote named. Asked only after it was found not to be prepared; since the name is taken off
    /// the list after the commit log is written, what the log says then is final.
    async fn status(&self, branch: &BranchId, proof: &str) -> Result<Status, String> {
        if proof.parse::<u64>().is_err() {
            return Ok(Status::Unknown(match proof {
                "" => "the vote carried no proof".into(),
                _ => format!("{proof:?} is no transaction id of PostgreSQL's"),
            }));
        }
        let answer = self.control(|mut connection| async {
            let query = "SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE gid = $1), pg_xact_status($2::text::xid8)";
            let row = sqlx::query(query).bind(branch.to_string()).bind(proof).fetch_one(connection.connection()).await;
            let read = row.and_then(|row| Ok((row.try_get::<bool, _>(0)?, row.try_get::<Option<String>, _>(1)?)));
            (connection, read)
        });
        match answer.await? {
            Ok((true, _)) => Ok(Status::InProgress),
            Ok((false, status)) => Ok(match status.as_deref() {
                Some("committed") => Status::Committed,
                Some("aborted") => Status::Aborted,
                Some("in progress") => Status::InProgress,
                _ => Status::Unknown(format!("PostgreSQL no longer knows transaction {proof}")),
            }),
            // The id lies in the future of this database: it is another one, or was restored from before.
            Err(error) if matches!(state(&error).as_str(), "22023" | "22P02" | "22003") => {
                Ok(Status::Unknown(error.to_string()))
            }
            Err(error) => Err(format!(
                "the outcome of branch {branch} can't be read: {error}"
            )),
        }
    }

    /// Commits, and reads the marker back in the same message: that is the proof. Where no clear answer came the truth is found out,
    /// however long the database is away: this vote is the decision.
    pub(super) async fn commit_in_one_phase(
        &self,
        mut lease: Lease<PgBranch>,
        deadline: Instant,
    ) -> Vote {
        let branch = lease.branch().clone();
        let script = format!(
            "COMMIT; SELECT outcome::text FROM {MARKER_TABLE} WHERE transaction_id = '{}' AND branch = {}",
            branch.transaction, branch.number
        );
        let committing = sqlx::raw_sql(AssertSqlSafe(script)).fetch_optional(lease.connection());
        let limit = deadline.max(Instant::now() + CONTROL_TIMEOUT);
        let failed = match tokio::time::timeout_at(limit, committing).await {
            Ok(Ok(Some(_))) => {
                lease.end(Vote::Committed).release();
                return Vote::Committed;
            }
            Ok(Ok(None)) => {
                let message = "PostgreSQL rolled back instead of committing";
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
                    "PostgreSQL doesn't answer to the commit",
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
    /// a transaction that holds the key and hasn't ended.
    async fn prove_by_marker(&self, branch: &BranchId) -> Settled {
        let (transaction, number) = (&branch.transaction, branch.number);
        let script = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '{PROVE_SECONDS}s'; SET LOCAL synchronous_commit = on; \
             INSERT INTO {MARKER_TABLE} (transaction_id, branch, outcome) VALUES ('{transaction}', {number}, {MARKER_TOMBSTONE}) \
             ON CONFLICT (transaction_id, branch) DO NOTHING; COMMIT; \
             SELECT outcome::text FROM {MARKER_TABLE} WHERE transaction_id = '{transaction}' AND branch = {number}"
        );
        let answer = self.control(|mut connection| {
            let script = AssertSqlSafe(script.clone());
            async {
                let row = sqlx::raw_sql(script)
                    .fetch_optional(connection.connection())
                    .await;
                let read =
                    row.and_then(|row| row.map(|row| row.try_get::<String, _>(0)).transpose());
                (connection, read)
            }
        });
        let outcome = match answer.await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => return Settled::Retry(format!("branch {branch}: {error}")),
            Err(problem) => return Settled::Retry(problem),
        };
        match outcome.and_then(|outcome| outcome.parse().ok()) {
            Some(MARKER_COMMITTED) => Settled::Committed,
            Some(MARKER_TOMBSTONE) => Settled::Aborted,
            _ => Settled::Retry(format!("branch {branch}: the marker can't be read")),
        }
    }

    /// The vote of a branch whose marker's key, or request id, was taken before.
    pub(super) async fn vote_by_marker(&self, branch: &BranchId, request_id: &str) -> Vote {
        let answer = self.control(|mut connection| async {
            let query = "SELECT transaction_id::text, branch, outcome::int FROM unanimity_marker \
                 WHERE (transaction_id = $1 AND branch = $2) OR request_id = $3 \
                 ORDER BY (transaction_id = $1 AND branch = $2) DESC LIMIT 1";
            let row = sqlx::query(query)
                .bind(&branch.transaction)
                .bind(i64::from(branch.number))
                .bind(Some(request_id).filter(|id| !id.is_empty()))
                .fetch_optional(connection.connection())
                .await;
            let read = row.and_then(|row| {
                row.map(|row| {
                    Ok((
                        row.try_get::<String, _>(0)?,
                        row.try_get::<i32, _>(1)?,
                        row.try_get::<i32, _>(2)?,
                    ))
                })
                .transpose()
            });
            (connection, read)
        });
        let vote = match answer.await {
            Ok(Ok(Some((transaction, number, outcome)))) => {
                let own =
                    transaction == branch.transaction && u32::try_from(number) == Ok(branch.number);
                match (own, outcome) {
                    (true, MARKER_COMMITTED) => Vote::Committed,
                    (true, _) => Vote::No(lost(format!(
                        "branch {branch} was settled before: it did not commit"
                    ))),
                    (false, _) => Vote::Duplicate { transaction },
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

    /// See [`crate::participant::Participant::in_doubt`].
    pub(super) async fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        let answer = self.control(|mut connection| async {
            let query = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared";
            let gids = sqlx::query_scalar::<_, String>(query).fetch_all(connection.connection()).await;
            (connection, gids)
        });
        let gids = answer
            .await
            .map_err(Unavailable)?
            .map_err(|error| Unavailable(error.to_string()))?;
        Ok(gids
            .into_iter()
            .map(|gid| InDoubt {
                branch: parse_gid(&gid),
                identifier: gid,
            })
            .collect())
    }

    /// See [`super::PostgresResource::purge`].
    pub(super) async fn purge(&self) -> Result<u64, Unavailable> {
        let mut purged = 0;
        loop {
            let answer = self.control(|mut connection| async {
                let query = "DELETE FROM unanimity_marker WHERE (transaction_id, branch) IN (SELECT transaction_id, branch \
                     FROM unanimity_marker WHERE created_at < now() - make_interval(secs => $1) LIMIT $2)";
                let ran = sqlx::query(query)
                    .bind(self.retention.as_secs_f64())
                    .bind(PURGE_BATCH.cast_signed())
                    .execute(connection.connection())
                    .await;
                (connection, ran)
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
