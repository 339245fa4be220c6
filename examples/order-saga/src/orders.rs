//! Orders, and the clients that place them.
//!
//! The part to copy is [`Clients::place`]: it makes one order happen, or be undone, exactly once, whatever fails on the way. What an order is made
//! of is in [`saga`].

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use example_harness::traffic::Traffic;
use parking_lot::Mutex;
use tokio::{task::JoinSet, time::sleep};
use unanimity_client::{
    AbortCode, Aborted, Client, Operation, SagaOutcome, SagaSubmission, Started, Step, Value,
};
use uuid::Uuid;

use crate::{
    plan::{Order, Plan},
    tally::Tally,
};

/// Time until an order that is not paid for is given up and undone.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long to ask what became of an order.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);

/// What a customer was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The order is on its way.
    Completed,
    /// It could not be done, and what was done is undone.
    Compensated,
    /// It never began.
    Aborted,
    /// A human must look.
    Heuristic,
    /// Nobody knows.
    Unknown,
}

/// The saga of an order.
///
/// ```text
///   order ──▶ slot ──▶ purchase ──▶ ship ──▶ confirm
///   ╰─ can be undone ╯  the pivot   ╰─ go on until done ╯
/// ```
///
/// The purchase is a transaction of its own: stock and payment commit together.
fn saga(client: &Client, order: &Order) -> SagaSubmission {
    let number = order.number.cast_signed();
    let of_order = |operation: &str| Operation::named(operation).with("order", number);
    let day = || Value::reference("slot.rows.0.day");

    let place = Step::new("order")
        .at("orders")
        .run(of_order("place_order").with("customer", order.customer))
        .compensate(of_order("cancel_order").with("customer", order.customer));
    let slot = Step::new("slot")
        .after(["order"])
        .at("shipping")
        .run(of_order("book_slot").with("day", order.day))
        .compensate(of_order("free_slot").with("day", day()));
    let take = of_order("take")
        .with("item", order.item)
        .with("quantity", order.quantity);
    let charge = of_order("charge")
        .with("card", order.customer)
        .with("cents", order.cents);
    let purchase = Step::pivot("purchase")
        .branch("stock", [take])
        .branch("payment", [charge]);
    let ship = Step::retriable("ship")
        .at("shipping")
        .run(of_order("ship").with("day", day()));
    let confirm = Step::retriable("confirm")
        .after(["ship"])
        .at("orders")
        .run(of_order("confirm_order").with("shipment", Value::reference("ship.rows.0.number")));

    // One order of a customer at a time.
    let lock = format!("customer:{}", order.customer);
    let steps = [place, slot, purchase, ship, confirm];
    let saga = client.saga().lock(lock).timeout(TIMEOUT);
    steps.into_iter().fold(saga, SagaSubmission::step)
}

/// As many clients as one likes, at work on one plan.
#[derive(Clone)]
pub(crate) struct Clients {
    client: Client,
    plan: Arc<Plan>,
    traffic: Arc<Traffic<Tally>>,
    told: Arc<Mutex<BTreeMap<u64, Option<Told>>>>,
}

impl Clients {
    /// Clients of the coordinator at this address.
    pub(crate) fn new(address: &str, plan: Plan, traffic: Arc<Traffic<Tally>>) -> Result<Self> {
        Ok(Self {
            client: Client::builder(address).build()?,
            plan: Arc::new(plan),
            traffic,
            told: Arc::default(),
        })
    }

    /// Places all orders, so many at once.
    pub(crate) async fn run(&self, clients: usize) -> Result<()> {
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        for _ in 0..clients {
            let client = self.clone();
            tasks.spawn(async move {
                while let Some(number) = client.traffic.start().await {
                    client.told.lock().insert(number, None);
                    let order = client.plan.order(number);
                    let outcome = client.place(&order).await;
                    client.note(number, outcome.context("an order was refused")?);
                }
                Ok(())
            });
        }
        while let Some(client) = tasks.join_next().await {
            client??;
        }
        Ok(())
    }

    /// What was told of each order; `None` while it is under way.
    pub(crate) fn told(&self) -> BTreeMap<u64, Option<Told>> {
        self.told.lock().clone()
    }

    /// Places one order. Fails only where it was never taken.
    async fn place(&self, order: &Order) -> Result<SagaOutcome> {
        // An application would keep the request id with the order: sent again under it, even by another process, it is done at most once.
        let saga = saga(&self.client, order).request_id(Uuid::new_v4());
        let outcome = match order.cancelled_after {
            None => saga.submit().await?,
            Some(moment) => self.place_and_cancel(saga, moment).await?,
        };
        // To place it anew instead might do it twice.
        Ok(match outcome {
            SagaOutcome::Unknown(unknown) => unknown.settle(Instant::now() + SETTLE_TIMEOUT).await,
            known => known,
        })
    }

    /// For a customer who changes their mind. That may come too late: then the order goes on, and its outcome says so.
    async fn place_and_cancel(
        &self,
        saga: SagaSubmission,
        moment: Duration,
    ) -> Result<SagaOutcome> {
        let running = match saga.start().await? {
            Started::Running(running) => running,
            Started::Ended(outcome) => return Ok(outcome),
        };
        sleep(moment).await;
        // Where it can't be cancelled any more, or nobody answers, its end tells.
        let _ = running.cancel("the customer changed their mind").await;
        Ok(running.wait(Instant::now() + SETTLE_TIMEOUT).await)
    }

    fn note(&self, number: u64, outcome: SagaOutcome) {
        let told = match &outcome {
            SagaOutcome::Completed(_) => Told::Completed,
            SagaOutcome::Compensated(_) => Told::Compensated,
            SagaOutcome::Aborted(_) => Told::Aborted,
            SagaOutcome::Heuristic(_) => Told::Heuristic,
            SagaOutcome::Unknown(_) => Told::Unknown,
        };
        self.told.lock().insert(number, Some(told));
        self.traffic.count(|tally| match outcome {
            SagaOutcome::Completed(_) => tally.completed += 1,
            SagaOutcome::Compensated(undone) => {
                *tally.compensated.entry(reason(&undone.reason)).or_default() += 1;
            }
            SagaOutcome::Aborted(aborted) => {
                *tally.aborted.entry(reason(&aborted)).or_default() += 1;
            }
            SagaOutcome::Heuristic(_) => tally.heuristic += 1,
            SagaOutcome::Unknown(_) => tally.unknown += 1,
        });
    }
}

/// A reason, for the table.
fn reason(aborted: &Aborted) -> &'static str {
    match (aborted.code, aborted.participant.as_deref()) {
        (AbortCode::Refused, Some("shipping")) => "no delivery slot",
        (AbortCode::Refused, Some("stock")) => "out of stock",
        (AbortCode::Refused, Some("payment")) => "card refused",
        (AbortCode::Refused, _) => "refused",
        (AbortCode::Client, _) => "cancelled by the customer",
        (AbortCode::Timeout, _) => "timeout",
        (AbortCode::ParticipantUnavailable, _) => "participant unavailable",
        (AbortCode::Conflict, _) => "conflict",
        (AbortCode::BranchLost, _) => "branch lost",
        (AbortCode::CoordinatorRestart, _) => "coordinator restart",
        (AbortCode::ParticipantFailure, _) => "participant failure",
        (AbortCode::InvalidOperation, _) => "invalid operation",
        (AbortCode::Unspecified, _) => "unknown reason",
    }
}
