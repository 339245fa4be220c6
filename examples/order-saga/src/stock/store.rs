//! The stock's tables.
//!
//! Whatever is to happen under a branch's key, its row is written first, in the same local transaction as the effect. The key is what makes a second
//! time harmless: two that come at once, even from a process that was killed and whose COMMIT is still on its way, wait for each other there.
//!
//! ```text
//!   (none) ──hold──▶ held ──take──▶ taken
//!     │ └─hold, out of stock─▶ refused
//!     └──release──▶ released ◀──release── held
//! ```

use anyhow::{Context, Result};
use sqlx::{Any, AnyPool, Transaction};
use unanimity_participant::participant::BranchId;

use crate::{database::Database, plan::Plan};

/// The log of the stock.
pub(crate) const STOCK_LOG: &str = "example_stock_event";

const ITEMS: &str = "example_stock_item";
const BRANCHES: &str = "example_stock_branch";

/// So many of an item, for an order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taking {
    pub(crate) order: i64,
    pub(crate) item: i64,
    pub(crate) quantity: i64,
}

/// How a branch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Reserved.
    Held,
    /// The reservation was used.
    Taken,
    /// The reservation was given back, or there never was one and never will be.
    Released,
    /// There was too little.
    Refused,
}

impl Standing {
    fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Taken => "taken",
            Self::Released => "released",
            Self::Refused => "refused",
        }
    }

    fn named(name: &str) -> sqlx::Result<Self> {
        let all = [Self::Held, Self::Taken, Self::Released, Self::Refused];
        let found = all.into_iter().find(|standing| standing.name() == name);
        found.ok_or_else(|| sqlx::Error::Decode(format!("no branch stands {name:?}").into()))
    }
}

/// The reservations.
pub(crate) struct Store(AnyPool);

impl Store {
    pub(crate) fn new(pool: AnyPool) -> Self {
        Self(pool)
    }

    /// Reserves, if there is enough.
    pub(crate) async fn hold(&self, branch: &BranchId, taking: &Taking) -> sqlx::Result<Standing> {
        let mut local = self.0.begin().await?;
        if !insert(&mut local, branch, Standing::Held, taking).await? {
            return standing(&mut local, branch)
                .await?
                .ok_or(sqlx::Error::RowNotFound);
        }
        let reserve = "UPDATE example_stock_item SET reserved = reserved + ? \
             WHERE number = ? AND on_hand - reserved >= ?";
        let reserve = sqlx::query(reserve)
            .bind(taking.quantity)
            .bind(taking.item)
            .bind(taking.quantity);
        let enough = reserve.execute(&mut *local).await?.rows_affected() == 1;
        let now = match enough {
            true => {
                note(&mut local, branch, "reserved", taking).await?;
                Standing::Held
            }
            false => {
                change(&mut local, branch, Standing::Refused).await?;
                Standing::Refused
            }
        };
        local.commit().await?;
        Ok(now)
    }

    /// Takes what is held, and says how the branch stands then; `None` where there is no such branch.
    pub(crate) async fn take(&self, branch: &BranchId) -> sqlx::Result<Option<Standing>> {
        const TAKE: &str = "UPDATE example_stock_item SET reserved = reserved - ?, on_hand = on_hand - ? WHERE number = ?";
        let mut local = self.0.begin().await?;
        if !change(&mut local, branch, Standing::Taken).await? {
            return standing(&mut local, branch).await;
        }
        let taking = taking(&mut local, branch).await?;
        let take = sqlx::query(TAKE)
            .bind(taking.quantity)
            .bind(taking.quantity);
        take.bind(taking.item).execute(&mut *local).await?;
        note(&mut local, branch, "taken", &taking).await?;
        local.commit().await?;
        Ok(Some(Standing::Taken))
    }

    /// Gives back what is held, or sees to it that nothing ever will be, and says how the branch stands then.
    pub(crate) async fn release(&self, branch: &BranchId) -> sqlx::Result<Standing> {
        const NOTHING: Taking = Taking {
            order: 0,
            item: 0,
            quantity: 0,
        };
        const GIVE_BACK: &str =
            "UPDATE example_stock_item SET reserved = reserved - ? WHERE number = ?";
        let mut local = self.0.begin().await?;
        if insert(&mut local, branch, Standing::Released, &NOTHING).await? {
            local.commit().await?;
            return Ok(Standing::Released);
        }
        if !change(&mut local, branch, Standing::Released).await? {
            return standing(&mut local, branch)
                .await?
                .ok_or(sqlx::Error::RowNotFound);
        }
        let taking = taking(&mut local, branch).await?;
        let give_back = sqlx::query(GIVE_BACK).bind(taking.quantity);
        give_back.bind(taking.item).execute(&mut *local).await?;
        note(&mut local, branch, "released", &taking).await?;
        local.commit().await?;
        Ok(Standing::Released)
    }

