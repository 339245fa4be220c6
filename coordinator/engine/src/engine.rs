//! The door and the queue. What an input does stands in the file named after it.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
};

use crate::{
    admission::{Participant, Queue},
    checkpoint::Checkpoint,
    effect::{Answer, Downward, Effect, Event, Refusal, TransactionView},
    id::{BranchKey, Epoch, LogId, Moment, ParticipantName, Seq, SessionId, Ticket, TransactionId},
    in_doubt::Kind,
    input::{Incarnation, Input, Upward},
    lookup::Inquiry,
    outcome::Resolution,
    record::Record,
    replay::Start,
    saga::{DoneStep, Locks, Parent},
    session::Session,
    table::Table,
    timer::{Timer, Timers},
    transaction::Transaction,
};

/// Bounds and times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Transactions that have not ended.
    pub max_in_flight: usize,
    /// Branches of one transaction.
    pub max_branches: usize,
    /// Bytes of operations of one transaction.
    pub max_payload_bytes: usize,
    /// Bytes that one saga may need in a record of the log: its steps, and the results that others refer to.
    pub max_saga_bytes: usize,
    /// How long an ended transaction is remembered, its request id with it, in milliseconds.
    pub retention_ms: u64,
    /// How many ended transactions are remembered at most.
    pub max_remembered: usize,
    /// How often participants are asked for their prepared branches, in milliseconds.
    pub scan_interval_ms: u64,
    /// First pause before a decision is sent again, in milliseconds.
    pub retry_min_ms: u64,
    /// Longest pause, in milliseconds.
    pub retry_max_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            max_in_flight: 100_000,
            max_branches: 64,
            max_payload_bytes: 1 << 20,
            max_saga_bytes: 16 << 20,
            retention_ms: 3_600_000,
            max_remembered: 200_000,
            scan_interval_ms: 2_000,
            retry_min_ms: 50,
            retry_max_ms: 5_000,
        }
    }
}

/// What waits for a record.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) enum Pending {
    /// This incarnation's epoch.
    Epoch,
    /// A decision.
    Decide(TransactionId),
    /// A participant's registration; the session is welcomed after it.
    Welcome(SessionId),
    /// An operator's resolution.
    Resolve {
        ticket: Ticket,
        key: BranchKey,
        resolution: Resolution,
        reason: String,
    },
    /// A whole checkpoint: segments before its beginning may go.
    Trim(Seq),
    /// A saga's beginning.
    SagaBegun(TransactionId),
    /// A saga's turn.
    SagaTurned(TransactionId),
    /// A saga's atomic group that changed nothing.
    GroupDone(Parent, DoneStep),
    /// An operator's word on a saga's step.
    StepResolved {
        ticket: Ticket,
        id: TransactionId,
        step: DoneStep,
    },
}

/// The protocol's state: see the crate's documentation for how it is driven.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Engine {
    pub(crate) settings: Settings,
    pub(crate) log: LogId,
    pub(crate) epoch: Epoch,
    pub(crate) now: Moment,
    /// When this incarnation began.
    pub(crate) began: Moment,
    pub(crate) draining: bool,
    pub(crate) table: Table,
    pub(crate) participants: BTreeMap<ParticipantName, Participant>,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) queue: Queue,
    pub(crate) timers: Timers,
    pub(crate) untouchable: BTreeMap<(ParticipantName, String), Kind>,
    pub(crate) inquiries: BTreeMap<TransactionId, Inquiry>,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) undelivered: usize,
    pub(crate) locks: Locks,
    /// Wall time at moment 0, in milliseconds since 1970.
    unix_origin_ms: u64,
    seed: u128,
    /// Ids drawn from the seed so far.
    drawn: u64,
    next_seq: Seq,
    durable: Seq,
    /// The last record that was in the log at the start.
    pub(crate) found: Seq,
    pending: VecDeque<(Seq, Pending)>,
    effects: VecDeque<Effect>,
}

impl Engine {
    pub(crate) fn new(settings: Settings, log: LogId, epoch: Epoch, start: Start) -> Self {
        let Start {
            next_seq,
            now,
            unix_ms,
            seed,
        } = start;
        Engine {
            settings,
            log,
            epoch,
            now,
            began: now,
            draining: false,
            table: Table::default(),
            participants: BTreeMap::new(),
            sessions: BTreeMap::new(),
            queue: Queue::default(),
            timers: Timers::default(),
            untouchable: BTreeMap::new(),
            inquiries: BTreeMap::new(),
            checkpoint: Checkpoint::default(),
            undelivered: 0,
            locks: Locks::default(),
            unix_origin_ms: unix_ms.saturating_sub(now.0),
            seed,
            drawn: 0,
            next_seq,
            durable: Seq(next_seq.0 - 1),
            found: Seq(next_seq.0 - 1),
            pending: VecDeque::new(),
            effects: VecDeque::new(),
        }
    }

