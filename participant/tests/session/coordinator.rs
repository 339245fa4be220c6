//! A coordinator that says what a test tells it to, over real TCP.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};
use unanimity_proto::v1::{
    self, CoordinatorMessage, ParticipantMessage, SessionRequest, SessionResponse,
    coordinator_message as down, participant_message as up,
    participant_service_server::{ParticipantService, ParticipantServiceServer},
};

/// Longer than anything here takes, unless it is broken.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Listens, and hands each session to the test.
pub(crate) struct Coordinator {
    pub(crate) uri: String,
    sessions: mpsc::UnboundedReceiver<Session>,
    refuse: Arc<Mutex<Option<Status>>>,
    refused: Arc<AtomicUsize>,
}

/// The coordinator's end of a session.
pub(crate) struct Session {
    inbound: Streaming<SessionRequest>,
    outbound: mpsc::UnboundedSender<Result<SessionResponse, Status>>,
    arrived: std::collections::VecDeque<ParticipantMessage>,
}

struct Service {
    sessions: mpsc::UnboundedSender<Session>,
    refuse: Arc<Mutex<Option<Status>>>,
    refused: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl ParticipantService for Service {
    type SessionStream = UnboundedReceiverStream<Result<SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if let Some(status) = self.refuse.lock().take() {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(status);
        }
        let (outbound, receiver) = mpsc::unbounded_channel();
        let session = Session {
            inbound: request.into_inner(),
            outbound,
            arrived: Default::default(),
        };
        self.sessions
            .send(session)
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }
}

impl Coordinator {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a loopback port");
        let address: SocketAddr = listener.local_addr().expect("the port");
        let (sender, sessions) = mpsc::unbounded_channel();
        let (refuse, refused) = (Arc::default(), Arc::default());
        let service = Service {
            sessions: sender,
            refuse: Arc::clone(&refuse),
            refused: Arc::clone(&refused),
        };
        let server = Server::builder().add_service(ParticipantServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self {
            uri: format!("http://{address}"),
            sessions,
            refuse,
            refused,
        }
    }

    /// The next hello is answered with `status`.
    pub(crate) fn refuse_next(&self, status: Status) {
        *self.refuse.lock() = Some(status);
    }

    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    /// The next session, its hello not yet read.
    pub(crate) async fn dialled(&mut self) -> Session {
        tokio::time::timeout(LONG, self.sessions.recv())
            .await
            .expect("a session in time")
            .expect("the server runs")
    }

    /// The next session, greeted.
    pub(crate) async fn welcomed(&mut self, log_id: &str, epoch: u64) -> (Session, v1::Hello) {
        let mut session = self.dialled().await;
        let hello = session.hello().await;
        session.send([welcome(log_id, epoch)]);
        (session, hello)
    }
}

impl Session {
    pub(crate) fn send(&self, messages: impl IntoIterator<Item = CoordinatorMessage>) {
        let messages = messages.into_iter().collect();
        self.send_at(messages, 1);
    }

    /// With so many records on disk.
    pub(crate) fn send_at(&self, messages: Vec<CoordinatorMessage>, durable_sequence: u64) {
        let response = SessionResponse {
            messages,
            durable_sequence,
        };
        self.outbound
            .send(Ok(response))
            .expect("the session is open");
    }

    pub(crate) async fn hello(&mut self) -> v1::Hello {
        let first = self.batch().await.expect("a first batch");
        let [
            ParticipantMessage {
                kind: Some(up::Kind::Hello(hello)),
            },
        ] = first.as_slice()
        else {
            panic!("not a hello alone: {first:?}")
        };
        hello.clone()
    }

    /// The next answer.
    pub(crate) async fn next(&mut self) -> up::Kind {
        self.next_or_end().await.expect("the session is open")
    }

    /// The next answer, or `None` where the participant has closed the session.
    pub(crate) async fn next_or_end(&mut self) -> Option<up::Kind> {
        while self.arrived.is_empty() {
            self.arrived = self.batch().await?.into();
        }
        self.arrived
            .pop_front()
            .map(|message| message.kind.expect("a kind"))
    }

