//! The command as a process, against a coordinator that says what a test wants: what it prints, where, and how it exits.

use std::{collections::HashMap, net::SocketAddr, path::Path, pin::Pin, process::Stdio};

use tokio::{net::TcpListener, process::Command};
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{Code, Request, Response, Status, transport::Server};
use tonic_types::{ErrorDetails, StatusExt};
use unanimity_proto::v1::{
    self,
    admin_service_server::{AdminService, AdminServiceServer},
    transaction_service_server::{TransactionService, TransactionServiceServer},
};

const ID: &str = "u1.0a1b2c3d.1.0198f0a0b1c27d3e8f90a1b2c3d4e5f6";

/// Answers by the transaction's id: `ID` is there, and other ids are names of errors.
#[derive(Clone)]
struct Fake;

fn said(code: Code, reason: &str) -> Status {
    let details =
        ErrorDetails::with_error_info(reason, unanimity_proto::ERROR_DOMAIN, HashMap::new());
    Status::with_error_details(code, format!("the coordinator says {reason}"), details)
}

fn transaction() -> v1::Transaction {
    v1::Transaction {
        transaction_id: ID.into(),
        request_id: "order-17".into(),
        state: v1::TransactionState::Heuristic.into(),
        branches: vec![v1::Branch {
            number: 1,
            participant: "bank1".into(),
            state: v1::BranchState::HeuristicAborted.into(),
            delivery_attempts: 3,
            last_error: "two\nlines".into(),
            resolution_reason: String::new(),
        }],
        abort_reason: None,
        start_time: Some(prost_types::Timestamp {
            seconds: 1_795_000_000,
            nanos: 5_000_000,
        }),
        saga: None,
    }
}

/// One whose step is tried in vain, and holds two locks.
fn saga() -> v1::Transaction {
    let step = |name: &str, kind: v1::StepKind, state: v1::StepState| v1::Step {
        name: name.into(),
        kind: kind.into(),
        participants: vec!["shop".into()],
        state: state.into(),
        attempts: 1,
        ..Default::default()
    };
    let order = v1::Step {
        result: "{\"id\":7}".into(),
        has_compensation: true,
        ..step("order", v1::StepKind::Compensatable, v1::StepState::Done)
    };
    let pay = v1::Step {
        participants: vec!["bank1".into(), "bank2".into()],
        after: vec!["order".into()],
        attempts: 6,
        next_attempt_time: Some(prost_types::Timestamp {
            seconds: 1_795_000_060,
            nanos: 0,
        }),
        last_error: "two\nlines".into(),
        stuck: true,
        group_transaction_id: ID.into(),
        ..step("pay", v1::StepKind::Pivot, v1::StepState::Retrying)
    };
    v1::Transaction {
        transaction_id: "saga".into(),
        state: v1::TransactionState::Running.into(),
        branches: Vec::new(),
        saga: Some(v1::Saga {
            steps: vec![order, pay],
            locks: vec!["stock:7".into(), "stock:8".into()],
            token: 41,
            waiting_for: Vec::new(),
            deadline: Some(prost_types::Timestamp {
                seconds: 1_795_003_600,
                nanos: 0,
            }),
        }),
        ..transaction()
    }
}

async fn find(id: &str) -> Result<Option<v1::Transaction>, Status> {
    match id {
        ID => Ok(Some(transaction())),
        "saga" => Ok(Some(saga())),
        "idle" => Err(said(Code::FailedPrecondition, "STEP_NOT_TRIED")),
        "unknown" => Err(said(Code::NotFound, "TRANSACTION_UNKNOWN")),
        "decided" => Err(said(Code::FailedPrecondition, "TRANSACTION_DECIDED")),
        "draining" => Err(said(Code::Unavailable, "DRAINING")),
        "pending" => Err(said(Code::Unavailable, "OUTCOME_PENDING")),
        "invalid" => Err(said(Code::InvalidArgument, "INVALID_REQUEST")),
        "lost" => Err(Status::unavailable("a proxy's word")),
        "exhausted" => Err(Status::resource_exhausted("enhance your calm")),
        "hang" => std::future::pending().await,
        _ => Err(Status::internal("a bug")),
    }
}

