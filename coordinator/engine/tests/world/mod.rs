//! A small seeded world around the engine: model databases, a log that loses what was not synced, sessions that break. One random
//! number decides what happens next; the same seed gives the same world.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use unanimity_engine::{
    AbortCode, AbortReason, Answer, BranchKey, Completion, Downward, Effect, Engine, Event, Found,
    Input, LogId, Moment, Opened, ParticipantName, Record, Refusal, Replay, RequestId, Seq,
    SessionId, Settings, Start, Submit, Ticket, TransactionId, TransactionState, Upward, Vote,
};

pub(crate) const LOG: LogId = LogId(0xfeed);

/// xorshift64*: enough to pick among a few choices.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Local {
    Prepared,
    Committed,
    Aborted,
    ReadOnly,
}

/// A model database and its agent. What it was told is worked off in order, even when the session that brought it is gone.
pub(crate) struct Site {
    pub(crate) name: ParticipantName,
    pub(crate) one_phase: bool,
    pub(crate) session: Option<SessionId>,
    pub(crate) branches: BTreeMap<BranchKey, Local>,
    /// Marker rows: committed in one phase, or a tombstone.
    pub(crate) markers: BTreeMap<BranchKey, bool>,
    pub(crate) requests: BTreeMap<String, TransactionId>,
    pub(crate) inbox: VecDeque<(SessionId, Downward)>,
    pub(crate) outbox: VecDeque<(SessionId, Upward)>,
}

impl Site {
    /// Works off one message.
    pub(crate) fn step(&mut self, random: &mut Random) {
        let Some((session, message)) = self.inbox.pop_front() else {
            return;
        };
        let reply = match message {
            Downward::Prepare {
                key,
                one_phase: true,
                request_id,
                ..
            } => Upward::Vote {
                key,
                vote: self.commit_in_one_phase(key, &request_id, random),
            },
            Downward::Prepare { key, .. } => Upward::Vote {
                key,
                vote: self.prepare(key, random),
            },
            Downward::Commit { key, .. } => Upward::Completion {
                key,
                completion: self.commit(key, random),
            },
            Downward::Abort { key, .. } => Upward::Completion {
                key,
                completion: self.abort(key),
            },
            Downward::Prove { key } => Upward::Proof {
                key,
                completion: self.prove(key),
            },
            Downward::ListInDoubt => Upward::InDoubt(self.in_doubt()),
            Downward::Welcome(_)
            | Downward::Execute { .. }
            | Downward::RunStep { .. }
            | Downward::SettleStep { .. }
            | Downward::Enlisted { .. } => return,
        };
        self.outbox.push_back((session, reply));
    }

    fn prepare(&mut self, key: BranchKey, random: &mut Random) -> Vote {
        match self.branches.get(&key) {
            Some(Local::Prepared) => return Vote::Yes { proof: "p".into() },
            Some(_) => return no(),
            None => {}
        }
        let (local, vote) = match random.below(10) {
            0 => (Local::Aborted, no()),
            1 => (Local::ReadOnly, Vote::ReadOnly),
            _ => (Local::Prepared, Vote::Yes { proof: "p".into() }),
        };
        self.branches.insert(key, local);
        vote
    }

    fn commit_in_one_phase(&mut self, key: BranchKey, request: &str, random: &mut Random) -> Vote {
        match self.markers.get(&key) {
            Some(true) => return Vote::Committed,
            Some(false) => return no(),
            None => {}
        }
        if let Some(first) = self.requests.get(request) {
            return Vote::Duplicate(*first);
        }
        if random.below(5) == 0 {
            return no();
        }
        self.markers.insert(key, true);
        self.branches.insert(key, Local::Committed);
        if !request.is_empty() {
            self.requests.insert(request.into(), key.transaction);
        }
        Vote::Committed
    }

    fn commit(&mut self, key: BranchKey, random: &mut Random) -> Completion {
        match self.branches.get(&key) {
            Some(Local::Prepared) if random.below(5) == 0 => Completion::Retry("busy".into()),
            Some(Local::Prepared | Local::Committed) => {
                self.branches.insert(key, Local::Committed);
                Completion::Committed
            }
            Some(Local::Aborted | Local::ReadOnly) | None => Completion::Aborted,
        }
    }

    fn abort(&mut self, key: BranchKey) -> Completion {
        match self.branches.get(&key) {
            Some(Local::Committed) => Completion::Committed,
            _ => {
                self.branches.insert(key, Local::Aborted);
                Completion::Aborted
            }
        }
    }

    fn prove(&mut self, key: BranchKey) -> Completion {
        match *self.markers.entry(key).or_insert(false) {
            true => Completion::Committed,
            false => Completion::Aborted,
        }
    }

