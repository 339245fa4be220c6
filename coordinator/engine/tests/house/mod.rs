//! A coordinator's engine, a log on a disk that loses what was not synced, and participants with a barrier of markers: all that a saga needs, in
//! one thread, moved one event at a time. A crash can come between any two events.

use std::collections::{BTreeMap, VecDeque};

use unanimity_engine::{
    AbortCode, AbortReason, Answer, Bound, BranchKey, Downward, Effect, Engine, Found, Input,
    LockKey, LogId, Moment, Opened, ParticipantName, Payload, Record, Refusal, Replay, RequestId,
    RetryPolicy, Seq, SessionId, Settings, Start, StepDefinition, StepKind, StepName, StepOutcome,
    StepWork, SubmitSaga, Ticket, TransactionId, TransactionState, TransactionView, Upward, Vote,
    Work,
};

pub(crate) const LOG: LogId = LogId(1);

/// What a participant does when a step comes for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Does it.
    Does,
    /// Says no.
    Refuses,
    /// Fails so often, then does it.
    Fails(u32),
    /// Never answers, and does nothing.
    Hangs,
    /// Does it, and its answer is lost so often.
    Mumbles(u32),
    /// All of that by chance; but it does not change its mind once it has refused, and it refuses no step whose name has an `r` in it.
    Moody(u64),
}

/// Something that became visible in a participant's database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Did(String),
    Undid(String),
}

/// The same key gives the same number.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What a step or a group's branch changed, in the order in which that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effected {
    Action(BranchKey),
    /// Of the action of this key.
    Compensation(BranchKey),
    Branch(BranchKey),
}

#[derive(Clone, Debug, PartialEq)]
enum Marker {
    Done,
    Fenced,
}

/// One participant: its database outlives every crash.
pub(crate) struct Site {
    pub(crate) name: String,
    pub(crate) manner: Manner,
    /// It can tell whether a step took effect.
    pub(crate) settles: bool,
    pub(crate) session: Option<SessionId>,
    inbox: VecDeque<Downward>,
    markers: BTreeMap<BranchKey, Marker>,
    prepared: Vec<BranchKey>,
    /// What it was last told to run: values for references, and fencing token.
    pub(crate) values: Vec<Bound>,
    pub(crate) token: u64,
    /// How old it was told that this is.
    pub(crate) age_ms: u64,
    pub(crate) reads_only: bool,
    /// Actions that came and were not done before.
    pub(crate) attempts: u32,
    pub(crate) capacity: u32,
}

pub(crate) struct House {
    pub(crate) engine: Engine,
    pub(crate) now: Moment,
    pub(crate) log: Vec<Record>,
    pub(crate) synced: usize,
    pub(crate) forced: usize,
    pub(crate) sites: Vec<Site>,
    /// In the order in which they were done.
    pub(crate) deeds: Vec<Deed>,
    pub(crate) answers: Vec<(Ticket, Result<TransactionView, Refusal>)>,
    pub(crate) replies: VecDeque<(SessionId, Upward)>,
    /// Messages that a crash left on the wire.
    stray: Vec<(usize, Downward)>,
    next_session: u64,
    pub(crate) stuck: Vec<String>,
    /// Whether a participant may be wrong.
    pub(crate) tolerant: bool,
    pub(crate) mistakes: Vec<String>,
    /// Records that are gone.
    trimmed: usize,
    pub(crate) effects: Vec<Effected>,
    /// The highest token that came with an effect, by lock.
    tokens: BTreeMap<LockKey, u64>,
}

impl House {
    pub(crate) fn new(sites: &[(&str, Manner, bool)]) -> Self {
        let sites = sites.iter().map(|(name, manner, settles)| Site {
            name: (*name).into(),
            manner: *manner,
            settles: *settles,
            session: None,
            inbox: VecDeque::new(),
            markers: BTreeMap::new(),
            prepared: Vec::new(),
            values: Vec::new(),
            token: 0,
            age_ms: 0,
            reads_only: false,
            attempts: 0,
            capacity: 2,
        });
        let mut house = House {
            engine: Replay::new().start(LOG, Settings::default(), from(Seq(1), Moment(0))),
            now: Moment(0),
            log: Vec::new(),
            synced: 0,
            forced: 0,
            sites: sites.collect(),
            deeds: Vec::new(),
            answers: Vec::new(),
            replies: VecDeque::new(),
            stray: Vec::new(),
            next_session: 1,
            stuck: Vec::new(),
            tolerant: false,
            mistakes: Vec::new(),
            trimmed: 0,
            effects: Vec::new(),
            tokens: BTreeMap::new(),
        };
        house.drain();
        house.sync();
        house.open_sessions();
        house.forced = 0;
        house
    }

