//! Steps of sagas: what each answer is taken for, and what is never sent again.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio::sync::Notify;
use unanimity_participant::participant::{
    BranchId, Compensated, Fence, Participant, Refusal, Step, StepOutcome,
};
use unanimity_tests::{patience::becomes, port, service::Reply};

use super::{LONG, Pair, agent, branch, charge, operation};

/// Long enough for a service that answers, and short enough to wait for one that doesn't.
const SHORT: Duration = Duration::from_millis(300);

fn step(number: u32) -> Step {
    Step {
        branch: branch(number),
        name: "pay".into(),
        operation: charge(),
        keep_result: true,
        fences: Vec::new(),
        timeout: LONG,
        attempt: 1,
        age: Duration::ZERO,
        traceparent: String::new(),
    }
}

fn again(number: u32) -> Step {
    Step {
        attempt: 2,
        age: Duration::from_secs(3),
        ..step(number)
    }
}

fn undone(number: u32) -> Compensated {
    Compensated {
        branch: branch(number),
        unsettled: true,
        result: String::new(),
    }
}

/// The kind of an outcome, and what it says.
fn kind(outcome: StepOutcome) -> (&'static str, String) {
    let said = |refusal: Refusal| format!("{:?}: {}", refusal.code, refusal.message);
    match outcome {
        StepOutcome::Done { result } => ("done", result),
        StepOutcome::Refused(refusal) => ("refused", said(refusal)),
        StepOutcome::Failed(refusal) => ("failed", said(refusal)),
        StepOutcome::Unknown(text) => ("unknown", text),
        StepOutcome::Working(text) => ("working", text),
        StepOutcome::Never => ("never", String::new()),
    }
}

/// A reply, what an execute makes of it, what a compensate does, and what both say.
fn table() -> Vec<(Reply, &'static str, &'static str, &'static str)> {
    let large = format!("\"{}\"", "x".repeat(10 << 20));
    let chunk = "x".repeat(10 << 20);
    let chunked = format!(
        "HTTP/1.1 200 X\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{chunk}\r\n0\r\n\r\n",
        chunk.len()
    );
    let message = r#"{"message":"card expired"}"#;
    let busy = Reply::status(503).with("Retry-After", "7");
    vec![
        (
            Reply::json(200, "{\"id\": 7}"),
            "done",
            "done",
            "{\"id\": 7}",
        ),
        (Reply::json(201, "[]"), "done", "done", "[]"),
        (Reply::status(204), "done", "done", ""),
        (Reply::json(422, message), "refused", "failed", "Refused: "),
        (
            Reply::json(422, message),
            "refused",
            "failed",
            "card expired",
        ),
        (Reply::half(422), "refused", "failed", "/"),
        (Reply::json(202, "{}"), "working", "working", "202"),
        (
            Reply::status(429),
            "failed",
            "failed",
            "ParticipantUnavailable: ",
        ),
        (busy, "failed", "failed", "after: 7"),
        (Reply::status(503), "unknown", "unknown", "503"),
        (
            Reply::json(500, message),
            "unknown",
            "unknown",
            "card expired",
        ),
        (Reply::status(409), "unknown", "unknown", "409"),
        (
            Reply::html(404, "<p>gone</p>"),
            "refused",
            "failed",
            "InvalidOperation: POST /",
        ),
        (
            Reply::html(404, "<p>gone</p>"),
            "refused",
            "failed",
            "404 Not Found: <p>gone</p>",
        ),
        (Reply::status(401), "refused", "failed", "401"),
        (
            Reply::status(307).with("Location", "/confirm"),
            "unknown",
            "unknown",
            "redirects to /confirm, which is not followed",
        ),
        (
            Reply::html(200, "<h1>Log in</h1>"),
            "unknown",
            "unknown",
            "text/html",
        ),
        (
            Reply::json(200, "<h1>Log in</h1>"),
            "unknown",
            "unknown",
            "no JSON",
        ),
        (
            Reply::json(200, &large),
            "unknown",
            "unknown",
            "more than 65536 bytes",
        ),
        (
            Reply::Bytes(chunked.into()),
            "unknown",
            "unknown",
            "more than 65536 bytes",
        ),
        (Reply::half(200), "unknown", "unknown", "breaks off"),
        (Reply::close(), "unknown", "unknown", "gives no answer"),
        (
            Reply::Bytes(b"SSH-2.0-hello\r\n".to_vec()),
            "unknown",
            "unknown",
            "gives no answer",
        ),
        (Reply::Hang, "unknown", "unknown", "no answer within 300ms"),
    ]
}

