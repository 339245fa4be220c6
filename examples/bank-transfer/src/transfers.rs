//! Transfers, and the clients that make them.
//!
//! The part to copy is [`Clients::transfer`]: it makes one transfer happen, or not happen, exactly once, whatever fails on the way.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use example_harness::traffic::Traffic;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{task::JoinSet, time::sleep};
use unanimity_client::{AbortCode, Aborted, Client, Operation, Outcome};
use uuid::Uuid;

use crate::{bank::INITIAL_BALANCE, tally::Tally};

/// Time until a transfer that is not decided is aborted: two that wait for each other's locks in different databases end by this.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How often the same transfer is tried, where it was aborted for a reason that passes.
const ATTEMPTS: u32 = 20;

/// How long to ask what became of a transfer.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// From one account to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transfer {
    number: u64,
    from: Account,
    to: Account,
    amount: i64,
}

/// An account at the participant of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Account {
    bank: String,
    id: i64,
}

/// What transfers there are: the same ones for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) banks: Vec<String>,
    pub(crate) accounts: u32,
}

impl Plan {
    /// Between two banks, or within the only one. Now and then an amount is too much for the account.
    fn transfer(&self, number: u64) -> Transfer {
        let mut random =
            StdRng::seed_from_u64(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let banks = self.banks.len();
        let from = random.random_range(0..banks);
        let to = (from + random.random_range(1..banks.max(2))) % banks;
        let accounts = i64::from(self.accounts);
        let payer = random.random_range(0..accounts);
        let payee = match from == to {
            true => (payer + random.random_range(1..accounts)) % accounts,
            false => random.random_range(0..accounts),
        };
        let account = |bank: usize, index: i64| Account {
            bank: self.banks[bank].clone(),
            id: index + 1,
        };
        Transfer {
            number,
            from: account(from, payer),
            to: account(to, payee),
            amount: random.random_range(1..=INITIAL_BALANCE / 2),
        }
    }
}

impl Transfer {
    /// What each bank has to do: change a balance, and write down why.
    fn branches(&self) -> BTreeMap<&str, Vec<Operation>> {
        let mut sides = [
            ("debit", &self.from, -self.amount),
            ("credit", &self.to, self.amount),
        ];
        // In the same order always, so that two transfers within one bank never wait for each other.
        sides.sort_by_key(|(_, account, _)| account.id);
        let mut branches: BTreeMap<&str, Vec<Operation>> = BTreeMap::new();
        for (operation, account, amount) in sides {
            branches.entry(&account.bank).or_default().extend([
                Operation::named(operation)
                    .with("account", account.id)
                    .with("amount", self.amount),
                Operation::named("entry")
                    .with("transfer", format!("transfer {}", self.number))
                    .with("account", account.id)
                    .with("amount", amount),
            ]);
        }
        branches
    }
}

/// As many clients as one likes, at work on one plan.
#[derive(Clone)]
pub(crate) struct Clients {
    client: Client,
    plan: Arc<Plan>,
    traffic: Arc<Traffic<Tally>>,
}

impl Clients {
    /// Clients of the coordinator at this address.
    pub(crate) fn new(address: &str, plan: Plan, traffic: Arc<Traffic<Tally>>) -> Result<Self> {
        // An application would leave the retries to the library: by default it asks on for 30 s before it says that an outcome is unknown.
        // Here they are seen, so that they can be counted.
        let client = Client::builder(address).retry_for(Duration::ZERO).build()?;
        Ok(Self {
            client,
            plan: Arc::new(plan),
            traffic,
        })
    }

    /// Makes all transfers, so many at once.
    pub(crate) async fn run(self, clients: usize) -> Result<()> {
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        for _ in 0..clients {
            let client = self.clone();
            tasks.spawn(async move {
                while let Some(number) = client.traffic.start().await {
                    client.transfer(client.plan.transfer(number)).await?;
                }
                Ok(())
            });
        }
        while let Some(client) = tasks.join_next().await {
            client??;
        }
        Ok(())
    }

