//! What is said of sagas: steps on their way down, their results on their way up, and how they are shown.

use unanimity_engine::{
    Bound, BranchKey, Compensates, LockKey, LockView, ParticipantName, Payload, RESULT_BYTES,
    SagaView, StepKind, StepName, StepOutcome, StepState, StepView, Upward,
};
use unanimity_proto::v1;

use prost::Message as _;
use tracing::warn;

use super::{Mistake, branch_key, cut, duration, reason, stray, timestamp, unknown_kind};
use crate::{clock::Now, wire::reference::substitute};

// ---- down

/// The operation of a step, with the values in place.
pub(super) fn operation(payload: &Payload, values: Vec<Bound>) -> v1::Operation {
    let operation =
        v1::Operation::decode(&payload[..]).expect("an operation was encoded in this module");
    let mut operations = [operation];
    substitute(&mut operations, values);
    let [operation] = operations;
    operation
}

pub(super) fn compensates(compensates: Compensates) -> v1::Compensates {
    let Compensates {
        branch,
        unsettled,
        result,
    } = compensates;
    v1::Compensates {
        branch,
        unsettled,
        result: json(result.as_ref()),
    }
}

pub(super) fn fences(locks: &[LockKey], token: u64) -> Vec<v1::Fence> {
    let fence = |key: &LockKey| v1::Fence {
        key: key.as_str().into(),
        token,
    };
    locks.iter().map(fence).collect()
}

pub(super) fn settle_step(key: BranchKey, attempt: u32, age_ms: u64) -> v1::SettleStep {
    v1::SettleStep {
        key: Some(branch_key(key)),
        age: Some(duration(age_ms)),
        attempt,
    }
}

// ---- up

/// What became of a step. A reason is needed where it took no effect, so that people learn why.
pub(super) fn step_result(
    sender: &ParticipantName,
    message: v1::StepResult,
) -> Result<Upward, Mistake> {
    let kind = message.kind();
    let key = stray(message.key, "step_result")?;
    let why = || {
        let given = message.reason.clone().unwrap_or_default();
        reason(sender, "step_result.reason", given)
    };
    let text = || {
        let given = message.reason.as_ref().map(|reason| reason.message.clone());
        cut(given.unwrap_or_default())
    };
    let outcome = match kind {
        v1::StepResultKind::Unspecified => return Err(unknown_kind("step_result.kind")),
        v1::StepResultKind::Done => StepOutcome::Done(result(sender, key, &message.result)),
        v1::StepResultKind::Refused => StepOutcome::Refused(why()?),
        v1::StepResultKind::Failed => StepOutcome::Failed(why()?),
        v1::StepResultKind::Unknown => StepOutcome::Unknown(text()),
        v1::StepResultKind::Working => StepOutcome::Working(text()),
        v1::StepResultKind::Never => StepOutcome::Never,
    };
    Ok(Upward::StepResult {
        key,
        attempt: message.attempt,
        outcome,
    })
}

/// The step took effect whatever it gave back, and to deny that would be to do it again, or to leave it standing. So a result that can't be
/// used is dropped; a step that refers to it is refused when it would start.
fn result(sender: &ParticipantName, key: BranchKey, text: &str) -> Payload {
    let problem = if text.len() > RESULT_BYTES {
        format!(
            "is {} bytes long, and {RESULT_BYTES} are allowed",
            text.len()
        )
    } else if text.is_empty() {
        return Payload::from([]);
    } else {
        match serde_json::from_str::<serde_json::Value>(text) {
            Ok(_) => return Payload::from(text.as_bytes()),
            Err(error) => format!("is not JSON: {error}"),
        }
    };
    warn!(participant = %sender, branch = %key, problem, "a step's result can't be used, and counts as none");
    Payload::from([])
}

// ---- views

pub(super) fn saga(view: &SagaView, now: Now) -> v1::Saga {
    let keys = |keys: &[LockKey]| keys.iter().map(|key| key.as_str().into()).collect();
    v1::Saga {
        steps: view.steps.iter().map(|view| step(view, now)).collect(),
        locks: keys(&view.locks),
        token: view.token,
        waiting_for: keys(&view.waiting_for),
        deadline: (view.deadline_unix_ms > 0).then(|| timestamp(view.deadline_unix_ms)),
    }
}

fn step(view: &StepView, now: Now) -> v1::Step {
    let names = |names: &[StepName]| names.iter().map(|name| name.as_str().into()).collect();
    v1::Step {
        name: view.name.as_str().into(),
        kind: step_kind(view.kind).into(),
        participants: view
            .participants
            .iter()
            .map(|name| name.as_str().into())
            .collect(),
        after: names(&view.after),
        state: step_state(view.state).into(),
        attempts: view.attempts,
        compensation_attempts: view.compensation_attempts,
        next_attempt_time: view
            .next_attempt
            .map(|moment| timestamp(now.unix_ms_at(moment))),
        last_error: view.last_error.clone(),
        stuck: view.stuck,
        result: json(view.result.as_ref()),
        resolution_reason: view.resolution.clone(),
        group_transaction_id: view.group.map(|id| id.to_string()).unwrap_or_default(),
        has_compensation: view.has_compensation,
    }
}

