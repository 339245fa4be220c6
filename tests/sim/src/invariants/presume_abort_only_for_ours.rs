//! Abort is presumed only for what is ours: a branch of another log, or of an epoch that this log has not come to, is listed and never touched.

use std::collections::BTreeSet;

use unanimity_engine::Epoch;

use super::{Invariant, Ledger, Verdict};
use crate::{
    fact::{End, Fact, key_of},
    world::LOG,
};

#[derive(Default)]
pub(crate) struct PresumeAbortOnlyForOurs {
    epoch: Epoch,
}

impl Invariant for PresumeAbortOnlyForOurs {
    fn name(&self) -> &'static str {
        "presume_abort_only_for_ours"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, _ledger: &Ledger) -> Verdict {
        match fact {
            Fact::Started { epoch, .. } => self.epoch = Epoch(*epoch),
            Fact::Sent { message, .. } => {
                let foreign = key_of(message).filter(|key| {
                    let id = key.transaction;
                    id.log != LOG || id.epoch > self.epoch
                });
                if let Some(key) = foreign {
                    return Err(format!("{key} was touched, which is not ours"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn at_end(&mut self, end: &End, _ledger: &Ledger) -> Verdict {
        let listed: BTreeSet<&str> = end.untouchable.iter().map(String::as_str).collect();
        let foreign = |found: &unanimity_engine::Found| {
            found
                .key
                .is_none_or(|key| key.transaction.log != LOG || key.transaction.epoch > self.epoch)
        };
        let mut found = end
            .prepared
            .iter()
            .map(|(_, found)| found)
            .filter(|f| foreign(f));
        match found.find(|found| !listed.contains(found.identifier.as_str())) {
            Some(found) => Err(format!(
                "{} is not ours, and is not shown",
                found.identifier
            )),
            None => Ok(()),
        }
    }
}
