//! A bank: a database with accounts and entries.
//!
//! Money is only ever moved by transactions, through the operations of [`OPERATIONS`]. What is here looks at the databases directly, past the
//! coordinator and the agents, so that it can tell whether they did right.

use std::{collections::HashMap, fs};

use anyhow::{Context, Result, bail};
use example_harness::address::without_password;
use sqlx::{
    AssertSqlSafe, Connection as _, MySqlConnection, PgConnection, Row,
    mysql::{MySqlPool, MySqlPoolOptions, MySqlRow},
    postgres::{PgPool, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions},
};

/// What every account holds in the beginning.
pub(crate) const INITIAL_BALANCE: i64 = 1_000;

/// What the agent of a bank offers to applications, with PostgreSQL's placeholders. Each must change one row, else the branch votes no.
const OPERATIONS: &str = r#"
[operation.debit]
sql           = "UPDATE account SET balance = balance - $1 WHERE id = $2"
parameters    = [{ name = "amount", type = "integer" }, { name = "account", type = "integer" }]
expected_rows = 1

[operation.credit]
sql           = "UPDATE account SET balance = balance + $1 WHERE id = $2"
parameters    = [{ name = "amount", type = "integer" }, { name = "account", type = "integer" }]
expected_rows = 1

[operation.entry]
sql           = "INSERT INTO entry (transfer, account, amount) VALUES ($1, $2, $3)"
parameters    = [
    { name = "transfer", type = "text" },
    { name = "account", type = "integer" },
    { name = "amount", type = "integer" },
]
expected_rows = 1
"#;

/// The same SQL on all three databases. The check is what refuses to overdraw an account: the transaction then aborts everywhere.
const SCHEMA: [&str; 2] = [
    "CREATE TABLE account (
        id      BIGINT PRIMARY KEY,
        owner   VARCHAR(100) NOT NULL,
        balance BIGINT NOT NULL,
        CONSTRAINT account_not_overdrawn CHECK (balance >= 0)
    )",
    "CREATE TABLE entry (
        transfer VARCHAR(64) NOT NULL,
        account  BIGINT NOT NULL REFERENCES account (id),
        amount   BIGINT NOT NULL,
        PRIMARY KEY (transfer, account)
    )",
];

/// Our tables and their columns: a table of the same name with other columns is somebody else's.
const TABLES: [(&str, [&str; 3]); 2] = [
    ("entry", ["transfer", "account", "amount"]),
    ("account", ["id", "owner", "balance"]),
];

/// A database with a name, by which transactions call it.
pub(crate) struct Bank {
    pub(crate) name: String,
    url: String,
    database: Database,
}

enum Database {
    Postgres(PgPool),
    Mysql(MySqlPool),
    Sqlite(SqlitePool),
}

/// Runs the same code on whichever database it is.
macro_rules! on {
    ($bank:expr, $pool:ident => $code:expr) => {
        match &$bank.database {
            Database::Postgres($pool) => $code,
            Database::Mysql($pool) => $code,
            Database::Sqlite($pool) => $code,
        }
    };
}

/// Half of a transfer: what it did to one account.
pub(crate) struct Entry {
    pub(crate) transfer: String,
    pub(crate) amount: i64,
}

impl Bank {
    /// Connects to the database at a `postgres:`, `mysql:` or `sqlite:` URL. A SQLite file is made if there is none.
    pub(crate) async fn open(name: String, url: String) -> Result<Self> {
        let database = Database::connect(&url).await;
        let bank = Self {
            database: database.with_context(|| format!("{name} at {}", without_password(&url)))?,
            name,
            url,
        };
        Ok(bank)
    }

    /// The URL, fit to be shown.
    pub(crate) fn url(&self) -> String {
        without_password(&self.url)
    }