#[tonic::async_trait]
impl TransactionService for Fake {
    async fn submit_transaction(
        &self,
        _: Request<v1::SubmitTransactionRequest>,
    ) -> Result<Response<v1::SubmitTransactionResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn submit_saga(
        &self,
        _: Request<v1::SubmitSagaRequest>,
    ) -> Result<Response<v1::SubmitSagaResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn begin_transaction(
        &self,
        _: Request<v1::BeginTransactionRequest>,
    ) -> Result<Response<v1::BeginTransactionResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn execute_operation(
        &self,
        _: Request<v1::ExecuteOperationRequest>,
    ) -> Result<Response<v1::ExecuteOperationResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn commit_transaction(
        &self,
        _: Request<v1::CommitTransactionRequest>,
    ) -> Result<Response<v1::CommitTransactionResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn abort_transaction(
        &self,
        request: Request<v1::AbortTransactionRequest>,
    ) -> Result<Response<v1::AbortTransactionResponse>, Status> {
        let transaction = find(&request.get_ref().transaction_id).await?;
        Ok(Response::new(v1::AbortTransactionResponse { transaction }))
    }

    async fn get_transaction(
        &self,
        request: Request<v1::GetTransactionRequest>,
    ) -> Result<Response<v1::GetTransactionResponse>, Status> {
        let transaction = find(&request.get_ref().transaction_id).await?;
        Ok(Response::new(v1::GetTransactionResponse { transaction }))
    }

    async fn list_transactions(
        &self,
        request: Request<v1::ListTransactionsRequest>,
    ) -> Result<Response<v1::ListTransactionsResponse>, Status> {
        // Pages of one at most, and three transactions in all.
        let request = request.into_inner();
        let page: usize = request.page_token.parse().unwrap_or(0);
        Ok(Response::new(v1::ListTransactionsResponse {
            transactions: vec![transaction()],
            next_page_token: if page < 2 {
                (page + 1).to_string()
            } else {
                String::new()
            },
        }))
    }

    type WatchTransactionsStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchTransactionsResponse, Status>> + Send>>;

    async fn watch_transactions(
        &self,
        _: Request<v1::WatchTransactionsRequest>,
    ) -> Result<Response<Self::WatchTransactionsStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl AdminService for Fake {
    async fn get_coordinator(
        &self,
        _: Request<v1::GetCoordinatorRequest>,
    ) -> Result<Response<v1::GetCoordinatorResponse>, Status> {
        Ok(Response::new(v1::GetCoordinatorResponse {
            log_id: "0a1b2c3d".into(),
            epoch: 7,
            version: "0.1.0".into(),
            active_transactions: 3,
            durable_sequence: 99,
        }))
    }

    async fn list_participants(
        &self,
        _: Request<v1::ListParticipantsRequest>,
    ) -> Result<Response<v1::ListParticipantsResponse>, Status> {
        let down = v1::Participant {
            name: "bank1".into(),
            ..Default::default()
        };
        Ok(Response::new(v1::ListParticipantsResponse {
            participants: vec![down],
            next_page_token: String::new(),
        }))
    }

    async fn list_in_doubt_branches(
        &self,
        _: Request<v1::ListInDoubtBranchesRequest>,
    ) -> Result<Response<v1::ListInDoubtBranchesResponse>, Status> {
        let foreign = v1::InDoubt {
            identifier: "someone's".into(),
            participant: "bank1".into(),
            kind: v1::InDoubtKind::NewerEpoch.into(),
            ..Default::default()
        };
        Ok(Response::new(v1::ListInDoubtBranchesResponse {
            branches: vec![foreign],
            next_page_token: String::new(),
        }))
    }

    async fn retry_transaction(
        &self,
        request: Request<v1::RetryTransactionRequest>,
    ) -> Result<Response<v1::RetryTransactionResponse>, Status> {
        let transaction = find(&request.get_ref().transaction_id).await?;
        Ok(Response::new(v1::RetryTransactionResponse { transaction }))
    }

    async fn resolve_step(
        &self,
        request: Request<v1::ResolveStepRequest>,
    ) -> Result<Response<v1::ResolveStepResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(
            (request.step.as_str(), request.reason.as_str()),
            ("pay", "paid in cash")
        );
        let transaction = find(&request.transaction_id).await?;
        Ok(Response::new(v1::ResolveStepResponse { transaction }))
    }

