//! The journal: what the service may hold of each branch, durably, before it is asked to.
//!
//! One small SQLite database, one record a branch. What is written is synced before the call returns.
//!
//! ```text
//!   two-phase commit:  (none) ─▶ open ─────────▶ committed
//!                        │         │ voted no
//!                        │         ▼
//!                        │       doomed ───────▶ aborted
//!                        └───────── abort ────────▲
//!   saga steps:        (none) ─▶ sent ──▶ fenced
//!                        └─────────────────▲
//! ```
//!
//! *Open* and *doomed* are never deleted: they are what is in doubt. The others are, after the retention; where a record may have been deleted,
//! its absence proves nothing. What was deleted under another retention is not forgotten: how far that went is in the file.
//!
//! A journal has one agent at a time, by a lock, and an identity, by which the coordinator tells two journals of one name apart. A write that
//! failed leaves open what the file holds, so after one the journal gives no answer until the agent is started again.

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sqlx::{
    AssertSqlSafe, ConnectOptions, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous},
};
use tokio::sync::Mutex;

use crate::{agent::AgentError, participant::BranchId};

/// Tells our files from others' SQLite databases: `UnaJ`.
const APPLICATION_ID: i64 = 0x556e_614a;
const VERSION: i64 = 1;

const TABLES: &str = "CREATE TABLE IF NOT EXISTS identity (id TEXT NOT NULL) STRICT; \
     CREATE TABLE IF NOT EXISTS branch (transaction_id TEXT NOT NULL, number INTEGER NOT NULL, state INTEGER NOT NULL, \
     operations TEXT NOT NULL, written_at INTEGER NOT NULL, PRIMARY KEY (transaction_id, number)) STRICT, WITHOUT ROWID; \
     CREATE INDEX IF NOT EXISTS branch_by_state ON branch (state, written_at); \
     CREATE TABLE IF NOT EXISTS purged (before INTEGER NOT NULL) STRICT";

/// What may be deleted, in a form by which the index finds it without reading all that is younger.
const ENDED: &str = "state IN (3, 4, 5, 6)";

/// How many records one purge statement deletes.
const PURGE_BATCH: u64 = 500;

/// Where a branch, or a step, stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The service may hold it. Its vote may have been yes.
    Open,
    /// It voted no, and the service may hold a part of it still.
    Doomed,
    /// Every confirm was answered.
    Committed,
    /// Every cancel was answered, or nothing was ever sent; it is never prepared again.
    Aborted,
    /// A step that the service may have got.
    Sent,
    /// A step that is never sent again; without operations, it never was.
    Fenced,
}

impl State {
    fn number(self) -> i64 {
        match self {
            Self::Open => 1,
            Self::Doomed => 2,
            Self::Committed => 3,
            Self::Aborted => 4,
            Self::Sent => 5,
            Self::Fenced => 6,
        }
    }

    fn from_number(number: i64) -> Option<Self> {
        let all = [
            Self::Open,
            Self::Doomed,
            Self::Committed,
            Self::Aborted,
            Self::Sent,
            Self::Fenced,
        ];
        all.into_iter().find(|state| state.number() == number)
    }
}

/// What is known of a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) state: State,
    /// Names, in the order in which they are sent.
    pub(crate) operations: Vec<String>,
}

/// The journal can't tell, or keep, what it should.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the journal: {0}")]
pub(crate) struct JournalError(String);

/// The file.
pub(crate) struct Journal {
    pub(crate) connection: Mutex<SqliteConnection>,
    path: PathBuf,
    identity: String,
    retention: Duration,
    /// Records written before this may have been deleted; in seconds since 1970.
    purged_before: AtomicI64,
    failed: AtomicBool,
    /// Last, so that it is given up last.
    _lock: File,
}

impl Journal {
    /// Opens the file, or makes it.
    pub(crate) async fn open(path: &Path, retention: Duration) -> Result<Self, AgentError> {
        let lock = lock(path)?;
        let refused = |error: sqlx::Error| refused(path, &error.to_string());
        let mut connection = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .disable_statement_logging()
            .connect()
            .await
            .map_err(refused)?;
        let identity = prepare(&mut connection, path).await?;
        check(&mut connection, path).await?;
        let purged_before = sqlx::query_scalar("SELECT coalesce(max(before), 0) FROM purged")
            .fetch_one(&mut connection)
            .await
            .map_err(refused)?;
        sync_directory(path).map_err(|error| self::refused(path, &error.to_string()))?;
        Ok(Self {
            connection: Mutex::new(connection),
            path: path.into(),
            identity,
            retention,
            purged_before: AtomicI64::new(purged_before),
            failed: AtomicBool::new(false),
            _lock: lock,
        })
    }

