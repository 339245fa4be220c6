//! Slots: how many branches a participant can hold open at once, and who gets one next.
//!
//! The slots of all branches of a transaction are granted together, or none: no hold-and-wait, hence no deadlock among slots and no
//! prepare that the database must refuse. Those who compete for the same participant go first come, first served; a transaction that waits
//! for a full or hung participant holds nothing and delays nobody who does not need that participant.
//!
//! A waiting transaction is looked at only when a participant that keeps it waiting has room again: it is *parked* there. So those who wait
//! for a hung participant cost the others nothing.
//!
//! Nobody starves: one that was passed over while every participant that it waits for let [`PATIENCE`] others in has its place kept on all
//! of them. A participant that lets nobody in (it hangs) gives no such right, so it can't stop the others.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    engine::Engine,
    id::{BranchKey, ParticipantName, SessionId, TransactionId},
    saga::{Activity, Task},
    transaction::Phase,
};

/// How many grants of each participant that it waits for a transaction lets pass before its place is kept.
const PATIENCE: u64 = 16;

/// Who wants slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Claim {
    /// A transaction: one for each of its branches.
    Transaction(TransactionId),
    /// A saga's step, or its compensation: one.
    Step(BranchKey, Task),
}

/// A participant that has ever registered.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub(crate) struct Participant {
    /// It is in the log.
    pub(crate) registered: bool,
    /// It can prove one-phase commits.
    pub(crate) one_phase: bool,
    /// The database behind it, as its last session said.
    pub(crate) resource: String,
    /// What its record, durable or on its way, says of that.
    pub(crate) recorded: Option<bool>,
    /// Open and welcomed.
    pub(crate) sessions: BTreeSet<SessionId>,
    /// Those in the queue that need it, by place.
    pub(crate) waiting: BTreeMap<u64, Claim>,
    /// Those of them to look at when it has room.
    parked: BTreeMap<u64, Claim>,
    /// Branches with a decision, or a question for proof, that have no session to go to.
    pub(crate) undelivered: BTreeSet<BranchKey>,
    /// Slots granted so far.
    granted: u64,
}

/// The queue.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub(crate) struct Queue {
    next_place: u64,
    /// For each place, what its participants had granted when it came.
    seen: BTreeMap<u64, Vec<u64>>,
    /// Participants that have let go of a slot.
    freed: BTreeSet<ParticipantName>,
}

impl Queue {
    /// A participant has room again, or for the first time.
    pub(crate) fn free(&mut self, name: ParticipantName) {
        self.freed.insert(name);
    }
}

impl Engine {
    /// Puts a claim at the end of the queue and looks whether it can be granted at once.
    pub(crate) fn enqueue(&mut self, claim: Claim) {
        let place = self.queue.next_place;
        self.queue.next_place += 1;
        let names = self.participants_of(&claim);
        let seen = names
            .iter()
            .map(|name| self.participants.entry(name.clone()).or_default().granted)
            .collect();
        self.queue.seen.insert(place, seen);
        for name in &names {
            self.participants
                .entry(name.clone())
                .or_default()
                .waiting
                .insert(place, claim);
        }
        self.note_place(&claim, place);
        match names.first() {
            Some(first) => {
                let first = first.clone();
                let blocked = self.park_where_full(place, &claim);
                if !blocked {
                    self.park_at(&first, place, claim);
                    self.queue.freed.insert(first);
                }
            }
            None => self.grant(place, claim),
        }
    }

    fn note_place(&mut self, claim: &Claim, place: u64) {
        match claim {
            Claim::Transaction(id) => {
                if let Some(transaction) = self.table.find_mut(id) {
                    transaction.phase = Phase::Waiting { place };
                }
            }
            Claim::Step(key, task) => {
                if let Some(saga) = self.saga_mut(&key.transaction)
                    && let Some((step, _)) = saga.position(key.branch)
                {
                    saga.steps[step].activity = Activity::Queued(*task, place);
                }
            }
        }
    }

    /// Parks a claim at a participant that has no room for it. False where they all have.
    fn park_where_full(&mut self, place: u64, claim: &Claim) -> bool {
        let names = self.participants_of(claim);
        let full = names.iter().find(|name| self.free_session(name).is_none());
        full.inspect(|name| self.park_at(name, place, *claim))
            .is_some()
    }

    fn park_at(&mut self, name: &ParticipantName, place: u64, claim: Claim) {
        if let Some(participant) = self.participants.get_mut(name) {
            participant.parked.insert(place, claim);
        }
    }

    /// Keeps its place at all of its participants.
    fn park_everywhere(&mut self, place: u64, claim: &Claim) {
        for name in self.participants_of(claim) {
            self.park_at(&name, place, *claim);
        }
    }

    /// Takes a waiting transaction out of the queue.
    pub(crate) fn leave_queue(&mut self, id: &TransactionId) {
        if let Some(&Phase::Waiting { place }) = self.table.find(id).map(|t| &t.phase) {
            self.leave_place(place, &Claim::Transaction(*id));
        }
    }

