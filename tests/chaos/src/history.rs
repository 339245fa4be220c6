//! What was asked for, what clients were told, and what was ever said of each transaction.
//!
//! A request is written down before it is sent, so that a row in a database that nobody asked for is seen. The same lines go to a file, for
//! people who look for what went wrong.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    time::Instant,
};

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use serde_json::{Value, json};
use unanimity_client::{Snapshot, TransactionState};

use crate::{check::Violation, work::Work};

/// What a client was told of its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Every part is done, or durably decided.
    Committed { transaction: String },
    /// Nothing was done, and nothing will be.
    Aborted,
    /// It was refused before it began.
    NotTaken,
    /// What was done is undone.
    Compensated,
    /// A branch went against the decision.
    Heuristic { transaction: String },
    /// Nothing is certain.
    Unknown,
}

impl Told {
    /// For the figures.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Committed { .. } => "committed",
            Self::Aborted => "aborted",
            Self::NotTaken => "not taken",
            Self::Compensated => "compensated",
            Self::Heuristic { .. } => "heuristic",
            Self::Unknown => "unknown",
        }
    }
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) work: Work,
    /// `None` while it is on its way.
    pub(crate) told: Option<Told>,
    /// It was unknown at first.
    pub(crate) was_unknown: bool,
}

/// An outcome that can't change any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Committed,
    Aborted,
    Compensated,
    Heuristic,
}

impl Outcome {
    /// `None` where it is open still.
    pub(crate) fn of(state: TransactionState) -> Option<Self> {
        match state {
            TransactionState::Committing | TransactionState::Committed => Some(Self::Committed),
            TransactionState::Aborting | TransactionState::Aborted => Some(Self::Aborted),
            TransactionState::Compensated => Some(Self::Compensated),
            TransactionState::Heuristic => Some(Self::Heuristic),
            TransactionState::Unspecified
            | TransactionState::Active
            | TransactionState::Waiting
            | TransactionState::Preparing
            | TransactionState::Running
            | TransactionState::Compensating => None,
        }
    }
}

/// A transaction, as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) outcome: Outcome,
    /// Where the coordinator said it.
    pub(crate) request: Option<String>,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct History {
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    requests: HashMap<String, Request>,
    /// One write-once register for each transaction.
    seen: HashMap<String, Seen>,
    changes: Vec<Violation>,
    file: Option<BufWriter<File>>,
}

impl State {
    fn write(&mut self, line: &Value) {
        // Without the file the checks are the same.
        if let Some(file) = &mut self.file {
            let _ = writeln!(file, "{line}");
        }
    }
}

impl History {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// From now on lines go to this file.
    ///
    /// # Errors
    /// Where it can't be made.
    pub(crate) fn write_to(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("{}", path.display()))?;
        let before = self.state.lock().file.replace(BufWriter::new(file));
        before.map_or(Ok(()), |mut file| file.flush())?;
        Ok(())
    }

    /// Brings all lines to the file.
    pub(crate) fn flush(&self) {
        if let Some(file) = &mut self.state.lock().file {
            let _ = file.flush();
        }
    }

    fn now(&self) -> u128 {
        self.start.elapsed().as_millis()
    }

    /// Something is about to be asked for.
    pub(crate) fn asked(&self, work: &Work) {
        let effects: Vec<_> = work
            .effects
            .iter()
            .map(|effect| json!([effect.bank, effect.part, effect.account, effect.amount]))
            .collect();
        let shape = format!("{:?}", work.shape);
        let line =
            json!({"at_ms": self.now(), "asked": work.request, "shape": shape, "effects": effects});
        let mut state = self.state.lock();
        state.write(&line);
        let request = Request {
            work: work.clone(),
            told: None,
            was_unknown: false,
        };
        state.requests.insert(work.request.clone(), request);
    }

    /// The client has an answer.
    pub(crate) fn told(&self, request: &str, told: Told, why: &str) {
        let line =
            json!({"at_ms": self.now(), "told": request, "outcome": told.name(), "why": why});
        let mut state = self.state.lock();
        state.write(&line);
        if let Told::Committed { transaction } | Told::Heuristic { transaction } = &told {
            let outcome = match &told {
                Told::Committed { .. } => Outcome::Committed,
                _ => Outcome::Heuristic,
            };
            state.see(transaction.clone(), outcome, Some(request.to_owned()));
        }
        if let Some(request) = state.requests.get_mut(request) {
            request.was_unknown |= told == Told::Unknown;
            request.told = Some(told);
        }
    }

    /// A transaction was looked at.
    pub(crate) fn looked(&self, snapshot: &Snapshot) {
        let Some(outcome) = Outcome::of(snapshot.state) else {
            return;
        };
        let id = snapshot.transaction_id.clone();
        let request = snapshot.request_id.clone();
        let line = json!({"at_ms": self.now(), "looked": id, "request": request, "outcome": format!("{outcome:?}")});
        let mut state = self.state.lock();
        if state.see(id, outcome, request) {
            state.write(&line);
        }
    }

    /// Something else that happened, for people.
    pub(crate) fn event(&self, what: &str, details: &str) {
        let line = json!({"at_ms": self.now(), "event": what, "details": details});
        self.state.lock().write(&line);
    }

    /// Everything, for the checks.
    pub(crate) fn view(&self) -> View {
        let state = self.state.lock();
        View {
            requests: state.requests.clone(),
            seen: state.seen.clone(),
            changes: state.changes.clone(),
        }
    }

    /// How many there were.
    pub(crate) fn requests(&self) -> usize {
        self.state.lock().requests.len()
    }
}

impl State {
    /// True where it is new.
    fn see(&mut self, id: String, outcome: Outcome, request: Option<String>) -> bool {
        match self.seen.get_mut(&id) {
            None => {
                self.seen.insert(id, Seen { outcome, request });
                true
            }
            Some(seen) => {
                if seen.request.is_none() {
                    seen.request = request;
                }
                let same = seen.outcome == outcome;
                if !same {
                    self.changes.push(Violation::OutcomeChanged {
                        transaction: id,
                        before: seen.outcome,
                        after: outcome,
                    });
                    seen.outcome = outcome;
                }
                !same
            }
        }
    }
}

/// The history as it stood.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) requests: HashMap<String, Request>,
    pub(crate) seen: HashMap<String, Seen>,
    pub(crate) changes: Vec<Violation>,
}
