//! A saga's steps, as a session takes and answers them.

use unanimity_proto::v1::{self, StepResultKind, participant_message::Kind};

use crate::{
    LOG,
    coordinator::{Coordinator, Session, compensate, key, prepare, run_step, settle_step},
    run, voted,
    work::Work,
};

async fn answered(session: &mut Session) -> v1::StepResult {
    let answer = session.next().await;
    let Kind::StepResult(result) = answer else {
        panic!("not the result of a step: {answer:?}")
    };
    result
}

fn message(result: &v1::StepResult) -> &str {
    result
        .reason
        .as_ref()
        .map(|reason| reason.message.as_str())
        .unwrap_or_default()
}

#[tokio::test]
async fn a_step_is_answered_with_its_result_and_its_attempt() {
    let mut coordinator = Coordinator::start().await;
    let work = Work::new();
    run(&coordinator, &work);
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    session.send([run_step("u1.a", 3)]);
    let done = answered(&mut session).await;
    assert_eq!(
        (done.kind(), done.result.as_str(), done.attempt),
        (StepResultKind::Done, "{\"id\": 7}", 3)
    );
    assert_eq!((done.key, done.reason), (key("u1.a"), None));

    session.send([run_step("refused", 1)]);
    let refused = answered(&mut session).await;
    assert_eq!(
        (refused.kind(), message(&refused)),
        (StepResultKind::Refused, "sold out")
    );
    session.send([compensate("u1.a", 4)]);
    let undone = answered(&mut session).await;
    assert_eq!((undone.kind(), undone.attempt), (StepResultKind::Done, 4));
    assert_eq!(undone.key.map(|key| key.branch), Some(2));

    session.send([settle_step("u1.b", 5)]);
    let settled = answered(&mut session).await;
    assert_eq!(
        (settled.kind(), settled.attempt, settled.reason),
        (StepResultKind::Never, 5, None)
    );
    assert_eq!(
        work.events(),
        [
            "step u1.a",
            "step refused",
            "compensation 2 of 1 in u1.a",
            "settle u1.b"
        ]
    );
}

#[tokio::test]
async fn a_result_that_can_not_be_sent_is_never_sent_and_never_denied() {
    let mut coordinator = Coordinator::start().await;
    run(&coordinator, &Work::new());
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    for (transaction, problem) in [
        ("large", "65538 bytes, more than the 65536"),
        ("crooked", "no JSON"),
    ] {
        session.send([run_step(transaction, 1)]);
        let answer = answered(&mut session).await;
        assert_eq!(
            (answer.kind(), answer.result.as_str()),
            (StepResultKind::Unknown, "")
        );
        assert!(message(&answer).contains(problem), "{:?}", message(&answer));
        assert!(
            message(&answer).contains("it took effect"),
            "{:?}",
            message(&answer)
        );
    }
}

#[tokio::test]
async fn a_step_that_comes_again_while_the_first_works_is_done_after_it_and_once() {
    let mut coordinator = Coordinator::start().await;
    let (work, mut begun) = Work::gated(&["slow"]);
    run(&coordinator, &work);
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    session.send([run_step("slow", 1)]);
    assert_eq!(begun.recv().await.as_deref(), Some("step"));
    session.send((2..100).map(|attempt| run_step("slow", attempt)));
    session.send([
        settle_step("slow", 100),
        settle_step("slow", 101),
        prepare("quick"),
    ]);
    assert_eq!(voted(session.next().await).key, key("quick"));
    (0..9).for_each(|_| work.let_through("slow"));
    let mut attempts = Vec::new();
    for _ in 0..3 {
        attempts.push(answered(&mut session).await.attempt);
    }
    assert_eq!(attempts, [1, 99, 101]);
    let slow: Vec<_> = work
        .events()
        .into_iter()
        .filter(|event| event.ends_with("slow"))
        .collect();
    assert_eq!(
        slow,
        [
            "step slow",
            "end of step slow",
            "step slow",
            "end of step slow",
            "settle slow",
            "end of settle slow"
        ]
    );
}

#[tokio::test]
async fn a_step_outlives_its_session_and_the_same_one_waits_for_it() {
    let mut coordinator = Coordinator::start().await;
    let (work, mut begun) = Work::gated(&["slow"]);
    run(&coordinator, &work);
    let (session, _) = coordinator.welcomed(LOG, 1).await;
    session.send([run_step("slow", 1)]);
    assert_eq!(begun.recv().await.as_deref(), Some("step"));
    drop(session);

    let (mut session, _) = coordinator.welcomed(LOG, 2).await;
    session.send([run_step("slow", 2), prepare("quick")]);
    assert_eq!(voted(session.next().await).key, key("quick"));
    work.let_through("slow");
    work.let_through("slow");
    assert_eq!(answered(&mut session).await.attempt, 2);
    let slow: Vec<_> = work
        .events()
        .into_iter()
        .filter(|event| event.ends_with("slow"))
        .collect();
    assert_eq!(
        slow,
        [
            "step slow",
            "end of step slow",
            "step slow",
            "end of step slow"
        ]
    );
}

#[tokio::test]
async fn a_panic_in_a_step_gets_no_answer_and_a_malformed_one_is_refused() {
    let mut coordinator = Coordinator::start().await;
    run(&coordinator, &Work::new());
    let (mut session, _) = coordinator.welcomed(LOG, 1).await;
    session.send([run_step("panic", 1), settle_step("panic", 2)]);
    assert_eq!(answered(&mut session).await.attempt, 2);
    session.send([settle_step("'; drop", 1), run_step("'; drop", 9)]);
    let refused = answered(&mut session).await;
    assert_eq!(
        (refused.kind(), refused.attempt, refused.key),
        (StepResultKind::Refused, 9, key("'; drop"))
    );
}