    /// Takes one input. Drain [`Engine::poll_effect`] before the next.
    pub fn handle(&mut self, now: Moment, input: Input) {
        self.now = self.now.max(now);
        match input {
            Input::Submit(submit) => self.submit(submit),
            Input::SubmitSaga(submit) => self.submit_saga(submit),
            Input::Begin(begin) => self.begin(begin),
            Input::Execute {
                ticket,
                transaction,
                participant,
                operation,
            } => {
                self.execute(ticket, transaction, participant, operation);
            }
            Input::Commit {
                ticket,
                transaction,
                answer_decided,
            } => self.commit(ticket, transaction, answer_decided),
            Input::Abort {
                ticket,
                transaction,
                reason,
            } => self.abort_call(ticket, transaction, reason),
            Input::Lookup {
                ticket,
                transaction,
            } => self.lookup(ticket, transaction),
            Input::SessionOpened(opened) => self.session_opened(opened),
            Input::SessionClosed(session) => self.session_closed(session),
            Input::Message { session, message } => self.message(session, message),
            Input::Durable(upto) => self.durable_upto(upto),
            Input::Tick => {}
            Input::Drain => self.drain(),
            Input::Checkpoint => self.begin_checkpoint(),
            Input::Retry {
                ticket,
                transaction,
            } => self.retry(ticket, transaction),
            Input::ResolveStep {
                ticket,
                transaction,
                step,
                reason,
            } => self.resolve_step(ticket, transaction, step, reason),
            Input::Resolve {
                ticket,
                branch,
                resolution,
                reason,
            } => self.resolve(ticket, branch, resolution, reason),
        }
        self.fire_timers();
        self.admit();
        self.advance_checkpoint();
        self.table.forget(
            self.now,
            self.settings.retention_ms,
            self.settings.max_remembered,
            self.log,
        );
    }

    /// The next thing to do, in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call [`Engine::handle`] with [`Input::Tick`].
    pub fn next_deadline(&self) -> Option<Moment> {
        if self.checkpoint_running() {
            return Some(self.now);
        }
        let forget = self.table.next_forgotten(self.settings.retention_ms);
        self.timers.next().into_iter().chain(forget).min()
    }

