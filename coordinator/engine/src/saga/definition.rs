//! What a saga is made of, and which sagas make sense.

use std::collections::HashMap;

use crate::{
    effect::Refusal,
    id::{ParticipantName, StepName},
    input::Payload,
    saga::{
        Step,
        reference::{Binding, Reference},
    },
};

/// What may become of a step. In the order of the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Can be undone.
    Compensatable,
    /// Decides.
    Pivot,
    /// Is tried until it is done.
    Retriable,
}

/// How often, and how fast, a step is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RetryPolicy {
    /// Attempts before a compensatable step or the pivot is given up, and before any other counts as stuck.
    pub max_attempts: u32,
    /// Pause after the first failure, in milliseconds; it doubles with each.
    pub first_backoff_ms: u64,
    /// Longest pause, in milliseconds.
    pub max_backoff_ms: u64,
    /// Time for one attempt, in milliseconds.
    pub attempt_timeout_ms: u64,
}

/// What to send, and where the results of earlier steps go in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Work {
    /// The operation, or the operations of a group's branch.
    pub payload: Payload,
    /// The references in it.
    pub bindings: Vec<Binding>,
}

/// Who does a step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StepWork {
    /// One participant.
    Single {
        /// Who.
        participant: ParticipantName,
        /// What to do.
        action: Work,
        /// What undoes it.
        compensation: Option<Work>,
    },
    /// Several, that commit together.
    Group(Vec<(ParticipantName, Work)>),
}

/// A step as its client defined it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StepDefinition {
    /// Its name.
    pub name: StepName,
    /// Its kind.
    pub kind: Kind,
    /// Names of steps that come before it.
    pub after: Vec<StepName>,
    /// Its work.
    pub work: StepWork,
    /// How it is retried.
    pub retry: RetryPolicy,
}

impl StepDefinition {
    /// Everybody who takes part.
    pub(crate) fn participants(&self) -> Vec<&ParticipantName> {
        match &self.work {
            StepWork::Single { participant, .. } => vec![participant],
            StepWork::Group(branches) => branches.iter().map(|(name, _)| name).collect(),
        }
    }

    /// Actions and compensation.
    pub(crate) fn works(&self) -> Vec<&Work> {
        match &self.work {
            StepWork::Single {
                action,
                compensation,
                ..
            } => std::iter::once(action).chain(compensation).collect(),
            StepWork::Group(branches) => branches.iter().map(|(_, work)| work).collect(),
        }
    }

    /// Where a reference in one of its works stands in the request, of which this is the step of that index.
    fn field(&self, index: usize, work: &Work, binding: &Binding) -> String {
        let is_this = |other: &Work| std::ptr::eq(other, work);
        let place = &binding.place;
        let operation = match &self.work {
            StepWork::Single { action, .. } if is_this(action) => "action.operation".to_owned(),
            StepWork::Single { .. } => "action.compensation".to_owned(),
            StepWork::Group(branches) => {
                let branch = branches.iter().position(|(_, other)| is_this(other));
                format!(
                    "group.branches[{}].operations[{}]",
                    branch.unwrap_or_default(),
                    place.operation
                )
            }
        };
        format!("steps[{index}].{operation}.{place}")
    }

    /// Bytes of its operations.
    pub(crate) fn bytes(&self) -> usize {
        self.works().iter().map(|work| work.payload.len()).sum()
    }
}

/// Checks the steps against one another.
///
/// # Errors
/// [`Refusal::Invalid`] with the field of the first mistake.
pub(crate) fn check(definitions: Vec<StepDefinition>) -> Result<Vec<Step>, Refusal> {
    let mut positions = HashMap::new();
    for (index, step) in definitions.iter().enumerate() {
        if positions.insert(step.name.clone(), index).is_some() {
            let problem = format!(
                "{} stands there twice; name each step differently",
                step.name
            );
            return Err(invalid(format!("steps[{index}].name"), problem));
        }
    }
    check_pivots(&definitions)?;
    let mut steps = Vec::with_capacity(definitions.len());
    for (index, definition) in definitions.iter().enumerate() {
        check_work(index, definition)?;
        let after = positions_of_after(index, definition, &definitions, &positions)?;
        steps.push(Step::new(definition.clone(), after, false));
    }
    check_order(&steps)?;
    check_references(&mut steps, &positions)?;
    Ok(steps)
}

fn check_pivots(definitions: &[StepDefinition]) -> Result<(), Refusal> {
    let mut pivots = definitions
        .iter()
        .enumerate()
        .filter(|(_, step)| step.kind == Kind::Pivot);
    let (first, second) = (pivots.next(), pivots.next());
    let (Some((_, first)), Some((index, second))) = (first, second) else {
        return Ok(());
    };
    let problem = format!(
        "{} is a second pivot beside {}: once one is done the other could fail and nothing be undone; make one of them compensatable or \
         retriable, or both one atomic group",
        second.name, first.name
    );
    Err(invalid(format!("steps[{index}].kind"), problem))
}

