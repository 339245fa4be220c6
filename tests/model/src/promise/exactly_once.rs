//! Whatever is sent again: a request commits at most once, and each step and each compensation takes effect at most once.

use crate::{
    configuration::Configuration,
    promise::{Promise, attempts},
    world::World,
};

pub(super) const PROMISE: Promise = Promise {
    name: "exactly once",
    kept,
};

fn kept(configuration: &Configuration, world: &World) -> Result<(), String> {
    for request in 0..configuration.requests.len() {
        let own = attempts(configuration, world).filter(|a| a.request == request);
        let effective = own.filter(|attempt| {
            let deeds = world.deeds.iter().any(|deed| deed.saga == attempt.id);
            deeds || attempt.has_committed(world)
        });
        if effective.count() > 1 {
            return Err(format!("request {} took effect twice", request + 1));
        }
    }
    for (at, deed) in world.deeds.iter().enumerate() {
        if world.deeds[..at].contains(deed) {
            return Err(format!("{deed:?} happened twice"));
        }
    }
    Ok(())
}