    pub(crate) fn give(&mut self, input: Input) {
        self.engine.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(effect) = self.engine.poll_effect() {
            match effect {
                Effect::Append { record, forced, .. } => {
                    let bytes = record.encode();
                    assert_eq!(Record::decode(&bytes), Ok(record.clone()));
                    assert!(!record.to_string().is_empty());
                    self.log.push(record);
                    self.forced += usize::from(forced);
                }
                Effect::Send { session, message } => {
                    let site = self.sites.iter_mut().find(|s| s.session == Some(session));
                    if let Some(site) = site {
                        site.inbox.push_back(message);
                    }
                }
                Effect::Answer { ticket, answer } => match answer {
                    Ok(Answer::Transaction(view)) => self.answers.push((ticket, Ok(view))),
                    Ok(Answer::Executed(_)) => {}
                    Err(refusal) => self.answers.push((ticket, Err(refusal))),
                },
                Effect::Report(unanimity_engine::Event::Stuck { step, .. }) => {
                    self.stuck.push(step)
                }
                Effect::Report(unanimity_engine::Event::PeerMistake { mistake, .. }) => {
                    assert!(self.tolerant, "{mistake}");
                    self.mistakes.push(mistake);
                }
                Effect::Halt { participant, .. } => {
                    panic!("{participant} has seen a record that is not there")
                }
                Effect::Trim(Seq(first)) => self.trimmed = first as usize - 1,
                Effect::Close { .. } | Effect::Report(_) => {}
            }
        }
    }

    pub(crate) fn sync(&mut self) {
        self.synced = self.log.len();
        self.give(Input::Durable(Seq(self.synced as u64)));
    }

    fn open_sessions(&mut self) {
        for index in 0..self.sites.len() {
            self.open_session(index);
        }
        self.sync();
    }

    /// One event: a reply arrives, a participant works off a message, the disk syncs, or time goes on. False where nothing is left to happen.
    pub(crate) fn step(&mut self) -> bool {
        if let Some((session, message)) = self.replies.pop_front() {
            self.give(Input::Message { session, message });
        } else if let Some(index) = self.sites.iter().position(|s| !s.inbox.is_empty()) {
            let message = self.sites[index]
                .inbox
                .pop_front()
                .expect("it is not empty");
            self.work(index, message);
        } else if self.synced < self.log.len() {
            self.sync();
        } else {
            return self.let_time_pass();
        }
        true
    }

    /// To the next deadline that is about sagas: scans go on for ever.
    fn let_time_pass(&mut self) -> bool {
        for _ in 0..200 {
            let Some(next) = self.engine.next_deadline() else {
                return false;
            };
            self.now = self.now.max(next);
            self.give(Input::Tick);
            let scans = |site: &mut Site| {
                let prepared = !site.prepared.is_empty();
                site.inbox
                    .retain(|m| prepared || !matches!(m, Downward::ListInDoubt));
            };
            self.sites.iter_mut().for_each(scans);
            let busy = self.sites.iter().any(|s| !s.inbox.is_empty());
            if busy || self.synced < self.log.len() || self.engine.in_flight() == 0 {
                return busy || self.synced < self.log.len();
            }
        }
        false
    }

    pub(crate) fn run(&mut self) {
        for _ in 0..2_000 {
            if !self.step() {
                return;
            }
        }
        panic!("it never ends: {:?}", self.deeds);
    }

    /// The coordinator dies. `late`: what was on its way to participants arrives all the same, some time.
    pub(crate) fn crash(&mut self, late: bool) {
        self.crash_keeping(late, 0);
    }

