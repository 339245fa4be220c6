//! A whole coordinator in this process, with participants over real sessions.

#[path = "serve/house.rs"]
mod house;
#[path = "serve/participant.rs"]
mod participant;
#[path = "serve/saga.rs"]
mod saga;
#[path = "serve/shop.rs"]
mod shop;

use std::time::Duration;

use house::{House, PATIENCE, config, debit, transfer};
use participant::{Database, Manner, Participant, batch, dial, end_of, hello};
use tempfile::{TempDir, tempdir};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use unanimity_coordinator::{exit_code, serve};
use unanimity_proto::v1::{self, BranchState, TransactionState, participant_message::Kind as Up};

fn reason(status: &Status) -> String {
    status.get_details_error_info().expect("ErrorInfo").reason
}

fn field(status: &Status) -> String {
    status.get_details_error_info().expect("ErrorInfo").metadata["field"].clone()
}

fn scene() -> (TempDir, Database, Database) {
    (
        tempdir().expect("a directory"),
        Database::default(),
        Database::default(),
    )
}

async fn willing(house: &House, name: &str, database: &Database) -> Participant {
    Participant::join(house.address, name, Manner::Willing, database).await
}

#[tokio::test]
async fn a_transfer_commits_at_both_and_is_seen_by_a_watcher_and_a_list() {
    let (directory, a, b) = scene();
    let mut house = House::open(&directory).await;
    let (_a, _b) = (
        willing(&house, "a", &a).await,
        willing(&house, "b", &b).await,
    );
    let watch = house
        .transactions
        .watch_transactions(v1::WatchTransactionsRequest::default());
    let mut changes = watch.await.expect("a watch").into_inner();

    let done = house
        .submit(transfer("r1", &["a", "b"], 5))
        .await
        .expect("taken");
    assert_eq!(done.state(), TransactionState::Committed);
    assert!(
        done.branches
            .iter()
            .all(|branch| branch.state() == BranchState::Committed)
    );
    assert_eq!(done.request_id, "r1");
    assert!(done.start_time.is_some());
    assert!(
        a.committed().contains(&done.transaction_id)
            && b.committed().contains(&done.transaction_id)
    );
    assert!(a.committed_in_one_phase().is_empty());
    assert_eq!(house.get(&done.transaction_id).await.expect("known"), done);

    loop {
        let change = timeout(PATIENCE, changes.message())
            .await
            .expect("in time")
            .expect("no error");
        let seen = change
            .expect("a change")
            .transaction
            .expect("a transaction");
        assert_eq!(seen.transaction_id, done.transaction_id);
        if seen.state() == TransactionState::Committed {
            break;
        }
    }
    house.close().await;
    assert_eq!(
        changes.message().await.expect_err("cut off").code(),
        Code::Unavailable
    );
}

#[tokio::test]
async fn a_no_aborts_everywhere_and_is_an_answer() {
    let (directory, a, b) = scene();
    let mut house = House::open(&directory).await;
    let _a = willing(&house, "a", &a).await;
    let _b = Participant::join(house.address, "b", Manner::Refusing, &b).await;
    let done = house
        .submit(transfer("", &["a", "b"], 5))
        .await
        .expect("taken");
    // It is decided; the branch that had prepared is told while we hear of it.
    assert!(
        matches!(
            done.state(),
            TransactionState::Aborting | TransactionState::Aborted
        ),
        "{done:?}"
    );
    house
        .reaches(&done.transaction_id, TransactionState::Aborted)
        .await;
    let why = done.abort_reason.clone().expect("a reason");
    assert_eq!(
        (why.code(), why.participant.as_str(), why.message.as_str()),
        (v1::AbortCode::Refused, "b", "too poor")
    );
    assert!(a.committed().is_empty() && b.committed().is_empty());
    house.close().await;
}

#[tokio::test]
async fn a_single_branch_commits_in_one_phase() {
    let (directory, a, _) = scene();
    let mut house = House::open(&directory).await;
    let _a = willing(&house, "a", &a).await;
    let done = house.submit(transfer("", &["a"], 5)).await.expect("taken");
    assert_eq!(done.state(), TransactionState::Committed);
    assert!(a.committed_in_one_phase().contains(&done.transaction_id));
    house.close().await;
}

