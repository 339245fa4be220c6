//! The service that `docs/http.md` shows, with the configuration that `--help` shows.

use std::{fs, time::Duration};

use unanimity_participant::{
    http::{EXAMPLE, HttpAgent, HttpArguments, HttpConfig},
    participant::{Compensated, Participant, Settled, Step, StepOutcome, Vote},
};
use unanimity_proto::v1::{AbortCode, Operation};
use unanimity_tests::payments::Payments;

use super::{LONG, branch, charge, prepare};

fn step(number: u32, operation: Operation) -> Step {
    Step {
        branch: branch(number),
        name: "pay".into(),
        operation,
        keep_result: true,
        fences: Vec::new(),
        timeout: LONG,
        attempt: 1,
        age: Duration::ZERO,
        traceparent: String::new(),
    }
}

fn undone(number: u32) -> Compensated {
    Compensated {
        branch: branch(number),
        unsettled: true,
        result: String::new(),
    }
}

#[tokio::test]
async fn the_service_of_the_page_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let mut payments = Payments::start(directory.path()).await;
    let file = directory.path().join("agent.toml");
    fs::write(&file, EXAMPLE).unwrap();
    let config = HttpConfig::load(HttpArguments {
        config: Some(file),
        service: Some(format!("http://{}", payments.address)),
        journal: Some(directory.path().join("journal")),
        ..HttpArguments::default()
    });
    let agent = HttpAgent::open(&config.unwrap()).await.unwrap();
    for number in [1, 2] {
        let vote = agent.prepare(prepare(number, [charge()])).await;
        assert!(matches!(vote, Vote::Yes { .. }), "{vote:?}");
    }
    assert_eq!(payments.balance().await, 500);
    payments.kill();
    assert!(matches!(
        agent.commit(&branch(1), "").await,
        Settled::Retry(_)
    ));
    payments.restart();
    assert_eq!(agent.commit(&branch(1), "").await, Settled::Committed);
    assert_eq!(agent.abort(&branch(2), "").await, Settled::Aborted);
    assert_eq!(payments.balance().await, 750);

    for _ in 0..2 {
        let outcome = agent.execute(step(3, charge())).await;
        let result = r#"{"charged": 250}"#.to_owned();
        assert_eq!(outcome, StepOutcome::Done { result });
        assert_eq!(payments.balance().await, 500);
    }
    let settled = agent.settle(&branch(3), Duration::ZERO).await;
    let result = r#"{"charged": 250}"#.to_owned();
    assert_eq!(settled, StepOutcome::Done { result });
    for _ in 0..2 {
        let outcome = agent.compensate(step(13, charge()), undone(3)).await;
        assert!(matches!(outcome, StepOutcome::Done { .. }), "{outcome:?}");
        assert_eq!(payments.balance().await, 750);
    }
    let outcome = agent.compensate(step(14, charge()), undone(4)).await;
    assert!(matches!(outcome, StepOutcome::Done { .. }), "{outcome:?}");
    assert_eq!(payments.balance().await, 750);

    for number in 5..8 {
        agent.execute(step(number, charge())).await;
    }
    assert_eq!(payments.balance().await, 0);
    match agent.execute(step(8, charge())).await {
        StepOutcome::Refused(refusal) => assert_eq!(
            (refusal.code, refusal.message.as_str()),
            (AbortCode::Refused, "not enough money")
        ),
        other => panic!("{other:?}"),
    }
    let settled = agent.settle(&branch(8), Duration::ZERO).await;
    assert_eq!(settled, StepOutcome::Never);
}
