//! Messages between the coordinator and its participants, both ways.

use prost::Message as _;
use unanimity_coordinator::fuzzing as coordinator;
use unanimity_engine::{
    AbortReason, BranchKey, Completion, Downward, Epoch, Found, Incarnation, LogId,
    ParticipantName, RESULT_BYTES, StepOutcome, TransactionId, Upward, Vote,
};
use unanimity_participant::fuzzing as participant;
use unanimity_proto::v1::{
    self, coordinator_message as down, participant_message as up, value::Kind as Value,
};

use crate::Target;

pub(super) const UPWARD: Target = Target {
    name: "upward",
    promise: "what the coordinator takes from any session is within its bounds, names its sender, and is what was said",
    check: upward,
    seeds: upward_seeds,
};

pub(super) const DOWNWARD: Target = Target {
    name: "downward",
    promise: "a participant understands all that a coordinator says as it was meant, and of anything else says no, or nothing",
    check: downward,
    seeds: downward_seeds,
};

/// Texts for people are cut at this many bytes.
const TEXT_BYTES: usize = 4096;
const ID: &str = "u1.0000002a.3.0192f0c4a7b87c3d8e9f00112233aabb";

// ---- up

fn upward(bytes: &[u8]) {
    let Ok(batch) = v1::SessionRequest::decode(bytes) else {
        return;
    };
    let sender = ParticipantName::parse("accounts").expect("a name");
    for message in &batch.messages {
        if let Ok(Some(taken)) = coordinator::upward(&sender, message.clone()) {
            is_bounded(&taken);
            is_what_was_said(&taken, message);
        }
    }
    if let Ok(opened) = coordinator::hello(batch) {
        assert!(opened.capacity > 0);
        assert!(opened.agent.len() <= TEXT_BYTES && opened.resource.len() <= TEXT_BYTES);
        are_found(&opened.in_doubt);
    }
}

fn is_bounded(taken: &Upward) {
    let text = |text: &str| assert!(text.len() <= TEXT_BYTES, "{} bytes", text.len());
    let reason = |reason: &AbortReason| {
        assert_eq!(reason.participant, "accounts");
        text(&reason.message);
    };
    match taken {
        Upward::Vote { vote, .. } => match vote {
            Vote::Yes { proof } => assert!(proof.len() <= 64),
            Vote::No(why) => reason(why),
            Vote::ReadOnly | Vote::Committed | Vote::Duplicate(_) => {}
        },
        Upward::Completion { completion, .. } | Upward::Proof { completion, .. } => {
            match completion {
                Completion::Lost(why) | Completion::Retry(why) => text(why),
                Completion::Committed | Completion::Aborted => {}
            }
        }
        Upward::Executed { result, .. } => {
            if let Err(why) = result {
                reason(why);
            }
        }
        Upward::InDoubt(found) => are_found(found),
        Upward::StepResult { outcome, .. } => match outcome {
            StepOutcome::Done(result) => is_result(result),
            StepOutcome::Refused(why) | StepOutcome::Failed(why) => reason(why),
            StepOutcome::Unknown(why) | StepOutcome::Working(why) => text(why),
            StepOutcome::Never => {}
        },
        Upward::Enlist { .. } => {}
    }
}

fn are_found(found: &[Found]) {
    for found in found {
        assert!(found.identifier.len() <= TEXT_BYTES);
        assert!(found.key.is_none_or(|key| key.branch > 0));
    }
}

fn is_result(result: &[u8]) {
    let json = || serde_json::from_slice::<serde_json::Value>(result).is_ok();
    assert!(result.len() <= RESULT_BYTES);
    assert!(result.is_empty() || json(), "a result is no JSON");
}

