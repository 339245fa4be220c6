//! Processes as their operators see them: stopped, doubled, looked at.

use std::{
    process::{Command, Output},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;
use unanimity_client::{AbortCode, Operation, Outcome};
use unanimity_tests::{
    bank::{Bank, INITIAL_BALANCE, aborted, committed, side, transfer},
    binaries,
    held::Held,
    patience::{becomes, eventually},
    system::{Agent, Coordinator, Scratch, Setup},
};

/// Runs the operator's command.
fn unanimity(coordinator: &Coordinator, arguments: &[&str]) -> Output {
    let mut command = Command::new(binaries::path("unanimity"));
    command
        .args(arguments)
        .args(["--coordinator", &coordinator.address()])
        .output()
        .expect("it can be run")
}

/// What it prints with `-o json`.
fn looked_up(coordinator: &Coordinator, arguments: &[&str]) -> Value {
    let output = unanimity(coordinator, &[arguments, &["-o", "json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[tokio::test]
async fn at_sigterm_what_is_in_flight_ends_and_nothing_new_begins() {
    let scratch = Scratch::new();
    let mut coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let post = Bank::postgres("post").await;
    let _post = Agent::start(&scratch, &coordinator, &post).await;
    let mut held = Held::new(&coordinator, &client, &post).await;
    coordinator.process.terminate();
    eventually("new work is refused", || async {
        let alone = client
            .transaction()
            .retry_for(Duration::ZERO)
            .branch("post", side("debit", "new", 2, 1, -1));
        alone.submit().await.err()
    })
    .await;
    held.decide().await;
    assert_eq!(committed(held.submitted.await.expect("no panic")), held.id);
    assert_eq!(coordinator.process.exit_code(), 0);
    assert_eq!(post.balance(1).await, INITIAL_BALANCE - 5);
}

#[tokio::test]
async fn what_does_not_end_while_it_drains_is_aborted_and_says_so() {
    let scratch = Scratch::new();
    let setup = Setup::new(&scratch).with(&["--drain-timeout=300ms"]);
    let mut coordinator = Coordinator::start_with(setup).await;
    let client = unanimity_client::Client::builder(coordinator.address())
        .retry_for(Duration::ZERO)
        .build()
        .expect("a good address");
    let post = Bank::postgres("post").await;
    let post_agent = Agent::start(&scratch, &coordinator, &post).await;
    let held = Held::new(&coordinator, &client, &post).await;
    coordinator.process.terminate();
    assert_eq!(coordinator.process.exit_code(), 0);
    let outcome = held.submitted.await.expect("no panic");
    assert!(
        matches!(
            outcome,
            Ok(Outcome::Unknown(_) | Outcome::Aborted(_)) | Err(_)
        ),
        "{outcome:?}"
    );
    coordinator.restart().await;
    post_agent.connects(&coordinator).await;
    post.has_prepared("u1.", 0).await;
    assert_eq!(post.balance(1).await, INITIAL_BALANCE);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let scratch = Scratch::new();
    let mut coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let post = Bank::postgres("post").await;
    let _post = Agent::start(&scratch, &coordinator, &post).await;
    let _held = Held::new(&coordinator, &client, &post).await;
    coordinator.process.terminate();
    let said = eventually("it drains", || async {
        let log = coordinator.process.log();
        log.contains("draining").then_some(log)
    })
    .await;
    assert!(said.contains("once more to stop at once"), "{said}");
    coordinator.process.signal(Signal::INT);
    assert_eq!(coordinator.process.exit_code(), 130);
}

#[tokio::test]
async fn two_agents_of_one_database_share_the_work_and_one_ends_what_the_other_prepared() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    for mut bank in [Bank::postgres("post").await, Bank::mariadb("maria").await] {
        bank.settings = "connections = 3\n".into();
        let mut agents =
            [(); 2].map(|()| Agent::launch(&scratch, &coordinator.address(), &bank, &[]));
        coordinator.agents(&bank.name, 2).await;
        let mut open = Vec::new();
        while holders(&coordinator, &bank).len() < 2 {
            assert!(open.len() < 6, "one agent does all the work");
            let begun = client.begin().participant(&bank.name).start().await;
            let begun = begun.expect("both agents have room");
            let account = 10 + i64::try_from(open.len()).expect("few");
            let debit = Operation::named("debit")
                .with("account", account)
                .with("amount", 1);
            begun.execute(&bank.name, debit).await.expect("it runs");
            open.push(begun);
        }
        for transaction in open {
            committed(transaction.commit().await);
        }

        // The one that prepared it is gone; the other one commits it.
        let mut held = Held::new(&coordinator, &client, &bank).await;
        let holders = holders(&coordinator, &bank);
        let holder = agents
            .iter_mut()
            .find(|agent| holders[0].ends_with(&format!(":{}", agent.process.id())));
        holder.expect("one of them has it").process.kill();
        coordinator.agents(&bank.name, 1).await;
        held.decide().await;
        assert_eq!(committed(held.submitted.await.expect("no panic")), held.id);
        bank.has_prepared(&held.id, 0).await;
        assert_eq!(bank.balance(1).await, INITIAL_BALANCE - 5);
    }
}

/// The agents of a bank that hold branches, each as `<host>:<process>`.
fn holders(coordinator: &Coordinator, bank: &Bank) -> Vec<String> {
    let listed = looked_up(coordinator, &["participant", "list"]);
    let participants = listed["participants"].as_array().expect("a list");
    let participant = participants
        .iter()
        .find(|participant| participant["name"] == bank.name);
    let sessions = participant.expect("it is registered")["sessions"].as_array();
    let holds = |session: &&Value| session["used_slots"].as_u64() > Some(0);
    let sessions = sessions.expect("a list").iter().filter(holds);
    sessions
        .map(|session| session["agent"].as_str().expect("text").to_owned())
        .collect()
}

#[tokio::test]
async fn the_operator_sees_what_hangs_and_settles_it_with_a_reason() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let post = Bank::postgres("post").await;
    let mut agent = Agent::start(&scratch, &coordinator, &post).await;

    // Not decided: it can be aborted.
    let held = Held::new(&coordinator, &client, &post).await;
    let shown = looked_up(&coordinator, &["tx", "get", &held.id]);
    assert_eq!(shown["state"], "preparing", "{shown}");
    let listed = looked_up(&coordinator, &["in-doubt", "list"]);
    assert_eq!(listed["branches"][0]["kind"], "undecided", "{listed}");
    let done = unanimity(&coordinator, &["tx", "abort", &held.id]);
    assert!(done.status.success(), "{done:?}");
    let outcome = aborted(held.submitted.await.expect("no panic"));
    assert_eq!(outcome.code, AbortCode::Client, "{outcome:?}");
    post.has_prepared("u1.", 0).await;

    // Decided, and the participant is away: the database's owner commits by hand, and the operator writes it down.
    let mut held = Held::new(&coordinator, &client, &post).await;
    let branch = held.gid(&post).await;
    agent.kill(&coordinator).await;
    held.decide().await;
    let refused = unanimity(&coordinator, &["tx", "abort", &held.id]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    post.execute(&format!("COMMIT PREPARED '{branch}'")).await;
    let resolve = |reason: &'static str| {
        let arguments = [
            "in-doubt",
            "resolve",
            &branch,
            "--committed",
            "--reason",
            reason,
            "--yes",
        ];
        unanimity(&coordinator, &arguments)
    };
    assert_eq!(resolve("short").status.code(), Some(2));
    let done = resolve("committed by hand, ticket 4711");
    assert!(done.status.success(), "{done:?}");
    assert_eq!(committed(held.submitted.await.expect("no panic")), held.id);
    let shown = looked_up(&coordinator, &["tx", "get", &held.id]);
    assert!(shown.to_string().contains("ticket 4711"), "{shown}");
    agent.restart();
    agent.connects(&coordinator).await;
    becomes("in doubt", 0, || async {
        coordinator.in_doubt().await.len()
    })
    .await;
    assert_eq!(post.balance(1).await, INITIAL_BALANCE - 5);

    let unknown = unanimity(
        &coordinator,
        &[
            "tx",
            "get",
            "u1.00000000.1.00000000000000000000000000000000",
        ],
    );
    assert_eq!(unknown.status.code(), Some(3), "{unknown:?}");
}

#[tokio::test]
async fn a_paused_participant_delays_nobody_who_does_not_need_it() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let client = coordinator.client().await;
    let [lite, post, maria] = Bank::three(&scratch).await;
    let _lite = Agent::start(&scratch, &coordinator, &lite).await;
    let _post = Agent::start(&scratch, &coordinator, &post).await;
    let mut maria_agent = Agent::start(&scratch, &coordinator, &maria).await;
    maria_agent.process.pause();
    let hanging = transfer(&client, "hangs", &maria, &post, 1, 5)
        .timeout(Duration::from_secs(1))
        .submit();
    let hanging = tokio::spawn(hanging);
    for number in 0..10 {
        let id = format!("t{number}");
        committed(transfer(&client, &id, &lite, &post, 2, 1).submit().await);
    }
    let outcome = aborted(hanging.await.expect("no panic"));
    assert_eq!(outcome.code, AbortCode::Timeout, "{outcome:?}");
    maria_agent.process.resume();
    maria.has_prepared("u1.", 0).await;
    post.has_prepared("u1.", 0).await;
    assert_eq!(maria.balance(1).await, INITIAL_BALANCE);
}
