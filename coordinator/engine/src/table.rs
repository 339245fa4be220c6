//! The transactions that the engine remembers: all that live, and for a while those that ended.
//!
//! Memory is bounded: an ended transaction is forgotten after the retention, or sooner when there are too many. The watermark
//! [`Table::forgotten`] says up to which id that has happened to a *committed* one, so that a look-up never takes a forgotten commit for an
//! abort.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::{
    id::{Moment, RequestId, TransactionId},
    transaction::{Outcome, Phase, Transaction},
};

#[derive(Debug, Default)]
pub(crate) struct Table {
    transactions: BTreeMap<TransactionId, Transaction>,
    requests: HashMap<RequestId, TransactionId>,
    ended: VecDeque<(Moment, TransactionId)>,
    forgotten: Option<TransactionId>,
}

impl Table {
    pub(crate) fn insert(&mut self, transaction: Transaction) {
        if let Some(request) = &transaction.request_id {
            self.requests.insert(request.clone(), transaction.id);
        }
        self.transactions.insert(transaction.id, transaction);
    }

    /// Takes it out as if it had never been there: for one that was refused before it started.
    pub(crate) fn remove(&mut self, id: &TransactionId) -> Option<Transaction> {
        let transaction = self.transactions.remove(id)?;
        if let Some(request) = &transaction.request_id
            && self.requests.get(request) == Some(id)
        {
            self.requests.remove(request);
        }
        Some(transaction)
    }

    pub(crate) fn find(&self, id: &TransactionId) -> Option<&Transaction> {
        self.transactions.get(id)
    }

    pub(crate) fn find_mut(&mut self, id: &TransactionId) -> Option<&mut Transaction> {
        self.transactions.get_mut(id)
    }

    pub(crate) fn by_request(&self, request: &RequestId) -> Option<&Transaction> {
        self.transactions.get(self.requests.get(request)?)
    }

    /// Points a request id at the transaction that committed under it.
    pub(crate) fn alias(&mut self, request: RequestId, id: TransactionId) {
        self.requests.insert(request, id);
    }

    /// How many have not ended.
    pub(crate) fn in_flight(&self) -> usize {
        self.transactions.len() - self.ended.len()
    }

    /// Notes that it ended, so that it will be forgotten in its turn.
    pub(crate) fn retire(&mut self, now: Moment, id: TransactionId) {
        self.ended.push_back((now, id));
    }

    /// When the next one is due to be forgotten.
    pub(crate) fn next_forgotten(&self, retention_ms: u64) -> Option<Moment> {
        self.ended
            .front()
            .map(|(ended, _)| ended.after_ms(retention_ms))
    }

    /// Forgets what is past its time, or too many.
    pub(crate) fn forget(&mut self, now: Moment, retention_ms: u64, most: usize) {
        while let Some((ended, id)) = self.ended.front().copied() {
            if self.ended.len() <= most && ended.after_ms(retention_ms) > now {
                break;
            }
            self.ended.pop_front();
            let committed = self
                .remove(&id)
                .is_some_and(|t| !matches!(t.phase, Phase::Ended(Outcome::Aborted(_))));
            if committed {
                self.set_forgotten(id);
            }
        }
    }

    pub(crate) fn set_forgotten(&mut self, id: TransactionId) {
        self.forgotten = self.forgotten.max(Some(id));
    }

    pub(crate) fn forgotten(&self) -> Option<TransactionId> {
        self.forgotten
    }

    /// Oldest first, from after `cursor`.
    pub(crate) fn after(
        &self,
        cursor: Option<TransactionId>,
    ) -> impl Iterator<Item = &Transaction> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.transactions
            .range((cursor.map_or(Unbounded, Excluded), Unbounded))
            .map(|(_, t)| t)
    }

    /// Newest first, from before `cursor`.
    pub(crate) fn before(
        &self,
        cursor: Option<TransactionId>,
    ) -> impl Iterator<Item = &Transaction> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.transactions
            .range((Unbounded, cursor.map_or(Unbounded, Excluded)))
            .rev()
            .map(|(_, t)| t)
    }
}
