//! Where each branch of this process stands: open, in use, prepared, or ended.
//!
//! ```text
//!            begin            finish              take_over
//!   (absent) ─────▶ in use ──────────▶ open ─────────────────▶ in use ──▶ …
//!                     │ prepared ▶ prepared ──ended──▶ ended
//!                     │ ended    ▶ ended
//!                     └ dropped  ▶ ended (rolled back: the connection is closed)
//! ```
//!
//! A lease is the right to a branch's connection. Whatever ends a branch takes the lease's slot away, so that a lease that comes back late
//! finds itself void and closes its connection: nothing that was aborted can be prepared afterwards. Ended branches are remembered for a
//! while, to answer a prepare that comes twice, or late.

use std::{
    collections::{HashMap, VecDeque},
    ops::{Deref, DerefMut},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use unanimity_proto::v1::AbortCode;

use crate::participant::{BranchId, Refusal, Vote};

/// How many ended branches are remembered, and for how long.
const ENDED_COUNT_MAX: usize = 100_000;
const ENDED_AGE_MAX: Duration = Duration::from_secs(600);

/// A connection inside a branch. Dropped, it must close, so that the database rolls back.
pub(crate) trait BranchConnection: Send + 'static {
    /// What it takes to stop the work on it from elsewhere.
    type Interrupt: Clone + Send + 'static;

    /// See the type.
    fn interrupt(&self) -> Self::Interrupt;

    /// Lets go of the connection: the branch is over, or prepared and detached from it.
    fn release(self);
}

/// What a call finds.
pub(crate) enum Standing<C: BranchConnection> {
    /// Never heard of.
    Absent,
    /// Open and idle; now leased to the caller.
    Open(Lease<C>),
    /// A service holds it just now.
    InUse(C::Interrupt),
    /// Prepared, or ended: what the vote was, or what a late prepare is to be told.
    Voted(Vote),
}

enum Slot<C: BranchConnection> {
    Open(C),
    InUse {
        ticket: u64,
        interrupt: C::Interrupt,
    },
    Prepared {
        vote: Vote,
        connection: Option<C>,
    },
}

struct State<C: BranchConnection> {
    slots: HashMap<BranchId, Slot<C>>,
    ended: HashMap<BranchId, (Instant, Vote)>,
    ended_order: VecDeque<(Instant, BranchId)>,
    tickets: u64,
}

/// The table.
pub(crate) struct Branches<C: BranchConnection> {
    state: Mutex<State<C>>,
    calls: Mutex<HashMap<BranchId, Arc<tokio::sync::Mutex<()>>>>,
}

