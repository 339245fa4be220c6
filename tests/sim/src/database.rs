//! A model database: balances, prepared branches, marker rows, tombstones. It outlives every process; each of its operations is atomic.
//!
//! It guards nothing that the protocol itself must guard: a lock's token is not compared here, so that a zombie shows.

use std::collections::BTreeMap;

use unanimity_engine::{
    AbortCode, AbortReason, BranchKey, Completion, Found, LockKey, Payload, StepOutcome,
    TransactionId, Vote,
};

use crate::{fact::What, work::Work};

/// A change that the invariants hear of.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) key: BranchKey,
    pub(crate) what: What,
    pub(crate) by: i64,
    pub(crate) by_hand: bool,
    pub(crate) locks: Vec<LockKey>,
    pub(crate) token: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Marker {
    /// Done, with what it changed and gave back.
    Done(Work, Payload),
    Tombstone,
}

/// How a prepared branch ended: what the database's own status of past transactions says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    Committed,
    RolledBack,
}

#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) balances: Vec<i64>,
    prepared: BTreeMap<BranchKey, Work>,
    markers: BTreeMap<BranchKey, Marker>,
    /// Of the markers of one-phase commits.
    requests: BTreeMap<String, TransactionId>,
    past: BTreeMap<BranchKey, Past>,
    /// Prepared branches of others.
    pub(crate) foreign: Vec<Found>,
    /// It can prove a rollback; else what was rolled back by hand is lost.
    proves: bool,
    /// Until then nobody can reach it.
    pub(crate) away_until: u64,
    pub(crate) changes: Vec<Change>,
}

/// A saga's step, as it is sent.
pub(crate) struct Step<'a> {
    pub(crate) key: BranchKey,
    pub(crate) work: Work,
    pub(crate) locks: &'a [LockKey],
    pub(crate) token: u64,
    /// A refused step is bound to its word: nobody can ask this participant whether a late one took effect.
    pub(crate) bound: bool,
}

impl Database {
    pub(crate) fn new(accounts: usize, balance: i64, proves: bool) -> Self {
        Database {
            balances: vec![balance; accounts],
            prepared: BTreeMap::new(),
            markers: BTreeMap::new(),
            requests: BTreeMap::new(),
            past: BTreeMap::new(),
            foreign: Vec::new(),
            proves,
            away_until: 0,
            changes: Vec::new(),
        }
    }

    pub(crate) fn money(&self) -> i64 {
        self.balances.iter().sum()
    }

    pub(crate) fn is_prepared(&self, key: BranchKey) -> bool {
        self.prepared.contains_key(&key)
    }

    /// Those of the coordinator's transactions.
    pub(crate) fn prepared(&self) -> impl Iterator<Item = BranchKey> {
        self.prepared.keys().copied()
    }

    pub(crate) fn in_doubt(&self) -> Vec<Found> {
        let own = self.prepared.keys().map(|key| Found {
            identifier: key.to_string(),
            key: Some(*key),
        });
        own.chain(self.foreign.iter().cloned()).collect()
    }

    /// Whether the work can be done now. Money of prepared debits is set aside; that of prepared credits is not there yet.
    pub(crate) fn refuses(&self, work: &Work) -> bool {
        let held = |account: u8| -> i64 {
            let prepared = self.prepared.values().flat_map(|work| &work.changes);
            prepared
                .filter(|(a, by)| *a == account && *by < 0)
                .map(|(_, by)| by)
                .sum()
        };
        let overdraws = |(account, by): &(u8, i64)| {
            *by < 0 && self.balances[usize::from(*account)] + held(*account) + by < 0
        };
        work.refused || work.checked && work.changes.iter().any(overdraws)
    }

    /// Prepares a branch that has run.
    pub(crate) fn prepare(&mut self, key: BranchKey, work: Work) -> Vote {
        if self.prepared.contains_key(&key) {
            return yes();
        }
        if self.refuses(&work) {
            return Vote::No(refused());
        }
        if work.changes.is_empty() {
            return Vote::ReadOnly;
        }
        self.prepared.insert(key, work);
        self.change(key, What::Prepared, 0);
        yes()
    }

    /// Commits a branch that has run, marker row included.
    pub(crate) fn commit_in_one_phase(
        &mut self,
        key: BranchKey,
        request: &str,
        work: &Work,
    ) -> Vote {
        match self.markers.get(&key) {
            Some(Marker::Done(..)) => return Vote::Committed,
            Some(Marker::Tombstone) => return Vote::No(because(AbortCode::BranchLost)),
            None => {}
        }
        if let Some(first) = self.requests.get(request) {
            return Vote::Duplicate(*first);
        }
        if self.refuses(work) {
            return Vote::No(refused());
        }
        if work.changes.is_empty() {
            return Vote::ReadOnly;
        }
        if !request.is_empty() {
            self.requests.insert(request.to_owned(), key.transaction);
        }
        self.markers
            .insert(key, Marker::Done(work.clone(), [].into()));
        self.apply(work);
        self.change(key, What::OnePhase, work.sum());
        Vote::Committed
    }