    /// The same; `more` records had reached the disk, though nobody was told.
    pub(crate) fn crash_keeping(&mut self, late: bool, more: usize) {
        self.log.truncate(self.synced + more);
        self.replies.clear();
        for (index, site) in self.sites.iter_mut().enumerate() {
            let left = std::mem::take(&mut site.inbox);
            if late {
                self.stray
                    .extend(left.into_iter().map(|message| (index, message)));
            }
        }
        let mut replay = Replay::new();
        self.log
            .iter()
            .skip(self.trimmed)
            .cloned()
            .for_each(|record| replay.apply(record));
        let next = Seq(self.log.len() as u64 + 1);
        self.engine = replay.start(LOG, Settings::default(), from(next, self.now));
        self.drain();
        self.sync();
        self.open_sessions();
    }

    /// A whole checkpoint, after which only what it carries is left of the log.
    pub(crate) fn checkpoint(&mut self) {
        self.give(Input::Checkpoint);
        self.sync();
    }

    /// What a crash left on the wire arrives now; nobody hears the answers.
    pub(crate) fn deliver_strays(&mut self) {
        for (index, message) in std::mem::take(&mut self.stray) {
            let replies = self.replies.len();
            if self.sites[index].session.is_none() {
                self.open_session(index);
            }
            self.work(index, message);
            self.replies.truncate(replies);
        }
    }

    /// A session is lost, and another opened.
    pub(crate) fn cut_session(&mut self, index: usize) {
        self.close_session(index);
        self.open_session(index);
    }

    pub(crate) fn open_session(&mut self, index: usize) {
        let session = SessionId(self.next_session);
        self.next_session += 1;
        let site = &mut self.sites[index];
        site.session = Some(session);
        let found = |key: &BranchKey| Found {
            identifier: key.to_string(),
            key: Some(*key),
        };
        let opened = Opened {
            session,
            participant: name(&site.name),
            agent: "model".into(),
            resource: site.name.clone(),
            capacity: site.capacity,
            one_phase: site.settles,
            settles_steps: site.settles,
            seen: Vec::new(),
            in_doubt: site.prepared.iter().map(found).collect(),
        };
        self.give(Input::SessionOpened(opened));
    }

    pub(crate) fn close_session(&mut self, index: usize) {
        if let Some(session) = self.sites[index].session.take() {
            self.sites[index].inbox.clear();
            self.give(Input::SessionClosed(session));
        }
    }

    /// A participant works off any message that waits for it, not only the first: it works at many at once.
    pub(crate) fn work_at(&mut self, index: usize, chance: u64) -> bool {
        let inbox = &mut self.sites[index].inbox;
        if inbox.is_empty() {
            return false;
        }
        let at = chance as usize % inbox.len();
        if let Some(message) = inbox.remove(at) {
            self.work(index, message);
        }
        true
    }

    fn note_tokens(&mut self, locks: &[LockKey], token: u64) {
        for key in locks {
            let highest = self.tokens.entry(key.clone()).or_default();
            assert!(
                *highest <= token,
                "{key:?} had passed on: {token} after {highest}"
            );
            *highest = token;
        }
    }

