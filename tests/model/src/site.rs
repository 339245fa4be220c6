//! A participant: its database, which outlives every crash, and its agent with a session, which do not. It does what the participant library
//! promises (a vote is kept, a marker makes a step happen once, asking for proof fences), and nothing of how.

use std::collections::{BTreeMap, VecDeque};

use unanimity_engine::{
    AbortCode, AbortReason, BranchKey, Completion, Downward, Found, LockKey, LogPosition,
    SessionId, StepOutcome, TransactionId, Upward, Vote,
};

/// What it makes of a message that leaves it a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Manner {
    /// Does it.
    Well,
    /// Says no.
    Refuses,
    /// Changed nothing, and votes so.
    ReadsOnly,
    /// Can't now; later perhaps.
    Later,
    /// Has lost a branch that was prepared.
    Loses,
    /// Votes yes and keeps nothing: a broken participant, to see that it is noticed.
    #[cfg_attr(not(test), allow(dead_code, reason = "only tests have one"))]
    Lies,
}

/// A branch in its database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Local {
    /// Takes operations; ends with the agent's session.
    Open,
    /// Prepared, on this session.
    Prepared(SessionId),
    /// Committed.
    Committed,
    /// Rolled back. An agent that crashes forgets it.
    Aborted,
    /// Over at its vote.
    ReadOnly,
    /// It was prepared, and is gone.
    Lost,
}

/// A marker row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Marker {
    /// The effect is there.
    Done,
    /// It never will be.
    Fenced,
}

/// An effect of a saga, in the order in which the databases committed them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Deed {
    /// Of which saga.
    pub(crate) saga: TransactionId,
    /// The action's branch number.
    pub(crate) step: u32,
    /// It undid it.
    pub(crate) undid: bool,
    /// The saga's locks.
    pub(crate) locks: Vec<LockKey>,
}

/// A participant.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Site {
    pub(crate) session: Option<SessionId>,
    pub(crate) branches: BTreeMap<BranchKey, Local>,
    pub(crate) markers: BTreeMap<BranchKey, Marker>,
    /// Request ids in the marker rows.
    requests: BTreeMap<String, TransactionId>,
    /// On its way here. What came on a session that is over is stray: it may still be worked off, or never.
    pub(crate) inbox: Vec<(SessionId, Downward)>,
    /// On its way to the coordinator.
    pub(crate) outbox: VecDeque<Upward>,
    /// How far its agent has seen the log go.
    pub(crate) seen: Option<LogPosition>,
    /// Sessions so far.
    pub(crate) opened: u64,
}

impl Site {
    pub(crate) fn new() -> Self {
        Site {
            session: None,
            branches: BTreeMap::new(),
            markers: BTreeMap::new(),
            requests: BTreeMap::new(),
            inbox: Vec::new(),
            outbox: VecDeque::new(),
            seen: None,
            opened: 0,
        }
    }

    /// Puts a branch into its database that nobody here knows of.
    pub(crate) fn plant(&mut self, key: BranchKey) {
        self.branches.insert(key, Local::Prepared(SessionId(0)));
    }

    pub(crate) fn in_doubt(&self) -> Vec<Found> {
        let prepared = |(_, local): &(&BranchKey, &Local)| matches!(local, Local::Prepared(_));
        let found = |(key, _): (&BranchKey, &Local)| Found {
            identifier: key.to_string(),
            key: Some(*key),
        };
        self.branches.iter().filter(prepared).map(found).collect()
    }

    /// Whether a message is left on the session that is open.
    pub(crate) fn is_quiet(&self) -> bool {
        let fresh = |(session, _): &(SessionId, Downward)| Some(*session) == self.session;
        self.outbox.is_empty() && !self.inbox.iter().any(fresh)
    }

    /// Its session is over; `strays`: what was on its way here may yet arrive. Branches that are open end with it.
    pub(crate) fn cut(&mut self, strays: bool) {
        self.session = None;
        self.outbox.clear();
        self.branches.retain(|_, local| *local != Local::Open);
        self.inbox.retain(|(_, message)| {
            strays && !matches!(message, Downward::ListInDoubt | Downward::Execute { .. })
        });
    }

