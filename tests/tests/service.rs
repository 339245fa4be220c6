//! The example enlisted-service: a service whose own SQL is part of its callers' transactions.

use std::{process::Command, time::Duration};

use http::{Request, StatusCode};
use hyper_util::{client::legacy::Client as Http, rt::TokioExecutor};
use unanimity_client::{AbortCode, Operation, Outcome};
use unanimity_tests::{
    bank::{Bank, INITIAL_BALANCE, aborted, committed},
    binaries,
    patience::eventually,
    port,
    process::Process,
    system::{Agent, Coordinator, Scratch},
};

/// The service over a bank's database, a bank, and their coordinator.
struct System {
    coordinator: Coordinator,
    bank: Bank,
    _agent: Agent,
    /// Where the service keeps its orders.
    shop: Bank,
    service: Process,
    port: u16,
    _scratch: Scratch,
}

async fn system(shop: impl AsyncFnOnce(&Scratch) -> Bank) -> System {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let bank = Bank::sqlite(&scratch, "bank").await;
    let agent = Agent::start(&scratch, &coordinator, &bank).await;
    let shop = shop(&scratch).await;
    let port = port::free();
    let mut command = Command::new(binaries::path("enlisted-service"));
    command
        .args(["--coordinator", &coordinator.address()])
        .args(["--database", &shop.url])
        .args(["--listen", &format!("127.0.0.1:{port}")]);
    let service = Process::start(&mut command, &scratch.path("service.log"));
    coordinator.agents("orders", 1).await;
    let system = System {
        coordinator,
        bank,
        _agent: agent,
        shop,
        service,
        port,
        _scratch: scratch,
    };
    eventually("the service listens", || async {
        system.order(None, 1).await
    })
    .await;
    system
}

impl System {
    /// Places an order; `None` where nobody answers.
    async fn order(&self, transaction: Option<(&str, &str)>, quantity: i64) -> Option<StatusCode> {
        let mut request = Request::post(format!("http://127.0.0.1:{}/orders", self.port))
            .header("content-type", "application/json");
        if let Some((name, id)) = transaction {
            request = request.header(name, id);
        }
        let body = format!(r#"{{"sku": "tea", "quantity": {quantity}}}"#);
        let request = request.body(body).expect("a good request");
        let http = Http::builder(TokioExecutor::new()).build_http();
        Some(http.request(request).await.ok()?.status())
    }

    async fn begin(&self) -> unanimity_client::Transaction {
        let client = self.coordinator.client().await;
        let begun = client
            .begin()
            .participant("orders")
            .participant("bank")
            .timeout(Duration::from_secs(20));
        begun.start().await.expect("both are there")
    }

    async fn orders(&self) -> i64 {
        self.shop.numbers("SELECT count(*) FROM orders").await[0]
    }
}

fn pay(amount: i64) -> Operation {
    Operation::named("debit")
        .with("account", 1)
        .with("amount", amount)
}

async fn an_order_and_its_payment_happen_together(system: System) {
    let both = system.begin().await;
    assert_eq!(
        system.order(Some(both.header()), 2).await,
        Some(StatusCode::OK)
    );
    both.execute("bank", pay(10)).await.expect("it is covered");
    let (header, over) = (both.header().0, both.id().to_owned());
    committed(both.commit().await);
    assert_eq!(
        (system.orders().await, system.bank.balance(1).await),
        (1, INITIAL_BALANCE - 10)
    );

    // The caller thinks better of it.
    let neither = system.begin().await;
    assert_eq!(
        system.order(Some(neither.header()), 2).await,
        Some(StatusCode::OK)
    );
    neither.execute("bank", pay(10)).await.expect("covered");
    neither.abort("too dear").await.expect("it is not decided");
    assert_eq!(system.orders().await, 1);

    // What is not in a transaction is not taken.
    for (transaction, answer) in [
        (None, StatusCode::BAD_REQUEST),
        (Some((header, "NO ID")), StatusCode::BAD_REQUEST),
        (Some((header, "nobody.s")), StatusCode::CONFLICT),
        (Some((header, &over)), StatusCode::CONFLICT),
    ] {
        assert_eq!(
            system.order(transaction, 2).await,
            Some(answer),
            "{transaction:?}"
        );
    }
    assert_eq!(
        (system.orders().await, system.bank.balance(1).await),
        (1, INITIAL_BALANCE - 10)
    );
    system.shop.has_prepared("u1.", 0).await;
}

#[tokio::test]
async fn on_postgresql_an_order_and_its_payment_happen_together() {
    let system = system(async |_: &Scratch| Bank::postgres("shop").await).await;
    an_order_and_its_payment_happen_together(system).await;
}

#[tokio::test]
async fn on_mariadb_an_order_and_its_payment_happen_together() {
    let system = system(async |_: &Scratch| Bank::mariadb("shop").await).await;
    an_order_and_its_payment_happen_together(system).await;
}

#[tokio::test]
async fn on_sqlite_an_order_and_its_payment_happen_together() {
    let system = system(async |scratch: &Scratch| Bank::sqlite(scratch, "shop").await).await;
    an_order_and_its_payment_happen_together(system).await;
}

#[tokio::test]
async fn a_service_that_dies_with_an_order_open_takes_the_payment_with_it() {
    let mut system = system(async |_: &Scratch| Bank::postgres("shop").await).await;
    let doomed = system.begin().await;
    assert_eq!(
        system.order(Some(doomed.header()), 2).await,
        Some(StatusCode::OK)
    );
    doomed.execute("bank", pay(10)).await.expect("covered");
    system.service.kill();
    system.coordinator.agents("orders", 0).await;
    let outcome = aborted(doomed.commit().await);
    assert_eq!(
        outcome.code,
        AbortCode::ParticipantUnavailable,
        "{outcome:?}"
    );
    assert_eq!(
        (system.orders().await, system.bank.balance(1).await),
        (0, INITIAL_BALANCE)
    );
}

#[tokio::test]
async fn an_order_that_is_not_committed_in_time_is_undone() {
    let system = system(async |_: &Scratch| Bank::postgres("shop").await).await;
    let client = system.coordinator.client().await;
    let hasty = client
        .begin()
        .participant("orders")
        .timeout(Duration::from_secs(1));
    let hasty = hasty.start().await.expect("it is there");
    assert_eq!(
        system.order(Some(hasty.header()), 2).await,
        Some(StatusCode::OK)
    );
    eventually("the timeout", || async {
        let transaction = system.coordinator.transaction(hasty.id()).await;
        transaction.abort_reason
    })
    .await;
    let late = system.order(Some(hasty.header()), 2).await;
    assert_eq!(late, Some(StatusCode::CONFLICT));
    assert!(matches!(hasty.commit().await, Ok(Outcome::Aborted(_))));
    assert_eq!(system.orders().await, 0);
}
