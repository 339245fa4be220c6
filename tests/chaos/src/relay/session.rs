//! One session through the relay: a server to the agent, a client to the coordinator, and mischief in between.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{Stream, StreamExt as _};
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    time::sleep,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use unanimity_proto::v1::{
    self, CoordinatorMessage, ParticipantMessage, coordinator_message::Kind as Down,
    participant_message::Kind as Up, participant_service_client::ParticipantServiceClient,
    participant_service_server::ParticipantService,
};

use super::{MESSAGE_BYTES, Shared, memory::Memories};

/// The service.
#[derive(Clone, Debug)]
pub(super) struct Sessions(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl ParticipantService for Sessions {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut from_agent = request.into_inner();
        let first = from_agent.message().await?;
        let first = first.ok_or_else(|| Status::cancelled("the agent said nothing"))?;
        let (participant, agent) = names(&first);
        let channel = self.0.coordinator.connect().await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let (up, requests) = unbounded_channel();
        // The receiver is right there.
        let _ = up.send(first);
        let from_coordinator = ParticipantServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .session(UnboundedReceiverStream::new(requests))
            .await?
            .into_inner();
        let (down, responses) = unbounded_channel();
        let epoch = Arc::new(AtomicU64::new(0));
        // How far the log goes is told with each message, whatever becomes of the batch that it came with.
        let durable = Arc::new(AtomicU64::new(0));
        let upward = Way {
            shared: Arc::clone(&self.0),
            memories: |shared| &shared.up,
            peer: participant,
            epoch: Arc::clone(&epoch),
            send: move |message| {
                let messages = vec![message];
                // A session that is over swallows it.
                let _ = up.send(v1::SessionRequest { messages });
            },
        };
        let downward = Way {
            shared: Arc::clone(&self.0),
            memories: |shared| &shared.down,
            peer: agent,
            epoch,
            send: {
                let (down, durable) = (down.clone(), Arc::clone(&durable));
                move |message| {
                    let _ = down.send(Ok(v1::SessionResponse {
                        messages: vec![message],
                        durable_sequence: durable.load(Ordering::Relaxed),
                    }));
                }
            },
        };
        tokio::spawn(both_ways(
            upward.carry(from_agent.map(|batch| batch.map(|batch| batch.messages))),
            downward.carry(from_coordinator.map(move |batch| {
                batch.map(|batch| {
                    durable.fetch_max(batch.durable_sequence, Ordering::Relaxed);
                    batch.messages
                })
            })),
            down,
        ));
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            responses,
        ))))
    }
}

/// The participant, and the process that speaks for it, by its hello.
fn names(first: &v1::SessionRequest) -> (String, String) {
    match first.messages.first().map(|message| &message.kind) {
        Some(Some(Up::Hello(hello))) => (hello.participant.clone(), hello.agent.clone()),
        // The coordinator will refuse it.
        _ => Default::default(),
    }
}

/// The first end of either is the end of both; the agent hears the coordinator's reason.
async fn both_ways(
    up: impl Future<Output = Status>,
    down: impl Future<Output = Status>,
    agent: UnboundedSender<Result<v1::SessionResponse, Status>>,
) {
    let status = tokio::select! {
        status = up => status,
        status = down => status,
    };
    // The agent may be the one that is gone.
    let _ = agent.send(Err(status));
}

/// What passes.
trait Passing: Clone + Send + 'static {
    /// Its kind; `None` for a greeting.
    fn kind(&self) -> Option<&'static str>;

    /// The coordinator's epoch, where it tells.
    fn epoch(&self) -> Option<u64> {
        None
    }
}

impl Passing for CoordinatorMessage {
    fn kind(&self) -> Option<&'static str> {
        Some(match self.kind.as_ref()? {
            Down::Welcome(_) => return None,
            Down::Prepare(_) => "prepare",
            Down::Commit(_) => "commit",
            Down::Abort(_) => "abort",
            Down::Execute(_) => "execute",
            Down::EnlistResult(_) => "enlist_result",
            Down::ListInDoubt(_) => "list_in_doubt",
            Down::Prove(_) => "prove",
            Down::RunStep(_) => "run_step",
            Down::SettleStep(_) => "settle_step",
        })
    }

    fn epoch(&self) -> Option<u64> {
        match self.kind.as_ref()? {
            Down::Welcome(welcome) => Some(welcome.epoch),
            _ => None,
        }
    }
}

impl Passing for ParticipantMessage {
    fn kind(&self) -> Option<&'static str> {
        Some(match self.kind.as_ref()? {
            Up::Hello(_) => return None,
            Up::Vote(_) => "vote",
            Up::Completion(_) => "completion",
            Up::ExecuteResult(_) => "execute_result",
            Up::Enlist(_) => "enlist",
            Up::InDoubtReport(_) => "in_doubt_report",
            Up::Proof(_) => "proof",
            Up::StepResult(_) => "step_result",
        })
    }
}

/// One way of a session.
struct Way<M, S> {
    shared: Arc<Shared>,
    memories: fn(&Shared) -> &Memories<M>,
    /// Whose messages are remembered, and come again.
    peer: String,
    epoch: Arc<AtomicU64>,
    send: S,
}

impl<M: Passing, S: Fn(M) + Clone + Send + 'static> Way<M, S> {
    /// Passes everything on, in its own way, until the sender is done.
    async fn carry(
        self,
        mut batches: impl Stream<Item = Result<Vec<M>, Status>> + Unpin,
    ) -> Status {
        while let Some(batch) = batches.next().await {
            match batch {
                Ok(messages) => messages.into_iter().for_each(|message| self.pass(message)),
                Err(status) => return status,
            }
        }
        Status::unavailable("the other side has ended the session")
    }

    fn pass(&self, message: M) {
        let Some(kind) = message.kind() else {
            if let Some(epoch) = message.epoch() {
                self.epoch.store(epoch, Ordering::Relaxed);
            }
            return (self.send)(message);
        };
        let mischief = *self.shared.mischief.lock();
        if self.shared.happens(mischief.replay) {
            self.replay();
        }
        if self.shared.happens(mischief.duplicate) {
            *self
                .shared
                .counts
                .lock()
                .duplicated
                .entry(kind)
                .or_default() += 1;
            self.send_later(message.clone(), mischief.longest / 4);
        }
        let epoch = self.epoch.load(Ordering::Relaxed);
        (self.memories)(&self.shared).keep(&self.peer, epoch, message.clone());
        if self.shared.happens(mischief.delay) {
            *self.shared.counts.lock().delayed.entry(kind).or_default() += 1;
            self.send_later(message, mischief.longest);
        } else {
            (self.send)(message);
        }
    }

    /// Sends an old message once more.
    fn replay(&self) {
        let memories = (self.memories)(&self.shared);
        let draw = |count| self.shared.below(count);
        let Some((epoch, message)) = memories.recall(&self.peer, draw) else {
            return;
        };
        let Some(kind) = message.kind() else { return };
        let mut counts = self.shared.counts.lock();
        *counts.replayed.entry(kind).or_default() += 1;
        if epoch < self.epoch.load(Ordering::Relaxed) {
            *counts.of_old_epochs.entry(kind).or_default() += 1;
        }
        drop(counts);
        (self.send)(message);
    }

    fn send_later(&self, message: M, longest: std::time::Duration) {
        let (send, wait) = (self.send.clone(), self.shared.up_to(longest));
        tokio::spawn(async move {
            sleep(wait).await;
            send(message);
        });
    }
}
