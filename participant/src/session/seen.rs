//! How far logs were seen to go, for as long as this process lives.
//!
//! A coordinator tells of a record only once it is on disk, so every later incarnation has it. One that has an older epoch, or fewer records than
//! were seen, runs on an old copy of its log, and would presume the abort of what the missing records decided to commit.

use std::collections::HashMap;

use unanimity_proto::v1;

use super::connection::Failure;
use crate::wire::Welcome;

/// Logs that are remembered. A participant meets a new one only when somebody starts a coordinator on an empty directory.
const LOGS: usize = 64;

/// By log: who was obeyed last, and the last record that was on disk then.
#[derive(Debug, Default)]
pub(crate) struct Seen(HashMap<String, (Welcome, u64)>);

impl Seen {
    /// Refuses an older coordinator of a log than the one obeyed before: what it decides may be void.
    pub(crate) fn obey(&mut self, welcome: &Welcome) -> Result<(), Failure> {
        if !self.0.contains_key(&welcome.log_id) && self.0.len() == LOGS {
            self.0.clear();
        }
        let first = || (welcome.clone(), 0);
        let (last, _) = self.0.entry(welcome.log_id.clone()).or_insert_with(first);
        if welcome.epoch < last.epoch {
            return Err(Failure::StaleEpoch {
                welcome: welcome.clone(),
                seen: last.epoch,
            });
        }
        last.clone_from(welcome);
        Ok(())
    }

    /// A record of a log that is obeyed is on disk.
    pub(crate) fn advance(&mut self, log: &str, sequence: u64) {
        if let Some((_, seen)) = self.0.get_mut(log) {
            *seen = sequence.max(*seen);
        }
    }

    /// For the next hello.
    pub(crate) fn positions(&self) -> Vec<v1::LogPosition> {
        let position = |(last, sequence): &(Welcome, u64)| v1::LogPosition {
            log_id: last.log_id.clone(),
            epoch: last.epoch,
            sequence: *sequence,
            instance: last.instance,
        };
        self.0.values().map(position).collect()
    }
}
