//! Branches of two-phase commits: nothing is kept that was not confirmed, nothing is forgotten that was tried.

use std::{fs, sync::Arc, time::Duration};

use serde_json::json;
use tokio::sync::Notify;
use unanimity_participant::{
    http::{HttpAgent, HttpArguments, HttpConfig},
    participant::{Participant, Prepare, Settled, Vote},
};
use unanimity_proto::v1::AbortCode;
use unanimity_tests::{port, service::Reply};

use super::{Pair, agent, branch, charge, operation, prepare};

const YES: Vote = Vote::Yes {
    proof: String::new(),
};

fn no(vote: Vote) -> (AbortCode, String) {
    match vote {
        Vote::No(refusal) => (refusal.code, refusal.message),
        other => panic!("{other:?}"),
    }
}

fn retry(settled: Settled) -> String {
    match settled {
        Settled::Retry(problem) => problem,
        other => panic!("{other:?}"),
    }
}

async fn in_doubt(pair: &Pair) -> Vec<String> {
    let found = pair.agent.in_doubt().await.unwrap();
    assert!(found.iter().all(|it| it.branch.is_some()));
    found.into_iter().map(|it| it.identifier).collect()
}

#[tokio::test]
async fn a_branch_is_tried_then_confirmed_and_is_over() {
    let pair = Pair::start().await;
    let both = prepare(1, [charge(), operation("stamp")]);
    assert_eq!(pair.agent.prepare(both.clone()).await, YES);
    assert_eq!(pair.agent.prepare(both.clone()).await, YES, "a repeat");
    assert_eq!(in_doubt(&pair).await, [branch(1).to_string()]);
    for _ in 0..2 {
        assert_eq!(pair.agent.commit(&branch(1), "").await, Settled::Committed);
    }
    assert_eq!(
        pair.agent.abort(&branch(1), "").await,
        Settled::Committed,
        "the truth, even if an abort asks for it"
    );
    assert_eq!(no(pair.agent.prepare(both).await).0, AbortCode::BranchLost);
    assert!(in_doubt(&pair).await.is_empty());
    assert_eq!(
        pair.service.paths(),
        ["/try", "/stamp/try", "/confirm", "/stamp/confirm"]
    );

    let transaction = branch(1).transaction;
    let got = pair.service.got();
    assert_eq!(
        got[0].body,
        json!({"transaction": transaction, "branch": 1, "parameters": {"card": "4711", "cents": 250}})
    );
    assert_eq!(
        got[2].body,
        json!({"transaction": transaction, "branch": 1})
    );
    let keys: Vec<_> = got
        .iter()
        .map(|got| got.key().replace(&transaction, "T"))
        .collect();
    assert_eq!(keys, ["T.1", "T.1.2", "T.1", "T.1.2"]);
}

#[tokio::test]
async fn a_branch_is_tried_then_cancelled_from_its_end() {
    let pair = Pair::start().await;
    let both = prepare(1, [charge(), operation("stamp")]);
    assert_eq!(pair.agent.prepare(both.clone()).await, YES);
    for _ in 0..2 {
        assert_eq!(pair.agent.abort(&branch(1), "").await, Settled::Aborted);
    }
    assert_eq!(pair.agent.commit(&branch(1), "").await, Settled::Aborted);
    assert_eq!(no(pair.agent.prepare(both).await).0, AbortCode::BranchLost);
    assert_eq!(
        pair.service.paths(),
        ["/try", "/stamp/try", "/stamp/cancel", "/cancel"]
    );
}

#[tokio::test]
async fn a_refusal_cancels_what_came_before_and_nothing_else() {
    let pair = Pair::start().await;
    let message = r#"{"message":"no stamps left"}"#;
    pair.service
        .reply("/stamp/try", [Reply::json(422, message)]);
    let vote = pair
        .agent
        .prepare(prepare(1, [charge(), operation("stamp")]))
        .await;
    assert_eq!(no(vote), (AbortCode::Refused, "no stamps left".into()));
    assert_eq!(pair.service.paths(), ["/try", "/stamp/try", "/cancel"]);

    let vote = pair.agent.prepare(prepare(2, [operation("stamp")])).await;
    assert_eq!(no(vote).0, AbortCode::Refused);
    assert_eq!(pair.service.paths().len(), 4, "there was nothing to cancel");
    assert!(in_doubt(&pair).await.is_empty());
}

