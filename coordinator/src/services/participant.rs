//! The participants' sessions: a hello, then batches both ways until one side ends it.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};
use unanimity_engine::{Input, Opened, ParticipantName, SessionId};
use unanimity_proto::{
    PROTOCOL_VERSION,
    v1::{self, participant_message::Kind, participant_service_server::ParticipantService},
};

use super::Front;
use crate::{
    catalog::Signatures,
    driver::Handle,
    error::Refused,
    failpoint,
    outlet::{End, Outlet, outlet},
    request,
    wire::{self, Mistake},
};

/// A hello must have come by then.
const HELLO_TIME: Duration = Duration::from_secs(10);
/// The longest agent and resource names, in bytes.
const NAME_BYTES: usize = 512;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct Participants(pub(crate) Front);

#[tonic::async_trait]
impl ParticipantService for Participants {
    type SessionStream =
        Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send + 'static>>;

    /// Answers at once, so that a participant may send its hello before or after it has heard from us; a refusal comes as the stream's end.
    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let handle = self.0.handle()?.clone();
        let end = End::default();
        let (outlet, batches) = outlet(end.clone());
        let greeting = Greeting::default();
        let (catalog, learned) = (self.0.catalog.clone(), greeting.clone());
        let session = Session {
            handle,
            end,
            greeting,
            requests: request.into_inner(),
        };
        tokio::spawn(session.run(outlet));
        let responses = batches.flat_map(move |batch| {
            // The first batch is the welcome: from now on the participant's word counts.
            if let Some((participant, signatures)) =
                batch.is_ok().then(|| learned.lock().take()).flatten()
            {
                catalog.learn(participant, signatures);
            }
            batch
                .iter()
                .for_each(|batch| failpoint::sending(&batch.messages));
            stream::iter(match batch {
                Ok(batch) => wire::batches(batch).into_iter().map(Ok).collect(),
                Err(status) => vec![Err(status)],
            })
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

/// What a hello said of operations, until the participant is welcomed.
type Greeting = Arc<Mutex<Option<(ParticipantName, Signatures)>>>;

/// The reading half.
struct Session {
    handle: Handle,
    end: End,
    greeting: Greeting,
    requests: Streaming<v1::SessionRequest>,
}

impl Session {
    async fn run(mut self, outlet: Outlet) {
        let session = self.handle.new_session();
        let participant = match self.open(session, &outlet).await {
            Ok(participant) => participant,
            Err(refused) => {
                warn!(session = session.0, %refused, "a session was not opened");
                return self.end.close(refused);
            }
        };
        // The driver has its own; the stream ends with the last of them.
        drop(outlet);
        let end = self.end.clone();
        let why = tokio::select! {
            why = self.read(session, &participant) => why,
            () = end.reached() => "closed by the coordinator".into(),
        };
        info!(%participant, session = session.0, why, "session over");
        // A driver that has ended has forgotten the session with all the rest.
        let _ = self.handle.feed(vec![Input::SessionClosed(session)]).await;
    }

    async fn open(
        &mut self,
        session: SessionId,
        outlet: &Outlet,
    ) -> Result<ParticipantName, Refused> {
        let first = timeout(HELLO_TIME, self.requests.message()).await;
        let first = match first {
            Ok(Ok(Some(first))) => first,
            Ok(Ok(None) | Err(_)) => {
                return Err(Refused::invalid("hello", "the session ended before it"));
            }
            Err(_) => return Err(Refused::HelloMissing(HELLO_TIME)),
        };
        failpoint!("coordinator.session.hello");
        let (opened, signatures) = hello(session, first)?;
        let participant = opened.participant.clone();
        info!(
            %participant,
            session = session.0,
            agent = opened.agent,
            resource = opened.resource,
            capacity = opened.capacity,
            in_doubt = opened.in_doubt.len(),
            "a participant says hello"
        );
        *self.greeting.lock() = Some((participant.clone(), signatures));
        self.handle.open(opened, outlet.clone()).await?;
        Ok(participant)
    }

    /// Feeds what the participant says until it ends, and tells why it did.
    async fn read(&mut self, session: SessionId, participant: &ParticipantName) -> String {
        loop {
            let batch = match self.requests.message().await {
                Ok(Some(batch)) => batch,
                Ok(None) => return "ended by the participant".into(),
                Err(status) => return status.to_string(),
            };
            let (inputs, mistake) = inputs(session, participant, batch);
            if self.handle.feed(inputs).await.is_err() {
                return "the coordinator is going down".into();
            }
            if let Some(mistake) = mistake {
                warn!(%participant, session = session.0, %mistake, "a participant broke the protocol, so its session is closed");
                let why = mistake.to_string();
                self.end.close(mistake);
                return why;
            }
        }
    }
}

/// The inputs of a batch, up to the first mistake that ends the session.
fn inputs(
    session: SessionId,
    participant: &ParticipantName,
    batch: v1::SessionRequest,
) -> (Vec<Input>, Option<Refused>) {
    let mut inputs = Vec::with_capacity(batch.messages.len());
    for message in batch.messages {
        match wire::upward(participant, message) {
            Ok(message) => {
                failpoint::received(&message);
                inputs.push(Input::Message { session, message });
            }
            Err(Mistake::Stray(problem)) => {
                warn!(%participant, session = session.0, problem, "a participant's message was ignored");
            }
            Err(Mistake::Fatal(refused)) => return (inputs, Some(refused)),
        }
    }
    (inputs, None)
}

/// Reads a hello, which must be alone in its batch.
pub(crate) fn hello(
    session: SessionId,
    first: v1::SessionRequest,
) -> Result<(Opened, Signatures), Refused> {
    let Ok(
        [
            v1::ParticipantMessage {
                kind: Some(Kind::Hello(hello)),
            },
        ],
    ) = <[v1::ParticipantMessage; 1]>::try_from(first.messages)
    else {
        return Err(Refused::invalid(
            "messages",
            "the first batch must be a hello alone",
        ));
    };
    if hello.protocol_version != PROTOCOL_VERSION {
        let problem = format!(
            "is {}, but this coordinator speaks {PROTOCOL_VERSION}",
            hello.protocol_version
        );
        return Err(Refused::invalid("hello.protocol_version", problem));
    }
    if hello.capacity == 0 {
        return Err(Refused::invalid("hello.capacity", "must be at least 1"));
    }
    let policy = hello.operation_policy();
    let opened = Opened {
        session,
        participant: request::participant("hello.participant", &hello.participant)?,
        agent: short("hello.agent", hello.agent)?,
        resource: short("hello.resource", hello.resource)?,
        capacity: hello.capacity,
        one_phase: hello.one_phase,
        settles_steps: hello.settles_steps,
        seen: wire::log_positions(&hello.seen_logs)?,
        in_doubt: wire::found(hello.in_doubt),
    };
    Ok((opened, Signatures::parse(policy, hello.operations)?))
}

fn short(field: &str, text: String) -> Result<String, Refused> {
    if text.len() > NAME_BYTES {
        return Err(Refused::invalid(
            field,
            format!("must be at most {NAME_BYTES} bytes long"),
        ));
    }
    Ok(text)
}
