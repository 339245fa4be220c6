//! A decision is stable, and what a client was told stays true: nothing of an aborted transaction is ever committed, or about to be, and
//! nothing of a committed one is rolled back.

use unanimity_engine::{StepDefinition, TransactionId};

use crate::{
    client::Told,
    configuration::{Ask, Configuration},
    promise::{Promise, attempts},
    site::Local,
    world::{World, short},
};

pub(super) const PROMISE: Promise = Promise {
    name: "a decision is stable",
    kept,
};

fn kept(configuration: &Configuration, world: &World) -> Result<(), String> {
    for attempt in attempts(configuration, world) {
        let told = world.clients[attempt.request]
            .told
            .get(&attempt.id)
            .copied();
        let contradicted = match attempt.ask {
            Ask::Saga(steps, _) => saga_contradicts(world, steps, attempt.id, told),
            Ask::Submit(_) | Ask::Interactive(..) => {
                let decided = world.coordinator.decided.contains(&attempt.id);
                let deciding = || world.coordinator.deciding().any(|id| id == attempt.id);
                let branches = attempt.branches(world);
                let gone = branches.contains(&Some(Local::Aborted));
                let lost = branches.contains(&Some(Local::Lost));
                match told {
                    Some(Told::Aborted) => decided || attempt.has_committed(world) || deciding(),
                    Some(Told::Heuristic) => !lost,
                    Some(Told::Committed) => gone,
                    Some(Told::Accepted | Told::Compensated) | None => decided && gone,
                }
            }
        };
        if contradicted {
            return Err(format!(
                "{} was told {told:?}, and its databases hold {:?}; its deeds are {:?}",
                short(attempt.id),
                attempt.branches(world),
                world.deeds
            ));
        }
    }
    Ok(())
}

fn saga_contradicts(
    world: &World,
    steps: &[StepDefinition],
    id: TransactionId,
    told: Option<Told>,
) -> bool {
    let count = |undid: bool| {
        let own = world.deeds.iter().filter(|deed| deed.saga == id);
        own.filter(|deed| deed.undid == undid).count()
    };
    match told {
        Some(Told::Committed) => count(false) != steps.len() || count(true) > 0,
        Some(Told::Compensated) => count(false) != count(true),
        Some(Told::Aborted) => count(false) > 0,
        Some(Told::Heuristic) => true,
        Some(Told::Accepted) | None => false,
    }
}
