//! What makes no sense is refused before anything starts, with a code, a constant reason, and what is wrong.

use tonic::Code;
use tonic_types::StatusExt;
use unanimity_proto::v1;
use unanimity_tests::{
    bank::{Bank, INITIAL_BALANCE, side},
    system::{Agent, Coordinator, Scratch},
};

type Submit = v1::SubmitTransactionRequest;
type Spoil<T> = fn(&mut T);

struct System {
    coordinator: Coordinator,
    banks: [Bank; 2],
    _agents: [Agent; 2],
    _scratch: Scratch,
}

async fn system() -> System {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let banks = [
        Bank::sqlite(&scratch, "lite").await,
        Bank::postgres("post").await,
    ];
    let agents = [
        Agent::start(&scratch, &coordinator, &banks[0]).await,
        Agent::start(&scratch, &coordinator, &banks[1]).await,
    ];
    System {
        coordinator,
        banks,
        _agents: agents,
        _scratch: scratch,
    }
}

impl System {
    /// The request must be refused so, with these among the error's metadata, and nothing must have happened.
    async fn refuses(&self, request: Submit, code: Code, reason: &str, metadata: &[(&str, &str)]) {
        let answer = self
            .coordinator
            .transactions()
            .submit_transaction(request)
            .await;
        let status = answer.expect_err(reason);
        let info = status
            .get_details_error_info()
            .unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
        assert_eq!(
            (status.code(), info.reason.as_str(), info.domain.as_str()),
            (code, reason, "unanimity"),
            "{status:?}"
        );
        for (key, value) in metadata {
            assert_eq!(
                info.metadata.get(*key).map(String::as_str),
                Some(*value),
                "{key}: {status:?}"
            );
        }
        self.nothing_happened(reason).await;
    }

    async fn nothing_happened(&self, what: &str) {
        for bank in &self.banks {
            assert_eq!(
                bank.balance(1).await,
                INITIAL_BALANCE,
                "{what}: {}",
                bank.name
            );
            assert_eq!(bank.prepared("").await, [""; 0], "{what}: {}", bank.name);
        }
        let request = v1::GetCoordinatorRequest {};
        let status = self
            .coordinator
            .admin()
            .get_coordinator(request)
            .await
            .expect("it serves")
            .into_inner();
        assert_eq!(status.active_transactions, 0, "{what}");
        assert_eq!(self.coordinator.in_doubt().await, [], "{what}");
    }
}

/// A transfer that is good, for a case to spoil.
fn good() -> Submit {
    let branch = |name: &str, operation, entry| v1::BranchRequest {
        participant: name.into(),
        operations: side(operation, "t", 1, 5, entry).map(Into::into).into(),
    };
    Submit {
        branches: vec![branch("post", "debit", -5), branch("lite", "credit", 5)],
        ..Submit::default()
    }
}

fn spoiled(spoil: impl FnOnce(&mut Submit)) -> Submit {
    let mut request = good();
    spoil(&mut request);
    request
}

fn operation(request: &mut Submit) -> &mut v1::Operation {
    &mut request.branches[1].operations[0]
}

fn value(kind: v1::value::Kind) -> v1::Value {
    v1::Value { kind: Some(kind) }
}

#[tokio::test]
async fn an_unknown_participant_is_not_found() {
    let system = system().await;
    let request = spoiled(|request| request.branches[1].participant = "nobody".into());
    system
        .refuses(
            request,
            Code::NotFound,
            "PARTICIPANT_UNKNOWN",
            &[("participant", "nobody")],
        )
        .await;
}

#[tokio::test]
async fn an_unknown_operation_is_not_found_and_its_field_is_named() {
    use v1::operation::Statement::Name;
    let system = system().await;
    let request = spoiled(|request| operation(request).statement = Some(Name("theft".into())));
    let metadata = [
        ("field", "branches[1].operations[0].name"),
        ("participant", "lite"),
        ("operation", "theft"),
    ];
    system
        .refuses(request, Code::NotFound, "OPERATION_UNKNOWN", &metadata)
        .await;
}

