//! Every branch, step and compensation takes effect at most once, whatever is retried; and one request id commits at most once.

use std::collections::{BTreeMap, BTreeSet};

use unanimity_engine::{BranchKey, Downward, RequestId, StepOutcome, TransactionId, Upward};

use super::{Invariant, Ledger, Verdict};
use crate::fact::{Changed, Fact, What};

#[derive(Default)]
pub(crate) struct ExactlyOnce {
    effects: BTreeSet<(BranchKey, &'static str)>,
    /// By the unique part of the ids that were asked for.
    requests: BTreeMap<u128, RequestId>,
    /// What took effect under a request id.
    kept: BTreeMap<RequestId, TransactionId>,
    /// Actions and compensations that this incarnation knows to be done.
    done: BTreeSet<BranchKey>,
}

impl Invariant for ExactlyOnce {
    fn name(&self) -> &'static str {
        "exactly_once"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, ledger: &Ledger) -> Verdict {
        match fact {
            Fact::Asked {
                unique,
                request: Some(request),
            } => _ = self.requests.insert(*unique, (*request).clone()),
            // Who ends a branch by hand answers for it himself.
            Fact::Changed(changed) if !changed.by_hand => return self.change(changed, ledger),
            Fact::Died { .. } => self.done.clear(),
            Fact::Heard {
                message:
                    Upward::StepResult {
                        key,
                        outcome: StepOutcome::Done(_),
                        ..
                    },
                ..
            } => _ = self.done.insert(*key),
            Fact::Sent {
                message: Downward::RunStep { key, .. } | Downward::SettleStep { key, .. },
                ..
            } => return self.step_sent(*key, ledger),
            _ => {}
        }
        Ok(())
    }
}

impl ExactlyOnce {
    fn change(&mut self, changed: &Changed<'_>, ledger: &Ledger) -> Verdict {
        let kind = match changed.what {
            What::Committed | What::OnePhase => "committed",
            What::Done => "was done",
            What::Undone => "was undone",
            What::Prepared | What::RolledBack => return Ok(()),
        };
        if !self.effects.insert((changed.key, kind)) {
            return Err(format!("{} {kind} twice", changed.key));
        }
        let family = ledger.family(changed.key.transaction);
        let Some(request) = self.requests.get(&family.unique) else {
            return Ok(());
        };
        let first = *self.kept.entry(request.clone()).or_insert(family);
        if first == family {
            Ok(())
        } else {
            Err(format!(
                "request id {:?} took effect as {first} and as {family}",
                request.as_str()
            ))
        }
    }

    /// What is known to be done is not sent again.
    fn step_sent(&self, key: BranchKey, ledger: &Ledger) -> Verdict {
        let logged = ledger
            .durable
            .sagas
            .get(&key.transaction)
            .is_some_and(|saga| {
                let steps = saga.begin.steps.len();
                let index = key.branch as usize - 1;
                saga.done.contains(&(index % steps, index >= steps))
            });
        if logged || self.done.contains(&key) {
            return Err(format!(
                "{key} was sent again, though it is known to be done"
            ));
        }
        Ok(())
    }
}
