//! Whether this MySQL or MariaDB can vote at all, and how to make it.

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, MySqlConnection, Row,
    mysql::{MySqlConnectOptions, MySqlRow},
};

use crate::resource::{FENCE_TABLE, MARKER_TABLE, PreflightError, ResourceOptions};

use super::values;

/// A table of ours.
struct Table {
    name: &'static str,
    definition: &'static str,
    columns: &'static str,
    /// What makes an older release's table into this one; empty where there is none.
    upgrade: &'static str,
    /// Changes that are rolled back, to see whether they may be made.
    trial: &'static str,
    /// What the agent's login needs.
    rights: &'static str,
    /// The columns of its unique indexes.
    keys: &'static [&'static str],
}

const TABLES: [Table; 2] = [
    Table {
        name: MARKER_TABLE,
        definition: "CREATE TABLE unanimity_marker (transaction_id VARBINARY(64) NOT NULL, branch INT UNSIGNED NOT NULL, \
             request_id VARBINARY(255), outcome TINYINT NOT NULL, created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, \
             result MEDIUMBLOB, PRIMARY KEY (transaction_id, branch), UNIQUE KEY request_id (request_id), KEY created_at (created_at)) \
             ENGINE=InnoDB",
        columns: "transaction_id, branch, request_id, outcome, created_at, result",
        upgrade: "ALTER TABLE unanimity_marker ADD COLUMN result MEDIUMBLOB",
        trial: "INSERT INTO unanimity_marker (transaction_id, branch, outcome) VALUES (X'70', 0, 2); \
             UPDATE unanimity_marker SET outcome = 1 WHERE transaction_id = X'70'; \
             DELETE FROM unanimity_marker WHERE transaction_id = X'70'",
        rights: "SELECT, INSERT, UPDATE, DELETE",
        keys: &["transaction_id,branch", "request_id"],
    },
    // Bytes, so that two keys that differ in case alone are two.
    Table {
        name: FENCE_TABLE,
        definition: "CREATE TABLE unanimity_fence (lock_key VARBINARY(128) PRIMARY KEY, token BIGINT NOT NULL) ENGINE=InnoDB",
        columns: "lock_key, token",
        upgrade: "",
        trial: "INSERT INTO unanimity_fence (lock_key, token) VALUES ('', 0); UPDATE unanimity_fence SET token = 1 WHERE lock_key = ''",
        rights: "SELECT, INSERT, UPDATE",
        keys: &["lock_key"],
    },
];

/// An older table can't be changed while a prepared branch has written to it: that is waited for, but not by standing in everybody's way.
const ALTER_SECONDS: u64 = 5;

/// Which of the two it is: they differ in what becomes of a session after XA PREPARE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    /// The session is bound to the prepared branch until its end, or until it disconnects.
    Mariadb,
    /// The session is free at once (`xa_detach_on_prepare`).
    Mysql,
}

/// A setting of the server without which its promises are worth nothing.
struct Setting {
    name: &'static str,
    fits: fn(&str) -> bool,
    problem: &'static str,
    remedy: &'static str,
}

const SETTINGS: &[Setting] = &[
    Setting {
        name: "innodb_flush_log_at_trx_commit",
        fits: |value| value == "1",
        problem: "the server doesn't write its log through at each commit, and forgets its promises in a crash",
        remedy: "SET GLOBAL innodb_flush_log_at_trx_commit = 1, and in the configuration file",
    },
    Setting {
        name: "default_storage_engine",
        fits: |value| value == "InnoDB",
        problem: "the default storage engine is not InnoDB",
        remedy: "set default_storage_engine = InnoDB",
    },
    Setting {
        name: "read_only",
        fits: |value| !is_on(value),
        problem: "the server is read-only",
        remedy: "connect to the primary",
    },
];

/// What the checks found.
pub(super) struct Found {
    pub(super) identity: String,
    pub(super) flavour: Flavour,
}

