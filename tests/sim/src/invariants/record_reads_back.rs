//! A record reads back as it was written.

use super::{Invariant, Ledger, Verdict};
use crate::fact::Fact;

#[derive(Default)]
pub(crate) struct RecordReadsBack;

impl Invariant for RecordReadsBack {
    fn name(&self) -> &'static str {
        "record_reads_back"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, _ledger: &Ledger) -> Verdict {
        match fact {
            Fact::Garbled { record } => Err(format!("{record} reads back as something else")),
            _ => Ok(()),
        }
    }
}
