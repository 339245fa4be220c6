//! The coordinator's process: boring, as the real driver is. It receives, feeds, drains, writes; and it dies.

use unanimity_engine::{
    Answer, BranchState, Effect, Engine, Event as Report, Incarnation, Input, LockView,
    LogPosition, Moment, Record, Refusal, Replay, SagaRecord, Seq, Settings, Start, Ticket,
    TransactionView,
};

use super::{LOG, World, disk::Next, event::Event, network::Side};
use crate::{
    fact::{Fact, told},
    invariants::Violation,
    plan::Way,
};

/// Records that nothing waits for are written after this long.
const LAZY_MS: u64 = 1_000;
/// A drain is given so long.
const DRAIN_MS: u64 = 4_000;

/// How it dies.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Death {
    pub(super) down_ms: u64,
    /// Sixteenths of a batch under way that reached the disk.
    pub(super) keeps: u64,
    /// When agents notice.
    pub(super) noticed_ms: u64,
    /// When it stops waiting for its drain to end.
    pub(super) drained_by: u64,
}

impl World {
    /// Gives the engine one input, and does all that it asks for.
    pub(super) fn feed(&mut self, input: Input) {
        let moment = Moment(self.now - self.born);
        let Some(engine) = &mut self.engine else {
            return;
        };
        self.trace.input(self.now, &input);
        engine.handle(moment, input);
        self.drain();
        self.write();
    }

    fn drain(&mut self) {
        while let Some(effect) = self.engine.as_mut().and_then(Engine::poll_effect) {
            self.obey(effect);
        }
    }

    fn obey(&mut self, effect: Effect) {
        match effect {
            Effect::Append {
                seq,
                record,
                forced,
            } => self.append(seq, &record, forced),
            Effect::Send { session, message } => {
                self.seen = self.engine.as_ref().map(position);
                let link = session.0 as usize;
                self.fact(&Fact::Sent {
                    session,
                    message: &message,
                });
                self.travel(link, Way::Down, |link| Event::Down {
                    link,
                    message: message.clone(),
                });
            }
            Effect::Answer { ticket, answer } => self.answer(ticket, answer),
            Effect::Close { refusal, .. } => self.fact(&Fact::Refused(&refusal)),
            Effect::Halt { .. } => {
                unreachable!("a record that somebody was told of is not in the log")
            }
            Effect::Trim(seq) => {
                // A crash may come before it; then it comes again after the next checkpoint.
                if !self.disk_random.one_in(4) {
                    self.disk.trim(seq);
                    self.trace
                        .note(self.now, || format!("log trimmed below {}", seq.0));
                }
            }
            Effect::Report(event) => {
                if let Report::Changed(id, _) = &event {
                    self.heard_of(*id);
                }
                self.fact(&Fact::Reported(&event));
            }
        }
    }

    fn append(&mut self, seq: Seq, record: &Record, forced: bool) {
        let bytes = record.encode();
        if Record::decode(&bytes).as_ref() != Ok(record) {
            self.fact(&Fact::Garbled { record });
        }
        self.figures.records += 1;
        let counts = !matches!(
            record,
            Record::CheckpointBegin { .. }
                | Record::CheckpointTransaction { .. }
                | Record::CheckpointEnd
                | Record::Participant { .. }
                | Record::Saga(SagaRecord::Checkpoint { .. })
        );
        self.disk.append(seq, bytes, forced, counts);
        self.fact(&Fact::Appended { seq, record });
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<Answer, Refusal>) {
        self.fact(&Fact::Answered {
            ticket,
            answer: &answer,
        });
        if let Ok(Answer::Transaction(view)) = &answer {
            self.heard_of(view.id);
            if told(view).is_some() {
                self.figures.answers += 1;
            }
        }
        if std::mem::take(&mut self.armed.reply_lost) {
            self.figures.landed("reply_lost");
            self.trace
                .note(self.now, || format!("the answer to {} is lost", ticket.0));
            return;
        }
        let at = self.now + self.latency();
        let answer = Box::new(answer);
        self.events.at(at, Event::Replies { ticket, answer });
    }

    fn heard_of(&mut self, id: unanimity_engine::TransactionId) {
        if !self.known.contains(&id) {
            self.known.push(id);
        }
    }