    async fn list_locks(
        &self,
        request: Request<v1::ListLocksRequest>,
    ) -> Result<Response<v1::ListLocksResponse>, Status> {
        // Pages of one, and two locks in all.
        let first = request.get_ref().page_token.is_empty();
        let lock = v1::Lock {
            key: if first { "stock:7" } else { "stock:8" }.into(),
            transaction_id: "saga".into(),
            token: 41,
            waiting: 2,
        };
        Ok(Response::new(v1::ListLocksResponse {
            locks: vec![lock],
            next_page_token: if first { "stock:7" } else { "" }.into(),
        }))
    }

    async fn resolve_branch(
        &self,
        request: Request<v1::ResolveBranchRequest>,
    ) -> Result<Response<v1::ResolveBranchResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(
            (request.branch, request.resolution()),
            (2, v1::Resolution::Aborted)
        );
        assert_eq!(request.reason, "the disk was replaced");
        let transaction = find(&request.transaction_id).await?;
        Ok(Response::new(v1::ResolveBranchResponse { transaction }))
    }
}

async fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let server = Server::builder()
        .add_service(TransactionServiceServer::new(Fake))
        .add_service(AdminServiceServer::new(Fake));
    tokio::spawn(async move {
        server
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
    });
    address
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).expect("stdout is JSON")
    }
}