#[tokio::test]
async fn outcomes_and_request_ids_outlive_a_restart() {
    let (directory, a, b) = scene();
    let mut house = House::open(&directory).await;
    let participants = (
        willing(&house, "a", &a).await,
        willing(&house, "b", &b).await,
    );
    let two = house
        .submit(transfer("r1", &["a", "b"], 5))
        .await
        .expect("taken");
    let one = house.submit(transfer("", &["a"], 5)).await.expect("taken");
    let before = house
        .admin
        .get_coordinator(v1::GetCoordinatorRequest {})
        .await
        .expect("told")
        .into_inner();
    house.close().await;
    participants.0.leave().await;
    participants.1.leave().await;

    let mut house = House::open(&directory).await;
    let after = house
        .admin
        .get_coordinator(v1::GetCoordinatorRequest {})
        .await
        .expect("told")
        .into_inner();
    assert_eq!(after.log_id, before.log_id);
    assert!(after.epoch > before.epoch);
    assert_eq!(
        house.get(&two.transaction_id).await.expect("known").state(),
        TransactionState::Committed
    );

    // What was committed in one phase is not in the log: only the participant can tell.
    let pending = house
        .get(&one.transaction_id)
        .await
        .expect_err("not told without the participant");
    assert_eq!(
        (pending.code(), reason(&pending).as_str()),
        (Code::Unavailable, "OUTCOME_PENDING")
    );
    let (_a, _b) = (
        willing(&house, "a", &a).await,
        willing(&house, "b", &b).await,
    );
    assert_eq!(
        house.get(&one.transaction_id).await.expect("known").state(),
        TransactionState::Committed
    );

    let again = house
        .submit(transfer("r1", &["a", "b"], 5))
        .await
        .expect("taken");
    assert_eq!(again.transaction_id, two.transaction_id);
    assert_eq!(a.committed().len(), 2);
    let other = house
        .submit(transfer("r1", &["a", "b"], 6))
        .await
        .expect_err("something else");
    assert_eq!(reason(&other), "REQUEST_ID_REUSED");
    house.close().await;
}

#[tokio::test]
async fn an_interactive_transaction_executes_and_commits() {
    let (directory, a, b) = scene();
    let mut house = House::open(&directory).await;
    let (_a, _b) = (
        willing(&house, "a", &a).await,
        willing(&house, "b", &b).await,
    );
    let begin = v1::BeginTransactionRequest {
        participants: vec!["a".into(), "b".into()],
        ..v1::BeginTransactionRequest::default()
    };
    let begun = house
        .transactions
        .begin_transaction(begin)
        .await
        .expect("begun")
        .into_inner();
    let id = begun.transaction.expect("a transaction").transaction_id;
    for name in ["a", "b"] {
        let request = v1::ExecuteOperationRequest {
            transaction_id: id.clone(),
            participant: name.into(),
            operation: Some(debit(1)),
        };
        let result = house
            .transactions
            .execute_operation(request)
            .await
            .expect("run")
            .into_inner()
            .result;
        assert_eq!(result.expect("a result").affected_rows, 1);
    }
    let commit = v1::CommitTransactionRequest {
        transaction_id: id.clone(),
        ..Default::default()
    };
    let done = house
        .transactions
        .commit_transaction(commit)
        .await
        .expect("committed")
        .into_inner();
    assert_eq!(
        done.transaction.expect("a transaction").state(),
        TransactionState::Committed
    );
    let abort = v1::AbortTransactionRequest {
        transaction_id: id,
        reason: "too late".into(),
    };
    let refused = house
        .transactions
        .abort_transaction(abort)
        .await
        .expect_err("decided");
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::FailedPrecondition, "TRANSACTION_DECIDED")
    );
    house.close().await;
}

