//! A saga as clients send it, checked field by field. How its steps fit together is the engine's to check.

use std::time::Duration;

use unanimity_engine::{
    LockKey, ParticipantName, RetryPolicy, StepDefinition, StepKind, StepName, StepWork, Work,
};
use unanimity_proto::v1;

use super::{branches, participant, span};
use crate::{
    error::Refused,
    wire::{self, reference},
};

/// Attempts where the policy names no number.
const ATTEMPTS_DEFAULT: u32 = 5;
/// Attempts at most.
const ATTEMPTS_MAX: u32 = 1_000;
/// The first pause where the policy names none.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// The longest pause where the policy names none.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// A pause at most.
const BACKOFF_BOUND: Duration = Duration::from_secs(24 * 3_600);
/// Time for an attempt where the policy names none.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for an attempt at most.
const ATTEMPT_TIMEOUT_BOUND: Duration = Duration::from_secs(3_600);

/// Checks an operation for a participant; the text is the operation's field.
type Check<'a> = &'a dyn Fn(&ParticipantName, &str, &v1::Operation) -> Result<(), Refused>;

/// The steps.
pub(crate) fn steps(
    given: Vec<v1::StepRequest>,
    check: Check<'_>,
) -> Result<Vec<StepDefinition>, Refused> {
    let step = |(at, given)| step(&format!("steps[{at}]"), given, check);
    given.into_iter().enumerate().map(step).collect()
}

/// The keys of the locks.
pub(crate) fn locks(given: &[String]) -> Result<Vec<LockKey>, Refused> {
    let lock = |(at, key): (usize, &String)| {
        LockKey::parse(key).ok_or_else(|| {
            Refused::invalid(
                format!("locks[{at}]"),
                "must be 1 to 128 bytes without control characters",
            )
        })
    };
    given.iter().enumerate().map(lock).collect()
}

/// Whether to answer when the beginning is durable.
pub(crate) fn answer_accepted(given: i32) -> Result<bool, Refused> {
    let refused = |problem: String| Err(Refused::invalid("answer_time", problem));
    match v1::AnswerTime::try_from(given) {
        Ok(v1::AnswerTime::Unspecified | v1::AnswerTime::Completed) => Ok(false),
        Ok(v1::AnswerTime::Accepted) => Ok(true),
        Ok(v1::AnswerTime::Decided) => refused(
            "a saga has no one decision; say ACCEPTED to be answered when its beginning is durable, or COMPLETED"
                .into(),
        ),
        Err(_) => refused(format!("{given} is not known here")),
    }
}

fn step(field: &str, given: v1::StepRequest, check: Check<'_>) -> Result<StepDefinition, Refused> {
    let kind = kind(field, given.kind)?;
    let name = step_name(&format!("{field}.name"), &given.name)?;
    let after = |(at, name): (usize, &String)| step_name(&format!("{field}.after[{at}]"), name);
    Ok(StepDefinition {
        name,
        kind,
        after: given
            .after
            .iter()
            .enumerate()
            .map(after)
            .collect::<Result<_, _>>()?,
        retry: retry(&format!("{field}.retry"), given.retry.unwrap_or_default())?,
        work: work(field, given.work, check)?,
    })
}

fn kind(field: &str, given: i32) -> Result<StepKind, Refused> {
    match v1::StepKind::try_from(given) {
        Ok(v1::StepKind::Unspecified | v1::StepKind::Compensatable) => Ok(StepKind::Compensatable),
        Ok(v1::StepKind::Pivot) => Ok(StepKind::Pivot),
        Ok(v1::StepKind::Retriable) => Ok(StepKind::Retriable),
        Err(_) => Err(Refused::invalid(
            format!("{field}.kind"),
            format!("{given} is not known here"),
        )),
    }
}

/// A step's name, which stands at `field`.
pub(crate) fn step_name(field: &str, given: &str) -> Result<StepName, Refused> {
    StepName::parse(given).ok_or_else(|| {
        Refused::invalid(
            field,
            format!(
                "{given:?} is no step's name: 1 to 48 characters of a-z, 0-9, _ and -, and not \"transaction\""
            ),
        )
    })
}

fn work(
    field: &str,
    given: Option<v1::step_request::Work>,
    check: Check<'_>,
) -> Result<StepWork, Refused> {
    match given {
        None => Err(Refused::invalid(field, "needs an action or a group")),
        Some(v1::step_request::Work::Action(given)) => {
            action(&format!("{field}.action"), given, check)
        }
        Some(v1::step_request::Work::Group(given)) => {
            group(&format!("{field}.group.branches"), given, check)
        }
    }
}

fn action(field: &str, given: v1::Action, check: Check<'_>) -> Result<StepWork, Refused> {
    let participant = participant(&format!("{field}.participant"), &given.participant)?;
    let work = |name: &str, operation: &v1::Operation| {
        let field = format!("{field}.{name}");
        check(&participant, &field, operation)?;
        Ok::<_, Refused>(Work {
            payload: wire::operation(operation),
            bindings: reference::bindings(&field, 0, operation)?,
        })
    };
    let operation = given
        .operation
        .ok_or_else(|| Refused::invalid(format!("{field}.operation"), "must be set"))?;
    Ok(StepWork::Single {
        action: work("operation", &operation)?,
        compensation: given
            .compensation
            .map(|compensation| work("compensation", &compensation))
            .transpose()?,
        participant,
    })
}

