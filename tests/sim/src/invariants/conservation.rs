//! Money is neither made nor lost: what each transaction does to the bank as a whole is nothing, and so is what a saga does with its groups.
//! What somebody did by hand is left out.

use std::collections::{BTreeMap, BTreeSet};

use unanimity_engine::TransactionId;

use super::{Invariant, Ledger, Verdict};
use crate::fact::{End, Fact};

#[derive(Default)]
pub(crate) struct Conservation {
    sums: BTreeMap<TransactionId, i64>,
    by_hand: BTreeSet<TransactionId>,
}

impl Invariant for Conservation {
    fn name(&self) -> &'static str {
        "conservation"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, _ledger: &Ledger) -> Verdict {
        if let Fact::Changed(changed) = fact {
            let id = changed.key.transaction;
            *self.sums.entry(id).or_default() += changed.by;
            if changed.by_hand {
                self.by_hand.insert(id);
            }
        }
        Ok(())
    }

    fn at_end(&mut self, end: &End, ledger: &Ledger) -> Verdict {
        let (first, last) = end.money;
        let moved: i64 = self.sums.values().sum();
        if first + moved != last {
            return Err(format!(
                "{first} and {moved} moved, yet the accounts hold {last}"
            ));
        }
        let mut families: BTreeMap<TransactionId, i64> = BTreeMap::new();
        for (id, sum) in &self.sums {
            *families.entry(ledger.family(*id)).or_default() += sum;
        }
        let by_hand: BTreeSet<_> = self.by_hand.iter().map(|id| ledger.family(*id)).collect();
        let wrong = families
            .iter()
            .find(|(id, sum)| **sum != 0 && !by_hand.contains(id));
        match wrong {
            Some((id, sum)) => Err(format!("{id} changed what the bank holds by {sum}")),
            None => Ok(()),
        }
    }
}