    pub(crate) fn in_doubt(&self) -> Vec<Found> {
        let prepared = self
            .branches
            .iter()
            .filter(|(_, local)| **local == Local::Prepared);
        prepared
            .map(|(key, _)| Found {
                identifier: key.to_string(),
                key: Some(*key),
            })
            .collect()
    }

    /// The process dies: open work and messages are lost, prepared branches stay.
    pub(crate) fn crash(&mut self) {
        self.inbox.clear();
        self.outbox.clear();
        self.branches.retain(|_, local| {
            matches!(local, Local::Prepared | Local::Committed | Local::ReadOnly)
        });
        self.session = None;
    }
}

fn no() -> Vote {
    Vote::No(AbortReason {
        code: AbortCode::Refused,
        participant: String::new(),
        message: "no".into(),
    })
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) engine: Engine,
    pub(crate) now: Moment,
    pub(crate) sites: Vec<Site>,
    /// The log as bytes: what is synced survives.
    pub(crate) disk: Vec<(Seq, Vec<u8>)>,
    pub(crate) unsynced: Vec<(Seq, Vec<u8>)>,
    pub(crate) forced: usize,
    pub(crate) answers: BTreeMap<Ticket, Result<Answer, Refusal>>,
    /// What clients were told, by transaction.
    pub(crate) told: BTreeMap<TransactionId, TransactionState>,
    pub(crate) tickets: BTreeMap<Ticket, String>,
    pub(crate) heuristics: usize,
    pub(crate) trace: Vec<String>,
    settings: Settings,
    next: u64,
}

impl World {
    pub(crate) fn new(seed: u64, sites: &[(&str, bool)]) -> Self {
        World::with(seed, sites, Settings::default())
    }

    pub(crate) fn with(seed: u64, sites: &[(&str, bool)], settings: Settings) -> Self {
        let engine = Replay::new().start(LOG, settings, from(Seq(1), Moment(0)));
        let sites = sites.iter().map(|(name, one_phase)| Site {
            name: ParticipantName::parse(name).unwrap(),
            one_phase: *one_phase,
            session: None,
            branches: BTreeMap::new(),
            markers: BTreeMap::new(),
            requests: BTreeMap::new(),
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
        });
        let mut world = World {
            random: Random::new(seed),
            engine,
            now: Moment(0),
            sites: sites.collect(),
            disk: Vec::new(),
            unsynced: Vec::new(),
            forced: 0,
            answers: BTreeMap::new(),
            told: BTreeMap::new(),
            tickets: BTreeMap::new(),
            heuristics: 0,
            trace: Vec::new(),
            settings,
            next: 0,
        };
        world.drain();
        world.sync();
        world
    }

    pub(crate) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn handle(&mut self, input: Input) {
        self.trace.push(format!("{:>6} < {input:?}", self.now.0));
        self.engine.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(effect) = self.engine.poll_effect() {
            self.trace.push(format!("{:>6} >   {effect:?}", self.now.0));
            match effect {
                Effect::Append {
                    seq,
                    record,
                    forced,
                } => {
                    let bytes = record.encode();
                    assert_eq!(
                        Record::decode(&bytes).as_ref(),
                        Ok(&record),
                        "a record reads back as it was written"
                    );
                    self.forced += usize::from(forced);
                    self.unsynced.push((seq, bytes));
                }
                Effect::Send { session, message } => {
                    if let Some(site) = self.sites.iter_mut().find(|s| s.session == Some(session)) {
                        site.inbox.push_back((session, message));
                    }
                }
                Effect::Answer { ticket, answer } => self.answered(ticket, answer),
                Effect::Close { session, .. } => {
                    panic!("no peer is wrong here, yet {session:?} is closed")
                }
                Effect::Halt { participant, .. } => {
                    panic!("{participant} has seen a record that is not there")
                }
                Effect::Trim(keep) => self.disk.retain(|(seq, _)| *seq >= keep),
                Effect::Report(Event::Heuristic { .. }) => self.heuristics += 1,
                Effect::Report(Event::PeerMistake { mistake, .. }) => {
                    panic!("no peer is wrong here: {mistake}")
                }
                Effect::Report(_) => {}
            }
        }
    }

    fn answered(&mut self, ticket: Ticket, answer: Result<Answer, Refusal>) {
        if let Ok(Answer::Transaction(view)) = &answer {
            let final_state = match view.state {
                TransactionState::Committed | TransactionState::Committing => {
                    Some(TransactionState::Committed)
                }
                TransactionState::Aborted | TransactionState::Aborting => {
                    Some(TransactionState::Aborted)
                }
                other => panic!("told {other:?} where nothing goes against a decision"),
            };
            if let Some(state) = final_state {
                let before = self.told.insert(view.id, state);
                assert!(
                    before.is_none_or(|b| b == state),
                    "{} was told {before:?}, now {state:?}",
                    view.id
                );
            }
        }
        let twice = self.answers.insert(ticket, answer);
        assert!(twice.is_none(), "{ticket:?} was answered twice");
    }