    /// Log and epoch.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation {
            log: self.log,
            epoch: self.epoch,
            instance: self.bits(0, 0),
        }
    }

    /// The last record known to be durable.
    pub fn durable(&self) -> Seq {
        self.durable
    }

    /// Transactions that have not ended.
    pub fn in_flight(&self) -> usize {
        self.table.in_flight()
    }

    /// Transactions decided to commit, of which not every branch has yet.
    pub fn undelivered(&self) -> usize {
        self.undelivered
    }

    /// One transaction as it stands, if it is remembered.
    pub fn transaction(&self, id: &TransactionId) -> Option<TransactionView> {
        self.table.find(id).map(|t| self.view(t))
    }

    fn view(&self, transaction: &Transaction) -> TransactionView {
        let mut view = transaction.view();
        view.saga = transaction.saga.as_ref().map(|saga| {
            let waiting_for = self.locks_in_the_way(&transaction.id);
            Box::new(saga.view(waiting_for, transaction.is_ended()))
        });
        view
    }

    /// All that are remembered, newest first, from before `cursor`.
    pub fn transactions(
        &self,
        cursor: Option<TransactionId>,
    ) -> impl Iterator<Item = TransactionView> {
        self.table.before(cursor).map(|t| self.view(t))
    }

    /// The number of the next record.
    pub(crate) fn next_seq(&self) -> Seq {
        self.next_seq
    }

    /// Now, in milliseconds since 1970.
    pub(crate) fn unix_ms(&self) -> u64 {
        self.unix_origin_ms.saturating_add(self.now.0)
    }

    /// A fresh UUID v7: the time, then bits that nobody can guess who does not know the seed.
    pub(crate) fn fresh_unique(&mut self) -> u128 {
        self.drawn += 1;
        let hash = |salt| u128::from(self.bits(self.drawn, salt));
        let random = (hash(1) << 64) | hash(2);
        let (version, variant) = (0x7 << 76, 0x2 << 62);
        let free = ((1 << 80) - 1) & !(0xf << 76) & !(0x3 << 62);
        (u128::from(self.unix_ms() & 0xffff_ffff_ffff) << 80) | version | variant | (random & free)
    }

    /// Tells nothing of the seed.
    fn bits(&self, drawn: u64, salt: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.seed, self.log, self.epoch, drawn, salt).hash(&mut hasher);
        hasher.finish()
    }

    fn message(&mut self, session: SessionId, message: Upward) {
        if !self.sessions.contains_key(&session) {
            return; // It was closed while the message was on its way.
        }
        match message {
            Upward::Vote { key, vote } => self.vote(session, key, vote),
            Upward::Completion { key, completion } => self.completion(session, key, completion),
            Upward::Executed {
                key,
                sequence,
                result,
            } => self.executed(session, key, sequence, result),
            Upward::Enlist {
                correlation,
                transaction,
            } => self.enlist(session, correlation, transaction),
            Upward::StepResult {
                key,
                attempt,
                outcome,
            } => self.step_result(session, key, attempt, outcome),
            Upward::InDoubt(found) => self.in_doubt_report(session, found),
            Upward::Proof { key, completion } => self.proof(session, key, completion),
        }
    }

    fn fire_timers(&mut self) {
        while let Some((at, timer)) = self.timers.pop_due(self.now) {
            match timer {
                Timer::Deadline(id) => self.time_is_up(id),
                Timer::Deliver(key) => self.deliver_again(at, key),
                Timer::Step(key) => self.step_is_due(at, key),
                Timer::Inquiry(id) => self.inquiry_is_late(at, id),
                Timer::Scan => self.scan(),
            }
        }
    }

    fn durable_upto(&mut self, upto: Seq) {
        self.durable = self.durable.max(upto);
        while let Some((seq, _)) = self.pending.front() {
            if *seq > self.durable {
                break;
            }
            let Some((_, pending)) = self.pending.pop_front() else {
                break;
            };
            match pending {
                Pending::Epoch => self.timers.set(self.now, Timer::Scan),
                Pending::Decide(id) => self.decided(id),
                Pending::Welcome(session) => self.welcome(session),
                Pending::Resolve {
                    ticket,
                    key,
                    resolution,
                    reason,
                } => self.resolved(ticket, key, resolution, reason),
                Pending::Trim(begin) => self.checkpoint_ended(begin),
                Pending::SagaBegun(id) => self.saga_begun(id),
                Pending::SagaTurned(id) => self.saga_turned(id),
                Pending::GroupDone(parent, step) => self.group_done(parent, &step),
                Pending::StepResolved { ticket, id, step } => self.step_resolved(ticket, id, step),
            }
        }
    }

    /// Appends a record that nothing waits for.
    pub(crate) fn append(&mut self, record: Record) -> Seq {
        self.append_record(record, false)
    }

    /// Operators' words that are not durable yet, and will count.
    pub(crate) fn pending_resolutions(&self) -> Vec<(BranchKey, Resolution, String)> {
        let resolution = |(_, pending): &(Seq, Pending)| match pending {
            Pending::Resolve {
                key,
                resolution,
                reason,
                ..
            } if self.is_resolvable(*key) => Some((*key, *resolution, reason.clone())),
            _ => None,
        };
        self.pending.iter().filter_map(resolution).collect()
    }

    /// Appends a record, and holds back what depends on it until it is durable.
    pub(crate) fn append_then(&mut self, record: Record, pending: Pending) {
        let seq = self.append_record(record, true);
        self.pending.push_back((seq, pending));
    }

    fn append_record(&mut self, record: Record, forced: bool) -> Seq {
        let seq = self.next_seq;
        self.next_seq = Seq(seq.0 + 1);
        self.push(Effect::Append {
            seq,
            record,
            forced,
        });
        seq
    }

    pub(crate) fn push(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    pub(crate) fn send(&mut self, session: SessionId, message: Downward) {
        self.push(Effect::Send { session, message });
    }

    pub(crate) fn answer(&mut self, ticket: Ticket, answer: Result<Answer, Refusal>) {
        self.push(Effect::Answer { ticket, answer });
    }

    pub(crate) fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        self.answer(ticket, Err(refusal));
    }

    pub(crate) fn answer_view(&mut self, ticket: Ticket, id: &TransactionId) {
        let answer = self
            .transaction(id)
            .map(Answer::Transaction)
            .ok_or_else(|| Refusal::TransactionUnknown(id.to_string()));
        self.answer(ticket, answer);
    }

    /// Answers everyone who waits for this transaction.
    pub(crate) fn answer_waiters(&mut self, id: &TransactionId) {
        let Some(transaction) = self.table.find_mut(id) else {
            return;
        };
        let waiters = std::mem::take(&mut transaction.waiters);
        if transaction.is_open_to_doubt() {
            return self.leave_in_doubt(*id, waiters);
        }
        for ticket in waiters {
            self.answer_view(ticket, id);
        }
    }

    /// This one was aborted, but what the request did before is not known. It can be asked for again.
    fn leave_in_doubt(&mut self, id: TransactionId, waiters: Vec<Ticket>) {
        let branch = self.table.find(&id).and_then(|t| t.branches.first());
        let participant = branch.map(|b| b.participant.to_string());
        self.table.release_request(&id);
        for ticket in waiters {
            let refusal = Refusal::OutcomePending {
                transaction: id,
                participant: participant.clone().unwrap_or_default(),
            };
            self.refuse(ticket, refusal);
        }
    }

    pub(crate) fn report(&mut self, event: Event) {
        self.push(Effect::Report(event));
    }

    pub(crate) fn report_changed(&mut self, id: &TransactionId) {
        if let Some(state) = self.table.find(id).map(|t| t.state()) {
            self.report(Event::Changed(*id, state));
        }
    }

    pub(crate) fn mistake(&mut self, session: SessionId, mistake: impl Into<String>) {
        self.report(Event::PeerMistake {
            session,
            mistake: mistake.into(),
        });
    }
}
