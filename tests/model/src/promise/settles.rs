//! Once faults end everything comes to rest: nothing stays in doubt, and whoever asks is told what the databases hold.
//!
//! From every reachable state, deliveries alone lead to a *quiet* one: all sessions open, nothing on its way, the log synced. So it is enough to
//! look from the quiet ones on, where nothing can happen but that time passes: there the one fair continuation is run to its end.

use unanimity_engine::Moment;

use crate::{
    client::Told,
    configuration::{Ask, Configuration},
    promise::{Attempt, Promise, attempts},
    site::{Local, Manner},
    world::{World, short, strangers},
};

pub(super) const PROMISE: Promise = Promise {
    name: "everything settles",
    kept,
};

/// Deadlines that may pass until then.
const TICKS: usize = 64;

/// Milliseconds that may pass after the last deadline of a client.
const LIMIT_MS: u64 = 40_000;

fn kept(configuration: &Configuration, world: &World) -> Result<(), String> {
    if world.wrong.is_some() || !is_quiet(world) {
        return Ok(());
    }
    let mut world = world.clone();
    come_to_rest(configuration, &mut world)?;
    tell_the_truth(configuration, &mut world)
}

fn is_quiet(world: &World) -> bool {
    world.coordinator.synced == world.coordinator.appended()
        && world
            .sites
            .iter()
            .all(|s| s.session.is_some() && s.is_quiet())
}

fn come_to_rest(configuration: &Configuration, world: &mut World) -> Result<(), String> {
    let limit = world
        .coordinator
        .now
        .after_ms(configuration.timeout_ms + LIMIT_MS);
    for _ in 0..TICKS {
        deliver(configuration, world);
        if is_at_rest(world) {
            return world.wrong.clone().map_or(Ok(()), Err);
        }
        if world.coordinator.now > limit {
            break;
        }
        world.tick(configuration);
    }
    let Moment(now) = world.coordinator.now;
    let left: Vec<_> = world
        .engine()
        .transactions(None)
        .map(|t| (short(t.id), t.state))
        .collect();
    Err(format!("at {now} ms it is not settled: {left:?}"))
}

/// Everything that is on its way arrives, and everybody does what is asked.
fn deliver(configuration: &Configuration, world: &mut World) {
    loop {
        world.sync_all(configuration);
        let Some(index) = world.sites.iter().position(|s| !s.is_quiet()) else {
            return;
        };
        while !world.sites[index].outbox.is_empty() {
            world.hear(configuration, index);
        }
        let site = &world.sites[index];
        let fresh = site
            .inbox
            .iter()
            .position(|(s, _)| Some(*s) == site.session);
        if let Some(at) = fresh {
            world.work(index, at, Manner::Well, false);
        }
    }
}

fn is_at_rest(world: &World) -> bool {
    let strangers = strangers();
    let open = |site: &crate::site::Site| {
        let mut branches = site.branches.iter();
        branches.any(|(key, local)| {
            matches!(local, Local::Prepared(_) | Local::Open) && !strangers.contains(key)
        })
    };
    world.engine().in_flight() == 0 && !world.sites.iter().any(open)
}

/// Every client asks, and its answer is what the databases say.
fn tell_the_truth(configuration: &Configuration, world: &mut World) -> Result<(), String> {
    let asked: Vec<_> = attempts(configuration, world)
        .map(|a| (a.request, a.id))
        .collect();
    for (request, id) in asked {
        let told = world.clients[request].told.get(&id).copied();
        world.clients[request].told.remove(&id);
        world.look_up(configuration, request, id);
        deliver(configuration, world);
        let answer = world.clients[request].told.get(&id).copied();
        let ask = &configuration.requests[request].ask;
        let attempt = Attempt { request, ask, id };
        if !is_true(&attempt, world, answer) {
            return Err(format!(
                "when all is over a look-up of {} says {answer:?} after {told:?}, and its databases hold {:?}, its deeds {:?}",
                short(id),
                attempt.branches(world),
                world.deeds
            ));
        }
    }
    world.wrong.clone().map_or(Ok(()), Err)
}

fn is_true(attempt: &Attempt<'_>, world: &World, answer: Option<Told>) -> bool {
    let own = || world.deeds.iter().filter(|deed| deed.saga == attempt.id);
    let done = own().filter(|deed| !deed.undid).count();
    let undone = own().filter(|deed| deed.undid).count();
    match (attempt.ask, answer) {
        (_, None | Some(Told::Accepted)) => false,
        (Ask::Saga(steps, _), Some(Told::Committed)) => done == steps.len() && undone == 0,
        (Ask::Saga(..), Some(Told::Compensated)) => done == undone,
        (Ask::Saga(..), Some(Told::Aborted)) => done == 0,
        (Ask::Saga(..), Some(Told::Heuristic)) | (_, Some(Told::Compensated)) => false,
        (_, Some(Told::Committed)) => {
            let over =
                |local: &Option<Local>| matches!(local, Some(Local::Committed | Local::ReadOnly));
            attempt.branches(world).iter().all(over)
        }
        (_, Some(Told::Aborted)) => !attempt.has_committed(world),
        (_, Some(Told::Heuristic)) => attempt.branches(world).contains(&Some(Local::Lost)),
    }
}
