//! A service over HTTP in sagas and in two-phase commit, on real processes: it answers as no service should, and whatever is between dies.
//!
//! The service is that of `docs/http.md`. Before it stands a proxy that can be told to answer in its place, before or after it has done what was
//! asked.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::sync::Notify;
use unanimity_client::{
    AbortCode, Aborted, Client, Compensated, Operation, SagaOutcome, SagaSubmission, Step,
    Submission, TransactionState,
};
use unanimity_proto::v1::{self, BranchState, StepState};
use unanimity_tests::{
    bank::{Bank, INITIAL_BALANCE, aborted, committed, side},
    deeds::operation,
    patience::{becomes, eventually},
    payments::{INITIAL_CENTS, Payments},
    service::{Got, Reply, Service},
    system::{Agent, Coordinator, Scratch, ended},
};

/// What each charge takes.
const CENTS: i64 = 250;

/// Far more than anything here takes, but for what is meant to.
const LONG: Duration = Duration::from_secs(20);

/// For what is meant to take too long.
const SHORT: Duration = Duration::from_millis(300);

/// For what is meant to take too long after the service has done it.
const MODERATE: Duration = Duration::from_millis(1_500);

const ENDPOINTS: &str = r#"
[operation.charge]
parameters = [{ name = "card", type = "text" }, { name = "cents", type = "integer" }]
prepare    = "/charge/try"
confirm    = "/charge/confirm"
cancel     = "/charge/cancel"
execute    = "/charge"
compensate = "/charge/refund"
"#;

const SETTLE: &str = "settle = \"/charge/status\"\n";

/// A coordinator; a bank on PostgreSQL; and the payments, with an agent and a proxy before them.
struct System {
    coordinator: Coordinator,
    client: Client,
    bank: Bank,
    payments: Payments,
    proxy: Service,
    agent: Agent,
    _bank_agent: Agent,
    _scratch: Scratch,
}

impl System {
    /// The agent can settle steps.
    async fn start() -> Self {
        Self::with(SETTLE).await
    }

    async fn with(settle: &str) -> Self {
        let scratch = Scratch::new();
        let coordinator = Coordinator::start(&scratch).await;
        let bank = Bank::postgres("post").await.with_deeds().await;
        let bank_agent = Agent::start(&scratch, &coordinator, &bank).await;
        let payments = Payments::start(&scratch.path("service")).await;
        let proxy = Service::before(payments.address).await;
        let configuration = format!(
            "service = \"http://{}\"\njournal = {:?}\n{ENDPOINTS}{settle}",
            proxy.address,
            scratch.path("payments.journal")
        );
        let agent = Agent::http(&scratch, &coordinator, "payments", &configuration).await;
        Self {
            client: coordinator.client().await,
            coordinator,
            bank,
            payments,
            proxy,
            agent,
            _bank_agent: bank_agent,
            _scratch: scratch,
        }
    }

    /// Pays, and then books at the bank, by `do` or `refuse`.
    fn saga(&self, id: &str, pay: Step, book: &str) -> SagaSubmission {
        let book = Step::new("book")
            .at("post")
            .run(operation(book, id, "book"))
            .compensate(operation("undo", id, "book"))
            .after(["pay"]);
        self.client.saga().request_id(id).step(pay).step(book)
    }

    /// Charges the card, and debits the bank.
    fn transfer(&self, id: &str, cents: i64, debit: i64) -> Submission {
        self.client
            .transaction()
            .request_id(id)
            .timeout(LONG)
            .branch("payments", [charge(cents)])
            .branch("post", side("debit", id, 1, debit, -debit))
    }

    /// What was posted to this endpoint for a transaction.
    fn got(&self, path: &str, transaction: &str) -> Vec<Got> {
        let mut got = self.proxy.got_at(path);
        got.retain(|got| got.body["transaction"] == transaction);
        got
    }

    async fn transaction_id(&self, request_id: &str) -> String {
        eventually("the transaction", async || {
            let request = v1::ListTransactionsRequest {
                page_size: 1_000,
                ..v1::ListTransactionsRequest::default()
            };
            let mut transactions = self.coordinator.transactions();
            let answer = transactions.list_transactions(request).await.ok()?;
            let mut listed = answer.into_inner().transactions.into_iter();
            listed
                .find(|it| it.request_id == request_id)
                .map(|it| it.transaction_id)
        })
        .await
    }

