//! How a branch on SQLite ends, and how that is proved: by the marker row, which is part of what is committed.

use std::{sync::Arc, time::Duration};

use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};
use tokio::{sync::OwnedMutexGuard, time::timeout};

use crate::{
    participant::{BranchId, InDoubt, Refusal, Settled, Unavailable},
    resource::{
        MARKER_COMMITTED, MARKER_PROOF, MARKER_TOMBSTONE, PROVE_SECONDS, PURGE_BATCH,
        branches::{BranchConnection, Branches},
        flow::{Marker, OutcomeRules, settled_by_marker},
        identifier::marker_proves_absence,
    },
};

use super::{
    SqliteFile,
    branch::{LiteBranch, Promise, PromiseState},
    changeset::{self, ApplyError, Direction},
    journal::Record,
    values::{failure, is_constraint},
    writer::Writer,
};

/// What became of a promise whose transaction was gone.
enum Replay {
    /// The marker row is there: it was committed, or fenced.
    Over(i32),
    /// The changes are made again, in an open transaction.
    Kept,
    /// They can't be made again: why.
    Unfit(String),
}

impl OutcomeRules for SqliteFile {
    /// The key of the marker row is competed for, as another's would be: a COMMIT whose sync failed may otherwise come back after a crash, out
    /// of the log. Nobody else gets the writer until that is known.
    async fn settle(&self, branch: &BranchId, left: &mut Option<LiteBranch>) -> Settled {
        match left {
            Some(connection) => fence(connection.writer(), branch).await,
            None => self.prove(branch).await,
        }
    }

    async fn commit_prepared(
        &self,
        branch: &BranchId,
        proof: &str,
        bound: &mut Option<LiteBranch>,
    ) -> Settled {
        let Some(mut prepared) = bound.take() else {
            return self.commit_by_marker(branch, proof).await;
        };
        let Some(Promise { record, state }) = prepared.take_promise() else {
            return Settled::Retry(format!("branch {branch} holds no promise"));
        };
        let why = match state {
            PromiseState::Kept => match prepared.end("COMMIT").await {
                Ok(()) => {
                    self.clear_journal(branch);
                    prepared.release();
                    return Settled::Committed;
                }
                // The truth is what a new connection finds: the marker row; or else the changes are made again.
                Err(error) => error.to_string(),
            },
            PromiseState::Owed => "its transaction was lost".to_owned(),
            PromiseState::Unfit(problem) => {
                return self.give_up(prepared, record, problem, bound).await;
            }
        };
        match self.replay(prepared.into_writer(), record, bound).await {
            Ok(Some(MARKER_COMMITTED)) => Settled::Committed,
            Ok(Some(_)) => Settled::Aborted,
            Ok(None) => Settled::Retry(format!(
                "commit of branch {branch}: {why}; its changes are made again"
            )),
            Err(error) => Settled::Retry(format!(
                "commit of branch {branch}: {why}; and then: {error}"
            )),
        }
    }

    async fn abort_prepared(
        &self,
        branch: &BranchId,
        _proof: &str,
        bound: &mut Option<LiteBranch>,
    ) -> Settled {
        let Some(mut prepared) = bound.take() else {
            return match self.own_marker(branch).await {
                Ok(Some(MARKER_COMMITTED)) => Settled::Committed,
                Ok(_) => Settled::Aborted,
                Err(problem) => Settled::Retry(problem),
            };
        };
        let promise = prepared.take_promise();
        if let Some(Promise {
            record,
            state: PromiseState::Owed,
        }) = promise
        {
            // A commit was tried, and failed without a clear answer: only the marker row tells whether there is anything left to abort.
            let writer = prepared.into_writer();
            return match self.replay(writer, record, bound).await {
                Ok(Some(MARKER_COMMITTED)) => Settled::Committed,
                Ok(Some(_)) => Settled::Aborted,
                Ok(None) => Settled::Retry(format!(
                    "branch {branch} is prepared again, and can be aborted"
                )),
                Err(error) => Settled::Retry(format!("abort of branch {branch}: {error}")),
            };
        }
        self.clear_journal(branch);
        prepared.rollback().await;
        Settled::Aborted
    }

    async fn prove(&self, branch: &BranchId) -> Settled {
        match self.own_marker(branch).await {
            Ok(Some(MARKER_COMMITTED)) => Settled::Committed,
            Ok(Some(_)) => Settled::Aborted,
            Ok(None) => match self.lock_writer().await {
                Ok(mut writer) => fence(&mut writer, branch).await,
                Err(problem) => Settled::Retry(problem),
            },
            Err(problem) => Settled::Retry(problem),
        }
    }

