//! The client against a coordinator that loses replies, is busy, or goes away: one request id, and never a false outcome.

#[path = "fake_coordinator/saga.rs"]
mod saga;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
};
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{Code, Request, Response, Status, transport::Server};
use tonic_types::{ErrorDetails, StatusExt};
use unanimity_client::{
    Client, Error, ExecuteError, NotCommitted, Operation, Outcome, Reason, TransactionState,
    Unknown,
};
use unanimity_proto::v1::{
    self,
    transaction_service_server::{TransactionService, TransactionServiceServer},
};

const ID: &str = "u1.0a1b2c3d.1.0198f0a0b1c27d3e8f90a1b2c3d4e5f6";

/// What the coordinator does with the next call of a kind; when the script is empty, it answers as it should.
enum Step {
    Answer(v1::TransactionState),
    Fail(Status),
    Hang,
}

#[derive(Default)]
struct Script {
    steps: HashMap<&'static str, VecDeque<Step>>,
    calls: Vec<(&'static str, String)>,
    /// Of submits, sagas and begins.
    ages: Vec<Option<Duration>>,
    saga: Option<v1::SubmitSagaRequest>,
    attempts_limited: bool,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Script>>);

impl Fake {
    fn with(self, call: &'static str, steps: impl IntoIterator<Item = Step>) -> Self {
        self.0
            .lock()
            .expect("no panic")
            .steps
            .entry(call)
            .or_default()
            .extend(steps);
        self
    }

    /// The request ids, or transaction ids, that calls of a kind carried.
    fn seen(&self, call: &str) -> Vec<String> {
        let script = self.0.lock().expect("no panic");
        script
            .calls
            .iter()
            .filter(|(kind, _)| *kind == call)
            .map(|(_, id)| id.clone())
            .collect()
    }

    fn aged(&self, age: Option<prost_types::Duration>) {
        let age = age.map(|age| age.try_into().expect("an age is not negative"));
        self.0.lock().expect("no panic").ages.push(age);
    }

    fn ages(&self) -> Vec<Option<Duration>> {
        self.0.lock().expect("no panic").ages.clone()
    }

    /// The last one that was submitted.
    fn saga(&self) -> v1::SubmitSagaRequest {
        let saga = self.0.lock().expect("no panic").saga.clone();
        saga.expect("submitted")
    }

    async fn play<T>(
        &self,
        request: &Request<T>,
        call: &'static str,
        id: &str,
        default: v1::TransactionState,
    ) -> Result<Option<v1::Transaction>, Status> {
        let step = {
            let mut script = self.0.lock().expect("no panic");
            script.calls.push((call, id.to_owned()));
            script.attempts_limited = request.metadata().contains_key("grpc-timeout");
            script.steps.get_mut(call).and_then(VecDeque::pop_front)
        };
        let state = match step {
            None => default,
            Some(Step::Answer(state)) => state,
            Some(Step::Fail(status)) => return Err(status),
            Some(Step::Hang) => std::future::pending().await,
        };
        Ok(Some(transaction(state, id)))
    }

    async fn serve(&self) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let server = Server::builder().add_service(TransactionServiceServer::new(self.clone()));
        let task = tokio::spawn(async move {
            server
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .expect("serves");
        });
        (address, task)
    }

    async fn client(&self) -> Client {
        let (address, _) = self.serve().await;
        client(address)
    }
}

fn client(address: SocketAddr) -> Client {
    Client::builder(format!("http://{address}"))
        .call_timeout(Duration::from_millis(300))
        .retry_for(Duration::from_secs(5))
        .build()
        .expect("a good address")
}

fn transaction(state: v1::TransactionState, request_id: &str) -> v1::Transaction {
    let aborted = matches!(
        state,
        v1::TransactionState::Aborted
            | v1::TransactionState::Aborting
            | v1::TransactionState::Compensated
    );
    v1::Transaction {
        transaction_id: ID.into(),
        request_id: request_id.into(),
        state: state.into(),
        abort_reason: aborted.then(|| v1::AbortReason {
            code: v1::AbortCode::Refused.into(),
            participant: "bank1".into(),
            message: "no funds".into(),
        }),
        ..Default::default()
    }
}

