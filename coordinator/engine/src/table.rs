//! The transactions that the engine remembers: all that live, and for a while those that ended.
//!
//! Memory is bounded: an ended transaction is forgotten after the retention, or sooner when there are too many; then those go first whose
//! request can't come again, or may run again. The watermark [`Table::forgotten`] says up to which id that has happened to a *committed*
//! one, so that a look-up never takes a forgotten commit for an abort; another one tells the same of request ids.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    id::{LogId, Moment, RequestId, TransactionId},
    outcome::BranchState,
    transaction::{Outcome, Phase, Transaction},
};

/// How many transactions with a lost branch are kept.
const LOST_MAX: usize = 10_000;

#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub(crate) struct Table {
    transactions: BTreeMap<TransactionId, Transaction>,
    requests: BTreeMap<RequestId, TransactionId>,
    /// Ended: committed under a request id, so that it must not run again.
    keyed: VecDeque<(Moment, TransactionId)>,
    /// Ended: the others.
    plain: VecDeque<(Moment, TransactionId)>,
    /// Ended with a branch lost. Should it be found again, it has to commit: that must not be forgotten.
    lost: VecDeque<TransactionId>,
    forgotten: Option<TransactionId>,
    /// Of those under a request id, in milliseconds since 1970.
    forgotten_requests: Option<u64>,
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
        self.release_request(id);
        self.transactions.remove(id)
    }

    /// Lets its request run again.
    pub(crate) fn release_request(&mut self, id: &TransactionId) {
        let transaction = self.transactions.get(id);
        if let Some(request) = transaction.and_then(|t| t.request_id.as_ref())
            && self.requests.get(request) == Some(id)
        {
            self.requests.remove(request);
        }
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
        self.transactions.len() - self.keyed.len() - self.plain.len() - self.lost.len()
    }

    /// Notes that it ended, so that it will be forgotten in its turn.
    pub(crate) fn retire(&mut self, now: Moment, id: TransactionId) {
        let Some(transaction) = self.transactions.get(&id) else {
            return;
        };
        let branches = &transaction.branches;
        if branches.iter().any(|b| b.state == BranchState::Lost) {
            self.lost.push_back(id);
        } else if transaction.request_id.is_some()
            && !matches!(transaction.phase, Phase::Ended(Outcome::Aborted(_)))
        {
            self.keyed.push_back((now, id));
        } else {
            self.plain.push_back((now, id));
        }
    }

    /// When the next one is due to be forgotten.
    pub(crate) fn next_forgotten(&self, retention_ms: u64) -> Option<Moment> {
        let first = [&self.keyed, &self.plain]
            .into_iter()
            .flat_map(|q| q.front());
        first.map(|(ended, _)| ended.after_ms(retention_ms)).min()
    }

    /// Forgets what is past its time, or too many. `log`: ours.
    pub(crate) fn forget(&mut self, now: Moment, retention_ms: u64, most: usize, log: LogId) {
        let past = |queue: &VecDeque<(Moment, TransactionId)>| {
            let ended = queue.front().map(|(ended, _)| *ended);
            ended.is_some_and(|ended| ended.after_ms(retention_ms) <= now)
        };
        loop {
            let too_many = self.keyed.len() + self.plain.len() > most;
            let oldest = if past(&self.plain) || (too_many && !self.plain.is_empty()) {
                self.plain.pop_front().map(|(_, id)| id)
            } else if past(&self.keyed) || too_many {
                self.keyed.pop_front().map(|(_, id)| id)
            } else if self.lost.len() > LOST_MAX {
                self.lost.pop_front()
            } else {
                None
            };
            let Some(transaction) = oldest.map(|id| self.remove(&id)) else {
                break;
            };
            let committed = transaction.filter(|t| {
                t.id.log == log && !matches!(t.phase, Phase::Ended(Outcome::Aborted(_)))
            });
            if let Some(transaction) = committed {
                self.set_forgotten(transaction.id);
                if transaction.request_id.is_some() {
                    self.forgotten_requests =
                        self.forgotten_requests.max(Some(transaction.id.unix_ms()));
                }
            }
        }
    }

    /// Whether a request that was first sent then, in milliseconds since 1970, may have committed and been forgotten.
    pub(crate) fn may_have_forgotten(&self, first_sent_ms: u64) -> bool {
        self.forgotten_requests
            .is_some_and(|forgotten| first_sent_ms <= forgotten)
    }

    pub(crate) fn set_forgotten(&mut self, id: TransactionId) {
        self.forgotten = self.forgotten.max(Some(id));
    }

    /// As a checkpoint tells it, which doesn't tell which of them had a request id.
    pub(crate) fn restore_forgotten(&mut self, id: TransactionId) {
        self.set_forgotten(id);
        self.forgotten_requests = self.forgotten_requests.max(Some(id.unix_ms()));
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
