//! What clients ask for.

use prost::Message as _;
use unanimity_coordinator::fuzzing::{submit, submit_saga};
use unanimity_engine::{Record, RequestId, SagaBegin, SagaRecord};
use unanimity_proto::v1;

use super::message::some_operation;
use crate::Target;

pub(super) const SUBMIT: Target = Target {
    name: "submit",
    promise: "the operations of a transaction that is taken reach each participant as they were given",
    check: check_submit,
    seeds: submit_seeds,
};

pub(super) const SAGA: Target = Target {
    name: "saga",
    promise: "a saga that is taken reads the same from the log",
    check: check_saga,
    seeds: saga_seeds,
};

fn check_submit(bytes: &[u8]) {
    let Ok(given) = v1::SubmitTransactionRequest::decode(bytes) else {
        return;
    };
    let Ok(taken) = submit(given.clone()) else {
        return;
    };
    assert_eq!(taken.len(), given.branches.len());
    for ((name, work), given) in taken.iter().zip(&given.branches) {
        assert_eq!(name.as_str(), given.participant);
        let work = v1::BranchRequest::decode(&work[..]).expect("work is a message");
        assert_eq!(work.operations, given.operations);
        assert!(!format!("{work:?}").contains("Reference"), "a reference");
    }
}

fn check_saga(bytes: &[u8]) {
    let Ok(given) = v1::SubmitSagaRequest::decode(bytes) else {
        return;
    };
    let Ok((steps, locks)) = submit_saga(given.clone()) else {
        return;
    };
    assert_eq!(
        (steps.len(), locks.len()),
        (given.steps.len(), given.locks.len())
    );
    let begin = SagaBegin {
        transaction: "u1.0000002a.3.0192f0c4a7b87c3d8e9f00112233aabb"
            .parse()
            .expect("an id"),
        request_id: RequestId::parse(&given.request_id),
        fingerprint: u64::MAX - 7,
        traceparent: String::new(),
        token: u64::MAX - 9,
        deadline_unix_ms: u64::MAX - 11,
        steps,
        locks,
    };
    let record = Record::Saga(SagaRecord::Begin(begin));
    let read = Record::decode(&record.encode());
    assert_eq!(read, Ok(record), "the log makes another saga of it");
}

fn submit_seeds() -> Vec<Vec<u8>> {
    let request = v1::SubmitTransactionRequest {
        branches: ["accounts", "ledger"]
            .map(|participant| v1::BranchRequest {
                participant: participant.into(),
                operations: vec![some_operation()],
            })
            .into(),
        request_id: "order-7".into(),
        timeout: Some(prost_types::Duration {
            seconds: 5,
            nanos: 1,
        }),
        answer_time: v1::AnswerTime::Decided.into(),
        ..v1::SubmitTransactionRequest::default()
    };
    vec![request.encode_to_vec()]
}

fn saga_seeds() -> Vec<Vec<u8>> {
    let referring = || {
        let mut operation = some_operation();
        let kind = v1::value::Kind::Reference("order.rows.0.id".into());
        let value = v1::Value { kind: Some(kind) };
        operation.parameters.insert("order".into(), value);
        operation
    };
    let action = v1::step_request::Work::Action(v1::Action {
        participant: "shop".into(),
        operation: Some(some_operation()),
        compensation: Some(referring()),
    });
    let group = v1::step_request::Work::Group(v1::AtomicGroup {
        branches: vec![v1::BranchRequest {
            participant: "stock".into(),
            operations: vec![some_operation(), referring()],
        }],
    });
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let step = |name: &str, kind: v1::StepKind, work| v1::StepRequest {
        name: name.into(),
        kind: kind.into(),
        work: Some(work),
        retry: Some(v1::RetryPolicy {
            max_attempts: 3,
            first_backoff: seconds(1),
            max_backoff: seconds(2),
            attempt_timeout: seconds(3),
        }),
        ..v1::StepRequest::default()
    };
    let mut last = step("ship", v1::StepKind::Retriable, group);
    last.after.push("order".into());
    let request = v1::SubmitSagaRequest {
        steps: vec![step("order", v1::StepKind::Compensatable, action), last],
        locks: vec!["stock:7".into()],
        request_id: "order-7".into(),
        ..v1::SubmitSagaRequest::default()
    };
    vec![request.encode_to_vec()]
}