fn said(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Step {
    let metadata: HashMap<String, String> = metadata
        .iter()
        .map(|&(k, v)| (k.into(), v.into()))
        .collect();
    let details = ErrorDetails::with_error_info(reason, unanimity_proto::ERROR_DOMAIN, metadata);
    Step::Fail(Status::with_error_details(code, "no", details))
}

type Stream_ = Pin<Box<dyn Stream<Item = Result<v1::WatchTransactionsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl TransactionService for Fake {
    async fn submit_transaction(
        &self,
        request: Request<v1::SubmitTransactionRequest>,
    ) -> Result<Response<v1::SubmitTransactionResponse>, Status> {
        self.aged(request.get_ref().age);
        let id = &request.get_ref().request_id;
        let transaction = self
            .play(&request, "submit", id, TransactionState::Committed)
            .await?;
        Ok(Response::new(v1::SubmitTransactionResponse { transaction }))
    }

    async fn submit_saga(
        &self,
        request: Request<v1::SubmitSagaRequest>,
    ) -> Result<Response<v1::SubmitSagaResponse>, Status> {
        self.aged(request.get_ref().age);
        self.0.lock().expect("no panic").saga = Some(request.get_ref().clone());
        let id = &request.get_ref().request_id;
        let transaction = self
            .play(&request, "saga", id, TransactionState::Committed)
            .await?;
        let step = v1::Step {
            name: "order".into(),
            kind: v1::StepKind::Compensatable.into(),
            state: v1::StepState::Retrying.into(),
            stuck: true,
            next_attempt_time: Some(prost_types::Timestamp::default()),
            ..Default::default()
        };
        Ok(Response::new(v1::SubmitSagaResponse {
            transaction: transaction.map(|transaction| v1::Transaction {
                saga: Some(v1::Saga {
                    steps: vec![step],
                    ..Default::default()
                }),
                ..transaction
            }),
        }))
    }

    async fn begin_transaction(
        &self,
        request: Request<v1::BeginTransactionRequest>,
    ) -> Result<Response<v1::BeginTransactionResponse>, Status> {
        self.aged(request.get_ref().age);
        let id = &request.get_ref().request_id;
        let transaction = self
            .play(&request, "begin", id, TransactionState::Active)
            .await?;
        Ok(Response::new(v1::BeginTransactionResponse { transaction }))
    }

    async fn execute_operation(
        &self,
        request: Request<v1::ExecuteOperationRequest>,
    ) -> Result<Response<v1::ExecuteOperationResponse>, Status> {
        let id = &request.get_ref().transaction_id;
        self.play(&request, "execute", id, TransactionState::Active)
            .await?;
        let result = v1::OperationResult {
            columns: vec!["balance".into()],
            rows: vec![v1::Row {
                values: vec![v1::Value {
                    kind: Some(v1::value::Kind::Integer(90)),
                }],
            }],
            affected_rows: 1,
        };
        Ok(Response::new(v1::ExecuteOperationResponse {
            result: Some(result),
        }))
    }

    async fn commit_transaction(
        &self,
        request: Request<v1::CommitTransactionRequest>,
    ) -> Result<Response<v1::CommitTransactionResponse>, Status> {
        let id = &request.get_ref().transaction_id;
        let transaction = self
            .play(&request, "commit", id, TransactionState::Committed)
            .await?;
        Ok(Response::new(v1::CommitTransactionResponse { transaction }))
    }

    async fn abort_transaction(
        &self,
        request: Request<v1::AbortTransactionRequest>,
    ) -> Result<Response<v1::AbortTransactionResponse>, Status> {
        let id = &request.get_ref().transaction_id;
        let transaction = self
            .play(&request, "abort", id, TransactionState::Aborted)
            .await?;
        Ok(Response::new(v1::AbortTransactionResponse { transaction }))
    }

    async fn get_transaction(
        &self,
        request: Request<v1::GetTransactionRequest>,
    ) -> Result<Response<v1::GetTransactionResponse>, Status> {
        let id = &request.get_ref().transaction_id;
        let transaction = self
            .play(&request, "get", id, TransactionState::Committed)
            .await?;
        Ok(Response::new(v1::GetTransactionResponse { transaction }))
    }

    async fn list_transactions(
        &self,
        request: Request<v1::ListTransactionsRequest>,
    ) -> Result<Response<v1::ListTransactionsResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(request.states, [i32::from(TransactionState::Committing)]);
        Ok(Response::new(v1::ListTransactionsResponse {
            transactions: vec![transaction(TransactionState::Committing, "r")],
            next_page_token: if request.page_token.is_empty() {
                "next".into()
            } else {
                String::new()
            },
        }))
    }

    type WatchTransactionsStream = Stream_;

    async fn watch_transactions(
        &self,
        _: Request<v1::WatchTransactionsRequest>,
    ) -> Result<Response<Self::WatchTransactionsStream>, Status> {
        Err(Status::unimplemented("not needed here"))
    }
}