impl<C: BranchConnection> Branches<C> {
    pub(crate) fn new() -> Arc<Self> {
        let state = State {
            slots: HashMap::new(),
            ended: HashMap::new(),
            ended_order: VecDeque::new(),
            tickets: 0,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            calls: Mutex::new(HashMap::new()),
        })
    }

    /// Waits until no other call for the branch is running, and keeps others out until dropped.
    pub(crate) async fn call(self: &Arc<Self>, branch: &BranchId) -> Call<C> {
        let lock = Arc::clone(self.calls.lock().entry(branch.clone()).or_default());
        let guard = lock.lock_owned().await;
        Call {
            branches: Arc::clone(self),
            branch: branch.clone(),
            guard: Some(guard),
        }
    }

    /// Where the branch stands; an open one is leased.
    pub(crate) fn standing(self: &Arc<Self>, branch: &BranchId) -> Standing<C> {
        let mut state = self.state.lock();
        if let Some((_, vote)) = state.ended.get(branch) {
            return Standing::Voted(vote.clone());
        }
        match state.slots.remove(branch) {
            None => Standing::Absent,
            Some(Slot::Open(connection)) => {
                Standing::Open(self.lease(&mut state, branch, connection))
            }
            Some(slot) => {
                let standing = match &slot {
                    Slot::InUse { interrupt, .. } => Standing::InUse(interrupt.clone()),
                    Slot::Prepared { vote, .. } => Standing::Voted(vote.clone()),
                    Slot::Open(_) => unreachable!("matched above"),
                };
                state.slots.insert(branch.clone(), slot);
                standing
            }
        }
    }

    /// Enters a branch whose connection was just opened.
    pub(crate) fn begin(self: &Arc<Self>, branch: &BranchId, connection: C) -> Lease<C> {
        self.lease(&mut self.state.lock(), branch, connection)
    }

    fn lease(self: &Arc<Self>, state: &mut State<C>, branch: &BranchId, connection: C) -> Lease<C> {
        state.tickets += 1;
        let ticket = state.tickets;
        state.slots.insert(
            branch.clone(),
            Slot::InUse {
                ticket,
                interrupt: connection.interrupt(),
            },
        );
        Lease {
            branches: Arc::clone(self),
            branch: branch.clone(),
            ticket,
            connection: Some(connection),
        }
    }

    /// Enters a branch that was found prepared.
    pub(crate) fn found_prepared(&self, branch: &BranchId, vote: Vote, connection: Option<C>) {
        self.state
            .lock()
            .slots
            .insert(branch.clone(), Slot::Prepared { vote, connection });
    }

    /// The connection that a prepared branch is bound to. The branch stays prepared.
    pub(crate) fn prepared_connection(&self, branch: &BranchId) -> Option<C> {
        match self.state.lock().slots.get_mut(branch) {
            Some(Slot::Prepared { connection, .. }) => connection.take(),
            _ => None,
        }
    }

    /// Gives back what [`Self::prepared_connection`] took, the branch being undecided still.
    pub(crate) fn keep_connection(&self, branch: &BranchId, kept: C) {
        if let Some(Slot::Prepared { connection, .. }) = self.state.lock().slots.get_mut(branch) {
            *connection = Some(kept);
        }
    }

    /// Remembers that the branch is over, and what to tell a prepare that comes after. An idle or bound connection is closed.
    pub(crate) fn ended(&self, branch: &BranchId, late: Vote) {
        let slot = self.state.lock().end(branch, late);
        drop(slot);
    }

    /// The prepared branches of this process.
    pub(crate) fn prepared(&self) -> Vec<BranchId> {
        let is_prepared = |(branch, slot): (&BranchId, &Slot<C>)| {
            matches!(slot, Slot::Prepared { .. }).then(|| branch.clone())
        };
        self.state
            .lock()
            .slots
            .iter()
            .filter_map(is_prepared)
            .collect()
    }
}

impl<C: BranchConnection> State<C> {
    fn end(&mut self, branch: &BranchId, late: Vote) -> Option<Slot<C>> {
        let now = Instant::now();
        if self.ended.insert(branch.clone(), (now, late)).is_none() {
            self.ended_order.push_back((now, branch.clone()));
        }
        while let Some((at, _)) = self.ended_order.front() {
            if self.ended_order.len() <= ENDED_COUNT_MAX && now - *at < ENDED_AGE_MAX {
                break;
            }
            if let Some((_, oldest)) = self.ended_order.pop_front() {
                self.ended.remove(&oldest);
            }
        }
        self.slots.remove(branch)
    }
}

