//! The service's own SQL. A service that knows its database has one arm of each `match`.

use serde::Deserialize;
use sqlx::{
    ConnectOptions, Connection as _, Executor, MySqlConnection, PgConnection, SqliteConnection,
    sqlite::SqliteConnectOptions,
};
use unanimity_participant::enlist::Connection;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS orders (
    id       VARCHAR(80) NOT NULL PRIMARY KEY,
    sku      VARCHAR(64) NOT NULL,
    quantity BIGINT NOT NULL
)";

/// What somebody wants.
#[derive(Deserialize)]
pub(crate) struct Order {
    pub(crate) sku: String,
    pub(crate) quantity: i64,
}

/// Creates the table, before the service takes part in anything.
pub(crate) async fn create_table(database: &str) -> sqlx::Result<()> {
    match database.split(':').next().unwrap_or_default() {
        "postgres" | "postgresql" => PgConnection::connect(database)
            .await?
            .execute(TABLE)
            .await
            .map(drop),
        "mysql" | "mariadb" => MySqlConnection::connect(database)
            .await?
            .execute(TABLE)
            .await
            .map(drop),
        _ => {
            let options: SqliteConnectOptions = database.parse()?;
            let mut connection: SqliteConnection =
                options.create_if_missing(true).connect().await?;
            connection.execute(TABLE).await?;
            connection.close().await
        }
    }
}

/// Writes an order inside the branch's transaction. No BEGIN and no COMMIT: those are the coordinator's.
pub(crate) async fn insert(
    connection: Connection<'_>,
    id: &str,
    order: &Order,
) -> sqlx::Result<()> {
    match connection {
        Connection::Postgres(connection) => {
            let insert = sqlx::query("INSERT INTO orders (id, sku, quantity) VALUES ($1, $2, $3)");
            insert
                .bind(id)
                .bind(&order.sku)
                .bind(order.quantity)
                .execute(connection)
                .await
                .map(drop)
        }
        Connection::Mysql(connection) => {
            let insert = sqlx::query("INSERT INTO orders (id, sku, quantity) VALUES (?, ?, ?)");
            insert
                .bind(id)
                .bind(&order.sku)
                .bind(order.quantity)
                .execute(connection)
                .await
                .map(drop)
        }
        Connection::Sqlite(connection) => {
            let insert = sqlx::query("INSERT INTO orders (id, sku, quantity) VALUES (?, ?, ?)");
            insert
                .bind(id)
                .bind(&order.sku)
                .bind(order.quantity)
                .execute(connection)
                .await
                .map(drop)
        }
    }
}
