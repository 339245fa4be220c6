//! Sagas through a whole coordinator.

use std::{process::Child, time::Duration};

use tempfile::{TempDir, tempdir};
use tokio::time::timeout;
use tonic::{Code, Status};
use unanimity_proto::v1::{
    self, StepKind, StepState, TransactionState, step_request::Work, value::Kind as Value,
};

use crate::{
    field,
    house::{House, PATIENCE, config, debit},
    reason,
    shop::{RESULT, Shop},
};

fn referring(reference: &str) -> v1::Operation {
    let mut operation = debit(0);
    let value = v1::Value {
        kind: Some(Value::Reference(reference.into())),
    };
    operation.parameters.insert("amount".into(), value);
    operation
}

fn amount(operation: &Option<v1::Operation>) -> Option<Value> {
    operation.as_ref().expect("an operation").parameters["amount"]
        .kind
        .clone()
}

fn step(name: &str, kind: StepKind, operation: v1::Operation) -> v1::StepRequest {
    let mut step = v1::StepRequest {
        name: name.into(),
        work: Some(Work::Action(v1::Action {
            participant: "shop".into(),
            operation: Some(operation),
            compensation: None,
        })),
        retry: Some(v1::RetryPolicy {
            first_backoff: Some(prost_types::Duration {
                seconds: 0,
                nanos: 1_000_000,
            }),
            ..v1::RetryPolicy::default()
        }),
        ..v1::StepRequest::default()
    };
    step.set_kind(kind);
    step
}

fn action(step: &mut v1::StepRequest) -> &mut v1::Action {
    match &mut step.work {
        Some(Work::Action(action)) => action,
        other => panic!("{other:?}"),
    }
}

/// `order`, which can be undone, then `pay`, which decides and uses what `order` gave back, then `ship`.
fn purchase() -> v1::SubmitSagaRequest {
    let mut order = step("order", StepKind::Compensatable, debit(1));
    action(&mut order).compensation = Some(referring("order.rows.0.id"));
    v1::SubmitSagaRequest {
        request_id: "purchase".into(),
        steps: vec![
            order,
            step("pay", StepKind::Pivot, referring("order.rows.0.id")),
            step("ship", StepKind::Retriable, debit(3)),
        ],
        locks: vec!["stock:7".into()],
        ..v1::SubmitSagaRequest::default()
    }
}

async fn submit(house: &House, request: v1::SubmitSagaRequest) -> Result<v1::Transaction, Status> {
    let mut client = house.transactions.clone();
    let answer = timeout(PATIENCE, client.submit_saga(request)).await;
    let answer = answer.expect("in time")?.into_inner();
    Ok(answer.transaction.expect("a transaction"))
}

async fn locks(house: &House, page_size: i32, page_token: &str) -> v1::ListLocksResponse {
    let request = v1::ListLocksRequest {
        page_size,
        page_token: page_token.into(),
    };
    let answer = house.admin.clone().list_locks(request).await;
    answer.expect("a page").into_inner()
}

fn states(transaction: &v1::Transaction) -> Vec<StepState> {
    let saga = transaction.saga.as_ref().expect("a saga");
    saga.steps.iter().map(|step| step.state()).collect()
}

async fn shop(house: &House) -> Shop {
    let shop = Shop::default();
    shop.open(house.address, "shop").await;
    shop
}

fn accepted(mut request: v1::SubmitSagaRequest) -> v1::SubmitSagaRequest {
    request.set_answer_time(v1::AnswerTime::Accepted);
    request
}

