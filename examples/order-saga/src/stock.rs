//! The stock: a service that takes part with its own logic, by the library's trait.
//!
//! It reserves, and later takes or gives back (TCC: try, confirm, cancel), each in one local transaction of its own database. Between the two
//! nothing is locked: a reservation is a row. What the library asks of it is told at [`Participant`]; the rows that keep it are in [`store`].

mod store;

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use example_harness::{address::without_password, role::end_with_parent};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use unanimity_participant::{
    participant::{BranchId, InDoubt, Participant, Prepare, Refusal, Settled, Unavailable, Vote},
    session::{self, Operations, SessionOptions},
};
use unanimity_proto::v1::{self, AbortCode, value::Kind};

pub(crate) use self::store::{STOCK_LOG, create, held, left, reserved};
use self::store::{Standing, Store, Taking};
use crate::database::Database;

/// The one operation.
const TAKE: &str = "take";

/// What the service is started with; a file, for the URL may hold a password.
#[derive(Deserialize, Serialize)]
pub(crate) struct Config {
    pub(crate) coordinator: String,
    pub(crate) database: String,
    pub(crate) connections: u32,
}

/// The service's command line.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    config: PathBuf,
}

/// Runs the service until it is told to end.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    end_with_parent();
    let filter = EnvFilter::new("info");
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let config: Config = toml::from_str(&fs::read_to_string(arguments.config)?)?;
    let database = Database::open(&config.database, config.connections).await?;
    let stock = Stock {
        store: Store::new(database.pool),
    };
    let options = SessionOptions {
        coordinator: config.coordinator,
        participant: "stock".into(),
        agent: session::agent_label(),
        resource: without_password(&config.database),
        capacity: config.connections,
        one_phase: false,
        settles_steps: false,
        operations: Operations {
            policy: v1::OperationPolicy::Listed,
            listed: vec![signature()],
        },
        tls: None,
    };
    let shutdown = CancellationToken::new();
    let ended = session::run(Arc::new(stock), options, shutdown.clone());
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::pin!(ended);
    tokio::select! {
        ended = &mut ended => return ended.context("the stock's session"),
        _ = terminate.recv() => shutdown.cancel(),
    }
    Ok(ended.await?)
}

/// What the coordinator is told of the operation, so that it refuses what is no such thing.
fn signature() -> v1::OperationSignature {
    let integer = |name: &str| v1::ParameterSignature {
        name: name.into(),
        r#type: v1::ParameterType::Integer.into(),
    };
    v1::OperationSignature {
        name: TAKE.into(),
        parameters: ["order", "item", "quantity"].map(integer).to_vec(),
    }
}

/// The service.
struct Stock {
    store: Store,
}

impl Participant for Stock {
    /// Try: reserves, or says no, and writes down which. Asked again, it says the same.
    async fn prepare(&self, prepare: Prepare) -> Vote {
        let branch = &prepare.branch;
        let taking = match taking(&prepare) {
            Ok(taking) => taking,
            Err(message) => return no(AbortCode::InvalidOperation, message),
        };
        match self.store.hold(branch, &taking).await {
            Ok(Standing::Held) => Vote::Yes {
                proof: String::new(),
            },
            Ok(Standing::Refused) => no(
                AbortCode::Refused,
                format!("there are no {} of item {}", taking.quantity, taking.item),
            ),
            Ok(Standing::Released | Standing::Taken) => no(
                AbortCode::BranchLost,
                format!("branch {branch} has ended already"),
            ),
            Err(error) => {
                // It may stand all the same, where only the answer to the COMMIT was lost. If this fails too, it stays in doubt until it is aborted.
                let _ = self.store.release(branch).await;
                no(AbortCode::ParticipantFailure, error.to_string())
            }
        }
    }

    /// Confirm: what is reserved is taken. Only what stands there is ever said.
    async fn commit(&self, branch: &BranchId, _proof: &str) -> Settled {
        match self.store.take(branch).await {
            Ok(Some(Standing::Taken)) => Settled::Committed,
            Ok(Some(Standing::Released | Standing::Refused)) => Settled::Aborted,
            Ok(Some(Standing::Held)) => Settled::Retry(format!("branch {branch} is held still")),
            Ok(None) => Settled::Lost(format!("the stock knows nothing of branch {branch}")),
            Err(error) => Settled::Retry(error.to_string()),
        }
    }