fn group(field: &str, given: v1::AtomicGroup, check: Check<'_>) -> Result<StepWork, Refused> {
    let branches = branches(field, given.branches, check)?;
    let branch = |(at, (name, operations)): (usize, (ParticipantName, Vec<v1::Operation>))| {
        let mut bindings = Vec::new();
        for (index, operation) in (0..).zip(&operations) {
            let field = format!("{field}[{at}].operations[{index}]");
            bindings.extend(reference::bindings(&field, index, operation)?);
        }
        let payload = wire::work(operations);
        Ok((name, Work { payload, bindings }))
    };
    let work: Result<_, Refused> = branches.into_iter().enumerate().map(branch).collect();
    Ok(StepWork::Group(work?))
}

/// Where only one of the pauses is given, the other's default gives way to it.
fn retry(field: &str, given: v1::RetryPolicy) -> Result<RetryPolicy, Refused> {
    let max_attempts = match given.max_attempts {
        0 => ATTEMPTS_DEFAULT,
        1..=ATTEMPTS_MAX => given.max_attempts,
        _ => {
            return Err(Refused::invalid(
                format!("{field}.max_attempts"),
                format!(
                    "is {}, but at most {ATTEMPTS_MAX} is allowed",
                    given.max_attempts
                ),
            ));
        }
    };
    let pause = |name, given| bounded(&format!("{field}.{name}"), given, BACKOFF_BOUND);
    let (first, max) = match (
        pause("first_backoff", given.first_backoff)?,
        pause("max_backoff", given.max_backoff)?,
    ) {
        (Some(first), Some(max)) if first > max => {
            return Err(Refused::invalid(
                format!("{field}.first_backoff"),
                format!("is {first:?}, but max_backoff is {max:?}"),
            ));
        }
        (Some(first), max) => (first, max.unwrap_or(MAX_BACKOFF.max(first))),
        (None, max) => {
            let max = max.unwrap_or(MAX_BACKOFF);
            (FIRST_BACKOFF.min(max), max)
        }
    };
    let timeout = bounded(
        &format!("{field}.attempt_timeout"),
        given.attempt_timeout,
        ATTEMPT_TIMEOUT_BOUND,
    )?;
    Ok(RetryPolicy {
        max_attempts,
        first_backoff_ms: ms(first),
        max_backoff_ms: ms(max),
        attempt_timeout_ms: ms(timeout.unwrap_or(ATTEMPT_TIMEOUT)),
    })
}

fn bounded(
    field: &str,
    given: Option<prost_types::Duration>,
    bound: Duration,
) -> Result<Option<Duration>, Refused> {
    let Some(given) = given else { return Ok(None) };
    let given = span(field, given)?;
    if given < Duration::from_millis(1) || given > bound {
        return Err(Refused::invalid(
            field,
            format!("is {given:?}, but must be from 1 ms to {bound:?}"),
        ));
    }
    Ok(Some(given))
}

/// Rounded up.
fn ms(duration: Duration) -> u64 {
    duration.as_nanos().div_ceil(1_000_000) as u64
}

#[cfg(test)]
mod tests {
    use unanimity_engine::Refusal;

    use super::*;

    fn field<T: std::fmt::Debug>(result: Result<T, Refused>) -> String {
        match result {
            Err(Refused::Engine(Refusal::Invalid { field, .. })) => field,
            other => panic!("{other:?}"),
        }
    }

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    fn operation(reference: &str) -> v1::Operation {
        let value = v1::Value {
            kind: Some(v1::value::Kind::Reference(reference.into())),
        };
        v1::Operation {
            statement: Some(v1::operation::Statement::Name("x".into())),
            parameters: [("id".to_owned(), value)].into(),
            arguments: Vec::new(),
        }
    }

    fn sound() -> v1::StepRequest {
        v1::StepRequest {
            name: "order".into(),
            work: Some(v1::step_request::Work::Action(v1::Action {
                participant: "shop".into(),
                operation: Some(operation("transaction.id")),
                compensation: Some(operation("order.rows.0.id")),
            })),
            ..v1::StepRequest::default()
        }
    }

    fn read(given: v1::StepRequest) -> Result<Vec<StepDefinition>, Refused> {
        steps(vec![given], &|_, _, _| Ok(()))
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let step = read(sound()).expect("sound").remove(0);
        assert_eq!(step.kind, StepKind::Compensatable);
        assert_eq!(
            step.retry,
            RetryPolicy {
                max_attempts: 5,
                first_backoff_ms: 100,
                max_backoff_ms: 30_000,
                attempt_timeout_ms: 10_000,
            }
        );
        let StepWork::Single {
            action,
            compensation: Some(compensation),
            ..
        } = step.work
        else {
            panic!("not an action with its compensation")
        };
        assert_eq!(action.bindings[0].reference.to_string(), "transaction.id");
        assert_eq!(
            compensation.bindings[0].reference.to_string(),
            "order.rows.0.id"
        );
    }