    /// Minted with the file.
    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    /// Whether the absence of a record still proves that none was written, `age` after it would have been. A quarter of the retention is left
    /// for clocks that differ.
    pub(super) fn absence_proves(&self, age: Duration) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let written = now.unwrap_or_default().checked_sub(age);
        let purged_before = self.purged_before.load(Ordering::Relaxed);
        let kept = written.is_some_and(|written| written.as_secs().cast_signed() >= purged_before);
        kept && age < self.retention / 4 * 3
    }

    /// The branch's record.
    pub(crate) async fn record(&self, branch: &BranchId) -> Result<Option<Record>, JournalError> {
        let found = sqlx::query(
            "SELECT state, operations FROM branch WHERE transaction_id = ? AND number = ?",
        )
        .bind(&branch.transaction)
        .bind(i64::from(branch.number))
        .fetch_optional(&mut *self.usable().await?)
        .await;
        let Some(row) = self.checked(found)? else {
            return Ok(None);
        };
        record_of(&row)
            .map(Some)
            .ok_or_else(|| JournalError(format!("the record of branch {branch} can't be read")))
    }

    /// Writes a record, over the last one if there is one.
    pub(crate) async fn write(
        &self,
        branch: &BranchId,
        state: State,
        operations: &[String],
    ) -> Result<(), JournalError> {
        failpoint!("participant.http.journal.before");
        let written = sqlx::query("INSERT OR REPLACE INTO branch VALUES (?, ?, ?, ?, unixepoch())")
            .bind(&branch.transaction)
            .bind(i64::from(branch.number))
            .bind(state.number())
            .bind(serde_json::to_string(operations).expect("names are texts"))
            .execute(&mut *self.usable().await?)
            .await;
        failpoint!("participant.http.journal.after");
        self.checked(written).map(drop)
    }

    /// Deletes a record.
    pub(super) async fn remove(&self, branch: &BranchId) -> Result<(), JournalError> {
        let removed = sqlx::query("DELETE FROM branch WHERE transaction_id = ? AND number = ?")
            .bind(&branch.transaction)
            .bind(i64::from(branch.number))
            .execute(&mut *self.usable().await?)
            .await;
        self.checked(removed).map(drop)
    }

    /// Every branch that is open or doomed.
    pub(crate) async fn unsettled(&self) -> Result<Vec<BranchId>, JournalError> {
        let found = sqlx::query("SELECT transaction_id, number FROM branch WHERE state IN (?, ?)")
            .bind(State::Open.number())
            .bind(State::Doomed.number())
            .fetch_all(&mut *self.usable().await?)
            .await;
        let rows = self.checked(found)?;
        // One that can't be read is in doubt as much as the others, and would be left out of all answers.
        let branches: Option<_> = rows.iter().map(branch_of).collect();
        branches.ok_or_else(|| JournalError("a branch in it can't be read".into()))
    }

    /// Deletes what has ended and is older than the retention, in small batches, and says how many.
    pub(super) async fn purge(&self) -> Result<u64, JournalError> {
        let Some(before) = self.begin_purge().await? else {
            return Ok(0);
        };
        let mut purged = 0;
        loop {
            let batch = self.purge_batch(before).await?;
            purged += batch;
            if batch < PURGE_BATCH {
                return Ok(purged);
            }
        }
    }

    /// Says how far it will go, durably, before anything is deleted; `None` where there is nothing to delete.
    async fn begin_purge(&self) -> Result<Option<i64>, JournalError> {
        let retention = i64::try_from(self.retention.as_secs()).unwrap_or(i64::MAX);
        let mut connection = self.usable().await?;
        let query = format!(
            "SELECT unixepoch() - ? AS before WHERE EXISTS (SELECT 1 FROM branch WHERE {ENDED} AND written_at < unixepoch() - ?)"
        );
        let found = sqlx::query_scalar(AssertSqlSafe(query))
            .bind(retention)
            .bind(retention)
            .fetch_optional(&mut *connection)
            .await;
        let Some(before) = self.checked(found)? else {
            return Ok(None);
        };
        if before > self.purged_before.load(Ordering::Relaxed) {
            let noted = sqlx::raw_sql(AssertSqlSafe(format!(
                "BEGIN IMMEDIATE; DELETE FROM purged; INSERT INTO purged VALUES ({before}); COMMIT"
            )))
            .execute(&mut *connection)
            .await;
            self.checked(noted)?;
            self.purged_before.store(before, Ordering::Relaxed);
        }
        Ok(Some(before))
    }

    async fn purge_batch(&self, before: i64) -> Result<u64, JournalError> {
        let delete = format!(
            "DELETE FROM branch WHERE (transaction_id, number) IN (SELECT transaction_id, number FROM branch \
             WHERE {ENDED} AND written_at < ? LIMIT ?)"
        );
        let deleted = sqlx::query(AssertSqlSafe(delete))
            .bind(before)
            .bind(PURGE_BATCH.cast_signed())
            .execute(&mut *self.usable().await?)
            .await;
        Ok(self.checked(deleted)?.rows_affected())
    }

    async fn usable(&self) -> Result<tokio::sync::MutexGuard<'_, SqliteConnection>, JournalError> {
        let connection = self.connection.lock().await;
        if self.failed.load(Ordering::Relaxed) {
            return Err(JournalError(
                "it failed before; the agent must be started again".into(),
            ));
        }
        Ok(connection)
    }

    fn checked<T>(&self, result: Result<T, sqlx::Error>) -> Result<T, JournalError> {
        result.map_err(|error| {
            self.failed.store(true, Ordering::Relaxed);
            let path = self.path.display();
            tracing::error!(journal = %path, %error, "the journal failed; look at its disk, then start the agent again");
            JournalError(error.to_string())
        })
    }
}

