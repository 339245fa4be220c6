//! A step of a saga.

use std::time::Duration;

use unanimity_proto::v1::{self, StepKind, step_request::Work};

use crate::{Error, Operation, submit::wire_timeout};

/// A step: one participant's work, or, as an atomic group, that of several.
#[derive(Clone, Debug)]
#[must_use = "a step does nothing until it is given to a saga"]
pub struct Step {
    name: String,
    kind: StepKind,
    after: Vec<String>,
    participant: Option<String>,
    operation: Option<Operation>,
    compensation: Option<Operation>,
    branches: Vec<v1::BranchRequest>,
    max_attempts: Option<u32>,
    first_backoff: Option<Duration>,
    max_backoff: Option<Duration>,
    attempt_timeout: Option<Duration>,
}

impl Step {
    /// A step that can be undone: by [`Self::compensate`], or, where there is nothing to undo, without it. The name is 1 to 48 of `a-z`, `0-9`,
    /// `_` and `-`.
    pub fn new(name: impl Into<String>) -> Self {
        Self::of(name.into(), StepKind::Compensatable)
    }

    /// The step that decides: it comes after all that can be undone, and once it is done the saga only goes forward. At most one.
    pub fn pivot(name: impl Into<String>) -> Self {
        Self::of(name.into(), StepKind::Pivot)
    }

    /// A step that is tried until it is done; it comes after the pivot and all that can be undone.
    pub fn retriable(name: impl Into<String>) -> Self {
        Self::of(name.into(), StepKind::Retriable)
    }

    fn of(name: String, kind: StepKind) -> Self {
        Self {
            name,
            kind,
            after: Vec::new(),
            participant: None,
            operation: None,
            compensation: None,
            branches: Vec::new(),
            max_attempts: None,
            first_backoff: None,
            max_backoff: None,
            attempt_timeout: None,
        }
    }

    /// Who does it.
    pub fn at(mut self, participant: impl Into<String>) -> Self {
        self.participant = Some(participant.into());
        self
    }

    /// What is done there.
    pub fn run(mut self, operation: Operation) -> Self {
        self.operation = Some(operation);
        self
    }

    /// What undoes it there.
    pub fn compensate(mut self, operation: Operation) -> Self {
        self.compensation = Some(operation);
        self
    }

    /// Instead of [`Self::at`] and [`Self::run`], at least twice: the work of one of several participants, who commit together. Not for a step
    /// that can be undone.
    pub fn branch(
        mut self,
        participant: impl Into<String>,
        operations: impl IntoIterator<Item = Operation>,
    ) -> Self {
        self.branches.push(v1::BranchRequest {
            participant: participant.into(),
            operations: operations.into_iter().map(Into::into).collect(),
        });
        self
    }

    /// Steps that must be done before; none of a later stage.
    pub fn after<S: Into<String>>(mut self, steps: impl IntoIterator<Item = S>) -> Self {
        self.after.extend(steps.into_iter().map(Into::into));
        self
    }

    /// Attempts before it is given up, or, where it is tried without end, before it counts as stuck: 1 to 1000, 5 by default.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// The pause after the first failure, which doubles with each, and the longest one: 100 ms and 30 s by default, a day at most.
    pub fn backoff(mut self, first: Duration, max: Duration) -> Self {
        self.first_backoff = Some(first);
        self.max_backoff = Some(max);
        self
    }

    /// Time for one attempt: 10 s by default, an hour at most.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = Some(timeout);
        self
    }

    /// As the `index`th of its saga.
    pub(super) fn into_wire(self, index: usize) -> Result<v1::StepRequest, Error> {
        let invalid = |what: &str| {
            let message = format!("step {}: {what}", self.name);
            Err(Error::invalid(&format!("steps[{index}]"), message))
        };
        if self.max_attempts == Some(0) {
            return invalid("it needs at least one attempt");
        }
        let retry = v1::RetryPolicy {
            max_attempts: self.max_attempts.unwrap_or_default(),
            first_backoff: self.first_backoff.map(wire_timeout).transpose()?,
            max_backoff: self.max_backoff.map(wire_timeout).transpose()?,
            attempt_timeout: self.attempt_timeout.map(wire_timeout).transpose()?,
        };
        let work = match (self.participant, self.operation) {
            (Some(participant), Some(operation)) if self.branches.is_empty() => {
                Work::Action(v1::Action {
                    participant,
                    operation: Some(operation.into()),
                    compensation: self.compensation.map(Into::into),
                })
            }
            (None, None) if !self.branches.is_empty() && self.compensation.is_none() => {
                Work::Group(v1::AtomicGroup {
                    branches: self.branches,
                })
            }
            _ => return invalid("it needs either at() and run(), or branch()es"),
        };
        Ok(v1::StepRequest {
            name: self.name,
            work: Some(work),
            after: self.after,
            kind: self.kind.into(),
            retry: Some(retry),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_participant_s_or_a_group_and_nothing_between() {
        let debit = || Operation::named("debit");
        let action = Step::new("a").at("shop").run(debit()).compensate(debit());
        let wire = action.clone().into_wire(0).expect("sound");
        assert_eq!(wire.kind(), StepKind::Compensatable);
        assert!(matches!(
            wire.work,
            Some(Work::Action(v1::Action {
                compensation: Some(_),
                ..
            }))
        ));
        let group = Step::pivot("a").branch("x", [debit()]).branch("y", []);
        let wire = group.clone().after(["b"]).into_wire(0).expect("sound");
        assert!(matches!(wire.work, Some(Work::Group(_))));
        assert_eq!(wire.after, ["b"]);
        for wrong in [
            Step::new("a"),
            Step::new("a").at("shop"),
            Step::new("a").run(debit()),
            action.clone().branch("x", []),
            group.compensate(debit()),
            action.max_attempts(0),
        ] {
            match wrong.into_wire(3) {
                Err(Error::Invalid { field, .. }) => assert_eq!(field.as_deref(), Some("steps[3]")),
                other => panic!("{other:?}"),
            }
        }
    }
}
