//! Each call is answered once at most, and none that was not made.

use std::collections::BTreeSet;

use unanimity_engine::Ticket;

use super::{Invariant, Ledger, Verdict};
use crate::fact::Fact;

#[derive(Default)]
pub(crate) struct AnsweredOnce {
    open: BTreeSet<Ticket>,
}

impl Invariant for AnsweredOnce {
    fn name(&self) -> &'static str {
        "answered_once"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, _ledger: &Ledger) -> Verdict {
        match fact {
            Fact::Called(ticket) => _ = self.open.insert(*ticket),
            Fact::Died { .. } => self.open.clear(),
            Fact::Answered { ticket, .. } if !self.open.remove(ticket) => {
                return Err(format!(
                    "call {} was answered twice, or never made",
                    ticket.0
                ));
            }
            _ => {}
        }
        Ok(())
    }
}