/// The words that decide over money must not turn into others on the way.
fn is_what_was_said(taken: &Upward, message: &v1::ParticipantMessage) {
    use v1::{CompletionKind as C, StepResultKind as S, VoteKind as V};
    let key = match (taken, &message.kind) {
        (Upward::Vote { key, vote }, Some(up::Kind::Vote(said))) => {
            let same = match vote {
                Vote::Yes { proof } => said.kind() == V::Yes && *proof == said.proof,
                Vote::ReadOnly => said.kind() == V::ReadOnly,
                Vote::Committed => said.kind() == V::Committed,
                Vote::No(_) => said.kind() == V::No && said.duplicate_of.is_empty(),
                Vote::Duplicate(id) => said.kind() == V::No && id.to_string() == said.duplicate_of,
            };
            assert!(same, "{vote:?} of {said:?}");
            (*key, &said.key)
        }
        (Upward::Completion { key, completion }, Some(up::Kind::Completion(said))) => {
            assert_eq!(kind_of(completion), said.kind());
            (*key, &said.key)
        }
        (Upward::Proof { key, completion }, Some(up::Kind::Proof(said))) => {
            assert_eq!(kind_of(completion), said.kind());
            assert_ne!(said.kind(), C::Lost, "lost is no proof");
            (*key, &said.key)
        }
        (Upward::StepResult { key, outcome, .. }, Some(up::Kind::StepResult(said))) => {
            let kind = match outcome {
                StepOutcome::Done(_) => S::Done,
                StepOutcome::Refused(_) => S::Refused,
                StepOutcome::Failed(_) => S::Failed,
                StepOutcome::Unknown(_) => S::Unknown,
                StepOutcome::Working(_) => S::Working,
                StepOutcome::Never => S::Never,
            };
            assert_eq!(kind, said.kind());
            (*key, &said.key)
        }
        (Upward::Executed { key, .. }, Some(up::Kind::ExecuteResult(said))) => (*key, &said.key),
        (Upward::Enlist { .. }, Some(up::Kind::Enlist(_)))
        | (Upward::InDoubt(_), Some(up::Kind::InDoubtReport(_))) => return,
        (taken, message) => panic!("{taken:?} of {message:?}"),
    };
    let said = key.1.as_ref().expect("a branch was named");
    assert_eq!(key.0.transaction.to_string(), said.transaction_id);
    assert_eq!(key.0.branch, said.branch);
    assert!(said.branch > 0, "no branch has that number");
}

fn kind_of(completion: &Completion) -> v1::CompletionKind {
    match completion {
        Completion::Committed => v1::CompletionKind::Committed,
        Completion::Aborted => v1::CompletionKind::Aborted,
        Completion::Lost(_) => v1::CompletionKind::Lost,
        Completion::Retry(_) => v1::CompletionKind::Retry,
    }
}

// ---- down

fn downward(bytes: &[u8]) {
    let Ok(batch) = v1::SessionResponse::decode(bytes) else {
        return;
    };
    for message in batch.messages {
        match participant::understood(message.clone()) {
            Ok(understood) => {
                names_a_branch(&understood);
                let again = participant::understood(understood.clone());
                assert_eq!(
                    again.as_ref(),
                    Ok(&understood),
                    "it is understood otherwise"
                );
            }
            Err(answer) => is_no(answer.as_deref()),
        }
        if let Some(said) = of_the_coordinator(&message) {
            let [batch] = &coordinator::batches(vec![said])[..] else {
                panic!("one message makes one batch");
            };
            let sent = &batch.messages[0];
            let understood = participant::understood(sent.clone());
            assert_eq!(understood.as_ref(), Ok(sent), "it means something else");
        }
    }
}

fn names_a_branch(understood: &v1::CoordinatorMessage) {
    use down::Kind;
    let key = match understood.kind.as_ref().expect("it was understood") {
        Kind::Prepare(message) => &message.key,
        Kind::Commit(message) => &message.key,
        Kind::Abort(message) => &message.key,
        Kind::Execute(message) => &message.key,
        Kind::Prove(message) => &message.key,
        Kind::RunStep(message) => &message.key,
        Kind::SettleStep(message) => &message.key,
        Kind::EnlistResult(message) if message.key.is_none() => return,
        Kind::EnlistResult(message) => &message.key,
        Kind::Welcome(_) | Kind::ListInDoubt(_) => return,
    };
    let key = key.as_ref().expect("work is on a branch");
    assert!(key.branch > 0);
    assert!(participant::is_transaction_id(&key.transaction_id));
}

/// To what can't be understood, nothing may be answered that says yes.
fn is_no(answer: Option<&v1::ParticipantMessage>) {
    match answer.map(|answer| answer.kind.as_ref().expect("an answer has a kind")) {
        None => {}
        Some(up::Kind::Vote(vote)) => assert_eq!(vote.kind(), v1::VoteKind::No),
        Some(up::Kind::ExecuteResult(result)) => {
            assert!(result.reason.is_some() && result.result.is_none());
        }
        Some(up::Kind::StepResult(result)) => {
            assert_eq!(result.kind(), v1::StepResultKind::Refused);
        }
        Some(other) => panic!("it is answered with {other:?}"),
    }
}

