//! What the engine holds in memory stays within its bounds.

use super::{Invariant, Ledger, Verdict};
use crate::fact::{End, Fact};

/// A saga that was taken on may start this many groups, which are transactions of their own.
const GROUPS: usize = 3;

#[derive(Default)]
pub(crate) struct Boundedness;

impl Invariant for Boundedness {
    fn name(&self) -> &'static str {
        "boundedness"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, _ledger: &Ledger) -> Verdict {
        let Fact::Held {
            in_flight,
            in_flight_max,
            remembered,
            remembered_max,
        } = fact
        else {
            return Ok(());
        };
        if *in_flight > in_flight_max * (1 + GROUPS) {
            return Err(format!(
                "{in_flight} transactions are in flight, of {in_flight_max}"
            ));
        }
        if remembered > remembered_max {
            return Err(format!("{remembered} are remembered, of {remembered_max}"));
        }
        Ok(())
    }

    /// A slot that nobody gives back is lost for ever.
    fn at_end(&mut self, end: &End, _ledger: &Ledger) -> Verdict {
        match end.slots {
            (0, 0) => Ok(()),
            (used, waiting) => Err(format!(
                "{used} slots are taken and {waiting} wait for one, at rest"
            )),
        }
    }
}