#[tokio::test]
async fn a_try_of_unknown_effect_is_cancelled_too() {
    let pair = Pair::start().await;
    for (number, (reply, code, cancelled)) in (1..).zip([
        (Reply::close(), AbortCode::ParticipantFailure, true),
        (Reply::half(200), AbortCode::ParticipantFailure, true),
        (
            Reply::html(200, "Log in"),
            AbortCode::ParticipantFailure,
            true,
        ),
        (Reply::status(500), AbortCode::ParticipantFailure, true),
        (Reply::status(302), AbortCode::ParticipantFailure, true),
        (Reply::Hang, AbortCode::Timeout, true),
        (Reply::json(202, "{}"), AbortCode::Timeout, true),
        (Reply::status(429), AbortCode::ParticipantUnavailable, false),
        (Reply::status(404), AbortCode::InvalidOperation, false),
    ]) {
        let shown = format!("{reply:?}");
        pair.service.reply("/try", [reply]);
        let before = pair.service.paths().len();
        let short = Prepare {
            timeout: Duration::from_millis(400),
            ..prepare(number, [charge()])
        };
        assert_eq!(no(pair.agent.prepare(short).await).0, code, "{shown}");
        let cancels = pair.service.paths()[before..]
            .iter()
            .filter(|path| *path == "/cancel")
            .count();
        assert_eq!(cancels, usize::from(cancelled), "{shown}");
    }
    assert!(in_doubt(&pair).await.is_empty());
}