/// The same said by the engine, with what in it only an engine can say.
fn of_the_coordinator(message: &v1::CoordinatorMessage) -> Option<Downward> {
    use down::Kind;
    let key = |key: &Option<v1::BranchKey>| {
        let key = key.as_ref()?;
        Some(BranchKey {
            transaction: key.transaction_id.parse::<TransactionId>().ok()?,
            branch: Some(key.branch).filter(|branch| *branch > 0)?,
        })
    };
    Some(match message.kind.as_ref()? {
        Kind::Welcome(said) => Downward::Welcome(Incarnation {
            log: LogId(said.epoch as u32),
            epoch: Epoch(said.epoch),
            instance: 7,
        }),
        Kind::Prepare(said) => Downward::Prepare {
            key: key(&said.key)?,
            continued: said.continued,
            work: Some(work(&said.operations)),
            values: Vec::new(),
            one_phase: said.one_phase,
            request_id: said.request_id.clone(),
            timeout_ms: said
                .timeout
                .map_or(1, |time| time.nanos.unsigned_abs().into()),
            traceparent: said.traceparent.clone(),
        },
        Kind::Commit(said) => Downward::Commit {
            key: key(&said.key)?,
            proof: said.proof.clone(),
        },
        Kind::Abort(said) => Downward::Abort {
            key: key(&said.key)?,
            proof: said.proof.clone(),
        },
        Kind::Execute(said) => Downward::Execute {
            key: key(&said.key)?,
            sequence: said.sequence,
            open: said.open,
            operation: operation(said.operation.as_ref()?),
            timeout_ms: said.sequence,
        },
        Kind::RunStep(said) => run_step(key(&said.key)?, said)?,
        Kind::SettleStep(said) => Downward::SettleStep {
            key: key(&said.key)?,
            attempt: said.attempt,
            age_ms: said.attempt.into(),
        },
        Kind::Prove(said) => Downward::Prove {
            key: key(&said.key)?,
        },
        Kind::EnlistResult(said) => Downward::Enlisted {
            correlation: said.correlation,
            result: match key(&said.key) {
                Some(key) => Ok(key),
                None => Err(Some(said.refusal.clone()).filter(|text| !text.is_empty())?),
            },
        },
        Kind::ListInDoubt(_) => Downward::ListInDoubt,
    })
}

fn run_step(key: BranchKey, said: &v1::RunStep) -> Option<Downward> {
    let lock = |fence: &v1::Fence| unanimity_engine::LockKey::parse(&fence.key);
    Some(Downward::RunStep {
        key,
        step: said.step.clone(),
        operation: operation(said.operation.as_ref()?),
        values: Vec::new(),
        compensates: match &said.compensates {
            Some(undone) if undone.branch == 0 || undone.branch == key.branch => return None,
            Some(undone) => Some(unanimity_engine::Compensates {
                branch: undone.branch,
                unsettled: undone.unsettled,
                result: Some(undone.result.as_bytes().into()),
            }),
            None => None,
        },
        keep_result: said.keep_result,
        locks: said.fences.iter().map(lock).collect::<Option<_>>()?,
        token: said.attempt.into(),
        timeout_ms: said.attempt.into(),
        attempt: said.attempt,
        age_ms: u64::from(said.attempt) << 20,
        traceparent: said.traceparent.clone(),
    })
}

fn work(operations: &[v1::Operation]) -> unanimity_engine::Payload {
    let request = v1::BranchRequest {
        participant: String::new(),
        operations: operations.to_vec(),
    };
    request.encode_to_vec().into()
}

fn operation(operation: &v1::Operation) -> unanimity_engine::Payload {
    operation.encode_to_vec().into()
}

// ---- seeds

pub(super) fn some_operation() -> v1::Operation {
    let value = |kind| v1::Value { kind: Some(kind) };
    v1::Operation {
        statement: Some(v1::operation::Statement::Name("debit".into())),
        parameters: [
            ("amount".into(), value(Value::Integer(10))),
            ("account".into(), value(Value::Text("a".into()))),
        ]
        .into(),
        arguments: Vec::new(),
    }
}

fn some_key() -> Option<v1::BranchKey> {
    Some(v1::BranchKey {
        transaction_id: ID.into(),
        branch: 3,
    })
}

fn some_reason() -> Option<v1::AbortReason> {
    Some(v1::AbortReason {
        code: v1::AbortCode::Refused.into(),
        participant: "accounts".into(),
        message: "too poor".into(),
    })
}

