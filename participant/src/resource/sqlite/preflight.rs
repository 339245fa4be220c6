//! Whether this SQLite database can vote at all, and how its files are opened.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    ConnectOptions, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use crate::resource::{MARKER_TABLE, PreflightError, ResourceOptions};

use super::journal::Journal;

/// How long a connection of ours waits for a writer that is none of ours.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const MARKER_DEFINITION: &str = "CREATE TABLE unanimity_marker (transaction_id TEXT NOT NULL, branch INTEGER NOT NULL, \
     request_id TEXT UNIQUE, outcome INTEGER NOT NULL, created_at INTEGER NOT NULL DEFAULT (unixepoch()), \
     PRIMARY KEY (transaction_id, branch))";

/// What the checks found.
pub(super) struct Found {
    pub(super) options: SqliteConnectOptions,
    pub(super) path: PathBuf,
    /// Held for as long as anything may write.
    pub(super) lock: File,
    pub(super) journal: Journal,
}

/// Finds the database, and makes sure that nobody else acts for it.
pub(super) fn find(options: &ResourceOptions) -> Result<Found, PreflightError> {
    let unreadable = || PreflightError::refused("the database's URL can't be read", "write it as sqlite:/path/to/the.db");
    let parsed: SqliteConnectOptions = options.url.parse().map_err(|_| unreadable())?;
    let given = parsed.get_filename().to_owned();
    if options.url.contains(":memory:") || options.url.contains("mode=memory") || given.as_os_str().is_empty() {
        return Err(PreflightError::refused("a database in memory forgets its promises", "give the path of a file"));
    }
    let path = canonical(&given).map_err(|error| {
        PreflightError::refused(format!("{}: {error}", given.display()), "correct the path, or create the directory")
    })?;
    let connect = settled(parsed).filename(&path);
    let lock = lock(&beside(&path, ".unanimity-lock"), &options.participant)?;
    let journal_path = match &options.journal {
        None => beside(&path, ".unanimity-prepared"),
        Some(directory) if directory.is_dir() => directory.join(beside(Path::new(path.file_name().unwrap_or_default()), ".unanimity-prepared")),
        Some(file) => file.clone(),
    };
    let journal = Journal::open(journal_path.clone()).map_err(|error| {
        let problem = format!("the prepare journal {} can't be opened: {error}", journal_path.display());
        PreflightError::refused(problem, "give the agent a journal of its own, in a directory that it may write to")
    })?;
    Ok(Found { options: connect, path, lock, journal })
}

/// The one name of a file, that need not be there yet.
fn canonical(path: &Path) -> std::io::Result<PathBuf> {
    path.canonicalize().or_else(|_| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().ok_or_else(|| std::io::Error::other("it names no file"))?;
        Ok(parent.canonicalize()?.join(name))
    })
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// What every connection has. Statements are not logged: they may hold what is nobody's business.
fn settled(options: SqliteConnectOptions) -> SqliteConnectOptions {
    options
        .journal_mode(SqliteJournalMode::Wal)
        // In WAL mode anything less doesn't force a commit.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .shared_cache(false)
        .disable_statement_logging()
}

/// Keeps a second agent away, in this process or another. The kernel lets go of the lock when the process ends, however it ends.
fn lock(path: &Path, participant: &str) -> Result<File, PreflightError> {
    let unusable = |error: std::io::Error| {
        PreflightError::refused(format!("{}: {error}", path.display()), "let the agent write to the database's directory")
    };
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            return Err(PreflightError::refused(
                format!("another agent acts for this database: {}", holder.trim()),
                "a SQLite database takes one agent: stop the other",
            ));
        }
        Err(std::fs::TryLockError::Error(error)) => return Err(unusable(error)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(unusable)?;
    file.write_all(format!("participant {participant}, process {}\n", std::process::id()).as_bytes()).map_err(unusable)?;
    Ok(file)
}

/// Checks the database, and sees to it that the marker table is there.
pub(super) async fn check(connection: &mut SqliteConnection) -> Result<(), PreflightError> {
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *connection).await.map_err(query_error)?;
    if mode != "wal" {
        let remedy = "put the database on a local disk; a network's file system won't do";
        return Err(PreflightError::refused(format!("the database stays in journal mode {mode}, not wal"), remedy));
    }
    let mut problem = String::new();
    if !marker_table_fits(connection).await {
        let create = MARKER_DEFINITION.replacen("CREATE TABLE", "CREATE TABLE IF NOT EXISTS", 1);
        let script = format!("{create}; CREATE INDEX IF NOT EXISTS {MARKER_TABLE}_created_at ON {MARKER_TABLE} (created_at)");
        if let Err(error) = sqlx::raw_sql(sqlx::AssertSqlSafe(script)).execute(&mut *connection).await {
            problem = format!(": {error}");
        }
    }
    if marker_table_fits(connection).await {
        return Ok(());
    }
    Err(PreflightError::refused(
        format!("the table {MARKER_TABLE} is missing, or differs{problem}"),
        format!("rename it, or run: {MARKER_DEFINITION}"),
    ))
}

async fn marker_table_fits(connection: &mut SqliteConnection) -> bool {
    let unique = "SELECT (SELECT group_concat(name, ' ') FROM pragma_index_info(i.name)) FROM pragma_index_list('unanimity_marker') i \
         WHERE i.\"unique\" AND NOT i.partial";
    let columns = sqlx::raw_sql("SELECT transaction_id, branch, request_id, outcome, created_at FROM unanimity_marker LIMIT 0");
    if columns.execute(&mut *connection).await.is_err() {
        return false;
    }
    let Ok(rows) = sqlx::query(unique).persistent(false).fetch_all(connection).await else { return false };
    let keys: Vec<String> = rows.iter().filter_map(|row| row.try_get(0).ok()).collect();
    ["transaction_id branch", "request_id"].into_iter().all(|key| keys.iter().any(|found| found == key))
}

pub(super) fn query_error(error: sqlx::Error) -> PreflightError {
    let remedy = "give the path of a SQLite database that the agent may write to; ?mode=rwc creates one";
    match super::values::code(&error).map(|code| code & 0xff) {
        // CANTOPEN, NOTADB, READONLY, PERM, AUTH, CORRUPT.
        Some(14 | 26 | 8 | 3 | 23 | 11) => PreflightError::refused(format!("the database can't be used: {error}"), remedy),
        _ => PreflightError::Unavailable(format!("SQLite: {error}")),
    }
}
