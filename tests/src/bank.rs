//! Accounts in a database, what the agent offers on them, and what the database itself says.

use sqlx::{
    AssertSqlSafe, Connection, MySqlConnection, PgConnection, Row, SqliteConnection,
    mysql::MySqlRow, sqlite::SqliteConnectOptions,
};
use unanimity_client::{Client, Operation, Outcome, Submission};

use crate::{mariadb::Mariadb, patience::becomes, postgres::Postgres, system::Scratch};

/// Accounts 1 to this are there.
pub const ACCOUNTS: i64 = 20;

/// What each holds in the beginning.
pub const INITIAL_BALANCE: i64 = 100;

/// With PostgreSQL's placeholders.
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
parameters    = [{ name = "transfer", type = "text" }, { name = "account", type = "integer" }, { name = "amount", type = "integer" }]
expected_rows = 1

[operation.balance]
sql        = "SELECT balance FROM account WHERE id = $1"
parameters = [{ name = "account", type = "integer" }]
"#;

const SCHEMA: [&str; 2] = [
    "CREATE TABLE account (
        id BIGINT PRIMARY KEY, owner VARCHAR(100) NOT NULL, balance BIGINT NOT NULL,
        CONSTRAINT account_not_overdrawn CHECK (balance >= 0)
    )",
    "CREATE TABLE entry (
        transfer VARCHAR(64) NOT NULL, account BIGINT NOT NULL, amount BIGINT NOT NULL, PRIMARY KEY (transfer, account)
    )",
];

/// A database with accounts.
#[derive(Clone, Debug)]
pub struct Bank {
    /// The participant's name.
    pub name: String,
    /// The database's URL, for its owner.
    pub url: String,
    /// Further lines of the agent's configuration, before the operations: `connections = 5`.
    pub settings: String,
    /// Further operations.
    pub operations: String,
}

impl Bank {
    /// A new database of its own on the shared PostgreSQL server.
    pub async fn postgres(name: &str) -> Self {
        Self::create(name, Postgres::shared().new_database().await).await
    }

    /// A new database of its own on the shared MariaDB server.
    pub async fn mariadb(name: &str) -> Self {
        Self::create(name, Mariadb::shared().new_database().await).await
    }

    /// A new SQLite file.
    pub async fn sqlite(scratch: &Scratch, name: &str) -> Self {
        let url = format!("sqlite:{}", scratch.path(&format!("{name}.db")).display());
        let options: SqliteConnectOptions = url.parse().expect("a good URL");
        let made = SqliteConnection::connect_with(&options.create_if_missing(true)).await;
        made.expect("the directory is ours")
            .close()
            .await
            .expect("nothing is open");
        Self::create(name, url).await
    }

    /// A bank in each of the three: `lite`, `post` and `maria`.
    pub async fn three(scratch: &Scratch) -> [Self; 3] {
        [
            Self::sqlite(scratch, "lite").await,
            Self::postgres("post").await,
            Self::mariadb("maria").await,
        ]
    }

    /// Makes the tables in an empty database.
    pub async fn create(name: &str, url: String) -> Self {
        let bank = Self {
            name: name.into(),
            url,
            settings: "connections = 10\n".into(),
            operations: String::new(),
        };
        for statement in SCHEMA {
            bank.execute(statement).await;
        }
        for id in 1..=ACCOUNTS {
            bank.execute(&format!(
                "INSERT INTO account VALUES ({id}, 'owner {id}', {INITIAL_BALANCE})"
            ))
            .await;
        }
        bank
    }

    /// With one more operation. `sql` has PostgreSQL's placeholders; `parameters` is TOML.
    #[must_use]
    pub fn offering(mut self, name: &str, sql: &str, parameters: &str) -> Self {
        self.operations +=
            &format!("[operation.{name}]\nsql = {sql:?}\nparameters = {parameters}\n");
        self
    }

    /// The configuration of its agent.
    pub fn agent_configuration(&self, coordinator: &str) -> String {
        let Self {
            name,
            url,
            settings,
            ..
        } = self;
        let mut operations = format!("{OPERATIONS}\n{}", self.operations);
        if !url.starts_with("postgres") {
            for placeholder in ["$1", "$2", "$3"] {
                operations = operations.replace(placeholder, "?");
            }
        }
        format!(
            "name = {name:?}\ncoordinator = {coordinator:?}\ndatabase = {url:?}\n{settings}{operations}"
        )
    }

    /// Runs a statement, past the agent.
    ///
    /// # Panics
    /// Where it fails.
    pub async fn execute(&self, statement: &str) {
        let done = self.try_execute(statement).await;
        done.unwrap_or_else(|error| panic!("{}: {statement}: {error}", self.name));
    }