/// While it lives, no other call for the branch runs.
pub(crate) struct Call<C: BranchConnection> {
    branches: Arc<Branches<C>>,
    branch: BranchId,
    guard: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl<C: BranchConnection> Drop for Call<C> {
    fn drop(&mut self) {
        let mut calls = self.branches.calls.lock();
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

/// The right to a branch's connection.
pub(crate) struct Lease<C: BranchConnection> {
    branches: Arc<Branches<C>>,
    branch: BranchId,
    ticket: u64,
    connection: Option<C>,
}

impl<C: BranchConnection> Lease<C> {
    /// The branch.
    pub(crate) fn branch(&self) -> &BranchId {
        &self.branch
    }

    /// Leaves the branch open, for the next call. Refused where it was ended meanwhile.
    pub(crate) fn finish(mut self) -> Result<(), Refusal> {
        let mut state = self.branches.state.lock();
        if !state.holds(&self.branch, self.ticket) {
            return Err(lost(format!(
                "branch {} was ended while it was in use",
                self.branch
            )));
        }
        if let Some(connection) = self.connection.take() {
            state
                .slots
                .insert(self.branch.clone(), Slot::Open(connection));
        }
        Ok(())
    }

    /// Records that the branch is prepared, bound to its connection where `bound`; else the connection comes back.
    pub(crate) fn prepared(mut self, vote: Vote, bound: bool) -> Option<C> {
        let mut state = self.branches.state.lock();
        let connection = self.connection.take();
        let (kept, returned) = if bound {
            (connection, None)
        } else {
            (None, connection)
        };
        state.slots.insert(
            self.branch.clone(),
            Slot::Prepared {
                vote,
                connection: kept,
            },
        );
        returned
    }

    /// Records that the branch is over. What its connection still needs is the caller's business.
    pub(crate) fn end(mut self, late: Vote) -> C {
        let connection = self.connection.take().expect(
            "only finish, prepared and end take the connection, and they consume the lease",
        );
        let mut state = self.branches.state.lock();
        if state.holds(&self.branch, self.ticket) {
            state.end(&self.branch, late);
        }
        drop(state);
        connection
    }
}

impl<C: BranchConnection> State<C> {
    fn holds(&self, branch: &BranchId, ticket: u64) -> bool {
        matches!(self.slots.get(branch), Some(Slot::InUse { ticket: current, .. }) if *current == ticket)
    }
}

impl<C: BranchConnection> Deref for Lease<C> {
    type Target = C;

    fn deref(&self) -> &C {
        self.connection
            .as_ref()
            .expect("only finish, prepared and end take the connection, and they consume the lease")
    }
}

impl<C: BranchConnection> DerefMut for Lease<C> {
    fn deref_mut(&mut self) -> &mut C {
        self.connection
            .as_mut()
            .expect("only finish, prepared and end take the connection, and they consume the lease")
    }
}

impl<C: BranchConnection> Drop for Lease<C> {
    fn drop(&mut self) {
        if self.connection.is_some() {
            let mut state = self.branches.state.lock();
            if state.holds(&self.branch, self.ticket) {
                state.end(
                    &self.branch,
                    Vote::No(lost(format!(
                        "branch {} was dropped unfinished, and rolled back",
                        self.branch
                    ))),
                );
            }
        }
    }
}

/// A refusal about the branch itself.
pub(crate) fn lost(message: impl Into<String>) -> Refusal {
    Refusal {
        code: AbortCode::BranchLost,
        message: message.into(),
    }
}

/// What a prepare is told that comes after the branch was rolled back.
pub(crate) fn late_after_abort(branch: &BranchId) -> Vote {
    Vote::No(lost(format!("branch {branch} was aborted before")))
}

/// What a prepare is told that comes after the branch committed in two phases.
pub(crate) fn late_after_commit(branch: &BranchId) -> Vote {
    Vote::No(lost(format!(
        "branch {branch} has ended already: it committed"
    )))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
mod tests {
    use super::*;

    struct Plain;

    impl BranchConnection for Plain {
        type Interrupt = ();

        fn interrupt(&self) {}

        fn release(self) {}
    }

    fn branch(number: u32) -> BranchId {
        BranchId {
            transaction: "u1.0.0.0".into(),
            number,
        }
    }

    #[test]
    fn a_lease_that_comes_back_after_the_branch_was_ended_is_void() {
        let branches = Branches::new();
        let lease = branches.begin(&branch(1), Plain);
        assert!(matches!(branches.standing(&branch(1)), Standing::InUse(())));
        branches.ended(&branch(1), late_after_abort(&branch(1)));
        assert_eq!(lease.finish().unwrap_err().code, AbortCode::BranchLost);
        assert!(matches!(
            branches.standing(&branch(1)),
            Standing::Voted(Vote::No(_))
        ));
    }

    #[test]
    fn a_lease_that_is_dropped_dooms_the_branch() {
        let branches = Branches::new();
        drop(branches.begin(&branch(1), Plain));
        assert!(matches!(
            branches.standing(&branch(1)),
            Standing::Voted(Vote::No(_))
        ));
    }

    #[test]
    fn the_oldest_ended_branch_is_forgotten_first() {
        let branches = Branches::<Plain>::new();
        for number in 0..=u32::try_from(ENDED_COUNT_MAX).unwrap() {
            branches.ended(&branch(number), Vote::ReadOnly);
        }
        assert!(matches!(branches.standing(&branch(0)), Standing::Absent));
        assert!(matches!(
            branches.standing(&branch(1)),
            Standing::Voted(Vote::ReadOnly)
        ));
    }

    #[tokio::test]
    async fn calls_of_one_branch_wait_for_each_other_and_leave_nothing_behind() {
        let branches = Branches::<Plain>::new();
        let first = branches.call(&branch(1)).await;
        let other = Arc::clone(&branches);
        let second = tokio::spawn(async move { drop(other.call(&branch(1)).await) });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        second.await.unwrap();
        assert!(branches.calls.lock().is_empty());
    }
}
