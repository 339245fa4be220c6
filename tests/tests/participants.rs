//! Participants that are down, hang, die at the worst moment, or say what they must not.

use std::time::Duration;

use tokio::task::JoinHandle;
use unanimity_client::{AbortCode, Client, Error, Operation, Outcome, Reason};
use unanimity_proto::v1::{
    self, BranchState, CompletionKind, TransactionState, VoteKind, participant_message::Kind as Up,
};
use unanimity_tests::{
    bank::{Bank, INITIAL_BALANCE, aborted, committed, side, transfer},
    fake::Fake,
    patience::{becomes, eventually},
    strace::Strace,
    system::{Agent, Coordinator, Scratch, ended},
};

type Submitted = JoinHandle<Result<Outcome, Error>>;

/// Debits a bank, together with whatever the fake does.
fn submit(client: &Client, bank: &Bank) -> Submitted {
    let transaction = client
        .transaction()
        .branch(&bank.name, side("debit", "t", 1, 5, -5))
        .branch("fake", [Operation::named("anything")]);
    tokio::spawn(transaction.submit())
}

/// Waits until the coordinator has this participant's vote.
async fn has_voted(coordinator: &Coordinator, id: &str, participant: &str) {
    becomes(
        &format!("the vote of {participant}"),
        BranchState::Prepared,
        || async {
            let transaction = coordinator.transaction(id).await;
            let mut branches = transaction.branches.iter();
            branches
                .find(|branch| branch.participant == participant)
                .expect("it has a branch")
                .state()
        },
    )
    .await;
}

fn transaction_id(key: &Option<v1::BranchKey>) -> String {
    key.as_ref()
        .expect("a branch is named")
        .transaction_id
        .clone()
}

#[tokio::test]
async fn a_participant_that_is_down_is_reported_at_once_and_nothing_happens() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let [lite, post] = [
        Bank::sqlite(&scratch, "lite").await,
        Bank::postgres("post").await,
    ];
    let _lite = Agent::start(&scratch, &coordinator, &lite).await;
    let mut agent = Agent::start(&scratch, &coordinator, &post).await;
    agent.kill(&coordinator).await;

    let client = Client::builder(coordinator.address())
        .retry_for(Duration::ZERO)
        .build()
        .expect("a good address");
    let error = transfer(&client, "t", &lite, &post, 1, 5)
        .submit()
        .await
        .expect_err("it is down");
    assert_eq!(error.reason(), &Reason::ParticipantUnavailable, "{error:?}");
    assert!(error.is_retryable());
    assert_eq!(lite.balance(1).await, INITIAL_BALANCE);

    agent.restart();
    agent.connects(&coordinator).await;
    committed(transfer(&client, "t", &lite, &post, 1, 5).submit().await);
}

#[tokio::test]
async fn a_participant_that_hangs_in_prepare_aborts_by_the_timeout_and_is_of_use_again_at_once() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let lite = Bank::sqlite(&scratch, "lite").await;
    let post = Bank::postgres("post")
        .await
        .offering("sleep", "SELECT pg_sleep(600)", "[]");
    let _lite = Agent::start(&scratch, &coordinator, &lite).await;
    let _post = Agent::start(&scratch, &coordinator, &post).await;
    let client = coordinator.client().await;
    let hang = client
        .transaction()
        .timeout(Duration::from_millis(700))
        .branch("post", [Operation::named("sleep")])
        .branch("lite", side("debit", "t", 1, 5, -5));
    let aborted = aborted(hang.submit().await);
    assert_eq!(aborted.code, AbortCode::Timeout, "{aborted:?}");
    assert!(aborted.is_transient());
    assert_eq!(
        ended(&coordinator, &aborted.transaction_id).await.state(),
        TransactionState::Aborted
    );
    assert_eq!(lite.balance(1).await, INITIAL_BALANCE);
    committed(transfer(&client, "t", &lite, &post, 1, 5).submit().await);
    post.has_prepared("", 0).await;
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND state = 'active' AND pid <> pg_backend_pid()";
    becomes("statements that run on", vec![0], || post.numbers(sleeps)).await;
}

