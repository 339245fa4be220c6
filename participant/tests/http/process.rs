//! The agent as a process, which is killed, and told nonsense.

use std::{
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

use tempfile::TempDir;
use tokio::sync::Notify;
use unanimity_proto::v1::{
    self, coordinator_message::Kind as Down, participant_message::Kind as Up,
};
use unanimity_tests::{
    process::Process,
    service::{Reply, Service},
};

use super::{
    branch, charge, configure,
    coordinator::{Coordinator, Session, list_in_doubt},
    operation,
};

const LOG: &str = "0a1b2c3d";

/// A coordinator by hand, a service, and the agent's command line between them.
struct Stage {
    coordinator: Coordinator,
    service: Service,
    directory: TempDir,
}

impl Stage {
    async fn set() -> Self {
        Self {
            coordinator: Coordinator::start().await,
            service: Service::start().await,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn start(&self) -> Process {
        let more = format!(
            "coordinator = \"{}\"\nservice = \"http://{}\"",
            self.coordinator.uri, self.service.address
        );
        let file = configure(self.directory.path(), &more);
        let mut command = command(&["--config", file.to_str().unwrap()]);
        Process::start(&mut command, &self.directory.path().join("log"))
    }

    async fn session(&mut self) -> (Session, v1::Hello) {
        self.coordinator.welcomed(LOG, 1).await
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unanimity-participant"));
    command.arg("http").args(arguments).env_clear();
    command
}

fn send(session: &Session, kind: Down) {
    session.send([v1::CoordinatorMessage { kind: Some(kind) }]);
}

fn key(number: u32) -> Option<v1::BranchKey> {
    Some(v1::BranchKey {
        transaction_id: branch(number).transaction,
        branch: number,
    })
}

fn prepare(number: u32) -> Down {
    Down::Prepare(v1::Prepare {
        key: key(number),
        operations: vec![charge(), operation("stamp")],
        ..v1::Prepare::default()
    })
}

fn abort(number: u32) -> Down {
    Down::Abort(v1::Abort {
        key: key(number),
        proof: String::new(),
    })
}

fn completion(answer: Up) -> v1::CompletionKind {
    match answer {
        Up::Completion(completion) => completion.kind(),
        other => panic!("{other:?}"),
    }
}

fn vote(answer: Up) -> v1::VoteKind {
    match answer {
        Up::Vote(vote) => vote.kind(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_branch_whose_agent_is_killed_before_its_vote_is_found_in_doubt_and_cancelled_once() {
    let mut stage = Stage::set().await;
    stage.service.reply("/stamp/try", [Reply::Hang]);
    let mut agent = stage.start();
    let (session, hello) = stage.session().await;
    assert!(hello.in_doubt.is_empty());
    send(&session, prepare(1));
    stage.service.asked("/stamp/try").await;
    agent.kill();

    let _agent = stage.start();
    let (mut session, found) = stage.session().await;
    assert_eq!(found.resource, hello.resource);
    let [in_doubt] = &found.in_doubt[..] else {
        panic!("{found:?}")
    };
    assert_eq!(in_doubt.key, key(1));
    assert_eq!(in_doubt.identifier, branch(1).to_string());
    send(&session, abort(1));
    assert_eq!(
        completion(session.next().await),
        v1::CompletionKind::Aborted
    );
    send(&session, abort(1));
    assert_eq!(
        completion(session.next().await),
        v1::CompletionKind::Aborted
    );
    send(&session, prepare(1));
    assert_eq!(vote(session.next().await), v1::VoteKind::No);
    session.send([list_in_doubt()]);
    match session.next().await {
        Up::InDoubtReport(report) => assert!(report.branches.is_empty(), "{report:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        stage.service.paths(),
        ["/try", "/stamp/try", "/stamp/cancel", "/cancel"]
    );
}

#[tokio::test]
async fn a_branch_whose_agent_is_killed_in_its_confirm_is_confirmed_after_the_restart() {
    let mut stage = Stage::set().await;
    stage.service.reply("/confirm", [Reply::Hang]);
    let mut agent = stage.start();
    let (mut session, _) = stage.session().await;
    send(&session, prepare(1));
    assert_eq!(vote(session.next().await), v1::VoteKind::Yes);
    let commit = || {
        Down::Commit(v1::Commit {
            key: key(1),
            proof: String::new(),
        })
    };
    send(&session, commit());
    stage.service.asked("/confirm").await;
    agent.kill();

    stage.service.reply("/confirm", [Reply::status(204)]);
    let _agent = stage.start();
    let (mut session, hello) = stage.session().await;
    assert_eq!(hello.in_doubt.len(), 1);
    send(&session, commit());
    assert_eq!(
        completion(session.next().await),
        v1::CompletionKind::Committed
    );
    assert_eq!(
        stage.service.paths(),
        [
            "/try",
            "/stamp/try",
            "/confirm",
            "/confirm",
            "/stamp/confirm"
        ]
    );
}

#[tokio::test]
async fn a_killed_agent_knows_which_steps_it_sent() {
    let mut stage = Stage::set().await;
    stage.service.reply("/execute", [Reply::Hang]);
    let mut agent = stage.start();
    let (session, hello) = stage.session().await;
    assert!(hello.settles_steps && !hello.one_phase);
    assert_eq!(hello.operation_policy(), v1::OperationPolicy::Listed);
    let charge_listed = hello.operations.iter().find(|it| it.name == "charge");
    assert_eq!(charge_listed.unwrap().parameters.len(), 2);
    assert_eq!((hello.operations.len(), hello.capacity), (3, 64));
    let run = |attempt| {
        Down::RunStep(v1::RunStep {
            key: key(1),
            step: "pay".into(),
            operation: Some(charge()),
            attempt,
            ..v1::RunStep::default()
        })
    };
    send(&session, run(1));
    stage.service.asked("/execute").await;
    agent.kill();

    let _agent = stage.start();
    let (mut session, hello) = stage.session().await;
    assert!(hello.in_doubt.is_empty(), "a step is not prepared");
    stage.service.reply("/execute", [Reply::status(429)]);
    send(&session, run(2));
    let kind = |answer| match answer {
        Up::StepResult(result) => result.kind(),
        other => panic!("{other:?}"),
    };
    assert_eq!(kind(session.next().await), v1::StepResultKind::Unknown);
    let settle = |number| {
        Down::SettleStep(v1::SettleStep {
            key: key(number),
            age: Some(prost_types::Duration::default()),
            attempt: 1,
        })
    };
    let never = Reply::json(200, r#"{"outcome":"never"}"#);
    stage.service.reply("/settle", [never]);
    for number in [1, 2] {
        send(&session, settle(number));
        assert_eq!(kind(session.next().await), v1::StepResultKind::Never);
    }
    assert_eq!(stage.service.paths(), ["/execute", "/execute", "/settle"]);
}

#[tokio::test]
async fn an_agent_that_is_told_to_stop_ends_what_it_has_begun() {
    let mut stage = Stage::set().await;
    let answer = Arc::new(Notify::new());
    let when = Reply::When(Arc::clone(&answer), Reply::status(204).into());
    stage.service.reply("/try", [when]);
    let mut agent = stage.start();
    let (mut session, _) = stage.session().await;
    send(&session, prepare(1));
    stage.service.asked("/try").await;
    agent.terminate();
    answer.notify_one();
    assert_eq!(vote(session.next().await), v1::VoteKind::Yes);
    drop(session);
    assert_eq!(agent.exit_code(), 0);
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn refusal(arguments: &[&str]) -> String {
    let output = run(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    text
}

fn written(directory: &Path, text: &str) -> String {
    let file = directory.join("agent.toml");
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_second_agent_on_one_journal_is_refused_with_a_remedy() {
    let mut stage = Stage::set().await;
    let _agent = stage.start();
    stage.session().await;
    let mut second = stage.start();
    let code = tokio::task::spawn_blocking(move || (second.exit_code(), second.log()));
    let (code, log) = code.await.unwrap();
    assert_eq!(code, 1, "{log}");
    assert!(
        log.contains("error: another agent uses the journal") && log.contains("to cure it: "),
        "{log}"
    );
}

#[test]
fn a_damaged_journal_is_refused_with_a_remedy() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("journal"), [7; 4096]).unwrap();
    let file = configure(directory.path(), "service = \"http://127.0.0.1:1\"");
    let refused = refusal(&["--config", file.to_str().unwrap()]);
    assert!(
        refused.contains("not a database") && refused.contains("in-doubt list"),
        "{refused}"
    );
}

#[test]
fn a_wrong_configuration_ends_the_agent_by_its_key() {
    let directory = tempfile::tempdir().unwrap();
    let good = "name = 'a'\nservice = 'http://127.0.0.1:1'\njournal = 'j'\n";
    for (text, expected) in [
        (
            "nme = 'a'\n".to_owned(),
            "agent.toml, line 1: unknown field `nme`",
        ),
        (
            format!("{good}[operation.a]\nexecute = 'hunter2'\n"),
            "operation a: execute: ",
        ),
        (
            format!("{good}[operation.a]\nconfirm = '/a'\n"),
            "prepare, confirm and cancel go together",
        ),
        (good.to_owned(), "[operation.NAME]"),
        ("name = 'a'\n".to_owned(), "--service"),
    ] {
        let refused = refusal(&["--config", &written(directory.path(), &text)]);
        assert!(
            refused.starts_with("error: ") && refused.contains(expected),
            "{refused}"
        );
        assert!(!refused.contains("hunter2"), "{refused}");
    }
}

#[test]
fn the_help_shows_a_configuration() {
    let output = run(&["--help"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success()
            && text.contains("[operation.charge]")
            && text.contains("docs/http.md")
            && text.contains("UNANIMITY_JOURNAL"),
        "{text}"
    );
}