    /// Makes the tables anew, with so many accounts.
    pub(crate) async fn create(&self, accounts: u32) -> Result<()> {
        for (table, ours) in TABLES {
            let columns = self.columns(table).await?;
            if columns.is_empty() {
                continue;
            }
            if columns != ours {
                bail!(
                    "{} has a table {table} that isn't this example's: its columns are {}",
                    self.name,
                    columns.join(", ")
                );
            }
            self.execute(format!("DROP TABLE {table}")).await?;
        }
        for statement in SCHEMA {
            self.execute(statement.into()).await?;
        }
        let rows: Vec<String> = (1..=accounts)
            .map(|id| format!("({id}, 'owner {id}', {INITIAL_BALANCE})"))
            .collect();
        for rows in rows.chunks(1_000) {
            let rows = rows.join(", ");
            self.execute(format!(
                "INSERT INTO account (id, owner, balance) VALUES {rows}"
            ))
            .await?;
        }
        Ok(())
    }

    /// The configuration of this bank's agent: where its database is, and what applications may ask of it.
    pub(crate) fn agent_configuration(&self, coordinator: &str, connections: u32) -> String {
        let Self { name, url, .. } = self;
        let operations = match self.database {
            Database::Postgres(_) => OPERATIONS.to_owned(),
            Database::Mysql(_) | Database::Sqlite(_) => ["$1", "$2", "$3"]
                .iter()
                .fold(OPERATIONS.to_owned(), |operations, placeholder| {
                    operations.replace(placeholder, "?")
                }),
        };
        format!(
            "name        = {name:?}\n\
             coordinator = {coordinator:?}\n\
             database    = {url:?}\n\
             connections = {connections}\n\
             {operations}"
        )
    }

    /// The sum of all balances.
    pub(crate) async fn total(&self) -> Result<i64> {
        const BALANCES: &str = "SELECT balance FROM account";
        let balances: Vec<i64> =
            on!(self, pool => sqlx::query_scalar(BALANCES).fetch_all(pool).await)
                .with_context(|| format!("reading the accounts of {}", self.name))?;
        Ok(balances.iter().sum())
    }

    /// Every entry.
    pub(crate) async fn entries(&self) -> Result<Vec<Entry>> {
        const ENTRIES: &str = "SELECT transfer, amount FROM entry";
        let entries: Vec<(String, i64)> =
            on!(self, pool => sqlx::query_as(ENTRIES).fetch_all(pool).await)
                .with_context(|| format!("reading the entries of {}", self.name))?;
        let entries = entries.into_iter();
        Ok(entries
            .map(|(transfer, amount)| Entry { transfer, amount })
            .collect())
    }

    /// The branches that are prepared in the database, by their ids. SQLite has no prepared state: there the agent keeps the branch in a file
    /// beside the database.
    pub(crate) async fn prepared(&self) -> Result<Vec<String>> {
        const POSTGRES: &str =
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()";
        let prepared = match &self.database {
            Database::Postgres(pool) => sqlx::query_scalar(POSTGRES).fetch_all(pool).await,
            Database::Mysql(pool) => xa_recover(pool).await,
            Database::Sqlite(pool) => {
                let options = pool.connect_options();
                let mut journal = options.get_filename().as_os_str().to_owned();
                journal.push(".unanimity-prepared");
                return Ok(fs::read(journal)
                    .ok()
                    .as_deref()
                    .and_then(journaled)
                    .into_iter()
                    .collect());
            }
        };
        prepared.with_context(|| format!("looking for what is prepared in {}", self.name))
    }

    async fn execute(&self, statement: String) -> Result<()> {
        let done = on!(self, pool => sqlx::raw_sql(AssertSqlSafe(statement)).execute(pool).await.map(drop));
        done.with_context(|| format!("making the tables of {}", self.name))
    }