/// The driver's options for a URL. What sqlx would change in the session is left as the server has it: an operation means what it means
/// in the server's own client. Statements are not logged: they may hold what is nobody's business.
pub(super) fn parse(options: &ResourceOptions) -> Result<MySqlConnectOptions, PreflightError> {
    let parsed: MySqlConnectOptions = options.url.parse().map_err(|_| {
        // The driver's own words may quote the URL, and with it a password.
        PreflightError::refused(
            "the database's URL can't be read",
            "write it as mysql://user:password@host:port/database",
        )
    })?;
    if parsed.get_database().is_none_or(str::is_empty) {
        return Err(PreflightError::refused(
            "the URL names no database",
            "write it as mysql://user:password@host:port/database",
        ));
    }
    Ok(parsed
        .pipes_as_concat(false)
        .timezone(None)
        .disable_statement_logging())
}

/// What each pooled connection sets once. Without strict mode a value that doesn't fit its column would be cut, and the branch vote yes.
pub(super) async fn settle(
    connection: &mut MySqlConnection,
    flavour: Flavour,
) -> Result<(), sqlx::Error> {
    let common = "SET SESSION autocommit = 1, completion_type = 0, sql_mode = CONCAT(@@sql_mode, ',STRICT_TRANS_TABLES')";
    sqlx::raw_sql(common).execute(&mut *connection).await?;
    if flavour == Flavour::Mysql {
        // A session that had it off would make a prepared branch vanish in a crash.
        let detached = sqlx::raw_sql("SELECT @@SESSION.xa_detach_on_prepare")
            .fetch_one(&mut *connection)
            .await?;
        if !is_on(&text(&detached, 0)) {
            sqlx::raw_sql("SET SESSION xa_detach_on_prepare = ON")
                .execute(&mut *connection)
                .await?;
        }
    }
    Ok(())
}

/// Checks the server, and sees to it that our tables are there.
pub(super) async fn check(options: &MySqlConnectOptions) -> Result<Found, PreflightError> {
    let opened = tokio::time::timeout(Duration::from_secs(10), options.connect()).await;
    let mut connection = opened
        .map_err(|_| PreflightError::Unavailable("the database doesn't answer".into()))?
        .map_err(connect_error)?;
    let found = inspect(&mut connection).await?;
    recoverable(&mut connection, options.get_username()).await?;
    for wanted in &TABLES {
        table(&mut connection, wanted).await?;
    }
    transactional_tables(&mut connection).await?;
    let _ = connection.close().await;
    Ok(found)
}

fn connect_error(error: sqlx::Error) -> PreflightError {
    match values::number(&error) {
        1044 | 1045 | 1698 => PreflightError::refused(
            format!("the database refuses the login: {error}"),
            "check user and password",
        ),
        1049 => PreflightError::refused(
            format!("the database: {error}"),
            "create it, or correct the URL",
        ),
        _ if matches!(error, sqlx::Error::Configuration(_)) => PreflightError::refused(
            format!("the database: {error}"),
            "correct the URL's parameters",
        ),
        _ => PreflightError::Unavailable(format!("the database can't be reached: {error}")),
    }
}

fn query_error(error: sqlx::Error) -> PreflightError {
    PreflightError::Unavailable(format!("the database: {error}"))
}

/// A column of the text protocol, whatever its type; empty for NULL.
pub(super) fn text(row: &MySqlRow, index: usize) -> String {
    let bytes: Option<Vec<u8>> = row.try_get_unchecked(index).ok().flatten();
    String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
}

fn is_on(value: &str) -> bool {
    value == "1" || value.eq_ignore_ascii_case("on")
}

async fn variable(connection: &mut MySqlConnection, name: &str) -> Result<String, PreflightError> {
    let query = AssertSqlSafe(format!("SHOW GLOBAL VARIABLES LIKE '{name}'"));
    let row = sqlx::raw_sql(query)
        .fetch_optional(connection)
        .await
        .map_err(query_error)?;
    Ok(row.map(|row| text(&row, 1)).unwrap_or_default())
}