async fn submit(client: &Client) -> Result<Outcome, Error> {
    client
        .transaction()
        .branch(
            "bank1",
            [Operation::named("debit")
                .with("account", 7)
                .with("amount", 10)],
        )
        .branch(
            "bank2",
            [Operation::named("credit")
                .with("account", 9)
                .with("amount", 10)],
        )
        .submit()
        .await
}

fn unknown(outcome: Result<Outcome, Error>) -> Unknown {
    match outcome {
        Ok(Outcome::Unknown(unknown)) => unknown,
        other => panic!("not unknown: {other:?}"),
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

#[tokio::test]
async fn each_state_is_its_outcome() {
    use TransactionState::{Aborted, Aborting, Committed, Committing, Heuristic};
    let fake = Fake::default().with(
        "submit",
        [Committed, Committing, Aborted, Aborting, Heuristic].map(Step::Answer),
    );
    let client = fake.client().await;
    let receipt = submit(&client)
        .await
        .expect("taken")
        .committed()
        .expect("committed");
    assert!(receipt.delivered);
    assert_eq!(receipt.transaction_id, ID);
    let receipt = submit(&client)
        .await
        .expect("taken")
        .committed()
        .expect("decided is committed");
    assert!(!receipt.delivered);
    for _ in 0..2 {
        match submit(&client).await.expect("taken").committed() {
            Err(NotCommitted::Aborted(aborted)) => {
                assert_eq!(aborted.participant.as_deref(), Some("bank1"));
                assert!(!aborted.is_transient());
            }
            other => panic!("not aborted: {other:?}"),
        }
    }
    assert!(matches!(submit(&client).await, Ok(Outcome::Heuristic(_))));
    let ids = fake.seen("submit");
    assert_eq!(ids.len(), 5);
    assert!(
        ids.iter().collect::<std::collections::HashSet<_>>().len() == 5,
        "a fresh request id for each: {ids:?}"
    );
    assert!(
        fake.0.lock().expect("no panic").attempts_limited,
        "the coordinator learns the deadline"
    );
}

#[tokio::test]
async fn a_lost_reply_is_asked_for_again_with_the_same_request_id() {
    let lost = [
        Step::Hang,
        Step::Fail(Status::cancelled("Timeout expired")),
        Step::Fail(Status::unavailable("a proxy's word")),
        Step::Fail(Status::internal("h2 protocol error")),
        Step::Answer(TransactionState::Preparing),
    ];
    let fake = Fake::default().with("submit", lost);
    let outcome = submit(&fake.client().await).await;
    assert!(matches!(outcome, Ok(Outcome::Committed(_))), "{outcome:?}");
    let ids = fake.seen("submit");
    assert_eq!(ids.len(), 6);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test]
async fn no_wait_is_too_long_to_ask_for() {
    let lost = || Step::Fail(Status::unavailable("lost"));
    let fake = Fake::default()
        .with("submit", [lost()])
        .with("get", [lost()]);
    let (address, _) = fake.serve().await;
    let client = Client::builder(format!("http://{address}"))
        .connect_timeout(Duration::MAX)
        .call_timeout(Duration::MAX)
        .retry_for(Duration::MAX)
        .build()
        .expect("a good address");
    assert!(matches!(submit(&client).await, Ok(Outcome::Committed(_))));
    assert!(client.lookup(ID).await.is_ok());
    let submission = client
        .transaction()
        .branch("bank1", [])
        .timeout(Duration::from_secs(i64::MAX as u64))
        .retry_for(Duration::MAX);
    assert!(matches!(
        submission.submit().await,
        Ok(Outcome::Committed(_))
    ));
    let transaction = open(&client).await;
    let operation = Operation::named("debit");
    assert!(transaction.execute("bank1", operation).await.is_ok());
    assert!(matches!(
        transaction.commit().await,
        Ok(Outcome::Committed(_))
    ));
}

#[tokio::test]
async fn busy_and_unavailable_are_waited_out() {
    let away = [
        said(Code::Unavailable, "PARTICIPANT_UNAVAILABLE", &[]),
        said(Code::ResourceExhausted, "TOO_MANY_TRANSACTIONS", &[]),
        said(Code::Unavailable, "DRAINING", &[]),
    ];
    let fake = Fake::default().with("submit", away);
    assert!(matches!(
        submit(&fake.client().await).await,
        Ok(Outcome::Committed(_))
    ));
    assert_eq!(fake.seen("submit").len(), 4);
}

#[tokio::test]
async fn a_coordinator_that_stays_busy_is_an_error_for_nothing_was_taken() {
    let fake = Fake::default().with(
        "submit",
        (0..100).map(|_| said(Code::ResourceExhausted, "PARTICIPANT_BUSY", &[])),
    );
    let client = fake.client().await;
    let busy = client
        .transaction()
        .branch("bank1", [])
        .retry_for(Duration::from_millis(100))
        .submit()
        .await;
    assert!(
        matches!(
            busy,
            Err(Error::Busy {
                reason: Reason::ParticipantBusy,
                ..
            })
        ),
        "{busy:?}"
    );
}

#[tokio::test]
async fn a_request_that_is_wrong_is_not_retried() {
    let fake = Fake::default().with(
        "submit",
        [said(
            Code::InvalidArgument,
            "INVALID_REQUEST",
            &[("field", "branches")],
        )],
    );
    let client = fake.client().await;
    match submit(&client).await {
        Err(Error::Invalid { field, .. }) => assert_eq!(field.as_deref(), Some("branches")),
        other => panic!("not invalid: {other:?}"),
    }
    assert_eq!(fake.seen("submit").len(), 1);
    let long = client
        .transaction()
        .request_id("x".repeat(65))
        .submit()
        .await;
    assert!(matches!(long, Err(Error::Invalid { .. })));
    assert_eq!(fake.seen("submit").len(), 1);
}

#[tokio::test]
async fn a_refusal_after_a_lost_reply_proves_nothing() {
    let fake = Fake::default().with(
        "submit",
        [
            Step::Fail(Status::unavailable("connection reset")),
            said(Code::NotFound, "PARTICIPANT_UNKNOWN", &[]),
        ],
    );
    let unknown = unknown(submit(&fake.client().await).await);
    assert!(matches!(
        unknown.settle(soon()).await,
        Outcome::Committed(_)
    ));
    let ids = fake.seen("submit");
    assert_eq!(ids.len(), 3);
    assert!(
        ids.iter()
            .all(|id| Some(id.as_str()) == unknown.request_id()),
        "{ids:?}"
    );
}

#[tokio::test]
async fn a_repeated_request_says_how_long_ago_it_was_first_sent() {
    let lost = || Step::Fail(Status::unavailable("lost"));
    let fake = Fake::default()
        .with("submit", [Step::Hang, lost()])
        .with("begin", [lost()]);
    let client = fake.client().await;
    let submission = client
        .transaction()
        .branch("bank1", [])
        .retry_for(Duration::ZERO);
    let unknown = unknown(submission.clone().submit().await);
    assert!(matches!(
        unknown.settle(soon()).await,
        Outcome::Committed(_)
    ));
    assert!(submission.clone().submit().await.is_ok());
    assert!(submission.request_id("another").submit().await.is_ok());
    let _open = open(&client).await;
    let ages = fake.ages();
    let hung = |age: Option<Duration>| {
        let hung = Duration::from_millis(300)..Duration::from_secs(60);
        age.is_some_and(|age| hung.contains(&age))
    };
    assert_eq!(ages.len(), 7);
    assert_eq!(ages[0], None, "the first attempt");
    assert!(
        ages[1..4].iter().all(|age| hung(*age)) && ages[1..4].is_sorted(),
        "the settling and the clone: {ages:?}"
    );
    assert_eq!(ages[4], None, "another request id");
    assert_eq!(ages[5], None, "a begin");
    assert!(ages[6].is_some(), "the begin once more: {ages:?}");
}

#[tokio::test]
async fn a_forgotten_request_id_keeps_the_doubt_and_ends_the_asking() {
    let forgotten = || said(Code::NotFound, "REQUEST_ID_FORGOTTEN", &[]);
    let lost = Step::Fail(Status::unavailable("lost"));
    let fake = Fake::default().with("submit", [lost, forgotten(), forgotten(), forgotten()]);
    let client = fake.client().await;
    let submission = client.transaction().branch("bank1", []);
    let doubt = unknown(submission.clone().submit().await);
    assert_eq!(fake.seen("submit").len(), 2);
    match doubt.settle(soon()).await {
        Outcome::Unknown(unknown) => assert_eq!(unknown.request_id(), doubt.request_id()),
        other => panic!("not unknown: {other:?}"),
    }
    assert_eq!(fake.seen("submit").len(), 3, "asking on can't help");
    unknown(submission.submit().await);
    assert_eq!(fake.seen("submit").len(), 4);

    let fake = Fake::default().with("begin", [forgotten()]);
    let refused = fake.client().await.begin().start().await;
    assert!(
        matches!(&refused, Err(error @ Error::NotFound { reason: Reason::RequestIdForgotten, .. }) if !error.is_retryable()),
        "{refused:?}"
    );
    assert_eq!(fake.seen("begin").len(), 1);
}

#[tokio::test]
async fn a_coordinator_that_is_down_leaves_the_outcome_unknown_until_it_is_back() {
    let fake = Fake::default();
    let (address, task) = fake.serve().await;
    let client = client(address);
    task.abort();
    let _ = task.await;
    let submission = client
        .transaction()
        .request_id("order-17")
        .branch("bank1", [])
        .retry_for(Duration::from_millis(100));
    let unknown = unknown(submission.submit().await);
    assert_eq!(unknown.request_id(), Some("order-17"));
    assert!(unknown.cause().contains("refused"), "{}", unknown.cause());
    assert!(matches!(
        unknown.settle(Instant::now()).await,
        Outcome::Unknown(_)
    ));

    let listener = TcpListener::bind(address)
        .await
        .expect("the port is free again");
    let server = Server::builder().add_service(TransactionServiceServer::new(fake.clone()));
    tokio::spawn(async move {
        server
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
    });
    match unknown.settle(soon()).await {
        Outcome::Committed(receipt) => assert_eq!(receipt.request_id.as_deref(), Some("order-17")),
        other => panic!("not committed: {other:?}"),
    }
}

/// Passes bytes on to the coordinator, and cuts its connections when told.
async fn cutting_proxy(target: SocketAddr, cut: Arc<Notify>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.expect("accepts");
            let mut far = TcpStream::connect(target).await.expect("connects");
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                () = cut.notified() => {}
            }
        }
    });
    address
}

