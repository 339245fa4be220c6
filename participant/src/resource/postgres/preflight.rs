//! Whether this PostgreSQL can vote at all, and how to make it.

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row, postgres::PgConnectOptions,
};

use crate::resource::{FENCE_TABLE, MARKER_TABLE, PreflightError, ResourceOptions};

use super::values;

/// `pg_xact_status(xid8)` and `xid8` came with 13.
const VERSION_MIN: i32 = 130_000;

/// A table of ours.
struct Table {
    name: &'static str,
    definition: &'static str,
    columns: &'static str,
    /// What makes an older release's table, or none, into this one. Whatever is there already is left as it is.
    more: &'static str,
    /// What the agent's role needs.
    rights: &'static [&'static str],
    /// The columns of its unique indexes, each in order of their names.
    keys: &'static [&'static str],
}

const TABLES: [Table; 2] = [
    Table {
        name: MARKER_TABLE,
        definition: "CREATE TABLE unanimity_marker (transaction_id varchar(64) NOT NULL, branch integer NOT NULL, \
             request_id varchar(255) UNIQUE, outcome smallint NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), result text, \
             PRIMARY KEY (transaction_id, branch))",
        columns: "transaction_id, branch, request_id, outcome, created_at, result",
        more: "; ALTER TABLE unanimity_marker ADD COLUMN IF NOT EXISTS result text; \
             CREATE INDEX IF NOT EXISTS unanimity_marker_created_at ON unanimity_marker (created_at)",
        rights: &["SELECT", "INSERT", "UPDATE", "DELETE"],
        keys: &["branch,transaction_id", "request_id"],
    },
    Table {
        name: FENCE_TABLE,
        definition: "CREATE TABLE unanimity_fence (lock_key text COLLATE \"C\" PRIMARY KEY, token bigint NOT NULL)",
        columns: "lock_key, token",
        more: "",
        rights: &["SELECT", "INSERT", "UPDATE"],
        keys: &["lock_key"],
    },
];

/// What the checks found.
pub(super) struct Found {
    pub(super) identity: String,
    pub(super) capacity: u32,
}

/// The driver's options for a URL. Statements are not logged: they may hold what is nobody's business.
pub(super) fn parse(options: &ResourceOptions) -> Result<PgConnectOptions, PreflightError> {
    let parsed: PgConnectOptions = options.url.parse().map_err(|_| {
        // The driver's own words may quote the URL, and with it a password.
        PreflightError::refused(
            "the database's URL can't be read",
            "write it as postgres://user:password@host:port/database",
        )
    })?;
    Ok(parsed
        .application_name(&application_name(&options.participant))
        .disable_statement_logging())
}

/// How our sessions are called; PostgreSQL cuts names at 63 bytes.
pub(super) fn application_name(participant: &str) -> String {
    format!("unanimity-{participant}")
        .chars()
        .filter(|c| c.is_ascii_graphic() && *c != '\'')
        .take(63)
        .collect()
}

/// What each pooled connection sets once: durable commits, and backends that notice a client that is gone.
pub(super) async fn settle(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(
        "SELECT set_config('synchronous_commit', 'on', false) FROM pg_settings WHERE name = 'synchronous_commit' AND setting = 'off'; \
         SELECT set_config(name, '2s', false) FROM pg_settings WHERE name = 'client_connection_check_interval' AND setting = '0'; \
         SET idle_in_transaction_session_timeout = 0",
    )
    .execute(connection)
    .await
    .map(drop)
}

/// Checks the server, and sees to it that our tables are there.
pub(super) async fn check(
    options: &PgConnectOptions,
    connections: u32,
) -> Result<Found, PreflightError> {
    let opened = tokio::time::timeout(Duration::from_secs(10), options.connect()).await;
    let mut connection = opened
        .map_err(|_| PreflightError::Unavailable("PostgreSQL doesn't answer".into()))?
        .map_err(connect_error)?;
    let found = inspect(&mut connection, connections).await?;
    for wanted in &TABLES {
        table(&mut connection, wanted).await?;
    }
    let _ = connection.close().await;
    Ok(found)
}

fn connect_error(error: sqlx::Error) -> PreflightError {
    let state = values::state(&error);
    match state.get(..2) {
        Some("28") => PreflightError::refused(
            format!("PostgreSQL refuses the login: {error}"),
            "check user, password and pg_hba.conf",
        ),
        Some("3D") => PreflightError::refused(
            format!("PostgreSQL: {error}"),
            "create the database, or correct the URL",
        ),
        _ if matches!(error, sqlx::Error::Configuration(_)) => PreflightError::refused(
            format!("PostgreSQL: {error}"),
            "correct the URL's parameters",
        ),
        _ => PreflightError::Unavailable(format!("PostgreSQL can't be reached: {error}")),
    }
}

fn query_error(error: sqlx::Error) -> PreflightError {
    PreflightError::Unavailable(format!("PostgreSQL: {error}"))
}