    async fn marker(&self, branch: &BranchId, request_id: &str) -> Result<Option<Marker>, Refusal> {
        let found = async {
            let mut connection = self.options.connect().await?;
            let query = "SELECT transaction_id, branch, outcome, result FROM unanimity_marker \
                 WHERE (transaction_id = ?1 AND branch = ?2) OR request_id = ?3 \
                 ORDER BY (transaction_id = ?1 AND branch = ?2) DESC LIMIT 1";
            let row = sqlx::query(query)
                .bind(branch.transaction.clone())
                .bind(branch.number)
                .bind(Some(request_id.to_owned()).filter(|id| !id.is_empty()))
                .fetch_optional(&mut connection)
                .await?;
            row.map(|row| {
                Ok(Marker {
                    transaction: row.try_get(0)?,
                    number: row.try_get(1)?,
                    committed: row.try_get::<i32, _>(2)? == MARKER_COMMITTED,
                    result: row.try_get::<Option<String>, _>(3)?.unwrap_or_default(),
                })
            })
            .transpose()
        };
        found
            .await
            .map_err(|error| failure("marker", &error).refusal)
    }

    /// There is one at most, and this process has it.
    async fn in_doubt(&self, here: &Branches<LiteBranch>) -> Result<Vec<InDoubt>, Unavailable> {
        let in_doubt = |branch: BranchId| InDoubt {
            identifier: branch.to_string(),
            branch: Some(branch),
        };
        Ok(here.prepared().into_iter().map(in_doubt).collect())
    }

    async fn purge_batch(&self) -> Result<u64, Unavailable> {
        let seconds = i64::try_from(self.retention.as_secs()).unwrap_or(i64::MAX);
        let mut writer = self.lock_writer().await.map_err(Unavailable)?;
        let deleting = async {
            let query = "DELETE FROM unanimity_marker WHERE (transaction_id, branch) IN (SELECT transaction_id, branch \
                 FROM unanimity_marker WHERE created_at < unixepoch() - ? LIMIT ?)";
            sqlx::query(query)
                .bind(seconds)
                .bind(PURGE_BATCH.cast_signed())
                .execute(writer.open().await?)
                .await
        };
        let done = deleting.await;
        done.map(|done| done.rows_affected())
            .map_err(|error| Unavailable(error.to_string()))
    }
}

impl SqliteFile {
    /// Takes up what the journal holds, before anybody else gets the writer.
    pub(super) async fn recover_at_start(
        &self,
    ) -> Result<Option<(BranchId, LiteBranch)>, sqlx::Error> {
        let Some(record) = self.journal.read().map_err(sqlx::Error::Io)? else {
            return Ok(None);
        };
        failpoint!("participant.sqlite.replay.before");
        let writer = Arc::clone(&self.writer).lock_owned().await;
        let (branch, mut bound) = (record.branch.clone(), None);
        self.replay(writer, record, &mut bound).await?;
        Ok(bound.map(|prepared| (branch, prepared)))
    }

    /// Makes the changes of a promise again, and keeps the transaction open; or finds that it has ended, and clears the journal. Whatever
    /// goes wrong, the promise keeps the writer.
    async fn replay(
        &self,
        mut writer: OwnedMutexGuard<Writer>,
        record: Record,
        bound: &mut Option<LiteBranch>,
    ) -> Result<Option<i32>, sqlx::Error> {
        let branch = &record.branch;
        let replayed = self.try_replay(&mut writer, &record).await;
        let (state, answer) = match replayed {
            Ok(Replay::Over(outcome)) => {
                self.clear_journal(branch);
                return Ok(Some(outcome));
            }
            Ok(Replay::Kept) => {
                failpoint!("participant.sqlite.replay.after");
                (PromiseState::Kept, Ok(None))
            }
            Ok(Replay::Unfit(problem)) => {
                tracing::error!(%branch, problem, "a prepared branch is lost");
                writer.close();
                (PromiseState::Unfit(problem), Ok(None))
            }
            Err(error) => {
                writer.close();
                (PromiseState::Owed, Err(error))
            }
        };
        let promise = Promise { record, state };
        *bound = Some(LiteBranch::promising(writer, self.limit.clone(), promise));
        answer
    }

    async fn try_replay(
        &self,
        writer: &mut Writer,
        record: &Record,
    ) -> Result<Replay, sqlx::Error> {
        let connection = writer.open().await?;
        if let Some(outcome) = read_marker(connection, &record.branch).await?
            && !cfg!(unanimity_bug = "journal-applied-twice")
        {
            return Ok(Replay::Over(outcome));
        }
        sqlx::raw_sql("PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE")
            .execute(&mut *connection)
            .await?;
        let mut handle = connection.lock_handle().await?;
        let problem = match changeset::apply(&mut handle, &record.changeset, Direction::Forward) {
            Err(ApplyError::Code(code)) if code.may_pass() => return Err(code.into()),
            Err(problem) => problem.to_string(),
            Ok(()) if changeset::violates_foreign_keys(&mut handle)? => {
                "a foreign key is violated".to_owned()
            }
            Ok(()) => return Ok(Replay::Kept),
        };
        Ok(Replay::Unfit(format!(
            "branch {} was prepared, and its changes can't be made again after a restart, for somebody else wrote since: {problem}",
            record.branch
        )))
    }

