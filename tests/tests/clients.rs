//! Clients that go away, lose patience, or ask again.

use std::time::Duration;

use tokio::task::JoinHandle;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;
use unanimity_client::{Client, Error, Operation, Outcome, Reason, Submission};
use unanimity_proto::v1::{self, CompletionKind, SubmitTransactionResponse, TransactionState};
use unanimity_tests::{
    bank::{Bank, INITIAL_BALANCE, aborted, committed, side, transfer},
    fake::Fake,
    system::{Agent, Coordinator, Scratch, ended},
};

struct System {
    coordinator: Coordinator,
    bank: Bank,
    fake: Fake,
    _agent: Agent,
    _scratch: Scratch,
}

/// A bank, and a fake that decides when anything goes on.
async fn system() -> System {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let bank = Bank::postgres("post").await;
    let agent = Agent::start(&scratch, &coordinator, &bank).await;
    let fake = Fake::open(&coordinator.address(), "fake").await;
    System {
        coordinator,
        bank,
        fake,
        _agent: agent,
        _scratch: scratch,
    }
}

/// Debits the bank, together with whatever the fake does.
fn request(id: &str) -> v1::SubmitTransactionRequest {
    let branch = |name: &str, operations: Vec<Operation>| v1::BranchRequest {
        participant: name.into(),
        operations: operations.into_iter().map(Into::into).collect(),
    };
    let debit = side("debit", id, 1, 5, -5).into();
    let branches = vec![
        branch("post", debit),
        branch("fake", vec![Operation::named("anything")]),
    ];
    v1::SubmitTransactionRequest {
        request_id: id.into(),
        branches,
        ..Default::default()
    }
}

impl System {
    fn submit(
        &self,
        request: Request<v1::SubmitTransactionRequest>,
    ) -> JoinHandle<Result<Response<SubmitTransactionResponse>, Status>> {
        let mut service = self.coordinator.transactions();
        tokio::spawn(async move { service.submit_transaction(request).await })
    }

    /// Votes yes, and completes the commit.
    async fn play_along(&mut self, prepare: v1::Prepare) {
        self.fake.vote_yes(prepare.key);
        let commit = self.fake.commit().await;
        self.fake.complete(commit.key, CompletionKind::Committed);
    }

    /// The same request once more gives the outcome of the first, and does nothing anew.
    async fn settles(&self, id: &str, transaction_id: &str) {
        let answer = self
            .submit(Request::new(request(id)))
            .await
            .expect("no panic")
            .expect("it is answered");
        let transaction = answer.into_inner().transaction.expect("a transaction");
        assert_eq!(transaction.transaction_id, transaction_id);
        assert_eq!(transaction.state(), TransactionState::Committed);
        assert_eq!(self.bank.balance(1).await, INITIAL_BALANCE - 5);
        assert_eq!(self.bank.entries(id).await, 1);
    }
}

fn transaction_id(prepare: &v1::Prepare) -> String {
    prepare
        .key
        .as_ref()
        .expect("a branch is named")
        .transaction_id
        .clone()
}

#[tokio::test]
async fn a_client_that_goes_before_the_decision_leaves_a_transaction_with_one_outcome() {
    let mut system = system().await;
    let submitted = system.submit(Request::new(request("gone")));
    let prepare = system.fake.prepare().await;
    let id = transaction_id(&prepare);
    submitted.abort();
    assert!(submitted.await.expect_err("it was aborted").is_cancelled());
    system.play_along(prepare).await;
    let transaction = ended(&system.coordinator, &id).await;
    assert_eq!(
        transaction.state(),
        TransactionState::Committed,
        "{transaction:?}"
    );
    system.settles("gone", &id).await;
}

