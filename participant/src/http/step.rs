//! A saga's step: execute, compensate, and settle.
//!
//! The service is asked again under the same key, and answers what it answered before. What the agent adds is the truth about a request that
//! had no effect: it says so only where no earlier request under this key can have had one, which the journal tells. A step that was compensated,
//! or settled as never done, is not sent any more.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};
use unanimity_proto::v1::AbortCode;

use super::{
    DECISION_TIMEOUT, HttpAgent,
    answer::Answer,
    branch::late,
    journal::{JournalError, State},
    operations::Endpoint,
    request,
    service::Post,
};
use crate::participant::{BranchId, Compensated, Refusal, Step, StepOutcome};

/// What a settle endpoint answers.
#[derive(Deserialize)]
struct SettleBody {
    outcome: SettleOutcome,
    #[serde(default)]
    result: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum SettleOutcome {
    Done,
    Never,
    Working,
}

impl HttpAgent {
    pub(super) async fn execute_step(&self, step: &Step) -> StepOutcome {
        let _call = self.calls.enter(&step.branch).await;
        let record = match self.journal.record(&step.branch).await {
            Ok(record) => record,
            Err(error) => return StepOutcome::Unknown(error.to_string()),
        };
        let reached = match record.as_ref().map(|record| record.state) {
            None => !self.journal.absence_proves(step.age),
            Some(State::Sent) => true,
            Some(state) => return StepOutcome::Refused(late(&step.branch, state)),
        };
        // Once it may have got there, a mistake found now tells nothing of what it did.
        let mistaken = |refusal: Refusal| match reached {
            true => StepOutcome::Unknown(refusal.message),
            false => StepOutcome::Refused(refusal),
        };
        let (operation, parameters) = match self.operations.resolve(&step.operation) {
            Ok(resolved) => resolved,
            Err(refusal) => return mistaken(refusal),
        };
        let endpoint = match operation.needs(&operation.execute, "execute") {
            Ok(endpoint) => endpoint,
            Err(refusal) => return mistaken(refusal),
        };
        if record.is_none()
            && let Err(error) = self.sent(step, &operation.name).await
        {
            return unsent(error, reached);
        }
        let answer = self.post_step(step, endpoint, &parameters, None).await;
        match answer {
            Answer::Done(result) => StepOutcome::Done { result },
            Answer::Refused(message) => refused(AbortCode::Refused, message),
            Answer::Working(message) => StepOutcome::Working(message),
            Answer::Unknown(message) => StepOutcome::Unknown(message),
            Answer::NotTaken(message) | Answer::Mistaken(message) if reached => {
                StepOutcome::Unknown(message)
            }
            Answer::NotTaken(message) => {
                self.never_got_there(step, failed(AbortCode::ParticipantUnavailable, message))
                    .await
            }
            Answer::Mistaken(message) => {
                self.never_got_there(step, refused(AbortCode::InvalidOperation, message))
                    .await
            }
        }
    }

    pub(super) async fn compensate_step(&self, step: &Step, of: &Compensated) -> StepOutcome {
        let _call = self.calls.enter(&step.branch).await;
        if let Err(problem) = self.fence(&of.branch).await {
            return failed(AbortCode::ParticipantFailure, problem);
        }
        let (operation, parameters) = match self.operations.resolve(&step.operation) {
            Ok(resolved) => resolved,
            Err(refusal) => return StepOutcome::Failed(refusal),
        };
        let endpoint = match operation.needs(&operation.compensate, "compensate") {
            Ok(endpoint) => endpoint,
            Err(refusal) => return StepOutcome::Failed(refusal),
        };
        match self.post_step(step, endpoint, &parameters, Some(of)).await {
            Answer::Done(result) => StepOutcome::Done { result },
            Answer::Working(message) => StepOutcome::Working(message),
            Answer::Unknown(message) => StepOutcome::Unknown(message),
            // A compensation is tried until it is done, whatever stands in its way.
            Answer::Refused(message) => {
                failed(AbortCode::Refused, format!("{endpoint} refuses: {message}"))
            }
            Answer::NotTaken(message) => failed(AbortCode::ParticipantUnavailable, message),
            Answer::Mistaken(message) => failed(AbortCode::InvalidOperation, message),
        }
    }

