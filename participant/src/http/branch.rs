//! A branch of a two-phase commit: try, then confirm or cancel (TCC).
//!
//! The journal's record is written before the first prepare is sent, and ends when each confirm, or each cancel, was answered as done. In between
//! the branch is in doubt, and the coordinator, which looks for such, has the decision or presumes an abort. So a cancel that could not be
//! delivered before the vote of no is delivered later, for as long as it takes.

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tokio::time::Instant;
use unanimity_proto::v1::AbortCode;

use super::{
    DECISION_TIMEOUT, HttpAgent,
    answer::Answer,
    journal::{JournalError, Record, State},
    operations::{Endpoint, HttpOperation, TwoPhase},
    request,
    service::Post,
};
use crate::{
    operation::invalid,
    participant::{BranchId, InDoubt, Prepare, Refusal, Settled, Unavailable, Vote},
};

/// How long a vote of no waits for its cancels: the other branches wait for the vote.
const CANCEL_BEFORE_VOTE: Duration = Duration::from_secs(5);

/// Pauses between two looks at a prepare that is still at work: they double.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Time that no clock reaches.
const LONGEST: Duration = Duration::from_secs(86_400);

/// An operation to prepare.
struct Try {
    operation: Arc<HttpOperation>,
    parameters: Map<String, Value>,
}

/// A prepare that did not come off.
struct Failed {
    refusal: Refusal,
    /// The service may hold it.
    held: bool,
}

/// What to do with a branch that the service holds.
#[derive(Clone, Copy)]
enum Decision {
    Confirm,
    Cancel,
}

impl HttpAgent {
    pub(super) async fn prepare_branch(&self, prepare: &Prepare) -> Vote {
        let _call = self.calls.enter(&prepare.branch).await;
        self.vote(prepare).await.unwrap_or_else(Vote::No)
    }

    async fn vote(&self, prepare: &Prepare) -> Result<Vote, Refusal> {
        let branch = &prepare.branch;
        let yes = || Vote::Yes {
            proof: String::new(),
        };
        if let Some(record) = self.journal.record(branch).await? {
            let stands = record.state == State::Open && self.voted.lock().contains(branch);
            return stands.then(yes).ok_or_else(|| late(branch, record.state));
        }
        if prepare.continued {
            return Err(lost(format!("branch {branch} is not open here")));
        }
        if prepare.one_phase {
            return Err(invalid("this participant can't commit in one phase"));
        }
        let tries = self.tries(prepare)?;
        if tries.is_empty() {
            return Ok(Vote::ReadOnly);
        }
        let names: Vec<_> = tries.iter().map(|it| it.operation.name.clone()).collect();
        self.journal.write(branch, State::Open, &names).await?;
        let deadline = Instant::now() + prepare.timeout.min(LONGEST);
        for (index, it) in tries.iter().enumerate() {
            if let Err(failed) = self.try_one(prepare, index, it, deadline).await {
                let held = index + usize::from(failed.held);
                self.give_up(branch, &names[..held]).await;
                return Err(failed.refusal);
            }
        }
        self.voted.lock().insert(branch.clone());
        Ok(yes())
    }

    /// Checks every operation before any is sent.
    fn tries(&self, prepare: &Prepare) -> Result<Vec<Try>, Refusal> {
        let tries = prepare.operations.iter().map(|operation| {
            let (operation, parameters) = self.operations.resolve(operation)?;
            operation.needs(&operation.two_phase, "prepare, confirm and cancel")?;
            Ok(Try {
                operation,
                parameters,
            })
        });
        tries.collect()
    }

