//! Draws sagas: stages, orders within them, groups, locks, and compensations; all that money does in one sums up to nothing.

use unanimity_engine::{
    Argument, Binding, LockKey, ParticipantName, Place, RetryPolicy, StepDefinition, StepKind,
    StepName, StepWork,
};

use crate::{
    plan::{Ask, Shape, draw::ACCOUNTS},
    random::Random,
    work::Work,
};

pub(crate) fn draw(random: &mut Random, shape: &Shape) -> Ask {
    let mut steps: Vec<StepDefinition> = Vec::new();
    let counts = [
        (StepKind::Compensatable, "c", random.below(4)),
        (StepKind::Pivot, "p", random.below(2)),
        (StepKind::Retriable, "r", random.below(3)),
    ];
    for (kind, letter, count) in counts {
        for index in 0..count {
            let made = step(random, shape, kind, &format!("{letter}{index}"), &steps);
            steps.push(made);
        }
    }
    if steps.is_empty() {
        return draw(random, shape);
    }
    move_money(random, &mut steps);
    bind(random, &mut steps);
    let locks = (0..shape.locks).filter(|_| random.one_in(3));
    Ask::Saga {
        steps,
        locks: locks.map(|at| lock(&format!("lock{at}"))).collect(),
        lock_timeout_ms: random.pick(&[500, 5_000, 60_000]),
    }
}

fn step(
    random: &mut Random,
    shape: &Shape,
    kind: StepKind,
    name: &str,
    earlier: &[StepDefinition],
) -> StepDefinition {
    let sites = shape.sites.len();
    let site = random.below(sites);
    let group = kind != StepKind::Compensatable && random.one_in(2);
    let work = if group {
        let other = (site + 1 + random.below(sites - 1)) % sites;
        let (mut first, mut second) = (Work::reads(), Work::reads());
        if random.below(4) > 0 {
            let amount = random.between(1, 20) as i64;
            first = Work::moves(random.below(ACCOUNTS) as u8, -amount);
            second = Work::moves(random.below(ACCOUNTS) as u8, amount);
            // A retriable step is tried until it is done: a no of the business would keep it for ever.
            first.checked = kind == StepKind::Pivot;
        }
        let branch = |site: usize, work: &Work| (participant(shape, site), plain(work));
        StepWork::Group(vec![branch(site, &first), branch(other, &second)])
    } else {
        let mut work = Work::reads();
        work.refused = kind != StepKind::Retriable && random.one_in(10);
        // Where neither settling nor a compensation fences it, a late action may still arrive when all is over.
        let fenced = shape.sites[site].settles;
        let undone = kind == StepKind::Compensatable && !(fenced && random.one_in(5));
        StepWork::Single {
            participant: participant(shape, site),
            action: plain(&work),
            compensation: undone.then(|| plain(&work.inverse())),
        }
    };
    let after = earlier.iter().filter(|_| random.one_in(2));
    StepDefinition {
        name: step_name(name),
        kind,
        after: after.map(|step| step.name.clone()).collect(),
        work,
        retry: RetryPolicy {
            max_attempts: 3,
            first_backoff_ms: 100,
            max_backoff_ms: 1_000,
            attempt_timeout_ms: random.pick(&[200, 1_000]),
        },
    }
}

/// Some steps take money, and one gives all of it.
fn move_money(random: &mut Random, steps: &mut [StepDefinition]) {
    let can_take = |step: &StepDefinition| {
        matches!(
            &step.work,
            StepWork::Single {
                compensation: Some(_),
                ..
            }
        )
    };
    let can_give = |step: &StepDefinition| {
        let single = matches!(&step.work, StepWork::Single { .. });
        single && (step.kind != StepKind::Compensatable || can_take(step))
    };
    let givers: Vec<usize> = (0..steps.len())
        .filter(|at| can_give(&steps[*at]))
        .collect();
    let Some(giver) = givers.last().copied() else {
        return;
    };
    let mut taken = 0;
    for (at, step) in steps.iter_mut().enumerate() {
        if at != giver && can_take(step) {
            let amount = random.between(1, 40) as i64;
            taken += amount;
            add(step, &Work::moves(random.below(ACCOUNTS) as u8, -amount));
        }
    }
    if taken > 0 {
        let mut gift = Work::moves(random.below(ACCOUNTS) as u8, taken);
        gift.checked = false;
        add(&mut steps[giver], &gift);
    }
}

fn add(step: &mut StepDefinition, work: &Work) {
    let StepWork::Single {
        action,
        compensation,
        ..
    } = &mut step.work
    else {
        return;
    };
    let mut whole = Work::decode(&action.payload);
    whole.join(work.clone());
    action.payload = whole.encode();
    if let Some(compensation) = compensation {
        compensation.payload = whole.inverse().encode();
    }
}

/// Some steps use the result of one before them. Not a retriable one: where an operator did the earlier step by hand there is no result, and it
/// would be tried for ever.
fn bind(random: &mut Random, steps: &mut [StepDefinition]) {
    for at in 1..steps.len() {
        let (earlier, rest) = steps.split_at_mut(at);
        let step = &mut rest[0];
        let source = earlier.iter().find(|other| {
            let single = matches!(&other.work, StepWork::Single { .. });
            single && (other.kind < step.kind || step.after.contains(&other.name))
        });
        let bound = step.kind != StepKind::Retriable && random.one_in(3);
        let Some(source) = source.filter(|_| bound) else {
            continue;
        };
        if let StepWork::Single { action, .. } = &mut step.work {
            let reference = format!("{}.moved", source.name);
            action.bindings.push(Binding {
                place: Place {
                    operation: 0,
                    argument: Argument::Parameter("moved".into()),
                },
                reference: reference.parse().expect("a step's name and a field"),
            });
        }
    }
}

fn plain(work: &Work) -> unanimity_engine::Work {
    unanimity_engine::Work {
        payload: work.encode(),
        bindings: Vec::new(),
    }
}

fn participant(shape: &Shape, site: usize) -> ParticipantName {
    ParticipantName::parse(shape.sites[site].name).expect("a name")
}

fn step_name(text: &str) -> StepName {
    StepName::parse(text).expect("a name")
}

fn lock(text: &str) -> LockKey {
    LockKey::parse(text).expect("a key")
}