#[tokio::test]
async fn a_service_that_is_away_is_a_no_and_leaves_nothing_in_doubt() {
    let directory = tempfile::tempdir().unwrap();
    let agent = agent(
        &format!("http://127.0.0.1:{}", port::free()),
        directory.path(),
    )
    .await;
    let (code, message) = no(agent.prepare(prepare(1, [charge()])).await);
    assert_eq!(code, AbortCode::ParticipantUnavailable);
    assert!(message.contains("POST /try can't be reached"), "{message}");
    assert!(agent.in_doubt().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_try_at_work_is_asked_for_until_it_is_done() {
    let pair = Pair::start().await;
    let working = Reply::json(202, "{}");
    pair.service
        .reply("/try", [working.clone(), working, Reply::status(204)]);
    assert_eq!(pair.agent.prepare(prepare(1, [charge()])).await, YES);
    let keys: Vec<_> = pair
        .service
        .got()
        .iter()
        .map(|got| got.key().to_owned())
        .collect();
    assert_eq!(keys, vec![branch(1).to_string(); 3]);

    // After it was at work, only the service's own no proves that it holds nothing.
    let working = Reply::json(202, "{}");
    pair.service
        .reply("/try", [working.clone(), Reply::status(429)]);
    let vote = pair.agent.prepare(prepare(2, [charge()])).await;
    assert_eq!(no(vote).0, AbortCode::ParticipantUnavailable);
    pair.service.reply("/try", [working, Reply::status(422)]);
    let vote = pair.agent.prepare(prepare(3, [charge()])).await;
    assert_eq!(no(vote).0, AbortCode::Refused);
    let cancelled: Vec<_> = pair
        .service
        .got()
        .into_iter()
        .filter(|got| got.path == "/cancel")
        .map(|got| got.key().to_owned())
        .collect();
    assert_eq!(cancelled, [branch(2).to_string()]);
}

#[tokio::test]
async fn a_cancel_that_fails_leaves_the_branch_in_doubt_until_it_is_done() {
    let mut pair = Pair::start().await;
    pair.service.reply("/try", [Reply::close()]);
    for reply in [
        Reply::status(500),
        Reply::status(404),
        Reply::json(422, r#"{"message":"I won't"}"#),
        Reply::json(202, "{}"),
        Reply::html(200, "Log in"),
        Reply::status(302),
        Reply::close(),
    ] {
        let shown = format!("{reply:?}");
        pair.service.reply("/cancel", [reply]);
        no(pair.agent.prepare(prepare(1, [charge()])).await);
        assert_eq!(in_doubt(&pair).await, [branch(1).to_string()], "{shown}");
        retry(pair.agent.abort(&branch(1), "").await);
    }
    pair = pair.restart().await;
    assert_eq!(in_doubt(&pair).await, [branch(1).to_string()]);
    assert!(retry(pair.agent.abort(&branch(1), "").await).contains("gives no answer"));
    assert!(
        retry(pair.agent.commit(&branch(1), "").await).contains("/cancel"),
        "a branch that voted no is not confirmed"
    );
    pair.service.reply("/cancel", [Reply::status(204)]);
    assert_eq!(pair.agent.abort(&branch(1), "").await, Settled::Aborted);
    assert!(in_doubt(&pair).await.is_empty());
    assert!(!pair.service.paths().contains(&"/confirm".to_owned()));
}

#[tokio::test]
async fn nothing_but_done_ends_a_confirm() {
    let pair = Pair::start().await;
    assert_eq!(pair.agent.prepare(prepare(1, [charge()])).await, YES);
    for (reply, text) in [
        (Reply::status(500), "500"),
        (Reply::status(404), "POST /confirm answers 404"),
        (
            Reply::json(422, r#"{"message":"I won't"}"#),
            "POST /confirm refuses: I won't",
        ),
        (Reply::json(202, "{}"), "202"),
        (Reply::status(429), "429"),
        (Reply::html(200, "Log in"), "text/html"),
        (
            Reply::status(302).with("Location", "/login"),
            "not followed",
        ),
        (Reply::half(200), "breaks off"),
        (Reply::close(), "gives no answer"),
    ] {
        pair.service.reply("/confirm", [reply]);
        let problem = retry(pair.agent.commit(&branch(1), "").await);
        assert!(problem.contains(text), "{text}: {problem}");
    }
    pair.service.reply("/confirm", [Reply::json(200, "{}")]);
    assert_eq!(pair.agent.commit(&branch(1), "").await, Settled::Committed);
}

#[tokio::test]
async fn a_vote_of_yes_survives_a_restart() {
    let mut pair = Pair::start().await;
    assert_eq!(pair.agent.prepare(prepare(1, [charge()])).await, YES);
    pair = pair.restart().await;
    assert_eq!(in_doubt(&pair).await, [branch(1).to_string()]);
    let (code, _) = no(pair.agent.prepare(prepare(1, [charge()])).await);
    assert_eq!(
        code,
        AbortCode::BranchLost,
        "it is not known here how it voted"
    );
    assert_eq!(in_doubt(&pair).await.len(), 1, "and so it is left as it is");
    assert_eq!(pair.agent.commit(&branch(1), "").await, Settled::Committed);
    pair = pair.restart().await;
    assert_eq!(pair.agent.commit(&branch(1), "").await, Settled::Committed);
    assert_eq!(pair.service.paths(), ["/try", "/confirm"]);
}

#[tokio::test]
async fn an_abort_of_what_was_never_seen_fences_it_and_calls_nobody() {
    let mut pair = Pair::start().await;
    assert_eq!(pair.agent.abort(&branch(1), "").await, Settled::Aborted);
    pair = pair.restart().await;
    let (code, message) = no(pair.agent.prepare(prepare(1, [charge()])).await);
    assert_eq!(code, AbortCode::BranchLost);
    assert!(message.contains("was aborted before"), "{message}");
    assert!(pair.service.got().is_empty());
}

#[tokio::test]
async fn a_commit_of_what_was_never_seen_is_lost() {
    let pair = Pair::start().await;
    let settled = pair.agent.commit(&branch(1), "").await;
    assert!(matches!(settled, Settled::Lost(_)), "{settled:?}");
    assert!(pair.service.got().is_empty());
}

#[tokio::test]
async fn a_branch_at_work_is_not_yet_in_doubt() {
    let pair = Arc::new(Pair::start().await);
    let answer = Arc::new(Notify::new());
    let when = Reply::When(Arc::clone(&answer), Reply::status(204).into());
    pair.service.reply("/try", [when]);
    let shared = Arc::clone(&pair);
    let preparing = tokio::spawn(async move { shared.agent.prepare(prepare(1, [charge()])).await });
    pair.service.asked("/try").await;
    assert!(in_doubt(&pair).await.is_empty());
    answer.notify_one();
    assert_eq!(preparing.await.unwrap(), YES);
    assert_eq!(in_doubt(&pair).await, [branch(1).to_string()]);
}

#[tokio::test]
async fn what_can_never_work_is_refused_before_anything_is_sent() {
    let pair = Pair::start().await;
    let continued = Prepare {
        continued: true,
        ..prepare(1, [charge()])
    };
    assert_eq!(
        no(pair.agent.prepare(continued).await).0,
        AbortCode::BranchLost
    );
    let one_phase = Prepare {
        one_phase: true,
        ..prepare(2, [charge()])
    };
    assert_eq!(
        no(pair.agent.prepare(one_phase).await).0,
        AbortCode::InvalidOperation
    );
    for bad in ["refund", "unheard_of"] {
        let vote = pair
            .agent
            .prepare(prepare(3, [charge(), operation(bad)]))
            .await;
        let (code, message) = no(vote);
        assert_eq!(code, AbortCode::InvalidOperation);
        assert!(message.contains(bad), "{message}");
    }
    assert_eq!(
        pair.agent.prepare(prepare(4, Vec::new())).await,
        Vote::ReadOnly
    );
    assert!(pair.service.got().is_empty());
    assert!(in_doubt(&pair).await.is_empty());
}

#[tokio::test]
async fn an_operation_that_is_gone_from_the_configuration_keeps_its_branch_in_doubt() {
    let pair = Pair::start().await;
    let stamp = prepare(1, [operation("stamp")]);
    assert_eq!(pair.agent.prepare(stamp).await, YES);
    let Pair {
        service,
        agent: old,
        directory,
    } = pair;
    drop(old);
    let file = directory.path().join("agent.toml");
    let text = format!(
        "name = \"payments\"\njournal = \"journal\"\nservice = \"http://{}\"\n[operation.charge]\nexecute = \"/\"",
        service.address
    );
    fs::write(&file, text).unwrap();
    let config = HttpConfig::load(HttpArguments {
        config: Some(file),
        ..HttpArguments::default()
    });
    let agent = HttpAgent::open(&config.unwrap()).await.unwrap();
    for settled in [
        agent.commit(&branch(1), "").await,
        agent.abort(&branch(1), "").await,
    ] {
        let problem = retry(settled);
        assert!(
            problem.contains("\"stamp\" is unknown") && problem.contains("put it back"),
            "{problem}"
        );
    }
    assert_eq!(agent.in_doubt().await.unwrap().len(), 1);
}
