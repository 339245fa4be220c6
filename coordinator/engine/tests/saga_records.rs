//! The bytes of the records of sagas, pinned: a log written by this release must read the same for ever.

use unanimity_engine::{
    AbortCode, AbortReason, Argument, Binding, DecidedBranch, Decision, DoneStep, LockKey, Parent,
    ParticipantName, Place, Record, RequestId, RetryPolicy, SagaBegin, SagaRecord, StepDefinition,
    StepKind, StepName, StepWork, TransactionId, Work,
};

fn id() -> TransactionId {
    "u1.0000002a.3.0192f0c4a7b87c3d8e9f00112233aabb"
        .parse()
        .expect("an id")
}

fn step_name(text: &str) -> StepName {
    StepName::parse(text).expect("a name")
}

fn participant(text: &str) -> ParticipantName {
    ParticipantName::parse(text).expect("a name")
}

fn work(payload: &[u8], bindings: Vec<Binding>) -> Work {
    Work {
        payload: payload.into(),
        bindings,
    }
}

fn binding(operation: u32, argument: Argument, reference: &str) -> Binding {
    Binding {
        place: Place {
            operation,
            argument,
        },
        reference: reference.parse().expect("a reference"),
    }
}

/// Every field set, and each kind of step, work, place and reference.
fn begin() -> SagaBegin {
    let retry = RetryPolicy {
        max_attempts: 5,
        first_backoff_ms: 100,
        max_backoff_ms: 30_000,
        attempt_timeout_ms: 10_000,
    };
    let single = |name: &str, kind, after: &[&str], action, compensation| StepDefinition {
        name: step_name(name),
        kind,
        after: after.iter().map(|name| step_name(name)).collect(),
        work: StepWork::Single {
            participant: participant("shop"),
            action,
            compensation,
        },
        retry,
    };
    let parameter = |name: &str| Argument::Parameter(name.into());
    let undo = work(&[2], vec![binding(0, parameter("id"), "order.rows.0.id")]);
    let order = single(
        "order",
        StepKind::Compensatable,
        &[],
        work(&[1], vec![]),
        Some(undo),
    );
    let credit = work(&[4], vec![binding(1, Argument::Position(2), "order.id")]);
    let pay = StepDefinition {
        name: step_name("pay"),
        kind: StepKind::Pivot,
        after: vec![step_name("order")],
        work: StepWork::Group(vec![
            (participant("bank-a"), work(&[3], vec![])),
            (participant("bank-b"), credit),
        ]),
        retry,
    };
    let refers = vec![binding(0, parameter("saga"), "transaction.id")];
    let ship = single(
        "ship",
        StepKind::Retriable,
        &["pay"],
        work(&[5], refers),
        None,
    );
    SagaBegin {
        transaction: id(),
        request_id: RequestId::parse("order-7"),
        fingerprint: 9,
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        token: 41,
        deadline_unix_ms: 1_795_000_000_000,
        steps: vec![order, pay, ship],
        locks: vec![LockKey::parse("stock:7").expect("a key")],
    }
}

fn records() -> Vec<Record> {
    let done = |compensation, result: Option<&[u8]>, resolution: &str| DoneStep {
        position: 1,
        compensation,
        result: result.map(Into::into),
        resolution: resolution.into(),
    };
    let reason = AbortReason {
        code: AbortCode::Refused,
        participant: "shop".into(),
        message: "sold out".into(),
    };
    let group = Decision {
        transaction: id(),
        request_id: None,
        fingerprint: 0,
        branches: vec![DecidedBranch {
            number: 2,
            participant: participant("bank-b"),
            proof: "771".into(),
        }],
        traceparent: String::new(),
        parent: Some(Parent {
            saga: id(),
            step: 1,
        }),
    };
    let saga = [
        SagaRecord::Begin(begin()),
        SagaRecord::Step {
            transaction: id(),
            step: done(false, Some(br#"{"id":7}"#), ""),
        },
        SagaRecord::Turn {
            transaction: id(),
            reason: reason.clone(),
            unsettled: vec![0, 2],
        },
        SagaRecord::Resolve {
            transaction: id(),
            step: done(true, None, "refunded in cash"),
        },
        SagaRecord::End {
            transaction: id(),
            heuristic: true,
        },
        SagaRecord::Checkpoint {
            begin: begin(),
            turn: Some((reason, vec![0])),
            done: vec![done(false, Some(b"{}"), ""), done(true, None, "")],
            ended: true,
            heuristic: true,
        },
    ];
    let saga = saga.into_iter().map(Record::Saga);
    saga.chain([Record::Commit(group)]).collect()
}

#[test]
fn records_of_sagas_keep_their_bytes() {
    let hex = |record: &Record| -> String {
        let bytes = record.encode();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let written: Vec<_> = records().iter().map(hex).collect();
    assert_eq!(
        written.join("\n"),
        include_str!("golden/saga_records.txt").trim(),
        "a change of these bytes needs a new format version"
    );
}

#[test]
fn records_of_sagas_read_back_as_they_were_written() {
    for record in records() {
        assert_eq!(Record::decode(&record.encode()), Ok(record));
    }
}

/// Their numbers in the log are for ever.
#[test]
fn every_reason_has_its_number() {
    let codes = [
        AbortCode::Refused,
        AbortCode::Client,
        AbortCode::Timeout,
        AbortCode::ParticipantUnavailable,
        AbortCode::Conflict,
        AbortCode::BranchLost,
        AbortCode::InvalidOperation,
        AbortCode::ParticipantFailure,
        AbortCode::CoordinatorRestart,
    ];
    for (number, code) in (1u8..).zip(codes) {
        let turn = Record::Saga(SagaRecord::Turn {
            transaction: id(),
            reason: AbortReason {
                code,
                participant: String::new(),
                message: String::new(),
            },
            unsettled: Vec::new(),
        });
        let bytes = turn.encode();
        assert_eq!(bytes[bytes.len() - 2..], [0x10, number], "{code:?}");
        assert_eq!(Record::decode(&bytes), Ok(turn));
    }
}
