//! Whose plugs to pull, and what hangs in the air meanwhile.

use std::collections::HashSet;

use anyhow::Result;
use example_harness::processes::ProcessId;

use crate::bank::Bank;

/// What to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Target {
    /// The coordinator.
    Coordinator,
    /// The agents of the banks.
    Participant,
    /// Whichever.
    All,
}

/// The processes that are meant.
pub(crate) fn victims(targets: &[Target], agents: &[ProcessId]) -> Vec<ProcessId> {
    let among = |wanted: [Target; 2]| targets.iter().any(|target| wanted.contains(target));
    let mut victims = Vec::new();
    if among([Target::Coordinator, Target::All]) {
        victims.push(ProcessId::COORDINATOR);
    }
    if among([Target::Participant, Target::All]) {
        victims.extend(agents);
    }
    victims
}

/// The branches of a coordinator, by its log's id, that are prepared in any bank.
pub(crate) async fn in_doubt(log_id: &str, banks: &[Bank]) -> Result<HashSet<String>> {
    let ours = format!("u1.{log_id}.");
    let mut found = HashSet::new();
    for bank in banks {
        found.extend(bank.prepared().await?);
    }
    found.retain(|branch| branch.starts_with(&ours));
    Ok(found)
}
