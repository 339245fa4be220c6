//! A branch that somebody ended by hand against a decision to commit is reported, after which a human looks; and no other is.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use unanimity_engine::{BranchKey, Event, TransactionId};

use super::{Invariant, Ledger, Verdict};
use crate::fact::{End, Fact, What};

#[derive(Default)]
pub(crate) struct HeuristicsReported {
    /// Whether it was committed by hand.
    by_hand: BTreeMap<BranchKey, bool>,
    touched: BTreeSet<TransactionId>,
    reported: BTreeSet<BranchKey>,
}

impl Invariant for HeuristicsReported {
    fn name(&self) -> &'static str {
        "heuristics_reported"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, _ledger: &Ledger) -> Verdict {
        match fact {
            Fact::Changed(changed) if changed.by_hand => {
                self.by_hand
                    .insert(changed.key, changed.what == What::Committed);
                self.touched.insert(changed.key.transaction);
            }
            Fact::Reported(Event::Heuristic { key, .. }) => {
                self.reported.insert(*key);
                if !self.touched.contains(&key.transaction) {
                    return Err(format!("{key} was reported, though nobody touched it"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn at_end(&mut self, _end: &End, ledger: &Ledger) -> Verdict {
        let decided = |key: &BranchKey| {
            let named = ledger.durable.commits.get(&key.transaction);
            named.is_some_and(|named| named.contains(&key.branch))
        };
        let against =
            |(key, committed): (&BranchKey, &bool)| (!committed && decided(key)).then_some(*key);
        let mut against = self.by_hand.iter().filter_map(against);
        // What an operator says himself he knows.
        let known =
            |key: &BranchKey| self.reported.contains(key) || ledger.durable.resolved.contains(key);
        match against.find(|key| !known(key)) {
            Some(key) => Err(format!(
                "{key} was rolled back by hand, and nobody was told"
            )),
            None => Ok(()),
        }
    }
}