async fn run(address: SocketAddr, arguments: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_unanimity"))
        .args(arguments)
        .env("UNANIMITY_COORDINATOR", format!("http://{address}"))
        .stdin(Stdio::null())
        .output()
        .await
        .expect("runs");
    Ran {
        code: output.status.code().expect("an exit code"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

#[tokio::test]
async fn the_exit_code_tells_what_happened() {
    let address = serve().await;
    let branch = format!("{ID}.2");
    let resolve = [
        "in-doubt",
        "resolve",
        &branch,
        "--aborted",
        "--reason",
        "the disk was replaced",
    ];
    let resolve_yes: Vec<_> = resolve.iter().copied().chain(["--yes"]).collect();
    let step = |id| ["tx", "resolve-step", id, "pay", "--reason", "paid in cash"];
    let step_yes = |id| step(id).into_iter().chain(["--yes"]).collect::<Vec<_>>();
    let table: &[(&[&str], i32)] = &[
        (&["tx", "get", ID], 0),
        (&["tx", "get", ID, "--timeout", "999999999h"], 0),
        (&["tx", "get", "bug"], 1),
        (&["tx", "get", "invalid"], 2),
        (&["tx", "get"], 2),
        (&["tx", "get", "unknown"], 3),
        (&["tx", "abort", "decided"], 4),
        (&["tx", "get", "draining"], 6),
        (&["tx", "get", "lost"], 6),
        (&["tx", "abort", "lost"], 7),
        (&["tx", "abort", "bug"], 7),
        (&["tx", "get", "exhausted"], 6),
        (&["tx", "abort", "exhausted"], 7),
        (&["tx", "get", "pending"], 7),
        (&["tx", "get", "hang", "--timeout", "200ms"], 6),
        (&["tx", "retry", "hang", "--timeout", "200ms"], 7),
        (&["tx", "retry", ID], 0),
        (&["tx", "cancel", "saga"], 0),
        (&["tx", "cancel", "decided"], 4),
        (&["lock", "list"], 0),
        (&step("saga"), 2),
        (&step_yes("saga"), 0),
        (&step_yes("idle"), 4),
        (&step_yes("unknown"), 3),
        (&step_yes("lost"), 7),
        (&resolve, 2),
        (&resolve_yes, 0),
        (&["status", "--coordinator", "http://127.0.0.1:1"], 6),
        (&["status", "--coordinator", "ftp://127.0.0.1:1"], 2),
        (&["log", "verify", "/nonexistent"], 3),
        (&["--help"], 0),
    ];
    for (arguments, code) in table {
        let ran = run(address, arguments).await;
        assert_eq!(ran.code, *code, "{arguments:?}: {}", ran.stderr);
        assert_eq!(
            ran.stdout.is_empty(),
            *code != 0,
            "{arguments:?}: data on stdout, and only data: {}",
            ran.stdout
        );
        assert_eq!(
            ran.stderr.is_empty(),
            *code == 0,
            "{arguments:?}: {}",
            ran.stderr
        );
    }
}

#[tokio::test]
async fn an_error_says_what_to_do() {
    let address = serve().await;
    let ran = run(address, &["tx", "abort", "decided"]).await;
    assert!(
        ran.stderr
            .contains("the coordinator says TRANSACTION_DECIDED"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("unanimity tx retry"), "{}", ran.stderr);
    let ran = run(address, &["status", "--coordinator", "http://127.0.0.1:1"]).await;
    assert!(
        ran.stderr.contains("refused") && ran.stderr.contains("UNANIMITY_COORDINATOR"),
        "{}",
        ran.stderr
    );
}

#[tokio::test]
async fn json_has_a_stable_shape() {
    let address = serve().await;
    let shown = serde_json::json!({
        "transaction_id": ID,
        "request_id": "order-17",
        "state": "heuristic",
        "start_time": "2026-11-18T11:06:40.005Z",
        "abort_reason": null,
        "branches": [{
            "number": 1,
            "participant": "bank1",
            "state": "heuristic_aborted",
            "delivery_attempts": 3,
            "last_error": "two\nlines",
            "resolution_reason": null,
        }],
        "saga": null,
    });
    assert_eq!(
        run(address, &["tx", "get", ID, "-o", "json"]).await.json(),
        shown
    );
    let list = run(address, &["tx", "list", "-o", "json", "--limit", "2"]).await;
    assert_eq!(
        list.json(),
        serde_json::json!({ "transactions": [shown, shown], "more": true })
    );
    assert!(list.stderr.contains("--limit"), "{}", list.stderr);
    let all = run(address, &["tx", "list", "-o", "json"]).await.json();
    assert_eq!(all["transactions"].as_array().map(Vec::len), Some(3));
    let participants = run(address, &["participant", "list", "-o", "json"])
        .await
        .json();
    assert_eq!(participants["participants"][0]["up"], false);
    let in_doubt = run(address, &["in-doubt", "list", "-o", "json"])
        .await
        .json();
    assert_eq!(in_doubt["branches"][0]["kind"], "newer_epoch");
    let status = run(address, &["status", "-o", "json"]).await.json();
    assert_eq!(
        (&status["epoch"], &status["log_id"]),
        (&7.into(), &"0a1b2c3d".into())
    );
}

#[tokio::test]
async fn a_table_has_one_line_for_each() {
    let address = serve().await;
    let list = run(address, &["tx", "list"]).await.stdout;
    assert_eq!(list.lines().count(), 4, "{list}");
    assert!(list.starts_with("TRANSACTION"), "{list}");
    let shown = run(address, &["tx", "get", ID]).await.stdout;
    assert!(
        shown.contains("heuristic_aborted") && shown.contains("two lines"),
        "{shown}"
    );
    assert!(!shown.contains('\u{1b}'), "no colour: {shown}");
}

#[tokio::test]
async fn a_saga_is_shown_with_its_steps_and_locks() {
    let address = serve().await;
    let shown = run(address, &["tx", "get", "saga"]).await.stdout;
    for words in [
        "deadline     2026-11-18T12:06:40.000Z",
        "locks        stock:7, stock:8",
        "token        41",
        &format!("pay is {ID}"),
        "bank1,bank2",
        "retrying",
        "two lines",
    ] {
        assert!(shown.contains(words), "{words:?} is missing in:\n{shown}");
    }
    let json = run(address, &["tx", "get", "saga", "-o", "json"])
        .await
        .json();
    assert_eq!(
        json["saga"],
        serde_json::json!({
            "steps": [
                {
                    "name": "order",
                    "kind": "compensatable",
                    "participants": ["shop"],
                    "after": [],
                    "state": "done",
                    "attempts": 1,
                    "compensation_attempts": 0,
                    "next_attempt_time": null,
                    "last_error": null,
                    "stuck": false,
                    "result": "{\"id\":7}",
                    "resolution_reason": null,
                    "group_transaction_id": null,
                    "has_compensation": true,
                },
                {
                    "name": "pay",
                    "kind": "pivot",
                    "participants": ["bank1", "bank2"],
                    "after": ["order"],
                    "state": "retrying",
                    "attempts": 6,
                    "compensation_attempts": 0,
                    "next_attempt_time": "2026-11-18T11:07:40.000Z",
                    "last_error": "two\nlines",
                    "stuck": true,
                    "result": null,
                    "resolution_reason": null,
                    "group_transaction_id": ID,
                    "has_compensation": false,
                },
            ],
            "locks": ["stock:7", "stock:8"],
            "token": 41,
            "waiting_for": [],
            "deadline": "2026-11-18T12:06:40.000Z",
        })
    );
    let locks = run(address, &["lock", "list"]).await.stdout;
    assert_eq!(locks.lines().count(), 3, "{locks}");
    let locks = run(address, &["lock", "list", "-o", "json"]).await.json();
    assert_eq!(
        locks["locks"][1],
        serde_json::json!({ "key": "stock:8", "transaction_id": "saga", "token": 41, "waiting": 2 })
    );
}

/// A small log with what a coordinator writes first, and a record that none wrote.
fn write_log(directory: &Path, records: &[&[u8]]) {
    let options = unanimity_wal::Options::default();
    let (mut wal, _) =
        unanimity_wal::Wal::open(directory, 0x0a1b_2c3d, 1, options).expect("a new log");
    wal.append(records.iter().copied()).expect("appended");
}

#[tokio::test]
async fn a_log_is_verified_and_dumped() {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("UTF-8");
    let epoch = unanimity_engine::Record::Epoch(unanimity_engine::Epoch(7)).encode();
    write_log(directory.path(), &[&epoch, &epoch]);
    let verified = run(nowhere, &["log", "verify", path, "-o", "json"]).await;
    assert_eq!(verified.code, 0, "{}", verified.stderr);
    assert_eq!(
        (&verified.json()["records"], &verified.json()["log_id"]),
        (&2.into(), &"0a1b2c3d".into())
    );
    let dumped = run(nowhere, &["log", "dump", path, "--from", "2", "-o", "json"]).await;
    assert_eq!(
        (&dumped.json()["lsn"], &dumped.json()["kind"]),
        (&2.into(), &"epoch".into())
    );
    assert_eq!(
        run(nowhere, &["log", "dump", path])
            .await
            .stdout
            .lines()
            .count(),
        2
    );
}

#[tokio::test]
async fn a_dump_tells_what_became_of_sagas() {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("UTF-8");
    let transaction = ID.parse().expect("an id");
    let step = unanimity_engine::DoneStep {
        position: 0,
        compensation: true,
        result: None,
        resolution: "refunded in cash".into(),
    };
    let resolve = unanimity_engine::SagaRecord::Resolve { transaction, step };
    let bytes = unanimity_engine::Record::Saga(resolve).encode();
    write_log(directory.path(), &[&bytes]);
    let dumped = run(nowhere, &["log", "dump", path]).await;
    assert!(
        dumped.stdout.contains("refunded in cash"),
        "{}",
        dumped.stdout
    );
    let dumped = run(nowhere, &["log", "dump", path, "-o", "json"])
        .await
        .json();
    assert_eq!(
        (&dumped["kind"], &dumped["transaction_id"]),
        (&"saga_resolve".into(), &ID.into())
    );
}

#[tokio::test]
async fn a_log_with_a_problem_exits_with_8() {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("UTF-8");
    write_log(directory.path(), &[b"\xffno record"]);
    for command in ["verify", "dump"] {
        let ran = run(nowhere, &["log", command, path]).await;
        assert_eq!(ran.code, 8, "{command}: {}", ran.stderr);
        assert!(ran.stderr.contains("LSN 1"), "{}", ran.stderr);
    }
    assert_eq!(run(nowhere, &["log", "verify", "/dev"]).await.code, 3);
}
