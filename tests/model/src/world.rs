//! A state: the coordinator, its participants and clients, everything that is on its way, and how much may still go wrong.

use std::sync::Arc;

use unanimity_engine::{
    AbortCode, Answer, Begin, BranchKey, Downward, Effect, Epoch, Event, Input, LogId, LogPosition,
    Moment, Opened, Refusal, Seq, SessionId, Submit, SubmitSaga, Ticket, TransactionId,
};

use crate::{
    client::Client,
    configuration::{Ask, Configuration, Driver, Faults},
    coordinator::{Coordinator, LOG},
    site::{Deed, Manner, Site, reason},
};

/// A state of the model.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct World {
    pub(crate) coordinator: Arc<Coordinator>,
    pub(crate) sites: Vec<Site>,
    pub(crate) clients: Vec<Client>,
    /// What sagas have done, in order.
    pub(crate) deeds: Vec<Deed>,
    /// What may still go wrong.
    pub(crate) left: Faults,
    /// Somebody was called wrong who is not, or said what can't be.
    pub(crate) wrong: Option<String>,
}

/// Where a session's number comes from.
const SESSIONS: u64 = 1_000;

impl World {
    /// Everyone is connected and known, and nothing is under way.
    pub(crate) fn new(configuration: &Configuration) -> Self {
        let mut world = World {
            coordinator: Arc::new(Coordinator::new(configuration.settings)),
            sites: configuration.sites.iter().map(|_| Site::new()).collect(),
            clients: configuration
                .requests
                .iter()
                .map(|_| Client::default())
                .collect(),
            deeds: Vec::new(),
            left: configuration.faults,
            wrong: None,
        };
        if configuration.strangers {
            strangers()
                .into_iter()
                .for_each(|key| world.sites[0].plant(key));
        }
        world.drain(configuration);
        world.sync_all(configuration);
        for site in 0..world.sites.len() {
            world.open(configuration, site);
        }
        world.sync_all(configuration);
        world.sites.iter_mut().for_each(|site| site.inbox.clear());
        world
    }

    pub(crate) fn engine(&self) -> &unanimity_engine::Engine {
        &self.coordinator.engine
    }

    /// One input, and everything that comes of it.
    pub(crate) fn give(&mut self, configuration: &Configuration, input: Input) {
        let coordinator = Arc::make_mut(&mut self.coordinator);
        coordinator.engine.handle(coordinator.now, input);
        self.drain(configuration);
    }

    fn drain(&mut self, configuration: &Configuration) {
        loop {
            let coordinator = Arc::make_mut(&mut self.coordinator);
            let Some(effect) = coordinator.engine.poll_effect() else {
                return;
            };
            match effect {
                Effect::Append { seq, record, .. } => {
                    coordinator.append(seq, &record);
                    if configuration.driver == Driver::SpeaksEarly {
                        let now = coordinator.now;
                        coordinator.engine.handle(now, Input::Durable(seq));
                    }
                }
                Effect::Trim(keep) => coordinator.trimmed = coordinator.trimmed.max(keep),
                Effect::Send { session, message } => self.send(session, message),
                Effect::Answer { ticket, answer } => self.answer(ticket, answer),
                Effect::Close { refusal, .. } => {
                    self.is_wrong(format!("a session was closed: {refusal}"))
                }
                Effect::Halt { participant, .. } => {
                    self.is_wrong(format!("{participant} has seen a record that is not there"));
                }
                Effect::Report(Event::PeerMistake { mistake, .. }) => self.is_wrong(mistake),
                Effect::Report(Event::Heuristic { key, message, .. }) => {
                    if self.count_lost(key.transaction) == 0 {
                        self.is_wrong(format!("{}: {message}", short(key.transaction)));
                    }
                }
                Effect::Report(_) => {}
            }
        }
    }

    fn count_lost(&self, id: TransactionId) -> usize {
        let branches = self.sites.iter().flat_map(|site| &site.branches);
        let lost = |(key, local): &(&BranchKey, &crate::site::Local)| {
            key.transaction == id && **local == crate::site::Local::Lost
        };
        branches.filter(lost).count()
    }