    async fn step(&self, transaction: &str, name: &str) -> v1::Step {
        let transaction = self.coordinator.transaction(transaction).await;
        let steps = transaction.saga.expect("it is a saga").steps;
        let mut steps = steps.into_iter().filter(|step| step.name == name);
        steps.next().expect("it has the step")
    }

    /// Nothing was taken, nothing is held, and what was asked before is refused when it comes late.
    async fn has_nothing_of(&self, transaction: &str, late: &Got, case: &str) {
        assert_eq!(self.payments.balance().await, INITIAL_CENTS, "{case}");
        assert_eq!(self.bank.balance(1).await, INITIAL_BALANCE, "{case}");
        self.bank.has_prepared(transaction, 0).await;
        becomes(&format!("{case}: branches in doubt"), 0, async || {
            self.coordinator.in_doubt().await.len()
        })
        .await;
        let answer = self.payments.post(&late.path, late.key(), &late.body).await;
        assert!(answer.contains(" 422 "), "{case}: {answer}");
        assert_eq!(self.payments.balance().await, INITIAL_CENTS, "{case}");
    }
}

fn charge(cents: i64) -> Operation {
    Operation::named("charge")
        .with("card", "4711")
        .with("cents", cents)
}

/// Twice, unless it is done the first time.
fn pay() -> Step {
    Step::new("pay")
        .at("payments")
        .run(charge(CENTS))
        .compensate(charge(CENTS))
        .max_attempts(2)
        .backoff(Duration::from_millis(10), Duration::from_millis(20))
        .attempt_timeout(LONG)
}

fn completed(outcome: SagaOutcome, case: &str) -> String {
    match outcome {
        SagaOutcome::Completed(receipt) => receipt.transaction_id,
        other => panic!("{case}: {other:?}"),
    }
}

fn compensated(outcome: SagaOutcome, case: &str) -> Compensated {
    match outcome {
        SagaOutcome::Compensated(compensated) => compensated,
        other => panic!("{case}: {other:?}"),
    }
}

/// Whose no it was, and what it says.
fn says(reason: &Aborted, code: AbortCode, text: &str, case: &str) {
    assert_eq!(reason.code, code, "{case}: {reason:?}");
    assert_eq!(reason.participant.as_deref(), Some("payments"), "{case}");
    assert!(reason.message.contains(text), "{case}: {reason:?}");
}