#[tokio::test]
async fn a_list_is_paged_newest_first_and_filtered() {
    let (directory, a, b) = scene();
    let mut house = House::open(&directory).await;
    let _a = willing(&house, "a", &a).await;
    let _b = Participant::join(house.address, "b", Manner::Refusing, &b).await;
    let mut ids = Vec::new();
    for name in ["a", "b", "a", "a"] {
        ids.push(
            house
                .submit(transfer("", &[name], 1))
                .await
                .expect("taken")
                .transaction_id,
        );
    }
    ids.reverse();
    let mut list = async |request: v1::ListTransactionsRequest| {
        let page = house
            .transactions
            .list_transactions(request)
            .await
            .expect("a page")
            .into_inner();
        let ids: Vec<_> = page
            .transactions
            .into_iter()
            .map(|t| t.transaction_id)
            .collect();
        (ids, page.next_page_token)
    };
    let of = |page_size, page_token| v1::ListTransactionsRequest {
        page_size,
        page_token,
        ..Default::default()
    };
    let (first, token) = list(of(3, String::new())).await;
    assert_eq!(first, ids[..3]);
    let (second, token) = list(of(3, token)).await;
    assert_eq!((second.as_slice(), token.as_str()), (&ids[3..], ""));
    let refused = v1::ListTransactionsRequest {
        states: vec![TransactionState::Aborted.into()],
        participant: "b".into(),
        ..Default::default()
    };
    assert_eq!(list(refused).await, (vec![ids[2].clone()], String::new()));
    house.close().await;
}

#[tokio::test]
async fn wrong_requests_are_refused_with_their_field_before_anything_starts() {
    let (directory, a, _) = scene();
    let mut house = House::open(&directory).await;
    let _a = willing(&house, "a", &a).await;
    let submit = |change: &dyn Fn(&mut v1::SubmitTransactionRequest)| {
        let mut request = transfer("", &["a"], 1);
        change(&mut request);
        request
    };
    let duration = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let text = v1::Value {
        kind: Some(v1::value::Kind::Text("5".into())),
    };
    let cases: Vec<(v1::SubmitTransactionRequest, &str)> = vec![
        (submit(&|r| r.branches.clear()), "branches"),
        (
            submit(&|r| r.branches[0].participant = "A b".into()),
            "branches[0].participant",
        ),
        (
            submit(&|r| r.branches.push(r.branches[0].clone())),
            "branches[1].participant",
        ),
        (
            submit(&|r| r.branches[0].operations[0].statement = None),
            "branches[0].operations[0]",
        ),
        (
            submit(&|r| {
                r.branches[0].operations.push(debit(1));
                r.branches[0].operations[1]
                    .parameters
                    .insert("amount".into(), text.clone());
            }),
            "branches[0].operations[1].parameters.amount",
        ),
        (
            submit(&|r| r.branches[0].operations[0].parameters.clear()),
            "branches[0].operations[0].parameters.amount",
        ),
        (
            submit(&|r| r.branches[0].operations = vec![debit(1); 1_001]),
            "branches[0].operations",
        ),
        (submit(&|r| r.request_id = "x".repeat(65)), "request_id"),
        (submit(&|r| r.timeout = duration(0, 0)), "timeout"),
        (
            submit(&|r| r.timeout = duration(i64::MIN, i32::MIN)),
            "timeout",
        ),
        (submit(&|r| r.timeout = duration(3_601, 0)), "timeout"),
        (submit(&|r| r.answer_time = 7), "answer_time"),
    ];
    for (request, wanted) in cases {
        let status = house.submit(request).await.expect_err(wanted);
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, "INVALID_REQUEST"),
            "{wanted}"
        );
        assert_eq!(field(&status), wanted);
    }

    let unknown = submit(&|r| {
        r.branches[0].operations[0].statement = Some(v1::operation::Statement::Name("debt".into()));
    });
    let status = house.submit(unknown).await.expect_err("unknown");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "OPERATION_UNKNOWN")
    );
    assert_eq!(field(&status), "branches[0].operations[0].name");
    assert!(status.message().contains("debit"), "{}", status.message());

    let status = house
        .submit(transfer("", &["stranger"], 1))
        .await
        .expect_err("unknown");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "PARTICIPANT_UNKNOWN")
    );
    let status = house.get("u1.zz").await.expect_err("malformed");
    assert_eq!(field(&status), "transaction_id");
    let resolve = v1::ResolveBranchRequest {
        transaction_id: "u1.00000001.1.00000000000000000000000000000001".into(),
        branch: 1,
        resolution: v1::Resolution::Committed.into(),
        reason: "short".into(),
    };
    assert_eq!(
        field(
            &house
                .admin
                .resolve_branch(resolve)
                .await
                .expect_err("no reason")
        ),
        "reason"
    );
    assert!(a.committed().is_empty());
    house.close().await;
}

