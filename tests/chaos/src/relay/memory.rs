//! What passed, so that it can come again.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

/// So many messages of each peer are kept.
const KEPT: usize = 512;

/// A message, and the coordinator's epoch when it passed.
type Passed<M> = (u64, M);

/// The messages of each peer, by its name.
#[derive(Debug)]
pub(super) struct Memories<M>(Mutex<HashMap<String, VecDeque<Passed<M>>>>);

impl<M> Default for Memories<M> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<M: Clone> Memories<M> {
    /// Keeps a message; the oldest goes when there are too many.
    pub(super) fn keep(&self, peer: &str, epoch: u64, message: M) {
        let mut peers = self.0.lock();
        let passed = peers.entry(peer.to_owned()).or_default();
        if passed.len() == KEPT {
            passed.pop_front();
        }
        passed.push_back((epoch, message));
    }

    /// An old message of the peer, if there is one; `draw` picks among so many.
    pub(super) fn recall(&self, peer: &str, draw: impl Fn(usize) -> usize) -> Option<Passed<M>> {
        let peers = self.0.lock();
        let passed = peers.get(peer).filter(|passed| !passed.is_empty())?;
        passed.get(draw(passed.len())).cloned()
    }
}