/// Answers that tell nothing of what was done, and what of them is told.
fn unclear() -> Vec<(&'static str, Reply, &'static str)> {
    let large = format!("{{\"charged\":\"{}\"}}", "x".repeat(10 << 20));
    let redirect = Reply::status(307).with("Location", "/charge/elsewhere");
    vec![
        (
            "redirect",
            redirect,
            "redirects to /charge/elsewhere, which is not followed",
        ),
        ("hang", Reply::Hang, "gives no answer within "),
        (
            "page",
            Reply::html(200, "<h1>Log in</h1>"),
            "answers 200 OK with text/html where application/json is expected",
        ),
        (
            "large",
            Reply::json(200, &large),
            "answers 200 OK with more than 65536 bytes",
        ),
        ("half", Reply::half(200), "its answer breaks off"),
        ("close", Reply::close(), "gives no answer: "),
        (
            "500",
            Reply::json(500, r#"{"message":"disk full"}"#),
            "answers 500 Internal Server Error: disk full",
        ),
    ]
}

/// Answers by which nothing is done.
fn clear() -> Vec<(&'static str, Reply, AbortCode, &'static str)> {
    vec![
        (
            "422",
            Reply::json(422, r#"{"message":"card expired"}"#),
            AbortCode::Refused,
            "card expired",
        ),
        (
            "404",
            Reply::html(404, "<p>nobody here</p>"),
            AbortCode::InvalidOperation,
            "answers 404 Not Found: <p>nobody here</p>",
        ),
        (
            "429",
            Reply::status(429).with("Retry-After", "7"),
            AbortCode::ParticipantUnavailable,
            "answers 429 Too Many Requests (to be tried again after: 7)",
        ),
    ]
}

#[tokio::test]
async fn a_step_at_a_service_is_done_and_is_undone_when_a_later_one_is_refused() {
    let system = System::start().await;
    let outcome = system.saga("good", pay(), "do").submit().await;
    completed(outcome.expect("it is taken"), "good");
    assert_eq!(system.payments.balance().await, INITIAL_CENTS - CENTS);
    assert_eq!(system.bank.did("good", "book").await, 1);

    let outcome = system.saga("bad", pay(), "refuse").submit().await;
    let compensated = compensated(outcome.expect("it is taken"), "bad");
    assert_eq!(compensated.reason.code, AbortCode::Refused);
    assert_eq!(compensated.reason.participant.as_deref(), Some("post"));
    assert_eq!(system.payments.balance().await, INITIAL_CENTS - CENTS);
    let id = &compensated.transaction.transaction_id;
    let [execute] = &system.got("/charge", id)[..] else {
        panic!("{:?}", system.proxy.got())
    };
    let [refund] = &system.got("/charge/refund", id)[..] else {
        panic!("{:?}", system.proxy.got())
    };
    assert_eq!(execute.key(), format!("{id}.1"));
    assert_eq!(refund.key(), format!("{id}.3"));
    assert_eq!(
        refund.body["compensates"],
        json!({"branch": 1, "unsettled": false, "result": {"charged": CENTS}})
    );
    assert!(system.got("/charge/status", id).is_empty());
}

#[tokio::test]
async fn a_service_and_a_database_commit_together_or_not_at_all() {
    let system = System::start().await;
    let id = committed(system.transfer("good", CENTS, 5).submit().await);
    becomes("the confirm", 1, async || {
        system.got("/charge/confirm", &id).len()
    })
    .await;
    let books = async || {
        (
            system.payments.balance().await,
            system.bank.balance(1).await,
        )
    };
    assert_eq!(
        ended(&system.coordinator, &id).await.state(),
        v1::TransactionState::Committed
    );
    let after = (INITIAL_CENTS - CENTS, INITIAL_BALANCE - 5);
    assert_eq!(books().await, after);
    assert_eq!(
        system.payments.states(&id).await,
        [(format!("{id}.1"), "kept".to_owned())]
    );

    for (case, cents, debit, participant) in [
        ("bank", CENTS, INITIAL_BALANCE + 1, "post"),
        ("service", INITIAL_CENTS + 1, 5, "payments"),
    ] {
        let aborted = aborted(system.transfer(case, cents, debit).submit().await);
        assert_eq!(aborted.code, AbortCode::Refused, "{aborted:?}");
        assert_eq!(aborted.participant.as_deref(), Some(participant));
        let transaction = ended(&system.coordinator, &aborted.transaction_id).await;
        assert_eq!(transaction.state(), v1::TransactionState::Aborted);
        assert_eq!(books().await, after, "{case}");
        system.bank.has_prepared("", 0).await;
    }
    assert_eq!(system.coordinator.in_doubt().await, []);
}

/// In each case, once where the service had done it and once where it had not.
async fn a_step_that_nobody_knows_of_is_undone(settle: &str) {
    let system = System::with(settle).await;
    for (what, reply, text) in unclear() {
        for (done, reply) in [(false, reply.clone()), (true, reply.when_done())] {
            let case = format!("{what}, {}", if done { "done" } else { "not done" });
            let id = case.replace(", ", "-").replace(' ', "-");
            system.proxy.reply("/charge", [reply]);
            let pay = pay().attempt_timeout(match (what, done) {
                ("hang", false) => SHORT,
                ("hang", true) => MODERATE,
                _ => LONG,
            });
            let outcome = system.saga(&id, pay, "do").submit().await;
            let compensated = compensated(outcome.expect("it is taken"), &case);
            // Where the machine is so slow that the coordinator gives the attempt up before the agent does, that is what is told.
            if what != "hang" || compensated.reason.code != AbortCode::Timeout {
                says(
                    &compensated.reason,
                    AbortCode::ParticipantFailure,
                    text,
                    &case,
                );
                assert!(compensated.reason.message.starts_with("POST /charge "));
            }

            let id = &compensated.transaction.transaction_id;
            let executes = system.got("/charge", id);
            assert_eq!(executes.len(), 2, "{case}");
            assert_eq!(executes[0].key(), executes[1].key(), "{case}");
            let undone = |unsettled, result: Value| json!({"branch": 1, "unsettled": unsettled, "result": result});
            let expected = match (settle.is_empty(), done) {
                (true, _) => vec![undone(true, Value::Null)],
                (false, true) => vec![undone(false, json!({"charged": CENTS}))],
                (false, false) => vec![],
            };
            let refunds = system.got("/charge/refund", id);
            let refunds: Vec<_> = refunds.iter().map(|got| &got.body["compensates"]).collect();
            assert_eq!(refunds, expected.iter().collect::<Vec<_>>(), "{case}");
            let asked = usize::from(!settle.is_empty());
            assert_eq!(system.got("/charge/status", id).len(), asked, "{case}");
            system.has_nothing_of(id, &executes[0], &case).await;
        }
    }
}

#[tokio::test]
async fn a_step_that_nobody_knows_of_is_undone_by_a_service_that_is_told_so() {
    a_step_that_nobody_knows_of_is_undone("").await;
}

#[tokio::test]
async fn a_step_that_nobody_knows_of_is_settled_where_the_service_can_tell() {
    a_step_that_nobody_knows_of_is_undone(SETTLE).await;
}

#[tokio::test]
async fn a_step_that_was_not_done_needs_no_undoing() {
    let system = System::with("").await;
    for (case, reply, code, text) in clear() {
        system.proxy.reply("/charge", [reply]);
        let outcome = system.saga(case, pay(), "do").submit().await;
        let compensated = compensated(outcome.expect("it is taken"), case);
        says(&compensated.reason, code, text, case);
        let id = &compensated.transaction.transaction_id;
        let tries = if case == "429" { 2 } else { 1 };
        assert_eq!(system.got("/charge", id).len(), tries, "{case}");
        assert!(system.got("/charge/refund", id).is_empty(), "{case}");
        assert_eq!(system.bank.did(case, "book").await, 0);
    }
    assert_eq!(system.payments.balance().await, INITIAL_CENTS);
}

/// After an attempt that may have had an effect, what had none proves nothing.
#[tokio::test]
async fn a_clear_no_after_an_unclear_one_is_undone_all_the_same() {
    let system = System::with("").await;
    for (case, reply, ..) in clear().into_iter().skip(1) {
        let first = Reply::status(500).when_done();
        system.proxy.reply("/charge", [first, reply]);
        let outcome = system.saga(case, pay(), "do").submit().await;
        let compensated = compensated(outcome.expect("it is taken"), case);
        let id = &compensated.transaction.transaction_id;
        let refunds = system.got("/charge/refund", id);
        assert_eq!(refunds.len(), 1, "{case}");
        assert_eq!(refunds[0].body["compensates"]["unsettled"], true, "{case}");
        let late = &system.got("/charge", id)[0];
        system.has_nothing_of(id, late, case).await;
    }
}

#[tokio::test]
async fn a_step_at_work_is_asked_for_until_it_is_done_and_uses_up_no_attempt() {
    let system = System::start().await;
    let working = Reply::json(202, "{}");
    let replies = [&working, &working, &working, &Reply::Pass].map(Clone::clone);
    system.proxy.reply("/charge", replies);
    let outcome = system.saga("slow", pay(), "do").submit().await;
    let id = completed(outcome.expect("it is taken"), "slow");
    assert_eq!(system.got("/charge", &id).len(), 4);
    assert_eq!(system.payments.balance().await, INITIAL_CENTS - CENTS);
}

#[tokio::test]
async fn a_prepare_that_nobody_knows_of_aborts_and_is_cancelled() {
    let system = System::start().await;
    for (what, reply, text) in unclear() {
        for (done, reply) in [(false, reply.clone()), (true, reply.when_done())] {
            let case = format!("{what}, {}", if done { "done" } else { "not done" });
            system.proxy.reply("/charge/try", [reply]);
            // What hangs takes all the time there is.
            let (code, time) = match what {
                "hang" => (AbortCode::Timeout, MODERATE),
                _ => (AbortCode::ParticipantFailure, LONG),
            };
            let id = case.replace(", ", "-").replace(' ', "-");
            let transfer = system.transfer(&id, CENTS, 5).timeout(time);
            let aborted = aborted(transfer.submit().await);
            assert_eq!(aborted.code, code, "{case}: {aborted:?}");
            if what != "hang" {
                says(&aborted, code, text, &case);
                assert!(aborted.message.starts_with("POST /charge/try "));
            }
            let id = &aborted.transaction_id;
            ended(&system.coordinator, id).await;
            let tries = system.got("/charge/try", id);
            assert_eq!(tries.len(), 1, "{case}");
            becomes(&format!("{case}: cancels"), 1, async || {
                system.got("/charge/cancel", id).len()
            })
            .await;
            system.has_nothing_of(id, &tries[0], &case).await;
        }
    }
}

/// The agent that voted no stays connected, and nobody waits for the cancel any more.
#[tokio::test]
async fn a_cancel_that_fails_comes_again_until_it_is_done_and_shows_why() {
    let system = System::start().await;
    let tried = Reply::status(500).when_done();
    system.proxy.reply("/charge/try", [tried]);
    system.proxy.reply("/charge/cancel", [Reply::status(503)]);
    let aborted = aborted(system.transfer("slow", CENTS, 5).submit().await);
    says(
        &aborted,
        AbortCode::ParticipantFailure,
        "answers 500",
        "slow",
    );
    let id = &aborted.transaction_id;
    eventually("three cancels", async || {
        (system.got("/charge/cancel", id).len() >= 3).then_some(())
    })
    .await;
    let held = INITIAL_CENTS - CENTS;
    assert_eq!(system.payments.balance().await, held);
    assert!(
        system
            .agent
            .process
            .log()
            .contains("POST /charge/cancel answers 503"),
        "nothing else tells of it"
    );
    system.proxy.reply("/charge/cancel", [Reply::Pass]);
    becomes("what is held", INITIAL_CENTS, async || {
        system.payments.balance().await
    })
    .await;
    let late = &system.got("/charge/try", id)[0];
    system.has_nothing_of(id, late, "slow").await;
}

#[tokio::test]
async fn a_prepare_that_was_not_taken_aborts_and_needs_no_cancel() {
    let system = System::start().await;
    for (case, reply, code, text) in clear() {
        system.proxy.reply("/charge/try", [reply]);
        let aborted = aborted(system.transfer(case, CENTS, 5).submit().await);
        says(&aborted, code, text, case);
        let id = &aborted.transaction_id;
        ended(&system.coordinator, id).await;
        assert_eq!(system.got("/charge/try", id).len(), 1, "{case}");
        assert!(system.got("/charge/cancel", id).is_empty(), "{case}");
        system.bank.has_prepared(id, 0).await;
    }
    assert_eq!(system.coordinator.in_doubt().await, []);

    let replies = [Reply::json(202, "{}"), Reply::json(202, "{}"), Reply::Pass];
    system.proxy.reply("/charge/try", replies);
    let id = committed(system.transfer("slow", CENTS, 5).submit().await);
    assert_eq!(system.got("/charge/try", &id).len(), 3);
}

#[tokio::test]
async fn a_confirm_that_fails_comes_again_until_it_is_done_and_shows_why() {
    let system = System::start().await;
    let broken = Reply::json(500, r#"{"message":"disk full"}"#);
    system.proxy.reply("/charge/confirm", [broken]);
    let submitted = tokio::spawn(system.transfer("slow", CENTS, 5).submit());
    let id = system.transaction_id("slow").await;
    let shown = eventually("three confirms", async || {
        let transaction = system.coordinator.transaction(&id).await;
        let mut branches = transaction.branches.into_iter();
        branches.find(|it| it.participant == "payments" && it.delivery_attempts >= 3)
    })
    .await;
    assert_eq!(shown.state(), BranchState::Prepared);
    assert_eq!(
        shown.last_error,
        "POST /charge/confirm answers 500 Internal Server Error: disk full"
    );
    let in_doubt = system.coordinator.in_doubt().await;
    assert!(
        in_doubt.iter().any(|it| it.participant == "payments"),
        "{in_doubt:?}"
    );
    system.proxy.reply("/charge/confirm", [Reply::Pass]);
    assert_eq!(committed(submitted.await.expect("no panic")), id);
    let transaction = ended(&system.coordinator, &id).await;
    assert_eq!(transaction.state(), v1::TransactionState::Committed);
    assert!(system.got("/charge/confirm", &id).len() >= 4);
    assert_eq!(
        system.payments.states(&id).await,
        [(format!("{id}.1"), "kept".to_owned())]
    );
    assert_eq!(system.payments.balance().await, INITIAL_CENTS - CENTS);
    assert_eq!(system.bank.balance(1).await, INITIAL_BALANCE - 5);
}

#[tokio::test]
async fn an_agent_killed_between_the_prepare_and_its_vote_cancels_when_it_is_back() {
    let mut system = System::start().await;
    for done in [false, true] {
        let case = format!("done: {done}");
        let hang = if done {
            Reply::Hang.when_done()
        } else {
            Reply::Hang
        };
        system.proxy.reply("/charge/try", [hang]);
        let request_id = format!("killed-{done}");
        let submitted = tokio::spawn(system.transfer(&request_id, CENTS, 5).submit());
        let id = system.transaction_id(&request_id).await;
        if done {
            becomes("what is held", INITIAL_CENTS - CENTS, async || {
                system.payments.balance().await
            })
            .await;
        } else {
            becomes("the prepare", 1, async || {
                system.got("/charge/try", &id).len()
            })
            .await;
        }
        system.agent.kill(&system.coordinator).await;
        let aborted = aborted(submitted.await.expect("no panic"));
        says(
            &aborted,
            AbortCode::ParticipantUnavailable,
            "session",
            &case,
        );
        system.agent.restart();
        system.agent.connects(&system.coordinator).await;
        becomes("the cancel", 1, async || {
            system.got("/charge/cancel", &id).len()
        })
        .await;
        assert_eq!(
            ended(&system.coordinator, &id).await.state(),
            v1::TransactionState::Aborted
        );
        let late = &system.got("/charge/try", &id)[0];
        system.has_nothing_of(&id, late, &case).await;
    }
}

/// What dies while a step is on its way.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Coordinator,
    Agent,
    Service,
}

#[tokio::test]
async fn a_step_on_its_way_is_done_once_whatever_is_killed() {
    for settle in ["", SETTLE] {
        let mut system = System::with(settle).await;
        let mut left = INITIAL_CENTS;
        for victim in [Victim::Coordinator, Victim::Agent, Victim::Service] {
            let case = format!("{victim:?}, settle {settle:?}");
            let answer = Arc::new(Notify::new());
            let held = Reply::When(Arc::clone(&answer), Reply::close().into()).when_done();
            system.proxy.reply("/charge", [held, Reply::Pass]);
            let request_id = format!("{victim:?}");
            let saga = system.saga(&request_id, pay(), "do").submit();
            let saga = tokio::spawn(saga);
            left -= CENTS;
            becomes(&case, left, async || system.payments.balance().await).await;
            match victim {
                Victim::Coordinator => system.coordinator.kill_and_restart().await,
                Victim::Agent => {
                    system.agent.process.kill();
                    system.agent.restart();
                }
                Victim::Service => {
                    system.payments.kill();
                    system.payments.restart();
                }
            }
            answer.notify_one();
            let outcome = saga.await.expect("no panic").expect("it is taken");
            let id = completed(outcome, &case);
            assert_eq!(system.payments.balance().await, left, "{case}");
            assert_eq!(system.bank.did(&request_id, "book").await, 1, "{case}");
            let executes = system.got("/charge", &id);
            assert_eq!(executes.len(), 2, "{case}");
            assert_eq!(executes[0].key(), executes[1].key(), "{case}");
        }
    }
}

/// A coordinator that restarted can't know whether a later stage has begun: so it asks on, and neither gives up nor undoes what it does not know.
#[tokio::test]
async fn a_cancelled_saga_that_was_cut_off_in_a_step_is_wholly_undone() {
    for settle in ["", SETTLE] {
        let mut system = System::with(settle).await;
        let held = Reply::Hang.when_done();
        system.proxy.reply("/charge", [held, Reply::Pass]);
        let pay = pay().attempt_timeout(MODERATE);
        let saga = tokio::spawn(system.saga("cut", pay, "do").submit());
        let left = INITIAL_CENTS - CENTS;
        becomes("the charge", left, async || system.payments.balance().await).await;
        let id = system.transaction_id("cut").await;
        let request = v1::AbortTransactionRequest {
            transaction_id: id.clone(),
            reason: "on second thoughts".into(),
        };
        let mut transactions = system.coordinator.transactions();
        let cancel = tokio::spawn(async move { transactions.abort_transaction(request).await });
        eventually("the cancel", async || {
            let transaction = system.coordinator.transaction(&id).await;
            transaction.abort_reason.map(drop)
        })
        .await;
        system.coordinator.kill_and_restart().await;
        drop(cancel);
        let outcome = saga.await.expect("no panic").expect("it is taken");
        // The cancel was not durable: whether it goes back or on, it is whole.
        let undone = match outcome {
            SagaOutcome::Completed(_) => false,
            SagaOutcome::Compensated(_) => true,
            other => panic!("{other:?}"),
        };
        let left = INITIAL_CENTS - if undone { 0 } else { CENTS };
        assert_eq!(system.payments.balance().await, left);
        let deeds = system.bank.did("cut", "book").await - system.bank.undid("cut", "book").await;
        assert_eq!(deeds, usize::from(!undone));
    }
}

#[tokio::test]
async fn while_a_service_hangs_its_step_shows_why_and_how_often() {
    let system = System::start().await;
    system.proxy.reply("/charge", [Reply::Hang]);
    let pay = pay().max_attempts(1_000).attempt_timeout(SHORT);
    let saga = system.saga("hang", pay, "do").submit();
    let saga = tokio::spawn(saga);
    let id = system.transaction_id("hang").await;
    let shown = eventually("the third attempt", async || {
        let step = system.step(&id, "pay").await;
        (step.attempts >= 3).then_some(step)
    })
    .await;
    assert_eq!(
        shown.last_error,
        "POST /charge gives no answer within 300ms"
    );
    assert!(!shown.stuck);
    assert!(
        matches!(shown.state(), StepState::Running | StepState::Retrying),
        "{shown:?}"
    );
    assert_eq!(system.step(&id, "book").await.state(), StepState::Waiting);
    system.proxy.reply("/charge", [Reply::Pass]);
    let outcome = saga.await.expect("no panic").expect("it is taken");
    assert_eq!(completed(outcome, "hang"), id);
    let shown = system.step(&id, "pay").await;
    assert_eq!(
        (shown.state(), shown.last_error.as_str()),
        (StepState::Done, "")
    );
    assert_eq!(system.payments.balance().await, INITIAL_CENTS - CENTS);
}

#[tokio::test]
async fn a_compensation_that_fails_comes_again_until_it_is_done_and_shows_as_stuck() {
    let system = System::start().await;
    let refusal = Reply::json(422, r#"{"message":"not my card"}"#);
    let replies = [
        Reply::html(200, "<h1>Log in</h1>"),
        Reply::status(404),
        Reply::close(),
        refusal,
    ];
    system.proxy.reply("/charge/refund", replies);
    let saga = tokio::spawn(system.saga("stuck", pay(), "refuse").submit());
    let id = system.transaction_id("stuck").await;
    let shown = eventually("the fifth attempt", async || {
        let step = system.step(&id, "pay").await;
        (step.compensation_attempts >= 5).then_some(step)
    })
    .await;
    assert!(shown.stuck, "{shown:?}");
    assert_eq!(shown.state(), StepState::Compensating);
    assert_eq!(shown.last_error, "POST /charge/refund refuses: not my card");
    assert_eq!(system.payments.balance().await, INITIAL_CENTS - CENTS);
    system.proxy.reply("/charge/refund", [Reply::Pass]);
    let outcome = saga.await.expect("no panic").expect("it is taken");
    let compensated = compensated(outcome, "stuck");
    assert_eq!(compensated.transaction.state, TransactionState::Compensated);
    assert_eq!(system.payments.balance().await, INITIAL_CENTS);
    let refunds = system.got("/charge/refund", &id);
    assert!(refunds.iter().all(|got| got.key() == refunds[0].key()));
}
