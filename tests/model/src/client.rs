//! A client: it sends a request, sends it again when the reply was lost, and remembers what it was told.

use std::collections::{BTreeMap, BTreeSet};

use unanimity_engine::{Answer, Refusal, Ticket, TransactionId, TransactionState};

/// What a client was told of a transaction. Nothing that comes later may contradict it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Told {
    /// It is decided to commit, or the saga is done.
    Committed,
    /// It will not commit.
    Aborted,
    /// The saga has begun and will come to an end.
    Accepted,
    /// Nothing is left of the saga.
    Compensated,
    /// A branch went against the decision.
    Heuristic,
}

impl Told {
    /// What a state says that is worth remembering.
    pub(crate) fn of(state: TransactionState) -> Option<Self> {
        match state {
            TransactionState::Committing | TransactionState::Committed => Some(Told::Committed),
            TransactionState::Aborting | TransactionState::Aborted => Some(Told::Aborted),
            TransactionState::Running => Some(Told::Accepted),
            TransactionState::Compensated => Some(Told::Compensated),
            TransactionState::Heuristic => Some(Told::Heuristic),
            TransactionState::Active
            | TransactionState::Waiting
            | TransactionState::Preparing
            | TransactionState::Compensating => None,
        }
    }

    /// Whether the second may be told after the first.
    fn may_become(self, later: Told) -> bool {
        self == later
            || matches!(self, Told::Accepted)
            || matches!(
                (self, later),
                (Told::Committed, Told::Heuristic) | (Told::Aborted, Told::Heuristic)
            )
    }
}

/// The client of one request.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub(crate) struct Client {
    /// How often it was sent.
    pub(crate) sent: u8,
    /// Calls made so far.
    pub(crate) calls: u64,
    /// The transactions that may have come of it.
    pub(crate) ids: BTreeSet<TransactionId>,
    /// Of an interactive one: its id, once the client knows it.
    pub(crate) open: Option<TransactionId>,
    /// Operations that were answered, by transaction.
    pub(crate) done: BTreeMap<TransactionId, usize>,
    /// It waits for an operation.
    pub(crate) busy: Option<Ticket>,
    /// It has asked for the commit, or given up.
    pub(crate) closed: bool,
    answered: BTreeSet<Ticket>,
    pub(crate) told: BTreeMap<TransactionId, Told>,
}

impl Client {
    /// Takes an answer in; says what is wrong with it.
    pub(crate) fn hear(
        &mut self,
        ticket: Ticket,
        answer: Result<Answer, Refusal>,
    ) -> Option<String> {
        if !self.answered.insert(ticket) {
            return Some(format!("{ticket:?} was answered twice"));
        }
        if self.busy == Some(ticket) {
            self.busy = None;
            match &answer {
                Ok(_) => *self.done.entry(self.open?).or_default() += 1,
                Err(_) => self.closed = true,
            }
        }
        let Ok(Answer::Transaction(view)) = answer else {
            return None;
        };
        if view.state == TransactionState::Active && self.open != Some(view.id) {
            self.open = Some(view.id);
            self.closed = false;
        }
        let told = Told::of(view.state)?;
        let before = self.told.insert(view.id, told);
        before
            .filter(|before| !before.may_become(told))
            .map(|before| format!("was told {before:?}, and then {told:?}"))
    }

    /// Operations that were answered in this transaction.
    pub(crate) fn done(&self, id: TransactionId) -> usize {
        self.done.get(&id).copied().unwrap_or_default()
    }

    /// The coordinator is gone, and with it every call that waited.
    pub(crate) fn cut(&mut self) {
        if self.busy.take().is_some() {
            self.closed = true;
        }
    }
}
