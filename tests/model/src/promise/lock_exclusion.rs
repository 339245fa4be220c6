//! While one saga has done something under a lock and has not ended, no other does anything under it.

use crate::{configuration::Configuration, promise::Promise, world::World};

pub(super) const PROMISE: Promise = Promise {
    name: "lock exclusion",
    kept,
};

fn kept(_: &Configuration, world: &World) -> Result<(), String> {
    let deeds = &world.deeds;
    for (at, deed) in deeds.iter().enumerate() {
        let shares = |other: &&crate::site::Deed| {
            other.saga != deed.saga && other.locks.iter().any(|key| deed.locks.contains(key))
        };
        let between = deeds[..at].iter().rev().take_while(|d| d.saga != deed.saga);
        let returns = deeds[..at].iter().any(|d| d.saga == deed.saga);
        if returns && between.clone().any(|other| shares(&other)) {
            return Err(format!("a lock was not held alone: {deeds:?}"));
        }
    }
    Ok(())
}