    /// Every branch that is held.
    pub(crate) async fn held(&self) -> sqlx::Result<Vec<BranchId>> {
        let query = "SELECT transaction_id, branch FROM example_stock_branch WHERE standing = ?";
        let held: Vec<(String, i64)> = sqlx::query_as(query)
            .bind(Standing::Held.name())
            .fetch_all(&self.0)
            .await?;
        let branch = |(transaction, number): (String, i64)| {
            let number = u32::try_from(number).ok()?;
            Some(BranchId {
                transaction,
                number,
            })
        };
        Ok(held.into_iter().filter_map(branch).collect())
    }
}

/// Writes a branch's row, and says whether it was the first. Waits for another that is about to.
async fn insert(
    local: &mut Transaction<'_, Any>,
    branch: &BranchId,
    standing: Standing,
    taking: &Taking,
) -> sqlx::Result<bool> {
    let insert = "INSERT INTO example_stock_branch (transaction_id, branch, standing, order_number, item, quantity) \
         VALUES (?, ?, ?, ?, ?, ?)";
    let inserted = sqlx::query(insert)
        .bind(&branch.transaction)
        .bind(i64::from(branch.number))
        .bind(standing.name())
        .bind(taking.order)
        .bind(taking.item)
        .bind(taking.quantity)
        .execute(&mut **local)
        .await;
    match inserted {
        Ok(_) => Ok(true),
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Changes how a branch stands, and says whether it was held.
async fn change(
    local: &mut Transaction<'_, Any>,
    branch: &BranchId,
    to: Standing,
) -> sqlx::Result<bool> {
    let change = "UPDATE example_stock_branch SET standing = ? \
         WHERE transaction_id = ? AND branch = ? AND standing = ?";
    let changed = sqlx::query(change)
        .bind(to.name())
        .bind(&branch.transaction)
        .bind(i64::from(branch.number))
        .bind(Standing::Held.name())
        .execute(&mut **local)
        .await?;
    Ok(changed.rows_affected() == 1)
}

async fn standing(
    local: &mut Transaction<'_, Any>,
    branch: &BranchId,
) -> sqlx::Result<Option<Standing>> {
    let query = "SELECT standing FROM example_stock_branch WHERE transaction_id = ? AND branch = ?";
    let found: Option<String> = sqlx::query_scalar(query)
        .bind(&branch.transaction)
        .bind(i64::from(branch.number))
        .fetch_optional(&mut **local)
        .await?;
    found.as_deref().map(Standing::named).transpose()
}

async fn taking(local: &mut Transaction<'_, Any>, branch: &BranchId) -> sqlx::Result<Taking> {
    let query = "SELECT order_number, item, quantity FROM example_stock_branch \
         WHERE transaction_id = ? AND branch = ?";
    let (order, item, quantity) = sqlx::query_as(query)
        .bind(&branch.transaction)
        .bind(i64::from(branch.number))
        .fetch_one(&mut **local)
        .await?;
    Ok(Taking {
        order,
        item,
        quantity,
    })
}

/// Adds to the log.
async fn note(
    local: &mut Transaction<'_, Any>,
    branch: &BranchId,
    event: &str,
    taking: &Taking,
) -> sqlx::Result<()> {
    let insert = "INSERT INTO example_stock_event (order_number, event, subject, branch) VALUES (?, ?, ?, ?)";
    sqlx::query(insert)
        .bind(taking.order)
        .bind(event)
        .bind(taking.quantity)
        .bind(branch.to_string())
        .execute(&mut **local)
        .await
        .map(drop)
}

/// Makes the tables anew.
pub(crate) async fn create(database: &Database, plan: &Plan) -> Result<()> {
    database.make_log(STOCK_LOG).await?;
    let items = "CREATE TABLE example_stock_item (
        number   BIGINT PRIMARY KEY,
        on_hand  BIGINT NOT NULL,
        reserved BIGINT NOT NULL,
        CHECK (0 <= reserved AND reserved <= on_hand)
    )";
    database.make_table(ITEMS, items.into()).await?;
    let branches = "CREATE TABLE example_stock_branch (
        transaction_id VARCHAR(64) NOT NULL,
        branch         BIGINT NOT NULL,
        standing       VARCHAR(16) NOT NULL,
        order_number   BIGINT NOT NULL,
        item           BIGINT NOT NULL,
        quantity       BIGINT NOT NULL,
        PRIMARY KEY (transaction_id, branch)
    )";
    database.make_table(BRANCHES, branches.into()).await?;
    let items: Vec<String> = plan
        .stock()
        .iter()
        .map(|(item, on_hand)| format!("({item}, {on_hand}, 0)"))
        .collect();
    let insert = format!(
        "INSERT INTO {ITEMS} (number, on_hand, reserved) VALUES {}",
        items.join(", ")
    );
    database.run([insert]).await
}

/// How much there is, of all items together.
pub(crate) async fn left(database: &Database) -> Result<i64> {
    database.sum("on_hand", ITEMS).await
}

/// How much of it is reserved.
pub(crate) async fn reserved(database: &Database) -> Result<i64> {
    database.sum("reserved", ITEMS).await
}

/// Reservations that were neither used nor given back, by their transactions.
pub(crate) async fn held(database: &Database) -> Result<Vec<String>> {
    let held = Store(database.pool.clone()).held().await;
    let held = held.context("looking for what is reserved")?;
    Ok(held.into_iter().map(|branch| branch.to_string()).collect())
}
