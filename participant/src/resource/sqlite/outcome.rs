//! How a branch on SQLite ends, and how that is proved: by its marker row, which is part of the branch.

use std::{sync::Arc, time::Duration};

use sqlx::ConnectOptions;
use tokio::{sync::OwnedMutexGuard, time::Instant};
use unanimity_proto::v1::AbortCode;

use crate::{
    participant::{BranchId, Refusal, Settled, Unavailable, Vote},
    resource::{
        CONTROL_TIMEOUT, MARKER_COMMITTED, MARKER_TOMBSTONE, PROVE_SECONDS, PURGE_BATCH, PreflightError,
        branches::{Lease, Standing, late_after_abort, late_after_commit, lost},
        identifier::{check, marker_proves_absence},
        refusal,
    },
};

use super::{
    Inner,
    branch::{SqliteBranch, Writer, read_marker, yes},
    changeset::{ReplayError, replay},
    journal::Record,
    values::failure,
};

/// What a journal's record came to.
enum Restored {
    /// Its branch is in the marker table: over.
    Over(i32),
    /// Its changes were made once more, in a transaction that is open now.
    Prepared,
    /// They can't be made any more. No transaction is open.
    Conflict(String),
}

impl Inner {
    /// Takes up the branch that was prepared before a crash, ahead of any other.
    pub(super) async fn take_up(&self) -> Result<(), PreflightError> {
        let unreadable = |error| PreflightError::Unavailable(format!("the prepare journal can't be read: {error}"));
        let Some(record) = self.journal.read().map_err(unreadable)? else {
            // None, or one that was cut short: its branch had not voted.
            self.journal.clear();
            return Ok(());
        };
        let mut branch = SqliteBranch::new(Arc::clone(&self.writer).lock_owned().await);
        match restore(branch.writer(), &record).await {
            Ok(Restored::Over(_)) => {
                self.journal.clear();
                branch.release();
                return Ok(());
            }
            Ok(Restored::Prepared) => tracing::info!(branch = %record.branch, "a branch prepared before the last stop is in doubt"),
            Ok(Restored::Conflict(conflict)) => {
                tracing::error!(branch = %record.branch, conflict, "a branch prepared before the last stop can't be committed any more");
                branch.conflict = Some(conflict);
            }
            Err(problem) => {
                branch.undo().await;
                return Err(PreflightError::Unavailable(format!("branch {}: {problem}", record.branch)));
            }
        }
        self.branches.found_prepared(&record.branch, yes(), Some(branch));
        Ok(())
    }

    /// See [`crate::participant::Participant::commit`].
    pub(super) async fn commit(&self, branch: &BranchId) -> Settled {
        if let Err(refusal) = check(branch) {
            return Settled::Lost(refusal.message);
        }
        let _call = self.branches.call(branch).await;
        let settled = match self.branches.prepared_connection(branch) {
            Some(prepared) => self.commit_prepared(branch, prepared).await,
            None => self.commit_absent(branch).await,
        };
        match &settled {
            Settled::Committed => self.branches.ended(branch, late_after_commit(branch)),
            Settled::Aborted | Settled::Lost(_) => self.branches.ended(branch, late_after_abort(branch)),
            Settled::Retry(_) => {}
        }
        settled
    }

    async fn commit_prepared(&self, branch: &BranchId, mut prepared: SqliteBranch) -> Settled {
        if let Some(conflict) = prepared.conflict.clone() {
            return self.give_up(branch, prepared, &conflict);
        }
        let problem = if prepared.writer().is_connected() {
            match prepared.writer().commit().await {
                Ok(()) => {
                    // Unforced: from now on the marker proves it.
                    self.journal.clear();
                    prepared.release();
                    return Settled::Committed;
                }
                Err(error) => {
                    prepared.writer().close().await;
                    format!("COMMIT of branch {branch}: {error}")
                }
            }
        } else {
            format!("branch {branch} is being restored")
        };
        // As after a crash.
        let restored = match self.journal.read() {
            Ok(Some(record)) if record.branch == *branch => restore(prepared.writer(), &record).await,
            Ok(_) => Err("the prepare journal has lost it".into()),
            Err(error) => Err(format!("the prepare journal can't be read: {error}")),
        };
        match restored {
            Ok(Restored::Over(outcome)) => {
                self.journal.clear();
                prepared.release();
                if outcome == MARKER_COMMITTED { Settled::Committed } else { Settled::Aborted }
            }
            Ok(Restored::Prepared) => {
                self.branches.keep_connection(branch, prepared);
                Settled::Retry(problem)
            }
            Ok(Restored::Conflict(conflict)) => {
                let settled = Settled::Retry(format!("{problem}; {conflict}"));
                prepared.conflict = Some(conflict);
                self.branches.keep_connection(branch, prepared);
                settled
            }
            Err(why) => {
                prepared.writer().close().await;
                self.branches.keep_connection(branch, prepared);
                Settled::Retry(format!("{problem}; {why}"))
            }
        }
    }