    async fn try_one(
        &self,
        prepare: &Prepare,
        index: usize,
        it: &Try,
        deadline: Instant,
    ) -> Result<(), Failed> {
        let two_phase = two_phase(&it.operation)?;
        let mut pause = SHORTEST_PAUSE;
        let mut held = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let message = format!("{}: no time was left", two_phase.prepare);
                return Err(failed(AbortCode::Timeout, message, held));
            }
            let post = Post {
                endpoint: &two_phase.prepare,
                key: request::idempotency_key(&prepare.branch, index),
                traceparent: &prepare.traceparent,
                body: request::prepare(&prepare.branch, &it.parameters),
            };
            match self.service.post(post, left).await {
                Answer::Done(_) => return Ok(()),
                Answer::Refused(message) => {
                    return Err(failed(AbortCode::Refused, message, false));
                }
                Answer::NotTaken(message) => {
                    return Err(failed(AbortCode::ParticipantUnavailable, message, held));
                }
                Answer::Mistaken(message) => {
                    return Err(failed(AbortCode::InvalidOperation, message, held));
                }
                Answer::Unknown(message) => {
                    let code = match Instant::now() < deadline {
                        true => AbortCode::ParticipantFailure,
                        false => AbortCode::Timeout,
                    };
                    return Err(failed(code, message, true));
                }
                Answer::Working(_) => held = true,
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The vote will be no. What the service may hold is cancelled: now, or else when the coordinator finds the branch in doubt.
    async fn give_up(&self, branch: &BranchId, held: &[String]) {
        let doomed = Record {
            state: State::Doomed,
            operations: held.to_vec(),
        };
        let state = match held.is_empty() {
            true => State::Aborted,
            false => State::Doomed,
        };
        // Where this is not written, the record says open: in doubt too, and the coordinator, which hears no, aborts it.
        if self.journal.write(branch, state, held).await.is_err() || held.is_empty() {
            return;
        }
        let until = Instant::now() + CANCEL_BEFORE_VOTE;
        if let Settled::Retry(problem) = self.cancel(branch, &doomed, Some(until)).await {
            tracing::warn!(%branch, problem, "a branch that voted no is not cancelled yet; it stays in doubt until it is");
        }
    }

    pub(super) async fn commit_branch(&self, branch: &BranchId) -> Settled {
        let _call = self.calls.enter(branch).await;
        let record = match self.journal.record(branch).await {
            Ok(record) => record,
            Err(error) => return Settled::Retry(error.to_string()),
        };
        match record {
            Some(record) => match record.state {
                State::Open => self.confirm(branch, &record).await,
                // It never voted yes. What is true is that it aborts.
                State::Doomed => self.cancel(branch, &record, None).await,
                State::Committed => Settled::Committed,
                State::Aborted => Settled::Aborted,
                State::Sent | State::Fenced => Settled::Lost(late(branch, record.state).message),
            },
            None => Settled::Lost(format!(
                "the journal knows nothing of branch {branch}; what it knew may have been purged"
            )),
        }
    }

    pub(super) async fn abort_branch(&self, branch: &BranchId) -> Settled {
        let _call = self.calls.enter(branch).await;
        let record = match self.journal.record(branch).await {
            Ok(record) => record,
            Err(error) => return Settled::Retry(error.to_string()),
        };
        match record {
            Some(record) => match record.state {
                State::Open | State::Doomed => self.cancel_again(branch, &record).await,
                State::Committed => Settled::Committed,
                // A step is no branch that could be aborted, and was never prepared.
                State::Aborted | State::Sent | State::Fenced => Settled::Aborted,
            },
            None => self.ended(branch, State::Aborted, &[]).await,
        }
    }

    async fn confirm(&self, branch: &BranchId, record: &Record) -> Settled {
        for (index, name) in record.operations.iter().enumerate() {
            let decided = self.decide(Decision::Confirm, branch, index, name, DECISION_TIMEOUT);
            if let Err(problem) = decided.await {
                return Settled::Retry(problem);
            }
        }
        self.ended(branch, State::Committed, &record.operations)
            .await
    }

    /// Says so where it fails: the coordinator does not show a branch that voted no, or whose transaction is over.
    async fn cancel_again(&self, branch: &BranchId, record: &Record) -> Settled {
        let settled = self.cancel(branch, record, None).await;
        if let Settled::Retry(problem) = &settled {
            tracing::warn!(%branch, problem, "a branch is not cancelled yet; it stays in doubt until it is");
        }
        settled
    }

    /// The last one first, as one would by hand. Without `until` each has its time: all begin anew when one was too slow, so a time for all
    /// together could be too short for ever.
    async fn cancel(&self, branch: &BranchId, record: &Record, until: Option<Instant>) -> Settled {
        for (index, name) in record.operations.iter().enumerate().rev() {
            let left = until.map_or(DECISION_TIMEOUT, |until| {
                until.saturating_duration_since(Instant::now())
            });
            let decided = self.decide(Decision::Cancel, branch, index, name, left);
            if let Err(problem) = decided.await {
                return Settled::Retry(problem);
            }
        }
        self.ended(branch, State::Aborted, &record.operations).await
    }

    /// Tells the service the decision on one operation. Only "done" is done.
    async fn decide(
        &self,
        decision: Decision,
        branch: &BranchId,
        index: usize,
        name: &str,
        limit: Duration,
    ) -> Result<(), String> {
        let kept = "; the journal needs it until the branch has ended: put it back";
        let operation = self.operations.named(name);
        let operation = operation.map_err(|refusal| format!("{refusal}{kept}"))?;
        let two_phase =
            two_phase(operation).map_err(|failed| format!("{}{kept}", failed.refusal))?;
        let endpoint: &Endpoint = match decision {
            Decision::Confirm => &two_phase.confirm,
            Decision::Cancel => &two_phase.cancel,
        };
        let post = Post {
            endpoint,
            key: request::idempotency_key(branch, index),
            traceparent: "",
            body: request::decision(branch),
        };
        match self.service.post(post, limit).await {
            Answer::Done(_) => Ok(()),
            Answer::Refused(message) => Err(format!("{endpoint} refuses: {message}")),
            Answer::Working(message)
            | Answer::NotTaken(message)
            | Answer::Mistaken(message)
            | Answer::Unknown(message) => Err(message),
        }
    }

    /// Said only once the journal has it: a branch that were in doubt again later could be aborted after it was confirmed.
    async fn ended(&self, branch: &BranchId, state: State, operations: &[String]) -> Settled {
        if let Err(error) = self.journal.write(branch, state, operations).await {
            return Settled::Retry(error.to_string());
        }
        self.voted.lock().remove(branch);
        match state {
            State::Committed => Settled::Committed,
            _ => Settled::Aborted,
        }
    }

    pub(super) async fn unsettled_branches(&self) -> Result<Vec<InDoubt>, Unavailable> {
        let mut branches = self
            .journal
            .unsettled()
            .await
            .map_err(|error| Unavailable(error.to_string()))?;
        // Looked at afterwards: one whose prepare is at work is not in doubt, but open.
        branches.retain(|branch| !self.calls.has(branch));
        let found = |branch: BranchId| InDoubt {
            identifier: branch.to_string(),
            branch: Some(branch),
        };
        Ok(branches.into_iter().map(found).collect())
    }
}

fn two_phase(operation: &HttpOperation) -> Result<&TwoPhase, Failed> {
    operation
        .needs(&operation.two_phase, "prepare, confirm and cancel")
        .map_err(|refusal| Failed {
            refusal,
            held: false,
        })
}

fn failed(code: AbortCode, message: String, held: bool) -> Failed {
    let refusal = Refusal { code, message };
    Failed { refusal, held }
}

fn lost(message: String) -> Refusal {
    Refusal {
        code: AbortCode::BranchLost,
        message,
    }
}

/// What is told of a branch that can't be begun any more.
pub(super) fn late(branch: &BranchId, state: State) -> Refusal {
    let standing = match state {
        State::Open => "was begun before, and is in doubt",
        State::Doomed | State::Aborted => "was aborted before",
        State::Committed => "has ended already: it committed",
        State::Sent => "is a saga's step",
        State::Fenced => "was settled or compensated before, and is not done any more",
    };
    lost(format!("branch {branch} {standing}"))
}

impl From<JournalError> for Refusal {
    fn from(error: JournalError) -> Self {
        Self {
            code: AbortCode::ParticipantFailure,
            message: error.to_string(),
        }
    }
}