#[tokio::test]
async fn a_saga_goes_forward_and_its_steps_use_results_of_earlier_ones() {
    let directory = tempdir().expect("a directory");
    let mut house = House::open(&directory).await;
    let shop = shop(&house).await;
    let done = submit(&house, purchase()).await.expect("taken");
    assert_eq!(done.state(), TransactionState::Committed, "{done:?}");
    assert_eq!(states(&done), [StepState::Done; 3]);
    assert_eq!(shop.effects(), ["order", "pay", "ship"]);
    let (order, pay) = (shop.sent("order").remove(0), shop.sent("pay").remove(0));
    assert_eq!(amount(&pay.operation), Some(Value::Integer(41)));
    assert!(order.keep_result && !pay.keep_result);
    let saga = done.saga.as_ref().expect("a saga");
    let fence = v1::Fence {
        key: "stock:7".into(),
        token: saga.token,
    };
    assert_eq!(pay.fences, [fence]);
    assert!(saga.token > 0 && saga.deadline.is_some());
    assert!(done.branches.is_empty());

    let again = submit(&house, purchase()).await.expect("taken");
    assert_eq!(again.transaction_id, done.transaction_id);
    let mut other = purchase();
    other.steps[2].name = "send".into();
    let refused = submit(&house, other).await.expect_err("something else");
    assert_eq!(reason(&refused), "REQUEST_ID_REUSED");
    assert_eq!(locks(&house, 0, "").await.locks, []);

    for (participant, found) in [("shop", 1), ("bank", 0)] {
        let request = v1::ListTransactionsRequest {
            participant: participant.into(),
            ..v1::ListTransactionsRequest::default()
        };
        let page = house.transactions.list_transactions(request).await;
        let page = page.expect("a page").into_inner();
        assert_eq!(page.transactions.len(), found, "{participant}");
    }
    house.close().await;
}

#[tokio::test]
async fn a_refusal_compensates_what_was_done_and_is_an_answer() {
    let directory = tempdir().expect("a directory");
    let house = House::open(&directory).await;
    let shop = shop(&house).await;
    shop.refuse("pay");
    let undone = submit(&house, purchase()).await.expect("taken");
    assert_eq!(undone.state(), TransactionState::Compensated, "{undone:?}");
    assert_eq!(
        states(&undone),
        [
            StepState::Compensated,
            StepState::Failed,
            StepState::Skipped
        ]
    );
    let why = undone.abort_reason.expect("a reason");
    assert_eq!(
        (why.code(), why.participant.as_str(), why.message.as_str()),
        (v1::AbortCode::Refused, "shop", "sold out")
    );
    assert_eq!(shop.effects(), ["order", "-order"]);
    let compensation = shop.sent("-order").remove(0);
    let undoes = compensation.compensates.expect("a compensation");
    assert_eq!(
        (undoes.branch, undoes.unsettled, undoes.result.as_str()),
        (1, false, RESULT)
    );
    assert_eq!(amount(&compensation.operation), Some(Value::Integer(41)));
    assert_eq!(compensation.key.expect("a key").branch, 4);
    house.close().await;
}

#[tokio::test]
async fn a_saga_goes_on_without_its_client_and_is_seen_by_a_watcher() {
    let directory = tempdir().expect("a directory");
    let mut house = House::open(&directory).await;
    let shop = shop(&house).await;
    let watch = house
        .transactions
        .watch_transactions(v1::WatchTransactionsRequest {
            participant: "shop".into(),
        });
    let mut changes = watch.await.expect("a watch").into_inner();
    shop.ignore("pay");
    let calling = tokio::spawn({
        let mut client = house.transactions.clone();
        async move { client.submit_saga(purchase()).await }
    });
    shop.hears("pay").await;
    calling.abort();
    assert!(calling.await.is_err(), "it is gone");
    let waiting = locks(&house, 0, "").await.locks;
    assert_eq!(waiting.len(), 1, "it holds its lock");
    // A session that ends leaves the step unanswered, and it is sent again on the next one.
    shop.relent();
    let id = waiting[0].transaction_id.clone();
    shop.hang_up();
    shop.open(house.address, "shop").await;
    house.reaches(&id, TransactionState::Committed).await;
    assert_eq!(shop.effects(), ["order", "pay", "ship"]);
    let ended = async {
        loop {
            let change = changes.message().await.expect("no error");
            let seen = change.and_then(|change| change.transaction);
            let seen = seen.expect("a transaction");
            assert_eq!(seen.transaction_id, id);
            if seen.state() == TransactionState::Committed {
                break seen;
            }
        }
    };
    let seen = timeout(PATIENCE, ended).await.expect("in time");
    assert_eq!(states(&seen), [StepState::Done; 3]);
    house.close().await;
}

