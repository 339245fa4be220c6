//! What must hold in every state. Each promise is one file, by its name.

mod agreement;
mod durable_before_told;
mod exactly_once;
mod lock_exclusion;
mod nobody_is_wrong;
mod saga_order;
mod settles;
mod stable;
mod strangers_untouched;
mod within_capacity;

use unanimity_engine::{BranchKey, TransactionId};

use crate::{
    configuration::{Ask, Configuration},
    site::{Local, Marker},
    world::World,
};

/// A promise: `Err` says how it is broken.
pub(crate) struct Promise {
    pub(crate) name: &'static str,
    pub(crate) kept: fn(&Configuration, &World) -> Result<(), String>,
}

/// All of them.
pub(crate) const ALL: [Promise; 10] = [
    agreement::PROMISE,
    durable_before_told::PROMISE,
    stable::PROMISE,
    exactly_once::PROMISE,
    saga_order::PROMISE,
    lock_exclusion::PROMISE,
    within_capacity::PROMISE,
    strangers_untouched::PROMISE,
    nobody_is_wrong::PROMISE,
    settles::PROMISE,
];

/// A transaction that a request may have become.
pub(crate) struct Attempt<'a> {
    pub(crate) request: usize,
    pub(crate) ask: &'a Ask,
    pub(crate) id: TransactionId,
}

/// Every one of them.
pub(crate) fn attempts<'a>(
    configuration: &'a Configuration,
    world: &'a World,
) -> impl Iterator<Item = Attempt<'a>> {
    let clients = world.clients.iter().enumerate();
    clients.flat_map(|(request, client)| {
        let ask = &configuration.requests[request].ask;
        client.ids.iter().map(move |id| Attempt {
            request,
            ask,
            id: *id,
        })
    })
}

impl Attempt<'_> {
    pub(crate) fn is_saga(&self) -> bool {
        matches!(self.ask, Ask::Saga(..))
    }

    /// What the databases of those that take part hold of it.
    pub(crate) fn branches(&self, world: &World) -> Vec<Option<Local>> {
        let local = |(number, site): (u32, usize)| {
            let branch = BranchKey {
                transaction: self.id,
                branch: number,
            };
            world.sites[site].branches.get(&branch).copied()
        };
        self.participants(world).into_iter().map(local).collect()
    }

    /// Numbers and sites of the branches that have work.
    fn participants(&self, world: &World) -> Vec<(u32, usize)> {
        let numbered = |sites: &[usize]| (1..).zip(sites.iter().copied()).collect::<Vec<_>>();
        match self.ask {
            Ask::Submit(sites) => numbered(sites),
            Ask::Interactive(named, used) => {
                let done = &used[..world.clients[self.request].done(self.id)];
                let worked = |(_, site): &(u32, usize)| done.contains(site);
                numbered(named).into_iter().filter(worked).collect()
            }
            Ask::Saga(..) => Vec::new(),
        }
    }

    /// Whether a database has committed some of it.
    pub(crate) fn has_committed(&self, world: &World) -> bool {
        self.branches(world).contains(&Some(Local::Committed))
    }

    /// Whether it changed nothing, by the votes of all.
    pub(crate) fn is_read_only(&self, world: &World) -> bool {
        self.branches(world)
            .iter()
            .all(|local| *local == Some(Local::ReadOnly))
    }

    /// Whether its only writer has committed in one phase.
    pub(crate) fn has_marker(&self, world: &World) -> bool {
        let key = BranchKey {
            transaction: self.id,
            branch: 1,
        };
        let mut sites = world.sites.iter();
        sites.any(|site| site.markers.get(&key) == Some(&Marker::Done))
    }
}
