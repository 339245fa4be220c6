//! Nobody hears of a commit before its record is durable: no client, and no database.

use crate::{
    client::Told,
    configuration::Configuration,
    promise::{Attempt, Promise, attempts},
    world::{World, short},
};

pub(super) const PROMISE: Promise = Promise {
    name: "durable before told",
    kept,
};

fn kept(configuration: &Configuration, world: &World) -> Result<(), String> {
    for attempt in attempts(configuration, world) {
        let told = world.clients[attempt.request].told.get(&attempt.id);
        let told = told.is_some_and(|told| *told != Told::Aborted);
        let kept = if attempt.is_saga() {
            saga_is_durable(world, &attempt, told)
        } else {
            let known = attempt.has_marker(world) || attempt.is_read_only(world);
            let heard = told || attempt.has_committed(world);
            !heard || known || world.coordinator.decided.contains(&attempt.id)
        };
        if !kept {
            let id = short(attempt.id);
            return Err(format!(
                "somebody has heard of {id} what a crash would undo"
            ));
        }
    }
    Ok(())
}

fn saga_is_durable(world: &World, attempt: &Attempt<'_>, told: bool) -> bool {
    let coordinator = &world.coordinator;
    let own = || world.deeds.iter().filter(|deed| deed.saga == attempt.id);
    let compensated =
        world.clients[attempt.request].told.get(&attempt.id) == Some(&Told::Compensated);
    let begun = coordinator.begun.contains(&attempt.id) || !(told || own().next().is_some());
    let turned =
        coordinator.turned.contains(&attempt.id) || !(compensated || own().any(|deed| deed.undid));
    begun && turned
}