#[tokio::test]
async fn a_session_begins_with_one_sound_hello() {
    let (directory, a, _) = scene();
    let house = House::open(&directory).await;
    let with = |change: &dyn Fn(&mut v1::Hello)| {
        let mut hello = hello("a");
        change(&mut hello);
        vec![Up::Hello(hello)]
    };
    let cases: Vec<(Vec<Up>, &str)> = vec![
        (vec![], "messages"),
        (vec![Up::Enlist(v1::Enlist::default())], "messages"),
        (
            vec![Up::Hello(hello("a")), Up::Hello(hello("a"))],
            "messages",
        ),
        (with(&|h| h.protocol_version = 2), "hello.protocol_version"),
        (with(&|h| h.participant = "A".into()), "hello.participant"),
        (with(&|h| h.capacity = 0), "hello.capacity"),
        (with(&|h| h.operation_policy = 9), "hello.operation_policy"),
        (
            with(&|h| h.operations[0].parameters[0].r#type = 0),
            "hello.operations[0].parameters[0].type",
        ),
    ];
    for (first, wanted) in cases {
        let (_up, down) = dial(house.address, first).await.expect("a stream");
        let status = end_of(down).await;
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(field(&status), wanted);
    }
    let _a = willing(&house, "a", &a).await;
    let (_up, down) = dial(house.address, with(&|h| h.resource = "another".into()))
        .await
        .expect("a stream");
    let status = end_of(down).await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "RESOURCE_MISMATCH")
    );
    house.close().await;
}

#[tokio::test]
async fn a_vote_that_says_nothing_ends_the_session() {
    let (directory, ..) = scene();
    let house = House::open(&directory).await;
    let (up, mut down) = dial(house.address, vec![Up::Hello(hello("a"))])
        .await
        .expect("a session");
    down.message().await.expect("welcomed");
    up.send(batch(vec![Up::Vote(v1::Vote::default())]))
        .await
        .expect("sent");
    let status = loop {
        match timeout(PATIENCE, down.message()).await.expect("in time") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(
        (status.code(), field(&status).as_str()),
        (Code::InvalidArgument, "vote.key")
    );
    house.close().await;
}

#[tokio::test]
async fn what_is_decided_and_not_delivered_is_seen_and_goes_on_after_a_restart() {
    let (directory, a, b) = scene();
    let mut house = House::open(&directory).await;
    let first = willing(&house, "a", &a).await;
    let sluggish = Participant::join(house.address, "b", Manner::Sluggish, &b).await;
    let mut request = transfer("r", &["a", "b"], 1);
    request.set_answer_time(v1::AnswerTime::Decided);
    let decided = house.submit(request).await.expect("taken");
    assert_eq!(decided.state(), TransactionState::Committing);

    let doubts = house
        .admin
        .list_in_doubt_branches(v1::ListInDoubtBranchesRequest::default());
    let doubts = doubts.await.expect("a page").into_inner().branches;
    assert!(
        doubts
            .iter()
            .any(|doubt| doubt.participant == "b" && doubt.kind() == v1::InDoubtKind::Committing)
    );
    let people = house
        .admin
        .list_participants(v1::ListParticipantsRequest::default());
    let people = people.await.expect("a page").into_inner().participants;
    assert_eq!(
        people.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(people[1].capacity, 16);

    // The drain doesn't wait for ever, and takes nothing new.
    house.ask_to_stop();
    house.close().await;
    first.leave().await;
    sluggish.leave().await;
    assert!(b.committed().is_empty());

    let mut house = House::open(&directory).await;
    let (_a, _b) = (
        willing(&house, "a", &a).await,
        willing(&house, "b", &b).await,
    );
    house
        .reaches(&decided.transaction_id, TransactionState::Committed)
        .await;
    assert!(b.committed().contains(&decided.transaction_id));
    house.close().await;
}

#[tokio::test]
async fn a_draining_coordinator_refuses_what_is_new_and_ends_what_waits() {
    let (directory, a, b) = scene();
    let mut settings = config(&directory);
    settings.drain_timeout = Duration::from_secs(2);
    let mut house = House::open_with(settings).await;
    let _a = willing(&house, "a", &a).await;
    let _b = Participant::join(house.address, "b", Manner::Sluggish, &b).await;
    let mut request = transfer("", &["a", "b"], 1);
    request.set_answer_time(v1::AnswerTime::Decided);
    let decided = house.submit(request).await.expect("taken");
    let mut waiting = house.transactions.clone();
    let id = decided.transaction_id.clone();
    let waiter = tokio::spawn(async move {
        waiting
            .commit_transaction(v1::CommitTransactionRequest {
                transaction_id: id,
                ..Default::default()
            })
            .await
    });
    house.ask_to_stop();
    let refused = async {
        loop {
            match house.submit(transfer("", &["a"], 1)).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(status) => break status,
            }
        }
    };
    let status = timeout(PATIENCE, refused).await.expect("in time");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "DRAINING")
    );
    house.close().await;
    // Its fate is unknown to the client, and it is told so.
    let cut = timeout(PATIENCE, waiter)
        .await
        .expect("in time")
        .expect("no panic");
    assert!(
        matches!(&cut, Err(status) if matches!(status.code(), Code::Unavailable | Code::FailedPrecondition)),
        "{cut:?}"
    );
}

