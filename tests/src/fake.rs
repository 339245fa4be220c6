//! A participant that does as it is told, right or wrong: the bare protocol.

use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Status, Streaming, transport::Endpoint};
use unanimity_proto::{
    PROTOCOL_VERSION,
    v1::{
        self, coordinator_message::Kind as Down, participant_message::Kind as Up,
        participant_service_client::ParticipantServiceClient,
    },
};

/// A session, driven by hand.
#[derive(Debug)]
pub struct Fake {
    up: mpsc::UnboundedSender<v1::SessionRequest>,
    down: Streaming<v1::SessionResponse>,
    waiting: std::collections::VecDeque<Down>,
    /// What the coordinator said of itself.
    pub welcome: v1::Welcome,
}

impl Fake {
    /// Opens a session that takes any operation.
    ///
    /// # Panics
    /// Where it is not taken.
    pub async fn open(coordinator: &str, participant: &str) -> Self {
        Self::open_with(coordinator, hello(participant))
            .await
            .expect("the session is taken")
    }

    /// Opens a session with this hello.
    ///
    /// # Errors
    /// The coordinator's refusal.
    ///
    /// # Panics
    /// Where something other than a welcome comes first.
    pub async fn open_with(coordinator: &str, hello: v1::Hello) -> Result<Self, Status> {
        let endpoint = Endpoint::from_shared(coordinator.to_owned()).expect("an address");
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let (up, requests) = mpsc::unbounded_channel();
        up.send(message(Up::Hello(hello)))
            .expect("we hold the other end");
        let requests = UnboundedReceiverStream::new(requests);
        let mut down = ParticipantServiceClient::new(channel)
            .session(requests)
            .await?
            .into_inner();
        let first = down.message().await?.expect("a welcome comes first");
        let mut waiting: std::collections::VecDeque<_> = first
            .messages
            .into_iter()
            .filter_map(|message| message.kind)
            .collect();
        match waiting.pop_front() {
            Some(Down::Welcome(welcome)) => Ok(Self {
                up,
                down,
                waiting,
                welcome,
            }),
            other => panic!("not a welcome, but {other:?}"),
        }
    }

    /// The next message.
    ///
    /// # Errors
    /// The coordinator's, where it ends the session.
    pub async fn receive(&mut self) -> Result<Down, Status> {
        loop {
            if let Some(message) = self.waiting.pop_front() {
                return Ok(message);
            }
            let batch = self
                .down
                .message()
                .await?
                .ok_or_else(|| Status::aborted("the session ended"))?;
            self.waiting.extend(
                batch
                    .messages
                    .into_iter()
                    .filter_map(|message| message.kind),
            );
        }
    }

    /// The next prepare; whatever else comes before is passed over, a look for branches in doubt with an empty report.
    ///
    /// # Panics
    /// Where the session ends.
    pub async fn prepare(&mut self) -> v1::Prepare {
        loop {
            match self.receive().await.expect("the session goes on") {
                Down::Prepare(prepare) => return prepare,
                other => self.be_polite(other),
            }
        }
    }

    /// The next commit.
    ///
    /// # Panics
    /// Where the session ends.
    pub async fn commit(&mut self) -> v1::Commit {
        loop {
            match self.receive().await.expect("the session goes on") {
                Down::Commit(commit) => return commit,
                other => self.be_polite(other),
            }
        }
    }

    /// From now on votes yes to everything, and commits or aborts as it is told, until its session ends.
    pub fn obey(mut self) -> JoinHandle<()> {
        tokio::spawn(async move {
            while let Ok(message) = self.receive().await {
                match message {
                    Down::Prepare(prepare) => self.vote_yes(prepare.key),
                    Down::Commit(commit) => {
                        self.complete(commit.key, v1::CompletionKind::Committed);
                    }
                    Down::Abort(abort) => self.complete(abort.key, v1::CompletionKind::Aborted),
                    other => self.be_polite(other),
                }
            }
        })
    }

    fn be_polite(&self, message: Down) {
        if let Down::ListInDoubt(_) = message {
            self.send(Up::InDoubtReport(v1::InDoubtReport::default()));
        }
    }

    /// Says something. A session that is over swallows it.
    pub fn send(&self, kind: Up) {
        let _ = self.up.send(message(kind));
    }

    /// Votes yes.
    pub fn vote_yes(&self, key: Option<v1::BranchKey>) {
        self.vote(key, v1::VoteKind::Yes);
    }

    /// Votes; a no has a reason.
    pub fn vote(&self, key: Option<v1::BranchKey>, kind: v1::VoteKind) {
        let reason = (kind == v1::VoteKind::No).then(|| v1::AbortReason {
            code: v1::AbortCode::Refused.into(),
            message: "as told".into(),
            ..v1::AbortReason::default()
        });
        self.send(Up::Vote(v1::Vote {
            key,
            kind: kind.into(),
            reason,
            ..Default::default()
        }));
    }

    /// Says what became of a branch.
    pub fn complete(&self, key: Option<v1::BranchKey>, kind: v1::CompletionKind) {
        self.send(Up::Completion(v1::Completion {
            key,
            kind: kind.into(),
            message: String::new(),
        }));
    }
}

/// A hello that is good.
pub fn hello(participant: &str) -> v1::Hello {
    v1::Hello {
        protocol_version: PROTOCOL_VERSION,
        participant: participant.into(),
        agent: "fake".into(),
        resource: format!("fake:{participant}"),
        capacity: 100,
        operation_policy: v1::OperationPolicy::Any.into(),
        ..Default::default()
    }
}

fn message(kind: Up) -> v1::SessionRequest {
    v1::SessionRequest {
        messages: vec![v1::ParticipantMessage { kind: Some(kind) }],
    }
}
