//! What clients are answered.

use prost::Message as _;
use unanimity_client::{Outcome, Rows, TransactionState, fuzzing};
use unanimity_proto::v1;

use crate::Target;

pub(super) const RESULT: Target = Target {
    name: "result",
    promise: "the rows that an application reads are those that the participant gave, or none",
    check: check_result,
    seeds: result_seeds,
};

pub(super) const TRANSACTION: Target = Target {
    name: "transaction",
    promise: "an application never reads an outcome that the coordinator did not tell",
    check: check_transaction,
    seeds: transaction_seeds,
};

fn check_result(bytes: &[u8]) {
    let Ok(given) = v1::OperationResult::decode(bytes) else {
        return;
    };
    if let Some(rows) = fuzzing::rows(given.clone()) {
        // By their bytes, for NaN is not equal to itself.
        let written = written(&rows).encode_to_vec();
        assert_eq!(written, normal(given).encode_to_vec());
    }
}

fn written(rows: &Rows) -> v1::OperationResult {
    let values = |row: &unanimity_client::Row| {
        assert_eq!(row.values().len(), rows.columns().len());
        row.values().iter().cloned().map(Into::into).collect()
    };
    v1::OperationResult {
        columns: rows.columns().to_vec(),
        rows: rows
            .iter()
            .map(|row| v1::Row {
                values: values(row),
            })
            .collect(),
        affected_rows: rows.affected(),
    }
}

/// `null: false` is read as NULL too.
fn normal(mut result: v1::OperationResult) -> v1::OperationResult {
    use v1::value::Kind;
    for value in result.rows.iter_mut().flat_map(|row| &mut row.values) {
        if let Some(Kind::Null(null)) = &mut value.kind {
            *null = true;
        }
    }
    result
}

fn check_transaction(bytes: &[u8]) {
    let Ok(given) = v1::Transaction::decode(bytes) else {
        return;
    };
    let Some(snapshot) = fuzzing::snapshot(given.clone()) else {
        return;
    };
    assert_eq!(snapshot.transaction_id, given.transaction_id);
    assert_eq!(i32::from(snapshot.state), given.state);
    assert_ne!(snapshot.state, TransactionState::Unspecified);
    assert_eq!(snapshot.branches.len(), given.branches.len());
    let told = snapshot.state;
    let faithful = match fuzzing::outcome(snapshot) {
        None => !matches!(
            told,
            TransactionState::Committed | TransactionState::Aborted | TransactionState::Heuristic
        ),
        Some(Outcome::Committed(receipt)) => {
            receipt.delivered == (told == TransactionState::Committed)
                && matches!(
                    told,
                    TransactionState::Committed | TransactionState::Committing
                )
        }
        Some(Outcome::Aborted(_)) => {
            matches!(told, TransactionState::Aborted | TransactionState::Aborting)
        }
        Some(Outcome::Heuristic(_)) => told == TransactionState::Heuristic,
        Some(Outcome::Unknown(_)) => false,
    };
    assert!(faithful, "{told:?} is read as another outcome");
}

fn result_seeds() -> Vec<Vec<u8>> {
    use v1::value::Kind;
    let kinds = [
        Kind::Null(true),
        Kind::Boolean(true),
        Kind::Integer(-7),
        Kind::Float(0.5),
        Kind::Text("text".into()),
        Kind::Bytes(vec![0, 255]),
    ];
    let columns = (0..kinds.len()).map(|at| format!("c{at}")).collect();
    let value = |kind| v1::Value { kind: Some(kind) };
    let result = v1::OperationResult {
        columns,
        rows: vec![v1::Row {
            values: kinds.map(value).into(),
        }],
        affected_rows: 3,
    };
    vec![result.encode_to_vec()]
}

fn transaction_seeds() -> Vec<Vec<u8>> {
    let time = Some(prost_types::Timestamp {
        seconds: 1_700_000_000,
        nanos: 5,
    });
    let transaction = |state: v1::TransactionState| v1::Transaction {
        transaction_id: "u1.0000002a.3.0192f0c4a7b87c3d8e9f00112233aabb".into(),
        request_id: "order-7".into(),
        state: state.into(),
        branches: vec![v1::Branch {
            number: 1,
            participant: "accounts".into(),
            state: v1::BranchState::Committed.into(),
            ..v1::Branch::default()
        }],
        start_time: time,
        saga: Some(v1::Saga {
            steps: vec![v1::Step {
                name: "order".into(),
                kind: v1::StepKind::Pivot.into(),
                state: v1::StepState::Done.into(),
                next_attempt_time: time,
                ..v1::Step::default()
            }],
            deadline: time,
            ..v1::Saga::default()
        }),
        ..v1::Transaction::default()
    };
    [
        v1::TransactionState::Committed,
        v1::TransactionState::Committing,
        v1::TransactionState::Aborted,
        v1::TransactionState::Heuristic,
    ]
    .map(|state| transaction(state).encode_to_vec())
    .into()
}