    pub(crate) fn sync(&mut self) {
        let Some((last, _)) = self.unsynced.last() else {
            return;
        };
        let last = *last;
        self.disk.append(&mut self.unsynced);
        self.handle(Input::Durable(last));
    }

    pub(crate) fn submit(&mut self, sites: &[usize], request: Option<&str>) -> Ticket {
        let ticket = Ticket(self.fresh());
        let unique = u128::from(self.fresh()) << 64 | 7;
        let branches: Vec<_> = sites
            .iter()
            .map(|s| (self.sites[*s].name.clone(), b"work"[..].into()))
            .collect();
        if let Some(request) = request {
            self.tickets.insert(ticket, request.to_owned());
        }
        let answer_decided = self.random.below(2) == 0;
        self.handle(Input::Submit(Submit {
            ticket,
            unique,
            request_id: request.and_then(RequestId::parse),
            fingerprint: sites.iter().fold(1, |hash, s| hash * 31 + *s as u64),
            branches,
            age_ms: 0,
            timeout_ms: 5_000,
            answer_decided,
            traceparent: String::new(),
        }));
        ticket
    }

    pub(crate) fn open(&mut self, site: usize) {
        self.close(site);
        let session = SessionId(self.fresh());
        let site = &mut self.sites[site];
        site.session = Some(session);
        let opened = Opened {
            session,
            participant: site.name.clone(),
            agent: "model".into(),
            resource: site.name.to_string(),
            capacity: 3,
            one_phase: site.one_phase,
            settles_steps: true,
            seen: Vec::new(),
            in_doubt: site.in_doubt(),
        };
        self.handle(Input::SessionOpened(opened));
    }

    /// Opens a session where there is none.
    pub(crate) fn open_again(&mut self, site: usize) {
        if self.sites[site].session.is_none() {
            self.open(site);
        }
    }

    pub(crate) fn close(&mut self, site: usize) {
        if let Some(session) = self.sites[site].session.take() {
            self.handle(Input::SessionClosed(session));
        }
    }

    /// The coordinator dies and starts again from what was synced.
    pub(crate) fn restart(&mut self) {
        self.trace.push("------ restart".into());
        self.unsynced.clear();
        let mut replay = Replay::new();
        for (_, bytes) in &self.disk {
            replay.apply(Record::decode(bytes).unwrap());
        }
        let next = Seq(self.disk.last().map_or(1, |(seq, _)| seq.0 + 1));
        self.engine = replay.start(LOG, self.settings, from(next, self.now));
        for site in &mut self.sites {
            site.session = None;
        }
        self.drain();
        self.sync();
    }

    pub(crate) fn site_step(&mut self, site: usize) {
        self.sites[site].step(&mut self.random);
    }

    /// One message from a site reaches the engine, unless its session is over.
    pub(crate) fn site_speak(&mut self, site: usize) {
        let Some((session, message)) = self.sites[site].outbox.pop_front() else {
            return;
        };
        if self.sites[site].session == Some(session) {
            self.handle(Input::Message { session, message });
        }
    }

    pub(crate) fn pass(&mut self, ms: u64) {
        self.now = self.now.after_ms(ms);
        self.handle(Input::Tick);
    }

    /// No more faults: everything must come to rest within ten seconds.
    pub(crate) fn settle(&mut self) {
        for site in 0..self.sites.len() {
            if self.sites[site].session.is_none() {
                self.open(site);
            }
        }
        for _ in 0..200 {
            for site in 0..self.sites.len() {
                while !self.sites[site].inbox.is_empty() || !self.sites[site].outbox.is_empty() {
                    self.site_step(site);
                    self.site_speak(site);
                }
            }
            self.sync();
            self.pass(100);
        }
    }

    /// Every transaction with its branches' states, by what the databases say.
    pub(crate) fn outcomes(&self) -> BTreeMap<TransactionId, BTreeSet<String>> {
        let mut outcomes: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
        for (key, local) in self.sites.iter().flat_map(|s| &s.branches) {
            if *local != Local::ReadOnly {
                outcomes
                    .entry(key.transaction)
                    .or_default()
                    .insert(format!("{local:?}"));
            }
        }
        outcomes
    }
}

/// An incarnation's start; the wall clock says the same as the other.
fn from(next_seq: Seq, now: Moment) -> Start {
    Start {
        next_seq,
        now,
        unix_ms: now.0,
        seed: 7,
    }
}