#[tokio::test]
async fn health_and_reflection_answer() {
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    };
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let (directory, ..) = scene();
    let house = House::open(&directory).await;
    let mut health = HealthClient::new(house.channel.clone());
    let services = [
        "unanimity.v1.AdminService",
        "unanimity.v1.ParticipantService",
        "unanimity.v1.TransactionService",
    ];
    for service in services.iter().chain(&[""]) {
        let check = HealthCheckRequest {
            service: (*service).into(),
        };
        assert_eq!(
            health
                .check(check)
                .await
                .expect("known")
                .into_inner()
                .status(),
            ServingStatus::Serving,
            "{service}"
        );
    }
    let mut reflection = ServerReflectionClient::new(house.channel.clone());
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut told = reflection
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .expect("told")
        .into_inner();
    let answer = told
        .message()
        .await
        .expect("told")
        .expect("one")
        .message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("{answer:?}")
    };
    for service in services {
        assert!(list.service.iter().any(|s| s.name == service), "{list:?}");
    }

    // While it drains, a watcher hears that it no longer serves.
    let check = HealthCheckRequest {
        service: String::new(),
    };
    let mut watch = health.watch(check).await.expect("a watch").into_inner();
    assert_eq!(
        watch.message().await.expect("told").expect("one").status(),
        ServingStatus::Serving
    );
    house.ask_to_stop();
    assert_eq!(
        watch.message().await.expect("told").expect("one").status(),
        ServingStatus::NotServing
    );
    drop(watch);
    house.close().await;
}

#[tokio::test]
async fn what_keeps_it_from_serving_is_told_with_its_exit_code() {
    let (directory, ..) = scene();
    let house = House::open(&directory).await;
    let refused = async |settings| {
        let served = serve(settings, CancellationToken::new(), None);
        let error = timeout(PATIENCE, served)
            .await
            .expect("in time")
            .expect_err("refused");
        (exit_code(&error), error.to_string())
    };
    let (code, text) = refused(config(&directory)).await;
    assert_eq!(code, 73, "{text}");
    let elsewhere = tempdir().expect("a directory");
    let mut taken = config(&elsewhere);
    taken.listen = house.address;
    assert_eq!(refused(taken).await.0, 69);
    house.close().await;

    let segment = std::fs::read_dir(directory.path())
        .expect("a directory")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .expect("a segment");
    let mut bytes = std::fs::read(&segment).expect("read");
    bytes[3] ^= 0xff;
    std::fs::write(&segment, bytes).expect("written");
    let (code, text) = refused(config(&directory)).await;
    assert_eq!(code, 65, "{text}");
    assert!(text.contains(segment.to_str().expect("a path")), "{text}");
}
