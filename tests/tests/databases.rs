//! Databases that can't keep a vote, that are killed, or in which somebody did our work by hand.

use std::time::Duration;

use unanimity_client::Outcome;
use unanimity_proto::v1::{BranchState, TransactionState};
use unanimity_tests::{
    bank::{Bank, INITIAL_BALANCE, committed, side, transfer},
    held::{Held, branch_at, state_at},
    mariadb::{Flavour, Mariadb},
    patience::becomes,
    postgres::Postgres,
    system::{Agent, Coordinator, Scratch, Setup, ended},
};

#[tokio::test]
async fn postgresql_without_prepared_transactions_is_refused_with_the_remedy() {
    let scratch = Scratch::new();
    let server = Postgres::start(&["max_prepared_transactions=0"]);
    let bank = Bank::create("post", server.new_database().await).await;
    let mut agent = Agent::launch(&scratch, "http://127.0.0.1:1", &bank, &[]);
    assert_eq!(agent.process.exit_code(), 1);
    let said = agent.process.log();
    assert!(said.contains("max_prepared_transactions"), "{said}");
    assert!(
        !said.contains("postgres://"),
        "the URL is nobody's business: {said}"
    );
}

#[tokio::test]
async fn a_database_that_is_away_is_waited_for() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let mut server = Postgres::start(&["max_prepared_transactions=10"]);
    let bank = Bank::create("post", server.new_database().await).await;
    server.kill();
    let agent = Agent::launch(&scratch, &coordinator.address(), &bank, &[]);
    server.restart();
    agent.connects(&coordinator).await;
    let client = coordinator.client().await;
    committed(
        client
            .transaction()
            .branch("post", side("debit", "t", 1, 5, -5))
            .submit()
            .await,
    );
}

#[tokio::test]
async fn a_role_that_may_not_finish_a_branch_leaves_it_visibly_in_doubt_until_one_that_may_is_back()
{
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let mut bank = Bank::postgres("post").await;
    let mut agent = Agent::start(&scratch, &coordinator, &bank).await;
    let mut held = Held::new(&coordinator, &client, &bank).await;
    agent.kill(&coordinator).await;

    // Another agent for the same database, as a role that did not prepare the branch.
    let role = format!("stranger_{}", uuid::Uuid::new_v4().simple());
    bank.execute(&format!("CREATE ROLE {role} LOGIN")).await;
    bank.execute(&format!("GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; GRANT CREATE ON SCHEMA public TO {role}")).await;
    let owner = bank.url.clone();
    bank.url = owner.replace("postgres@", &format!("{role}@"));
    let mut stranger = Agent::launch(&scratch, &coordinator.address(), &bank, &[]);
    held.decide().await;
    let refused = tokio::select! {
        // Its preflight may see what it can't finish, and refuse to start.
        () = stranger.process.ends() => true,
        () = coordinator.agents("post", 1) => false,
    };
    if !refused {
        becomes("the trouble", true, || async {
            !branch_at(&coordinator, &held.id, "post")
                .await
                .last_error
                .is_empty()
        })
        .await;
    }
    assert_eq!(
        coordinator.transaction(&held.id).await.state(),
        TransactionState::Committing
    );
    bank.has_prepared(&held.id, 1).await;
    if !refused {
        stranger.kill(&coordinator).await;
    }

    bank.url = owner;
    let _agent = Agent::start(&scratch, &coordinator, &bank).await;
    assert_eq!(committed(held.submitted.await.expect("no panic")), held.id);
    bank.has_prepared(&held.id, 0).await;
    assert_eq!(bank.balance(1).await, INITIAL_BALANCE - 5);
}

