//! What must be seen at least once: a promise that is kept in a world where nothing happens proves nothing.

use unanimity_engine::Seq;

use crate::{
    client::Told,
    configuration::{Configuration, Sight},
    promise::{Attempt, attempts},
    site::Local,
    world::World,
};

impl Sight {
    /// In words.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Sight::Commit => "a transaction commits and its client is told",
            Sight::Abort => "a client is told of an abort",
            Sight::PreparedForgotten => {
                "all branches are prepared and a restarted coordinator knows nothing of it"
            }
            Sight::InDoubtAfterRestart => "a decision in the log is delivered after a restart",
            Sight::SagaDone => "a saga is done",
            Sight::SagaUndone => "a saga is undone after a step took effect",
            Sight::TrimmedLive => "the log is trimmed while a decision is still to be delivered",
            Sight::LockPassedOn => "a lock passes from one saga to another",
            Sight::Heuristic => "a client is told of a heuristic outcome",
        }
    }

    /// Whether it is to be seen in this state.
    pub(crate) fn is_in(self, configuration: &Configuration, world: &World) -> bool {
        let restarted = world.left.crashes < configuration.faults.crashes;
        let coordinator = &world.coordinator;
        let told = |told: Told| {
            let mut clients = world.clients.iter();
            clients.any(|client| client.told.values().any(|t| *t == told))
        };
        let prepared = |attempt: &Attempt<'_>, all: bool| {
            let branches = attempt.branches(world);
            let is = |local: &Option<Local>| matches!(local, Some(Local::Prepared(_)));
            let count = branches.iter().filter(|local| is(local)).count();
            count > 0 && (!all || count == branches.len())
        };
        match self {
            Sight::Commit | Sight::SagaDone => told(Told::Committed),
            Sight::Abort => told(Told::Aborted),
            Sight::Heuristic => told(Told::Heuristic),
            Sight::SagaUndone => {
                told(Told::Compensated) && world.deeds.iter().any(|deed| deed.undid)
            }
            Sight::PreparedForgotten => attempts(configuration, world).any(|attempt| {
                let unknown = world.engine().transaction(&attempt.id).is_none();
                restarted && unknown && prepared(&attempt, true)
            }),
            Sight::InDoubtAfterRestart => attempts(configuration, world).any(|attempt| {
                restarted && prepared(&attempt, false) && coordinator.decided.contains(&attempt.id)
            }),
            Sight::TrimmedLive => coordinator.trimmed > Seq(1) && world.engine().undelivered() > 0,
            Sight::LockPassedOn => {
                let mut pairs = world.deeds.windows(2);
                pairs.any(|pair| pair[0].saga != pair[1].saga)
            }
        }
    }
}