#[tokio::test]
async fn a_connection_that_breaks_under_a_request_leaves_the_outcome_unknown() {
    let fake = Fake::default().with("submit", [Step::Hang]);
    let (target, _) = fake.serve().await;
    let cut = Arc::new(Notify::new());
    let address = cutting_proxy(target, Arc::clone(&cut)).await;
    let client = Client::builder(format!("http://{address}"))
        .build()
        .expect("a good address");
    let submission = client
        .transaction()
        .branch("bank1", [])
        .retry_for(Duration::ZERO);
    let waiting = tokio::spawn(submission.submit());
    tokio::time::timeout(Duration::from_secs(5), async {
        while fake.seen("submit").is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("taken");
    cut.notify_one();
    let unknown = unknown(waiting.await.expect("no panic"));
    assert!(matches!(
        unknown.settle(soon()).await,
        Outcome::Committed(_)
    ));
    let ids = fake.seen("submit");
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1]);
}

async fn open(client: &Client) -> unanimity_client::Transaction {
    let begin = client
        .begin()
        .participant("bank1")
        .participant("bank2")
        .timeout(Duration::from_millis(1));
    begin.start().await.expect("opened")
}

#[tokio::test]
async fn an_interactive_transaction_works_and_commits() {
    let fake = Fake::default().with("begin", [Step::Fail(Status::unavailable("lost"))]);
    let client = fake.client().await;
    let transaction = open(&client).await;
    assert_eq!(transaction.id(), ID);
    let mut headers = http::HeaderMap::new();
    transaction.inject(&mut headers);
    assert_eq!(headers["unanimity-transaction"], ID);
    assert_eq!(transaction.header(), ("unanimity-transaction", ID));
    let rows = transaction
        .execute("bank1", Operation::named("debit").with("account", 7))
        .await
        .expect("ran");
    assert_eq!(rows.first().expect("a row").get("balance"), Ok(90));
    assert!(matches!(
        transaction.commit().await,
        Ok(Outcome::Committed(_))
    ));
    let begun = fake.seen("begin");
    assert_eq!(begun.len(), 2);
    assert_eq!(begun[0], begun[1]);
    assert!(fake.seen("abort").is_empty());
}

