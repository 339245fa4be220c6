//! How a saga is shown.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use unanimity_proto::v1;

use super::{enum_word, time};
use crate::output::{non_empty, table};

/// The stable shape of what a transaction has beside, where it is a saga.
#[derive(Debug, Serialize)]
pub(super) struct Saga {
    pub(super) steps: Vec<Step>,
    locks: Vec<String>,
    /// Null while it waits for its locks.
    token: Option<u64>,
    waiting_for: Vec<String>,
    /// RFC 3339, in UTC; null before its beginning.
    deadline: Option<String>,
}

/// The stable shape of a step.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    pub(super) name: String,
    kind: String,
    pub(super) participants: Vec<String>,
    after: Vec<String>,
    state: String,
    attempts: u32,
    compensation_attempts: u32,
    /// RFC 3339, in UTC; null where it does not wait for that.
    next_attempt_time: Option<String>,
    last_error: Option<String>,
    pub(super) stuck: bool,
    result: Option<String>,
    resolution_reason: Option<String>,
    group_transaction_id: Option<String>,
    has_compensation: bool,
}

impl From<v1::Saga> for Saga {
    fn from(saga: v1::Saga) -> Self {
        Self {
            steps: saga.steps.into_iter().map(Step::from).collect(),
            locks: saga.locks,
            token: (saga.token > 0).then_some(saga.token),
            waiting_for: saga.waiting_for,
            deadline: time(saga.deadline),
        }
    }
}

impl From<v1::Step> for Step {
    fn from(step: v1::Step) -> Self {
        Self {
            name: step.name,
            kind: enum_word::<v1::StepKind>(step.kind, v1::StepKind::as_str_name, "STEP_KIND_"),
            participants: step.participants,
            after: step.after,
            state: enum_word::<v1::StepState>(
                step.state,
                v1::StepState::as_str_name,
                "STEP_STATE_",
            ),
            attempts: step.attempts,
            compensation_attempts: step.compensation_attempts,
            next_attempt_time: time(step.next_attempt_time),
            last_error: non_empty(step.last_error),
            stuck: step.stuck,
            result: non_empty(step.result),
            resolution_reason: non_empty(step.resolution_reason),
            group_transaction_id: non_empty(step.group_transaction_id),
            has_compensation: step.has_compensation,
        }
    }
}

impl Saga {
    /// What stands above the steps.
    pub(super) fn head(&self) -> Vec<(&'static str, String)> {
        let mut head = vec![("deadline", self.deadline.clone().unwrap_or_default())];
        if !self.locks.is_empty() {
            head.push(("locks", self.locks.join(", ")));
            let token = self.token.map(|token| token.to_string());
            head.push(("token", token.unwrap_or_default()));
        }
        if !self.waiting_for.is_empty() {
            head.push(("waits for", self.waiting_for.join(", ")));
        }
        let group = |step: &Step| {
            let id = step.group_transaction_id.as_ref()?;
            Some(format!("{} is {id}", step.name))
        };
        let groups: Vec<_> = self.steps.iter().filter_map(group).collect();
        if !groups.is_empty() {
            head.push(("groups", groups.join(", ")));
        }
        head
    }

    pub(super) fn table(&self) -> String {
        let now = Timestamp::now();
        table(
            [
                "STEP",
                "KIND",
                "PARTICIPANTS",
                "STATE",
                "ATTEMPTS",
                "NEXT",
                "STUCK",
                "COMPENSATION",
                "LAST ERROR",
                "RESOLVED BECAUSE",
            ],
            self.steps.iter().map(|step| step.row(now)),
        )
    }

    /// Names of the steps that a human should look at.
    pub(super) fn stuck(&self) -> String {
        let stuck = self.steps.iter().filter(|step| step.stuck);
        stuck
            .map(|step| step.name.as_str())
            .collect::<Vec<_>>()
            .join(",")
    }
}

impl Step {
    fn row(&self, now: Timestamp) -> [String; 10] {
        let next = self.next_attempt_time.as_ref();
        let next = next.and_then(|time| time.parse::<Timestamp>().ok());
        let compensation = match (self.has_compensation, self.compensation_attempts) {
            (false, _) => String::new(),
            (true, 0) => "yes".into(),
            (true, 1) => "tried once".into(),
            (true, times) => format!("tried {times} times"),
        };
        [
            self.name.clone(),
            self.kind.clone(),
            self.participants.join(","),
            self.state.clone(),
            self.attempts.to_string(),
            next.map(|time| wait(time.duration_since(now)))
                .unwrap_or_default(),
            if self.stuck {
                "yes".into()
            } else {
                String::new()
            },
            compensation,
            self.last_error.clone().unwrap_or_default(),
            self.resolution_reason.clone().unwrap_or_default(),
        ]
    }
}

/// Our clock may differ from the coordinator's.
fn wait(left: SignedDuration) -> String {
    if left.is_positive() {
        format!("in {:.1}s", left.as_secs_f64())
    } else {
        "now".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_says_when_it_is_tried_again_and_whether_it_can_be_undone() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().expect("a time");
        let step = |compensation_attempts| v1::Step {
            name: "order".into(),
            kind: v1::StepKind::Compensatable.into(),
            participants: vec!["shop".into()],
            state: v1::StepState::Retrying.into(),
            attempts: 3,
            compensation_attempts,
            next_attempt_time: Some(prost_types::Timestamp {
                seconds: now.as_second() + 12,
                nanos: 500_000_000,
            }),
            last_error: "sold out".into(),
            stuck: true,
            has_compensation: true,
            ..v1::Step::default()
        };
        let row = Step::from(step(0)).row(now);
        assert_eq!(
            row,
            [
                "order",
                "compensatable",
                "shop",
                "retrying",
                "3",
                "in 12.5s",
                "yes",
                "yes",
                "sold out",
                ""
            ]
        );
        assert_eq!(Step::from(step(2)).row(now)[7], "tried 2 times");
        assert_eq!(wait(SignedDuration::from_secs(-1)), "now");
    }
}
