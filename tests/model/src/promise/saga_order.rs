//! A step takes effect after every step that it comes after; a compensation undoes what took effect, before what that came after is undone; and
//! nothing goes forward once something went back.

use unanimity_engine::{StepDefinition, TransactionId};

use crate::{
    configuration::{Ask, Configuration},
    promise::{Promise, attempts},
    site::Deed,
    world::{World, short},
};

pub(super) const PROMISE: Promise = Promise {
    name: "saga order",
    kept,
};

fn kept(configuration: &Configuration, world: &World) -> Result<(), String> {
    for attempt in attempts(configuration, world) {
        let Ask::Saga(steps, _) = attempt.ask else {
            continue;
        };
        let own = world.deeds.iter().filter(|deed| deed.saga == attempt.id);
        let own: Vec<&Deed> = own.collect();
        for at in 0..own.len() {
            if !in_order(steps, &own[..at], own[at]) {
                let id: TransactionId = attempt.id;
                return Err(format!("{} did this out of order: {own:?}", short(id)));
            }
        }
    }
    Ok(())
}

fn in_order(steps: &[StepDefinition], before: &[&Deed], deed: &Deed) -> bool {
    let stands = |step: u32| {
        let of_step = |undid: bool| before.iter().any(|d| d.step == step && d.undid == undid);
        of_step(false) && !of_step(true)
    };
    let this = &steps[deed.step as usize - 1];
    let numbered = || (1..).zip(steps);
    if deed.undid {
        let depends =
            |other: &StepDefinition| other.after.contains(&this.name) || other.kind > this.kind;
        return stands(deed.step) && !numbered().any(|(n, other)| depends(other) && stands(n));
    }
    let needs = |other: &StepDefinition| this.after.contains(&other.name) || other.kind < this.kind;
    let back = before.iter().any(|d| d.undid);
    !back && numbered().all(|(n, other)| !needs(other) || stands(n))
}