#[tokio::test]
async fn an_operation_that_fails_says_what_became_of_the_transaction() {
    let steps = [
        said(
            Code::Aborted,
            "TRANSACTION_ABORTED",
            &[("code", "ABORT_CODE_CONFLICT"), ("participant", "bank1")],
        ),
        said(Code::NotFound, "OPERATION_UNKNOWN", &[]),
        Step::Fail(Status::deadline_exceeded("")),
    ];
    let fake = Fake::default().with("execute", steps);
    let client = fake.client().await;
    let transaction = open(&client).await;
    let run = async || {
        transaction
            .execute("bank1", Operation::named("debit"))
            .await
    };
    match run().await {
        Err(ExecuteError::Aborted(aborted)) => assert!(aborted.is_transient()),
        other => panic!("not aborted: {other:?}"),
    }
    assert!(matches!(
        run().await,
        Err(ExecuteError::NotRun(Error::NotFound { .. }))
    ));
    assert!(matches!(run().await, Err(ExecuteError::Unknown(_))));
    assert_eq!(fake.seen("execute").len(), 3, "never retried");
}

#[tokio::test]
async fn a_dropped_transaction_is_aborted_in_the_background() {
    let fake = Fake::default();
    let client = fake.client().await;
    drop(open(&client).await);
    tokio::time::timeout(Duration::from_secs(5), async {
        while fake.seen("abort").is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("aborted");
    assert_eq!(fake.seen("abort"), [ID]);
}

#[tokio::test]
async fn a_commit_without_an_answer_is_settled_by_a_look() {
    let commits = (0..100).map(|_| Step::Fail(Status::unavailable("lost")));
    let looks = [
        said(Code::Unavailable, "OUTCOME_PENDING", &[]),
        Step::Answer(TransactionState::Preparing),
        Step::Answer(TransactionState::Aborting),
    ];
    let fake = Fake::default().with("commit", commits).with("get", looks);
    let (address, _) = fake.serve().await;
    let client = Client::builder(format!("http://{address}"))
        .retry_for(Duration::from_millis(50))
        .build()
        .expect("good");
    let unknown = unknown(open(&client).await.commit().await);
    assert_eq!(unknown.transaction_id(), Some(ID));
    assert!(matches!(unknown.settle(soon()).await, Outcome::Aborted(_)));
    assert_eq!(fake.seen("get").len(), 3);
    assert!(
        fake.seen("abort").is_empty(),
        "an abort could cross the commit"
    );
}

#[tokio::test]
async fn a_commit_of_what_has_ended_tells_how_it_ended() {
    let fake = Fake::default().with(
        "commit",
        [
            Step::Fail(Status::unavailable("lost")),
            said(Code::FailedPrecondition, "TRANSACTION_DECIDED", &[]),
        ],
    );
    let client = fake.client().await;
    assert!(matches!(
        open(&client).await.commit().await,
        Ok(Outcome::Committed(_))
    ));
    let fake = Fake::default().with(
        "commit",
        [said(
            Code::Aborted,
            "TRANSACTION_ABORTED",
            &[("code", "ABORT_CODE_TIMEOUT")],
        )],
    );
    let client = fake.client().await;
    assert!(matches!(
        open(&client).await.commit_when_decided().await,
        Ok(Outcome::Aborted(_))
    ));
}

#[tokio::test]
async fn look_ups_and_lists_are_read() {
    let fake = Fake::default().with(
        "get",
        [
            Step::Fail(Status::unavailable("lost")),
            Step::Answer(TransactionState::Waiting),
            said(Code::NotFound, "TRANSACTION_UNKNOWN", &[]),
        ],
    );
    let client = fake.client().await;
    let snapshot = client.lookup(ID).await.expect("found");
    assert_eq!(snapshot.state, TransactionState::Waiting);
    let absent = client.lookup(ID).await;
    assert!(matches!(
        absent,
        Err(Error::NotFound {
            reason: Reason::TransactionUnknown,
            ..
        })
    ));
    let page = client
        .list()
        .state(TransactionState::Committing)
        .page()
        .await
        .expect("listed");
    assert_eq!(page.transactions.len(), 1);
    let last = client
        .list()
        .state(TransactionState::Committing)
        .after(page.next.expect("more"))
        .page()
        .await;
    assert_eq!(last.expect("listed").next, None);
}

#[tokio::test]
async fn futures_can_be_spawned() {
    let client = Fake::default().client().await;
    let spawned = tokio::spawn(async move {
        let outcome = submit(&client).await;
        let transaction = open(&client).await;
        let rows = transaction
            .execute("bank1", Operation::sql("SELECT 1").bind(1))
            .await;
        (outcome, rows, transaction.commit().await)
    });
    let (outcome, rows, committed) = spawned.await.expect("no panic");
    assert!(matches!(outcome, Ok(Outcome::Committed(_))));
    assert!(rows.is_ok());
    assert!(matches!(committed, Ok(Outcome::Committed(_))));
}
