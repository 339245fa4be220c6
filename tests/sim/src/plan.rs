//! What happens in a life from outside: requests and faults, drawn ahead from the seed and numbered, so that any of them can be left out.
//!
//! What follows from them (latencies, which message a fault hits) is drawn as the life goes on. Leaving an entry out is therefore another life of
//! the same seed, and a smaller one.

mod draw;
mod saga;

use unanimity_engine::{LockKey, StepDefinition};

use crate::work::Work;

pub(crate) use draw::{ACCOUNTS, draw};

/// When faults end, at the latest.
pub(crate) const HEALS_MS: u64 = 30_000;

/// A whole life's plan.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) shape: Shape,
    pub(crate) entries: Vec<Entry>,
}

/// One thing that happens from outside.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) number: usize,
    pub(crate) at: u64,
    pub(crate) act: Act,
}

#[derive(Clone, Debug)]
pub(crate) enum Act {
    Ask(Request),
    Fault(Fault),
}

/// What sorts of requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Workload {
    /// Transfers and reads, submitted whole.
    Bank,
    /// Transactions that are opened, worked in, and committed.
    Interactive,
    /// Sagas with locks, groups and compensations.
    Saga,
    /// All of these.
    Mixed,
}

/// What stands where.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) sites: Vec<SiteShape>,
    /// Records of a segment of the log.
    pub(crate) segment: usize,
    pub(crate) max_in_flight: usize,
    pub(crate) max_remembered: usize,
    /// The least and the most that a message takes, in milliseconds.
    pub(crate) latency: (u64, u64),
    /// The most that a sync takes.
    pub(crate) sync_ms: u64,
    pub(crate) locks: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct SiteShape {
    pub(crate) name: &'static str,
    pub(crate) one_phase: bool,
    pub(crate) settles: bool,
    pub(crate) proves: bool,
    pub(crate) capacity: u32,
    pub(crate) agents: usize,
}

/// What a client wants.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// It has a request id, so it may be sent again.
    pub(crate) keyed: bool,
    /// To be answered at the decision, or at the saga's beginning.
    pub(crate) early: bool,
    pub(crate) timeout_ms: u64,
    /// How long the client waits for a reply.
    pub(crate) patience_ms: u64,
    pub(crate) ask: Ask,
}

#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Submit(Vec<(usize, Work)>),
    Interactive {
        /// Named when it begins.
        sites: Vec<usize>,
        operations: Vec<(usize, Work)>,
        ends: Ends,
        /// A service joins it at this site.
        enlists: Option<usize>,
    },
    Saga {
        steps: Vec<StepDefinition>,
        locks: Vec<LockKey>,
        lock_timeout_ms: u64,
    },
}

/// How an interactive transaction's client ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    Commits,
    Aborts,
    /// It is never heard of again.
    Vanishes,
}

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the coordinator.
    Up,
    /// To an agent.
    Down,
}

/// What a saga's step does other than what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mishap {
    /// No effect, and says so.
    Fails,
    /// No effect, and it says that it can't tell.
    UnknownWithout,
    /// It took effect, and it says that it can't tell.
    UnknownWith,
    /// No effect yet, and it says so.
    Works,
    /// No effect, and no word.
    SilentWithout,
    /// It took effect, and no word.
    SilentWith,
}

/// Something that goes wrong, or that somebody does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The coordinator's process dies. `keeps`, in sixteenths: how much of the batch that was being synced has reached the disk. It dies again while it
    /// recovers, so often.
    CoordinatorDies {
        down_ms: u64,
        keeps: u64,
        again: u8,
        noticed_ms: u64,
    },
    /// The next sync fails, which ends the process.
    SyncFails { down_ms: u64, keeps: u64 },
    /// The next sync takes so long.
    SyncIsSlow { ms: u64 },
    /// It is told to drain, and ends in good order.
    Drains { down_ms: u64 },
    /// A checkpoint is begun though no segment is full.
    Checkpoints,
    /// An agent's process dies. `late`: what it had sent to its database takes effect all the same.
    AgentDies {
        site: usize,
        agent: usize,
        down_ms: u64,
        noticed_ms: u64,
        late: bool,
    },
    /// A session breaks; the sides notice at different times.
    SessionBreaks {
        site: usize,
        agent: usize,
        up_ms: u64,
        down_ms: u64,
    },
    /// Nothing gets through for so long.
    Partition { site: usize, agent: usize, ms: u64 },
    /// A database can't be reached for so long.
    DatabaseAway { site: usize, ms: u64 },
    /// The next message is lost, though its session lives.
    Drop { site: usize, way: Way },
    /// The next message comes twice.
    Duplicate {
        site: usize,
        way: Way,
        after_ms: u64,
    },
    /// The next message comes so much later, and others overtake it.
    Delay { site: usize, way: Way, ms: u64 },
    /// An agent's next work takes so long.
    WorkIsSlow { site: usize, ms: u64 },
    /// The next decision can't be carried out yet.
    Busy { site: usize },
    /// The next branch runs into a conflict.
    Conflict { site: usize },
    /// A step goes wrong.
    StepFails { site: usize, mishap: Mishap },
    /// Somebody ends a prepared branch at the database's console.
    ByHand { site: usize, commit: bool },
    /// A prepared branch that is not this coordinator's appears.
    Foreign { site: usize, newer: bool },
    /// The next reply to a client is lost.
    ReplyLost,
    /// The next call of a client is lost.
    CallLost,
    /// An operator hurries a transaction.
    OperatorRetries,
    /// An operator ends a branch by hand, and says so.
    OperatorResolves { commit: bool },
    /// An operator does a saga's step by hand, and says so.
    OperatorResolvesStep,
    /// A client aborts a transaction, or cancels a saga.
    Cancel,
    /// A client asks what became of an earlier transaction.
    Lookup,
}

impl Fault {
    /// The same, over in so many milliseconds at the latest.
    pub(crate) fn until(mut self, left: u64) -> Self {
        match &mut self {
            Fault::CoordinatorDies {
                down_ms,
                noticed_ms,
                ..
            }
            | Fault::AgentDies {
                down_ms,
                noticed_ms,
                ..
            } => {
                *down_ms = left.min(*down_ms);
                *noticed_ms = left.min(*noticed_ms);
            }
            Fault::SessionBreaks { up_ms, down_ms, .. } => {
                *up_ms = left.min(*up_ms);
                *down_ms = left.min(*down_ms);
            }
            Fault::SyncFails { down_ms: ms, .. }
            | Fault::Drains { down_ms: ms }
            | Fault::SyncIsSlow { ms }
            | Fault::Partition { ms, .. }
            | Fault::DatabaseAway { ms, .. }
            | Fault::Duplicate { after_ms: ms, .. }
            | Fault::Delay { ms, .. }
            | Fault::WorkIsSlow { ms, .. } => *ms = left.min(*ms),
            Fault::Checkpoints
            | Fault::Drop { .. }
            | Fault::Busy { .. }
            | Fault::Conflict { .. }
            | Fault::StepFails { .. }
            | Fault::ByHand { .. }
            | Fault::Foreign { .. }
            | Fault::ReplyLost
            | Fault::CallLost
            | Fault::OperatorRetries
            | Fault::OperatorResolves { .. }
            | Fault::OperatorResolvesStep
            | Fault::Cancel
            | Fault::Lookup => {}
        }
        self
    }
}