/// A server is killed while it holds a prepared branch; the decision comes while it is down.
async fn survives_the_death_of_its_database(
    bank: Bank,
    kill: impl FnOnce(),
    restart: impl FnOnce(),
    commits: bool,
) {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let _agent = Agent::start(&scratch, &coordinator, &bank).await;
    let mut held = Held::new(&coordinator, &client, &bank).await;
    kill();
    if commits {
        held.decide().await;
    } else {
        held.refuse();
    }
    restart();
    let transaction = ended(&coordinator, &held.id).await;
    let (state, balance) = match commits {
        true => (TransactionState::Committed, INITIAL_BALANCE - 5),
        false => (TransactionState::Aborted, INITIAL_BALANCE),
    };
    assert_eq!(transaction.state(), state, "{transaction:?}");
    bank.has_prepared(&held.id, 0).await;
    assert_eq!(bank.balance(1).await, balance);
    // And it is of use again.
    let next = client
        .transaction()
        .branch(&bank.name, side("debit", "next", 2, 5, -5));
    committed(next.submit().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_server_that_is_killed_with_a_branch_prepared_keeps_it() {
    for commits in [true, false] {
        let mut server = Postgres::start(&["max_prepared_transactions=10"]);
        let bank = Bank::create("post", server.new_database().await).await;
        let server = std::cell::RefCell::new(&mut server);
        let (kill, restart) = (
            || server.borrow_mut().kill(),
            || server.borrow_mut().restart(),
        );
        survives_the_death_of_its_database(bank, kill, restart, commits).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mariadb_server_that_is_killed_with_a_branch_prepared_keeps_it_with_and_without_its_binary_log()
 {
    let binlog: &[&str] = &["--log-bin=binlog", "--server-id=1", "--sync-binlog=1"];
    for settings in [&[], binlog] {
        for commits in [true, false] {
            let mut server = Mariadb::start(Flavour::Mariadb, settings);
            let bank = Bank::create("maria", server.new_database().await).await;
            let server = std::cell::RefCell::new(&mut server);
            let (kill, restart) = (
                || server.borrow_mut().kill(),
                || server.borrow_mut().restart(),
            );
            survives_the_death_of_its_database(bank, kill, restart, commits).await;
        }
    }
}

#[tokio::test]
async fn mariadb_with_its_binary_log_commits_and_aborts_like_without() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let server = Mariadb::start(
        Flavour::Mariadb,
        &["--log-bin=binlog", "--server-id=1", "--sync-binlog=1"],
    );
    let maria = Bank::create("maria", server.new_database().await).await;
    let lite = Bank::sqlite(&scratch, "lite").await;
    let _maria = Agent::start(&scratch, &coordinator, &maria).await;
    let _lite = Agent::start(&scratch, &coordinator, &lite).await;
    committed(
        transfer(&client, "good", &maria, &lite, 1, 5)
            .submit()
            .await,
    );
    let outcome = transfer(&client, "bad", &maria, &lite, 1, 10_000)
        .submit()
        .await;
    assert!(matches!(outcome, Ok(Outcome::Aborted(_))), "{outcome:?}");
    assert_eq!(
        (maria.balance(1).await, lite.balance(1).await),
        (INITIAL_BALANCE - 5, INITIAL_BALANCE + 5)
    );
    maria.has_prepared("", 0).await;
}

#[tokio::test]
async fn two_participants_on_one_server_leave_each_others_branches_alone() {
    let scratch = Scratch::new();
    let setup = Setup::new(&scratch).with(&["--scan-interval=100ms"]);
    let coordinator = Coordinator::start_with(setup).await;
    let client = coordinator.client().await;
    let [one, two] = [Bank::mariadb("one").await, Bank::mariadb("two").await];
    let mut agent = Agent::start(&scratch, &coordinator, &one).await;
    let _two = Agent::start(&scratch, &coordinator, &two).await;
    let mut held = Held::new(&coordinator, &client, &one).await;
    agent.kill(&coordinator).await;
    held.decide().await;
    // XA RECOVER shows the branch to the other agent too, at each of some ten scans.
    tokio::time::sleep(Duration::from_secs(1)).await;
    agent.restart();
    assert_eq!(committed(held.submitted.await.expect("no panic")), held.id);
    assert_eq!(one.balance(1).await, INITIAL_BALANCE - 5);
}

#[tokio::test]
async fn mysql_commits_and_aborts_like_mariadb() {
    let Some(server) = Mariadb::shared_mysql() else {
        eprintln!("no mysqld here: nothing was tested");
        return;
    };
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let mysql = Bank::create("mysql", server.new_database().await).await;
    let lite = Bank::sqlite(&scratch, "lite").await;
    let mut agent = Agent::start(&scratch, &coordinator, &mysql).await;
    let _lite = Agent::start(&scratch, &coordinator, &lite).await;
    committed(
        transfer(&client, "good", &mysql, &lite, 1, 5)
            .submit()
            .await,
    );
    let outcome = transfer(&client, "bad", &mysql, &lite, 1, 10_000)
        .submit()
        .await;
    assert!(matches!(outcome, Ok(Outcome::Aborted(_))), "{outcome:?}");
    assert_eq!(
        (mysql.balance(1).await, lite.balance(1).await),
        (INITIAL_BALANCE - 5, INITIAL_BALANCE + 5)
    );
    let mut held = Held::new(&coordinator, &client, &mysql).await;
    agent.kill(&coordinator).await;
    held.decide().await;
    agent.restart();
    assert_eq!(committed(held.submitted.await.expect("no panic")), held.id);
    mysql.has_prepared(&held.id, 0).await;
}

/// A branch is finished by hand while its agent is away: `finish` makes the statement from the branch's identifier.
async fn is_finished_by_hand(
    bank: Bank,
    finish: impl Fn(&str) -> String,
    commits: bool,
) -> (Coordinator, Scratch, Held) {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let mut agent = Agent::start(&scratch, &coordinator, &bank).await;
    let mut held = Held::new(&coordinator, &client, &bank).await;
    let gid = held.gid(&bank).await;
    agent.kill(&coordinator).await;
    // MariaDB lets go of the branch a moment after the agent's end.
    becomes("the branch", true, || async {
        bank.try_execute(&finish(&gid)).await.is_ok()
    })
    .await;
    if commits {
        held.decide().await;
    } else {
        held.refuse();
    }
    agent.restart();
    agent.connects(&coordinator).await;
    ended(&coordinator, &held.id).await;
    agent.kill(&coordinator).await;
    (coordinator, scratch, held)
}

fn xa(verb: &str, gid: &str) -> String {
    // What XA RECOVER shows as data is the transaction's id and the branch's number.
    let (transaction, number) = split(gid);
    format!("XA {verb} '{transaction}', '{number}'")
}

/// `u1.<log>.<epoch>.<32 hex digits>` and what follows.
fn split(data: &str) -> (&str, &str) {
    let end = data.rfind('.').expect("an id of ours") + 1 + 32;
    data.split_at(end)
}

#[tokio::test]
async fn a_branch_rolled_back_by_hand_against_the_decision_is_a_heuristic_that_the_client_hears_of()
{
    let post = (
        Bank::postgres("post").await,
        (|gid: &str| format!("ROLLBACK PREPARED '{gid}'")) as fn(&str) -> String,
    );
    let maria = (
        Bank::mariadb("maria").await,
        (|gid: &str| xa("ROLLBACK", gid)) as fn(&str) -> String,
    );
    for (bank, finish) in [post, maria] {
        let (coordinator, _scratch, held) = is_finished_by_hand(bank.clone(), finish, true).await;
        let outcome = held
            .submitted
            .await
            .expect("no panic")
            .expect("it was taken");
        let Outcome::Heuristic(heuristic) = outcome else {
            panic!("{}: hidden: {outcome:?}", bank.name)
        };
        assert_eq!(heuristic.transaction.transaction_id, held.id);
        let transaction = coordinator.transaction(&held.id).await;
        assert_eq!(
            transaction.state(),
            TransactionState::Heuristic,
            "{}: {transaction:?}",
            bank.name
        );
        assert_eq!(
            state_at(&coordinator, &held.id, &bank.name).await,
            BranchState::HeuristicAborted,
            "{}",
            bank.name
        );
        assert_eq!(
            state_at(&coordinator, &held.id, "fake").await,
            BranchState::Committed
        );
        assert_eq!(bank.balance(1).await, INITIAL_BALANCE);
    }
}

#[tokio::test]
async fn a_branch_committed_by_hand_against_the_decision_is_a_heuristic() {
    let post = (
        Bank::postgres("post").await,
        (|gid: &str| format!("COMMIT PREPARED '{gid}'")) as fn(&str) -> String,
    );
    let maria = (
        Bank::mariadb("maria").await,
        (|gid: &str| xa("COMMIT", gid)) as fn(&str) -> String,
    );
    for (bank, finish) in [post, maria] {
        let (coordinator, _scratch, held) = is_finished_by_hand(bank.clone(), finish, false).await;
        let transaction = coordinator.transaction(&held.id).await;
        assert_eq!(
            transaction.state(),
            TransactionState::Heuristic,
            "{}: {transaction:?}",
            bank.name
        );
        assert_eq!(
            state_at(&coordinator, &held.id, &bank.name).await,
            BranchState::HeuristicCommitted,
            "{}",
            bank.name
        );
        assert_eq!(bank.balance(1).await, INITIAL_BALANCE - 5);
    }
}

#[tokio::test]
async fn a_branch_committed_by_hand_as_decided_is_proved_and_no_heuristic() {
    let post = (
        Bank::postgres("post").await,
        (|gid: &str| format!("COMMIT PREPARED '{gid}'")) as fn(&str) -> String,
    );
    let maria = (
        Bank::mariadb("maria").await,
        (|gid: &str| xa("COMMIT", gid)) as fn(&str) -> String,
    );
    for (bank, finish) in [post, maria] {
        let (coordinator, _scratch, held) = is_finished_by_hand(bank.clone(), finish, true).await;
        assert_eq!(committed(held.submitted.await.expect("no panic")), held.id);
        let transaction = coordinator.transaction(&held.id).await;
        assert_eq!(
            transaction.state(),
            TransactionState::Committed,
            "{}: {transaction:?}",
            bank.name
        );
        assert_eq!(bank.balance(1).await, INITIAL_BALANCE - 5);
    }
}
