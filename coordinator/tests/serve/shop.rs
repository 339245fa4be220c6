//! A participant that does sagas' steps over a real session, each once, and writes down what it was sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{task::JoinHandle, time::timeout};
use unanimity_proto::v1::{
    self, coordinator_message::Kind as Down, participant_message::Kind as Up,
};

use crate::{
    house::PATIENCE,
    participant::{batch, dial, hello},
};

/// What every step gives back.
pub(crate) const RESULT: &str = r#"{"rows":[{"id":41}]}"#;

/// What outlives the participant's process, and what a test wants of it. Clones are the same shop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shop(Arc<Mutex<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    /// Steps by key, with their names; a compensation's with a minus.
    markers: BTreeMap<(String, u32), String>,
    /// In the order in which they took effect.
    effects: Vec<String>,
    sent: Vec<v1::RunStep>,
    prepared: Vec<v1::Prepare>,
    refusing: BTreeSet<String>,
    failing: BTreeSet<String>,
    silent: BTreeSet<String>,
    sessions: Vec<JoinHandle<()>>,
}

impl Shop {
    fn inside<T>(&self, look: impl FnOnce(&mut Inside) -> T) -> T {
        look(&mut self.0.lock().expect("no panic"))
    }

    /// Says no to a step; a compensation's name begins with a minus, here and below.
    pub(crate) fn refuse(&self, step: &str) {
        self.inside(|inside| inside.refusing.insert(step.into()));
    }

    /// Fails at a step.
    pub(crate) fn fail(&self, step: &str) {
        self.inside(|inside| inside.failing.insert(step.into()));
    }

    /// Says nothing when it is sent a step.
    pub(crate) fn ignore(&self, step: &str) {
        self.inside(|inside| inside.silent.insert(step.into()));
    }

    /// Does every step again from now on.
    pub(crate) fn relent(&self) {
        self.inside(|inside| {
            inside.refusing.clear();
            inside.failing.clear();
            inside.silent.clear();
        });
    }

    /// Ends its sessions without a word.
    pub(crate) fn hang_up(&self) {
        self.inside(|inside| {
            inside
                .sessions
                .drain(..)
                .for_each(|session| session.abort())
        });
    }

    /// What took effect, in order.
    pub(crate) fn effects(&self) -> Vec<String> {
        self.inside(|inside| inside.effects.clone())
    }

    /// The steps of a name that were sent.
    pub(crate) fn sent(&self, step: &str) -> Vec<v1::RunStep> {
        self.inside(|inside| {
            let named = inside.sent.iter().filter(|sent| name(sent) == step);
            named.cloned().collect()
        })
    }

    /// The branches of atomic groups that were prepared.
    pub(crate) fn prepared(&self) -> Vec<v1::Prepare> {
        self.inside(|inside| inside.prepared.clone())
    }

    /// Waits until a step was sent.
    pub(crate) async fn hears(&self, step: &str) {
        let heard = async {
            while self.sent(step).is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, heard).await.expect("in time");
    }

    /// Connects under a name, and is welcomed.
    pub(crate) async fn open(&self, address: SocketAddr, as_name: &str) {
        let hello = v1::Hello {
            settles_steps: true,
            seen_logs: Vec::new(),
            ..hello(as_name)
        };
        let (up, mut down) = dial(address, vec![Up::Hello(hello)])
            .await
            .expect("a session");
        let welcome = timeout(PATIENCE, down.message()).await.expect("in time");
        let mut next = welcome.expect("welcomed");
        let shop = self.clone();
        let session = tokio::spawn(async move {
            // Steps may come along with the welcome.
            while let Some(response) = next {
                let messages = response.messages.into_iter();
                let answers: Vec<_> = messages
                    .filter_map(|message| shop.answer(message.kind?))
                    .collect();
                if !answers.is_empty() && up.send(batch(answers)).await.is_err() {
                    return;
                }
                next = down.message().await.ok().flatten();
            }
        });
        self.inside(|inside| inside.sessions.push(session));
    }

    fn answer(&self, message: Down) -> Option<Up> {
        Some(match message {
            Down::RunStep(run) => Up::StepResult(self.run(run)?),
            Down::SettleStep(settle) => Up::StepResult(self.settle(settle)),
            Down::Prepare(prepare) => {
                let key = prepare.key.clone();
                self.inside(|inside| inside.prepared.push(prepare));
                Up::Vote(v1::Vote {
                    key,
                    kind: v1::VoteKind::Yes.into(),
                    ..v1::Vote::default()
                })
            }
            Down::Commit(v1::Commit { key, .. }) => Up::Completion(v1::Completion {
                key,
                kind: v1::CompletionKind::Committed.into(),
                message: String::new(),
            }),
            Down::Abort(v1::Abort { key, .. }) => Up::Completion(v1::Completion {
                key,
                kind: v1::CompletionKind::Aborted.into(),
                message: String::new(),
            }),
            Down::ListInDoubt(_) => Up::InDoubtReport(v1::InDoubtReport::default()),
            Down::Welcome(_) | Down::EnlistResult(_) | Down::Execute(_) | Down::Prove(_) => {
                return None;
            }
        })
    }

    fn run(&self, run: v1::RunStep) -> Option<v1::StepResult> {
        let (name, key) = (name(&run), key(run.key.as_ref()));
        let mut result = v1::StepResult {
            key: run.key.clone(),
            attempt: run.attempt,
            ..v1::StepResult::default()
        };
        let reason = |code: v1::AbortCode, message: &str| {
            Some(v1::AbortReason {
                code: code.into(),
                participant: String::new(),
                message: message.into(),
            })
        };
        self.inside(|inside| {
            inside.sent.push(run);
            if inside.silent.contains(&name) {
                return None;
            }
            if inside.markers.contains_key(&key) {
                result.result = RESULT.into();
                result.set_kind(v1::StepResultKind::Done);
            } else if inside.refusing.contains(&name) {
                result.reason = reason(v1::AbortCode::Refused, "sold out");
                result.set_kind(v1::StepResultKind::Refused);
            } else if inside.failing.contains(&name) {
                result.reason = reason(v1::AbortCode::ParticipantFailure, "the till is stuck");
                result.set_kind(v1::StepResultKind::Failed);
            } else {
                inside.markers.insert(key, name.clone());
                inside.effects.push(name);
                result.result = RESULT.into();
                result.set_kind(v1::StepResultKind::Done);
            }
            Some(result)
        })
    }

    fn settle(&self, settle: v1::SettleStep) -> v1::StepResult {
        let key = key(settle.key.as_ref());
        let mut result = v1::StepResult {
            key: settle.key,
            attempt: settle.attempt,
            ..v1::StepResult::default()
        };
        let done = self.inside(|inside| inside.markers.contains_key(&key));
        result.set_kind(if done {
            v1::StepResultKind::Done
        } else {
            v1::StepResultKind::Never
        });
        result
    }
}

fn name(run: &v1::RunStep) -> String {
    let sign = if run.compensates.is_some() { "-" } else { "" };
    format!("{sign}{}", run.step)
}

fn key(key: Option<&v1::BranchKey>) -> (String, u32) {
    let key = key.expect("a key");
    (key.transaction_id.clone(), key.branch)
}