fn check_work(index: usize, step: &StepDefinition) -> Result<(), Refusal> {
    let field = |name: &str| format!("steps[{index}].{name}");
    match &step.work {
        StepWork::Single { compensation, .. } => {
            if compensation.is_some() && step.kind != Kind::Compensatable {
                let problem = format!(
                    "{} is never undone, so it can't have a compensation; make it compensatable, or drop the compensation",
                    step.name
                );
                return Err(invalid(field("action.compensation"), problem));
            }
        }
        StepWork::Group(branches) => {
            if step.kind == Kind::Compensatable {
                let problem = format!(
                    "{} is an atomic group, which has no compensation; make it the pivot, or retriable",
                    step.name
                );
                return Err(invalid(field("kind"), problem));
            }
            if branches.len() < 2 {
                let problem = "needs at least two branches; use an action for one participant";
                return Err(invalid(field("group.branches"), problem));
            }
        }
    }
    Ok(())
}

fn positions_of_after(
    index: usize,
    step: &StepDefinition,
    definitions: &[StepDefinition],
    positions: &HashMap<StepName, usize>,
) -> Result<Vec<usize>, Refusal> {
    let position = |(at, name): (usize, &StepName)| {
        let field = format!("steps[{index}].after[{at}]");
        let Some(&before) = positions.get(name) else {
            return Err(invalid(field, format!("there is no step {name}")));
        };
        let (kind, earlier) = (step.kind, definitions[before].kind);
        if earlier > kind {
            let problem = format!(
                "{} is {}, so it can't come after {name}, which is {}: compensatable steps come first, then the pivot, then the retriable ones",
                step.name,
                word(kind),
                word(earlier)
            );
            return Err(invalid(field, problem));
        }
        Ok(before)
    };
    step.after.iter().enumerate().map(position).collect()
}

/// Takes away, again and again, the steps that wait for none that is left; what is left then waits in a circle.
fn check_order(steps: &[Step]) -> Result<(), Refusal> {
    let mut left: Vec<_> = (0..steps.len()).collect();
    loop {
        let before = left.len();
        let waits =
            |step: &usize, left: &[usize]| steps[*step].after.iter().any(|s| left.contains(s));
        left = left
            .iter()
            .copied()
            .filter(|step| waits(step, &left))
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        if left.len() == before {
            let names: Vec<_> = left
                .iter()
                .map(|s| steps[*s].definition.name.as_str())
                .collect();
            let problem = format!(
                "the steps {} wait for one another in a circle",
                names.join(", ")
            );
            return Err(invalid(format!("steps[{}].after", left[0]), problem));
        }
    }
}

/// A reference must be to a step that is done by then: of an earlier stage, or before it by `after`; a compensation may use its own.
fn check_references(
    steps: &mut [Step],
    positions: &HashMap<StepName, usize>,
) -> Result<(), Refusal> {
    let mut wanted = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let compensation = step.compensation();
        for work in step.definition.works() {
            let undoes = compensation.is_some_and(|compensation| std::ptr::eq(compensation, work));
            for binding in &work.bindings {
                let Reference::Result { step: name, .. } = &binding.reference else {
                    continue;
                };
                let field = step.definition.field(index, work, binding);
                let Some(&source) = positions.get(name) else {
                    let problem = format!("{}: there is no step {name}", binding.reference);
                    return Err(invalid(field, problem));
                };
                if matches!(steps[source].definition.work, StepWork::Group(_)) {
                    let problem = format!("{}: an atomic group has no result", binding.reference);
                    return Err(invalid(field, problem));
                }
                let earlier =
                    steps[source].kind() < step.kind() || comes_before(steps, source, index);
                if !(earlier || undoes && source == index) {
                    let problem = format!(
                        "{}: step {name} need not be done by then; name it in this step's after",
                        binding.reference
                    );
                    return Err(invalid(field, problem));
                }
                wanted.push(source);
            }
        }
    }
    for source in wanted {
        steps[source].wanted = true;
    }
    Ok(())
}

/// By `after`, over any number of steps. The order is known to have no circles.
fn comes_before(steps: &[Step], source: usize, step: usize) -> bool {
    let mut seen = vec![false; steps.len()];
    let mut open = steps[step].after.clone();
    while let Some(next) = open.pop() {
        if next == source {
            return true;
        }
        if !std::mem::replace(&mut seen[next], true) {
            open.extend(&steps[next].after);
        }
    }
    false
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Compensatable => "compensatable",
        Kind::Pivot => "the pivot",
        Kind::Retriable => "retriable",
    }
}

fn invalid(field: String, problem: impl Into<String>) -> Refusal {
    Refusal::Invalid {
        field,
        problem: problem.into(),
    }
}

/// Steps as they were checked once, when their saga began. Nothing is refused any more, whatever this release would refuse.
pub(crate) fn restore(definitions: Vec<StepDefinition>) -> Vec<Step> {
    let position = |name: &StepName| definitions.iter().position(|d| d.name == *name);
    let refers_to = |name: &StepName| {
        let works = definitions.iter().flat_map(StepDefinition::works);
        let mut references = works.flat_map(|work| &work.bindings).map(|b| &b.reference);
        references.any(|r| matches!(r, Reference::Result { step, .. } if step == name))
    };
    let restored = |definition: &StepDefinition| {
        let after = definition.after.iter().filter_map(position).collect();
        Step::new(definition.clone(), after, refers_to(&definition.name))
    };
    definitions.iter().map(restored).collect()
}