    pub(super) async fn settle_step(&self, branch: &BranchId, age: Duration) -> StepOutcome {
        let _call = self.calls.enter(branch).await;
        let record = match self.journal.record(branch).await {
            Ok(record) => record,
            Err(error) => return StepOutcome::Unknown(error.to_string()),
        };
        let operations = match record {
            None if self.journal.absence_proves(age) => Vec::new(),
            None => {
                return StepOutcome::Unknown(format!(
                    "step {branch} is so old that what the journal knew of it may have been purged"
                ));
            }
            Some(record) if matches!(record.state, State::Sent | State::Fenced) => {
                record.operations
            }
            Some(record) => return StepOutcome::Unknown(late(branch, record.state).message),
        };
        match operations.first() {
            Some(name) => self.ask(branch, name).await,
            None => self.never(branch, &[]).await,
        }
    }

    /// Asks the service whether a step that it may have got took effect.
    async fn ask(&self, branch: &BranchId, name: &str) -> StepOutcome {
        let operation = match self.operations.named(name) {
            Ok(operation) => operation,
            Err(refusal) => return StepOutcome::Unknown(refusal.message),
        };
        let endpoint = match operation.needs(&operation.settle, "settle") {
            Ok(endpoint) => endpoint,
            Err(refusal) => return StepOutcome::Unknown(refusal.message),
        };
        let post = Post {
            endpoint,
            key: request::idempotency_key(branch, 0),
            traceparent: "",
            body: request::decision(branch),
        };
        let body = match self.service.post(post, DECISION_TIMEOUT).await {
            Answer::Done(body) => body,
            Answer::Working(message) => return StepOutcome::Working(message),
            Answer::Refused(message)
            | Answer::NotTaken(message)
            | Answer::Mistaken(message)
            | Answer::Unknown(message) => return StepOutcome::Unknown(message),
        };
        let Ok(told) = serde_json::from_str::<SettleBody>(&body) else {
            return StepOutcome::Unknown(format!(
                "{endpoint} tells no outcome; expected {{\"outcome\":\"done\"}}, \"never\" or \"working\""
            ));
        };
        match told.outcome {
            SettleOutcome::Done => StepOutcome::Done {
                result: told
                    .result
                    .map_or(String::new(), |result| result.get().to_owned()),
            },
            SettleOutcome::Never => self.never(branch, &[name.to_owned()]).await,
            SettleOutcome::Working => {
                StepOutcome::Working(format!("{endpoint} says that it is at work"))
            }
        }
    }

    /// Fences a step, and only then says that it never will be.
    async fn never(&self, branch: &BranchId, operations: &[String]) -> StepOutcome {
        match self.journal.write(branch, State::Fenced, operations).await {
            Ok(()) => StepOutcome::Never,
            Err(error) => StepOutcome::Unknown(error.to_string()),
        }
    }

    /// Waits for an execute that is at work, and sees to it that none is sent any more.
    async fn fence(&self, action: &BranchId) -> Result<(), String> {
        let _call = self.calls.enter(action).await;
        let record = self.journal.record(action).await;
        let operations = match record.map_err(|error| error.to_string())? {
            None => Vec::new(),
            Some(record) if record.state == State::Sent => record.operations,
            Some(record) if record.state == State::Fenced => return Ok(()),
            Some(record) => return Err(late(action, record.state).message),
        };
        self.journal
            .write(action, State::Fenced, &operations)
            .await
            .map_err(|error| error.to_string())
    }

    async fn sent(&self, step: &Step, operation: &str) -> Result<(), JournalError> {
        self.journal
            .write(&step.branch, State::Sent, &[operation.to_owned()])
            .await
    }

    /// Takes the record back. Where that fails, it says too much, and so the outcome must say less.
    async fn never_got_there(&self, step: &Step, outcome: StepOutcome) -> StepOutcome {
        match self.journal.remove(&step.branch).await {
            Ok(()) => outcome,
            Err(error) => StepOutcome::Unknown(error.to_string()),
        }
    }

    async fn post_step(
        &self,
        step: &Step,
        endpoint: &Endpoint,
        parameters: &Map<String, Value>,
        compensated: Option<&Compensated>,
    ) -> Answer {
        let post = Post {
            endpoint,
            key: request::idempotency_key(&step.branch, 0),
            traceparent: &step.traceparent,
            body: request::step(step, parameters, compensated),
        };
        self.service.post(post, step.timeout).await
    }
}

fn refused(code: AbortCode, message: String) -> StepOutcome {
    StepOutcome::Refused(Refusal { code, message })
}

fn failed(code: AbortCode, message: String) -> StepOutcome {
    StepOutcome::Failed(Refusal { code, message })
}

/// Nothing was sent, for the journal could not say so first.
fn unsent(error: JournalError, reached: bool) -> StepOutcome {
    match reached {
        true => StepOutcome::Unknown(error.to_string()),
        false => StepOutcome::Failed(error.into()),
    }
}
