//! A world around the engine: a disk that loses what was not synced, a network, agents, databases and clients, moved one event at a time by one
//! queue. The plan says what happens to it; the same plan and seed give the same world, byte for byte.

mod agent;
mod client;
mod coordinator;
mod disk;
mod event;
mod fault;
mod heal;
mod network;
mod operator;

use std::collections::BTreeMap;

use unanimity_engine::{Engine, LogId, LogPosition, ParticipantName, Ticket, TransactionId};

use crate::{
    database::Database,
    fact::{Changed, Fact},
    figures::Figures,
    invariants::{Checker, Violation},
    plan::{Act, Plan, SiteShape},
    random::{Random, Stream},
    trace::Trace,
};

use agent::Agent;
use client::{Client, Purpose};
use disk::Disk;
use event::{Event, Events};
use fault::Armed;
use network::Link;

/// The coordinator's log.
pub(crate) const LOG: LogId = LogId(0x00fe_ed00);

/// What the wall clock says when a life begins.
const UNIX_MS: u64 = 1_790_000_000_000;

/// A participant: its database, and the agents around it.
pub(crate) struct Site {
    name: ParticipantName,
    shape: SiteShape,
    database: Database,
    agents: Vec<Agent>,
}

/// Everything.
pub(crate) struct World {
    now: u64,
    plan: Plan,
    events: Events,
    engine: Option<Engine>,
    /// When this incarnation began: the engine's own clock starts at zero each time.
    born: u64,
    /// Counts the coordinator's incarnations, those that died before they had an epoch too.
    life: u32,
    /// It is to die so often while it recovers.
    dies_again: u8,
    /// Of its last death: how long it is down, when it is noticed, and how much of a batch is kept.
    death: coordinator::Death,
    /// How far anyone was told that the log goes.
    seen: Option<LogPosition>,
    /// Its epoch is durable, so it takes calls and sessions.
    serving: bool,
    draining: bool,
    disk: Disk,
    links: Vec<Link>,
    sites: Vec<Site>,
    clients: Vec<Client>,
    /// Calls that have no answer yet.
    calls: BTreeMap<Ticket, Purpose>,
    tickets: u64,
    uniques: u64,
    /// Transactions that were heard of.
    known: Vec<TransactionId>,
    armed: Armed,
    healed_at: Option<u64>,
    /// The last time at which something was on its way.
    busy_at: u64,
    network_random: Random,
    disk_random: Random,
    agent_random: Random,
    client_random: Random,
    pub(crate) trace: Trace,
    pub(crate) figures: Figures,
    checker: Checker,
    violation: Option<Violation>,
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan, trace: bool, checker: Checker) -> Self {
        let sites = plan.shape.sites.iter().map(Site::new).collect();
        let mut world = World {
            now: 0,
            events: Events::default(),
            engine: None,
            seen: None,
            born: 0,
            life: 0,
            dies_again: 0,
            death: coordinator::Death::default(),
            serving: false,
            draining: false,
            disk: Disk::new(plan.shape.segment),
            links: Vec::new(),
            sites,
            clients: Vec::new(),
            calls: BTreeMap::new(),
            tickets: 0,
            uniques: 0,
            known: Vec::new(),
            armed: Armed::default(),
            healed_at: None,
            busy_at: 0,
            network_random: Random::new(seed, Stream::Network),
            disk_random: Random::new(seed, Stream::Disk),
            agent_random: Random::new(seed, Stream::Agents),
            client_random: Random::new(seed, Stream::Clients),
            trace: Trace::new(trace),
            figures: Figures::default(),
            checker,
            violation: None,
            plan,
        };
        world.schedule_plan();
        world
    }

    fn schedule_plan(&mut self) {
        for at in 0..self.plan.entries.len() {
            let entry = &self.plan.entries[at];
            if let Act::Ask(request) = &entry.act {
                self.clients
                    .push(Client::new(entry.number, request.clone()));
                self.events
                    .at(entry.at, Event::Asks(self.clients.len() - 1));
            } else {
                self.events.at(entry.at, Event::Befalls(at));
            }
        }
        self.events.at(crate::plan::HEALS_MS, Event::Heals);
        self.events.at(0, Event::Starts);
        for site in 0..self.sites.len() {
            for agent in 0..self.sites[site].agents.len() {
                self.events.at(1, Event::AgentStarts { site, agent });
            }
        }
    }

    /// Lives until all has come to rest, or a promise is broken.
    pub(crate) fn live(mut self) -> Lived {
        while self.violation.is_none() && !self.is_over() {
            if !self.step() {
                break;
            }
        }
        if self.violation.is_none() {
            let end = self.end();
            self.violation = self.checker.at_end(&end);
        }
        self.figures.lived_ms = self.now;
        self.figures.log_hash = self.disk.hash();
        Lived {
            violation: self.violation,
            figures: self.figures,
            trace: self.trace,
        }
    }

    /// One event, or a tick of the engine's clock. False where nothing is left to happen.
    fn step(&mut self) -> bool {
        let tick = self.next_tick();
        match (self.events.next(), tick) {
            (None, None) => return false,
            (Some(at), Some(tick)) if tick < at => self.tick(tick),
            (None, Some(tick)) => self.tick(tick),
            (Some(at), _) => {
                self.now = self.now.max(at);
                self.figures.events += 1;
                if let Some(event) = self.events.pop() {
                    self.happens(event);
                }
            }
        }
        true
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Asks(client) => self.client_acts(client),
            Event::Befalls(entry) => self.befall(entry),
            Event::Heals => self.heal(),
            Event::Operates => self.operate(),
            Event::Starts => self.start(),
            Event::Dies { life } => self.dies_if(life),
            Event::Stops { life } => self.stop_if_drained(life),
            Event::Synced { life } => self.synced(life),
            Event::WritesLazily { life } => self.write_lazily(life),
            Event::Calls { life, ticket, call } => self.call_arrives(life, ticket, *call),
            Event::Replies { ticket, answer } => self.reply_arrives(ticket, *answer),
            Event::CutOff { ticket } => self.call_is_cut_off(ticket),
            Event::Wakes { client, turn } => self.client_wakes(client, turn),
            Event::Up { link, message } => self.arrives_up(link, message),
            Event::Down { link, message } => self.arrives_down(link, message),
            Event::Works(work) => self.works(work),
            Event::Hello { link, in_doubt } => self.hello(link, in_doubt),
            Event::CoordinatorNotices(link) => self.coordinator_notices(link),
            Event::AgentNotices(link) => self.agent_notices(link),
            Event::Dials { site, agent, life } => self.dial(site, agent, life),
            Event::AgentStarts { site, agent } => self.agent_starts(site, agent),
        }
    }

    /// Notes a fact, and asks every invariant whether it stands.
    fn fact(&mut self, fact: &Fact<'_>) {
        self.trace.fact(self.now, fact);
        self.figures.fact(self.now, fact);
        if self.violation.is_none() {
            self.violation = self.checker.observe(self.now, fact);
        }
    }

    /// Tells what a database changed.
    fn note_changes(&mut self, site: usize) {
        for change in std::mem::take(&mut self.sites[site].database.changes) {
            self.fact(&Fact::Changed(Changed {
                site,
                key: change.key,
                what: change.what,
                by: change.by,
                by_hand: change.by_hand,
                locks: &change.locks,
                token: change.token,
            }));
        }
    }

    fn unix_ms(&self) -> u64 {
        UNIX_MS + self.now
    }

    /// A fresh UUID v7.
    fn unique(&mut self) -> u128 {
        self.uniques += 1;
        let random = u128::from(self.client_random.next() >> 2);
        let counter = u128::from(self.uniques & 0xfff) << 64;
        u128::from(self.unix_ms()) << 80 | 0x7 << 76 | counter | 0x2 << 62 | random
    }
}

impl Site {
    fn new(shape: &SiteShape) -> Self {
        let accounts = crate::plan::ACCOUNTS;
        Site {
            name: ParticipantName::parse(shape.name).expect("a name"),
            database: Database::new(accounts, 100, shape.proves),
            agents: (0..shape.agents).map(|_| Agent::default()).collect(),
            shape: shape.clone(),
        }
    }
}

/// What came of a life.
pub(crate) struct Lived {
    pub(crate) violation: Option<Violation>,
    pub(crate) figures: Figures,
    pub(crate) trace: Trace,
}