    /// Writes what waits, where something needs it.
    fn write(&mut self) {
        self.write_if(false);
    }

    fn write_if(&mut self, all: bool) {
        let life = self.life;
        match self.disk.write(all) {
            Next::Nothing => {}
            Next::Later => self
                .events
                .at(self.now + LAZY_MS, Event::WritesLazily { life }),
            Next::Sync => {
                let usual = self.disk_random.between(0, self.plan.shape.sync_ms);
                let slow = self.armed.sync_is_slow.take();
                slow.inspect(|_| self.figures.landed("sync_is_slow"));
                let at = self.now + slow.unwrap_or(usual);
                if let Some(death) = self.armed.sync_fails.take() {
                    self.figures.landed("sync_fails");
                    self.death = death;
                    self.events.at(at, Event::Dies { life });
                } else {
                    self.events.at(at, Event::Synced { life });
                }
            }
        }
    }

    pub(super) fn write_lazily(&mut self, life: u32) {
        if life == self.life {
            self.write_if(true);
        }
    }

    pub(super) fn synced(&mut self, life: u32) {
        if life != self.life || self.engine.is_none() {
            return;
        }
        let Some((seq, rotated)) = self.disk.synced() else {
            return;
        };
        self.fact(&Fact::Durable(seq));
        self.feed(Input::Durable(seq));
        self.serving = true;
        if rotated {
            self.look_at_memory();
            self.feed(Input::Checkpoint);
        }
    }

    fn look_at_memory(&mut self) {
        let Some(engine) = &self.engine else { return };
        // One with a lost branch is kept apart, and longer.
        let lost =
            |view: &TransactionView| view.branches.iter().any(|b| b.state == BranchState::Lost);
        let remembered = engine.transactions(None).filter(|view| !lost(view)).count();
        let in_flight = engine.in_flight();
        self.fact(&Fact::Held {
            in_flight,
            in_flight_max: self.plan.shape.max_in_flight,
            remembered: remembered.saturating_sub(in_flight),
            remembered_max: self.plan.shape.max_remembered,
        });
    }

    pub(super) fn next_tick(&self) -> Option<u64> {
        let deadline = self.engine.as_ref()?.next_deadline()?;
        Some((self.born + deadline.0).max(self.now))
    }

    pub(super) fn tick(&mut self, at: u64) {
        self.now = at;
        self.feed(Input::Tick);
    }

    pub(super) fn call_arrives(&mut self, life: u32, ticket: Ticket, call: Input) {
        if life != self.life || !self.serving {
            let at = self.now + self.latency();
            return self.events.at(at, Event::CutOff { ticket });
        }
        self.fact(&Fact::Called(ticket));
        self.feed(call);
    }

    pub(super) fn dies_if(&mut self, life: u32) {
        if life == self.life {
            self.die();
        }
    }

    /// The process is gone: all that it knew, and what was not on the disk.
    pub(super) fn die(&mut self) {
        if self.engine.take().is_none() {
            return;
        }
        self.figures.coordinator_restarts += 1;
        if self.disk.is_syncing() {
            self.figures.deaths_while_syncing += 1;
        }
        let death = self.death;
        self.life += 1;
        (self.draining, self.serving) = (false, false);
        let (survived, torn) = self.disk.crash(death.keeps);
        self.figures.torn_batches += u64::from(torn);
        self.fact(&Fact::Died { survived });
        for link in 0..self.links.len() {
            if self.links[link].coordinator != Side::Closed {
                self.links[link].coordinator = Side::Closed;
                self.cut(link);
                self.events
                    .at(self.now + death.noticed_ms, Event::AgentNotices(link));
            }
        }
        let waiting: Vec<Ticket> = self.calls.keys().copied().collect();
        for ticket in waiting {
            let at = self.now + self.latency();
            self.events.at(at, Event::CutOff { ticket });
        }
        self.events.at(self.now + death.down_ms, Event::Starts);
    }