async fn inspect(connection: &mut MySqlConnection) -> Result<Found, PreflightError> {
    let row = sqlx::raw_sql("SELECT VERSION(), DATABASE()")
        .fetch_one(&mut *connection)
        .await
        .map_err(query_error)?;
    let (version, schema) = (text(&row, 0), text(&row, 1));
    let flavour = if version.to_ascii_lowercase().contains("mariadb") {
        Flavour::Mariadb
    } else {
        Flavour::Mysql
    };
    check_version(&version, flavour)?;
    for setting in SETTINGS {
        let value = variable(connection, setting.name).await?;
        if !(setting.fits)(&value) {
            let problem = format!("{} ({} is {value})", setting.problem, setting.name);
            return Err(PreflightError::refused(problem, setting.remedy));
        }
    }
    if is_on(&variable(connection, "log_bin").await?)
        && variable(connection, "sync_binlog").await? != "1"
    {
        return Err(PreflightError::refused(
            "the binary log is on but not written through at each commit (sync_binlog is not 1)",
            "SET GLOBAL sync_binlog = 1, and in the configuration file",
        ));
    }
    if flavour == Flavour::Mysql && !is_on(&variable(connection, "xa_detach_on_prepare").await?) {
        return Err(PreflightError::refused(
            "xa_detach_on_prepare is off: a prepared branch could vanish in a crash",
            "SET PERSIST xa_detach_on_prepare = ON",
        ));
    }
    Ok(Found {
        identity: identity(connection, &schema).await?,
        flavour,
    })
}

/// The server's own identity where it has one; an older MariaDB has none, and is known by its place.
async fn identity(
    connection: &mut MySqlConnection,
    schema: &str,
) -> Result<String, PreflightError> {
    for name in ["server_uuid", "server_uid"] {
        let id = variable(connection, name).await?;
        if !id.is_empty() {
            return Ok(format!("mysql:{id}/{schema}"));
        }
    }
    let (host, port) = (
        variable(connection, "hostname").await?,
        variable(connection, "port").await?,
    );
    Ok(format!("mysql:{host}:{port}/{schema}"))
}

fn check_version(version: &str, flavour: Flavour) -> Result<(), PreflightError> {
    // MariaDB may lead its own number with "5.5.5-", for old replicas.
    let own = version.strip_prefix("5.5.5-").unwrap_or(version);
    let mut parts = own
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let parsed = [(); 3].map(|()| parts.next().unwrap_or(0));
    let (least, name) = match flavour {
        Flavour::Mariadb => ([10, 5, 2], "MariaDB 10.5.2"),
        Flavour::Mysql => ([8, 0, 29], "MySQL 8.0.29"),
    };
    if parsed < least {
        let problem = format!("version {version} loses prepared branches with their connection");
        return Err(PreflightError::refused(
            problem,
            format!("upgrade to {name} or later"),
        ));
    }
    Ok(())
}

async fn recoverable(connection: &mut MySqlConnection, user: &str) -> Result<(), PreflightError> {
    match sqlx::raw_sql("XA RECOVER").fetch_all(connection).await {
        Ok(_) => Ok(()),
        Err(error) if values::number(&error) != 0 => Err(PreflightError::refused(
            format!("this login may not list prepared branches: {error}"),
            format!("GRANT XA_RECOVER_ADMIN ON *.* TO '{user}'@'…'"),
        )),
        Err(error) => Err(query_error(error)),
    }
}

/// Creates the table where it is missing, and brings an older one up to date. Two agents may start at once, and the login may lack the right to:
/// whatever the change says, what counts is that the table is there afterwards, with its keys, in InnoDB, and can be written.
async fn table(connection: &mut MySqlConnection, table: &Table) -> Result<(), PreflightError> {
    let Table {
        name,
        definition,
        upgrade,
        rights,
        ..
    } = table;
    let mut problem = String::new();
    let change = match fits(connection, table).await {
        Ok(true) => return Ok(()),
        // ER_BAD_FIELD_ERROR: a column is missing.
        Err(error) if values::number(&error) == 1054 && !upgrade.is_empty() => format!(
            "SET SESSION lock_wait_timeout = {ALTER_SECONDS}, innodb_lock_wait_timeout = {ALTER_SECONDS}; {upgrade}"
        ),
        Ok(false) | Err(_) => definition.replacen("CREATE TABLE", "CREATE TABLE IF NOT EXISTS", 1),
    };
    if let Err(error) = sqlx::raw_sql(AssertSqlSafe(change))
        .execute(&mut *connection)
        .await
    {
        if values::is_dead(&error) {
            return Err(query_error(error));
        }
        problem = format!(": {error}");
        // ER_LOCK_WAIT_TIMEOUT. Another agent, of the older release too, can end what is prepared.
        if values::number(&error) == 1205 {
            return Err(PreflightError::Unavailable(format!(
                "the table {name} can't be changed ({upgrade}) while a branch that has written to it is prepared: {error}"
            )));
        }
    }
    match fits(connection, table).await {
        Ok(true) => Ok(()),
        Err(error) if values::number(&error) == 0 || values::is_dead(&error) => {
            Err(query_error(error))
        }
        Ok(false) | Err(_) => Err(PreflightError::refused(
            format!(
                "the table {name} is missing, differs, or is not ours to read and write{problem}"
            ),
            format!(
                "run: {definition}{}; and grant {rights} on it to the agent's login",
                match *upgrade {
                    "" => String::new(),
                    upgrade => format!(" (or, where an older release made it: {upgrade})"),
                }
            ),
        )),
    }
}