fn upward_seeds() -> Vec<Vec<u8>> {
    let key = some_key();
    let vote = |kind: v1::VoteKind, proof: &str| {
        up::Kind::Vote(v1::Vote {
            key: some_key(),
            kind: kind.into(),
            proof: proof.into(),
            reason: some_reason(),
            ..v1::Vote::default()
        })
    };
    let step = |kind: v1::StepResultKind| {
        up::Kind::StepResult(v1::StepResult {
            key: some_key(),
            attempt: 2,
            kind: kind.into(),
            result: r#"{"id":7}"#.into(),
            reason: some_reason(),
        })
    };
    let kinds = [
        vote(v1::VoteKind::Yes, "771"),
        vote(v1::VoteKind::No, ""),
        step(v1::StepResultKind::Done),
        step(v1::StepResultKind::Failed),
        up::Kind::Completion(v1::Completion {
            key: key.clone(),
            kind: v1::CompletionKind::Committed.into(),
            message: "x".into(),
        }),
        up::Kind::Proof(v1::Proof {
            key: key.clone(),
            kind: v1::CompletionKind::Aborted.into(),
            message: String::new(),
        }),
        up::Kind::ExecuteResult(v1::ExecuteResult {
            key: key.clone(),
            sequence: 1,
            result: Some(v1::OperationResult::default()),
            reason: None,
        }),
        up::Kind::Completion(v1::Completion {
            key: Some(v1::BranchKey {
                transaction_id: ID.into(),
                branch: 0,
            }),
            kind: v1::CompletionKind::Aborted.into(),
            message: String::new(),
        }),
        up::Kind::Enlist(v1::Enlist {
            correlation: 1,
            transaction_id: ID.into(),
        }),
        up::Kind::InDoubtReport(v1::InDoubtReport {
            branches: vec![v1::InDoubtBranch {
                identifier: "legacy".into(),
                key,
            }],
        }),
        up::Kind::Hello(some_hello()),
    ];
    let batch = |kind| v1::SessionRequest {
        messages: vec![v1::ParticipantMessage { kind: Some(kind) }],
    };
    kinds.map(|kind| batch(kind).encode_to_vec()).into()
}

fn some_hello() -> v1::Hello {
    v1::Hello {
        participant: "accounts".into(),
        agent: "agent".into(),
        resource: "postgres".into(),
        capacity: 8,
        protocol_version: 1,
        operation_policy: v1::OperationPolicy::Listed.into(),
        operations: vec![v1::OperationSignature {
            name: "debit".into(),
            parameters: vec![v1::ParameterSignature {
                name: "amount".into(),
                r#type: v1::ParameterType::Integer.into(),
            }],
        }],
        ..v1::Hello::default()
    }
}

fn downward_seeds() -> Vec<Vec<u8>> {
    let (key, transaction) = (some_key(), ID.parse().expect("an id"));
    let key_of = |branch| BranchKey {
        transaction,
        branch,
    };
    let time = Some(prost_types::Duration {
        seconds: 3,
        nanos: 5_000_000,
    });
    let said = [
        down::Kind::Prepare(v1::Prepare {
            key: key.clone(),
            operations: vec![some_operation()],
            timeout: time,
            request_id: "order-7".into(),
            ..v1::Prepare::default()
        }),
        down::Kind::RunStep(v1::RunStep {
            key: key.clone(),
            step: "order".into(),
            operation: Some(some_operation()),
            compensates: Some(v1::Compensates {
                branch: 1,
                unsettled: true,
                result: "{}".into(),
            }),
            fences: vec![v1::Fence {
                key: "stock:7".into(),
                token: 9,
            }],
            timeout: time,
            age: time,
            attempt: 2,
            ..v1::RunStep::default()
        }),
        down::Kind::Execute(v1::Execute {
            key,
            sequence: 1,
            open: true,
            operation: Some(some_operation()),
            timeout: time,
        }),
    ];
    let said = said.map(|kind| v1::SessionResponse {
        messages: vec![v1::CoordinatorMessage { kind: Some(kind) }],
        durable_sequence: 1,
    });
    let log = LogId(0x2a);
    let epoch = Epoch(3);
    let plain = coordinator::batches(vec![
        Downward::Welcome(Incarnation {
            log,
            epoch,
            instance: 7,
        }),
        Downward::Commit {
            key: key_of(1),
            proof: "771".into(),
        },
        Downward::Abort {
            key: key_of(2),
            proof: String::new(),
        },
        Downward::Prove { key: key_of(3) },
        Downward::SettleStep {
            key: key_of(4),
            attempt: 1,
            age_ms: 10,
        },
        Downward::Enlisted {
            correlation: 1,
            result: Ok(key_of(5)),
        },
        Downward::ListInDoubt,
    ]);
    let batches = said.iter().chain(&plain);
    batches.map(prost::Message::encode_to_vec).collect()
}
