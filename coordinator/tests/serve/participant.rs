//! A participant over a real session, whose database is a set of ids.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use unanimity_proto::{
    PROTOCOL_VERSION,
    v1::{
        self, coordinator_message::Kind as Down, participant_message::Kind as Up,
        participant_service_client::ParticipantServiceClient,
    },
};

use crate::house::PATIENCE;

/// What outlives the participant's process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Database {
    committed: Arc<Mutex<BTreeSet<String>>>,
    one_phase: Arc<Mutex<BTreeSet<String>>>,
}

impl Database {
    pub(crate) fn committed(&self) -> BTreeSet<String> {
        self.committed.lock().expect("no panic").clone()
    }

    pub(crate) fn committed_in_one_phase(&self) -> BTreeSet<String> {
        self.one_phase.lock().expect("no panic").clone()
    }

    fn commit(&self, id: String) {
        self.committed.lock().expect("no panic").insert(id);
    }
}

/// How a participant behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Votes yes to all, commits what it is told.
    Willing,
    /// Votes no to all.
    Refusing,
    /// Votes yes, and never manages to commit.
    Sluggish,
}

pub(crate) fn hello(name: &str) -> v1::Hello {
    let amount = v1::ParameterSignature {
        name: "amount".into(),
        r#type: v1::ParameterType::Integer.into(),
    };
    v1::Hello {
        protocol_version: PROTOCOL_VERSION,
        participant: name.into(),
        agent: "test".into(),
        resource: format!("test:{name}"),
        capacity: 16,
        one_phase: true,
        operation_policy: v1::OperationPolicy::Listed.into(),
        operations: vec![v1::OperationSignature {
            name: "debit".into(),
            parameters: vec![amount],
        }],
        in_doubt: Vec::new(),
        settles_steps: false,
        seen_logs: Vec::new(),
    }
}

/// Opens a session with this first batch; gives the way up and what comes down.
pub(crate) async fn dial(
    address: SocketAddr,
    first: Vec<Up>,
) -> Result<
    (
        mpsc::Sender<v1::SessionRequest>,
        Streaming<v1::SessionResponse>,
    ),
    Status,
> {
    let mut client = ParticipantServiceClient::connect(format!("http://{address}"))
        .await
        .expect("connected");
    let (up, requests) = mpsc::channel(64);
    up.send(batch(first)).await.expect("room");
    let down = timeout(PATIENCE, client.session(ReceiverStream::new(requests)))
        .await
        .expect("in time")?;
    Ok((up, down.into_inner()))
}

pub(crate) fn batch(messages: Vec<Up>) -> v1::SessionRequest {
    v1::SessionRequest {
        messages: messages
            .into_iter()
            .map(|kind| v1::ParticipantMessage { kind: Some(kind) })
            .collect(),
    }
}

/// The status that a session ends with; panics where it goes on.
pub(crate) async fn end_of(mut down: Streaming<v1::SessionResponse>) -> Status {
    timeout(PATIENCE, down.message())
        .await
        .expect("in time")
        .expect_err("refused")
}

/// A running participant.
pub(crate) struct Participant {
    task: JoinHandle<()>,
}

impl Participant {
    /// Connects, and is welcomed.
    pub(crate) async fn join(
        address: SocketAddr,
        name: &str,
        manner: Manner,
        database: &Database,
    ) -> Self {
        let (up, mut down) = dial(address, vec![Up::Hello(hello(name))])
            .await
            .expect("a session");
        let welcome = timeout(PATIENCE, down.message())
            .await
            .expect("in time")
            .expect("welcomed")
            .expect("a batch");
        assert!(
            matches!(welcome.messages[0].kind, Some(Down::Welcome(_))),
            "{welcome:?}"
        );
        let database = database.clone();
        let task = tokio::spawn(async move {
            let mut next = Some(welcome);
            while let Some(response) = next {
                let answers: Vec<_> = response
                    .messages
                    .into_iter()
                    .filter_map(|m| answer(m.kind?, manner, &database))
                    .collect();
                if !answers.is_empty() && up.send(batch(answers)).await.is_err() {
                    return;
                }
                next = down.message().await.ok().flatten();
            }
        });
        Participant { task }
    }

    /// Goes away without a word.
    pub(crate) async fn leave(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

fn answer(message: Down, manner: Manner, database: &Database) -> Option<Up> {
    Some(match message {
        Down::Prepare(prepare) => Up::Vote(vote(prepare, manner, database)),
        Down::Commit(commit) => {
            let (kind, message) = if manner == Manner::Sluggish {
                (v1::CompletionKind::Retry, "not today".to_owned())
            } else {
                database.commit(commit.key.as_ref()?.transaction_id.clone());
                (v1::CompletionKind::Committed, String::new())
            };
            Up::Completion(v1::Completion {
                key: commit.key,
                kind: kind.into(),
                message,
            })
        }
        Down::Abort(abort) => Up::Completion(v1::Completion {
            key: abort.key,
            kind: v1::CompletionKind::Aborted.into(),
            message: String::new(),
        }),
        Down::Execute(execute) => Up::ExecuteResult(v1::ExecuteResult {
            key: execute.key,
            sequence: execute.sequence,
            result: Some(v1::OperationResult {
                affected_rows: 1,
                ..v1::OperationResult::default()
            }),
            reason: None,
        }),
        Down::Prove(prove) => {
            let committed = database
                .committed()
                .contains(&prove.key.as_ref()?.transaction_id);
            let kind = if committed {
                v1::CompletionKind::Committed
            } else {
                v1::CompletionKind::Aborted
            };
            Up::Proof(v1::Proof {
                key: prove.key,
                kind: kind.into(),
                message: String::new(),
            })
        }
        Down::ListInDoubt(_) => Up::InDoubtReport(v1::InDoubtReport::default()),
        Down::Welcome(_) | Down::EnlistResult(_) | Down::RunStep(_) | Down::SettleStep(_) => {
            return None;
        }
    })
}

fn vote(prepare: v1::Prepare, manner: Manner, database: &Database) -> v1::Vote {
    let id = prepare.key.as_ref().expect("a key").transaction_id.clone();
    let mut vote = v1::Vote {
        key: prepare.key,
        ..v1::Vote::default()
    };
    let kind = match manner {
        Manner::Refusing => {
            let reason = v1::AbortReason {
                code: v1::AbortCode::Refused.into(),
                participant: String::new(),
                message: "too poor".into(),
            };
            vote.reason = Some(reason);
            v1::VoteKind::No
        }
        Manner::Willing if prepare.one_phase => {
            database
                .one_phase
                .lock()
                .expect("no panic")
                .insert(id.clone());
            database.commit(id);
            v1::VoteKind::Committed
        }
        Manner::Willing | Manner::Sluggish => v1::VoteKind::Yes,
    };
    vote.set_kind(kind);
    vote
}
