//! The worlds of a configuration as a model that stateright explores, breadth first and to the end.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use stateright::{Checker, HasDiscoveries, Model, Property};

use crate::{
    action::{Action, describe, happen, possible},
    configuration::{Configuration, Sight},
    promise,
    world::World,
};

/// A configuration to be explored.
pub(crate) struct Explored {
    configuration: Configuration,
    /// The first breach of each promise. stateright would keep the last.
    broken: Mutex<BTreeMap<&'static str, String>>,
    /// What was seen; it needs no second look.
    seen: Mutex<Vec<Sight>>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) unique_states: usize,
    pub(crate) total_states: usize,
    pub(crate) depth: usize,
    pub(crate) seconds: f64,
    pub(crate) breaches: Vec<Breach>,
    /// What had to be seen, and was not.
    pub(crate) unseen: Vec<Sight>,
}

/// A broken promise, and how it came to that.
#[derive(Debug)]
pub(crate) struct Breach {
    pub(crate) promise: &'static str,
    pub(crate) how: String,
    pub(crate) trace: Vec<String>,
}

impl Explored {
    fn new(configuration: &Configuration) -> Self {
        Explored {
            configuration: configuration.clone(),
            broken: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    fn keeps(&self, at: usize, world: &World) -> bool {
        let promise = &promise::ALL[at];
        let Err(how) = (promise.kept)(&self.configuration, world) else {
            return true;
        };
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        let first = !broken.contains_key(promise.name);
        broken.entry(promise.name).or_insert(how);
        !first
    }

    /// Looks for what is still to be seen. Always true: it only takes notes.
    fn looks(&self, world: &World) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < self.configuration.seen.len() {
            let wanted = self.configuration.seen.iter().copied();
            let new: Vec<_> = wanted
                .filter(|sight| !seen.contains(sight) && sight.is_in(&self.configuration, world))
                .collect();
            seen.extend(new);
        }
        true
    }
}

impl Model for Explored {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(&self.configuration)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        possible(&self.configuration, world, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        happen(&self.configuration, &mut next, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        macro_rules! promises {
            ($($at:literal),*) => {
                vec![$(Property::always(promise::ALL[$at].name, |model: &Self, world| model.keeps($at, world))),*]
            };
        }
        let mut properties = promises!(0, 1, 2, 3, 4, 5, 6, 7, 8, 9);
        properties.push(Property::always(
            "the model looks",
            |model: &Self, world| model.looks(world),
        ));
        properties
    }
}

/// Explores a configuration to its end, or to the first breach; that is then looked for again by one thread, which finds a shortest trace.
pub(crate) fn explore(configuration: &Configuration, threads: usize) -> Findings {
    let findings = run(configuration, threads);
    if findings.breaches.is_empty() || threads == 1 {
        return findings;
    }
    run(configuration, 1)
}

fn run(configuration: &Configuration, threads: usize) -> Findings {
    let began = Instant::now();
    let checker = Explored::new(configuration)
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let model = checker.model();
    let broken = model.broken.lock().unwrap_or_else(PoisonError::into_inner);
    let breaches = broken.iter().map(|(promise, how)| Breach {
        promise,
        how: how.clone(),
        trace: trace(configuration, checker.discovery(promise)),
    });
    let mut breaches: Vec<_> = breaches.collect();
    breaches.sort_by_key(|breach| breach.trace.len());
    let shortest = breaches.first().map_or(0, |breach| breach.trace.len());
    breaches.retain(|breach| breach.trace.len() == shortest); // The longer ones only follow from it.
    let seen = model.seen.lock().unwrap_or_else(PoisonError::into_inner);
    let unseen = configuration.seen.iter().copied();
    Findings {
        unique_states: checker.unique_state_count(),
        total_states: checker.state_count(),
        depth: checker.max_depth(),
        seconds: began.elapsed().as_secs_f64(),
        breaches,
        unseen: unseen.filter(|sight| !seen.contains(sight)).collect(),
    }
}

fn trace(
    configuration: &Configuration,
    path: Option<stateright::Path<World, Action>>,
) -> Vec<String> {
    let steps = path.map(|path| path.into_vec()).unwrap_or_default();
    let line = |(world, action): (World, Option<Action>)| {
        action.map(|action| describe(configuration, &world, action))
    };
    steps.into_iter().filter_map(line).collect()
}