    /// Breaks the stream off.
    pub(crate) fn lose(&mut self) {
        _ = self
            .outbound
            .send(Err(Status::unavailable("the coordinator goes away")));
    }

    async fn batch(&mut self) -> Option<Vec<ParticipantMessage>> {
        let batch = tokio::time::timeout(LONG, self.inbound.message())
            .await
            .expect("a batch in time");
        batch.ok().flatten().map(|batch| batch.messages)
    }
}

pub(crate) fn welcome(log_id: &str, epoch: u64) -> CoordinatorMessage {
    message(down::Kind::Welcome(v1::Welcome {
        log_id: log_id.into(),
        epoch,
        instance: 7,
    }))
}

pub(crate) fn prepare(transaction: &str) -> CoordinatorMessage {
    message(down::Kind::Prepare(v1::Prepare {
        key: key(transaction),
        ..v1::Prepare::default()
    }))
}

pub(crate) fn prepare_continued(transaction: &str) -> CoordinatorMessage {
    let timeout = prost_types::Duration::try_from(LONG).ok();
    message(down::Kind::Prepare(v1::Prepare {
        key: key(transaction),
        continued: true,
        timeout,
        ..v1::Prepare::default()
    }))
}

pub(crate) fn commit(transaction: &str) -> CoordinatorMessage {
    commit_with(transaction, "742")
}

pub(crate) fn commit_with(transaction: &str, proof: &str) -> CoordinatorMessage {
    message(down::Kind::Commit(v1::Commit {
        key: key(transaction),
        proof: proof.into(),
    }))
}

pub(crate) fn abort(transaction: &str) -> CoordinatorMessage {
    message(down::Kind::Abort(v1::Abort {
        key: key(transaction),
        proof: String::new(),
    }))
}

pub(crate) fn prove(transaction: &str) -> CoordinatorMessage {
    message(down::Kind::Prove(v1::Prove {
        key: key(transaction),
    }))
}

pub(crate) fn execute(transaction: &str, sequence: u64) -> CoordinatorMessage {
    message(down::Kind::Execute(v1::Execute {
        key: key(transaction),
        sequence,
        ..v1::Execute::default()
    }))
}

pub(crate) fn run_step(transaction: &str, attempt: u32) -> CoordinatorMessage {
    message(down::Kind::RunStep(v1::RunStep {
        key: key(transaction),
        attempt,
        ..v1::RunStep::default()
    }))
}

/// Undoes what branch 1 of the same transaction did.
pub(crate) fn compensate(transaction: &str, attempt: u32) -> CoordinatorMessage {
    message(down::Kind::RunStep(v1::RunStep {
        key: Some(v1::BranchKey {
            transaction_id: transaction.into(),
            branch: 2,
        }),
        compensates: Some(v1::Compensates {
            branch: 1,
            unsettled: true,
            result: "{}".into(),
        }),
        attempt,
        ..v1::RunStep::default()
    }))
}

pub(crate) fn settle_step(transaction: &str, attempt: u32) -> CoordinatorMessage {
    message(down::Kind::SettleStep(v1::SettleStep {
        key: key(transaction),
        age: None,
        attempt,
    }))
}

pub(crate) fn list_in_doubt() -> CoordinatorMessage {
    message(down::Kind::ListInDoubt(v1::ListInDoubt {}))
}

pub(crate) fn enlist_result(correlation: u64, answer: Result<&str, &str>) -> CoordinatorMessage {
    message(down::Kind::EnlistResult(v1::EnlistResult {
        correlation,
        key: answer.ok().and_then(key),
        refusal: answer.err().unwrap_or_default().into(),
    }))
}

pub(crate) fn key(transaction: &str) -> Option<v1::BranchKey> {
    Some(v1::BranchKey {
        transaction_id: transaction.into(),
        branch: 1,
    })
}

fn message(kind: down::Kind) -> CoordinatorMessage {
    CoordinatorMessage { kind: Some(kind) }
}