    /// The branch is to commit, and can't: its changes are put aside, and people must see to it.
    fn give_up(&self, branch: &BranchId, prepared: SqliteBranch, conflict: &str) -> Settled {
        let kept = match self.journal.read() {
            Ok(Some(record)) if record.branch == *branch => self.journal.keep_lost(&record),
            Ok(_) => Err(std::io::Error::other("the prepare journal has lost it")),
            Err(error) => Err(error),
        };
        match kept {
            Ok(path) => {
                self.journal.clear();
                prepared.release();
                Settled::Lost(format!(
                    "branch {branch} was changed by somebody else since it was prepared: {conflict}; changeset kept at {}",
                    path.display()
                ))
            }
            Err(error) => {
                self.branches.keep_connection(branch, prepared);
                Settled::Retry(format!("branch {branch}: {conflict}, and its changeset can't be put aside: {error}"))
            }
        }
    }

    async fn commit_absent(&self, branch: &BranchId) -> Settled {
        match self.marker(branch).await {
            Err(problem) => Settled::Retry(problem),
            Ok(Some(MARKER_COMMITTED)) => Settled::Committed,
            Ok(Some(_)) => Settled::Aborted,
            Ok(None) => {
                let kept = self.journal.lost_path(branch);
                if kept.exists() {
                    return Settled::Lost(format!("branch {branch} could not be committed; changeset kept at {}", kept.display()));
                }
                // The marker is part of the branch: where neither is, it didn't commit.
                if marker_proves_absence(branch, self.retention) {
                    return Settled::Aborted;
                }
                Settled::Lost(format!("branch {branch} is not prepared, and so old that its marker row may have been purged"))
            }
        }
    }

    /// See [`crate::participant::Participant::abort`].
    pub(super) async fn abort(&self, branch: &BranchId) -> Settled {
        if check(branch).is_err() {
            // Nothing of that name can ever have been prepared.
            return Settled::Aborted;
        }
        let _call = self.branches.call(branch).await;
        match self.branches.standing(branch) {
            Standing::Open(lease) => {
                lease.end(late_after_abort(branch)).undo().await;
                return Settled::Aborted;
            }
            Standing::InUse(stop) => {
                // It rolls back when the service lets go of it, and can't commit until then: its table says that it has ended, and the
                // connection takes no COMMIT but the agent's.
                stop.stop();
                self.branches.ended(branch, late_after_abort(branch));
                return Settled::Aborted;
            }
            Standing::Absent | Standing::Voted(_) => {}
        }
        let settled = match self.branches.prepared_connection(branch) {
            Some(prepared) => self.abort_prepared(branch, prepared).await,
            None => match self.marker(branch).await {
                Ok(Some(MARKER_COMMITTED)) => Settled::Committed,
                Ok(_) => Settled::Aborted,
                Err(problem) => Settled::Retry(problem),
            },
        };
        match &settled {
            Settled::Committed => self.branches.ended(branch, late_after_commit(branch)),
            Settled::Aborted | Settled::Lost(_) => self.branches.ended(branch, late_after_abort(branch)),
            Settled::Retry(_) => {}
        }
        settled
    }

