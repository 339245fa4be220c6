//! Sagas against a coordinator that loses replies, is busy, or goes away.

use std::time::{Duration, Instant};

use tonic::{Code, Status};
use unanimity_client::{
    Client, Error, NotCompleted, Operation, Reason, SagaOutcome, SagaSubmission, Started, Step,
    StepKind, StepState, TransactionState, UnknownSaga, Value,
};
use unanimity_proto::v1::{self, step_request::Work, value::Kind};

use crate::{Fake, ID, Step as Does, said, soon};

fn saga(client: &Client) -> SagaSubmission {
    let order = Step::new("order")
        .at("shop")
        .run(Operation::named("order").with("article", 7))
        .compensate(Operation::named("cancel").with("id", Value::reference("order.rows.0.id")));
    let pay = Step::pivot("pay")
        .branch("bank1", [Operation::named("debit")])
        .branch("bank2", [Operation::named("credit")]);
    let ship = Step::retriable("ship")
        .at("store")
        .run(Operation::named("ship"));
    let note = Step::retriable("note")
        .at("mail")
        .run(Operation::named("note"))
        .after(["ship"])
        .max_attempts(7);
    client
        .saga()
        .step(order)
        .step(pay)
        .step(ship)
        .step(note)
        .lock("stock:7")
}

fn unknown(outcome: Result<SagaOutcome, Error>) -> UnknownSaga {
    match outcome {
        Ok(SagaOutcome::Unknown(unknown)) => unknown,
        other => panic!("not unknown: {other:?}"),
    }
}

fn lost() -> Does {
    Does::Fail(Status::unavailable("lost"))
}

#[tokio::test]
async fn a_saga_is_sent_as_it_was_built() {
    let fake = Fake::default();
    let client = fake.client().await;
    let receipt = saga(&client)
        .lock_timeout(Duration::from_secs(2))
        .timeout(Duration::from_secs(90))
        .submit()
        .await
        .expect("taken")
        .completed()
        .expect("completed");
    assert_eq!(receipt.transaction_id, ID);
    let sent = fake.saga();
    assert_eq!(sent.answer_time(), v1::AnswerTime::Completed);
    assert_eq!(sent.locks, ["stock:7"]);
    assert_eq!(sent.lock_timeout.expect("set").seconds, 2);
    assert_eq!(sent.timeout.expect("set").seconds, 90);
    let kinds: Vec<_> = sent.steps.iter().map(|step| step.kind()).collect();
    assert_eq!(
        kinds,
        [
            StepKind::Compensatable,
            StepKind::Pivot,
            StepKind::Retriable,
            StepKind::Retriable
        ]
    );
    let Some(Work::Action(order)) = &sent.steps[0].work else {
        panic!("no action")
    };
    let undo = order.compensation.as_ref().expect("a compensation");
    assert_eq!(
        undo.parameters["id"].kind,
        Some(Kind::Reference("order.rows.0.id".into()))
    );
    assert!(matches!(&sent.steps[1].work, Some(Work::Group(group)) if group.branches.len() == 2));
    assert_eq!(sent.steps[3].after, ["ship"]);
    assert_eq!(sent.steps[3].retry.expect("a policy").max_attempts, 7);
}

#[tokio::test]
async fn each_end_is_its_outcome() {
    use TransactionState::{Aborted, Compensated, Heuristic};
    let fake = Fake::default().with("saga", [Compensated, Aborted, Heuristic].map(Does::Answer));
    let client = fake.client().await;
    let run = async || saga(&client).submit().await.expect("taken").completed();
    match run().await {
        Err(NotCompleted::Compensated(compensated)) => {
            assert_eq!(compensated.reason.participant.as_deref(), Some("bank1"));
            assert!(!compensated.reason.is_transient());
            assert_eq!(compensated.to_string(), "bank1: no funds");
            let steps = compensated.transaction.saga.expect("a saga").steps;
            assert_eq!(
                (steps[0].state, steps[0].stuck),
                (StepState::Retrying, true)
            );
            assert!(steps[0].next_attempt_time.is_some());
        }
        other => panic!("not compensated: {other:?}"),
    }
    assert!(matches!(run().await, Err(NotCompleted::Aborted(_))));
    assert!(matches!(run().await, Err(NotCompleted::Heuristic(_))));
}

#[tokio::test]
async fn a_lost_reply_is_asked_for_again_with_the_same_request_id_and_its_age() {
    let fake = Fake::default().with(
        "saga",
        [
            Does::Hang,
            said(Code::Unavailable, "STOPPING", &[("transactionId", ID)]),
            Does::Answer(TransactionState::Compensating),
        ],
    );
    let outcome = saga(&fake.client().await).submit().await;
    assert!(
        matches!(outcome, Ok(SagaOutcome::Completed(_))),
        "{outcome:?}"
    );
    let ids = fake.seen("saga");
    assert_eq!(ids.len(), 4);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let ages = fake.ages();
    assert!(ages[0].is_none() && ages[1..].iter().all(Option::is_some));
}