    fn work(&mut self, index: usize, message: Downward) {
        let site = &mut self.sites[index];
        let session = site.session.expect("it has an inbox, so it has a session");
        if let Downward::RunStep {
            values,
            token,
            age_ms,
            ..
        } = &message
        {
            site.values.clone_from(values);
            site.token = *token;
            site.age_ms = *age_ms;
        }
        let reply = match message {
            Downward::RunStep {
                key,
                step,
                compensates: None,
                attempt,
                locks,
                token,
                ..
            } => {
                let before = self.deeds.len();
                let outcome = site.execute(key, &step, &mut self.deeds);
                if self.deeds.len() > before {
                    self.effects.push(Effected::Action(key));
                    self.note_tokens(&locks, token);
                }
                outcome.map(|outcome| Upward::StepResult {
                    key,
                    attempt,
                    outcome,
                })
            }
            Downward::RunStep {
                key,
                step,
                compensates: Some(compensates),
                attempt,
                locks,
                token,
                ..
            } => {
                let before = self.deeds.len();
                let action = BranchKey {
                    branch: compensates.branch,
                    ..key
                };
                let outcome = site.compensate(key, action, &step, &mut self.deeds);
                if self.deeds.len() > before {
                    self.effects.push(Effected::Compensation(action));
                    self.note_tokens(&locks, token);
                }
                Some(Upward::StepResult {
                    key,
                    attempt,
                    outcome,
                })
            }
            Downward::SettleStep { key, attempt, .. } => {
                assert!(site.settles, "{} can't settle", site.name);
                let outcome = site.settle(key);
                Some(Upward::StepResult {
                    key,
                    attempt,
                    outcome,
                })
            }
            Downward::Prepare { key, .. } => Some(Upward::Vote {
                key,
                vote: site.prepare(key),
            }),
            Downward::Commit { key, .. } => {
                if site.prepared.contains(&key) {
                    site.prepared.retain(|k| *k != key);
                    self.deeds.push(Deed::Did(site.name.clone()));
                    self.effects.push(Effected::Branch(key));
                }
                let completion = unanimity_engine::Completion::Committed;
                Some(Upward::Completion { key, completion })
            }
            Downward::Abort { key, .. } => {
                site.prepared.retain(|k| *k != key);
                let completion = unanimity_engine::Completion::Aborted;
                Some(Upward::Completion { key, completion })
            }
            Downward::ListInDoubt => {
                let found = |key: &BranchKey| Found {
                    identifier: key.to_string(),
                    key: Some(*key),
                };
                let found = site.prepared.iter().map(found).collect();
                Some(Upward::InDoubt(found))
            }
            Downward::Welcome(_)
            | Downward::Execute { .. }
            | Downward::Enlisted { .. }
            | Downward::Prove { .. } => None,
        };
        self.replies.extend(reply.map(|reply| (session, reply)));
    }

    pub(crate) fn told(&self, ticket: u64) -> Option<&TransactionView> {
        self.answers
            .iter()
            .find_map(|(t, answer)| (t.0 == ticket).then(|| answer.as_ref().ok()).flatten())
    }

    pub(crate) fn refused(&self, ticket: u64) -> Option<&Refusal> {
        self.answers
            .iter()
            .find_map(|(t, answer)| (t.0 == ticket).then(|| answer.as_ref().err()).flatten())
    }

    pub(crate) fn state(&self, ticket: u64) -> Option<TransactionState> {
        self.told(ticket).map(|view| view.state)
    }
}

impl Site {
    pub(crate) fn is_idle(&self) -> bool {
        let about_sessions =
            |m: &Downward| matches!(m, Downward::Welcome(_) | Downward::ListInDoubt);
        self.inbox.iter().all(about_sessions)
    }

    /// `None`: the answer is lost.
    fn execute(
        &mut self,
        key: BranchKey,
        step: &str,
        deeds: &mut Vec<Deed>,
    ) -> Option<StepOutcome> {
        match self.markers.get(&key) {
            Some(Marker::Done) => return Some(done(step)),
            Some(Marker::Fenced) => {
                return Some(StepOutcome::Refused(reason(AbortCode::BranchLost)));
            }
            None => {}
        }
        self.attempts += 1;
        let mut lost = false;
        match &mut self.manner {
            Manner::Moody(seed) => {
                let of_key = mix(*seed
                    ^ key.transaction.unique as u64
                    ^ (key.transaction.unique >> 64) as u64
                    ^ u64::from(key.branch) << 50);
                let now = mix(of_key ^ u64::from(self.attempts)) % 16;
                match now {
                    _ if of_key.is_multiple_of(8) && !step.contains('r') => {
                        if !self.settles {
                            // It is bound to its word: nobody can ask it, or stop a late one.
                            self.markers.insert(key, Marker::Fenced);
                        }
                        return Some(StepOutcome::Refused(reason(AbortCode::Refused)));
                    }
                    0 | 1 => return Some(StepOutcome::Failed(reason(AbortCode::Conflict))),
                    2 => return Some(StepOutcome::Working("soon".into())),
                    3 => return None,
                    4 => return Some(StepOutcome::Unknown("perhaps".into())),
                    5 | 6 => lost = true,
                    _ => {}
                }
            }
            Manner::Hangs => return None,
            Manner::Refuses => return Some(StepOutcome::Refused(reason(AbortCode::Refused))),
            Manner::Fails(left) if *left > 0 => {
                *left -= 1;
                return Some(StepOutcome::Failed(reason(AbortCode::Conflict)));
            }
            Manner::Mumbles(left) if *left > 0 => {
                *left -= 1;
                self.markers.insert(key, Marker::Done);
                deeds.push(Deed::Did(step.into()));
                return None;
            }
            Manner::Does | Manner::Fails(_) | Manner::Mumbles(_) => {}
        }
        self.markers.insert(key, Marker::Done);
        deeds.push(Deed::Did(step.into()));
        (!lost).then(|| done(step))
    }

