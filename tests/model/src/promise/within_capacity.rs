//! On no session are more branches open or prepared than the participant has said it can hold.

use unanimity_engine::SessionId;

use crate::{configuration::Configuration, promise::Promise, site::Local, world::World};

pub(super) const PROMISE: Promise = Promise {
    name: "within capacity",
    kept,
};

fn kept(configuration: &Configuration, world: &World) -> Result<(), String> {
    for (site, traits) in world.sites.iter().zip(&configuration.sites) {
        let Some(session) = site.session else {
            continue;
        };
        let here = |local: &&Local| matches!(local, Local::Prepared(on) if *on == session);
        let held = site.branches.values().filter(here).count();
        if held > traits.capacity as usize {
            let SessionId(session) = session;
            return Err(format!("{held} branches are prepared on session {session}"));
        }
    }
    Ok(())
}