#[tokio::test]
async fn a_client_that_goes_after_the_decision_changes_nothing() {
    let mut system = system().await;
    let submitted = system.submit(Request::new(request("gone")));
    let prepare = system.fake.prepare().await;
    let id = transaction_id(&prepare);
    system.fake.vote_yes(prepare.key);
    let commit = system.fake.commit().await;
    submitted.abort();
    assert!(submitted.await.expect_err("it was aborted").is_cancelled());
    system.fake.complete(commit.key, CompletionKind::Committed);
    assert_eq!(
        ended(&system.coordinator, &id).await.state(),
        TransactionState::Committed
    );
    system.settles("gone", &id).await;
}

#[tokio::test]
async fn a_deadline_that_passes_says_nothing_of_the_outcome_and_the_request_id_settles_it() {
    let mut system = system().await;
    for (id, decided) in [("before", false), ("after", true)] {
        let mut request = Request::new(request(id));
        request.set_timeout(Duration::from_millis(500));
        let submitted = system.submit(request);
        let prepare = system.fake.prepare().await;
        let transaction = transaction_id(&prepare);
        if decided {
            system.fake.vote_yes(prepare.key.clone());
        }
        let status = submitted
            .await
            .expect("no panic")
            .expect_err("the deadline passes");
        assert!(
            [Code::DeadlineExceeded, Code::Cancelled].contains(&status.code()),
            "{status:?}"
        );
        if decided {
            let commit = system.fake.commit().await;
            system.fake.complete(commit.key, CompletionKind::Committed);
        } else {
            system.play_along(prepare).await;
        }
        assert_eq!(
            ended(&system.coordinator, &transaction).await.state(),
            TransactionState::Committed,
            "{id}"
        );
        system
            .bank
            .execute("UPDATE account SET balance = 95 WHERE id = 1")
            .await;
        system.settles(id, &transaction).await;
    }
}

#[tokio::test]
async fn the_transactions_own_timeout_is_a_clean_abort() {
    let mut system = system().await;
    let client = system.coordinator.client().await;
    let transaction = client
        .transaction()
        .timeout(Duration::from_millis(300))
        .branch("post", side("debit", "late", 1, 5, -5))
        .branch("fake", [Operation::named("anything")]);
    let submitted = tokio::spawn(transaction.submit());
    let prepare = system.fake.prepare().await;
    let aborted = aborted(submitted.await.expect("no panic"));
    assert_eq!(
        aborted.code,
        unanimity_client::AbortCode::Timeout,
        "{aborted:?}"
    );
    // A vote that comes after that is of no use.
    system.fake.vote_yes(prepare.key.clone());
    system.fake.complete(prepare.key, CompletionKind::Aborted);
    let transaction = ended(&system.coordinator, &aborted.transaction_id).await;
    assert_eq!(transaction.state(), TransactionState::Aborted);
    system.bank.has_prepared(&aborted.transaction_id, 0).await;
    assert_eq!(system.bank.balance(1).await, INITIAL_BALANCE);
}

#[tokio::test]
async fn a_client_may_be_answered_at_the_decision() {
    let mut system = system().await;
    let client = system.coordinator.client().await;
    let transaction = client
        .transaction()
        .answer_when_decided()
        .branch("post", side("debit", "early", 1, 5, -5))
        .branch("fake", [Operation::named("anything")]);
    let submitted = tokio::spawn(transaction.submit());
    let prepare = system.fake.prepare().await;
    system.fake.vote_yes(prepare.key);
    // The fake doesn't say that it has committed; the answer comes nevertheless.
    let receipt = submitted
        .await
        .expect("no panic")
        .expect("it is taken")
        .committed()
        .expect("it commits");
    assert!(!receipt.delivered);
    let commit = system.fake.commit().await;
    system.fake.complete(commit.key, CompletionKind::Committed);
    assert_eq!(
        ended(&system.coordinator, &receipt.transaction_id)
            .await
            .state(),
        TransactionState::Committed
    );
}