    /// It reads its log and starts.
    pub(super) fn start(&mut self) {
        if self.engine.is_some() {
            return;
        }
        self.life += 1;
        self.born = self.now;
        let first = self.disk.records().next().map_or(Seq(1), |(seq, _)| *seq);
        let replay = self.replay(1);
        if !replay.is_whole(first) {
            let problem = format!("the log begins at {} without a whole checkpoint", first.0);
            self.violation = Some(Violation::new("it_boots", problem));
            return;
        }
        let start = self.beginning();
        let settings = self.settings();
        let again = first_difference(
            portrait(self.replay(1).start(LOG, settings, start)),
            portrait(self.replay(2).start(LOG, settings, start)),
        );
        let engine = replay.start(LOG, settings, start);
        let epoch = engine.incarnation().epoch.0;
        self.engine = Some(engine);
        self.fact(&Fact::Started { epoch, again });
        self.drain();
        self.write();
        if self.dies_again > 0 {
            self.dies_again -= 1;
            self.figures.landed("dies_in_recovery");
            let at = self.now + self.disk_random.between(0, 5);
            self.events.at(at, Event::Dies { life: self.life });
        }
    }

    /// The log, folded; each record so often, one after the other to the end, and again from the beginning.
    fn replay(&self, times: usize) -> Replay {
        let mut replay = Replay::new();
        for _ in 0..times {
            for (seq, bytes) in self.disk.records() {
                let record = Record::decode(bytes);
                replay.apply(record.unwrap_or_else(|e| panic!("record {}: {e}", seq.0)));
            }
        }
        replay
    }

    fn beginning(&self) -> Start {
        Start {
            next_seq: Seq(self.disk.last().0 + 1),
            now: Moment(0),
            unix_ms: self.unix_ms(),
            seed: u128::from(self.life),
        }
    }

    pub(super) fn settings(&self) -> Settings {
        Settings {
            max_in_flight: self.plan.shape.max_in_flight,
            max_remembered: self.plan.shape.max_remembered,
            ..Settings::default()
        }
    }

    pub(super) fn begin_drain(&mut self, down_ms: u64) {
        if !self.serving || self.draining {
            return;
        }
        self.figures.landed("drains");
        self.draining = true;
        self.death = Death {
            down_ms,
            keeps: 16,
            noticed_ms: 1,
            drained_by: self.now + DRAIN_MS,
        };
        self.feed(Input::Drain);
        let life = self.life;
        self.events.at(self.now + 20, Event::Stops { life });
    }

    /// What waits is written before it ends.
    pub(super) fn stop_if_drained(&mut self, life: u32) {
        let Some(engine) = self.engine.as_ref().filter(|_| life == self.life) else {
            return;
        };
        if !engine.is_drained() && self.now < self.death.drained_by {
            return self.events.at(self.now + 20, Event::Stops { life });
        }
        if self.disk.is_idle() || self.now >= self.death.drained_by {
            return self.die();
        }
        self.write_if(true);
        self.events.at(self.now + 20, Event::Stops { life });
    }
}

/// All that an engine that has just started knows, and asks for.
fn portrait(mut engine: Engine) -> Vec<String> {
    let mut views: Vec<TransactionView> = engine.transactions(None).collect();
    // An operator's reason stands in his record; where a checkpoint carries what the participant had told before, it says less, and that is all.
    for view in &mut views {
        let steps = view.saga.iter_mut().flat_map(|saga| &mut saga.steps);
        steps.for_each(|step| step.resolution.clear());
    }
    let locks: Vec<LockView> = engine.locks(None).collect();
    let mut lines: Vec<String> = views.iter().map(|view| format!("{view:?}")).collect();
    lines.extend(locks.iter().map(|lock| format!("{lock:?}")));
    lines.push(format!("{:?}", engine.participants()));
    lines.push(format!("{:?}", engine.in_doubt()));
    while let Some(effect) = engine.poll_effect() {
        lines.push(format!("{effect:?}"));
    }
    lines
}

fn first_difference(once: Vec<String>, twice: Vec<String>) -> Option<String> {
    let differs = once.iter().zip(&twice).find(|(one, other)| one != other);
    match differs {
        Some((one, other)) => Some(format!("once: {one}; twice: {other}")),
        None if once.len() != twice.len() => {
            Some(format!("{} and {} things", once.len(), twice.len()))
        }
        None => None,
    }
}

/// What each batch to a participant tells beside its messages. Here every participant knows at once what any of them was told.
fn position(engine: &Engine) -> LogPosition {
    let Incarnation {
        log,
        epoch,
        instance,
    } = engine.incarnation();
    LogPosition {
        log,
        epoch,
        seq: engine.durable(),
        instance,
    }
}
