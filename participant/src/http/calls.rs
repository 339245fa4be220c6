//! One call at a time for each branch, and which branches have one.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::participant::BranchId;

/// The branches at work.
#[derive(Default)]
pub(super) struct Calls(Mutex<HashMap<BranchId, Arc<tokio::sync::Mutex<()>>>>);

impl Calls {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Waits until no other call for the branch is at work, and keeps others out until dropped.
    pub(super) async fn enter(self: &Arc<Self>, branch: &BranchId) -> Call {
        let lock = Arc::clone(self.0.lock().entry(branch.clone()).or_default());
        Call {
            calls: Arc::clone(self),
            branch: branch.clone(),
            guard: Some(lock.lock_owned().await),
        }
    }

    /// Whether a call for the branch is at work, or waits.
    pub(super) fn has(&self, branch: &BranchId) -> bool {
        self.0.lock().contains_key(branch)
    }
}

/// While it lives, no other call for the branch is at work.
pub(super) struct Call {
    calls: Arc<Calls>,
    branch: BranchId,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut calls = self.calls.0.lock();
        self.guard = None;
        // Ours is the table's own reference: two mean that another call waits.
        if calls
            .get(&self.branch)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            calls.remove(&self.branch);
        }
    }
}