    /// Makes one transfer, and counts what became of it. Fails only where no transfer can be made.
    async fn transfer(&self, transfer: Transfer) -> Result<()> {
        let mut attempt = 1;
        loop {
            // A new attempt is new work, so it has a new request id. Whatever is repeated within one attempt has the same one, so that it
            // happens at most once.
            let outcome = self.submit(&transfer, &Uuid::new_v4().to_string()).await?;
            match self.settle(outcome).await {
                Outcome::Committed(_) => self.count(|tally| tally.committed += 1),
                Outcome::Aborted(aborted) if aborted.is_transient() && attempt < ATTEMPTS => {
                    self.count(|tally| {
                        *tally.tried_again.entry(reason(&aborted)).or_default() += 1
                    });
                    pause(attempt).await;
                    attempt += 1;
                    continue;
                }
                Outcome::Aborted(aborted) => {
                    self.count(|tally| *tally.aborted.entry(reason(&aborted)).or_default() += 1);
                }
                Outcome::Heuristic(_) => self.count(|tally| tally.heuristic += 1),
                Outcome::Unknown(_) => self.count(|tally| tally.unknown += 1),
            }
            return Ok(());
        }
    }

    /// Sends a transfer, again and again while the coordinator doesn't take it. Until it has been taken nothing can have happened.
    async fn submit(&self, transfer: &Transfer, request_id: &str) -> Result<Outcome> {
        let mut submission = self
            .client
            .transaction()
            .request_id(request_id)
            .timeout(TIMEOUT);
        for (bank, operations) in transfer.branches() {
            submission = submission.branch(bank, operations);
        }
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        let mut attempt = 1;
        loop {
            match submission.clone().submit().await {
                Ok(outcome) => return Ok(outcome),
                Err(error) if error.is_retryable() && Instant::now() < deadline => {
                    pause(attempt).await;
                    attempt += 1;
                }
                Err(error) => bail!("a transfer was refused: {error}"),
            }
        }
    }

    /// Asks what became of a transfer until it is known. To make it anew instead might make it twice.
    async fn settle(&self, outcome: Outcome) -> Outcome {
        let Outcome::Unknown(unknown) = outcome else {
            return outcome;
        };
        let outcome = unknown.settle(Instant::now() + SETTLE_TIMEOUT).await;
        if !matches!(outcome, Outcome::Unknown(_)) {
            self.count(|tally| tally.settled += 1);
        }
        outcome
    }

    fn count(&self, change: impl FnOnce(&mut Tally)) {
        self.traffic.count(change);
    }
}

/// Waits a random time that grows with the attempts, so that those who failed together don't come back together.
async fn pause(attempt: u32) {
    let longest = Duration::from_millis(20) * 2_u32.pow(attempt.min(6));
    sleep(longest.mul_f64(rand::random())).await;
}

/// A reason, for the table.
fn reason(aborted: &Aborted) -> &'static str {
    match aborted.code {
        AbortCode::Refused => "overdrawn",
        AbortCode::Timeout => "timeout",
        AbortCode::ParticipantUnavailable => "participant unavailable",
        AbortCode::Conflict => "conflict",
        AbortCode::BranchLost => "branch lost",
        AbortCode::CoordinatorRestart => "coordinator restart",
        AbortCode::ParticipantFailure => "participant failure",
        AbortCode::Client => "on request",
        AbortCode::InvalidOperation => "invalid operation",
        AbortCode::Unspecified => "unknown reason",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(banks: &[&str]) -> Plan {
        Plan {
            seed: 7,
            banks: banks.iter().map(ToString::to_string).collect(),
            accounts: 3,
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_transfers() {
        let transfers = |seed| {
            let plan = Plan {
                seed,
                ..plan(&["a", "b", "c"])
            };
            (0..50)
                .map(|number| plan.transfer(number))
                .collect::<Vec<_>>()
        };
        assert_eq!(transfers(1), transfers(1));
        assert_ne!(transfers(1), transfers(2));
    }

    #[test]
    fn money_goes_to_another_bank_where_there_is_one_and_always_to_another_account() {
        for number in 0..200 {
            let transfer = plan(&["a", "b", "c"]).transfer(number);
            assert_ne!(transfer.from.bank, transfer.to.bank);
            let transfer = plan(&["a"]).transfer(number);
            assert_ne!(transfer.from.id, transfer.to.id);
        }
    }
}
