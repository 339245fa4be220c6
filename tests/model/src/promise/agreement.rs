//! No transaction has one branch committed and another that is not, and can't be any more.

use crate::{
    configuration::Configuration,
    promise::{Promise, attempts},
    site::Local,
    world::{World, short},
};

pub(super) const PROMISE: Promise = Promise {
    name: "agreement",
    kept,
};

fn kept(configuration: &Configuration, world: &World) -> Result<(), String> {
    for attempt in attempts(configuration, world).filter(|a| a.has_committed(world)) {
        let branches = attempt.branches(world);
        let split = |local: &&Option<Local>| {
            !matches!(
                local,
                Some(Local::Committed | Local::Prepared(_) | Local::ReadOnly | Local::Lost)
            )
        };
        if let Some(other) = branches.iter().find(split) {
            let id = short(attempt.id);
            return Err(format!("{id} has one branch committed and one {other:?}"));
        }
    }
    Ok(())
}