#[tokio::test]
async fn each_answer_to_a_step_means_what_the_table_says() {
    let pair = Pair::start().await;
    for (number, (reply, expected, _, text)) in (1..).zip(table()) {
        let shown: String = format!("{reply:?}").chars().take(100).collect();
        let timeout = if matches!(reply, Reply::Hang) {
            SHORT
        } else {
            LONG
        };
        pair.service.reply("/execute", [reply]);
        let step = Step {
            timeout,
            ..step(number)
        };
        let (kind, said) = kind(pair.agent.execute(step).await);
        assert_eq!(kind, expected, "{shown}: {said}");
        assert!(said.contains(text), "{shown}: {said}");
    }
    assert!(pair.service.paths().iter().all(|path| path == "/execute"));
}

#[tokio::test]
async fn nothing_but_done_ends_a_compensation() {
    let pair = Pair::start().await;
    for (number, (reply, _, expected, text)) in (1..).zip(table()) {
        let shown: String = format!("{reply:?}").chars().take(100).collect();
        let timeout = if matches!(reply, Reply::Hang) {
            SHORT
        } else {
            LONG
        };
        pair.service.reply("/compensate", [reply]);
        let step = Step {
            timeout,
            ..step(1000 + number)
        };
        let (kind, said) = kind(pair.agent.compensate(step, undone(number)).await);
        assert_eq!(kind, expected, "{shown}: {said}");
        assert!(said.contains(text), "{shown}: {said}");
    }
    let cases = [operation("stamp"), operation("unheard_of")];
    for (number, operation) in (2000..).zip(cases) {
        let step = Step {
            operation,
            ..step(number)
        };
        let (kind, said) = kind(pair.agent.compensate(step, undone(1)).await);
        assert_eq!(kind, "failed");
        assert!(said.contains("InvalidOperation: operation "), "{said}");
    }
}

#[tokio::test]
async fn a_step_tells_the_service_all_that_it_needs() {
    let pair = Pair::start().await;
    let sent = Step {
        fences: vec![Fence {
            key: "order/7".into(),
            token: 42,
        }],
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        ..step(1)
    };
    pair.agent.execute(sent.clone()).await;
    let compensation = Step {
        branch: branch(3),
        operation: operation("refund"),
        attempt: 5,
        ..step(1)
    };
    let of = Compensated {
        unsettled: false,
        result: r#"{"id":18446744073709551616.10}"#.into(),
        ..undone(1)
    };
    pair.agent.compensate(compensation, of).await;

    let [execute, compensate] = &pair.service.got()[..] else {
        panic!("{:?}", pair.service.got())
    };
    let transaction = branch(1).transaction;
    assert_eq!(
        execute.body,
        json!({
            "transaction": transaction, "branch": 1, "step": "pay", "attempt": 1,
            "parameters": {"card": "4711", "cents": 250}, "fences": [{"key": "order/7", "token": 42}],
        })
    );
    assert_eq!(execute.path, "/execute");
    assert_eq!(execute.key(), format!("{transaction}.1"));
    assert_eq!(execute.headers["traceparent"], sent.traceparent);
    assert_eq!(execute.headers["content-type"], "application/json");
    assert_eq!(execute.headers["accept"], "application/json");
    assert_eq!(
        compensate.body,
        json!({
            "transaction": transaction, "branch": 3, "step": "pay", "attempt": 5, "parameters": {}, "fences": [],
            "compensates": {"branch": 1, "unsettled": false, "result": {"id": 18446744073709551616.10}},
        })
    );
    assert_eq!(
        (compensate.path.as_str(), compensate.key()),
        ("/refund", format!("{transaction}.3").as_str())
    );
    assert!(!compensate.headers.contains_key("traceparent"));
}

