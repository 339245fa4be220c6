//! How often the coordinator forces its log to disk, as strace counts it.
//!
//! Presumed abort with group commit (Mohan, Lindsay, Obermarck 1986; Gray, Reuter 1993): one forced write for each committed transaction at
//! most, shared by those that are decided together, and none for any other transaction.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use unanimity_client::{Client, Operation, SagaOutcome, Step};
use unanimity_tests::{
    bank::{Bank, INITIAL_BALANCE, aborted, committed, side, transfer},
    deeds::{acts, operation},
    fake::Fake,
    strace::Strace,
    system::{Agent, Coordinator, Scratch, Setup},
};

/// A coordinator under strace.
async fn watched(scratch: &Scratch) -> (Coordinator, Strace) {
    let strace = Strace::new(scratch.path("strace"));
    let mut setup = Setup::new(scratch);
    setup.wrapper = strace.wrapper(&[]);
    (Coordinator::start_with(setup).await, strace)
}

fn read(account: i64) -> [Operation; 1] {
    [Operation::named("balance").with("account", account)]
}

#[tokio::test]
async fn one_client_forces_at_most_one_write_for_each_commit() {
    let scratch = Scratch::new();
    let (coordinator, strace) = watched(&scratch).await;
    let [lite, post, _] = Bank::three(&scratch).await;
    let _lite = Agent::start(&scratch, &coordinator, &lite).await;
    let _post = Agent::start(&scratch, &coordinator, &post).await;
    let client = coordinator.client().await;
    let before = strace.syncs();
    for number in 0..30 {
        let id = format!("t{number}");
        committed(transfer(&client, &id, &lite, &post, 1, 1).submit().await);
    }
    let forced = strace.syncs() - before;
    eprintln!("1 client: {forced} forced writes for 30 commits");
    assert!((1..=30).contains(&forced), "{forced} for 30 commits");
}

#[tokio::test]
async fn nobody_is_told_of_a_commit_before_its_sync_has_returned() {
    const SYNC: Duration = Duration::from_millis(300);
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    for name in ["left", "right"] {
        Fake::open(&coordinator.address(), name).await.obey();
    }
    let client = coordinator.client().await;
    let transaction = || {
        let anything = || [Operation::named("anything")];
        client
            .transaction()
            .branch("left", anything())
            .branch("right", anything())
    };
    committed(transaction().submit().await);
    let slow = format!("inject=fdatasync:delay_exit={}", SYNC.as_micros());
    let strace = Strace::new(scratch.path("strace"));
    let _slow = strace.attach(coordinator.process.id(), &["-e", &slow]);
    let started = Instant::now();
    committed(transaction().submit().await);
    assert!(started.elapsed() >= SYNC, "{:?}", started.elapsed());
}

#[tokio::test]
async fn many_clients_share_their_forced_writes() {
    const CLIENTS: usize = 32;
    const EACH: usize = 20;
    let scratch = Scratch::new();
    let (coordinator, strace) = watched(&scratch).await;
    for name in ["left", "right"] {
        Fake::open(&coordinator.address(), name).await.obey();
    }
    let client = coordinator.client().await;
    let before = strace.syncs();
    let work = async |client: Client| {
        for _ in 0..EACH {
            let anything = || [Operation::named("anything")];
            let outcome = client
                .transaction()
                .branch("left", anything())
                .branch("right", anything())
                .submit();
            committed(outcome.await);
        }
    };
    join_all((0..CLIENTS).map(|_| work(client.clone()))).await;
    let (forced, commits) = (strace.syncs() - before, CLIENTS * EACH);
    eprintln!("{CLIENTS} clients: {forced} forced writes for {commits} commits");
    assert!(
        forced >= 1 && forced * 4 <= commits,
        "{forced} for {commits} commits"
    );
}