async fn inspect(connection: &mut PgConnection, connections: u32) -> Result<Found, PreflightError> {
    let row = sqlx::query(
        "SELECT current_setting('server_version_num')::int AS version, current_setting('max_prepared_transactions')::int AS slots, \
         pg_is_in_recovery() AS standby, current_setting('fsync') AS fsync, \
         (SELECT system_identifier::text FROM pg_control_system()) AS system, \
         (SELECT oid::text FROM pg_database WHERE datname = current_database()) AS database, current_database()::text AS name",
    )
    .persistent(false)
    .fetch_one(connection)
    .await
    .map_err(query_error)?;
    let get = |error: sqlx::Error| query_error(error);
    let slots: i32 = row.try_get("slots").map_err(get)?;
    if row.try_get::<i32, _>("version").map_err(get)? < VERSION_MIN {
        return Err(PreflightError::refused(
            "this PostgreSQL is older than 13",
            "upgrade it: only newer ones can prove what became of a branch",
        ));
    }
    if row.try_get("standby").map_err(get)? {
        return Err(PreflightError::refused(
            "this PostgreSQL is a standby",
            "connect to the primary",
        ));
    }
    if row.try_get::<String, _>("fsync").map_err(get)? == "off" {
        return Err(PreflightError::refused(
            "this PostgreSQL runs with fsync=off and forgets its promises in a crash",
            "set fsync = on in postgresql.conf and reload",
        ));
    }
    if slots == 0 {
        let remedy = format!(
            "set max_prepared_transactions = {} in postgresql.conf and restart PostgreSQL (a standby needs at least as many)",
            connections.max(32) * 2
        );
        return Err(PreflightError::refused(
            "this PostgreSQL takes no prepared transactions: max_prepared_transactions is 0",
            remedy,
        ));
    }
    let part = |name: &str| row.try_get::<String, _>(name).map_err(query_error);
    Ok(Found {
        identity: format!(
            "postgresql:{}/{}/{}",
            part("system")?,
            part("database")?,
            part("name")?
        ),
        capacity: connections.min(u32::try_from(slots).unwrap_or(u32::MAX)),
    })
}

/// Creates the table where it is missing, and brings an older one up to date. Two agents may start at once, and the role may lack the right to:
/// whatever the change says, what counts is that the table is there afterwards, with its columns.
async fn table(connection: &mut PgConnection, table: &Table) -> Result<(), PreflightError> {
    let mut problem = String::new();
    if !fits(connection, table).await? {
        let Table {
            definition, more, ..
        } = table;
        let create = definition.replacen("CREATE TABLE", "CREATE TABLE IF NOT EXISTS", 1);
        // Whoever waits for the whole table stands in the way of everybody behind: not for long.
        let script = format!("SET lock_timeout = '5s'; {create}{more}");
        if let Err(error) = sqlx::raw_sql(AssertSqlSafe(script))
            .execute(&mut *connection)
            .await
        {
            if values::state(&error) == "55P03" || values::is_dead(&error) {
                return Err(query_error(error));
            }
            problem = format!(": {error}");
        }
    }
    if fits(connection, table).await? {
        return Ok(());
    }
    let Table {
        name,
        definition,
        more,
        rights,
        ..
    } = table;
    Err(PreflightError::refused(
        format!("the table {name} is missing, differs, or is not ours to read and write{problem}"),
        format!(
            "have its owner run: {definition}{more}; and grant {} on it to the agent's role",
            rights.join(", ")
        ),
    ))
}

/// Whether the table is as it must be. A connection that broke says nothing of that: the server may just be restarting.
async fn fits(connection: &mut PgConnection, table: &Table) -> Result<bool, PreflightError> {
    match is_as_defined(connection, table).await {
        Ok(fits) => Ok(fits),
        Err(error) if values::is_dead(&error) => Err(query_error(error)),
        Err(_) => Ok(false),
    }
}

async fn is_as_defined(connection: &mut PgConnection, table: &Table) -> Result<bool, sqlx::Error> {
    let name = table.name;
    let columns = format!("SELECT {} FROM {name} LIMIT 0", table.columns);
    sqlx::raw_sql(AssertSqlSafe(columns))
        .execute(&mut *connection)
        .await?;
    let rights: String = table
        .rights
        .iter()
        .map(|right| format!("has_table_privilege('{name}', '{right}') AND "))
        .collect();
    let rest = format!(
        "SELECT {rights} (SELECT relpersistence = 'p' FROM pg_class WHERE oid = '{name}'::regclass) \
         AND $1 <@ (SELECT array_agg(columns) FROM ( \
              SELECT string_agg(a.attname, ',' ORDER BY a.attname) AS columns FROM pg_index i \
              JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) \
              WHERE i.indrelid = '{name}'::regclass AND i.indisunique AND i.indpred IS NULL GROUP BY i.indexrelid) keys)"
    );
    sqlx::query_scalar(AssertSqlSafe(rest))
        .bind(table.keys)
        .persistent(false)
        .fetch_one(connection)
        .await
}