    /// Runs a statement, past the agent.
    ///
    /// # Errors
    /// The database's.
    pub async fn try_execute(&self, statement: &str) -> sqlx::Result<()> {
        let statement = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()));
        if self.url.starts_with("postgres") {
            statement
                .execute(&mut PgConnection::connect(&self.url).await?)
                .await?;
        } else if self.url.starts_with("mysql") {
            statement
                .execute(&mut MySqlConnection::connect(&self.url).await?)
                .await?;
        } else {
            statement
                .execute(&mut SqliteConnection::connect(&self.url).await?)
                .await?;
        }
        Ok(())
    }

    /// The numbers that a query returns in its first column.
    ///
    /// # Panics
    /// Where it fails.
    pub async fn numbers(&self, query: &str) -> Vec<i64> {
        let found = self.try_numbers(query).await;
        found.unwrap_or_else(|error| panic!("{}: {query}: {error}", self.name))
    }

    async fn try_numbers(&self, query: &str) -> sqlx::Result<Vec<i64>> {
        let query = AssertSqlSafe(query.to_owned());
        if self.url.starts_with("postgres") {
            sqlx::query_scalar(query)
                .fetch_all(&mut PgConnection::connect(&self.url).await?)
                .await
        } else if self.url.starts_with("mysql") {
            sqlx::query_scalar(query)
                .fetch_all(&mut MySqlConnection::connect(&self.url).await?)
                .await
        } else {
            sqlx::query_scalar(query)
                .fetch_all(&mut SqliteConnection::connect(&self.url).await?)
                .await
        }
    }

    /// What an account holds.
    pub async fn balance(&self, account: i64) -> i64 {
        self.numbers(&format!("SELECT balance FROM account WHERE id = {account}"))
            .await[0]
    }

    /// What all accounts hold.
    pub async fn total(&self) -> i64 {
        self.numbers("SELECT balance FROM account")
            .await
            .iter()
            .sum()
    }

    /// How many entries a transfer has here.
    pub async fn entries(&self, transfer: &str) -> usize {
        self.numbers(&format!(
            "SELECT amount FROM entry WHERE transfer = '{transfer}'"
        ))
        .await
        .len()
    }

    /// The branches that are prepared in the database and whose ids begin so. For SQLite the agent's journal tells.
    ///
    /// # Panics
    /// Where the database is away.
    pub async fn prepared(&self, prefix: &str) -> Vec<String> {
        let found = self
            .try_prepared()
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
        found
            .into_iter()
            .filter(|branch| branch.starts_with(prefix))
            .collect()
    }

    async fn try_prepared(&self) -> sqlx::Result<Vec<String>> {
        if self.url.starts_with("postgres") {
            let query = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()";
            sqlx::query_scalar(query)
                .fetch_all(&mut PgConnection::connect(&self.url).await?)
                .await
        } else if self.url.starts_with("mysql") {
            let mut connection = MySqlConnection::connect(&self.url).await?;
            let rows = sqlx::raw_sql("XA RECOVER")
                .fetch_all(&mut connection)
                .await?;
            let text = |row: &MySqlRow| {
                let data = row.try_get_unchecked::<Vec<u8>, _>("data")?;
                Ok(String::from_utf8_lossy(&data).into_owned())
            };
            rows.iter().map(text).collect()
        } else {
            let journal = std::fs::read(format!(
                "{}.unanimity-prepared",
                self.url.trim_start_matches("sqlite:")
            ));
            Ok(journal
                .ok()
                .as_deref()
                .and_then(journaled)
                .into_iter()
                .collect())
        }
    }

    /// Waits until the database lists so many prepared branches whose ids begin so.
    pub async fn has_prepared(&self, prefix: &str, number: usize) {
        let what = format!("branches prepared in {}", self.name);
        becomes(&what, number, || async {
            self.prepared(prefix).await.len()
        })
        .await;
    }
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

/// A transfer of an amount from an account of one bank to the same account of another.
pub fn transfer(
    client: &Client,
    id: &str,
    from: &Bank,
    to: &Bank,
    account: i64,
    amount: i64,
) -> Submission {
    client
        .transaction()
        .branch(&from.name, side("debit", id, account, amount, -amount))
        .branch(&to.name, side("credit", id, account, amount, amount))
}

/// What a transfer does at one bank.
pub fn side(
    operation: &str,
    transfer: &str,
    account: i64,
    amount: i64,
    entry: i64,
) -> [Operation; 2] {
    [
        Operation::named(operation)
            .with("account", account)
            .with("amount", amount),
        Operation::named("entry")
            .with("transfer", transfer)
            .with("account", account)
            .with("amount", entry),
    ]
}

/// The id of the transaction that committed.
///
/// # Panics
/// Where it did not.
pub fn committed(outcome: Result<Outcome, unanimity_client::Error>) -> String {
    outcome
        .expect("it was taken")
        .committed()
        .expect("it committed")
        .transaction_id
}

/// Why it was aborted.
///
/// # Panics
/// Where it was not.
pub fn aborted(outcome: Result<Outcome, unanimity_client::Error>) -> unanimity_client::Aborted {
    match outcome.expect("it was taken") {
        Outcome::Aborted(aborted) => aborted,
        other => panic!("not aborted, but {other:?}"),
    }
}
