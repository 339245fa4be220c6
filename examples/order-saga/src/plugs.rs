//! Whose plugs to pull.

use example_harness::processes::ProcessId;

/// What to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Target {
    /// The coordinator.
    Coordinator,
    /// The agents of orders, shipping and payment.
    Agents,
    /// The services: stock and payment.
    Services,
    /// Whichever.
    All,
}

/// The processes around the coordinator.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cast {
    pub(crate) agents: Vec<ProcessId>,
    pub(crate) services: Vec<ProcessId>,
}

impl Cast {
    /// Those that are meant.
    pub(crate) fn victims(&self, targets: &[Target]) -> Vec<ProcessId> {
        let among = |wanted: [Target; 2]| targets.iter().any(|target| wanted.contains(target));
        let mut victims = Vec::new();
        if among([Target::Coordinator, Target::All]) {
            victims.push(ProcessId::COORDINATOR);
        }
        if among([Target::Agents, Target::All]) {
            victims.extend(&self.agents);
        }
        if among([Target::Services, Target::All]) {
            victims.extend(&self.services);
        }
        victims
    }
}
