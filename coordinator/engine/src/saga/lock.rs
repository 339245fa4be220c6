//! Locks: keys that one saga holds at a time, from its beginning to its end.
//!
//! All keys of a saga are granted together, and those who want the same key get it in the order in which they came. One that waits holds
//! nothing, and nobody overtakes it on any of its keys; so there is no deadlock, and nobody starves.

use std::collections::BTreeMap;

use crate::{
    engine::Engine,
    id::{LockKey, TransactionId},
};

/// A lock as shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LockView {
    /// Its key.
    pub key: LockKey,
    /// Who holds it.
    pub holder: TransactionId,
    /// The holder's token.
    pub token: u64,
    /// How many wait for it.
    pub waiting: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub(crate) struct Locks {
    held: BTreeMap<LockKey, TransactionId>,
    /// By key, those who wait, in the order in which they came.
    queues: BTreeMap<LockKey, BTreeMap<u64, TransactionId>>,
    places: BTreeMap<TransactionId, u64>,
    next_place: u64,
}

impl Locks {
    fn queue(&mut self, id: TransactionId, keys: &[LockKey]) {
        let place = self.next_place;
        self.next_place += 1;
        self.places.insert(id, place);
        for key in keys {
            self.queues
                .entry(key.clone())
                .or_default()
                .insert(place, id);
        }
    }

    fn leave(&mut self, id: &TransactionId, keys: &[LockKey]) {
        let Some(place) = self.places.remove(id) else {
            return;
        };
        for key in keys {
            if let Some(queue) = self.queues.get_mut(key) {
                queue.remove(&place);
                if queue.is_empty() {
                    self.queues.remove(key);
                }
            }
        }
    }

    pub(crate) fn hold(&mut self, id: TransactionId, keys: &[LockKey]) {
        for key in keys {
            self.held.insert(key.clone(), id);
        }
    }

    fn release(&mut self, id: &TransactionId, keys: &[LockKey]) {
        for key in keys {
            if self.held.get(key) == Some(id) {
                self.held.remove(key);
            }
        }
    }

    fn first(&self, key: &LockKey) -> Option<TransactionId> {
        self.queues.get(key)?.values().next().copied()
    }

    fn is_grantable(&self, id: &TransactionId, keys: &[LockKey]) -> bool {
        keys.iter()
            .all(|key| !self.held.contains_key(key) && self.first(key).as_ref() == Some(id))
    }

    /// Keys that others hold, or have a better claim to.
    fn in_the_way(&self, id: &TransactionId, keys: &[LockKey]) -> Vec<LockKey> {
        let free =
            |key: &&LockKey| !self.held.contains_key(*key) && self.first(key).as_ref() == Some(id);
        keys.iter().filter(|key| !free(key)).cloned().collect()
    }
}

impl Engine {
    /// Puts a saga into the queues of its keys; it begins as soon as it has them all.
    pub(crate) fn lock(&mut self, id: TransactionId) {
        let keys = self.locks_of(&id);
        self.locks.queue(id, &keys);
        self.grant_if_possible(id);
    }

    /// Takes one that has not begun out of the queues.
    pub(crate) fn leave_locks(&mut self, id: TransactionId) {
        let keys = self.locks_of(&id);
        self.locks.leave(&id, &keys);
        self.grant_next(&keys);
    }

    /// It is over: those who waited for its keys go on.
    pub(crate) fn unlock(&mut self, id: TransactionId) {
        let keys = self.locks_of(&id);
        self.locks.release(&id, &keys);
        self.grant_next(&keys);
    }

    fn grant_next(&mut self, keys: &[LockKey]) {
        for key in keys {
            if let Some(id) = self.locks.first(key) {
                self.grant_if_possible(id);
            }
        }
    }

    /// None begins in a coordinator that drains: it is about to be given up.
    fn grant_if_possible(&mut self, id: TransactionId) {
        let keys = self.locks_of(&id);
        if !self.draining && self.locks.is_grantable(&id, &keys) {
            self.locks.leave(&id, &keys);
            self.locks.hold(id, &keys);
            self.begin_saga(id);
        }
    }

    pub(crate) fn locks_in_the_way(&self, id: &TransactionId) -> Vec<LockKey> {
        if self.locks.places.contains_key(id) {
            self.locks.in_the_way(id, &self.locks_of(id))
        } else {
            Vec::new()
        }
    }

    fn locks_of(&self, id: &TransactionId) -> Vec<LockKey> {
        let saga = self.table.find(id).and_then(|t| t.saga.as_ref());
        saga.map(|saga| saga.locks.clone()).unwrap_or_default()
    }

    /// The locks that are held, by key, from after `cursor`.
    pub fn locks(&self, cursor: Option<LockKey>) -> impl Iterator<Item = LockView> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = cursor.map_or(Unbounded, Excluded);
        self.locks
            .held
            .range((from, Unbounded))
            .map(|(key, holder)| {
                let saga = self.table.find(holder).and_then(|t| t.saga.as_ref());
                LockView {
                    key: key.clone(),
                    holder: *holder,
                    token: saga.map_or(0, |saga| saga.token),
                    waiting: self
                        .locks
                        .queues
                        .get(key)
                        .map_or(0, |queue| queue.len() as u32),
                }
            })
    }
}
