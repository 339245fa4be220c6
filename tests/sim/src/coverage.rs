//! A campaign in which a fault never landed, or an outcome never came, proves less than it seems: so it fails.

use crate::{figures::Figures, plan::Workload};

/// Fewer lives need not have it all.
pub(crate) const LIVES: u64 = 500;

const FAULTS: [&str; 26] = [
    "agent_dies",
    "busy",
    "by_hand",
    "call_lost",
    "cancel",
    "checkpoints",
    "conflict",
    "coordinator_dies",
    "database_away",
    "dies_in_recovery",
    "drains",
    "foreign_branch",
    "lookup",
    "message_delayed",
    "message_dropped",
    "message_duplicated",
    "operator_resolves",
    "operator_resolves_step",
    "operator_retries",
    "partition",
    "reply_lost",
    "session_breaks",
    "step_fails",
    "sync_fails",
    "sync_is_slow",
    "work_is_slow",
];

const OUTCOMES: [&str; 4] = ["aborted", "committed", "compensated", "heuristic"];
const VOTES: [&str; 5] = ["committed", "duplicate", "no", "read_only", "yes"];

/// What never came up in a campaign that was long enough, of everything.
pub(crate) fn missing(figures: &Figures, workload: Workload) -> Vec<String> {
    if figures.lives < LIVES || workload != Workload::Mixed {
        return Vec::new();
    }
    let faults = FAULTS
        .iter()
        .filter(|name| !figures.faults.contains_key(*name));
    let outcomes = OUTCOMES
        .iter()
        .filter(|name| !figures.outcomes.contains_key(*name));
    let votes = VOTES
        .iter()
        .filter(|name| !figures.votes.contains_key(*name));
    let named = |kind: &str, name: &&&str| format!("{kind} {name}");
    let mut missing: Vec<String> = faults.map(|name| named("fault", &name)).collect();
    missing.extend(outcomes.map(|name| named("outcome", &name)));
    missing.extend(votes.map(|name| named("vote", &name)));
    if figures.torn_batches == 0 {
        missing.push("torn batch".into());
    }
    missing
}