    /// Cancel: what is reserved is given back. Where nothing is, a row says so from now on, and a try that comes late finds it.
    async fn abort(&self, branch: &BranchId, _proof: &str) -> Settled {
        match self.store.release(branch).await {
            Ok(Standing::Taken) => Settled::Committed,
            Ok(Standing::Released | Standing::Refused) => Settled::Aborted,
            Ok(Standing::Held) => Settled::Retry(format!("branch {branch} is held still")),
            Err(error) => Settled::Retry(error.to_string()),
        }
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        let held = self.store.held().await;
        let held = held.map_err(|error| Unavailable(error.to_string()))?;
        let in_doubt = |branch: BranchId| InDoubt {
            identifier: branch.to_string(),
            branch: Some(branch),
        };
        Ok(held.into_iter().map(in_doubt).collect())
    }
}

/// What is to be done, if it is something that is done here.
fn taking(prepare: &Prepare) -> Result<Taking, String> {
    if prepare.continued || prepare.one_phase {
        return Err("the stock only takes part in two-phase commits of whole branches".into());
    }
    let [operation] = &prepare.operations[..] else {
        return Err("the stock does one thing in a branch".into());
    };
    if operation.statement != Some(v1::operation::Statement::Name(TAKE.into())) {
        return Err(format!("the only operation of the stock is {TAKE}"));
    }
    let integer = |name: &str| {
        let value = operation.parameters.get(name);
        match value.and_then(|value| value.kind.as_ref()) {
            Some(Kind::Integer(integer)) => Ok(*integer),
            _ => Err(format!("parameter {name} must be an integer")),
        }
    };
    let taking = Taking {
        order: integer("order")?,
        item: integer("item")?,
        quantity: integer("quantity")?,
    };
    match taking.quantity > 0 {
        true => Ok(taking),
        false => Err("the quantity must be above 0".into()),
    }
}