    async fn abort_prepared(&self, branch: &BranchId, mut prepared: SqliteBranch) -> Settled {
        if prepared.conflict.is_some() || prepared.writer().is_connected() {
            return self.close(prepared, Settled::Aborted).await;
        }
        // A COMMIT failed, and nothing is known since: the marker tells.
        match self.marker(branch).await {
            Ok(Some(MARKER_COMMITTED)) => self.close(prepared, Settled::Committed).await,
            Ok(_) => self.close(prepared, Settled::Aborted).await,
            Err(problem) => {
                self.branches.keep_connection(branch, prepared);
                Settled::Retry(problem)
            }
        }
    }

    /// Rolls back what is open, and clears the journal before the next branch is let in. Clearing isn't forced: should a crash bring the
    /// record back, it is in doubt after the start, and aborted once more.
    async fn close(&self, mut prepared: SqliteBranch, settled: Settled) -> Settled {
        if prepared.conflict.is_none() {
            prepared.writer().rollback().await;
        }
        self.journal.clear();
        prepared.release();
        settled
    }

    /// Commits, and says so only when SQLite does. Where it doesn't the truth is found out: this vote is the decision.
    pub(super) async fn commit_in_one_phase(&self, mut lease: Lease<SqliteBranch>) -> Vote {
        let branch = lease.branch().clone();
        let error = match lease.writer().commit().await {
            Ok(()) => {
                lease.end(Vote::Committed).release();
                return Vote::Committed;
            }
            Err(error) => error,
        };
        // Closed, it can't commit any more.
        lease.writer().close().await;
        let refused = failure("commit", &error).refusal;
        let mut pause = Duration::from_millis(20);
        let vote = loop {
            match self.marker(&branch).await {
                Ok(Some(MARKER_COMMITTED)) => break Vote::Committed,
                Ok(_) => break Vote::No(refused),
                Err(problem) => {
                    tracing::warn!(%branch, problem, "the outcome of a one-phase commit is not known yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
        };
        lease.end(vote.clone()).release();
        vote
    }

    /// See [`crate::participant::Participant::prove`].
    pub(super) async fn prove(&self, branch: &BranchId) -> Settled {
        if check(branch).is_err() {
            return Settled::Aborted;
        }
        let _call = self.branches.call(branch).await;
        match self.branches.standing(branch) {
            Standing::Open(lease) => lease.end(late_after_abort(branch)).undo().await,
            Standing::InUse(stop) => {
                stop.stop();
                self.branches.ended(branch, late_after_abort(branch));
            }
            Standing::Voted(Vote::Yes { .. }) => return Settled::Retry(format!("branch {branch} is prepared in two phases")),
            Standing::Absent | Standing::Voted(_) => {}
        }
        let settled = match self.prove_by_marker(branch).await {
            Ok(Some(MARKER_COMMITTED)) => Settled::Committed,
            Ok(Some(_)) => Settled::Aborted,
            Ok(None) => Settled::Retry(format!("branch {branch}: the marker can't be read")),
            Err(problem) => Settled::Retry(problem),
        };
        match &settled {
            Settled::Committed => self.branches.ended(branch, Vote::Committed),
            Settled::Aborted => self.branches.ended(branch, late_after_abort(branch)),
            Settled::Lost(_) | Settled::Retry(_) => {}
        }
        settled
    }

    /// Competes for the marker's key. Whoever has the row has decided: the branch by its commit, or the tombstone.
    async fn prove_by_marker(&self, branch: &BranchId) -> Result<Option<i32>, String> {
        if let Some(outcome) = self.marker(branch).await? {
            return Ok(Some(outcome));
        }
        let mut writer = self.hold(Duration::from_secs(PROVE_SECONDS)).await.ok_or("another branch holds this database's only writer")?;
        let outcome = async {
            let connection = writer.begin_own().await?;
            let insert = "INSERT INTO main.unanimity_marker (transaction_id, branch, outcome) VALUES (?, ?, ?) \
                 ON CONFLICT (transaction_id, branch) DO NOTHING";
            sqlx::query(insert)
                .bind(branch.transaction.clone())
                .bind(i64::from(branch.number))
                .bind(MARKER_TOMBSTONE)
                .execute(&mut *connection)
                .await?;
            read_marker(connection, branch).await
        };
        let outcome = outcome.await;
        writer.end_own();
        if outcome.is_err() {
            writer.close().await;
        }
        outcome.map_err(|error: sqlx::Error| format!("branch {branch}: {error}"))
    }

    async fn hold(&self, limit: Duration) -> Option<OwnedMutexGuard<Writer>> {
        tokio::time::timeout(limit, Arc::clone(&self.writer).lock_owned()).await.ok()
    }

    /// The outcome that a branch's marker row shows, whoever holds the writer.
    async fn marker(&self, branch: &BranchId) -> Result<Option<i32>, String> {
        let mut reader = self.reader.lock().await;
        let read = async {
            if reader.is_none() {
                *reader = Some(self.options.connect().await?);
            }
            let connection = reader.as_mut().ok_or(sqlx::Error::WorkerCrashed)?;
            read_marker(connection, branch).await
        };
        let outcome = tokio::time::timeout(CONTROL_TIMEOUT, read).await;
        match outcome {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(error)) => {
                *reader = None;
                Err(format!("the marker of branch {branch} can't be read: {error}"))
            }
            Err(_) => {
                *reader = None;
                Err(format!("the marker of branch {branch} can't be read in time"))
            }
        }
    }

    /// The vote of a branch whose marker's key, or request id, was taken before.
    pub(super) async fn vote_by_marker(&self, branch: &BranchId, request_id: &str) -> Vote {
        let vote = match self.marker(branch).await {
            Ok(Some(MARKER_COMMITTED)) => Vote::Committed,
            Ok(Some(_)) => Vote::No(lost(format!("branch {branch} was settled before: it did not commit"))),
            Ok(None) => match self.holder(request_id).await {
                Ok(Some(transaction)) => Vote::Duplicate { transaction },
                Ok(None) => Vote::No(refusal(AbortCode::Conflict, "a transaction with the same request id was just undone")),
                Err(refusal) => Vote::No(refusal),
            },
            Err(problem) => Vote::No(refusal(AbortCode::ParticipantUnavailable, problem)),
        };
        self.branches.ended(branch, vote.clone());
        vote
    }

    /// The transaction that committed under a request id.
    async fn holder(&self, request_id: &str) -> Result<Option<String>, Refusal> {
        let mut reader = self.reader.lock().await;
        let Some(connection) = reader.as_mut() else { return Err(refusal(AbortCode::ParticipantUnavailable, "the marker can't be read")) };
        sqlx::query_scalar("SELECT transaction_id FROM main.unanimity_marker WHERE request_id = ?")
            .bind(request_id.to_owned())
            .fetch_optional(connection)
            .await
            .map_err(|error| failure("marker", &error).refusal)
    }

    /// See [`super::SqliteResource::purge`].
    pub(super) async fn purge(&self) -> Result<u64, Unavailable> {
        let deadline = Instant::now() + CONTROL_TIMEOUT;
        let mut purged = 0;
        loop {
            // A branch may hold the writer for as long as its decision takes: nothing is wrong then.
            let Some(mut writer) = self.hold(deadline.saturating_duration_since(Instant::now())).await else { return Ok(purged) };
            let deleted = async {
                let delete = "DELETE FROM main.unanimity_marker WHERE rowid IN \
                     (SELECT rowid FROM main.unanimity_marker WHERE created_at < unixepoch() - ? LIMIT ?)";
                sqlx::query(delete)
                    .bind(i64::try_from(self.retention.as_secs()).unwrap_or(i64::MAX))
                    .bind(PURGE_BATCH.cast_signed())
                    .execute(writer.begin_own().await?)
                    .await
            };
            let deleted = deleted.await;
            writer.end_own();
            let deleted = deleted.map_err(|error| Unavailable(error.to_string()))?.rows_affected();
            purged += deleted;
            if deleted < PURGE_BATCH {
                return Ok(purged);
            }
        }
    }
}

/// Brings a journal's record back, as far as that can be done.
async fn restore(writer: &mut Writer, record: &Record) -> Result<Restored, String> {
    writer.begin(CONTROL_TIMEOUT).await.map_err(|error| error.to_string())?;
    let connection = writer.connect().await.map_err(|error| error.to_string())?;
    if let Some(outcome) = read_marker(connection, &record.branch).await.map_err(|error| error.to_string())? {
        writer.rollback().await;
        return Ok(Restored::Over(outcome));
    }
    match replay(connection, &record.changes).await {
        Ok(()) => Ok(Restored::Prepared),
        Err(ReplayError::Conflict(conflict)) => {
            writer.rollback().await;
            Ok(Restored::Conflict(conflict))
        }
        Err(ReplayError::Failed(problem)) => Err(problem),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use unanimity_proto::v1;

    use super::*;
    use crate::{
        operation::Catalog,
        participant::{Participant, Prepare},
        resource::{ResourceOptions, SqliteResource},
    };

    async fn prepared(directory: &std::path::Path) -> (SqliteResource, BranchId) {
        let options = ResourceOptions {
            url: format!("sqlite:{}?mode=rwc", directory.join("a.db").display()),
            participant: "a".into(),
            connections: 1,
            catalog: Catalog::new([], true).unwrap(),
            journal: None,
            marker_retention: Duration::from_secs(3_600),
        };
        let resource = SqliteResource::connect(options).await.unwrap();
        let branch = BranchId { transaction: format!("u1.00000000.1.{}", uuid::Uuid::now_v7().simple()), number: 1 };
        {
            let mut writer = resource.inner.writer.lock().await;
            sqlx::raw_sql("CREATE TABLE t (x)").execute(writer.begin_own().await.unwrap()).await.unwrap();
            writer.end_own();
        }
        let insert = v1::operation::Statement::Sql("INSERT INTO t VALUES (1), (2)".into());
        let prepare = Prepare {
            branch: branch.clone(),
            continued: false,
            operations: vec![v1::Operation { statement: Some(insert), ..v1::Operation::default() }],
            one_phase: false,
            request_id: String::new(),
            timeout: Duration::from_secs(5),
            traceparent: String::new(),
        };
        assert_eq!(resource.prepare(prepare).await, yes());
        (resource, branch)
    }

    /// What a failed COMMIT leaves: a connection that is closed, and a journal.
    async fn break_connection(resource: &SqliteResource, branch: &BranchId, commits: bool) {
        let mut prepared = resource.inner.branches.prepared_connection(branch).unwrap();
        if commits {
            prepared.writer().commit().await.unwrap();
        }
        prepared.writer().close().await;
        resource.inner.branches.keep_connection(branch, prepared);
    }

    async fn count(resource: &SqliteResource) -> i64 {
        let mut connection = resource.inner.options.connect().await.unwrap();
        sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&mut connection).await.unwrap()
    }

    #[tokio::test]
    async fn a_commit_that_failed_is_made_again_from_the_journal() {
        let directory = tempfile::tempdir().unwrap();
        let (resource, branch) = prepared(directory.path()).await;
        break_connection(&resource, &branch, false).await;
        assert!(matches!(resource.commit(&branch, "").await, Settled::Retry(_)));
        assert_eq!(count(&resource).await, 0);
        assert_eq!(resource.commit(&branch, "").await, Settled::Committed);
        assert_eq!(count(&resource).await, 2);
    }

    #[tokio::test]
    async fn a_commit_whose_answer_was_lost_is_found_by_its_marker() {
        let directory = tempfile::tempdir().unwrap();
        let (resource, branch) = prepared(directory.path()).await;
        break_connection(&resource, &branch, true).await;
        assert_eq!(resource.commit(&branch, "").await, Settled::Committed);
        assert_eq!(count(&resource).await, 2);
        assert_eq!(resource.inner.journal.read().unwrap(), None);
    }

    #[tokio::test]
    async fn an_abort_after_a_lost_connection_goes_by_the_marker() {
        let directory = tempfile::tempdir().unwrap();
        let (resource, branch) = prepared(directory.path()).await;
        break_connection(&resource, &branch, false).await;
        assert_eq!(resource.abort(&branch, "").await, Settled::Aborted);
        assert_eq!(resource.inner.journal.read().unwrap(), None);
        assert_eq!(count(&resource).await, 0);
    }
}
