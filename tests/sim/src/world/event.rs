//! What is going to happen, in the order of time; at the same time, in the order in which it was said.

use std::collections::BTreeMap;

use unanimity_engine::{Answer, Downward, Found, Input, Refusal, Ticket, Upward};

/// One thing to come.
#[derive(Debug)]
pub(super) enum Event {
    /// A client makes its request.
    Asks(usize),
    /// A fault of the plan, by its index.
    Befalls(usize),
    /// All faults end.
    Heals,
    /// An operator looks at what is stuck.
    Operates,
    /// The coordinator's process starts.
    Starts,
    /// It dies, if it is still that incarnation.
    Dies { life: u32 },
    /// It ends in good order once it has drained.
    Stops { life: u32 },
    /// A sync has ended.
    Synced { life: u32 },
    /// Records that nothing waits for are written.
    WritesLazily { life: u32 },
    /// A call reaches the coordinator.
    Calls {
        life: u32,
        ticket: Ticket,
        call: Box<Input>,
    },
    /// An answer reaches a client.
    Replies {
        ticket: Ticket,
        answer: Box<Result<Answer, Refusal>>,
    },
    /// A client learns that its call has no answer.
    CutOff { ticket: Ticket },
    /// A client looks after its request, if it has not since.
    Wakes { client: usize, turn: u32 },
    /// A message reaches the coordinator.
    Up { link: usize, message: Upward },
    /// A message reaches an agent.
    Down { link: usize, message: Downward },
    /// An agent has done its work.
    Works(Box<Work>),
    /// A hello reaches the coordinator.
    Hello { link: usize, in_doubt: Vec<Found> },
    /// The coordinator notices that a session is over.
    CoordinatorNotices(usize),
    /// An agent does.
    AgentNotices(usize),
    /// An agent opens a session.
    Dials {
        site: usize,
        agent: usize,
        life: u32,
    },
    /// An agent's process starts.
    AgentStarts { site: usize, agent: usize },
}

/// Work that an agent has been at.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) link: usize,
    pub(super) message: Downward,
    /// It is dead; what it had sent to its database takes effect all the same, and nobody hears of it.
    pub(super) late: bool,
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Events {
    queue: BTreeMap<(u64, u64), Event>,
    next: u64,
}

impl Events {
    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.queue.insert((at, self.next), event);
        self.next += 1;
    }

    pub(super) fn next(&self) -> Option<u64> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        self.queue.pop_first().map(|(_, event)| event)
    }

    /// Those for whom `chosen` holds.
    pub(super) fn retain(&mut self, mut chosen: impl FnMut(&mut Event) -> bool) {
        self.queue.retain(|_, event| chosen(event));
    }
}