#[tokio::test]
async fn an_atomic_group_is_a_transaction_of_its_own_with_its_values_in_place() {
    let directory = tempdir().expect("a directory");
    let mut house = House::open(&directory).await;
    let shop = shop(&house).await;
    shop.open(house.address, "bank").await;
    let branch = |participant: &str, operation| v1::BranchRequest {
        participant: participant.into(),
        operations: vec![debit(1), operation],
    };
    let mut request = purchase();
    request.steps[1].work = Some(Work::Group(v1::AtomicGroup {
        branches: vec![
            branch("shop", debit(2)),
            branch("bank", referring("order.rows.0.id")),
        ],
    }));
    let done = submit(&house, request).await.expect("taken");
    assert_eq!(done.state(), TransactionState::Committed, "{done:?}");
    let pay = &done.saga.as_ref().expect("a saga").steps[1];
    assert_eq!(pay.participants, ["shop", "bank"]);
    let group = house.get(&pay.group_transaction_id).await.expect("known");
    assert_eq!(group.state(), TransactionState::Committed);
    let prepared = shop.prepared();
    let value = |prepare: &v1::Prepare| amount(&prepare.operations.get(1).cloned());
    let values: Vec<_> = prepared.iter().map(value).collect();
    assert!(values.contains(&Some(Value::Integer(2))), "{values:?}");
    assert!(values.contains(&Some(Value::Integer(41))), "{values:?}");
    house.close().await;
}

#[tokio::test]
async fn wrong_sagas_are_refused_with_their_field_before_anything_starts() {
    let directory = tempdir().expect("a directory");
    let mut house = House::open(&directory).await;
    let shop = shop(&house).await;
    let with = |change: &dyn Fn(&mut v1::SubmitSagaRequest)| {
        let mut request = purchase();
        change(&mut request);
        request
    };
    let second = |request: &mut v1::SubmitSagaRequest, name: &str| {
        let mut order = request.steps[0].clone();
        order.name = name.into();
        request.steps.push(order);
    };
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let pay = |reference: &'static str| {
        with(&|r| action(&mut r.steps[1]).operation = Some(referring(reference)))
    };
    let cases: Vec<(v1::SubmitSagaRequest, &str)> = vec![
        (with(&|r| r.steps.clear()), "steps"),
        (with(&|r| r.steps[1].name = "order".into()), "steps[1].name"),
        (with(&|r| r.steps[1].name = "Pay".into()), "steps[1].name"),
        (
            with(&|r| {
                second(r, "stock");
                r.steps[0].after = vec!["stock".into()];
                r.steps[3].after = vec!["order".into()];
                action(&mut r.steps[3]).compensation = None;
            }),
            "steps[0].after",
        ),
        (
            with(&|r| {
                // With all their results, more than a batch of this log has room for.
                for name in ["a", "b", "c"] {
                    let mut step = r.steps[0].clone();
                    step.name = name.into();
                    action(&mut step).compensation = Some(referring(&format!("{name}.id")));
                    r.steps.push(step);
                }
            }),
            "steps",
        ),
        (
            with(&|r| r.steps[1].after = vec!["nothing".into()]),
            "steps[1].after[0]",
        ),
        (
            with(&|r| r.steps[2].set_kind(StepKind::Pivot)),
            "steps[2].kind",
        ),
        (
            with(&|r| r.steps[0].after = vec!["pay".into()]),
            "steps[0].after[0]",
        ),
        (
            with(&|r| action(&mut r.steps[2]).compensation = Some(debit(1))),
            "steps[2].action.compensation",
        ),
        (
            pay("nobody.id"),
            "steps[1].action.operation.parameters.amount",
        ),
        (
            pay("ship.id"),
            "steps[1].action.operation.parameters.amount",
        ),
        (pay("order"), "steps[1].action.operation.parameters.amount"),
        (
            with(&|r| action(&mut r.steps[0]).compensation = Some(referring("pay.id"))),
            "steps[0].action.compensation.parameters.amount",
        ),
        (
            with(&|r| action(&mut r.steps[0]).operation = Some(v1::Operation::default())),
            "steps[0].action.operation",
        ),
        (
            with(&|r| {
                let parameters = &mut r.steps[0];
                let operation = action(parameters).operation.as_mut();
                operation.expect("an operation").parameters.clear();
            }),
            "steps[0].action.operation.parameters.amount",
        ),
        (with(&|r| r.steps[0].work = None), "steps[0]"),
        (
            with(&|r| {
                let branches = vec![v1::BranchRequest {
                    participant: "shop".into(),
                    operations: vec![debit(1)],
                }];
                r.steps[1].work = Some(Work::Group(v1::AtomicGroup { branches }));
            }),
            "steps[1].group.branches",
        ),
        (
            with(&|r| {
                r.steps[0].retry = Some(v1::RetryPolicy {
                    max_attempts: 1_001,
                    ..v1::RetryPolicy::default()
                })
            }),
            "steps[0].retry.max_attempts",
        ),
        (with(&|r| r.locks.push("stock:7".into())), "locks[1]"),
        (with(&|r| r.locks[0].clear()), "locks[0]"),
        (with(&|r| r.lock_timeout = seconds(0)), "lock_timeout"),
        (with(&|r| r.timeout = seconds(31 * 24 * 3_600)), "timeout"),
        (with(&|r| r.age = seconds(-1)), "age"),
        (
            with(&|r| r.set_answer_time(v1::AnswerTime::Decided)),
            "answer_time",
        ),
    ];
    for (request, wanted) in cases {
        let status = submit(&house, request).await.expect_err(wanted);
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, "INVALID_REQUEST"),
            "{wanted}: {status}"
        );
        assert_eq!(field(&status), wanted, "{status}");
    }

    let unknown = with(&|r| action(&mut r.steps[1]).participant = "nobody".into());
    let status = submit(&house, unknown).await.expect_err("unknown");
    assert_eq!(reason(&status), "PARTICIPANT_UNKNOWN");

    // What goes only with sagas is refused elsewhere.
    let mut plain = crate::house::transfer("", &["shop"], 1);
    plain.branches[0].operations.push(referring("order.id"));
    let status = house.submit(plain.clone()).await.expect_err("a reference");
    assert_eq!(
        field(&status),
        "branches[0].operations[1].parameters.amount"
    );
    plain.branches[0].operations.pop();
    plain.set_answer_time(v1::AnswerTime::Accepted);
    let status = house.submit(plain).await.expect_err("accepted");
    assert_eq!(field(&status), "answer_time");
    assert_eq!(shop.effects(), [""; 0]);
    house.close().await;
}

