//! The session runtime against a coordinator that says what the test tells it to.

mod coordinator;
mod enlisting;
mod steps;
mod work;

use std::{sync::Arc, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use unanimity_participant::{
    enlist::EnlistError,
    participant::{BranchId, InDoubt, Unavailable},
    session::{InvalidOptions, Operations, Session, SessionHandle, SessionOptions},
};
use unanimity_proto::v1::{self, participant_message::Kind};

use coordinator::{
    Coordinator, LONG, abort, commit, enlist_result, execute, key, list_in_doubt, prepare, prove,
    welcome,
};
use work::Work;

const LOG: &str = "0a1b2c3d";

fn options(coordinator: &str) -> SessionOptions {
    SessionOptions {
        coordinator: coordinator.into(),
        participant: "bank_a".into(),
        agent: "host:1".into(),
        resource: "postgres:7".into(),
        capacity: 32,
        one_phase: true,
        settles_steps: true,
        operations: Operations {
            policy: v1::OperationPolicy::Listed,
            listed: Vec::new(),
        },
        tls: None,
    }
}

struct Running {
    handle: SessionHandle,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

fn run(coordinator: &Coordinator, work: &Arc<Work>) -> Running {
    let session = Session::new(Arc::clone(work), options(&coordinator.uri)).expect("good options");
    let shutdown = CancellationToken::new();
    let handle = session.handle();
    Running {
        handle,
        task: tokio::spawn(session.run(shutdown.clone())),
        shutdown,
    }
}

fn voted(answer: Kind) -> v1::Vote {
    let Kind::Vote(vote) = answer else {
        panic!("not a vote: {answer:?}")
    };
    vote
}

fn completed(answer: Kind) -> v1::Completion {
    let Kind::Completion(completion) = answer else {
        panic!("not a completion: {answer:?}")
    };
    completion
}

fn enlisting(answer: Kind) -> v1::Enlist {
    let Kind::Enlist(enlist) = answer else {
        panic!("not an enlist: {answer:?}")
    };
    enlist
}

#[tokio::test]
async fn hello_comes_first_and_alone_and_tells_what_is_in_doubt() {
    let mut coordinator = Coordinator::start().await;
    let work = Work::new();
    let ours = InDoubt {
        identifier: "u1.a.1".into(),
        branch: Some(BranchId {
            transaction: "u1.a".into(),
            number: 1,
        }),
    };
    let foreign = InDoubt {
        identifier: "somebody's".into(),
        branch: None,
    };
    *work.in_doubt.lock() = Ok(vec![ours, foreign]);
    run(&coordinator, &work);

    let (_session, hello) = coordinator.welcomed(LOG, 1).await;
    assert_eq!(
        (
            hello.protocol_version,
            hello.participant.as_str(),
            hello.capacity
        ),
        (1, "bank_a", 32)
    );
    assert_eq!(
        (
            hello.agent.as_str(),
            hello.resource.as_str(),
            hello.one_phase && hello.settles_steps
        ),
        ("host:1", "postgres:7", true)
    );
    assert_eq!(hello.operation_policy(), v1::OperationPolicy::Listed);
    let keys: Vec<_> = hello
        .in_doubt
        .into_iter()
        .map(|found| (found.identifier, found.key))
        .collect();
    assert_eq!(
        keys,
        [("u1.a.1".into(), key("u1.a")), ("somebody's".into(), None)]
    );
}

#[tokio::test]
async fn every_message_of_a_batch_is_answered_even_beside_the_welcome() {
    let mut coordinator = Coordinator::start().await;
    run(&coordinator, &Work::new());
    let mut session = coordinator.dialled().await;
    session.hello().await;
    let names: Vec<String> = (0..500).map(|number| format!("u1.{number}")).collect();
    session.send(
        [welcome(LOG, 1)]
            .into_iter()
            .chain(names.iter().map(|name| prepare(name))),
    );

    let mut answered = Vec::new();
    for _ in &names {
        let vote = voted(session.next().await);
        assert_eq!(
            (vote.kind(), vote.proof.as_str()),
            (v1::VoteKind::Yes, "742")
        );
        answered.extend(vote.key.map(|key| key.transaction_id));
    }
    answered.sort();
    let mut names = names;
    names.sort();
    assert_eq!(answered, names);
}

#[tokio::test]
async fn messages_of_one_branch_wait_for_one_another_and_hold_up_no_other() {
    let mut coordinator = Coordinator::start().await;
    let (work, mut begun) = Work::gated(&["slow"]);
    run(&coordinator, &work);
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    session.send([prepare("slow"), commit("slow"), prepare("quick")]);
    session.send([abort("quick")]);

    assert_eq!(voted(session.next().await).key, key("quick"));
    assert_eq!(
        completed(session.next().await).kind(),
        v1::CompletionKind::Aborted
    );
    let slow = || {
        work.events()
            .into_iter()
            .filter(|event| event.ends_with("slow"))
            .collect::<Vec<_>>()
    };
    assert_eq!(slow(), ["prepare slow"]);
    work.let_through("slow");
    assert_eq!(voted(session.next().await).key, key("slow"));
    work.let_through("slow");
    assert_eq!(
        completed(session.next().await).kind(),
        v1::CompletionKind::Committed
    );
    assert_eq!(
        slow(),
        [
            "prepare slow",
            "end of prepare slow",
            "commit slow",
            "end of commit slow"
        ]
    );
    assert_eq!(begun.recv().await.as_deref(), Some("prepare"));
}

#[tokio::test]
async fn a_decision_repeated_while_it_waits_is_carried_out_once() {
    let mut coordinator = Coordinator::start().await;
    let (work, _) = Work::gated(&["slow"]);
    run(&coordinator, &work);
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    session.send([
        prepare("slow"),
        commit("slow"),
        commit("slow"),
        commit("slow"),
        prepare("quick"),
    ]);
    assert_eq!(voted(session.next().await).key, key("quick"));
    (0..9).for_each(|_| work.let_through("slow"));
    voted(session.next().await);
    completed(session.next().await);
    session.send([prove("slow")]);
    assert!(
        matches!(session.next().await, Kind::Proof(proof) if proof.kind() == v1::CompletionKind::Committed)
    );
    assert_eq!(
        work.events()
            .iter()
            .filter(|event| *event == "commit slow")
            .count(),
        1
    );
}

#[tokio::test]
async fn it_dials_again_after_the_stream_drops() {
    let mut coordinator = Coordinator::start().await;
    run(&coordinator, &Work::new());
    for epoch in 1..4 {
        let (mut session, _) = coordinator.welcomed(LOG, epoch).await;
        session.send([prepare("u1.a")]);
        voted(session.next().await);
    }
}

#[tokio::test]
async fn a_coordinator_older_than_one_obeyed_is_not_obeyed() {
    let mut coordinator = Coordinator::start().await;
    let work = Work::new();
    run(&coordinator, &work);
    drop(coordinator.welcomed(LOG, 5).await);

    let mut old = coordinator.dialled().await;
    old.hello().await;
    old.send([welcome(LOG, 4), abort("u1.a")]);
    assert_eq!(old.next_or_end().await, None, "it must hang up");
    drop(coordinator.welcomed("another1", 1).await);
    let (mut session, _) = coordinator.welcomed(LOG, 5).await;
    session.send([prepare("u1.b")]);
    voted(session.next().await);
    assert_eq!(work.events(), ["prepare u1.b"]);
}

#[tokio::test]
async fn a_hello_tells_how_far_each_log_was_seen_to_go() {
    let mut coordinator = Coordinator::start().await;
    run(&coordinator, &Work::new());
    let (session, hello) = coordinator.welcomed(LOG, 5).await;
    assert_eq!(hello.seen_logs, []);
    session.send_at(Vec::new(), 40);
    session.send_at(Vec::new(), 39);
    drop(session);
    let (session, hello) = coordinator.welcomed("another1", 1).await;
    let seen = |log_id: &str, epoch, sequence| v1::LogPosition {
        log_id: log_id.into(),
        epoch,
        sequence,
        instance: 7,
    };
    assert_eq!(hello.seen_logs, [seen(LOG, 5, 40)]);
    drop(session);
    let (_session, hello) = coordinator.welcomed(LOG, 6).await;
    let mut logs = hello.seen_logs;
    logs.sort_by_key(|log| log.sequence);
    assert_eq!(logs, [seen("another1", 1, 1), seen(LOG, 5, 40)]);
}

#[tokio::test]
async fn work_outlives_its_session_and_what_follows_waits_for_it() {
    let mut coordinator = Coordinator::start().await;
    let (work, mut begun) = Work::gated(&["slow"]);
    run(&coordinator, &work);
    let (session, _) = coordinator.welcomed(LOG, 1).await;
    session.send([prepare("slow")]);
    assert_eq!(begun.recv().await.as_deref(), Some("prepare"));
    drop(session);

    let (mut session, _) = coordinator.welcomed(LOG, 2).await;
    session.send([abort("slow"), prepare("quick")]);
    assert_eq!(voted(session.next().await).key, key("quick"));
    work.let_through("slow");
    work.let_through("slow");
    let completion = completed(session.next().await);
    assert_eq!(
        (completion.key.clone(), completion.kind()),
        (key("slow"), v1::CompletionKind::Aborted)
    );
    let slow: Vec<_> = work
        .events()
        .into_iter()
        .filter(|event| event.ends_with("slow"))
        .collect();
    assert_eq!(
        slow,
        [
            "prepare slow",
            "end of prepare slow",
            "abort slow",
            "end of abort slow"
        ]
    );
}

#[tokio::test]
async fn branches_open_without_a_vote_are_rolled_back_when_the_session_is_lost() {
    let mut coordinator = Coordinator::start().await;
    let (work, mut begun) = Work::gated(&[]);
    let running = run(&coordinator, &work);
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    session.send([execute("open", 1), execute("voted", 1), execute("ended", 1)]);
    session.send([prepare("voted"), abort("ended")]);
    for _ in 0..5 {
        session.next().await;
    }
    let handle = running.handle.clone();
    let enlist = tokio::spawn(async move { handle.enlist("joined", LONG).await });
    let correlation = enlisting(session.next().await).correlation;
    session.send([enlist_result(correlation, Ok("joined"))]);
    enlist.await.expect("no panic").expect("a branch");
    drop(session);

    let mut aborted: Vec<String> = Vec::new();
    while aborted.len() < 3 {
        begun.recv().await.expect("work goes on");
        aborted = work
            .events()
            .into_iter()
            .filter(|event| event.starts_with("abort"))
            .collect();
    }
    aborted.sort();
    assert_eq!(aborted, ["abort ended", "abort joined", "abort open"]);
}

#[tokio::test]
async fn an_operation_that_comes_twice_is_run_once() {
    let mut coordinator = Coordinator::start().await;
    let work = Work::new();
    run(&coordinator, &work);
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    session.send([execute("u1.a", 1), execute("u1.a", 2), execute("u1.a", 2)]);
    session.send([execute("u1.a", 1), prepare("u1.a")]);
    for sequence in [1, 2] {
        let answer = session.next().await;
        assert!(
            matches!(&answer, Kind::ExecuteResult(result) if result.sequence == sequence),
            "{answer:?}"
        );
    }
    voted(session.next().await);
    assert_eq!(
        work.events(),
        ["execute u1.a", "execute u1.a", "prepare u1.a"]
    );
}

#[tokio::test]
async fn an_operation_that_comes_after_the_vote_leaves_the_branch_prepared_when_the_session_is_lost()
 {
    let mut coordinator = Coordinator::start().await;
    let (work, mut begun) = Work::gated(&["spent"]);
    run(&coordinator, &work);
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    session.send([prepare("spent")]);
    work.let_through("spent");
    voted(session.next().await);
    session.send([execute("spent", 1)]);
    while begun.recv().await.as_deref() != Some("execute") {}
    drop(session);

    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    session.send([commit("spent")]);
    (0..3).for_each(|_| work.let_through("spent"));
    completed(session.next().await);
    assert!(!work.events().contains(&"abort spent".to_owned()));
}

#[tokio::test]
async fn a_panic_in_the_participant_gets_no_answer_and_blocks_nothing() {
    let mut coordinator = Coordinator::start().await;
    run(&coordinator, &Work::new());
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    session.send([prepare("panic"), abort("panic")]);
    assert_eq!(completed(session.next().await).key, key("panic"));
}

#[tokio::test]
async fn a_malformed_branch_is_answered_with_a_no() {
    let mut coordinator = Coordinator::start().await;
    let work = Work::new();
    run(&coordinator, &work);
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    session.send([
        commit("'; drop"),
        prepare("'; drop"),
        execute("'; drop", 9),
        prepare("u1.a"),
    ]);
    let vote = voted(session.next().await);
    assert_eq!(
        (vote.key.clone(), vote.kind()),
        (key("'; drop"), v1::VoteKind::No)
    );
    assert!(
        matches!(session.next().await, Kind::ExecuteResult(result) if result.sequence == 9 && result.reason.is_some())
    );
    voted(session.next().await);
    assert_eq!(work.events(), ["prepare u1.a"]);
}

#[tokio::test]
async fn a_result_too_large_to_send_rolls_the_branch_back() {
    let mut coordinator = Coordinator::start().await;
    let work = Work::new();
    run(&coordinator, &work);
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    session.send([execute("small", 1)]);
    assert!(
        matches!(session.next().await, Kind::ExecuteResult(result) if result.sequence == 1 && result.result.is_some())
    );
    session.send([execute("large", 2)]);
    let Kind::ExecuteResult(result) = session.next().await else {
        panic!("not a result")
    };
    assert_eq!(
        (result.result, result.reason.map(|reason| reason.code())),
        (None, Some(v1::AbortCode::InvalidOperation))
    );
    assert_eq!(
        work.events(),
        ["execute small", "execute large", "abort large"]
    );
}

#[tokio::test]
async fn an_unreachable_resource_sends_no_report_and_no_hello() {
    let mut coordinator = Coordinator::start().await;
    let work = Work::new();
    *work.in_doubt.lock() = Err(Unavailable("down".into()));
    run(&coordinator, &work);
    let early = tokio::time::timeout(Duration::from_millis(300), coordinator.dialled()).await;
    assert!(
        early.is_err(),
        "a hello without the branches in doubt would be a lie"
    );

    *work.in_doubt.lock() = Ok(Vec::new());
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    *work.in_doubt.lock() = Err(Unavailable("down".into()));
    session.send([list_in_doubt()]);
    session.send([prepare("u1.a")]);
    voted(session.next().await);
    *work.in_doubt.lock() = Ok(vec![InDoubt {
        identifier: "x".into(),
        branch: None,
    }]);
    session.send([list_in_doubt()]);
    assert!(
        matches!(session.next().await, Kind::InDoubtReport(report) if report.branches.len() == 1)
    );
}

#[tokio::test]
async fn a_refused_hello_is_said_again_after_a_long_wait() {
    let mut coordinator = Coordinator::start().await;
    coordinator.refuse_next(Status::failed_precondition(
        "another database answers to this name",
    ));
    run(&coordinator, &Work::new());
    let began = std::time::Instant::now();
    coordinator.welcomed(LOG, 1).await;
    assert_eq!(coordinator.refused(), 1);
    assert!(
        began.elapsed() >= Duration::from_secs(1),
        "it must not hammer a coordinator that refuses it"
    );
}

#[tokio::test]
async fn shutdown_lets_work_end_and_sends_its_answer() {
    let mut coordinator = Coordinator::start().await;
    let (work, mut begun) = Work::gated(&["slow"]);
    let running = run(&coordinator, &work);
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    session.send([prepare("slow")]);
    assert_eq!(begun.recv().await.as_deref(), Some("prepare"));
    running.shutdown.cancel();
    let enlist = running.handle.enlist("u1.a", LONG).await;
    assert!(
        matches!(enlist, Err(EnlistError::SessionLost | EnlistError::Stopped)),
        "{enlist:?}"
    );
    assert_eq!(
        running.handle.enlist("u1.a", LONG).await,
        Err(EnlistError::Stopped)
    );
    work.let_through("slow");
    let mut answer = session.next().await;
    if matches!(answer, Kind::Enlist(_)) {
        answer = session.next().await;
    }
    assert_eq!(voted(answer).key, key("slow"));
    assert_eq!(session.next_or_end().await, None);
    drop(session);
    tokio::time::timeout(LONG, running.task)
        .await
        .expect("it stops")
        .expect("it does not panic");
}

#[tokio::test]
async fn an_enlist_is_answered_with_a_branch_or_a_refusal() {
    let mut coordinator = Coordinator::start().await;
    let running = run(&coordinator, &Work::new());
    // Asked before there is a session: it waits for one.
    let enlist = |transaction: &'static str| {
        let handle = running.handle.clone();
        tokio::spawn(async move { handle.enlist(transaction, LONG).await })
    };
    let joined = enlist("u1.a");
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    let first = enlisting(session.next().await);
    assert_eq!(first.transaction_id, "u1.a");
    let refused = enlist("u1.b");
    let second = enlisting(session.next().await);
    assert_ne!(first.correlation, second.correlation);

    session.send([
        enlist_result(99, Ok("u1.c")),
        enlist_result(second.correlation, Err("over")),
        enlist_result(first.correlation, Ok("u1.a")),
    ]);
    assert_eq!(
        joined.await.expect("no panic"),
        Ok(BranchId {
            transaction: "u1.a".into(),
            number: 1
        })
    );
    assert_eq!(
        refused.await.expect("no panic"),
        Err(EnlistError::Refused("over".into()))
    );
}

#[tokio::test]
async fn an_enlist_fails_when_the_session_is_lost_and_is_not_sent_again() {
    let mut coordinator = Coordinator::start().await;
    let running = run(&coordinator, &Work::new());
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    let handle = running.handle.clone();
    let enlist = tokio::spawn(async move { handle.enlist("u1.a", LONG).await });
    enlisting(session.next().await);
    drop(session);
    assert_eq!(
        enlist.await.expect("no panic"),
        Err(EnlistError::SessionLost)
    );
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    session.send([prepare("u1.b")]);
    voted(session.next().await);
}

#[tokio::test]
async fn an_enlist_gives_up_in_time_and_a_late_answer_does_no_harm() {
    let mut coordinator = Coordinator::start().await;
    let running = run(&coordinator, &Work::new());
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    assert_eq!(
        running
            .handle
            .enlist("u1.a", Duration::from_millis(50))
            .await,
        Err(EnlistError::TimedOut)
    );
    let late = enlisting(session.next().await);
    session.send([enlist_result(late.correlation, Ok("u1.a")), prepare("u1.b")]);
    voted(session.next().await);
    assert_eq!(
        running.handle.enlist("U1", LONG).await,
        Err(EnlistError::Malformed("U1".into()))
    );
}

#[test]
fn options_that_can_never_work_are_refused() {
    let refused = |change: fn(&mut SessionOptions)| {
        let mut options = options("http://127.0.0.1:7420");
        change(&mut options);
        Session::new(Work::new(), options)
            .map(drop)
            .expect_err("refused")
    };
    assert_eq!(
        refused(|options| options.participant = "Bank".into()),
        InvalidOptions::Participant("Bank".into())
    );
    assert_eq!(
        refused(|options| options.capacity = 0),
        InvalidOptions::Capacity
    );
    for uri in ["127.0.0.1:7420", "https://127.0.0.1:7420", "ftp://x", ""] {
        let mut options = options("");
        options.coordinator = uri.into();
        let refusal = Session::new(Work::new(), options).map(drop);
        assert!(
            matches!(refusal, Err(InvalidOptions::Coordinator { .. })),
            "{uri:?}: {refusal:?}"
        );
    }
}