fn record_of(row: &SqliteRow) -> Option<Record> {
    let operations: String = row.try_get(1).ok()?;
    Some(Record {
        state: State::from_number(row.try_get(0).ok()?)?,
        operations: serde_json::from_str(&operations).ok()?,
    })
}

fn branch_of(row: &SqliteRow) -> Option<BranchId> {
    let number: i64 = row.try_get(1).ok()?;
    Some(BranchId {
        transaction: row.try_get(0).ok()?,
        number: number.try_into().ok()?,
    })
}

/// Makes the tables where the file is new, and gives the identity.
async fn prepare(connection: &mut SqliteConnection, path: &Path) -> Result<String, AgentError> {
    let refused = |error: sqlx::Error| refused(path, &error.to_string());
    let number = async |connection: &mut SqliteConnection, pragma: &'static str| {
        sqlx::query_scalar::<_, i64>(pragma)
            .fetch_one(connection)
            .await
            .map_err(refused)
    };
    let application = number(connection, "PRAGMA application_id").await?;
    let version = number(connection, "PRAGMA user_version").await?;
    let tables = number(connection, "SELECT count(*) FROM sqlite_schema").await?;
    match (application, version, tables) {
        (APPLICATION_ID, VERSION, _) => {
            sqlx::raw_sql(TABLES)
                .execute(&mut *connection)
                .await
                .map_err(refused)?;
        }
        (0, 0, 0) => {
            let make = format!(
                "BEGIN IMMEDIATE; {TABLES}; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; \
                 INSERT INTO identity VALUES ('{}'); COMMIT",
                uuid::Uuid::new_v4().simple()
            );
            sqlx::raw_sql(AssertSqlSafe(make))
                .execute(&mut *connection)
                .await
                .map_err(refused)?;
        }
        (APPLICATION_ID, _, _) => {
            return Err(self::refused(path, "another version of the agent wrote it"));
        }
        _ => return Err(self::refused(path, "it is another program's database")),
    }
    let identity: String = sqlx::query_scalar("SELECT id FROM identity")
        .fetch_one(connection)
        .await
        .map_err(refused)?;
    Ok(format!("http:{identity}"))
}

/// SQLite has no checksums, and takes what a damaged page says for the truth: that a branch was never here, which is then told as proof that the
/// service holds nothing of it. So the whole file is looked at before anything is answered from it.
async fn check(connection: &mut SqliteConnection, path: &Path) -> Result<(), AgentError> {
    let found: Result<String, _> = sqlx::query_scalar("PRAGMA integrity_check(1)")
        .fetch_one(connection)
        .await;
    match found {
        Ok(sound) if sound == "ok" => Ok(()),
        Ok(damage) => Err(refused(path, &format!("it is damaged: {damage}"))),
        Err(error) => Err(refused(path, &error.to_string())),
    }
}