#[tokio::test]
async fn what_aborts_or_reads_or_commits_in_one_phase_forces_nothing() {
    let scratch = Scratch::new();
    let (coordinator, strace) = watched(&scratch).await;
    let banks = Bank::three(&scratch).await;
    let mut agents = Vec::new();
    for bank in &banks {
        agents.push(Agent::start(&scratch, &coordinator, bank).await);
    }
    let client = coordinator.client().await;
    // The first commit of all: what an empty log needs is forced by now.
    let [lite, post, maria] = &banks;
    committed(transfer(&client, "first", lite, post, 1, 1).submit().await);
    let before = strace.syncs();

    for number in 0..10 {
        let id = format!("overdrawn {number}");
        let outcome = transfer(&client, &id, post, maria, 2, 2 * INITIAL_BALANCE).submit();
        aborted(outcome.await);
    }
    for _ in 0..10 {
        let mut reading = client.transaction();
        for bank in &banks {
            reading = reading.branch(&bank.name, read(3));
        }
        committed(reading.submit().await);
    }
    for (number, bank) in banks.iter().cycle().take(12).enumerate() {
        let id = format!("alone {number}");
        let alone = client
            .transaction()
            .branch(&bank.name, side("debit", &id, 4, 1, -1));
        committed(alone.submit().await);
    }
    let open = client.begin().participant("post").start().await;
    let open = open.expect("it is taken");
    let debit = side("debit", "open", 5, 1, -1)[0].clone();
    open.execute("post", debit).await.expect("it runs");
    open.abort("on second thoughts")
        .await
        .expect("it is not decided");

    assert_eq!(strace.syncs() - before, 0);
    // It is watched still: a commit shows.
    committed(transfer(&client, "last", lite, post, 1, 1).submit().await);
    assert_eq!(strace.syncs() - before, 1);
}

#[tokio::test]
async fn a_saga_forces_one_write_if_it_completes_two_if_it_turns_back_and_one_more_for_a_group() {
    const EACH: usize = 10;
    let scratch = Scratch::new();
    let (coordinator, strace) = watched(&scratch).await;
    let [lite, post, maria] = Bank::three(&scratch).await;
    let [lite, post, maria] = [
        lite.with_deeds().await,
        post.with_deeds().await,
        maria.with_deeds().await,
    ];
    let mut agents = Vec::new();
    for bank in [&lite, &post, &maria] {
        agents.push(Agent::start(&scratch, &coordinator, bank).await);
    }
    let client = coordinator.client().await;
    let saga = |id: &str| {
        let first = acts(Step::new("a"), &post, id, "a").compensate(operation("undo", id, "a"));
        let second = acts(Step::new("b"), &maria, id, "b").after(["a"]);
        client
            .saga()
            .request_id(id)
            .step(first)
            .step(second.compensate(operation("undo", id, "b")))
    };
    let mut before = strace.syncs();
    let mut forced = || {
        let now = strace.syncs();
        now - std::mem::replace(&mut before, now)
    };
    for number in 0..EACH {
        let id = format!("whole {number}");
        let third = acts(Step::retriable("c"), &lite, &id, "c");
        let outcome = saga(&id).step(third).submit().await.expect("it is taken");
        assert!(matches!(outcome, SagaOutcome::Completed(_)), "{outcome:?}");
    }
    let completed = forced();
    for number in 0..EACH {
        let id = format!("refused {number}");
        let third = Step::pivot("c")
            .at("lite")
            .run(operation("refuse", &id, "c"));
        let outcome = saga(&id).step(third).submit().await.expect("it is taken");
        assert!(
            matches!(outcome, SagaOutcome::Compensated(_)),
            "{outcome:?}"
        );
    }
    let compensated = forced();
    for number in 0..EACH {
        let id = format!("mixed {number}");
        let pay = Step::pivot("pay")
            .branch("post", side("debit", &id, 6, 1, -1))
            .branch("maria", side("credit", &id, 6, 1, 1));
        let outcome = saga(&id).step(pay).submit().await.expect("it is taken");
        assert!(matches!(outcome, SagaOutcome::Completed(_)), "{outcome:?}");
    }
    let mixed = forced();
    eprintln!(
        "{completed} for {EACH} sagas that completed, {compensated} for {EACH} that turned back, {mixed} for {EACH} with a group"
    );
    assert_eq!((completed, compensated, mixed), (EACH, 2 * EACH, 2 * EACH));
}