fn step_kind(kind: StepKind) -> v1::StepKind {
    match kind {
        StepKind::Compensatable => v1::StepKind::Compensatable,
        StepKind::Pivot => v1::StepKind::Pivot,
        StepKind::Retriable => v1::StepKind::Retriable,
    }
}

fn step_state(state: StepState) -> v1::StepState {
    match state {
        StepState::Waiting => v1::StepState::Waiting,
        StepState::Running => v1::StepState::Running,
        StepState::Retrying => v1::StepState::Retrying,
        StepState::Done => v1::StepState::Done,
        StepState::Failed => v1::StepState::Failed,
        StepState::Settling => v1::StepState::Settling,
        StepState::Compensating => v1::StepState::Compensating,
        StepState::Compensated => v1::StepState::Compensated,
        StepState::Skipped => v1::StepState::Skipped,
    }
}

/// A lock as operators see it.
pub(crate) fn lock(view: &LockView) -> v1::Lock {
    v1::Lock {
        key: view.key.as_str().into(),
        transaction_id: view.holder.to_string(),
        token: view.token,
        waiting: view.waiting,
    }
}

/// It was text when it came in, and was written to the log as it was.
fn json(payload: Option<&Payload>) -> String {
    payload
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use unanimity_engine::{Epoch, LogId, Moment, TransactionId};

    use super::*;

    const ID: TransactionId = TransactionId {
        log: LogId(1),
        epoch: Epoch(1),
        unique: 1,
    };

    fn up(message: v1::StepResult) -> Result<Upward, Mistake> {
        let sender = ParticipantName::parse("shop").expect("a name");
        let key = v1::BranchKey {
            transaction_id: ID.to_string(),
            branch: 1,
        };
        step_result(
            &sender,
            v1::StepResult {
                key: Some(key),
                attempt: 3,
                ..message
            },
        )
    }

    fn done(result: &str) -> StepOutcome {
        let message = v1::StepResult {
            kind: v1::StepResultKind::Done.into(),
            result: result.into(),
            ..v1::StepResult::default()
        };
        match up(message) {
            Ok(Upward::StepResult {
                outcome,
                attempt: 3,
                ..
            }) => outcome,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_step_that_is_done_stays_done_whatever_it_gave_back() {
        let with = |text: &str| StepOutcome::Done(text.as_bytes().into());
        assert_eq!(done(""), with(""));
        assert_eq!(done(r#"{"id":7}"#), with(r#"{"id":7}"#));
        assert_eq!(done("<html>"), with(""));
        assert_eq!(done(&format!("\"{}\"", "x".repeat(RESULT_BYTES))), with(""));
    }

    #[test]
    fn a_result_without_a_kind_or_a_needed_reason_ends_the_session() {
        for kind in [
            v1::StepResultKind::Unspecified,
            v1::StepResultKind::Refused,
            v1::StepResultKind::Failed,
        ] {
            let message = v1::StepResult {
                kind: kind.into(),
                ..v1::StepResult::default()
            };
            assert!(matches!(up(message), Err(Mistake::Fatal(_))), "{kind:?}");
        }
        for kind in [
            v1::StepResultKind::Unknown,
            v1::StepResultKind::Working,
            v1::StepResultKind::Never,
        ] {
            let message = v1::StepResult {
                kind: kind.into(),
                ..v1::StepResult::default()
            };
            assert!(up(message).is_ok(), "{kind:?}");
        }
    }

    #[test]
    fn a_saga_is_shown_with_times_of_the_world() {
        let now = Now {
            moment: Moment(1_000),
            unix_ms: 5_000_000,
        };
        let view = SagaView {
            steps: vec![StepView {
                name: StepName::parse("order").expect("a name"),
                kind: StepKind::Pivot,
                participants: Vec::new(),
                after: Vec::new(),
                state: StepState::Retrying,
                attempts: 2,
                compensation_attempts: 0,
                next_attempt: Some(Moment(2_500)),
                last_error: "no".into(),
                stuck: false,
                result: None,
                resolution: String::new(),
                group: Some(ID),
                has_compensation: false,
            }],
            locks: vec![LockKey::parse("stock:7").expect("a key")],
            token: 0,
            waiting_for: Vec::new(),
            deadline_unix_ms: 0,
        };
        let shown = saga(&view, now);
        assert_eq!(shown.deadline, None, "it has not begun");
        assert_eq!(shown.locks, ["stock:7"]);
        assert_eq!(shown.steps[0].next_attempt_time, Some(timestamp(5_001_500)));
        assert_eq!(shown.steps[0].group_transaction_id, ID.to_string());
        assert_eq!(shown.steps[0].state(), v1::StepState::Retrying);
    }
}
