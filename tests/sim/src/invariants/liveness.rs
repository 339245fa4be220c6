//! Once faults end nothing stays in doubt for more than ten seconds, everything ends, and every client learns what became of its request.

use std::collections::BTreeMap;

use unanimity_engine::BranchKey;

use super::{Invariant, Ledger, Verdict};
use crate::fact::{End, Fact, What};

/// How long a branch may be in doubt. A message may have been lost a moment before the end, and that is noticed after ten seconds.
pub(crate) const IN_DOUBT_MS: u64 = 10_500;

#[derive(Default)]
pub(crate) struct Liveness {
    since: BTreeMap<BranchKey, u64>,
    healed: Option<u64>,
}

impl Invariant for Liveness {
    fn name(&self) -> &'static str {
        "liveness"
    }

    fn observe(&mut self, now: u64, fact: &Fact<'_>, _ledger: &Ledger) -> Verdict {
        match fact {
            Fact::Healed => self.healed = Some(now),
            Fact::Changed(changed) => match changed.what {
                What::Prepared => _ = self.since.insert(changed.key, now),
                What::Committed | What::RolledBack => _ = self.since.remove(&changed.key),
                What::OnePhase | What::Done | What::Undone => {}
            },
            _ => {}
        }
        let Some(healed) = self.healed else {
            return Ok(());
        };
        let late = |since: &u64| now > healed.max(*since) + IN_DOUBT_MS;
        match self.since.iter().find(|(_, since)| late(since)) {
            Some((key, since)) => Err(format!("{key} is in doubt since {since} ms")),
            None => Ok(()),
        }
    }

    fn at_end(&mut self, end: &End, _ledger: &Ledger) -> Verdict {
        if let Some(client) = end.unserved.first() {
            return Err(format!("a client waits still: {client}"));
        }
        match (end.in_flight, end.undelivered, end.locks) {
            (0, 0, 0) => Ok(()),
            left => Err(format!(
                "transactions in flight, undelivered, and locks held: {left:?}"
            )),
        }
    }
}