    /// The agent dies: its database is all that is left.
    pub(crate) fn crash(&mut self) {
        self.cut(false);
        self.seen = None;
        self.branches.retain(|_, local| *local != Local::Aborted);
    }

    /// Works off a message; its answer goes out where the session that brought it is open still.
    pub(crate) fn work(
        &mut self,
        session: SessionId,
        message: Downward,
        manner: Manner,
        deeds: &mut Vec<Deed>,
    ) {
        let answer = self.answer(session, message, manner, deeds);
        if self.session == Some(session) {
            self.outbox.extend(answer);
        }
    }

    fn answer(
        &mut self,
        session: SessionId,
        message: Downward,
        manner: Manner,
        deeds: &mut Vec<Deed>,
    ) -> Option<Upward> {
        Some(match message {
            Downward::Prepare {
                key,
                one_phase,
                request_id,
                continued,
                ..
            } => {
                let vote = if one_phase {
                    self.commit_in_one_phase(key, continued, &request_id, manner)
                } else {
                    self.prepare(key, continued, session, manner)
                };
                Upward::Vote { key, vote }
            }
            Downward::Commit { key, .. } => {
                let completion = self.commit(key, manner);
                Upward::Completion { key, completion }
            }
            Downward::Abort { key, .. } => {
                let completion = self.abort(key);
                Upward::Completion { key, completion }
            }
            Downward::Execute {
                key,
                sequence,
                open,
                ..
            } => {
                let result = self.execute(key, open, manner);
                Upward::Executed {
                    key,
                    sequence,
                    result,
                }
            }
            Downward::Prove { key } => {
                let completion = match self.markers.entry(key).or_insert(Marker::Fenced) {
                    Marker::Done => Completion::Committed,
                    Marker::Fenced => Completion::Aborted,
                };
                Upward::Proof { key, completion }
            }
            Downward::ListInDoubt => Upward::InDoubt(self.in_doubt()),
            Downward::RunStep {
                key,
                compensates,
                locks,
                attempt,
                ..
            } => {
                let (action, undid) = match compensates {
                    None => (key.branch, false),
                    Some(compensates) => (compensates.branch, true),
                };
                let deed = Deed {
                    saga: key.transaction,
                    step: action,
                    undid,
                    locks,
                };
                let outcome = self.run_step(key, deed, manner, deeds);
                Upward::StepResult {
                    key,
                    attempt,
                    outcome,
                }
            }
            Downward::SettleStep { key, attempt, .. } => {
                let outcome = match self.markers.entry(key).or_insert(Marker::Fenced) {
                    Marker::Done => done(),
                    Marker::Fenced => StepOutcome::Never,
                };
                Upward::StepResult {
                    key,
                    attempt,
                    outcome,
                }
            }
            Downward::Welcome(_) | Downward::Enlisted { .. } => return None,
        })
    }

    fn execute(
        &mut self,
        key: BranchKey,
        open: bool,
        manner: Manner,
    ) -> Result<unanimity_engine::Payload, AbortReason> {
        match self.branches.get(&key) {
            Some(Local::Open) => {}
            None if open => _ = self.branches.insert(key, Local::Open),
            Some(_) | None => return Err(reason(AbortCode::BranchLost)),
        }
        if manner == Manner::Refuses {
            self.branches.remove(&key);
            return Err(reason(AbortCode::Refused));
        }
        Ok([].into())
    }

    fn prepare(
        &mut self,
        key: BranchKey,
        continued: bool,
        session: SessionId,
        manner: Manner,
    ) -> Vote {
        match self.branches.get(&key) {
            Some(Local::Prepared(_)) => return yes(),
            Some(Local::Open) if continued => {}
            None if !continued => {}
            Some(_) | None => return Vote::No(reason(AbortCode::BranchLost)),
        }
        let (local, vote) = match manner {
            Manner::ReadsOnly => (Local::ReadOnly, Vote::ReadOnly),
            Manner::Refuses | Manner::Later => {
                (Local::Aborted, Vote::No(reason(AbortCode::Refused)))
            }
            Manner::Lies => (Local::Aborted, yes()),
            Manner::Well | Manner::Loses => (Local::Prepared(session), yes()),
        };
        self.branches.insert(key, local);
        vote
    }

