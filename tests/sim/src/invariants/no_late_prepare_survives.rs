//! No prepare that slipped in after an abort survives: when all has come to rest, nothing of ours is prepared anywhere.

use super::{Invariant, Ledger, Verdict};
use crate::{
    fact::{End, Fact},
    world::LOG,
};

#[derive(Default)]
pub(crate) struct NoLatePrepareSurvives;

impl Invariant for NoLatePrepareSurvives {
    fn name(&self) -> &'static str {
        "no_late_prepare_survives"
    }

    fn observe(&mut self, _now: u64, _fact: &Fact<'_>, _ledger: &Ledger) -> Verdict {
        Ok(())
    }

    fn at_end(&mut self, end: &End, ledger: &Ledger) -> Verdict {
        let own = |id: &unanimity_engine::TransactionId| {
            id.log == LOG && id.epoch <= ledger.durable.epoch
        };
        let keys = end
            .prepared
            .iter()
            .filter_map(|(site, found)| Some((site, found.key?)));
        let mut left = keys.filter(|(_, key)| own(&key.transaction));
        match left.next() {
            Some((site, key)) => Err(format!("{key} is still prepared at site {site}")),
            None => Ok(()),
        }
    }
}
