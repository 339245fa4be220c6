//! Replay is idempotent: a log folded twice tells what it tells folded once.

use super::{Invariant, Ledger, Verdict};
use crate::fact::Fact;

#[derive(Default)]
pub(crate) struct ReplayIdempotent;

impl Invariant for ReplayIdempotent {
    fn name(&self) -> &'static str {
        "replay_idempotent"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, _ledger: &Ledger) -> Verdict {
        match fact {
            Fact::Started {
                again: Some(difference),
                ..
            } => Err(difference.clone()),
            _ => Ok(()),
        }
    }
}