    /// Takes a claim out of the queue.
    pub(crate) fn leave_place(&mut self, place: u64, claim: &Claim) {
        self.queue.seen.remove(&place);
        for name in self.participants_of(claim) {
            if let Some(participant) = self.participants.get_mut(&name) {
                participant.waiting.remove(&place);
                participant.parked.remove(&place);
            }
            self.queue.freed.insert(name);
        }
    }

    /// Gives a branch's slot back.
    pub(crate) fn release(&mut self, key: BranchKey) {
        let Some(branch) = self
            .table
            .find_mut(&key.transaction)
            .and_then(|t| t.branch_mut(key.branch))
        else {
            return;
        };
        let (held, name) = (branch.session.take(), branch.participant.clone());
        if let Some(session) = held.and_then(|id| self.sessions.get_mut(&id)) {
            session.held.remove(&key);
        }
        self.queue.freed.insert(name);
    }

    /// A session of the participant with a slot free, the emptiest first.
    pub(crate) fn free_session(&self, name: &ParticipantName) -> Option<SessionId> {
        let participant = self.participants.get(name)?;
        let free = |id: &SessionId| {
            self.sessions
                .get(id)
                .map_or(0, |s| (s.capacity as usize).saturating_sub(s.held.len()))
                .max(usize::from(cfg!(unanimity_bug = "capacity-ignored")))
        };
        participant
            .sessions
            .iter()
            .copied()
            .filter(|id| free(id) > 0)
            .max_by_key(|id| (free(id), std::cmp::Reverse(*id)))
    }

    /// Takes a slot for a branch.
    pub(crate) fn take_slot(&mut self, key: BranchKey, session: SessionId) {
        let Some(branch) = self
            .table
            .find_mut(&key.transaction)
            .and_then(|t| t.branch_mut(key.branch))
        else {
            return;
        };
        branch.session = Some(session);
        let name = branch.participant.clone();
        self.hold_slot(key, &name, session);
    }

    fn hold_slot(&mut self, key: BranchKey, name: &ParticipantName, session: SessionId) {
        if let Some(held) = self.sessions.get_mut(&session) {
            held.held.insert(key);
        }
        if let Some(participant) = self.participants.get_mut(name) {
            participant.granted += 1;
        }
    }

    /// Grants every claim that can be.
    pub(crate) fn admit(&mut self) {
        while let Some(name) = self.queue.freed.pop_first() {
            let mut after = None;
            while self.free_session(&name).is_some() {
                let Some((place, claim)) = self.next_parked(&name, after) else {
                    break;
                };
                after = Some(place);
                if self.grantable(&claim) {
                    self.grant(place, claim);
                } else if self.is_starving(place, &claim) {
                    self.park_everywhere(place, &claim);
                    break;
                } else {
                    if let Some(participant) = self.participants.get_mut(&name) {
                        participant.parked.remove(&place);
                    }
                    self.park_where_full(place, &claim);
                }
            }
        }
    }

    fn next_parked(&self, name: &ParticipantName, after: Option<u64>) -> Option<(u64, Claim)> {
        let parked = &self.participants.get(name)?.parked;
        let from = after.map_or(0, |place| place + 1);
        parked
            .range(from..)
            .next()
            .map(|(place, claim)| (*place, *claim))
    }

    fn grantable(&self, claim: &Claim) -> bool {
        let names = self.participants_of(claim);
        names.iter().all(|name| self.free_session(name).is_some())
    }

    /// Passed over often enough by every participant that is full now.
    fn is_starving(&self, place: u64, claim: &Claim) -> bool {
        let Some(seen) = self.queue.seen.get(&place) else {
            return false;
        };
        let granted = |name| self.participants.get(name).map_or(0, |p| p.granted);
        self.participants_of(claim)
            .iter()
            .zip(seen)
            .filter(|(name, _)| self.free_session(name).is_none())
            .all(|(name, seen)| granted(name) - seen >= PATIENCE)
    }

    fn grant(&mut self, place: u64, claim: Claim) {
        self.leave_place(place, &claim);
        match claim {
            Claim::Transaction(id) => {
                let wanted: Vec<_> = self
                    .table
                    .find(&id)
                    .map(|t| {
                        t.branches
                            .iter()
                            .map(|b| (t.key(b), b.participant.clone()))
                            .collect()
                    })
                    .unwrap_or_default();
                for (key, name) in wanted {
                    let session = self
                        .free_session(&name)
                        .expect("grantable: each branch has its own participant");
                    self.take_slot(key, session);
                }
                self.start(id);
            }
            Claim::Step(key, task) => {
                for name in self.participants_of(&claim) {
                    let session = self.free_session(&name).expect("grantable");
                    self.hold_slot(key, &name, session);
                    self.send_step(key, task, session);
                }
            }
        }
    }

    fn participants_of(&self, claim: &Claim) -> Vec<ParticipantName> {
        match claim {
            Claim::Transaction(id) => self
                .table
                .find(id)
                .map(|t| t.branches.iter().map(|b| b.participant.clone()).collect())
                .unwrap_or_default(),
            Claim::Step(key, _) => self
                .saga(&key.transaction)
                .and_then(|saga| saga.steps.get(saga.position(key.branch)?.0)?.participant())
                .into_iter()
                .cloned()
                .collect(),
        }
    }
}