    /// Ends a branch whose changes can't be made again. What it promised is put aside, for people.
    async fn give_up(
        &self,
        prepared: LiteBranch,
        record: Record,
        problem: String,
        bound: &mut Option<LiteBranch>,
    ) -> Settled {
        let branch = record.branch.clone();
        match self.journal.put_aside(&record) {
            Ok(aside) => {
                self.clear_journal(&branch);
                prepared.rollback().await;
                Settled::Lost(format!(
                    "{problem}; what it promised is in {}",
                    aside.display()
                ))
            }
            Err(error) => {
                let state = PromiseState::Unfit(problem);
                let (writer, promise) = (prepared.into_writer(), Promise { record, state });
                *bound = Some(LiteBranch::promising(writer, self.limit.clone(), promise));
                Settled::Retry(format!(
                    "what branch {branch} promised can't be put aside: {error}"
                ))
            }
        }
    }

    /// Only while the writer is held: the next branch's record must not be wiped. If it fails, the marker row, or the presumed abort, still
    /// tells how the branch ended.
    fn clear_journal(&self, branch: &BranchId) {
        if let Err(error) = self.journal.clear() {
            tracing::warn!(%branch, %error, "the prepare journal can't be cleared");
        }
    }

    /// The outcome of a branch that is not prepared here.
    async fn commit_by_marker(&self, branch: &BranchId, proof: &str) -> Settled {
        match self.own_marker(branch).await {
            Ok(None) if proof == MARKER_PROOF && marker_proves_absence(branch, self.retention) => {
                Settled::Aborted
            }
            Ok(marker) => settled_by_marker(branch, marker, proof),
            Err(problem) => Settled::Retry(problem),
        }
    }

    async fn lock_writer(&self) -> Result<OwnedMutexGuard<Writer>, String> {
        let limit = Duration::from_secs(PROVE_SECONDS);
        let locked = timeout(limit, Arc::clone(&self.writer).lock_owned()).await;
        locked.map_err(|_| "another branch has the database's only writer".to_owned())
    }

    /// The outcome in the branch's marker row, as committed. A connection of its own: the writer sees what isn't committed yet.
    async fn own_marker(&self, branch: &BranchId) -> Result<Option<i32>, String> {
        let read = async {
            let mut connection = self.options.connect().await?;
            let marker = read_marker(&mut connection, branch).await?;
            let _ = connection.close().await;
            Ok::<_, sqlx::Error>(marker)
        };
        read.await
            .map_err(|error| format!("the marker of branch {branch}: {error}"))
    }
}

/// Writes a tombstone, and tells what stands there then.
async fn fence(writer: &mut Writer, branch: &BranchId) -> Settled {
    let fenced = async {
        let connection = writer.open().await?;
        let inserted = sqlx::query(
            "INSERT INTO unanimity_marker (transaction_id, branch, outcome) VALUES (?, ?, ?)",
        )
        .bind(branch.transaction.clone())
        .bind(branch.number)
        .bind(MARKER_TOMBSTONE)
        .execute(&mut *connection)
        .await;
        match inserted {
            Ok(_) => Ok(Some(MARKER_TOMBSTONE)),
            Err(error) if is_constraint(&error) => read_marker(connection, branch).await,
            Err(error) => Err(error),
        }
    };
    match fenced.await {
        Ok(Some(MARKER_COMMITTED)) => Settled::Committed,
        Ok(Some(_)) => Settled::Aborted,
        Ok(None) => Settled::Retry(format!("branch {branch}: the marker can't be read")),
        Err(error) => {
            writer.close();
            Settled::Retry(format!("branch {branch}: {error}"))
        }
    }
}

pub(super) async fn read_marker(
    connection: &mut SqliteConnection,
    branch: &BranchId,
) -> Result<Option<i32>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT outcome FROM unanimity_marker WHERE transaction_id = ? AND branch = ?",
    )
    .bind(branch.transaction.clone())
    .bind(branch.number)
    .fetch_optional(connection)
    .await
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
mod tests {
    use unanimity_proto::v1;

    use crate::{
        operation::Catalog,
        participant::{Prepare, Vote},
        resource::{MARKER_PROOF, ResourceOptions, SqliteResource},
    };

    use super::*;