#[tokio::test]
async fn a_refusal_after_a_lost_reply_proves_nothing() {
    let fake = Fake::default().with(
        "saga",
        [lost(), said(Code::NotFound, "PARTICIPANT_UNKNOWN", &[])],
    );
    let unknown = unknown(saga(&fake.client().await).submit().await);
    assert!(matches!(
        unknown.settle(soon()).await,
        SagaOutcome::Completed(_)
    ));
    let ids = fake.seen("saga");
    assert!(
        ids.iter()
            .all(|id| Some(id.as_str()) == unknown.request_id()),
        "{ids:?}"
    );
}

#[tokio::test]
async fn what_was_not_taken_is_an_error() {
    let wrong = said(
        Code::InvalidArgument,
        "INVALID_REQUEST",
        &[("field", "steps[1].after[0]")],
    );
    let busy = (0..100).map(|_| said(Code::Unavailable, "DRAINING", &[]));
    let fake = Fake::default().with("saga", std::iter::once(wrong).chain(busy));
    let client = fake.client().await;
    match saga(&client).submit().await {
        Err(Error::Invalid { field, .. }) => {
            assert_eq!(field.as_deref(), Some("steps[1].after[0]"))
        }
        other => panic!("not invalid: {other:?}"),
    }
    let away = saga(&client).retry_for(Duration::from_millis(50)).start();
    assert!(matches!(
        away.await,
        Err(Error::Unavailable {
            reason: Reason::Draining,
            ..
        })
    ));
    let before = fake.seen("saga").len();
    let half = client
        .saga()
        .step(Step::new("order").at("shop"))
        .submit()
        .await;
    match half {
        Err(Error::Invalid { field, message, .. }) => {
            assert_eq!(field.as_deref(), Some("steps[0]"));
            assert!(message.contains("order"), "{message}");
        }
        other => panic!("not invalid: {other:?}"),
    }
    let long = saga(&client).request_id("x".repeat(65)).submit().await;
    assert!(matches!(long, Err(Error::Invalid { .. })));
    assert_eq!(fake.seen("saga").len(), before, "refused here");
}

#[tokio::test]
async fn a_saga_that_is_started_is_waited_for_by_looking() {
    use TransactionState::{Compensated, Compensating, Running};
    let fake = Fake::default()
        .with("saga", [Does::Answer(Running)])
        .with(
            "get",
            [Running, Compensating, Compensated].map(Does::Answer),
        )
        .with("abort", [Does::Answer(Compensating)]);
    let client = fake.client().await;
    let Ok(Started::Running(running)) = saga(&client).start().await else {
        panic!("not running")
    };
    assert_eq!(fake.saga().answer_time(), v1::AnswerTime::Accepted);
    assert_eq!(running.id(), ID);
    assert_eq!(running.look().await.expect("known").state, Running);
    let turned = running.cancel("changed my mind").await.expect("taken");
    assert_eq!(turned.state, Compensating);
    assert!(matches!(
        running.wait(soon()).await,
        SagaOutcome::Compensated(_)
    ));
    assert_eq!(fake.seen("get").len(), 3);
    match client.running_saga(ID).wait(Instant::now()).await {
        SagaOutcome::Unknown(unknown) => assert_eq!(unknown.transaction_id(), Some(ID)),
        SagaOutcome::Completed(_) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_start_without_an_answer_is_settled_by_its_end() {
    let fake = Fake::default().with("saga", [lost(), Does::Answer(TransactionState::Running)]);
    let client = fake.client().await;
    let started = saga(&client).retry_for(Duration::ZERO).start().await;
    let Ok(Started::Ended(SagaOutcome::Unknown(unknown))) = started else {
        panic!("not unknown: {started:?}")
    };
    assert!(unknown.to_string().contains("lost"), "{unknown}");
    assert!(matches!(
        unknown.settle(soon()).await,
        SagaOutcome::Completed(_)
    ));
    assert_eq!(fake.saga().answer_time(), v1::AnswerTime::Completed);
    let again = saga(&client).start().await;
    assert!(matches!(
        again,
        Ok(Started::Ended(SagaOutcome::Completed(_)))
    ));
}

#[tokio::test]
async fn futures_can_be_spawned() {
    let client = Fake::default().client().await;
    let spawned = tokio::spawn(async move {
        let outcome = saga(&client).submit().await;
        let waited = client.running_saga(ID).wait(soon()).await;
        (outcome, waited)
    });
    let (outcome, waited) = spawned.await.expect("no panic");
    assert!(matches!(outcome, Ok(SagaOutcome::Completed(_))));
    assert!(matches!(waited, SagaOutcome::Completed(_)));
}
