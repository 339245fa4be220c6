//! What a saga's steps need of SQLite besides. The one writer makes it easy: nobody is ever in between.

use sqlx::SqliteConnection;
use tokio::time::Instant;
use unanimity_proto::v1::AbortCode;

use crate::{
    participant::{BranchId, Settled},
    resource::{
        Failure, MARKER_COMMITTED, MARKER_TOMBSTONE,
        flow::{StepRules, Undone},
        refusal,
    },
};

use super::{
    SqliteFile,
    branch::LiteBranch,
    outcome::read_marker,
    values::{failure, is_constraint},
    writer::Writer,
};

const INSERT_TOMBSTONE: &str =
    "INSERT INTO unanimity_marker (transaction_id, branch, outcome) VALUES (?, ?, ?)";

impl StepRules for SqliteFile {
    async fn raise(
        &self,
        opened: &mut LiteBranch,
        key: &str,
        token: i64,
        _deadline: Instant,
    ) -> Result<i64, Failure> {
        let query = "INSERT INTO unanimity_fence (lock_key, token) VALUES (?, ?) \
             ON CONFLICT (lock_key) DO UPDATE SET token = max(token, excluded.token) RETURNING token";
        sqlx::query_scalar(query)
            .bind(key.to_owned())
            .bind(token)
            .fetch_one(opened.connection())
            .await
            .map_err(|error| failure("fence", &error))
    }

    async fn contest(
        &self,
        opened: &mut LiteBranch,
        action: &BranchId,
        _deadline: Instant,
    ) -> Result<Undone, Failure> {
        let contested = async {
            if let Some(outcome) = read_marker(opened.connection(), action).await? {
                return Ok(Some(outcome));
            }
            insert_tombstone(opened.connection(), action).await?;
            Ok(None)
        };
        match contested.await {
            Ok(None) => Ok(Undone::Absent),
            Ok(Some(MARKER_COMMITTED)) => Ok(Undone::Committed),
            Ok(Some(_)) => Ok(Undone::Tombstone),
            Err(error) => Err(failure("the action's marker", &error)),
        }
    }

    async fn keep(
        &self,
        opened: &mut LiteBranch,
        branch: &BranchId,
        result: &str,
        _deadline: Instant,
    ) -> Result<(), Failure> {
        let query =
            "UPDATE unanimity_marker SET result = ? WHERE transaction_id = ? AND branch = ?";
        let kept = sqlx::query(query)
            .bind(result.to_owned())
            .bind(branch.transaction.clone())
            .bind(branch.number)
            .execute(opened.connection())
            .await
            .map_err(|error| failure("the result", &error))?;
        (kept.rows_affected() == 1).then_some(()).ok_or_else(|| {
            refusal(AbortCode::ParticipantFailure, "the marker can't be read").into()
        })
    }

    /// Nobody else gets the writer until it is known.
    async fn find_out(&self, branch: &BranchId, left: &mut Option<LiteBranch>) -> Settled {
        match left {
            Some(connection) => displace(connection.writer(), branch).await,
            None => Settled::Retry(format!("the connection of step {branch} is gone")),
        }
    }
}

async fn insert_tombstone(
    connection: &mut SqliteConnection,
    branch: &BranchId,
) -> Result<(), sqlx::Error> {
    sqlx::query(INSERT_TOMBSTONE)
        .bind(branch.transaction.clone())
        .bind(branch.number)
        .bind(MARKER_TOMBSTONE)
        .execute(connection)
        .await
        .map(drop)
}

/// Reads the marker; where there is none, commits something in the place of the COMMIT that failed. If only its sync failed, it stands in
/// the log still, whole, and a crash would bring it back; what is committed now is written over it. A tombstone that is deleted at once will do.
async fn displace(writer: &mut Writer, branch: &BranchId) -> Settled {
    let displaced = async {
        let connection = writer.open().await?;
        sqlx::raw_sql("BEGIN IMMEDIATE")
            .execute(&mut *connection)
            .await?;
        match insert_tombstone(connection, branch).await {
            Ok(()) => {}
            Err(error) if is_constraint(&error) => {
                let found = read_marker(connection, branch).await?;
                sqlx::raw_sql("ROLLBACK").execute(connection).await?;
                return Ok(found);
            }
            Err(error) => return Err(error),
        }
        sqlx::query("DELETE FROM unanimity_marker WHERE transaction_id = ? AND branch = ?")
            .bind(branch.transaction.clone())
            .bind(branch.number)
            .execute(&mut *connection)
            .await?;
        sqlx::raw_sql("COMMIT").execute(connection).await?;
        Ok(None)
    };
    match displaced.await {
        Ok(Some(MARKER_COMMITTED)) => Settled::Committed,
        Ok(_) => Settled::Aborted,
        Err(error) => {
            writer.close();
            Settled::Retry(format!("branch {branch}: {error}"))
        }
    }
}
