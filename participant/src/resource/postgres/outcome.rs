//! How a branch on PostgreSQL ends, and how that is proved.
//!
//! `COMMIT PREPARED` of an unknown name says nothing: it may have been committed before, or rolled back by hand. What became of the
//! transaction is in the commit log, under the id that the vote carried: `pg_xact_status`. In one phase it is the marker row.

use sqlx::{Row, postgres::PgRow};
use unanimity_proto::v1::AbortCode;

use crate::{
    participant::{BranchId, InDoubt, Refusal, Settled, Unavailable},
    resource::{
        MARKER_COMMITTED, MARKER_TABLE, MARKER_TOMBSTONE, PROVE_SECONDS, PURGE_BATCH,
        branches::Branches,
        connections::available,
        flow::{BranchRules, Marker, OutcomeRules},
        identifier::parse_gid,
        refusal,
    },
};

use super::{
    PostgresServer,
    branch::PgBranch,
    values::{failure, state},
};

/// Whether a branch is prepared, and what the commit log says of its transaction id.
const STATUS: &str =
    "SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE gid = $1), pg_xact_status($2::text::xid8)";

const IN_DOUBT: &str =
    "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared";

/// The marker under a branch's key, or else under a request id.
const FIND_MARKER: &str = "SELECT transaction_id::text, branch::bigint, outcome::int, result FROM unanimity_marker \
     WHERE (transaction_id = $1 AND branch = $2) OR request_id = $3 \
     ORDER BY (transaction_id = $1 AND branch = $2) DESC LIMIT 1";

const PURGE: &str = "DELETE FROM unanimity_marker WHERE (transaction_id, branch) IN (SELECT transaction_id, branch \
     FROM unanimity_marker WHERE created_at < now() - make_interval(secs => $1) LIMIT $2)";

/// What `COMMIT PREPARED` or `ROLLBACK PREPARED` came to.
enum Finish {
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

impl OutcomeRules for PostgresServer {
    async fn settle(&self, branch: &BranchId, left: &mut Option<PgBranch>) -> Settled {
        if let Some(connection) = left.take() {
            self.undo(connection, true).await;
        }
        self.prove(branch).await
    }

    async fn commit_prepared(
        &self,
        branch: &BranchId,
        proof: &str,
        _bound: &mut Option<PgBranch>,
    ) -> Settled {
        match self.finish(branch, "COMMIT PREPARED").await {
            Finish::Done => Settled::Committed,
            Finish::Retry(problem) => Settled::Retry(problem),
            Finish::Unknown if cfg!(unanimity_bug = "postgres-unknown-is-done") => {
                Settled::Committed
            }
            Finish::Unknown => match self.status(branch, proof).await {
                Ok(Status::Committed) => Settled::Committed,
                Ok(Status::Aborted) => Settled::Aborted,
                Ok(Status::InProgress) => in_progress(branch),
                Ok(Status::Unknown(why)) => {
                    Settled::Lost(format!("branch {branch} is not prepared, and {why}"))
                }
                Err(problem) => Settled::Retry(problem),
            },
        }
    }

    async fn abort_prepared(
        &self,
        branch: &BranchId,
        proof: &str,
        _bound: &mut Option<PgBranch>,
    ) -> Settled {
        match self.finish(branch, "ROLLBACK PREPARED").await {
            Finish::Done => Settled::Aborted,
            Finish::Retry(problem) => Settled::Retry(problem),
            Finish::Unknown if proof.is_empty() => Settled::Aborted,
            Finish::Unknown => match self.status(branch, proof).await {
                Ok(Status::Committed) => Settled::Committed,
                Ok(Status::Aborted | Status::Unknown(_)) => Settled::Aborted,
                Ok(Status::InProgress) => in_progress(branch),
                Err(problem) => Settled::Retry(problem),
            },
        }
    }

    async fn prove(&self, branch: &BranchId) -> Settled {
        self.compete(branch, !cfg!(unanimity_bug = "proof-does-not-fence"))
            .await
    }

    async fn marker(&self, branch: &BranchId, request_id: &str) -> Result<Option<Marker>, Refusal> {
        let answer = self.connections.query(|mut connection| async {
            let found = sqlx::query(FIND_MARKER)
                .bind(&branch.transaction)
                .bind(i64::from(branch.number))
                .bind(Some(request_id).filter(|id| !id.is_empty()))
                .fetch_optional(connection.connection())
                .await;
            let read = |row: PgRow| {
                Ok(Marker {
                    transaction: row.try_get(0)?,
                    number: row.try_get(1)?,
                    committed: row.try_get::<i32, _>(2)? == MARKER_COMMITTED,
                    result: row.try_get::<Option<String>, _>(3)?.unwrap_or_default(),
                })
            };
            (connection, found.and_then(|row| row.map(read).transpose()))
        });
        answer
            .await
            .map_err(|problem| refusal(AbortCode::ParticipantUnavailable, problem))?
            .map_err(|error| failure("marker", &error).refusal)
    }

