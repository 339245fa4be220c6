//! A bank: accounts and a ledger in one database, and what its agents offer on them.
//!
//! The ledger takes the same row twice, so that an effect that happened twice is seen rather than refused.

use anyhow::{Context as _, Result};
use sqlx::{
    AssertSqlSafe, Connection, MySqlConnection, PgConnection, Row, SqliteConnection,
    mysql::MySqlRow, sqlite::SqliteConnectOptions,
};

/// Accounts of a bank, numbered from 1.
pub(crate) const ACCOUNTS: i64 = 1_000;

/// What each holds at first.
pub(crate) const INITIAL_BALANCE: i64 = 10_000;

/// Stands in ledger rows of sagas' steps, which move no money.
pub(crate) const SAGA_ACCOUNT: i64 = 0;

const OPERATIONS: &str = r#"
[operation.change]
sql           = "UPDATE account SET balance = balance + $1, version = version + 1 WHERE id = $2"
parameters    = [{ name = "amount", type = "integer" }, { name = "account", type = "integer" }]
expected_rows = 1

[operation.entry]
sql           = "INSERT INTO ledger (request, part, account, amount) VALUES ($1, $2, $3, $4)"
parameters    = [{ name = "request", type = "text" }, { name = "part", type = "text" }, { name = "account", type = "integer" }, { name = "amount", type = "integer" }]
expected_rows = 1

[operation.deed]
sql           = "INSERT INTO ledger (request, part, account, amount) VALUES ($1, $2, 0, 0)"
parameters    = [{ name = "request", type = "text" }, { name = "part", type = "text" }]
expected_rows = 1

[operation.refuse]
sql           = "UPDATE account SET version = version WHERE id = $1"
parameters    = [{ name = "account", type = "integer" }]
expected_rows = 1

[operation.balance]
sql        = "SELECT balance FROM account WHERE id = $1"
parameters = [{ name = "account", type = "integer" }]
"#;

/// Which database keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Postgres,
    Mariadb,
    Sqlite,
}

/// A bank.
#[derive(Clone, Debug)]
pub(crate) struct Bank {
    /// The participant's name.
    pub(crate) name: String,
    pub(crate) engine: Engine,
    /// The database's URL, for its owner.
    pub(crate) url: String,
    /// The database's URL, for its agents.
    pub(crate) agents_url: String,
}

/// A row of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) request: String,
    pub(crate) part: String,
    pub(crate) account: i64,
    pub(crate) amount: i64,
}

/// A row of the accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) id: i64,
    pub(crate) balance: i64,
    pub(crate) version: i64,
}

/// Runs a query on a connection of the bank's database.
macro_rules! on {
    ($bank:expr, $connection:ident => $query:expr) => {
        match $bank.engine {
            Engine::Postgres => {
                let $connection = &mut PgConnection::connect(&$bank.url).await?;
                $query.await
            }
            Engine::Mariadb => {
                let $connection = &mut MySqlConnection::connect(&$bank.url).await?;
                $query.await
            }
            Engine::Sqlite => {
                let $connection = &mut SqliteConnection::connect(&$bank.url).await?;
                $query.await
            }
        }
    };
}