#[tokio::test]
async fn a_row_lock_of_an_outsider_aborts_by_the_timeout_in_every_database_that_has_them() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let lite = Bank::sqlite(&scratch, "lite").await;
    let _lite = Agent::start(&scratch, &coordinator, &lite).await;
    for bank in [Bank::postgres("post").await, Bank::mariadb("maria").await] {
        let _agent = Agent::start(&scratch, &coordinator, &bank).await;
        let lock = tokio::spawn({
            let bank = bank.clone();
            async move {
                let sleep = if bank.name == "post" {
                    "pg_sleep"
                } else {
                    "sleep"
                };
                let hold = format!(
                    "BEGIN; UPDATE account SET balance = balance WHERE id = 1; SELECT {sleep}(600)"
                );
                bank.try_execute(&hold).await
            }
        });
        let attempt = || {
            transfer(&client, "t", &bank, &lite, 1, 5)
                .timeout(Duration::from_millis(500))
                .submit()
        };
        // The outsider may need a moment for its lock; until then the transfer commits.
        let aborted = eventually("a conflict with the lock", || async {
            match attempt().await.expect("it is taken") {
                Outcome::Aborted(aborted) if aborted.code == AbortCode::Refused => {
                    panic!("the transfer was refused: {aborted:?}")
                }
                Outcome::Aborted(aborted) => Some(aborted),
                _ => {
                    bank.execute("DELETE FROM entry").await;
                    lite.execute("DELETE FROM entry").await;
                    None
                }
            }
        })
        .await;
        assert_eq!(aborted.code, AbortCode::Timeout, "{aborted:?}");
        assert_eq!(lite.entries("t").await, 0, "{}", bank.name);
        lock.abort();
        let other = transfer(&client, &bank.name, &bank, &lite, 2, 5)
            .submit()
            .await;
        committed(other);
        bank.has_prepared("u1.", 0).await;
    }
}

#[tokio::test]
async fn an_agent_whose_journal_can_not_be_synced_votes_no_until_it_is_restarted() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    Fake::open(&coordinator.address(), "fake").await.obey();
    let bank = Bank::sqlite(&scratch, "lite").await;
    let mut agent = Agent::start(&scratch, &coordinator, &bank).await;
    let failing = ["-e", "inject=fdatasync:error=EIO:when=1"];
    let strace = Strace::new(scratch.path("strace"));
    let _failer = strace.attach(agent.process.id(), &failing);
    for _ in 0..2 {
        let outcome = submit(&client, &bank).await.expect("no panic");
        assert!(aborted(outcome).to_string().contains("the prepare journal"));
    }
    assert_eq!(bank.balance(1).await, INITIAL_BALANCE);
    agent.kill(&coordinator).await;
    agent.restart();
    agent.connects(&coordinator).await;
    committed(submit(&client, &bank).await.expect("no panic"));
    assert_eq!(bank.balance(1).await, INITIAL_BALANCE - 5);
}

#[tokio::test]
async fn an_agent_that_dies_between_its_vote_and_the_commit_commits_when_it_is_back() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let mut fake = Fake::open(&coordinator.address(), "fake").await;
    for bank in Bank::three(&scratch).await {
        let mut agent = Agent::start(&scratch, &coordinator, &bank).await;
        let submitted = submit(&client, &bank);
        let prepare = fake.prepare().await;
        let id = transaction_id(&prepare.key);
        has_voted(&coordinator, &id, &bank.name).await;
        agent.kill(&coordinator).await;
        fake.vote_yes(prepare.key);
        let commit = fake.commit().await;
        fake.complete(commit.key, CompletionKind::Committed);

        assert_eq!(
            coordinator.transaction(&id).await.state(),
            TransactionState::Committing,
            "{}",
            bank.name
        );
        assert!(
            !submitted.is_finished(),
            "the answer waits for every branch"
        );
        agent.restart();
        assert_eq!(committed(submitted.await.expect("no panic")), id);
        assert_eq!(bank.balance(1).await, INITIAL_BALANCE - 5, "{}", bank.name);
        bank.has_prepared(&id, 0).await;
    }
}

#[tokio::test]
async fn an_agent_that_dies_between_its_vote_and_the_abort_rolls_back_when_it_is_back() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let mut fake = Fake::open(&coordinator.address(), "fake").await;
    for bank in Bank::three(&scratch).await {
        let mut agent = Agent::start(&scratch, &coordinator, &bank).await;
        let submitted = submit(&client, &bank);
        let prepare = fake.prepare().await;
        let id = transaction_id(&prepare.key);
        has_voted(&coordinator, &id, &bank.name).await;
        agent.kill(&coordinator).await;
        fake.vote(prepare.key, VoteKind::No);
        assert_eq!(
            aborted(submitted.await.expect("no panic")).transaction_id,
            id
        );
        agent.restart();
        agent.connects(&coordinator).await;
        bank.has_prepared(&id, 0).await;
        assert_eq!(bank.balance(1).await, INITIAL_BALANCE, "{}", bank.name);
        // The account is free again.
        let free = client
            .transaction()
            .branch(&bank.name, side("debit", "free", 1, 1, -1));
        committed(free.submit().await);
    }
}