#[tokio::test]
async fn what_can_never_work_is_refused_before_anything_is_sent() {
    let pair = Pair::start().await;
    let mut lacking = charge();
    lacking.parameters.remove("cents");
    for (operation, expected) in [
        (operation("unheard_of"), "\"unheard_of\" is unknown"),
        (operation("refund"), "operation refund has no execute"),
        (lacking, "parameter cents is missing"),
    ] {
        let step = Step {
            operation,
            ..step(1)
        };
        let (kind, said) = kind(pair.agent.execute(step).await);
        assert_eq!(kind, "refused");
        assert!(
            said.contains(expected) && said.starts_with("InvalidOperation"),
            "{said}"
        );
    }
    assert!(pair.service.got().is_empty());
}

#[tokio::test]
async fn a_service_that_is_away_had_no_part_in_the_step() {
    let directory = tempfile::tempdir().unwrap();
    let agent = agent(
        &format!("http://127.0.0.1:{}", port::free()),
        directory.path(),
    )
    .await;
    for step in [step(1), again(1), again(1)] {
        let (kind, said) = kind(agent.execute(step).await);
        assert_eq!(kind, "failed");
        assert!(said.contains("can't be reached"), "{said}");
    }
    let old = Step {
        age: Duration::from_secs(6 * 24 * 60 * 60),
        ..again(1)
    };
    assert_eq!(
        kind(agent.execute(old).await).0,
        "unknown",
        "the record of an earlier attempt may have been purged"
    );
}

/// Else a saga would take a step for undone that a request before had done.
#[tokio::test]
async fn after_a_request_of_unknown_effect_only_the_services_own_word_counts() {
    let mut pair = Pair::start().await;
    pair.service.reply("/execute", [Reply::close()]);
    assert_eq!(kind(pair.agent.execute(step(1)).await).0, "unknown");
    for restarted in [false, true] {
        if restarted {
            pair = pair.restart().await;
        }
        for status in [429, 404, 400] {
            pair.service.reply("/execute", [Reply::status(status)]);
            assert_eq!(kind(pair.agent.execute(again(1)).await).0, "unknown");
        }
        let unresolved = Step {
            operation: operation("unheard_of"),
            ..again(1)
        };
        assert_eq!(kind(pair.agent.execute(unresolved).await).0, "unknown");
    }
    for (status, expected) in [(422, "refused"), (204, "done")] {
        pair.service.reply("/execute", [Reply::status(status)]);
        assert_eq!(kind(pair.agent.execute(again(1)).await).0, expected);
    }
    let keys: Vec<_> = pair
        .service
        .got()
        .iter()
        .map(|got| got.key().to_owned())
        .collect();
    assert!(keys.iter().all(|key| *key == branch(1).to_string()));
}

#[tokio::test]
async fn a_step_at_work_is_asked_for_until_it_is_done() {
    let pair = Pair::start().await;
    let working = Reply::json(202, "{}");
    let replies = [working.clone(), working, Reply::json(200, "{\"id\":1}")];
    pair.service.reply("/execute", replies);
    for expected in ["working", "working", "done", "done"] {
        assert_eq!(kind(pair.agent.execute(again(1)).await).0, expected);
    }
}

#[tokio::test]
async fn a_compensated_step_is_never_sent_again() {
    let mut pair = Pair::start().await;
    assert_eq!(kind(pair.agent.execute(step(1)).await).0, "done");
    // Branch 2 was never sent.
    for number in [1, 2] {
        let compensation = step(10 + number);
        let outcome = pair.agent.compensate(compensation, undone(number)).await;
        assert_eq!(kind(outcome).0, "done");
    }
    let asked = pair.service.got().len();
    for restarted in [false, true] {
        if restarted {
            pair = pair.restart().await;
        }
        for number in [1, 2] {
            let (kind, said) = kind(pair.agent.execute(again(number)).await);
            assert_eq!(kind, "refused");
            assert!(said.starts_with("BranchLost"), "{said}");
        }
    }
    assert_eq!(pair.service.got().len(), asked);
}