#[tokio::test]
async fn wrong_parameters_are_refused_by_their_field() {
    use v1::value::Kind::{Integer, Null, Text};
    let system = system().await;
    let amount = "branches[1].operations[0].parameters.amount";
    let cases: [(&str, Spoil<v1::Operation>); 5] = [
        (amount, |operation| {
            drop(
                operation
                    .parameters
                    .insert("amount".into(), value(Text("5".into()))),
            )
        }),
        (
            "branches[1].operations[0].parameters.amount.null",
            |operation| {
                drop(
                    operation
                        .parameters
                        .insert("amount".into(), value(Null(false))),
                )
            },
        ),
        (amount, |operation| {
            drop(
                operation
                    .parameters
                    .insert("amount".into(), v1::Value { kind: None }),
            )
        }),
        (amount, |operation| {
            drop(operation.parameters.remove("amount"))
        }),
        ("branches[1].operations[0].parameters.extra", |operation| {
            operation
                .parameters
                .insert("extra".into(), value(Integer(1)));
        }),
    ];
    for (field, spoil) in cases {
        let request = spoiled(|request| spoil(operation(request)));
        system
            .refuses(
                request,
                Code::InvalidArgument,
                "INVALID_REQUEST",
                &[("field", field)],
            )
            .await;
    }
}

#[tokio::test]
async fn sql_text_is_refused_where_it_is_not_allowed() {
    use v1::operation::Statement::Sql;
    let system = system().await;
    let request = spoiled(|request| {
        *operation(request) = v1::Operation {
            statement: Some(Sql("UPDATE account SET balance = 0".into())),
            ..v1::Operation::default()
        }
    });
    let metadata = [("field", "branches[1].operations[0].sql")];
    system
        .refuses(request, Code::InvalidArgument, "INVALID_REQUEST", &metadata)
        .await;
}

#[tokio::test]
async fn malformed_requests_are_refused_by_their_field() {
    let system = system().await;
    let cases: [(&str, Spoil<Submit>); 7] = [
        ("branches", |request| request.branches.clear()),
        ("branches[1].participant", |request| {
            request.branches[1].participant = "post".into()
        }),
        ("branches[0].participant", |request| {
            request.branches[0].participant = "Not A Name".into()
        }),
        ("branches[1].operations[0]", |request| {
            operation(request).statement = None
        }),
        ("request_id", |request| request.request_id = "x".repeat(65)),
        ("timeout", |request| {
            request.timeout = Some(prost_types::Duration {
                seconds: -1,
                nanos: 0,
            })
        }),
        ("answer_time", |request| request.answer_time = 99),
    ];
    for (field, spoil) in cases {
        system
            .refuses(
                spoiled(spoil),
                Code::InvalidArgument,
                "INVALID_REQUEST",
                &[("field", field)],
            )
            .await;
    }
}

#[tokio::test]
async fn too_many_branches_are_refused_with_the_limit() {
    let system = system().await;
    let request = spoiled(|request| {
        request
            .branches
            .extend((0..64).map(|number| v1::BranchRequest {
                participant: format!("other{number}"),
                operations: Vec::new(),
            }));
    });
    let metadata = [("given", "66"), ("limit", "64")];
    system
        .refuses(
            request,
            Code::InvalidArgument,
            "TOO_MANY_BRANCHES",
            &metadata,
        )
        .await;
}

#[tokio::test]
async fn an_oversized_payload_is_refused_with_the_limit() {
    use v1::value::Kind::Text;
    let system = system().await;
    let request = |bytes: usize| {
        spoiled(|request| {
            let entry = &mut request.branches[1].operations[1];
            entry
                .parameters
                .insert("transfer".into(), value(Text("x".repeat(bytes))));
        })
    };
    let metadata = [("limit", "1048576")];
    system
        .refuses(
            request(2 << 20),
            Code::InvalidArgument,
            "PAYLOAD_TOO_LARGE",
            &metadata,
        )
        .await;
    // More than a message may have is refused before anybody looks into it.
    let status = system
        .coordinator
        .transactions()
        .submit_transaction(request(20 << 20))
        .await
        .expect_err("too large");
    assert!(
        [Code::OutOfRange, Code::ResourceExhausted].contains(&status.code()),
        "{status:?}"
    );
    system.nothing_happened("a message too large").await;
}

#[tokio::test]
async fn a_good_request_is_taken_after_all_these() {
    let system = system().await;
    let answer = system
        .coordinator
        .transactions()
        .submit_transaction(good())
        .await
        .expect("it is good");
    let transaction = answer.into_inner().transaction.expect("a transaction");
    assert_eq!(
        transaction.state(),
        v1::TransactionState::Committed,
        "{transaction:?}"
    );
}