#[tokio::test]
async fn an_agent_that_dies_before_its_vote_aborts_the_transaction() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let bank = Bank::postgres("post").await;
    let _agent = Agent::start(&scratch, &coordinator, &bank).await;
    let mut fake = Fake::open(&coordinator.address(), "fake").await;
    let submitted = submit(&client, &bank);
    let prepare = fake.prepare().await;
    drop(fake);
    let aborted = aborted(submitted.await.expect("no panic"));
    assert_eq!(
        aborted.code,
        AbortCode::ParticipantUnavailable,
        "{aborted:?}"
    );
    assert_eq!(aborted.participant.as_deref(), Some("fake"), "{aborted:?}");
    bank.has_prepared(&transaction_id(&prepare.key), 0).await;
    assert_eq!(bank.balance(1).await, INITIAL_BALANCE);
}

#[tokio::test]
async fn answers_that_come_twice_change_nothing() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let bank = Bank::postgres("post").await;
    let _agent = Agent::start(&scratch, &coordinator, &bank).await;
    let mut fake = Fake::open(&coordinator.address(), "fake").await;
    let submitted = submit(&client, &bank);
    let prepare = fake.prepare().await;
    fake.vote_yes(prepare.key.clone());
    fake.vote_yes(prepare.key.clone());
    let commit = fake.commit().await;
    // A vote after the decision, and one that contradicts the first, are as stale.
    fake.vote(prepare.key.clone(), VoteKind::No);
    for _ in 0..2 {
        fake.complete(commit.key.clone(), CompletionKind::Committed);
    }
    let id = committed(submitted.await.expect("no panic"));
    fake.complete(commit.key, CompletionKind::Aborted);
    // The session is in order still.
    let next = submit(&client, &bank);
    let prepare = fake.prepare().await;
    fake.vote(prepare.key, VoteKind::ReadOnly);
    let outcome = next.await.expect("no panic").expect("it was taken");
    // The entry of the first transfer is there, so the second one is refused by its key.
    assert!(matches!(outcome, Outcome::Aborted(_)), "{outcome:?}");
    assert_eq!(
        coordinator.transaction(&id).await.state(),
        TransactionState::Committed
    );
    assert_eq!(bank.balance(1).await, INITIAL_BALANCE - 5);
}

#[tokio::test]
async fn an_answer_for_another_participants_branch_counts_for_nothing() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let mut honest = Fake::open(&coordinator.address(), "honest").await;
    let mut liar = Fake::open(&coordinator.address(), "liar").await;
    let transaction = client
        .transaction()
        .branch("honest", [Operation::named("anything")])
        .branch("liar", [Operation::named("anything")]);
    let submitted = tokio::spawn(transaction.submit());
    let (honest_work, liar_work) = (honest.prepare().await, liar.prepare().await);
    let id = transaction_id(&honest_work.key);
    liar.vote_yes(honest_work.key.clone());
    // Either its session is ended for that, or the vote is passed over; then it may still vote for itself.
    liar.vote_yes(liar_work.key);
    honest.vote(honest_work.key, VoteKind::No);
    let aborted = aborted(submitted.await.expect("no panic"));
    assert_eq!(aborted.transaction_id, id);
    assert_eq!(aborted.participant.as_deref(), Some("honest"));
}

#[tokio::test]
async fn an_answer_for_a_branch_that_never_was_counts_for_nothing() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let log = coordinator.log_id().await;
    for key in [
        v1::BranchKey {
            transaction_id: format!("u1.{log}.1.{}", "0".repeat(32)),
            branch: 1,
        },
        v1::BranchKey {
            transaction_id: format!("u1.00000000.1.{}", "0".repeat(32)),
            branch: 1,
        },
    ] {
        let fake = Fake::open(&coordinator.address(), "fake").await;
        fake.vote_yes(Some(key.clone()));
        fake.complete(Some(key), CompletionKind::Committed);
        drop(fake);
        coordinator.agents("fake", 0).await;
    }
    // What can't be a branch at all ends the session with a reason.
    let mut fake = Fake::open(&coordinator.address(), "fake").await;
    fake.send(Up::Vote(v1::Vote {
        key: None,
        kind: VoteKind::Yes.into(),
        ..v1::Vote::default()
    }));
    let ended = loop {
        if let Err(status) = fake.receive().await {
            break status;
        }
    };
    assert_eq!(ended.code(), tonic::Code::InvalidArgument, "{ended:?}");
    // And the coordinator is as well as before.
    let mut fake = Fake::open(&coordinator.address(), "fake").await;
    let submitted = tokio::spawn(
        client
            .transaction()
            .branch("fake", [Operation::named("anything")])
            .submit(),
    );
    let prepare = fake.prepare().await;
    fake.vote_yes(prepare.key);
    let commit = fake.commit().await;
    fake.complete(commit.key, CompletionKind::Committed);
    committed(submitted.await.expect("no panic"));
}