#[tokio::test]
async fn a_compensation_waits_for_the_step_that_is_at_work() {
    let pair = Arc::new(Pair::start().await);
    let answer = Arc::new(Notify::new());
    let when = Reply::When(Arc::clone(&answer), Reply::status(204).into());
    pair.service.reply("/execute", [when]);
    let shared = Arc::clone(&pair);
    let executing = tokio::spawn(async move { shared.agent.execute(step(1)).await });
    pair.service.asked("/execute").await;
    let shared = Arc::clone(&pair);
    let compensating =
        tokio::spawn(async move { shared.agent.compensate(step(2), undone(1)).await });
    tokio::time::sleep(SHORT).await;
    assert_eq!(pair.service.paths(), ["/execute"]);
    answer.notify_one();
    assert_eq!(kind(executing.await.unwrap()).0, "done");
    assert_eq!(kind(compensating.await.unwrap()).0, "done");
    assert_eq!(pair.service.paths(), ["/execute", "/compensate"]);
}

async fn settled(pair: &Pair, number: u32) -> (&'static str, String) {
    kind(
        pair.agent
            .settle(&branch(number), Duration::from_secs(3))
            .await,
    )
}

#[tokio::test]
async fn a_step_that_was_never_sent_is_settled_without_the_service_and_then_refused() {
    let mut pair = Pair::start().await;
    assert_eq!(settled(&pair, 1).await.0, "never");
    pair = pair.restart().await;
    assert_eq!(settled(&pair, 1).await.0, "never");
    assert_eq!(kind(pair.agent.execute(again(1)).await).0, "refused");
    assert!(pair.service.got().is_empty());
    let old: BranchId = branch(2);
    let outcome = pair
        .agent
        .settle(&old, Duration::from_secs(6 * 24 * 60 * 60));
    assert_eq!(kind(outcome.await).0, "unknown");
}

#[tokio::test]
async fn a_step_that_was_sent_is_settled_by_the_service() {
    let pair = Pair::start().await;
    pair.service.reply("/execute", [Reply::close()]);
    assert_eq!(kind(pair.agent.execute(step(1)).await).0, "unknown");
    for (reply, expected, text) in [
        (
            Reply::json(200, r#"{"outcome":"working"}"#),
            "working",
            "at work",
        ),
        (Reply::json(202, ""), "working", "202"),
        (
            Reply::json(200, r#"{"outcome":"perhaps"}"#),
            "unknown",
            "tells no outcome",
        ),
        (Reply::json(200, "[]"), "unknown", "tells no outcome"),
        (Reply::status(204), "unknown", "tells no outcome"),
        (Reply::status(404), "unknown", "404"),
        (Reply::status(422), "unknown", "422"),
        (Reply::html(200, "never"), "unknown", "text/html"),
        (Reply::close(), "unknown", "gives no answer"),
        (Reply::json(200, r#"{"outcome":"done"}"#), "done", ""),
        (
            Reply::json(200, r#"{"outcome":"done","result":{"id": 7}}"#),
            "done",
            "{\"id\": 7}",
        ),
    ] {
        let shown = format!("{reply:?}");
        pair.service.reply("/settle", [reply]);
        let (kind, said) = settled(&pair, 1).await;
        assert_eq!(kind, expected, "{shown}: {said}");
        assert!(said.contains(text), "{shown}: {said}");
    }
    let asked = pair.service.got().pop().unwrap();
    assert_eq!(asked.key(), branch(1).to_string());
    assert_eq!(
        asked.body,
        json!({"transaction": branch(1).transaction, "branch": 1})
    );

    pair.service
        .reply("/settle", [Reply::json(200, r#"{"outcome":"never"}"#)]);
    assert_eq!(settled(&pair, 1).await.0, "never");
    assert_eq!(kind(pair.agent.execute(again(1)).await).0, "refused");
}

/// Servers close connections that are idle; the next request must not suffer for it.
#[tokio::test]
async fn a_service_that_closes_after_each_answer_is_no_trouble() {
    let pair = Pair::start().await;
    let answer = "HTTP/1.1 200 X\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    pair.service
        .reply("/execute", [Reply::Bytes(answer.into())]);
    for number in 1..=50 {
        becomes("a close", true, async || {
            // Given time, the close is seen before the next request; without it, the request may go nowhere, and says so.
            matches!(kind(pair.agent.execute(step(number)).await).0, "done")
        })
        .await;
    }
}