    async fn in_doubt(&self, _here: &Branches<PgBranch>) -> Result<Vec<InDoubt>, Unavailable> {
        let rows = available(self.connections.script(IN_DOUBT).await)?;
        let in_doubt = |row: &PgRow| {
            let identifier: String = row.try_get(0)?;
            Ok(InDoubt {
                branch: parse_gid(&identifier),
                identifier,
            })
        };
        let listed: Result<_, sqlx::Error> = rows.iter().map(in_doubt).collect();
        listed.map_err(|error| Unavailable(error.to_string()))
    }

    async fn purge_batch(&self) -> Result<u64, Unavailable> {
        let answer = self.connections.query(|mut connection| async {
            let purged = sqlx::query(PURGE)
                .bind(self.retention.as_secs_f64())
                .bind(PURGE_BATCH.cast_signed())
                .execute(connection.connection())
                .await;
            (connection, purged)
        });
        available(answer.await).map(|done| done.rows_affected())
    }
}

fn in_progress(branch: &BranchId) -> Settled {
    Settled::Retry(format!("branch {branch} is being ended elsewhere"))
}

impl PostgresServer {
    /// Inserts a tombstone, which waits for a transaction that holds the key and hasn't ended, and reads what stands there. Where the tombstone
    /// isn't to `stay` it is rolled back: that it could be written tells that no commit came before, but one may come after.
    pub(super) async fn compete(&self, branch: &BranchId, stay: bool) -> Settled {
        let (transaction, number) = (&branch.transaction, branch.number);
        let read = format!(
            "SELECT outcome::text FROM {MARKER_TABLE} WHERE transaction_id = '{transaction}' AND branch = {number}"
        );
        let end = if stay {
            format!("COMMIT; {read}")
        } else {
            format!("{read}; ROLLBACK")
        };
        let script = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '{PROVE_SECONDS}s'; SET LOCAL synchronous_commit = on; \
             INSERT INTO {MARKER_TABLE} (transaction_id, branch, outcome) VALUES ('{transaction}', {number}, {MARKER_TOMBSTONE}) \
             ON CONFLICT (transaction_id, branch) DO NOTHING; {end}"
        );
        let rows = match self.connections.script(&script).await {
            Ok(Ok(rows)) => rows,
            Ok(Err(error)) => return Settled::Retry(format!("branch {branch}: {error}")),
            Err(problem) => return Settled::Retry(problem),
        };
        let outcome = rows.first().and_then(|row| row.try_get::<&str, _>(0).ok());
        match outcome.and_then(|outcome| outcome.parse().ok()) {
            Some(MARKER_COMMITTED) => Settled::Committed,
            Some(MARKER_TOMBSTONE) => Settled::Aborted,
            _ => Settled::Retry(format!("branch {branch}: the marker can't be read")),
        }
    }

    /// Runs `COMMIT PREPARED` or `ROLLBACK PREPARED`; both can be sent again without harm.
    async fn finish(&self, branch: &BranchId, command: &str) -> Finish {
        let script = format!("{command} '{branch}'");
        let error = match self.connections.script(&script).await {
            Ok(Ok(_)) => return Finish::Done,
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

    /// What became of the transaction that the vote named. Asked only after it was found not to be prepared; since the name is taken off
    /// the list after the commit log is written, what the log says then is final.
    async fn status(&self, branch: &BranchId, proof: &str) -> Result<Status, String> {
        if proof.parse::<u64>().is_err() {
            return Ok(Status::Unknown(match proof {
                "" => "the vote carried no proof".into(),
                _ => format!("{proof:?} is no transaction id of PostgreSQL's"),
            }));
        }
        let answer = self.connections.query(|mut connection| async {
            let row = sqlx::query(STATUS)
                .bind(branch.to_string())
                .bind(proof)
                .fetch_one(connection.connection())
                .await;
            let read = |row: PgRow| {
                Ok((
                    row.try_get::<bool, _>(0)?,
                    row.try_get::<Option<String>, _>(1)?,
                ))
            };
            (connection, row.and_then(read))
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
}