#[tokio::test]
async fn the_same_request_sent_many_times_at_once_happens_once() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let [lite, post] = [
        Bank::sqlite(&scratch, "lite").await,
        Bank::postgres("post").await,
    ];
    let _lite = Agent::start(&scratch, &coordinator, &lite).await;
    let _post = Agent::start(&scratch, &coordinator, &post).await;
    let submissions = (0..20).map(|_| {
        tokio::spawn(
            transfer(&client, "many", &post, &lite, 1, 5)
                .request_id("many")
                .submit(),
        )
    });
    let submissions: Vec<_> = submissions.collect();
    let mut ids = Vec::new();
    for submission in submissions {
        ids.push(committed(submission.await.expect("no panic")));
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(
        (post.balance(1).await, lite.balance(1).await),
        (INITIAL_BALANCE - 5, INITIAL_BALANCE + 5)
    );
}

#[tokio::test]
async fn a_request_id_with_another_request_is_refused() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let lite = Bank::sqlite(&scratch, "lite").await;
    let _agent = Agent::start(&scratch, &coordinator, &lite).await;
    let submission = |amount| {
        client
            .transaction()
            .request_id("same")
            .branch("lite", side("debit", "same", 1, amount, -amount))
    };
    committed(submission(5).submit().await);
    let error = submission(6).submit().await.expect_err("another request");
    assert_eq!(error.reason(), &Reason::RequestIdReused, "{error:?}");
    assert_eq!(lite.balance(1).await, INITIAL_BALANCE - 5);
}

/// The same work under the same request id, before and after the coordinator is killed and started again.
async fn survives_a_restart(
    coordinator: &mut Coordinator,
    banks: &[&Bank],
    submission: impl Fn(&Client) -> Submission,
) {
    let client = coordinator.client().await;
    let first = committed(submission(&client).request_id("again").submit().await);
    let balances = || async {
        let mut balances = Vec::new();
        for bank in banks {
            balances.push(bank.balance(1).await);
        }
        balances
    };
    let after_first = balances().await;
    for _ in 0..3 {
        coordinator.kill_and_restart().await;
        let client = coordinator.client().await;
        let again = committed(submission(&client).request_id("again").submit().await);
        assert_eq!(again, first, "it is answered with the first outcome");
        assert_eq!(balances().await, after_first, "nothing happens twice");
    }
}

#[tokio::test]
async fn a_two_phase_request_sent_again_after_a_restart_is_answered_with_the_first_outcome() {
    let scratch = Scratch::new();
    let mut coordinator = Coordinator::start(&scratch).await;
    let [lite, post] = [
        Bank::sqlite(&scratch, "lite").await,
        Bank::postgres("post").await,
    ];
    let _lite = Agent::start(&scratch, &coordinator, &lite).await;
    let _post = Agent::start(&scratch, &coordinator, &post).await;
    let banks = [&lite, &post];
    survives_a_restart(&mut coordinator, &banks, |client| {
        transfer(client, "again", &post, &lite, 1, 5)
    })
    .await;
}

#[tokio::test]
async fn a_one_phase_request_sent_again_after_a_restart_is_answered_with_the_first_outcome() {
    let scratch = Scratch::new();
    let mut coordinator = Coordinator::start(&scratch).await;
    for bank in Bank::three(&scratch).await {
        let mut agent = Agent::start(&scratch, &coordinator, &bank).await;
        let id = format!("again-{}", bank.name);
        let client = coordinator.client().await;
        let submission = |client: &Client| {
            client
                .transaction()
                .request_id(&id)
                .branch(&bank.name, side("debit", "again", 1, 5, -5))
        };
        let first = committed(submission(&client).submit().await);
        for _ in 0..2 {
            coordinator.kill_and_restart().await;
            let again = committed(submission(&coordinator.client().await).submit().await);
            assert_eq!(
                again, first,
                "{}: it is answered with the first outcome",
                bank.name
            );
            assert_eq!(
                bank.balance(1).await,
                INITIAL_BALANCE - 5,
                "{}: nothing happens twice",
                bank.name
            );
        }
        agent.kill(&coordinator).await;
    }
}

