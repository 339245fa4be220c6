//! Abort is presumed only for what is ours: a prepared branch of another log, or of a newer epoch, stays as it is.

use crate::{
    configuration::Configuration,
    promise::Promise,
    site::Local,
    world::{World, strangers},
};

pub(super) const PROMISE: Promise = Promise {
    name: "strangers untouched",
    kept,
};

fn kept(configuration: &Configuration, world: &World) -> Result<(), String> {
    for key in strangers().iter().filter(|_| configuration.strangers) {
        let local = world.sites[0].branches.get(key);
        if !matches!(local, Some(Local::Prepared(_))) {
            return Err(format!(
                "{key} is not this coordinator's, and is {local:?} now"
            ));
        }
    }
    Ok(())
}
