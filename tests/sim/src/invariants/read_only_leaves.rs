//! A branch that voted read-only leaves at its vote, and hears no second phase.

use std::collections::{BTreeMap, BTreeSet};

use unanimity_engine::{BranchKey, Downward, SessionId, Upward, Vote};

use super::{Invariant, Ledger, Verdict};
use crate::fact::Fact;

#[derive(Default)]
pub(crate) struct ReadOnlyLeaves {
    /// Asked for its vote on this session, and told nothing since.
    asked: BTreeMap<BranchKey, SessionId>,
    left: BTreeSet<BranchKey>,
}

impl Invariant for ReadOnlyLeaves {
    fn name(&self) -> &'static str {
        "read_only_leaves"
    }

    fn observe(&mut self, _now: u64, fact: &Fact<'_>, _ledger: &Ledger) -> Verdict {
        match fact {
            Fact::Sent {
                session,
                message: Downward::Prepare { key, .. },
                ..
            } => _ = self.asked.insert(*key, *session),
            Fact::Sent {
                message: Downward::Commit { key, .. } | Downward::Abort { key, .. },
                ..
            } => {
                self.asked.remove(key);
                if self.left.contains(key) {
                    return Err(format!("{key} voted read-only, and hears a decision"));
                }
            }
            Fact::Heard {
                session,
                message:
                    Upward::Vote {
                        key,
                        vote: Vote::ReadOnly,
                    },
                ..
            } if self.asked.get(key) == Some(session) => _ = self.left.insert(*key),
            Fact::Closed(session) => self.asked.retain(|_, asked| asked != session),
            Fact::Died { .. } => {
                self.asked.clear();
                self.left.clear();
            }
            _ => {}
        }
        Ok(())
    }
}