    fn compensate(
        &mut self,
        key: BranchKey,
        action: BranchKey,
        step: &str,
        deeds: &mut Vec<Deed>,
    ) -> StepOutcome {
        if self.markers.insert(key, Marker::Done).is_none() {
            match self.markers.get(&action) {
                Some(Marker::Done) => deeds.push(Deed::Undid(step.into())),
                Some(Marker::Fenced) => {}
                None => _ = self.markers.insert(action, Marker::Fenced),
            }
        }
        StepOutcome::Done([].into())
    }

    fn settle(&mut self, key: BranchKey) -> StepOutcome {
        match self.markers.entry(key).or_insert(Marker::Fenced) {
            Marker::Done => done("settled"),
            Marker::Fenced => StepOutcome::Never,
        }
    }

    fn prepare(&mut self, key: BranchKey) -> Vote {
        match self.manner {
            Manner::Refuses => Vote::No(reason(AbortCode::Refused)),
            Manner::Fails(left) if left > 0 => {
                self.manner = Manner::Fails(left - 1);
                Vote::No(reason(AbortCode::Conflict))
            }
            Manner::Moody(seed) if mix(seed ^ key.transaction.unique as u64).is_multiple_of(3) => {
                Vote::No(reason(AbortCode::Conflict))
            }
            _ if self.reads_only => Vote::ReadOnly,
            Manner::Moody(_)
            | Manner::Does
            | Manner::Hangs
            | Manner::Fails(_)
            | Manner::Mumbles(_) => {
                self.prepared.push(key);
                Vote::Yes {
                    proof: String::new(),
                }
            }
        }
    }
}

fn done(step: &str) -> StepOutcome {
    StepOutcome::Done(format!("{{\"step\":{step:?}}}").into_bytes().into())
}

pub(crate) fn reason(code: AbortCode) -> AbortReason {
    AbortReason {
        code,
        participant: String::new(),
        message: "because".into(),
    }
}

/// An incarnation's start; the wall clock says the same as the other.
pub(crate) fn from(next_seq: Seq, now: Moment) -> Start {
    Start {
        next_seq,
        now,
        unix_ms: now.0,
        seed: 7,
    }
}

pub(crate) fn name(text: &str) -> ParticipantName {
    ParticipantName::parse(text).expect("a name")
}

pub(crate) fn work() -> Work {
    Work {
        payload: Payload::from(&b"w"[..]),
        bindings: Vec::new(),
    }
}

/// A step at the participant of the same name; a compensatable one has a compensation.
pub(crate) fn step(text: &str, kind: StepKind, after: &[&str]) -> StepDefinition {
    StepDefinition {
        name: StepName::parse(text).expect("a name"),
        kind,
        after: after
            .iter()
            .map(|name| StepName::parse(name).expect("a name"))
            .collect(),
        work: StepWork::Single {
            participant: name(text),
            action: work(),
            compensation: (kind == StepKind::Compensatable).then(work),
        },
        retry: RetryPolicy {
            max_attempts: 3,
            first_backoff_ms: 100,
            max_backoff_ms: 1_000,
            attempt_timeout_ms: 500,
        },
    }
}

pub(crate) fn submit(ticket: u64, steps: Vec<StepDefinition>) -> SubmitSaga {
    SubmitSaga {
        ticket: Ticket(ticket),
        unique: u128::from(ticket) << 80,
        request_id: RequestId::parse("r"),
        fingerprint: 1,
        steps,
        locks: Vec::new(),
        lock_timeout_ms: 1_000,
        age_ms: 0,
        timeout_ms: 60_000,
        answer_accepted: false,
        traceparent: String::new(),
    }
}

pub(crate) fn lock(text: &str) -> LockKey {
    LockKey::parse(text).expect("a key")
}

pub(crate) fn id(ticket: u64) -> TransactionId {
    TransactionId {
        log: LOG,
        epoch: unanimity_engine::Epoch(1),
        unique: u128::from(ticket) << 80,
    }
}