#[tokio::test]
async fn a_one_phase_transaction_is_looked_up_after_a_restart_by_its_marker() {
    let scratch = Scratch::new();
    let mut coordinator = Coordinator::start(&scratch).await;
    let bank = Bank::postgres("post").await;
    let mut agent = Agent::start(&scratch, &coordinator, &bank).await;
    let client = coordinator.client().await;
    let submission = client
        .transaction()
        .branch("post", side("debit", "marked", 1, 5, -5));
    let id = committed(submission.submit().await);
    coordinator.kill_and_restart().await;
    agent.connects(&coordinator).await;
    assert_eq!(
        ended(&coordinator, &id).await.state(),
        TransactionState::Committed
    );
    // While the participant is away nobody can say, and nobody does.
    agent.kill(&coordinator).await;
    coordinator.kill_and_restart().await;
    let look = v1::GetTransactionRequest {
        transaction_id: id.clone(),
    };
    let status = coordinator
        .transactions()
        .get_transaction(look)
        .await
        .expect_err("nobody can say");
    let info = status.get_details_error_info().expect("ErrorInfo");
    assert_eq!(
        (status.code(), info.reason.as_str()),
        (Code::Unavailable, "OUTCOME_PENDING"),
        "{status:?}"
    );
    agent.restart();
    agent.connects(&coordinator).await;
    assert_eq!(
        ended(&coordinator, &id).await.state(),
        TransactionState::Committed
    );
}

#[tokio::test]
async fn a_transaction_of_which_nobody_knows_is_not_found() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let log = coordinator.log_id().await;
    let look = |id: String| {
        let mut service = coordinator.transactions();
        async move {
            service
                .get_transaction(v1::GetTransactionRequest { transaction_id: id })
                .await
        }
    };
    let foreign = format!("u1.{:08x}.1.{}", 0, "0".repeat(32));
    let future = format!("u1.{log}.ff.{}", "0".repeat(32));
    for (id, code, reason) in [
        (foreign, Code::NotFound, "TRANSACTION_UNKNOWN"),
        (future, Code::NotFound, "TRANSACTION_UNKNOWN"),
        ("nonsense".into(), Code::InvalidArgument, "INVALID_REQUEST"),
    ] {
        let status = look(id.clone()).await.expect_err("it never was");
        let info = status.get_details_error_info().expect("ErrorInfo");
        assert_eq!(
            (status.code(), info.reason.as_str()),
            (code, reason),
            "{id}: {status:?}"
        );
    }
}

#[tokio::test]
async fn an_unknown_outcome_is_settled_when_the_coordinator_is_back() {
    let scratch = Scratch::new();
    let mut coordinator = Coordinator::start(&scratch).await;
    let bank = Bank::postgres("post").await;
    let agent = Agent::start(&scratch, &coordinator, &bank).await;
    let mut fake = Fake::open(&coordinator.address(), "fake").await;
    let client = Client::builder(coordinator.address())
        .retry_for(Duration::ZERO)
        .build()
        .expect("a good address");
    let transaction = client
        .transaction()
        .branch("post", side("debit", "lost", 1, 5, -5))
        .branch("fake", [Operation::named("anything")]);
    let submitted = tokio::spawn(transaction.submit());
    let prepare = fake.prepare().await;
    fake.vote_yes(prepare.key);
    // The decision is durable: the commit has been sent.
    let commit = fake.commit().await;
    coordinator.process.kill();
    let outcome: Result<Outcome, Error> = submitted.await.expect("no panic");
    let Ok(Outcome::Unknown(unknown)) = outcome else {
        panic!("not unknown, but {outcome:?}")
    };
    coordinator.restart().await;
    agent.connects(&coordinator).await;
    let mut fake = Fake::open(&coordinator.address(), "fake").await;
    let again = fake.commit().await;
    assert_eq!(again.key, commit.key, "the decision is delivered again");
    fake.complete(again.key, CompletionKind::Committed);
    let settled = unknown
        .settle(std::time::Instant::now() + Duration::from_secs(20))
        .await;
    assert_eq!(
        committed(Ok(settled)),
        commit.key.expect("a branch").transaction_id
    );
    assert_eq!(bank.balance(1).await, INITIAL_BALANCE - 5);
}
