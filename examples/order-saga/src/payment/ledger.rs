//! What was asked under each key, and what became of it: one SQLite file, in which the key, the money and the log change together.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sqlx::{
    SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use crate::{
    database::Database,
    plan::{CARD_CENTS, Plan},
};

/// The log of the payments.
pub(crate) const PAYMENT_LOG: &str = "example_payment_event";

const CARDS: &str = "example_payment_card";
const REQUESTS: &str = "example_payment_request";

/// What to charge.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) order: i64,
    pub(crate) card: i64,
    pub(crate) cents: i64,
}

/// The business's no, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) &'static str);

/// The cards, and the requests.
pub(crate) struct Ledger(SqlitePool);

impl Ledger {
    /// Opens the file, and makes it where it is missing. What is committed survives a crash.
    pub(crate) async fn open(file: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        // One at a time: so a request that comes twice at once finds what the first one did.
        let pool = SqlitePoolOptions::new().max_connections(1);
        let pool = pool.connect_with(options).await;
        Ok(Self(pool.with_context(|| file.display().to_string())?))
    }

    /// Holds the money.
    pub(crate) async fn authorise(
        &self,
        key: &str,
        charge: &Charge,
    ) -> Result<Result<(), Refused>> {
        let mut local = self.0.begin_with("BEGIN IMMEDIATE").await?;
        match state(&mut local, key).await?.as_deref() {
            None => {}
            Some("authorised" | "captured") => return Ok(Ok(())),
            Some("voided") => return Ok(Err(Refused("it was voided before"))),
            Some(_) => return Ok(Err(Refused("the card was refused before"))),
        }
        let take = "UPDATE example_payment_card SET cents = cents - ?1 \
             WHERE number = ?2 AND NOT blocked AND cents >= ?1 AND ?1 > 0";
        let take = sqlx::query(take).bind(charge.cents).bind(charge.card);
        let taken = take.execute(&mut *local).await?.rows_affected() == 1;
        let insert = "INSERT INTO example_payment_request (key, state, order_number, card, cents) VALUES (?, ?, ?, ?, ?)";
        sqlx::query(insert)
            .bind(key)
            .bind(if taken { "authorised" } else { "refused" })
            .bind(charge.order)
            .bind(charge.card)
            .bind(charge.cents)
            .execute(&mut *local)
            .await?;
        if taken {
            note(&mut local, key, "authorised", charge).await?;
        }
        local.commit().await?;
        Ok(taken.then_some(()).ok_or(Refused("the card is refused")))
    }

    /// Keeps the money.
    pub(crate) async fn capture(&self, key: &str) -> Result<()> {
        let mut local = self.0.begin_with("BEGIN IMMEDIATE").await?;
        match state(&mut local, key).await?.as_deref() {
            Some("captured") => return Ok(()),
            Some("authorised") => {}
            _ => bail!("nothing is held under {key}: a human must look"),
        }
        change(&mut local, key, "captured").await?;
        let charge = charge(&mut local, key).await?;
        note(&mut local, key, "captured", &charge).await?;
        Ok(local.commit().await?)
    }

    /// Gives the money back, or sees to it that nothing will be held under this key.
    pub(crate) async fn void(&self, key: &str) -> Result<()> {
        let mut local = self.0.begin_with("BEGIN IMMEDIATE").await?;
        match state(&mut local, key).await?.as_deref() {
            None => {
                let insert = "INSERT INTO example_payment_request (key, state, order_number, card, cents) VALUES (?, 'voided', 0, 0, 0)";
                sqlx::query(insert).bind(key).execute(&mut *local).await?;
            }
            Some("authorised") => {
                change(&mut local, key, "voided").await?;
                let charge = charge(&mut local, key).await?;
                let give_back =
                    "UPDATE example_payment_card SET cents = cents + ? WHERE number = ?";
                let give_back = sqlx::query(give_back).bind(charge.cents).bind(charge.card);
                give_back.execute(&mut *local).await?;
                note(&mut local, key, "voided", &charge).await?;
            }
            Some("captured") => bail!("{key} was captured: a human must look"),
            Some(_) => return Ok(()),
        }
        Ok(local.commit().await?)
    }
}

async fn state(local: &mut SqliteConnection, key: &str) -> sqlx::Result<Option<String>> {
    let query = "SELECT state FROM example_payment_request WHERE key = ?";
    sqlx::query_scalar(query)
        .bind(key)
        .fetch_optional(local)
        .await
}

async fn charge(local: &mut SqliteConnection, key: &str) -> sqlx::Result<Charge> {
    let query = "SELECT order_number, card, cents FROM example_payment_request WHERE key = ?";
    let found = sqlx::query_as(query).bind(key).fetch_one(local).await;
    found.map(|(order, card, cents)| Charge { order, card, cents })
}

async fn change(local: &mut SqliteConnection, key: &str, state: &str) -> sqlx::Result<()> {
    let update = "UPDATE example_payment_request SET state = ? WHERE key = ?";
    let update = sqlx::query(update).bind(state).bind(key);
    update.execute(local).await.map(drop)
}

/// Adds to the log.
async fn note(
    local: &mut SqliteConnection,
    key: &str,
    event: &str,
    charge: &Charge,
) -> sqlx::Result<()> {
    let insert = "INSERT INTO example_payment_event (order_number, event, subject, branch) VALUES (?, ?, ?, ?)";
    sqlx::query(insert)
        .bind(charge.order)
        .bind(event)
        .bind(charge.cents)
        .bind(key)
        .execute(local)
        .await
        .map(drop)
}

/// Makes the tables anew.
pub(crate) async fn create(database: &Database, plan: &Plan) -> Result<()> {
    database.make_log(PAYMENT_LOG).await?;
    let cards = "CREATE TABLE example_payment_card (
        number  INTEGER PRIMARY KEY,
        cents   INTEGER NOT NULL,
        blocked INTEGER NOT NULL
    )";
    database.make_table(CARDS, cards.into()).await?;
    let requests = "CREATE TABLE example_payment_request (
        key          TEXT PRIMARY KEY,
        state        TEXT NOT NULL,
        order_number INTEGER NOT NULL,
        card         INTEGER NOT NULL,
        cents        INTEGER NOT NULL
    ) WITHOUT ROWID";
    database.make_table(REQUESTS, requests.into()).await?;
    let cards: Vec<String> = plan
        .cards()
        .iter()
        .map(|(card, blocked)| format!("({card}, {CARD_CENTS}, {blocked})"))
        .collect();
    let insert = format!(
        "INSERT INTO {CARDS} (number, cents, blocked) VALUES {}",
        cards.join(", ")
    );
    database.run([insert]).await
}

/// How much money is left on all cards together.
pub(crate) async fn left(database: &Database) -> Result<i64> {
    database.sum("cents", CARDS).await
}

/// Keys under which money is held that was neither kept nor given back.
pub(crate) async fn held(database: &Database) -> Result<Vec<String>> {
    let query = "SELECT key FROM example_payment_request WHERE state = 'authorised'";
    let held = sqlx::query_scalar(query).fetch_all(&database.pool).await;
    held.context("looking for what is held")
}