    pub(crate) fn commit(&mut self, key: BranchKey) -> Completion {
        if let Some(work) = self.prepared.remove(&key) {
            self.past.insert(key, Past::Committed);
            self.apply(&work);
            self.change(key, What::Committed, work.sum());
            return Completion::Committed;
        }
        match self.past.get(&key) {
            Some(Past::Committed) => Completion::Committed,
            Some(Past::RolledBack) if self.proves => Completion::Aborted,
            Some(Past::RolledBack) | None => Completion::Lost("nothing is known of it".into()),
        }
    }

    pub(crate) fn abort(&mut self, key: BranchKey) -> Completion {
        if self.prepared.remove(&key).is_some() {
            self.past.insert(key, Past::RolledBack);
            self.change(key, What::RolledBack, 0);
        }
        match self.past.get(&key) {
            Some(Past::Committed) => Completion::Committed,
            Some(Past::RolledBack) | None => Completion::Aborted,
        }
    }

    /// Somebody ends a prepared branch at the database's own console.
    pub(crate) fn by_hand(&mut self, key: BranchKey, commit: bool) {
        if commit {
            self.commit(key);
        } else {
            self.abort(key);
        }
        if let Some(change) = self.changes.last_mut() {
            change.by_hand = true;
        }
    }

    /// Where there is no marker a tombstone takes its place, so that the answer stays true.
    pub(crate) fn prove(&mut self, key: BranchKey) -> Completion {
        match self.markers.entry(key).or_insert(Marker::Tombstone) {
            Marker::Done(..) => Completion::Committed,
            Marker::Tombstone => Completion::Aborted,
        }
    }

    /// The same of a saga's action.
    pub(crate) fn settle(&mut self, key: BranchKey) -> StepOutcome {
        match self.markers.entry(key).or_insert(Marker::Tombstone) {
            Marker::Done(_, result) => StepOutcome::Done(result.clone()),
            Marker::Tombstone => StepOutcome::Never,
        }
    }

    pub(crate) fn execute_step(&mut self, step: Step<'_>) -> StepOutcome {
        match self.markers.get(&step.key) {
            Some(Marker::Done(_, result)) => return StepOutcome::Done(result.clone()),
            Some(Marker::Tombstone) => {
                return StepOutcome::Refused(because(AbortCode::BranchLost));
            }
            None => {}
        }
        if self.refuses(&step.work) {
            if step.bound {
                self.markers.insert(step.key, Marker::Tombstone);
            }
            return StepOutcome::Refused(refused());
        }
        let result: Payload = format!("{{\"moved\":{}}}", step.work.sum())
            .into_bytes()
            .into();
        self.apply(&step.work);
        self.step_changed(
            step.key,
            What::Done,
            step.work.sum(),
            step.locks,
            step.token,
        );
        self.markers
            .insert(step.key, Marker::Done(step.work, result.clone()));
        StepOutcome::Done(result)
    }

    /// Undoes an action. `unsettled`: it may never have taken effect.
    pub(crate) fn compensate(
        &mut self,
        step: Step<'_>,
        action: BranchKey,
        unsettled: bool,
    ) -> StepOutcome {
        if self.markers.contains_key(&step.key) {
            return StepOutcome::Done([].into());
        }
        let runs = match self.markers.get(&action) {
            Some(Marker::Done(..)) => true,
            Some(Marker::Tombstone) => false,
            // Known to have taken effect, and no marker: it was purged, so the protocol says. Nothing is purged here, so this must never be.
            None => !unsettled,
        };
        self.markers.entry(action).or_insert(Marker::Tombstone);
        if runs {
            self.apply(&step.work);
            self.step_changed(
                action,
                What::Undone,
                step.work.sum(),
                step.locks,
                step.token,
            );
        }
        self.markers
            .insert(step.key, Marker::Done(step.work, [].into()));
        StepOutcome::Done([].into())
    }

    fn apply(&mut self, work: &Work) {
        for (account, by) in &work.changes {
            self.balances[usize::from(*account)] += by;
        }
    }

    fn change(&mut self, key: BranchKey, what: What, by: i64) {
        self.step_changed(key, what, by, &[], 0);
    }

    fn step_changed(&mut self, key: BranchKey, what: What, by: i64, locks: &[LockKey], token: u64) {
        self.changes.push(Change {
            key,
            what,
            by,
            by_hand: false,
            locks: locks.to_vec(),
            token,
        });
    }
}

fn yes() -> Vote {
    Vote::Yes { proof: "p".into() }
}

fn refused() -> AbortReason {
    because(AbortCode::Refused)
}

pub(crate) fn because(code: AbortCode) -> AbortReason {
    AbortReason {
        code,
        participant: String::new(),
        message: "the model says so".into(),
    }
}