impl Bank {
    /// Makes its tables in an empty database.
    ///
    /// # Errors
    /// The database's.
    pub(crate) async fn create(name: &str, engine: Engine, url: String) -> Result<Self> {
        let bank = Self {
            name: name.into(),
            engine,
            agents_url: url.clone(),
            url,
        };
        if engine == Engine::Sqlite {
            let options: SqliteConnectOptions = bank.url.parse()?;
            SqliteConnection::connect_with(&options.create_if_missing(true)).await?;
        }
        let serial = match engine {
            Engine::Postgres => "BIGSERIAL PRIMARY KEY",
            Engine::Mariadb => "BIGINT PRIMARY KEY AUTO_INCREMENT",
            Engine::Sqlite => "INTEGER PRIMARY KEY",
        };
        let rows: Vec<_> = (1..=ACCOUNTS)
            .map(|id| format!("({id}, {INITIAL_BALANCE}, 0)"))
            .collect();
        for statement in [
            "CREATE TABLE account (id BIGINT PRIMARY KEY, balance BIGINT NOT NULL, version BIGINT NOT NULL,
                CONSTRAINT account_not_overdrawn CHECK (balance >= 0))".to_owned(),
            format!("CREATE TABLE ledger (id {serial}, request VARCHAR(64) NOT NULL, part VARCHAR(16) NOT NULL,
                account BIGINT NOT NULL, amount BIGINT NOT NULL)"),
            format!("INSERT INTO account VALUES {}", rows.join(", ")),
        ] {
            bank.execute(&statement).await?;
        }
        Ok(bank)
    }

    /// The configuration of an agent of it.
    pub(crate) fn agent_configuration(&self, coordinator: &str) -> String {
        let mut operations = OPERATIONS.to_owned();
        if self.engine != Engine::Postgres {
            for placeholder in ["$1", "$2", "$3", "$4"] {
                operations = operations.replace(placeholder, "?");
            }
        }
        let (name, url) = (&self.name, &self.agents_url);
        format!(
            "name = {name:?}\ncoordinator = {coordinator:?}\ndatabase = {url:?}\nconnections = 12\n{operations}"
        )
    }

    /// Runs a statement, past the agents.
    ///
    /// # Errors
    /// The database's.
    pub(crate) async fn execute(&self, statement: &str) -> Result<()> {
        let query = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()));
        let done: sqlx::Result<()> =
            on!(self, connection => async { query.execute(connection).await.map(drop) });
        done.with_context(|| format!("{}: {statement}", self.name))
    }

    /// Its ledger.
    ///
    /// # Errors
    /// The database's.
    pub(crate) async fn ledger(&self) -> Result<Vec<Entry>> {
        let query = "SELECT request, part, account, amount FROM ledger ORDER BY id";
        let rows: sqlx::Result<Vec<(String, String, i64, i64)>> =
            on!(self, connection => sqlx::query_as(query).fetch_all(connection));
        let entry = |(request, part, account, amount)| Entry {
            request,
            part,
            account,
            amount,
        };
        let rows = rows.with_context(|| format!("{}: reading the ledger", self.name))?;
        Ok(rows.into_iter().map(entry).collect())
    }

    /// Its accounts.
    ///
    /// # Errors
    /// The database's.
    pub(crate) async fn accounts(&self) -> Result<Vec<Account>> {
        let query = "SELECT id, balance, version FROM account";
        let rows: sqlx::Result<Vec<(i64, i64, i64)>> =
            on!(self, connection => sqlx::query_as(query).fetch_all(connection));
        let account = |(id, balance, version)| Account {
            id,
            balance,
            version,
        };
        let rows = rows.with_context(|| format!("{}: reading the accounts", self.name))?;
        Ok(rows.into_iter().map(account).collect())
    }

    /// The branches that are prepared in the database. For SQLite the agent's journal tells.
    ///
    /// # Errors
    /// The database's.
    pub(crate) async fn prepared(&self) -> Result<Vec<String>> {
        let found = match self.engine {
            Engine::Postgres => {
                let query = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()";
                let connection = &mut PgConnection::connect(&self.url).await?;
                sqlx::query_scalar(query).fetch_all(connection).await
            }
            Engine::Mariadb => {
                let connection = &mut MySqlConnection::connect(&self.url).await?;
                let rows = sqlx::raw_sql("XA RECOVER").fetch_all(connection).await?;
                rows.iter().map(xid).collect()
            }
            Engine::Sqlite => {
                let file = self.url.trim_start_matches("sqlite:");
                let journal = std::fs::read(format!("{file}.unanimity-prepared"));
                Ok(journal
                    .ok()
                    .as_deref()
                    .and_then(journaled)
                    .into_iter()
                    .collect())
            }
        };
        found.with_context(|| format!("{}: looking for prepared branches", self.name))
    }
}

/// The global part and the branch's, joined as PostgreSQL shows them.
fn xid(row: &MySqlRow) -> sqlx::Result<String> {
    let data = row.try_get_unchecked::<Vec<u8>, _>("data")?;
    let global: i64 = row.try_get_unchecked::<i64, _>("gtrid_length")?;
    let global = usize::try_from(global).unwrap_or_default().min(data.len());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(format!(
        "{}.{}",
        text(&data[..global]),
        text(&data[global..])
    ))
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
