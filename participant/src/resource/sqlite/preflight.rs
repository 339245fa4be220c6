//! Whether this SQLite database can vote, and how to make it.

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    ConnectOptions, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use crate::resource::{PreflightError, ResourceOptions};

use super::{values, writer::Writer};

const DEFINITIONS: &str = "CREATE TABLE IF NOT EXISTS unanimity_marker (transaction_id TEXT NOT NULL, branch INTEGER NOT NULL, \
     request_id TEXT UNIQUE, outcome INTEGER NOT NULL, created_at INTEGER NOT NULL DEFAULT (unixepoch()), result TEXT, \
     PRIMARY KEY (transaction_id, branch)) WITHOUT ROWID; \
     CREATE INDEX IF NOT EXISTS unanimity_marker_created_at ON unanimity_marker (created_at); \
     CREATE TABLE IF NOT EXISTS unanimity_fence (lock_key TEXT NOT NULL PRIMARY KEY, token INTEGER NOT NULL) WITHOUT ROWID";

/// Whether the marker table is of an older release, which kept no results.
const LACKS_RESULT: &str =
    "SELECT NOT EXISTS (SELECT 1 FROM pragma_table_info('unanimity_marker') WHERE name = 'result')";

/// The driver's options for a URL. Statements are not logged: they may hold what is nobody's business.
pub(super) fn parse(options: &ResourceOptions) -> Result<SqliteConnectOptions, PreflightError> {
    let remedy = "write it as sqlite:<path>, or sqlite:<path>?mode=rwc to create the database";
    let problem = || PreflightError::refused("the database's URL can't be read", remedy);
    let parsed: SqliteConnectOptions = options.url.parse().map_err(|_| problem())?;
    if parsed.get_filename().as_os_str().is_empty() {
        return Err(problem());
    }
    // The whole of a database in memory is forgotten in a crash, and so would be its vote.
    if options.url.contains(":memory:") || options.url.contains("mode=memory") {
        return Err(PreflightError::refused(
            "a database in memory can't keep its vote",
            remedy,
        ));
    }
    Ok(parsed
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        .disable_statement_logging())
}

/// Opens the database, and sees to it that our tables are there.
pub(super) async fn check(writer: &mut Writer) -> Result<(), PreflightError> {
    let open_error = |error: sqlx::Error| match values::code(&error) {
        5 | 6 => PreflightError::Unavailable(format!("SQLite: {error}")),
        _ => PreflightError::refused(
            format!("SQLite can't open the database: {error}"),
            "check the path and its permissions, or add ?mode=rwc to create it",
        ),
    };
    let connection = writer.open().await.map_err(open_error)?;
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(&mut *connection)
        .await
        .map_err(open_error)?;
    let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous")
        .fetch_one(&mut *connection)
        .await
        .map_err(open_error)?;
    if mode != "wal" || synchronous < 2 {
        return Err(PreflightError::refused(
            format!("SQLite runs with journal_mode={mode}, synchronous={synchronous}"),
            "put the database on a file system where SQLite's WAL works (a local one)",
        ));
    }
    make_tables(connection)
        .await
        .map_err(|error| match values::code(&error) {
            5 | 6 => PreflightError::Unavailable(format!("SQLite: {error}")),
            _ => PreflightError::refused(
                format!(
                    "the tables unanimity_marker and unanimity_fence can't be made, or differ: {error}"
                ),
                "make the database writable, or move other tables of these names away",
            ),
        })?;
    check_shape(writer).await
}

/// Creates the tables where they are missing, and brings older ones up to date. No other agent is at it: this one has the lock. A changeset in the
/// journal that knows fewer columns can be applied all the same.
async fn make_tables(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(DEFINITIONS).execute(&mut *connection).await?;
    if sqlx::query_scalar(LACKS_RESULT)
        .fetch_one(&mut *connection)
        .await?
    {
        sqlx::raw_sql("ALTER TABLE unanimity_marker ADD COLUMN result TEXT")
            .execute(&mut *connection)
            .await?;
    }
    let columns = "SELECT transaction_id, branch, request_id, outcome, created_at, result FROM unanimity_marker LIMIT 0; \
         SELECT lock_key, token FROM unanimity_fence LIMIT 0";
    sqlx::raw_sql(columns).execute(connection).await.map(drop)
}

async fn check_shape(writer: &mut Writer) -> Result<(), PreflightError> {
    let broken = |error: sqlx::Error| PreflightError::Unavailable(format!("SQLite: {error}"));
    let shape = writer.shape().await.map_err(broken)?;
    if !shape.unfit.is_empty() {
        return Err(PreflightError::refused(
            format!(
                "primary keys of several columns may be NULL, which can't be replayed after a crash: {}",
                shape.unfit.join(", ")
            ),
            "declare the key's columns NOT NULL",
        ));
    }
    let Some(search) = shape.null_keys.clone() else {
        return Ok(());
    };
    let found: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(search))
        .fetch_all(writer.connection())
        .await
        .map_err(broken)?;
    if !found.is_empty() {
        return Err(PreflightError::refused(
            format!(
                "rows have NULL for a primary key, which can't be replayed after a crash: {}",
                found.join(", ")
            ),
            "give these rows a key",
        ));
    }
    Ok(())
}

/// The database's own place, with links resolved: what tells it from others, and where its companions lie.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, PreflightError> {
    let remedy = "check the path; its directory must exist";
    let problem = |error: std::io::Error| {
        PreflightError::refused(format!("{}: {error}", path.display()), remedy)
    };
    if path.exists() {
        return path.canonicalize().map_err(problem);
    }
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| {
        PreflightError::refused(format!("{} names no file", path.display()), remedy)
    })?;
    Ok(directory.canonicalize().map_err(problem)?.join(name))
}

/// A file beside the database.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// One agent serves a database: the prepare journal has one writer. The lock goes with the process, however that ends.
pub(super) fn lock(path: &Path) -> Result<File, PreflightError> {
    let lock = beside(path, ".unanimity-lock");
    let refused = |error: std::io::Error| {
        PreflightError::refused(
            format!("{}: {error}", lock.display()),
            "let the agent write in the database's directory",
        )
    };
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock)
        .map_err(refused)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(PreflightError::Unavailable(format!(
            "another agent serves {}",
            path.display()
        ))),
        Err(TryLockError::Error(error)) => Err(refused(error)),
    }
}