async fn fits(connection: &mut MySqlConnection, table: &Table) -> Result<bool, sqlx::Error> {
    let Table {
        name,
        columns,
        trial,
        keys,
        ..
    } = table;
    let columns = format!("SELECT {columns} FROM {name} LIMIT 0");
    sqlx::raw_sql(AssertSqlSafe(columns))
        .execute(&mut *connection)
        .await?;
    let trial = AssertSqlSafe(format!("BEGIN; {trial}; ROLLBACK"));
    let written = sqlx::raw_sql(trial).execute(&mut *connection).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
    // Two agents that try at once wait for each other, and may be told of a deadlock: then the table can be written.
    written.map(drop).or_else(|error| {
        if matches!(values::number(&error), 1205 | 1213) {
            Ok(())
        } else {
            Err(error)
        }
    })?;
    let described = format!(
        "SELECT (SELECT COUNT(*) FROM information_schema.tables \
           WHERE table_schema = DATABASE() AND table_name = '{name}' AND engine = 'InnoDB'), \
         (SELECT COUNT(*) FROM (SELECT GROUP_CONCAT(column_name ORDER BY seq_in_index) AS columns FROM information_schema.statistics \
           WHERE table_schema = DATABASE() AND table_name = '{name}' AND non_unique = 0 GROUP BY index_name) found \
           WHERE columns IN ('{}'))",
        keys.join("', '")
    );
    let row = sqlx::raw_sql(AssertSqlSafe(described))
        .fetch_one(connection)
        .await?;
    Ok((text(&row, 0), text(&row, 1)) == ("1".to_owned(), keys.len().to_string()))
}

/// A table that can't roll back would take part as if it could.
async fn transactional_tables(connection: &mut MySqlConnection) -> Result<(), PreflightError> {
    let query = "SELECT table_name, engine FROM information_schema.tables \
         WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE' \
         AND engine NOT IN (SELECT engine FROM information_schema.engines WHERE xa = 'YES') ORDER BY table_name";
    let rows = sqlx::raw_sql(query)
        .fetch_all(connection)
        .await
        .map_err(query_error)?;
    if rows.is_empty() {
        return Ok(());
    }
    let tables: Vec<String> = rows
        .iter()
        .map(|row| format!("{} ({})", text(row, 0), text(row, 1)))
        .collect();
    Err(PreflightError::refused(
        format!(
            "tables of this schema can't roll back: {}",
            tables.join(", ")
        ),
        "ALTER TABLE … ENGINE=InnoDB, or move them to another schema",
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
mod tests {
    use super::*;

    #[test]
    fn versions_that_lose_prepared_branches_are_refused() {
        let fits = |version, flavour| check_version(version, flavour).is_ok();
        assert!(fits("10.11.19-MariaDB-0+deb12u1", Flavour::Mariadb));
        assert!(fits("5.5.5-10.6.1-MariaDB", Flavour::Mariadb));
        assert!(!fits("10.5.1-MariaDB", Flavour::Mariadb));
        assert!(!fits("10.4.30-MariaDB", Flavour::Mariadb));
        assert!(fits("8.0.29", Flavour::Mysql));
        assert!(fits("9.7.4-debian", Flavour::Mysql));
        assert!(!fits("8.0.28", Flavour::Mysql));
        assert!(!fits("5.7.44-log", Flavour::Mysql));
    }
}
