//! Worlds of sagas.

use unanimity_engine::{
    LockKey, ParticipantName, Payload, RetryPolicy, StepDefinition, StepKind, StepName, StepWork,
    Work,
};

use crate::{
    configuration::{Ask, Configuration, Faults, Sight},
    site::Manner::{Refuses, Well},
};

const RETRY: RetryPolicy = RetryPolicy {
    max_attempts: 2,
    first_backoff_ms: 100,
    max_backoff_ms: 100,
    attempt_timeout_ms: 500,
};

/// Well below a second.
pub(super) fn small() -> Vec<Configuration> {
    vec![locks()]
}

/// Seconds.
pub(super) fn large() -> Vec<Configuration> {
    vec![unsettled(), chain(), again(), saga()]
}

/// Minutes, and some GB of memory.
pub(super) fn deep() -> Vec<Configuration> {
    let twice = Faults {
        crashes: 2,
        cuts: 1,
        ..Faults::default()
    };
    let most = Faults {
        crashes: 1,
        cuts: 1,
        ticks: 1,
        laters: 1,
        aborts: 1,
        ..Faults::default()
    };
    vec![
        locks().deep("locks-deep", "the same with two crashes", twice),
        chain().deep("saga-chain-deep", "the same with two crashes", twice),
        saga().deep("saga-deep", "the same, and the client cancels", most),
    ]
}

/// A step at a site; a compensatable one has a compensation.
fn step(name: &str, kind: StepKind, site: &str) -> StepDefinition {
    let work = || Work {
        payload: Payload::from(&b"w"[..]),
        bindings: Vec::new(),
    };
    StepDefinition {
        name: StepName::parse(name).expect("a name"),
        kind,
        after: Vec::new(),
        work: StepWork::Single {
            participant: ParticipantName::parse(site).expect("a name"),
            action: work(),
            compensation: (kind == StepKind::Compensatable).then(work),
        },
        retry: RETRY,
    }
}

fn three_steps() -> Vec<StepDefinition> {
    vec![
        step("book", StepKind::Compensatable, "alpha"),
        step("pay", StepKind::Pivot, "beta"),
        step("tell", StepKind::Retriable, "gamma"),
    ]
}

fn locks() -> Configuration {
    let steps = || {
        vec![
            step("book", StepKind::Compensatable, "alpha"),
            step("pay", StepKind::Pivot, "beta"),
        ]
    };
    let lock = || vec![LockKey::parse("k").expect("a key")];
    let faults = Faults {
        crashes: 1,
        cuts: 1,
        ..Faults::default()
    };
    Configuration::new("locks", "two sagas that want the same lock")
        .sites(2, &[Well])
        .one(1, |site| site.manners = vec![Well, Refuses])
        .ask(Ask::Saga(steps(), lock()), 1, false)
        .ask(Ask::Saga(steps(), lock()), 1, false)
        .faults(faults)
        .network(true, true)
        .seen(&[Sight::SagaDone, Sight::SagaUndone, Sight::LockPassedOn])
}

fn chain() -> Configuration {
    let mut steps = vec![
        step("hold", StepKind::Compensatable, "alpha"),
        step("book", StepKind::Compensatable, "beta"),
        step("pay", StepKind::Pivot, "gamma"),
    ];
    steps[1].after = vec![steps[0].name.clone()];
    let faults = Faults {
        crashes: 1,
        cuts: 1,
        aborts: 1,
        ..Faults::default()
    };
    Configuration::new(
        "saga-chain",
        "two steps that can be undone, one after the other, and a pivot",
    )
    .sites(3, &[Well, Refuses])
    .ask(Ask::Saga(steps, vec![]), 1, false)
    .faults(faults)
    .network(true, true)
    .seen(&[Sight::SagaDone, Sight::SagaUndone])
}

fn unsettled() -> Configuration {
    let faults = Faults {
        crashes: 1,
        cuts: 1,
        ticks: 1,
        aborts: 1,
        ..Faults::default()
    };
    Configuration::new(
        "saga-unsettled",
        "a participant that can't tell whether a step took effect",
    )
    .sites(2, &[Well])
    .one(0, |site| (site.settles, site.one_phase) = (false, false))
    .ask(
        Ask::Saga(three_steps().drain(..2).collect(), vec![]),
        1,
        false,
    )
    .faults(faults)
    .network(true, true)
    .seen(&[Sight::SagaDone, Sight::SagaUndone])
}

fn again() -> Configuration {
    let faults = Faults {
        crashes: 2,
        ..Faults::default()
    };
    Configuration::new("saga-again", "a saga whose request is sent again")
        .sites(3, &[Well, Refuses])
        .one(2, |site| site.manners = vec![Well])
        .ask(Ask::Saga(three_steps(), vec![]), 2, true)
        .faults(faults)
        .network(true, true)
        .seen(&[Sight::SagaDone, Sight::SagaUndone])
}

fn saga() -> Configuration {
    let faults = Faults {
        crashes: 1,
        cuts: 1,
        ticks: 1,
        laters: 1,
        ..Faults::default()
    };
    Configuration::new(
        "saga",
        "one that can be undone, a pivot, one that is tried until it is done",
    )
    .sites(3, &[Well, Refuses])
    .one(2, |site| site.manners = vec![Well])
    .ask(Ask::Saga(three_steps(), vec![]), 1, false)
    .faults(faults)
    .network(true, true)
    .seen(&[Sight::SagaDone, Sight::SagaUndone])
}
