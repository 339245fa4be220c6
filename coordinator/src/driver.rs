//! The driver: one task that owns the engine. It receives, feeds, drains, and repeats; what an input means is the engine's business alone.
//!
//! Inputs are taken as many as there are; so the records of a turn go to the log as one batch, and each session gets all its messages as
//! one. While the log syncs, the next turn goes on.

use std::{
    collections::HashMap,
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::Sender as JobSender,
    },
};

use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinHandle,
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};
use unanimity_engine::{
    Answer, Downward, Effect, Engine, Event, Incarnation, Input, LogPosition, Moment, Opened,
    ParticipantName, Refusal, Seq, SessionId, Ticket, TransactionView,
};

use crate::{
    clock::{Clock, Now},
    error::Refused,
    exit,
    log::{Entry, Job, Report},
    outlet::{Batch, Outlet},
};

/// Commands taken in one turn.
const TURN: usize = 1_024;
/// Commands that may queue; past it, callers wait.
const QUEUE: usize = 8_192;
/// Changes that a watcher may lie behind.
const WATCH_LAG: usize = 4_096;

/// Reads the engine; must be short, since everything else waits.
type Query = Box<dyn FnOnce(&Engine) + Send>;
type Reply = oneshot::Sender<Result<Answer, Refusal>>;

enum Command {
    Inputs(Vec<Input>),
    Call {
        ticket: Ticket,
        reply: Reply,
        input: Input,
    },
    Forsaken(Ticket),
    Open {
        opened: Opened,
        outlet: Outlet,
    },
    Read(Query),
}

/// A change that watchers hear of.
pub(crate) type Change = Arc<TransactionView>;

/// What may be seen of the engine from outside at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The last durable record.
    pub(crate) durable: Seq,
    /// It was told to drain, and nothing is left to wait for.
    pub(crate) drained: bool,
}

/// Speaks with the driver.
#[derive(Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    changes: broadcast::Sender<Change>,
    progress: watch::Receiver<Progress>,
    tickets: Arc<AtomicU64>,
    sessions: Arc<AtomicU64>,
    clock: Clock,
    /// Whose engine it is.
    pub(crate) incarnation: Incarnation,
}

impl Handle {
    /// Makes a call and waits for its answer. Who drops this future forsakes the answer; what the call began goes on.
    pub(crate) async fn call(
        &self,
        input: impl FnOnce(Ticket) -> Input,
    ) -> Result<Answer, Refused> {
        let ticket = Ticket(self.tickets.fetch_add(1, Ordering::Relaxed));
        let (reply, answer) = oneshot::channel();
        let call = Command::Call {
            ticket,
            reply,
            input: input(ticket),
        };
        self.commands
            .send(call)
            .await
            .map_err(|_| Refused::Stopping)?;
        let mut waiting = Waiting {
            ticket,
            commands: Some(&self.commands),
        };
        let answer = answer.await;
        waiting.commands = None;
        Ok(answer.map_err(|_| Refused::Stopping)??)
    }

    /// Reads the engine.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Engine) -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let (reply, answer) = oneshot::channel();
        let query = Box::new(move |engine: &Engine| {
            // Who asked may have gone.
            let _ = reply.send(query(engine));
        });
        self.commands
            .send(Command::Read(query))
            .await
            .map_err(|_| Refused::Stopping)?;
        answer.await.map_err(|_| Refused::Stopping)
    }

    /// Feeds inputs that nobody waits for.
    pub(crate) async fn feed(&self, inputs: Vec<Input>) -> Result<(), Refused> {
        self.commands
            .send(Command::Inputs(inputs))
            .await
            .map_err(|_| Refused::Stopping)
    }

    /// Opens a session; what the engine has to say to it goes out by the outlet.
    pub(crate) async fn open(&self, opened: Opened, outlet: Outlet) -> Result<(), Refused> {
        self.commands
            .send(Command::Open { opened, outlet })
            .await
            .map_err(|_| Refused::Stopping)
    }

    /// A session id that was never used.
    pub(crate) fn new_session(&self) -> SessionId {
        SessionId(self.sessions.fetch_add(1, Ordering::Relaxed))
    }

    /// Now, on the engine's clock and on the world's.
    pub(crate) fn now(&self) -> Now {
        self.clock.now()
    }

    /// Changes from now on.
    pub(crate) fn watch(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Waits until the engine has come so far; an error if the driver ended before.
    pub(crate) async fn reached(
        &self,
        condition: impl FnMut(&Progress) -> bool,
    ) -> Result<(), Refused> {
        let mut progress = self.progress.clone();
        progress
            .wait_for(condition)
            .await
            .map(|_| ())
            .map_err(|_| Refused::Stopping)
    }
}

