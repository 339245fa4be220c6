//! A database of any of the three kinds, and the log of events that each participant keeps in its own.
//!
//! A log only ever grows, and nothing in it is unique: what were done twice would stand there twice. Its times are the database's, not ours.

use anyhow::{Context, Result, bail, ensure};
use example_harness::address::without_password;
use sqlx::{
    AnyPool, AssertSqlSafe, Executor,
    any::{AnyPoolOptions, install_default_drivers},
};

/// Long enough for the name of any event.
const EVENT_BYTES: usize = 16;

/// A database, as we look at it, past the coordinator and the agents.
pub(crate) struct Database {
    pub(crate) pool: AnyPool,
    pub(crate) dialect: Dialect,
    url: String,
}

/// What is written differently in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Postgres,
    Mariadb,
    Sqlite,
}

/// An entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// The entry's own number.
    pub(crate) number: i64,
    pub(crate) order_number: i64,
    pub(crate) event: String,
    /// What it is about: a day, a quantity, an amount of cents, a shipment.
    pub(crate) subject: i64,
    /// The branch, where an order may have several.
    pub(crate) branch: String,
    pub(crate) time_ms: i64,
}

impl Dialect {
    pub(crate) fn of(url: &str) -> Result<Self> {
        Ok(match url.split(':').next().unwrap_or_default() {
            "postgres" | "postgresql" => Self::Postgres,
            "mysql" | "mariadb" => Self::Mariadb,
            "sqlite" => Self::Sqlite,
            _ => bail!("a database's URL begins with postgres:, mysql: or sqlite:"),
        })
    }

    /// The column that numbers the rows.
    fn numbered(self) -> &'static str {
        match self {
            Self::Postgres => "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
            Self::Mariadb => "BIGINT AUTO_INCREMENT PRIMARY KEY",
            Self::Sqlite => "INTEGER PRIMARY KEY AUTOINCREMENT",
        }
    }

    /// The time in milliseconds, rounded down in all of them, so that what came later elsewhere is never earlier.
    fn clock(self) -> &'static str {
        match self {
            Self::Postgres => "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
            Self::Mariadb => "CAST(floor(unix_timestamp(now(6)) * 1000) AS SIGNED)",
            Self::Sqlite => "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)",
        }
    }

    /// The statement that makes a log.
    fn log(self, table: &str) -> String {
        let (numbered, clock) = (self.numbered(), self.clock());
        format!(
            "CREATE TABLE {table} (
                number       {numbered},
                order_number BIGINT NOT NULL,
                event        VARCHAR({EVENT_BYTES}) NOT NULL,
                subject      BIGINT NOT NULL,
                branch       VARCHAR(100) NOT NULL DEFAULT '',
                time_ms      BIGINT NOT NULL DEFAULT ({clock})
            )"
        )
    }
}

impl Database {
    /// Connects. A SQLite file is made if there is none.
    pub(crate) async fn open(url: &str, connections: u32) -> Result<Self> {
        install_default_drivers();
        let dialect = Dialect::of(url)?;
        let shown = without_password(url);
        let (address, connections) = match dialect {
            Dialect::Sqlite if url.contains('?') => (url.to_owned(), 1),
            Dialect::Sqlite => (format!("{url}?mode=rwc"), 1),
            Dialect::Postgres | Dialect::Mariadb => (url.to_owned(), connections),
        };
        let options = AnyPoolOptions::new()
            .max_connections(connections)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if dialect == Dialect::Sqlite {
                        // What is committed survives a crash.
                        connection
                            .execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
                            .await?;
                    }
                    Ok(())
                })
            });
        Ok(Self {
            pool: options.connect(&address).await.context(shown)?,
            dialect,
            url: url.to_owned(),
        })
    }

    /// As it was given, with the password.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Runs statements that have no values.
    pub(crate) async fn run(&self, statements: impl IntoIterator<Item = String>) -> Result<()> {
        for statement in statements {
            self.pool
                .execute(AssertSqlSafe(statement))
                .await
                .with_context(|| format!("making tables in {}", without_password(&self.url)))?;
        }
        Ok(())
    }

    /// Makes a log anew.
    pub(crate) async fn make_log(&self, table: &str) -> Result<()> {
        self.make_table(table, self.dialect.log(table)).await
    }

    /// Makes a table anew. All are called `example_…`, so that nobody else's is thrown away.
    pub(crate) async fn make_table(&self, table: &str, statement: String) -> Result<()> {
        ensure!(table.starts_with("example_"), "{table} may be anybody's");
        self.run([format!("DROP TABLE IF EXISTS {table}"), statement])
            .await
    }

    /// All of a log.
    pub(crate) async fn events(&self, table: &str) -> Result<Vec<Event>> {
        let query = format!(
            "SELECT number, order_number, event, subject, branch, time_ms FROM {table} ORDER BY number"
        );
        let rows: Vec<(i64, i64, String, i64, String, i64)> = sqlx::query_as(AssertSqlSafe(query))
            .fetch_all(&self.pool)
            .await
            .with_context(|| format!("reading {table}"))?;
        let event = |(number, order_number, event, subject, branch, time_ms)| Event {
            number,
            order_number,
            event,
            subject,
            branch,
            time_ms,
        };
        Ok(rows.into_iter().map(event).collect())
    }

    /// The sum of a column of whole numbers.
    pub(crate) async fn sum(&self, column: &str, table: &str) -> Result<i64> {
        let query = format!("SELECT {column} FROM {table}");
        let values: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(query))
            .fetch_all(&self.pool)
            .await
            .with_context(|| format!("reading {table}"))?;
        Ok(values.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_keeps_all_that_is_written_and_says_when() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", directory.path().join("log.db").display());
        let database = Database::open(&url, 1).await.unwrap();
        database.make_log("example_log").await.unwrap();
        let insert =
            "INSERT INTO example_log (order_number, event, subject) VALUES (7, 'placed', 1)";
        database.run([insert.into(), insert.into()]).await.unwrap();
        let events = database.events("example_log").await.unwrap();
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
        assert_eq!(events.len(), 2);
        assert!((now - 10_000..=now).contains(&events[0].time_ms));
        assert_eq!(
            database.sum("order_number", "example_log").await.unwrap(),
            14
        );
        assert!(database.make_log("log").await.is_err());
    }
}