    fn is_wrong(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    /// What goes to a session that is over is lost. How far the log goes is told with all of it, and taken note of where it matters most.
    fn send(&mut self, session: SessionId, message: Downward) {
        let engine = &self.coordinator.engine;
        let (incarnation, seq) = (engine.incarnation(), engine.durable());
        let Some(site) = self.sites.iter_mut().find(|s| s.session == Some(session)) else {
            return;
        };
        if matches!(message, Downward::Welcome(_) | Downward::Commit { .. }) {
            site.seen = Some(LogPosition {
                log: incarnation.log,
                epoch: incarnation.epoch,
                seq,
                instance: incarnation.instance,
            });
        }
        if !matches!(message, Downward::Welcome(_)) {
            site.inbox.push((session, message));
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<Answer, Refusal>) {
        let client = (ticket.0 / CALLS) as usize;
        if let Some(what) = self.clients[client].hear(ticket, answer) {
            self.is_wrong(format!("client {client} {what}"));
        }
    }

    pub(crate) fn sync(&mut self, configuration: &Configuration, upto: usize) {
        Arc::make_mut(&mut self.coordinator).synced_upto(upto);
        self.give(configuration, Input::Durable(Seq(upto as u64)));
    }

    pub(crate) fn sync_all(&mut self, configuration: &Configuration) {
        while self.coordinator.synced < self.coordinator.appended() {
            let upto = self.coordinator.appended();
            self.sync(configuration, upto);
        }
    }

    /// Time jumps to the next deadline.
    pub(crate) fn tick(&mut self, configuration: &Configuration) {
        let coordinator = Arc::make_mut(&mut self.coordinator);
        let next = coordinator.engine.next_deadline();
        coordinator.now = coordinator.now.max(next.unwrap_or(Moment(0)));
        self.give(configuration, Input::Tick);
    }

    pub(crate) fn open(&mut self, configuration: &Configuration, index: usize) {
        let traits = &configuration.sites[index];
        let site = &mut self.sites[index];
        site.opened += 1;
        let session = SessionId((index as u64 + 1) * SESSIONS + site.opened);
        site.session = Some(session);
        let opened = Opened {
            session,
            participant: traits.name.clone(),
            agent: "model".into(),
            resource: traits.name.to_string(),
            capacity: traits.capacity,
            one_phase: traits.one_phase,
            settles_steps: traits.settles,
            in_doubt: site.in_doubt(),
            seen: site.seen.into_iter().collect(),
        };
        self.give(configuration, Input::SessionOpened(opened));
    }

    /// A session breaks; `crash`: because the participant died.
    pub(crate) fn cut(&mut self, configuration: &Configuration, index: usize, crash: bool) {
        let site = &mut self.sites[index];
        let session = site.session;
        if crash {
            site.crash();
        } else {
            site.cut(configuration.network.strays);
        }
        if let Some(session) = session {
            self.give(configuration, Input::SessionClosed(session));
        }
    }

    /// The coordinator dies and starts again; this many un-synced records had reached the disk.
    pub(crate) fn crash(&mut self, configuration: &Configuration, kept: usize) {
        for site in &mut self.sites {
            site.cut(configuration.network.strays);
        }
        self.clients.iter_mut().for_each(Client::cut);
        if !Arc::make_mut(&mut self.coordinator).restart(kept, configuration.settings) {
            self.is_wrong("the log was trimmed too far, and will not open".into());
        }
        self.drain(configuration);
    }

    pub(crate) fn work(&mut self, index: usize, message: usize, manner: Manner, again: bool) {
        let site = &mut self.sites[index];
        let (session, message) = if again {
            site.inbox[message].clone()
        } else {
            site.inbox.remove(message)
        };
        site.work(session, message, manner, &mut self.deeds);
    }

    /// The coordinator hears the next thing that a participant has said.
    pub(crate) fn hear(&mut self, configuration: &Configuration, index: usize) {
        let site = &mut self.sites[index];
        let (Some(session), Some(message)) = (site.session, site.outbox.pop_front()) else {
            return;
        };
        self.give(configuration, Input::Message { session, message });
    }

    /// A call of this client gets its number.
    fn call(&mut self, request: usize) -> Ticket {
        let client = &mut self.clients[request];
        client.calls += 1;
        Ticket(request as u64 * CALLS + client.calls)
    }

    /// A client sends its request, for the first time or again.
    pub(crate) fn ask(&mut self, configuration: &Configuration, index: usize) {
        let ticket = self.call(index);
        let client = &mut self.clients[index];
        client.sent += 1;
        let now = u128::from(self.coordinator.now.0);
        let unique = now << 80 | (index as u128 + 1) << 8 | u128::from(client.sent);
        let incarnation = self.coordinator.engine.incarnation();
        client.ids.insert(TransactionId {
            log: incarnation.log,
            epoch: incarnation.epoch,
            unique,
        });
        self.give(configuration, input(configuration, index, ticket, unique));
    }

    pub(crate) fn execute(&mut self, configuration: &Configuration, index: usize) {
        let Ask::Interactive(_, used) = &configuration.requests[index].ask else {
            return;
        };
        let client = &self.clients[index];
        let Some(transaction) = client.open else {
            return;
        };
        let Some(site) = used.get(client.done(transaction)) else {
            return;
        };
        let participant = configuration.sites[*site].name.clone();
        let ticket = self.call(index);
        self.clients[index].busy = Some(ticket);
        let operation = [].into();
        self.give(
            configuration,
            Input::Execute {
                ticket,
                transaction,
                participant,
                operation,
            },
        );
    }

    pub(crate) fn commit(&mut self, configuration: &Configuration, index: usize) {
        let Some(transaction) = self.clients[index].open else {
            return;
        };
        self.clients[index].closed = true;
        let ticket = self.call(index);
        let answer_decided = configuration.requests[index].early;
        self.give(
            configuration,
            Input::Commit {
                ticket,
                transaction,
                answer_decided,
            },
        );
    }

    pub(crate) fn abort(&mut self, configuration: &Configuration, index: usize) {
        let Some(transaction) = self.clients[index].ids.last().copied() else {
            return;
        };
        let ticket = self.call(index);
        self.give(
            configuration,
            Input::Abort {
                ticket,
                transaction,
                reason: reason(AbortCode::Client),
            },
        );
    }

    pub(crate) fn look_up(
        &mut self,
        configuration: &Configuration,
        index: usize,
        transaction: TransactionId,
    ) {
        let ticket = self.call(index);
        self.give(
            configuration,
            Input::Lookup {
                ticket,
                transaction,
            },
        );
    }
}

/// Calls of one client.
const CALLS: u64 = 1_000;

fn input(configuration: &Configuration, index: usize, ticket: Ticket, unique: u128) -> Input {
    let request = &configuration.requests[index];
    let (request_id, timeout_ms) = (configuration.request_id(index), configuration.timeout_ms);
    let name = |site: &usize| configuration.sites[*site].name.clone();
    match &request.ask {
        Ask::Submit(sites) => Input::Submit(Submit {
            ticket,
            unique,
            request_id,
            fingerprint: index as u64 + 1,
            branches: sites.iter().map(|s| (name(s), b"w"[..].into())).collect(),
            age_ms: 0,
            timeout_ms,
            answer_decided: request.early,
            traceparent: String::new(),
        }),
        Ask::Interactive(sites, _) => Input::Begin(Begin {
            ticket,
            unique,
            request_id,
            participants: sites.iter().map(name).collect(),
            age_ms: 0,
            timeout_ms,
            traceparent: String::new(),
        }),
        Ask::Saga(steps, locks) => Input::SubmitSaga(SubmitSaga {
            ticket,
            unique,
            request_id,
            fingerprint: index as u64 + 1,
            steps: steps.clone(),
            locks: locks.clone(),
            lock_timeout_ms: 60_000,
            age_ms: 0,
            timeout_ms,
            answer_accepted: request.early,
            traceparent: String::new(),
        }),
    }
}

/// Branches that this coordinator must never touch: one of another log, one of an epoch that it has not reached.
pub(crate) fn strangers() -> [BranchKey; 2] {
    let key = |log, epoch| BranchKey {
        transaction: TransactionId {
            log,
            epoch: Epoch(epoch),
            unique: 0xff << 80,
        },
        branch: 1,
    };
    [key(LogId(0xdead), 1), key(LOG, 99)]
}

/// Which request, and which of its sendings: `T1`, `T1b`.
pub(crate) fn short(id: TransactionId) -> String {
    let (request, sending) = (id.unique >> 8 & 0xff, id.unique as u8);
    let again = ["", "", "b", "c", "d"].get(usize::from(sending)).copied();
    format!("T{request}{}", again.unwrap_or("x"))
}