/// Forsakes its ticket when the call's future is dropped before its answer.
struct Waiting<'a> {
    ticket: Ticket,
    commands: Option<&'a mpsc::Sender<Command>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(commands) = self.commands {
            // Where the queue is full the ticket is answered into the void, which does no harm.
            let _ = commands.try_send(Command::Forsaken(self.ticket));
        }
    }
}

/// The running driver.
pub(crate) struct Running {
    /// Speaks with it.
    pub(crate) handle: Handle,
    /// Ends it: sessions are closed, calls that wait are cut off, records that wait are handed to the log.
    pub(crate) stop: CancellationToken,
    /// Ends with it. Only the driver answers, so where it panics nobody is told anything more.
    pub(crate) task: JoinHandle<()>,
}

/// Starts the driver of an engine.
pub(crate) fn start(
    engine: Engine,
    clock: Clock,
    log: JobSender<Job>,
    reports: mpsc::UnboundedReceiver<Report>,
) -> Running {
    let (commands, queue) = mpsc::channel(QUEUE);
    let (changes, _) = broadcast::channel(WATCH_LAG);
    let (gauge, progress) = watch::channel(seen(&engine));
    let stop = CancellationToken::new();
    let handle = Handle {
        commands,
        changes: changes.clone(),
        progress,
        tickets: Arc::new(AtomicU64::new(1)),
        sessions: Arc::new(AtomicU64::new(1)),
        clock,
        incarnation: engine.incarnation(),
    };
    let driver = Driver {
        engine,
        clock,
        log,
        changes,
        gauge,
        waiting: HashMap::new(),
        outlets: HashMap::new(),
        records: Vec::new(),
        outbound: HashMap::new(),
    };
    let stopped = stop.clone();
    let task = tokio::spawn(driver.run(queue, reports, stopped));
    Running { handle, stop, task }
}

fn seen(engine: &Engine) -> Progress {
    Progress {
        durable: engine.durable(),
        drained: engine.is_drained(),
    }
}

struct Driver {
    engine: Engine,
    clock: Clock,
    log: JobSender<Job>,
    changes: broadcast::Sender<Change>,
    gauge: watch::Sender<Progress>,
    /// Who waits for which answer.
    waiting: HashMap<Ticket, Reply>,
    outlets: HashMap<SessionId, (ParticipantName, Outlet)>,
    /// Of this turn.
    records: Vec<Entry>,
    /// Of this turn.
    outbound: HashMap<SessionId, Vec<Downward>>,
}

impl Driver {
    async fn run(
        mut self,
        mut queue: mpsc::Receiver<Command>,
        mut reports: mpsc::UnboundedReceiver<Report>,
        stop: CancellationToken,
    ) {
        let mut commands = Vec::with_capacity(TURN);
        self.drain();
        self.hand_over();
        loop {
            let wake = self
                .clock
                .instant(self.engine.next_deadline().unwrap_or(Moment(u64::MAX)));
            let report = tokio::select! {
                () = stop.cancelled() => break,
                report = reports.recv() => report,
                taken = queue.recv_many(&mut commands, TURN) => {
                    if taken == 0 {
                        break; // Nobody is left who could ask or tell anything.
                    }
                    None
                }
                () = sleep_until(wake) => None,
            };
            for report in report
                .into_iter()
                .chain(std::iter::from_fn(|| reports.try_recv().ok()))
            {
                self.heard(report);
            }
            for command in commands.drain(..) {
                self.obey(command);
            }
            if self
                .engine
                .next_deadline()
                .is_some_and(|deadline| deadline <= self.clock.moment())
            {
                self.feed(Input::Tick);
            }
            self.hand_over();
        }
        for (_, outlet) in self.outlets.values() {
            outlet.close(Refused::Stopping);
        }
    }

