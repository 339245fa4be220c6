//! What is checked: small worlds, each explored to its end.

use unanimity_engine::{LockKey, ParticipantName, RequestId, Settings, StepDefinition};

use crate::site::Manner;

pub(crate) mod sagas;
pub(crate) mod transactions;

/// A small world.
#[derive(Clone, Debug)]
pub(crate) struct Configuration {
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) about: &'static str,
    /// Too large for every day.
    pub(crate) deep: bool,
    pub(crate) sites: Vec<Trait>,
    pub(crate) requests: Vec<Request>,
    pub(crate) faults: Faults,
    pub(crate) network: Network,
    pub(crate) settings: Settings,
    /// Milliseconds until an undecided transaction is aborted, and a saga turns back.
    pub(crate) timeout_ms: u64,
    /// Branches of another log and of a newer epoch stand prepared in the first database.
    pub(crate) strangers: bool,
    /// What must be seen at least once, so that nothing is proved of a world in which nothing happens.
    pub(crate) seen: Vec<Sight>,
    pub(crate) driver: Driver,
}

/// A participant's abilities.
#[derive(Clone, Debug)]
pub(crate) struct Trait {
    pub(crate) name: ParticipantName,
    pub(crate) one_phase: bool,
    pub(crate) settles: bool,
    pub(crate) capacity: u32,
    /// What it may make of a prepare, an operation or a step that it sees for the first time.
    pub(crate) manners: Vec<Manner>,
}

/// What a client asks for.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) ask: Ask,
    /// It has an idempotency key, so that it may be sent again.
    pub(crate) keyed: bool,
    /// How often it may be sent.
    pub(crate) sends: u8,
    /// Answer at the durable decision, or when a saga has begun.
    pub(crate) early: bool,
}

/// The kinds of request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ask {
    /// A whole transaction over these sites.
    Submit(Vec<usize>),
    /// An interactive one: the sites that it names, and those where it runs an operation.
    Interactive(Vec<usize>, Vec<usize>),
    /// A saga.
    Saga(Vec<StepDefinition>, Vec<LockKey>),
}

/// How often something may go wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Faults {
    /// The coordinator dies and starts again.
    pub(crate) crashes: u8,
    /// A session breaks.
    pub(crate) cuts: u8,
    /// A participant dies.
    pub(crate) site_crashes: u8,
    /// The next deadline comes.
    pub(crate) ticks: u8,
    /// A message arrives a second time.
    pub(crate) repeats: u8,
    /// A participant can't do it now.
    pub(crate) laters: u8,
    /// A client aborts.
    pub(crate) aborts: u8,
    /// A database loses a prepared branch.
    pub(crate) losses: u8,
    /// The log is checkpointed, and trimmed when that is durable.
    pub(crate) checkpoints: u8,
}

/// What the network may do beyond losing what was on a session that broke.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Network {
    /// What was on a broken session may be worked off later.
    pub(crate) strays: bool,
    /// A participant works off its messages in any order, rather than as they came.
    pub(crate) reorders: bool,
}

/// How the engine is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// As it must be.
    Honest,
    /// Says "durable" before the sync: a broken driver, to see that it is noticed.
    #[cfg_attr(not(test), allow(dead_code, reason = "only tests break it"))]
    SpeaksEarly,
}

/// Something that must be possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// A transaction has committed everywhere, and its client was told.
    Commit,
    /// A client was told of an abort.
    Abort,
    /// Every branch is prepared, and a restarted coordinator knows nothing of it.
    PreparedForgotten,
    /// A restarted coordinator finds a branch in doubt, and its decision in the log.
    InDoubtAfterRestart,
    /// A saga was done.
    SagaDone,
    /// A saga was undone, after a step had taken effect.
    SagaUndone,
    /// A checkpoint has let go of records while a decision was still to be delivered.
    TrimmedLive,
    /// A saga waited for a lock and got it.
    LockPassedOn,
    /// A client was told of a heuristic outcome.
    Heuristic,
}

impl Configuration {
    fn new(name: &'static str, about: &'static str) -> Self {
        Configuration {
            name,
            about,
            deep: false,
            sites: Vec::new(),
            requests: Vec::new(),
            faults: Faults::default(),
            network: Network::default(),
            settings: Settings {
                scan_interval_ms: 2_000,
                ..Settings::default()
            },
            timeout_ms: 1_000,
            strangers: false,
            seen: Vec::new(),
            driver: Driver::Honest,
        }
    }

    /// As many participants, each of which may answer so.
    fn sites(mut self, count: usize, manners: &[Manner]) -> Self {
        let names = ["alpha", "beta", "gamma"].into_iter().take(count);
        self.sites = names
            .map(|name| Trait {
                name: ParticipantName::parse(name).expect("a name"),
                one_phase: true,
                settles: true,
                capacity: 2,
                manners: manners.to_vec(),
            })
            .collect();
        self
    }

    fn one(mut self, site: usize, change: impl FnOnce(&mut Trait)) -> Self {
        change(&mut self.sites[site]);
        self
    }

    fn ask(mut self, ask: Ask, sends: u8, early: bool) -> Self {
        self.requests.push(Request {
            ask,
            keyed: true,
            sends,
            early,
        });
        self
    }

    fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    fn network(mut self, strays: bool, reorders: bool) -> Self {
        self.network = Network { strays, reorders };
        self
    }

    fn with_strangers(mut self) -> Self {
        self.strangers = true;
        self
    }

    /// The large one of the same kind, under a name of its own.
    fn deep(mut self, name: &'static str, about: &'static str, faults: Faults) -> Self {
        (self.name, self.about, self.faults, self.deep) = (name, about, faults, true);
        self
    }

    fn seen(mut self, seen: &[Sight]) -> Self {
        self.seen = seen.to_vec();
        self
    }

    pub(crate) fn request_id(&self, request: usize) -> Option<RequestId> {
        self.requests[request]
            .keyed
            .then(|| RequestId::parse(&format!("r{request}")))
            .flatten()
    }
}

/// Every configuration, the small ones first.
pub(crate) fn all() -> Vec<Configuration> {
    let parts = [
        transactions::small(),
        sagas::small(),
        transactions::large(),
        sagas::large(),
        transactions::deep(),
        sagas::deep(),
    ];
    parts.into_iter().flatten().collect()
}
