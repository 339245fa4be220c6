//! Points at which the coordinator can be told to kill itself, so that a harness can crash it at each moment that matters.
//!
//! Without the feature `failpoints` a point is nothing at all. With it, the process arms at its start what the environment names; see the
//! crate `unanimity-failpoint`. A point's name says where it is: before or after what it stands beside.

use unanimity_engine::{Downward, Upward};

/// A point; without the feature, nothing.
macro_rules! failpoint {
    ($name:literal) => {{
        #[cfg(feature = "failpoints")]
        unanimity_failpoint::reach($name);
    }};
}

/// Every point, in the order in which a transaction meets them.
#[cfg(any(test, feature = "failpoints"))]
pub const FAILPOINTS: &[&str] = &[
    "coordinator.log.replay",
    "coordinator.log.opened",
    "coordinator.epoch.before",
    "coordinator.epoch.after",
    "coordinator.session.hello",
    "coordinator.session.welcome",
    "coordinator.session.closed",
    "coordinator.call.received",
    "coordinator.send.prepare",
    "coordinator.receive.vote",
    "coordinator.log.append.before",
    "coordinator.log.append.after",
    "coordinator.send.commit",
    "coordinator.send.abort",
    "coordinator.receive.completion",
    "coordinator.answer.before",
    "coordinator.send.execute",
    "coordinator.receive.executed",
    "coordinator.receive.enlist",
    "coordinator.send.enlisted",
    "coordinator.send.run-step",
    "coordinator.send.settle-step",
    "coordinator.receive.step-result",
    "coordinator.send.list-in-doubt",
    "coordinator.receive.in-doubt",
    "coordinator.send.prove",
    "coordinator.receive.proof",
    "coordinator.log.rotated",
    "coordinator.checkpoint.before",
    "coordinator.checkpoint.after",
    "coordinator.log.trim.before",
    "coordinator.log.trim.after",
];

/// The points of messages that are about to go down.
pub(crate) fn sending(batch: &[Downward]) {
    for message in batch {
        match message {
            Downward::Welcome(_) => failpoint!("coordinator.session.welcome"),
            Downward::Prepare { .. } => failpoint!("coordinator.send.prepare"),
            Downward::Commit { .. } => failpoint!("coordinator.send.commit"),
            Downward::Abort { .. } => failpoint!("coordinator.send.abort"),
            Downward::Execute { .. } => failpoint!("coordinator.send.execute"),
            Downward::Enlisted { .. } => failpoint!("coordinator.send.enlisted"),
            Downward::RunStep { .. } => failpoint!("coordinator.send.run-step"),
            Downward::SettleStep { .. } => failpoint!("coordinator.send.settle-step"),
            Downward::ListInDoubt => failpoint!("coordinator.send.list-in-doubt"),
            Downward::Prove { .. } => failpoint!("coordinator.send.prove"),
        }
    }
}

/// The points of a message that has come up.
pub(crate) fn received(message: &Upward) {
    match message {
        Upward::Vote { .. } => failpoint!("coordinator.receive.vote"),
        Upward::Completion { .. } => failpoint!("coordinator.receive.completion"),
        Upward::Executed { .. } => failpoint!("coordinator.receive.executed"),
        Upward::Enlist { .. } => failpoint!("coordinator.receive.enlist"),
        Upward::InDoubt(_) => failpoint!("coordinator.receive.in-doubt"),
        Upward::StepResult { .. } => failpoint!("coordinator.receive.step-result"),
        Upward::Proof { .. } => failpoint!("coordinator.receive.proof"),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::FAILPOINTS;

    #[test]
    fn every_listed_point_is_in_the_source_once_and_every_one_in_the_source_is_listed() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let (found, twice) = unanimity_failpoint::in_sources(&source).expect("the sources");
        assert_eq!(twice, Vec::<String>::new());
        let listed: BTreeSet<String> = FAILPOINTS.iter().map(|&name| name.into()).collect();
        assert_eq!(found, listed);
    }
}