    fn heard(&mut self, report: Report) {
        match report {
            Report::Durable(seq) => self.feed(Input::Durable(seq)),
            Report::Rotated => {
                failpoint!("coordinator.checkpoint.before");
                self.feed(Input::Checkpoint);
                failpoint!("coordinator.checkpoint.after");
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Inputs(inputs) => inputs.into_iter().for_each(|input| self.feed(input)),
            Command::Call {
                ticket,
                reply,
                input,
            } => {
                failpoint!("coordinator.call.received");
                self.waiting.insert(ticket, reply);
                self.feed(input);
            }
            Command::Forsaken(ticket) => {
                self.waiting.remove(&ticket);
            }
            Command::Open { opened, outlet } => {
                self.outlets
                    .insert(opened.session, (opened.participant.clone(), outlet));
                self.feed(Input::SessionOpened(opened));
            }
            Command::Read(query) => query(&self.engine),
        }
    }

    fn feed(&mut self, input: Input) {
        if let Input::SessionClosed(session) = &input {
            failpoint!("coordinator.session.closed");
            self.outlets.remove(session);
        }
        self.engine.handle(self.clock.moment(), input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(effect) = self.engine.poll_effect() {
            match effect {
                Effect::Append {
                    seq,
                    record,
                    forced,
                } => self.records.push(Entry {
                    seq,
                    record,
                    forced,
                }),
                Effect::Send { session, message } => {
                    self.outbound.entry(session).or_default().push(message)
                }
                Effect::Answer { ticket, answer } => {
                    failpoint!("coordinator.answer.before");
                    if let Some(reply) = self.waiting.remove(&ticket) {
                        // Who asked may have gone.
                        let _ = reply.send(answer);
                    }
                }
                Effect::Close { session, refusal } => self.close(session, refusal),
                Effect::Trim(seq) => self.to_log(Job::Trim(seq)),
                Effect::Halt {
                    participant,
                    seen,
                    found,
                } => old_copy(&participant, seen, found),
                Effect::Report(event) => self.tell(event),
            }
        }
    }

    /// At the end of a turn: all records as one batch, all messages of a session as one.
    fn hand_over(&mut self) {
        if !self.records.is_empty() {
            let records = std::mem::take(&mut self.records);
            self.to_log(Job::Append(records));
        }
        for (session, messages) in self.outbound.drain() {
            if let Some((_, outlet)) = self.outlets.get(&session) {
                let durable = self.engine.durable();
                outlet.send(Batch { messages, durable });
            }
        }
        let now = seen(&self.engine);
        self.gauge
            .send_if_modified(|before| std::mem::replace(before, now) != now);
    }

    /// The log thread outlives the driver; where it doesn't, the process is ending.
    fn to_log(&self, job: Job) {
        let _ = self.log.send(job);
    }

    fn close(&mut self, session: SessionId, refusal: Refusal) {
        if let Some((participant, outlet)) = self.outlets.remove(&session) {
            warn!(%participant, session = session.0, %refusal, "session closed");
            outlet.close(refusal.into());
        }
    }

    fn tell(&self, event: Event) {
        match event {
            Event::Changed(transaction, state) => {
                debug!(%transaction, ?state, "transaction changed");
                if self.changes.receiver_count() > 0
                    && let Some(view) = self.engine.transaction(&transaction)
                {
                    // The last watcher may have gone in between.
                    let _ = self.changes.send(Arc::new(view));
                }
            }
            Event::Heuristic {
                key,
                participant,
                state,
                message,
            } => {
                error!(branch = %key, %participant, ?state, message, "a branch went against the decision; a human must look");
            }
            Event::Stuck {
                transaction,
                step,
                compensation,
                message,
            } => {
                let what = if compensation {
                    "compensation"
                } else {
                    "action"
                };
                error!(%transaction, step, what, message, "a saga's step is tried again and again in vain; a human must look");
            }
            Event::Untouchable {
                participant,
                identifier,
                why,
            } => {
                warn!(%participant, identifier, ?why, "a prepared branch was found that is not ours to settle");
            }
            Event::Retrying {
                key,
                participant,
                attempts,
                message,
            } => {
                debug!(branch = %key, %participant, attempts, message, "the decision is sent again");
            }
            Event::PeerMistake { session, mistake } => {
                let participant = self.outlets.get(&session).map(|(name, _)| name.as_str());
                warn!(
                    participant,
                    session = session.0,
                    mistake,
                    "a participant's message was refused"
                );
            }
        }
    }
}

/// Ends the process before it presumes the abort of what a lost record decided to commit.
fn old_copy(participant: &ParticipantName, seen: LogPosition, found: Seq) -> ! {
    error!(
        %participant,
        log = %seen.log,
        seen = seen.seq.0,
        seen_epoch = seen.epoch.0,
        found = found.0,
        "this data directory is an old copy: the participant was told of a record of this log that is not in it. Nothing was decided. Bring the \
         newest directory back; where it is lost, start with an empty one and settle by hand what participants hold prepared"
    );
    process::exit(exit::LOG_DAMAGED.into())
}