    async fn database(directory: &tempfile::TempDir) -> SqliteResource {
        let path = directory.path().join("bank.db");
        let options = ResourceOptions {
            url: format!("sqlite:{}?mode=rwc", path.display()),
            participant: "bank".into(),
            connections: 1,
            catalog: Catalog::new([], true).unwrap(),
            marker_retention: Duration::from_secs(3_600),
        };
        let resource = SqliteResource::connect(options).await.unwrap();
        let mut connection = resource.flow.database.options.connect().await.unwrap();
        sqlx::raw_sql("CREATE TABLE account (id INTEGER PRIMARY KEY)")
            .execute(&mut connection)
            .await
            .unwrap();
        resource
    }

    async fn count(resource: &SqliteResource) -> i64 {
        let mut connection = resource.flow.database.options.connect().await.unwrap();
        sqlx::query_scalar("SELECT count(*) FROM account")
            .fetch_one(&mut connection)
            .await
            .unwrap()
    }

    fn insert(one_phase: bool) -> Prepare {
        let statement = v1::operation::Statement::Sql("INSERT INTO account DEFAULT VALUES".into());
        Prepare {
            branch: BranchId {
                transaction: format!("u1.00000000.1.{}", uuid::Uuid::now_v7().simple()),
                number: 1,
            },
            continued: false,
            operations: vec![v1::Operation {
                statement: Some(statement),
                ..v1::Operation::default()
            }],
            one_phase,
            request_id: String::new(),
            timeout: Duration::from_secs(5),
            traceparent: String::new(),
        }
    }

    /// Takes the transaction away under a prepared branch, as a failed COMMIT would.
    async fn lose_transaction(resource: &SqliteResource, branch: &BranchId, close: bool) {
        let mut prepared = resource.flow.branches.prepared_connection(branch).unwrap();
        if close {
            prepared.writer().close();
        } else {
            sqlx::raw_sql("ROLLBACK")
                .execute(prepared.connection())
                .await
                .unwrap();
        }
        resource.flow.branches.keep_connection(branch, prepared);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_that_fails_makes_its_changes_again_and_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let resource = database(&directory).await;
        for (close, rows) in [(true, 1), (false, 2)] {
            let prepare = insert(false);
            let branch = prepare.branch.clone();
            assert!(matches!(
                resource.flow.prepare(&prepare).await,
                Vote::Yes { .. }
            ));
            lose_transaction(&resource, &branch, close).await;
            assert!(matches!(
                resource.flow.commit(&branch, MARKER_PROOF).await,
                Settled::Retry(_)
            ));
            let other = Prepare {
                timeout: Duration::from_millis(50),
                ..insert(false)
            };
            assert!(
                matches!(resource.flow.prepare(&other).await, Vote::No(_)),
                "nobody else gets in between"
            );
            assert_eq!(resource.flow.in_doubt().await.unwrap().len(), 1);
            assert_eq!(
                resource.flow.commit(&branch, MARKER_PROOF).await,
                Settled::Committed
            );
            assert_eq!(count(&resource).await, rows);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_whose_answer_was_lost_is_recognised_by_the_marker() {
        let directory = tempfile::tempdir().unwrap();
        let resource = database(&directory).await;
        let prepare = insert(false);
        let branch = prepare.branch.clone();
        resource.flow.prepare(&prepare).await;
        let mut prepared = resource.flow.branches.prepared_connection(&branch).unwrap();
        sqlx::raw_sql("COMMIT")
            .execute(prepared.connection())
            .await
            .unwrap();
        resource.flow.branches.keep_connection(&branch, prepared);
        assert_eq!(
            resource.flow.commit(&branch, MARKER_PROOF).await,
            Settled::Committed
        );
        assert_eq!(count(&resource).await, 1);
        assert_eq!(resource.flow.prepare(&insert(true)).await, Vote::Committed);
        assert_eq!(count(&resource).await, 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_that_fails_in_one_phase_is_fenced_and_frees_the_writer() {
        let directory = tempfile::tempdir().unwrap();
        let resource = database(&directory).await;
        let mut connection = resource.flow.database.options.connect().await.unwrap();
        let owner = "CREATE TABLE owner (account REFERENCES account DEFERRABLE INITIALLY DEFERRED)";
        sqlx::raw_sql(owner).execute(&mut connection).await.unwrap();
        let mut prepare = insert(true);
        let orphan = v1::operation::Statement::Sql("INSERT INTO owner VALUES (9)".into());
        prepare.operations[0].statement = Some(orphan);
        for _ in 0..2 {
            let vote = resource.flow.prepare(&prepare).await;
            assert!(matches!(vote, Vote::No(_)), "{vote:?}");
        }
        let tombstone = read_marker(&mut connection, &prepare.branch).await;
        assert_eq!(tombstone.unwrap(), Some(MARKER_TOMBSTONE));
        let next = resource.flow.prepare(&insert(true)).await;
        assert_eq!(next, Vote::Committed);
    }
}
