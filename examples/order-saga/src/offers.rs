//! What the agents of the two databases offer to applications, and the tables behind that.
//!
//! Each step and each compensation is one statement. It stands in a saga's way, or is undone, by what is in the database: a slot is refused where
//! its day has no room.

use anyhow::{Result, ensure};

use crate::{
    database::{Database, Dialect},
    plan::Plan,
};

/// The log of the orders.
pub(crate) const ORDERS_LOG: &str = "example_order_event";

/// The log of slots and shipments.
pub(crate) const SHIPPING_LOG: &str = "example_shipping_event";

/// How many more slots there are on each day.
const DAYS: &str = "example_shipping_day";

/// With PostgreSQL's placeholders.
const ORDERS: &str = r#"
[operation.place_order]
sql           = "INSERT INTO example_order_event (order_number, event, subject) VALUES ($1, 'placed', $2)"
parameters    = [{ name = "order", type = "integer" }, { name = "customer", type = "integer" }]
expected_rows = 1

[operation.cancel_order]
sql           = "INSERT INTO example_order_event (order_number, event, subject) VALUES ($1, 'cancelled', $2)"
parameters    = [{ name = "order", type = "integer" }, { name = "customer", type = "integer" }]
expected_rows = 1

[operation.confirm_order]
sql           = "INSERT INTO example_order_event (order_number, event, subject) VALUES ($1, 'confirmed', $2)"
parameters    = [{ name = "order", type = "integer" }, { name = "shipment", type = "integer" }]
expected_rows = 1
"#;

/// What a step returns, later steps refer to: as `slot.rows.0.day`, say.
const SHIPPING: &str = r#"
[operation.book_slot]
sql           = "INSERT INTO example_shipping_event (order_number, event, subject) VALUES ($1, 'booked', $2) RETURNING subject AS day"
parameters    = [{ name = "order", type = "integer" }, { name = "day", type = "integer" }]
expected_rows = 1

[operation.free_slot]
sql           = "INSERT INTO example_shipping_event (order_number, event, subject) VALUES ($1, 'freed', $2)"
parameters    = [{ name = "order", type = "integer" }, { name = "day", type = "integer" }]
expected_rows = 1

[operation.ship]
sql           = "INSERT INTO example_shipping_event (order_number, event, subject) VALUES ($1, 'shipped', $2) RETURNING number"
parameters    = [{ name = "order", type = "integer" }, { name = "day", type = "integer" }]
expected_rows = 1
"#;

/// The configuration of the agent of the orders.
pub(crate) fn orders_agent(database: &Database, coordinator: &str, connections: u32) -> String {
    agent("orders", ORDERS, database, coordinator, connections)
}

/// The configuration of the agent of the shipping.
pub(crate) fn shipping_agent(database: &Database, coordinator: &str, connections: u32) -> String {
    agent("shipping", SHIPPING, database, coordinator, connections)
}

fn agent(
    name: &str,
    operations: &str,
    database: &Database,
    coordinator: &str,
    connections: u32,
) -> String {
    let operations = match database.dialect {
        Dialect::Postgres => operations.to_owned(),
        Dialect::Mariadb | Dialect::Sqlite => operations.replace("$1", "?").replace("$2", "?"),
    };
    format!(
        "name        = {name:?}\n\
         coordinator = {coordinator:?}\n\
         database    = {:?}\n\
         connections = {connections}\n\
         {operations}",
        database.url()
    )
}

/// Makes the tables of the orders anew.
pub(crate) async fn create_orders(database: &Database) -> Result<()> {
    database.make_log(ORDERS_LOG).await
}

/// Makes the tables of the shipping anew.
pub(crate) async fn create_shipping(database: &Database, plan: &Plan) -> Result<()> {
    if database.dialect == Dialect::Mariadb {
        let version: String = sqlx::query_scalar("SELECT version()")
            .fetch_one(&database.pool)
            .await?;
        ensure!(
            version.contains("MariaDB"),
            "shipping needs RETURNING, which MySQL {version} lacks"
        );
    }
    database.make_log(SHIPPING_LOG).await?;
    let days = "CREATE TABLE example_shipping_day (
        number BIGINT PRIMARY KEY,
        room   BIGINT NOT NULL,
        CONSTRAINT no_day_is_overbooked CHECK (room >= 0)
    )";
    database.make_table(DAYS, days.into()).await?;
    database.run(keep_room(database.dialect)).await?;
    let rows: Vec<String> = plan
        .slots()
        .iter()
        .map(|(day, room)| format!("({day}, {room})"))
        .collect();
    let insert = format!(
        "INSERT INTO {DAYS} (number, room) VALUES {}",
        rows.join(", ")
    );
    database.run([insert]).await
}

/// The triggers by which the log keeps the room up to date: what is booked takes some, and what is freed gives it back. The check then refuses a
/// booking without room, and with it the step.
fn keep_room(dialect: Dialect) -> Vec<String> {
    const CHANGE: &str = "UPDATE example_shipping_day
        SET room = room + CASE new.event WHEN 'booked' THEN -1 WHEN 'freed' THEN 1 ELSE 0 END
        WHERE number = new.subject";
    let trigger = |body: &str| {
        format!(
            "CREATE TRIGGER example_keep_room AFTER INSERT ON {SHIPPING_LOG} FOR EACH ROW {body}"
        )
    };
    match dialect {
        Dialect::Postgres => vec![
            format!(
                "CREATE OR REPLACE FUNCTION example_keep_room() RETURNS trigger LANGUAGE plpgsql
                 AS 'BEGIN {}; RETURN NULL; END'",
                CHANGE.replace('\'', "''")
            ),
            trigger("EXECUTE FUNCTION example_keep_room()"),
        ],
        Dialect::Mariadb => vec![trigger(CHANGE)],
        Dialect::Sqlite => vec![trigger(&format!("BEGIN {CHANGE}; END"))],
    }
}

/// How many more slots there are, all days together.
pub(crate) async fn room(database: &Database) -> Result<i64> {
    database.sum("room", DAYS).await
}