#[tokio::test]
async fn locks_are_listed_and_a_cancel_turns_a_saga_back() {
    let directory = tempdir().expect("a directory");
    let mut house = House::open(&directory).await;
    let shop = shop(&house).await;
    shop.fail("pay");
    let mut request = accepted(purchase());
    request.locks.push("stock:8".into());
    request.steps[1].retry = Some(v1::RetryPolicy {
        max_attempts: 1_000,
        ..v1::RetryPolicy::default()
    });
    let running = submit(&house, request.clone()).await.expect("taken");
    assert_eq!(running.state(), TransactionState::Running);
    let id = running.transaction_id.clone();
    request.request_id = "another".into();
    let waiting = tokio::spawn({
        let mut client = house.transactions.clone();
        async move { client.submit_saga(request).await }
    });
    let held = async {
        loop {
            let page = locks(&house, 1, "").await;
            if page.locks.first().is_some_and(|lock| lock.waiting == 1) {
                break page;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let first = timeout(PATIENCE, held).await.expect("in time");
    assert_eq!(
        (first.locks[0].key.as_str(), &first.locks[0].transaction_id),
        ("stock:7", &id)
    );
    let second = locks(&house, 1, &first.next_page_token).await;
    assert_eq!(
        (
            second.locks[0].key.as_str(),
            second.next_page_token.as_str()
        ),
        ("stock:8", "")
    );

    shop.hears("pay").await;
    let abort = v1::AbortTransactionRequest {
        transaction_id: id.clone(),
        reason: "changed my mind".into(),
    };
    let answer = timeout(PATIENCE, house.transactions.abort_transaction(abort)).await;
    let answer = answer.expect("in time").expect("taken").into_inner();
    let state = answer.transaction.expect("a transaction").state();
    assert!(
        matches!(
            state,
            TransactionState::Compensating | TransactionState::Compensated
        ),
        "{state:?}"
    );
    house.reaches(&id, TransactionState::Compensated).await;
    assert_eq!(shop.effects()[..2], ["order", "-order"]);
    let next = timeout(PATIENCE, waiting).await.expect("in time");
    let next = next.expect("no panic").expect("taken").into_inner();
    let next = next.transaction.expect("a transaction");
    assert_eq!(next.state(), TransactionState::Running, "it got the locks");
    let late = v1::ResolveStepRequest {
        transaction_id: id,
        step: "order".into(),
        reason: "it was done by hand".into(),
    };
    let status = house.admin.resolve_step(late).await.expect_err("over");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "STEP_NOT_TRIED")
    );
    house.close().await;
}

#[tokio::test]
async fn a_step_that_is_stuck_is_marked_done_by_an_operator() {
    let directory = tempdir().expect("a directory");
    let mut house = House::open(&directory).await;
    let shop = shop(&house).await;
    shop.fail("ship");
    let running = submit(&house, accepted(purchase())).await.expect("taken");
    let id = running.transaction_id;
    let stuck = async {
        loop {
            let shown = house.get(&id).await.expect("known");
            let ship = shown.saga.expect("a saga").steps.remove(2);
            if ship.stuck {
                break ship;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ship = timeout(PATIENCE, stuck).await.expect("in time");
    assert_eq!(ship.last_error, "the till is stuck");
    assert!(ship.attempts >= 5);
    let mut resolve = v1::ResolveStepRequest {
        transaction_id: id.clone(),
        step: "ship".into(),
        reason: "short".into(),
    };
    let refused = house.admin.resolve_step(resolve.clone()).await;
    assert_eq!(field(&refused.expect_err("too short")), "reason");
    resolve.reason = "carried over the street".into();
    let answer = house.admin.resolve_step(resolve).await.expect("taken");
    let done = answer.into_inner().transaction.expect("a transaction");
    assert_eq!(done.state(), TransactionState::Committed, "{done:?}");
    let ship = done.saga.expect("a saga").steps.remove(2);
    assert_eq!(ship.resolution_reason, "carried over the street");
    house.close().await;
}

#[tokio::test]
async fn a_drain_sends_away_who_waits_for_a_saga_and_does_not_wait_itself() {
    let directory = tempdir().expect("a directory");
    let mut settings = config(&directory);
    settings.drain_timeout = PATIENCE;
    let house = House::open_with(settings).await;
    let shop = shop(&house).await;
    shop.fail("ship");
    let mut request = purchase();
    request.steps[2].retry = Some(v1::RetryPolicy {
        first_backoff: Some(prost_types::Duration {
            seconds: 3_600,
            nanos: 0,
        }),
        ..v1::RetryPolicy::default()
    });
    let waiting = tokio::spawn({
        let (mut client, request) = (house.transactions.clone(), request.clone());
        async move { client.submit_saga(request).await }
    });
    shop.hears("ship").await;
    let started = std::time::Instant::now();
    house.close().await;
    assert!(started.elapsed() < PATIENCE / 2, "nothing to wait for");
    let status = waiting.await.expect("no panic").expect_err("sent away");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "STOPPING")
    );

    let house = House::open(&directory).await;
    shop.relent();
    shop.open(house.address, "shop").await;
    let done = submit(&house, request).await.expect("taken");
    assert_eq!(done.state(), TransactionState::Committed);
    assert_eq!(shop.effects(), ["order", "pay", "ship"]);
    house.close().await;
}

/// A coordinator as a process of its own, so that it can be killed.
struct Process {
    child: Child,
    house: House,
}

impl Process {
    async fn start(directory: &TempDir) -> Self {
        let ready = directory.path().join("ready");
        let _ = std::fs::remove_file(&ready);
        let child = std::process::Command::new(env!("CARGO_BIN_EXE_unanimity-coordinator"))
            .args(["--listen", "127.0.0.1:0", "--segment-bytes", "1048576"])
            .arg("--data-directory")
            .arg(directory.path().join("log"))
            .arg("--ready-file")
            .arg(&ready)
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("started");
        let told = async {
            loop {
                if let Ok(address) = std::fs::read_to_string(&ready) {
                    break address;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let address = timeout(PATIENCE, told).await.expect("in time");
        let house = House::visit(address.trim().parse().expect("an address")).await;
        Process { child, house }
    }

    fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited");
    }
}

/// A test that fails leaves no process behind.
impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_killed_coordinator_takes_its_sagas_up_again() {
    let directory = tempdir().expect("a directory");
    let mut process = Process::start(&directory).await;
    let shop = shop(&process.house).await;
    shop.ignore("pay");
    let request = accepted(purchase());
    let begun = submit(&process.house, request.clone())
        .await
        .expect("taken");
    shop.hears("pay").await;
    process.kill();

    let mut process = Process::start(&directory).await;
    shop.relent();
    shop.open(process.house.address, "shop").await;
    let id = begun.transaction_id;
    process
        .house
        .reaches(&id, TransactionState::Committed)
        .await;
    assert_eq!(shop.effects(), ["order", "pay", "ship"], "each once");
    let again = submit(&process.house, request).await.expect("taken");
    assert_eq!(again.transaction_id, id);
    process.kill();
}