    /// The columns of a table, in their order; none where there is no such table.
    async fn columns(&self, table: &str) -> Result<Vec<String>> {
        const POSTGRES: &str = "SELECT column_name::text FROM information_schema.columns
            WHERE table_schema = current_schema() AND table_name = $1 ORDER BY ordinal_position";
        const MYSQL: &str = "SELECT CAST(column_name AS CHAR) FROM information_schema.columns
            WHERE table_schema = database() AND table_name = ? ORDER BY ordinal_position";
        const SQLITE: &str = "SELECT name FROM pragma_table_info(?) ORDER BY cid";
        let columns = match &self.database {
            Database::Postgres(pool) => {
                let columns = sqlx::query_scalar(POSTGRES);
                columns.bind(table).fetch_all(pool).await
            }
            Database::Mysql(pool) => {
                let columns = sqlx::query_scalar(MYSQL);
                columns.bind(table).fetch_all(pool).await
            }
            Database::Sqlite(pool) => {
                let columns = sqlx::query_scalar(SQLITE);
                columns.bind(table).fetch_all(pool).await
            }
        };
        columns.with_context(|| format!("looking for the table {table} of {}", self.name))
    }
}

impl Database {
    async fn connect(url: &str) -> Result<Self> {
        let scheme = url.split(':').next().unwrap_or_default();
        Ok(match scheme {
            "postgres" | "postgresql" => {
                // A pool would try for half a minute before it says what is wrong.
                PgConnection::connect(url).await?.close().await?;
                let pool = PgPoolOptions::new().max_connections(2);
                Self::Postgres(pool.connect(url).await?)
            }
            "mysql" | "mariadb" => {
                MySqlConnection::connect(url).await?.close().await?;
                let pool = MySqlPoolOptions::new().max_connections(2);
                Self::Mysql(pool.connect(url).await?)
            }
            "sqlite" => {
                let file: SqliteConnectOptions = url.parse()?;
                let pool = SqlitePoolOptions::new().max_connections(1);
                Self::Sqlite(pool.connect_with(file.create_if_missing(true)).await?)
            }
            _ => bail!("a bank's URL begins with postgres:, mysql: or sqlite:"),
        })
    }
}

async fn xa_recover(pool: &MySqlPool) -> sqlx::Result<Vec<String>> {
    let rows = sqlx::raw_sql("XA RECOVER").fetch_all(pool).await?;
    let id = |row: &MySqlRow| {
        // Bytes on MariaDB, text on MySQL.
        let data = row.try_get_unchecked::<Vec<u8>, _>("data")?;
        Ok(String::from_utf8_lossy(&data).into_owned())
    };
    rows.iter().map(id).collect()
}

/// The id in an agent's prepare journal, where that holds a record: a mark, 16 bytes, the id's length, the id.
fn journaled(journal: &[u8]) -> Option<String> {
    let (length, rest) = journal
        .strip_prefix(b"UNPREP01")?
        .get(16..)?
        .split_first_chunk()?;
    let id = rest.get(..usize::from(u16::from_le_bytes(*length)))?;
    Some(String::from_utf8_lossy(id).into_owned())
}

/// How many entries lack their twin: the entry of the same transfer with the opposite amount.
pub(crate) fn orphans(entries: impl IntoIterator<Item = Entry>) -> usize {
    let mut transfers: HashMap<String, Vec<i64>> = HashMap::new();
    for Entry { transfer, amount } in entries {
        transfers.entry(transfer).or_default().push(amount);
    }
    transfers
        .values()
        .map(|amounts| match amounts[..] {
            [one, other] if one == -other => 0,
            _ => amounts.len(),
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_without_its_twin_is_an_orphan() {
        let entry = |transfer: &str, amount| Entry {
            transfer: transfer.into(),
            amount,
        };
        let whole = || vec![entry("a", -5), entry("a", 5), entry("b", 7), entry("b", -7)];
        assert_eq!(orphans(whole()), 0);
        let cases = [
            (vec![entry("c", 1)], 1),
            (vec![entry("c", 1), entry("c", -2)], 2),
            (vec![entry("a", 5)], 3),
        ];
        for (extra, expected) in cases {
            assert_eq!(orphans(whole().into_iter().chain(extra)), expected);
        }
    }
}