    #[test]
    fn one_pause_gives_way_to_the_other_where_that_is_only_a_default() {
        let pauses = |first_backoff, max_backoff| {
            let policy = v1::RetryPolicy {
                first_backoff,
                max_backoff,
                ..v1::RetryPolicy::default()
            };
            let policy = retry("retry", policy).expect("sound");
            (policy.first_backoff_ms, policy.max_backoff_ms)
        };
        assert_eq!(pauses(seconds(60), None), (60_000, 60_000));
        assert_eq!(pauses(seconds(1), None), (1_000, 30_000));
        let short = Some(prost_types::Duration {
            seconds: 0,
            nanos: 50_000_000,
        });
        assert_eq!(pauses(None, short), (50, 50));
        assert_eq!(pauses(seconds(2), seconds(2)), (2_000, 2_000));
    }

    #[test]
    fn what_is_wrong_is_refused_by_its_field() {
        let with = |change: &dyn Fn(&mut v1::StepRequest)| {
            let mut step = sound();
            change(&mut step);
            field(read(step))
        };
        let retry = |policy: v1::RetryPolicy| with(&|step| step.retry = Some(policy));
        let action = |change: &dyn Fn(&mut v1::Action)| {
            with(&|step| {
                let Some(v1::step_request::Work::Action(action)) = &mut step.work else {
                    panic!("an action")
                };
                change(action);
            })
        };
        assert_eq!(with(&|s| s.name = "transaction".into()), "steps[0].name");
        assert_eq!(with(&|s| s.kind = 9), "steps[0].kind");
        assert_eq!(
            with(&|s| s.after = vec!["a".into(), "B".into()]),
            "steps[0].after[1]"
        );
        assert_eq!(with(&|s| s.work = None), "steps[0]");
        assert_eq!(action(&|a| a.operation = None), "steps[0].action.operation");
        assert_eq!(
            action(&|a| a.participant = "A".into()),
            "steps[0].action.participant"
        );
        assert_eq!(
            action(&|a| a.operation = Some(operation("order"))),
            "steps[0].action.operation.parameters.id"
        );
        assert_eq!(
            action(&|a| a.compensation = Some(operation(".x"))),
            "steps[0].action.compensation.parameters.id"
        );
        let policy = v1::RetryPolicy::default;
        for (policy, wanted) in [
            (
                v1::RetryPolicy {
                    max_attempts: 1_001,
                    ..policy()
                },
                "max_attempts",
            ),
            (
                v1::RetryPolicy {
                    first_backoff: seconds(0),
                    ..policy()
                },
                "first_backoff",
            ),
            (
                v1::RetryPolicy {
                    first_backoff: seconds(-1),
                    ..policy()
                },
                "first_backoff",
            ),
            (
                v1::RetryPolicy {
                    max_backoff: seconds(86_401),
                    ..policy()
                },
                "max_backoff",
            ),
            (
                v1::RetryPolicy {
                    first_backoff: seconds(3),
                    max_backoff: seconds(2),
                    ..policy()
                },
                "first_backoff",
            ),
            (
                v1::RetryPolicy {
                    attempt_timeout: seconds(3_601),
                    ..policy()
                },
                "attempt_timeout",
            ),
        ] {
            assert_eq!(retry(policy), format!("steps[0].retry.{wanted}"));
        }
        assert_eq!(field(locks(&["a".into(), String::new()])), "locks[1]");
        assert_eq!(
            field(answer_accepted(v1::AnswerTime::Decided.into())),
            "answer_time"
        );
        assert_eq!(field(answer_accepted(9)), "answer_time");
        assert_eq!(answer_accepted(v1::AnswerTime::Accepted.into()), Ok(true));
    }

    #[test]
    fn a_group_s_references_know_their_operation() {
        let branch = |name: &str, references: &[&str]| v1::BranchRequest {
            participant: name.into(),
            operations: references.iter().map(|text| operation(text)).collect(),
        };
        let group = |branches| v1::StepRequest {
            work: Some(v1::step_request::Work::Group(v1::AtomicGroup { branches })),
            ..sound()
        };
        let sound = group(vec![branch("a", &[]), branch("b", &["x.id", "y.id"])]);
        let step = read(sound).expect("sound").remove(0);
        let StepWork::Group(branches) = step.work else {
            panic!("not a group")
        };
        let operations: Vec<_> = branches[1]
            .1
            .bindings
            .iter()
            .map(|b| b.place.operation)
            .collect();
        assert_eq!(operations, [0, 1]);
        assert_eq!(
            field(read(group(vec![
                branch("a", &[]),
                branch("b", &["x.id", "y"])
            ]))),
            "steps[0].group.branches[1].operations[1].parameters.id"
        );
        assert_eq!(
            field(read(group(vec![branch("a", &[]), branch("a", &[])]))),
            "steps[0].group.branches[1].participant"
        );
    }
}
