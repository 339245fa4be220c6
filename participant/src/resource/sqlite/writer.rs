//! The one writing connection.
//!
//! SQLite has one writer at a time, so there is one connection, and a branch holds it from its begin to its end: the lock is the queue.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use super::changeset;
use sqlx::{ConnectOptions, Row, SqliteConnection, sqlite::SqliteConnectOptions};

/// VDBE instructions between two looks at the clock.
const LOOK_INTERVAL: i32 = 1_000;

/// When statements are interrupted. Shared with SQLite's progress handler, so that it holds even where nobody waits for the statement.
/// Whoever takes up work on a branch sets it; the vote, and whatever else ends the work, lifts it.
#[derive(Clone)]
pub(crate) struct Limit {
    origin: Instant,
    /// Milliseconds from the origin; the maximum stands for never.
    at: Arc<AtomicU64>,
    /// Set while an application's statements run inside a branch: nothing may end the transaction, and nothing outside it may commit. SQLite
    /// rolls a whole transaction back by itself after some failures, and what comes next would commit at once.
    guarded: Arc<AtomicBool>,
}

impl Limit {
    pub(super) fn new() -> Self {
        Self {
            origin: Instant::now(),
            at: Arc::new(AtomicU64::new(u64::MAX)),
            guarded: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Statements are interrupted from then on.
    pub(super) fn set(&self, deadline: tokio::time::Instant) {
        let after = deadline
            .into_std()
            .saturating_duration_since(self.origin)
            .as_millis();
        self.at
            .store(u64::try_from(after).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Nothing is interrupted: what ends a branch must run to its end.
    pub(super) fn lift(&self) {
        self.at.store(u64::MAX, Ordering::Relaxed);
    }

    /// What is running is interrupted, and whatever follows.
    pub(super) fn interrupt(&self) {
        self.at.store(0, Ordering::Relaxed);
    }

    /// A branch is in the hands of an application.
    pub(super) fn guard(&self) {
        self.guarded.store(true, Ordering::SeqCst);
    }

    /// The agent itself goes on: it commits, rolls back, and works outside branches.
    pub(super) fn unguard(&self) {
        self.guarded.store(false, Ordering::SeqCst);
    }

    fn is_open(&self) -> bool {
        let at = self.at.load(Ordering::Relaxed);
        at == u64::MAX || self.origin.elapsed().as_millis() < u128::from(at)
    }
}

/// The connection, and what is known of the schema behind it.
pub(super) struct Writer {
    options: SqliteConnectOptions,
    limit: Limit,
    connection: Option<SqliteConnection>,
    shape: Option<Shape>,
}

impl Writer {
    pub(super) fn new(options: SqliteConnectOptions, limit: Limit) -> Self {
        Self {
            options,
            limit,
            connection: None,
            shape: None,
        }
    }

    /// Opens the connection where there is none.
    pub(super) async fn open(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        if self.connection.is_none() {
            let mut connection = self.options.connect().await?;
            let (limit, guarded) = (self.limit.clone(), Arc::clone(&self.limit.guarded));
            let mut handle = connection.lock_handle().await?;
            handle.set_progress_handler(LOOK_INTERVAL, move || limit.is_open());
            handle.set_commit_hook(move || !guarded.load(Ordering::SeqCst));
            changeset::keep_transaction(&mut handle, Arc::clone(&self.limit.guarded))?;
            drop(handle);
            self.connection = Some(connection);
        }
        Ok(self.connection())
    }

    /// The connection, which is open since the branch was begun.
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        self.connection
            .as_mut()
            .expect("whoever holds a branch has opened the connection")
    }

    /// The connection, where it is open.
    pub(super) fn opened(&mut self) -> Option<&mut SqliteConnection> {
        self.connection.as_mut()
    }

    /// Closes the connection; SQLite rolls back.
    pub(super) fn close(&mut self) {
        self.connection = None;
    }

    /// What the schema demands of a branch, as of now.
    pub(super) async fn shape(&mut self) -> Result<&Shape, sqlx::Error> {
        let connection = self
            .connection
            .as_mut()
            .expect("whoever holds a branch has opened the connection");
        let version: i64 = sqlx::query_scalar("PRAGMA schema_version")
            .fetch_one(&mut *connection)
            .await?;
        let shape = match self.shape.take() {
            Some(shape) if shape.version == version => shape,
            _ => Shape::read(connection, version).await?,
        };
        Ok(self.shape.insert(shape))
    }
}

/// What of a schema the session extension can't cope with by itself.
pub(super) struct Shape {
    version: i64,
    /// Finds a row whose primary key is NULL, which SQLite allows outside INTEGER PRIMARY KEY, and the session extension passes over.
    /// It goes through the keys' indexes.
    pub(super) null_keys: Option<String>,
    /// Tables with a key of several columns that may be NULL: there a search would read the whole table.
    pub(super) unfit: Vec<String>,
    /// Tables with a unique index besides the primary key: rows that swap values, say, can't be changed one after the other.
    pub(super) ordered: Arc<HashSet<String>>,
    /// Tables where two keys may be equal and yet not the same bytes, by a collation, or 1 and 1.0 in a column without a type. SQLite goes by
    /// the one, the record of changes by the other.
    pub(super) loose: Arc<HashSet<String>>,
}

impl Shape {
    async fn read(connection: &mut SqliteConnection, version: i64) -> Result<Self, sqlx::Error> {
        let keys = "SELECT m.name, (SELECT p.name FROM pragma_table_info(m.name) p WHERE p.pk = 1), \
               (SELECT count(*) FROM pragma_table_info(m.name) p WHERE p.pk > 0) \
             FROM sqlite_schema m JOIN pragma_table_list t ON t.schema = 'main' AND t.name = m.name \
             WHERE t.type = 'table' AND NOT t.wr AND m.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND EXISTS ( \
               SELECT 1 FROM pragma_table_info(m.name) p WHERE p.pk > 0 AND NOT p.\"notnull\" AND ( \
                 EXISTS (SELECT 1 FROM pragma_index_list(m.name) i WHERE i.origin = 'pk') OR (SELECT count(*) FROM pragma_table_info(m.name) q WHERE q.pk > 0) > 1))";
        let (mut searches, mut unfit) = (Vec::new(), Vec::new());
        for row in sqlx::query(keys).fetch_all(&mut *connection).await? {
            let (table, column, count): (String, String, i64) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            if count > 1 {
                unfit.push(table);
            } else {
                let text = format!("'{}'", table.replace('\'', "''"));
                searches.push(format!(
                    "SELECT {text} WHERE EXISTS (SELECT 1 FROM {} WHERE {} IS NULL)",
                    name(&table),
                    name(&column)
                ));
            }
        }
        let ordered = "SELECT DISTINCT m.name FROM sqlite_schema m JOIN pragma_index_list(m.name) i \
             WHERE m.type = 'table' AND i.\"unique\" AND i.origin <> 'pk'";
        let ordered: Vec<String> = sqlx::query_scalar(ordered)
            .fetch_all(&mut *connection)
            .await?;
        let loose = "SELECT DISTINCT m.name FROM sqlite_schema m JOIN pragma_index_list(m.name) i \
             JOIN pragma_index_xinfo(i.name) x JOIN pragma_table_info(m.name) c ON c.cid = x.cid \
             WHERE m.type = 'table' AND i.origin = 'pk' AND x.key AND (x.coll <> 'BINARY' OR c.type = '' OR c.type = 'ANY' \
               OR c.type LIKE '%BLOB%')";
        let loose: Vec<String> = sqlx::query_scalar(loose).fetch_all(connection).await?;
        let null_keys = (!searches.is_empty()).then(|| searches.join(" UNION ALL "));
        Ok(Self {
            version,
            null_keys,
            unfit,
            ordered: Arc::new(ordered.into_iter().collect()),
            loose: Arc::new(loose.into_iter().collect()),
        })
    }
}

fn name(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}
