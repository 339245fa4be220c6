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

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    engine::Engine,
    id::{BranchKey, ParticipantName, SessionId, TransactionId},
    transaction::Phase,
};

/// How many grants of each participant that it waits for a transaction lets pass before its place is kept.
const PATIENCE: u64 = 16;

/// A participant that has ever registered.
#[derive(Debug, Default)]
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
    /// Transactions in the queue that need it, by place.
    pub(crate) waiting: BTreeMap<u64, TransactionId>,
    /// Those of them to look at when it has room.
    parked: BTreeMap<u64, TransactionId>,
    /// Branches with a decision, or a question for proof, that have no session to go to.
    pub(crate) undelivered: BTreeSet<BranchKey>,
    /// Slots granted so far.
    granted: u64,
}

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    next_place: u64,
    /// For each place, what its participants had granted when it came.
    seen: HashMap<u64, Vec<u64>>,
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
    /// Puts a transaction at the end of the queue and looks whether it can start at once.
    pub(crate) fn enqueue(&mut self, id: TransactionId) {
        let place = self.queue.next_place;
        self.queue.next_place += 1;
        let names = self.participants_of(&id);
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
                .insert(place, id);
        }
        if let Some(transaction) = self.table.find_mut(&id) {
            transaction.phase = Phase::Waiting { place };
        }
        match names.first() {
            Some(first) => {
                let first = first.clone();
                let blocked = self.park_where_full(place, &id);
                if !blocked {
                    self.park_at(&first, place, id);
                    self.queue.freed.insert(first);
                }
            }
            None => {
                self.leave_queue(&id);
                self.start(id);
            }
        }
    }

    /// Parks a transaction at a participant that has no room for it. False where they all have.
    fn park_where_full(&mut self, place: u64, id: &TransactionId) -> bool {
        let names = self.participants_of(id);
        let full = names.iter().find(|name| self.free_session(name).is_none());
        full.inspect(|name| self.park_at(name, place, *id))
            .is_some()
    }

    fn park_at(&mut self, name: &ParticipantName, place: u64, id: TransactionId) {
        if let Some(participant) = self.participants.get_mut(name) {
            participant.parked.insert(place, id);
        }
    }

    /// Keeps its place at all of its participants.
    fn park_everywhere(&mut self, place: u64, id: &TransactionId) {
        for name in self.participants_of(id) {
            self.park_at(&name, place, *id);
        }
    }

    /// Takes a waiting transaction out of the queue.
    pub(crate) fn leave_queue(&mut self, id: &TransactionId) {
        let Some(&Phase::Waiting { place }) = self.table.find(id).map(|t| &t.phase) else {
            return;
        };
        self.queue.seen.remove(&place);
        for name in self.participants_of(id) {
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
        if let Some(held) = self.sessions.get_mut(&session) {
            held.held.insert(key);
        }
        if let Some(participant) = self.participants.get_mut(&name) {
            participant.granted += 1;
        }
    }

    /// Starts every waiting transaction that can be.
    pub(crate) fn admit(&mut self) {
        while let Some(name) = self.queue.freed.pop_first() {
            let mut after = None;
            while self.free_session(&name).is_some() {
                let Some((place, id)) = self.next_parked(&name, after) else {
                    break;
                };
                after = Some(place);
                if self.grantable(&id) {
                    self.grant(id);
                } else if self.is_starving(place, &id) {
                    self.park_everywhere(place, &id);
                    break;
                } else {
                    if let Some(participant) = self.participants.get_mut(&name) {
                        participant.parked.remove(&place);
                    }
                    self.park_where_full(place, &id);
                }
            }
        }
    }

    fn next_parked(
        &self,
        name: &ParticipantName,
        after: Option<u64>,
    ) -> Option<(u64, TransactionId)> {
        let parked = &self.participants.get(name)?.parked;
        let from = after.map_or(0, |place| place + 1);
        parked.range(from..).next().map(|(place, id)| (*place, *id))
    }

    fn grantable(&self, id: &TransactionId) -> bool {
        self.table.find(id).is_some_and(|t| {
            t.branches
                .iter()
                .all(|b| self.free_session(&b.participant).is_some())
        })
    }

    /// Passed over often enough by every participant that is full now.
    fn is_starving(&self, place: u64, id: &TransactionId) -> bool {
        let (Some(seen), Some(transaction)) = (self.queue.seen.get(&place), self.table.find(id))
        else {
            return false;
        };
        let granted = |name| self.participants.get(name).map_or(0, |p| p.granted);
        transaction
            .branches
            .iter()
            .zip(seen)
            .filter(|(branch, _)| self.free_session(&branch.participant).is_none())
            .all(|(branch, seen)| granted(&branch.participant) - seen >= PATIENCE)
    }

    fn grant(&mut self, id: TransactionId) {
        self.leave_queue(&id);
        let Some(transaction) = self.table.find(&id) else {
            return;
        };
        let wanted: Vec<_> = transaction
            .branches
            .iter()
            .map(|b| (transaction.key(b), b.participant.clone()))
            .collect();
        for (key, name) in wanted {
            let session = self
                .free_session(&name)
                .expect("grantable: each branch has its own participant");
            self.take_slot(key, session);
        }
        self.start(id);
    }

    fn participants_of(&self, id: &TransactionId) -> Vec<ParticipantName> {
        self.table
            .find(id)
            .map(|t| t.branches.iter().map(|b| b.participant.clone()).collect())
            .unwrap_or_default()
    }
}