fn no(code: AbortCode, message: String) -> Vote {
    Vote::No(Refusal { code, message })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::plan::Plan;

    const PLENTY: i64 = 2;
    const YES: Vote = Vote::Yes {
        proof: String::new(),
    };

    async fn stock(directory: &TempDir) -> (Stock, Database) {
        let url = format!("sqlite:{}", directory.path().join("stock.db").display());
        let database = Database::open(&url, 1).await.unwrap();
        let store = Store::new(database.pool.clone());
        (Stock { store }, database)
    }

    async fn new_stock(directory: &TempDir) -> (Stock, Database) {
        let (stock, database) = stock(directory).await;
        let plan = Plan {
            seed: 0,
            orders: 10,
            customers: 1,
        };
        create(&database, &plan).await.unwrap();
        (stock, database)
    }

    fn branch(number: u32) -> BranchId {
        BranchId {
            transaction: "u1.a.1.b".into(),
            number,
        }
    }

    fn take(number: u32, item: i64, quantity: i64) -> Prepare {
        let integer = |(name, value): (&str, i64)| {
            let kind = Some(Kind::Integer(value));
            (name.to_owned(), v1::Value { kind })
        };
        Prepare {
            branch: branch(number),
            continued: false,
            operations: vec![v1::Operation {
                statement: Some(v1::operation::Statement::Name(TAKE.into())),
                parameters: [("order", 7), ("item", item), ("quantity", quantity)]
                    .map(integer)
                    .into(),
                arguments: vec![],
            }],
            one_phase: false,
            request_id: String::new(),
            timeout: Duration::from_secs(1),
            traceparent: String::new(),
        }
    }

    async fn log(database: &Database) -> Vec<String> {
        let events = database.events(STOCK_LOG).await.unwrap();
        events.into_iter().map(|event| event.event).collect()
    }

    fn code(vote: Vote) -> AbortCode {
        match vote {
            Vote::No(refusal) => refusal.code,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_is_reserved_is_taken_or_given_back_once_however_often_it_is_asked() {
        let directory = tempfile::tempdir().unwrap();
        let (stock, database) = new_stock(&directory).await;
        let before = left(&database).await.unwrap();
        for number in [1, 2] {
            for _again in 0..2 {
                assert_eq!(stock.prepare(take(number, PLENTY, 3)).await, YES);
            }
        }
        assert_eq!(reserved(&database).await.unwrap(), 6);
        for _again in 0..2 {
            assert_eq!(stock.commit(&branch(1), "").await, Settled::Committed);
            assert_eq!(stock.abort(&branch(2), "").await, Settled::Aborted);
        }
        assert_eq!(
            log(&database).await,
            ["reserved", "reserved", "taken", "released"]
        );
        assert_eq!(left(&database).await.unwrap(), before - 3);
        assert_eq!(reserved(&database).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn the_wrong_decision_gets_the_truth() {
        let directory = tempfile::tempdir().unwrap();
        let (stock, _) = new_stock(&directory).await;
        assert_eq!(stock.prepare(take(1, PLENTY, 1)).await, YES);
        assert_eq!(stock.commit(&branch(1), "").await, Settled::Committed);
        assert_eq!(stock.abort(&branch(1), "").await, Settled::Committed);
        assert_eq!(stock.prepare(take(2, PLENTY, 1)).await, YES);
        assert_eq!(stock.abort(&branch(2), "").await, Settled::Aborted);
        assert_eq!(stock.commit(&branch(2), "").await, Settled::Aborted);
        let lost = stock.commit(&branch(3), "").await;
        assert!(matches!(lost, Settled::Lost(_)), "{lost:?}");
    }

    #[tokio::test]
    async fn a_try_that_comes_after_its_abort_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (stock, database) = new_stock(&directory).await;
        assert_eq!(stock.abort(&branch(1), "").await, Settled::Aborted);
        let late = stock.prepare(take(1, PLENTY, 1)).await;
        assert_eq!(code(late), AbortCode::BranchLost);
        assert_eq!(log(&database).await, [""; 0]);
        assert_eq!(reserved(&database).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn more_than_there_is_is_refused_for_good() {
        let directory = tempfile::tempdir().unwrap();
        let (stock, database) = new_stock(&directory).await;
        assert_eq!(stock.prepare(take(1, PLENTY, 29)).await, YES);
        for _again in 0..2 {
            let vote = stock.prepare(take(2, PLENTY, 2)).await;
            assert_eq!(code(vote), AbortCode::Refused);
            assert_eq!(stock.abort(&branch(1), "").await, Settled::Aborted);
        }
        assert_eq!(stock.abort(&branch(2), "").await, Settled::Aborted);
        assert_eq!(log(&database).await, ["reserved", "released"]);
    }

    #[tokio::test]
    async fn what_is_held_is_in_doubt_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (first, database) = new_stock(&directory).await;
        for number in [1, 2, 3] {
            assert_eq!(first.prepare(take(number, PLENTY, 1)).await, YES);
        }
        assert_eq!(first.commit(&branch(1), "").await, Settled::Committed);
        assert_eq!(first.abort(&branch(2), "").await, Settled::Aborted);
        drop((first, database));
        let (second, database) = stock(&directory).await;
        let in_doubt = second.in_doubt().await.unwrap();
        assert_eq!(in_doubt.len(), 1);
        assert_eq!(in_doubt[0].branch, Some(branch(3)));
        assert_eq!(second.commit(&branch(3), "").await, Settled::Committed);
        assert_eq!(second.in_doubt().await.unwrap(), []);
        assert_eq!(held(&database).await.unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn what_is_no_operation_of_the_stock_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (stock, _) = new_stock(&directory).await;
        let mut other = take(1, PLENTY, 1);
        other.operations[0].statement = Some(v1::operation::Statement::Name("give".into()));
        let mut twice = take(1, PLENTY, 1);
        twice.operations.push(twice.operations[0].clone());
        let one_phase = Prepare {
            one_phase: true,
            ..take(1, PLENTY, 1)
        };
        for wrong in [other, twice, one_phase, take(1, PLENTY, 0)] {
            let vote = stock.prepare(wrong).await;
            assert_eq!(code(vote), AbortCode::InvalidOperation);
        }
    }
}