fn refused(path: &Path, problem: &str) -> AgentError {
    AgentError::Refused {
        problem: format!("the journal {} can't be used: {problem}", path.display()),
        remedy: "let the agent write there, on a local disk. A journal that is damaged or lost knows no more which branches the \
                 service holds: look at `unanimity in-doubt list` and at the service's own books before you start with a new one, \
                 under a new name of the participant"
            .into(),
    }
}

/// One agent writes a journal. The lock goes with the process, however that ends. It is beside the file itself, wherever links lead there from.
fn lock(path: &Path) -> Result<File, AgentError> {
    let itself = path.canonicalize().unwrap_or_else(|_| path.into());
    let mut name = itself.into_os_string();
    name.push(".lock");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&name)
        .map_err(|error| refused(path, &error.to_string()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AgentError::Refused {
            problem: format!("another agent uses the journal {}", path.display()),
            remedy: "stop that one first; a second agent needs a journal and a name of its own"
                .into(),
        }),
        Err(TryLockError::Error(error)) => Err(refused(path, &error.to_string())),
    }
}

/// Makes the file's name durable.
fn sync_directory(path: &Path) -> std::io::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
mod tests {
    use std::fs;

    use sqlx::Connection as _;

    use super::*;

    const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);

    fn branch(number: u32) -> BranchId {
        BranchId {
            transaction: "u1.0.0.0".into(),
            number,
        }
    }

    /// All is in the one file then, and the lock is free.
    async fn close(journal: Journal) {
        let connection = journal.connection.into_inner();
        connection.close().await.unwrap();
    }

    async fn refusal(path: &Path) -> String {
        match Journal::open(path, WEEK).await {
            Err(AgentError::Refused { problem, .. }) => problem,
            other => panic!("{:?}", other.map(|_| "opened")),
        }
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_a_restart_under_the_same_identity() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let journal = Journal::open(&path, WEEK).await.unwrap();
        let identity = journal.identity().to_owned();
        assert_eq!(journal.record(&branch(1)).await.unwrap(), None);
        let names = ["a".to_owned(), "b".to_owned()];
        journal
            .write(&branch(1), State::Open, &names)
            .await
            .unwrap();
        journal
            .write(&branch(2), State::Doomed, &names[..1])
            .await
            .unwrap();
        journal
            .write(&branch(3), State::Sent, &names)
            .await
            .unwrap();
        journal.write(&branch(3), State::Fenced, &[]).await.unwrap();
        journal.write(&branch(4), State::Sent, &[]).await.unwrap();
        journal.remove(&branch(4)).await.unwrap();
        drop(journal);

        let journal = Journal::open(&path, WEEK).await.unwrap();
        assert_eq!(journal.identity(), identity);
        let record = journal.record(&branch(1)).await.unwrap().unwrap();
        assert_eq!(
            (record.state, record.operations),
            (State::Open, names.into())
        );
        let record = journal.record(&branch(3)).await.unwrap().unwrap();
        assert_eq!((record.state, record.operations), (State::Fenced, vec![]));
        assert_eq!(journal.record(&branch(4)).await.unwrap(), None);
        assert_eq!(journal.unsettled().await.unwrap(), [branch(1), branch(2)]);
    }

    #[tokio::test]
    async fn a_damaged_journal_is_refused_rather_than_read_as_if_a_branch_had_never_been() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let journal = Journal::open(&path, WEEK).await.unwrap();
        for number in 1..=3 {
            journal
                .write(&branch(number), State::Open, &[])
                .await
                .unwrap();
        }
        close(journal).await;
        let whole = fs::read(&path).unwrap();
        let id = branch(1).transaction;
        let places: Vec<_> = (0..whole.len() - id.len())
            .filter(|at| whole[*at..].starts_with(id.as_bytes()))
            .collect();
        assert_eq!(
            places.len(),
            6,
            "each branch is in the table and in its index"
        );
        for place in places {
            let mut damaged = whole.clone();
            damaged[place] = b'v';
            fs::write(&path, damaged).unwrap();
            let problem = refusal(&path).await;
            assert!(problem.contains("it is damaged"), "byte {place}: {problem}");
        }
    }

    #[tokio::test]
    async fn the_purge_leaves_what_is_young_and_what_is_in_doubt() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(&directory.path().join("journal"), WEEK)
            .await
            .unwrap();
        for (number, state) in [
            (1, State::Open),
            (2, State::Doomed),
            (3, State::Committed),
            (4, State::Aborted),
            (5, State::Sent),
            (6, State::Fenced),
        ] {
            journal.write(&branch(number), state, &[]).await.unwrap();
        }
        assert_eq!(journal.purge().await.unwrap(), 0);
        sqlx::query("UPDATE branch SET written_at = written_at - ?")
            .bind(WEEK.as_secs().cast_signed() + 1)
            .execute(&mut *journal.connection.lock().await)
            .await
            .unwrap();
        for number in 10..2_000 {
            journal
                .write(&branch(number), State::Sent, &[])
                .await
                .unwrap();
        }
        assert_eq!(journal.purge().await.unwrap(), 4);
        assert_eq!(journal.unsettled().await.unwrap(), [branch(1), branch(2)]);
        assert!(journal.record(&branch(10)).await.unwrap().is_some());
        assert!(journal.absence_proves(WEEK / 2) && !journal.absence_proves(WEEK));
    }

    #[tokio::test]
    async fn what_was_purged_under_a_shorter_retention_is_not_taken_for_never_written() {
        let hour = Duration::from_secs(3_600);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let journal = Journal::open(&path, hour).await.unwrap();
        journal.write(&branch(1), State::Sent, &[]).await.unwrap();
        sqlx::query("UPDATE branch SET written_at = written_at - 7200")
            .execute(&mut *journal.connection.lock().await)
            .await
            .unwrap();
        assert_eq!(journal.purge().await.unwrap(), 1);
        drop(journal);

        let journal = Journal::open(&path, WEEK).await.unwrap();
        assert_eq!(journal.record(&branch(1)).await.unwrap(), None);
        assert!(!journal.absence_proves(2 * hour));
        assert!(journal.absence_proves(hour / 2) && journal.absence_proves(Duration::ZERO));
        // Nor is it forgotten by a purge that goes less far.
        journal.write(&branch(2), State::Sent, &[]).await.unwrap();
        sqlx::query("UPDATE branch SET written_at = written_at - ?")
            .bind(2 * WEEK.as_secs().cast_signed())
            .execute(&mut *journal.connection.lock().await)
            .await
            .unwrap();
        assert_eq!(journal.purge().await.unwrap(), 1);
        assert!(!journal.absence_proves(2 * hour));
    }

    #[tokio::test]
    async fn a_second_agent_and_a_file_that_is_no_journal_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let journal = Journal::open(&path, WEEK).await.unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for path in [&path, &link] {
            assert!(refusal(path).await.contains("another agent uses"));
        }
        drop(journal);

        let other = directory.path().join("other");
        fs::write(&other, "no database at all, but a text that is long enough").unwrap();
        assert!(refusal(&other).await.contains("not a database"));
        assert!(
            refusal(&directory.path().join("none/journal"))
                .await
                .contains("No such file")
        );

        let foreign = directory.path().join("foreign");
        let mut connection = SqliteConnectOptions::new()
            .filename(&foreign)
            .create_if_missing(true)
            .connect()
            .await
            .unwrap();
        sqlx::raw_sql("CREATE TABLE mine (a)")
            .execute(&mut connection)
            .await
            .unwrap();
        assert!(
            refusal(&foreign)
                .await
                .contains("another program's database")
        );
    }

    #[tokio::test]
    async fn after_a_failure_it_gives_no_answer_any_more() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(&directory.path().join("journal"), WEEK)
            .await
            .unwrap();
        sqlx::raw_sql("ALTER TABLE branch RENAME TO lost")
            .execute(&mut *journal.connection.lock().await)
            .await
            .unwrap();
        journal
            .write(&branch(1), State::Open, &[])
            .await
            .unwrap_err();
        sqlx::raw_sql("ALTER TABLE lost RENAME TO branch")
            .execute(&mut *journal.connection.lock().await)
            .await
            .unwrap();
        let error = journal
            .write(&branch(1), State::Open, &[])
            .await
            .unwrap_err();
        assert!(error.to_string().contains("started again"), "{error}");
        assert!(journal.unsettled().await.is_err());
    }
}