    fn commit_in_one_phase(
        &mut self,
        key: BranchKey,
        continued: bool,
        request: &str,
        manner: Manner,
    ) -> Vote {
        match self.markers.get(&key) {
            Some(Marker::Done) => return Vote::Committed,
            Some(Marker::Fenced) => {
                self.branches.insert(key, Local::Aborted);
                return Vote::No(reason(AbortCode::BranchLost));
            }
            None => {}
        }
        let ready = if continued { Some(Local::Open) } else { None };
        if self.branches.get(&key).copied() != ready {
            return Vote::No(reason(AbortCode::BranchLost));
        }
        if let Some(first) = self.requests.get(request) {
            self.branches.insert(key, Local::Aborted);
            return Vote::Duplicate(*first);
        }
        match manner {
            Manner::Refuses | Manner::Later => {
                self.branches.insert(key, Local::Aborted);
                return Vote::No(reason(AbortCode::Refused));
            }
            Manner::ReadsOnly => {
                self.branches.insert(key, Local::ReadOnly);
                return Vote::ReadOnly;
            }
            Manner::Well | Manner::Loses | Manner::Lies => {}
        }
        self.markers.insert(key, Marker::Done);
        self.branches.insert(key, Local::Committed);
        if !request.is_empty() {
            self.requests.insert(request.into(), key.transaction);
        }
        Vote::Committed
    }

    fn commit(&mut self, key: BranchKey, manner: Manner) -> Completion {
        match self.branches.get(&key) {
            Some(Local::Prepared(_)) if manner == Manner::Later => Completion::Retry("busy".into()),
            Some(Local::Prepared(_)) if manner == Manner::Loses => {
                self.branches.insert(key, Local::Lost);
                Completion::Lost("gone".into())
            }
            Some(Local::Prepared(_) | Local::Committed) => {
                self.branches.insert(key, Local::Committed);
                Completion::Committed
            }
            Some(Local::Lost) => Completion::Lost("gone".into()),
            Some(Local::Open | Local::Aborted | Local::ReadOnly) | None => Completion::Aborted,
        }
    }

    fn abort(&mut self, key: BranchKey) -> Completion {
        match self.branches.get(&key) {
            Some(Local::Committed) => Completion::Committed,
            Some(Local::ReadOnly) => Completion::Aborted,
            Some(Local::Open | Local::Prepared(_) | Local::Aborted | Local::Lost) | None => {
                self.branches.insert(key, Local::Aborted);
                Completion::Aborted
            }
        }
    }

    /// The barrier: a marker under the key makes it happen once, and a compensation fences the action that it undoes.
    fn run_step(
        &mut self,
        key: BranchKey,
        deed: Deed,
        manner: Manner,
        deeds: &mut Vec<Deed>,
    ) -> StepOutcome {
        match self.markers.get(&key) {
            Some(Marker::Done) => return done(),
            Some(Marker::Fenced) => return StepOutcome::Refused(reason(AbortCode::BranchLost)),
            None => {}
        }
        match manner {
            Manner::Refuses => return StepOutcome::Refused(reason(AbortCode::Refused)),
            Manner::Later => return StepOutcome::Failed(reason(AbortCode::Conflict)),
            Manner::Well | Manner::ReadsOnly | Manner::Loses | Manner::Lies => {}
        }
        self.markers.insert(key, Marker::Done);
        let action = BranchKey {
            branch: deed.step,
            ..key
        };
        let effective =
            !deed.undid || *self.markers.entry(action).or_insert(Marker::Fenced) == Marker::Done;
        if effective {
            deeds.push(deed);
        }
        done()
    }
}

fn yes() -> Vote {
    Vote::Yes { proof: "p".into() }
}

fn done() -> StepOutcome {
    StepOutcome::Done([].into())
}

pub(crate) fn reason(code: AbortCode) -> AbortReason {
    AbortReason {
        code,
        participant: String::new(),
        message: "because".into(),
    }
}
