//! An outcome, once seen, never changes, over whatever restarts; and it is what the databases say.

use std::collections::HashMap;

use crate::{
    expected::{Found, found},
    history::{Outcome, Seen},
};

use super::{Evidence, Violation};

pub(super) fn check(evidence: &Evidence<'_>) -> Vec<Violation> {
    let changed = evidence.history.changes.iter().filter(|change| {
        let Violation::OutcomeChanged {
            transaction, after, ..
        } = change
        else {
            return true;
        };
        // A hand was faster than the decision, or slower.
        !(*after == Outcome::Heuristic && evidence.by_hand.contains(transaction))
    });
    let mut violations: Vec<_> = changed.cloned().collect();
    violations.extend(contradicted(evidence));
    violations
}

/// A request that was aborted may run anew after a restart, as another transaction: at most one of them commits.
fn contradicted(evidence: &Evidence<'_>) -> Vec<Violation> {
    let mut by_request: HashMap<&str, Vec<(&String, &Seen)>> = HashMap::new();
    for (id, seen) in &evidence.history.seen {
        if let Some(request) = &seen.request {
            by_request.entry(request).or_default().push((id, seen));
        }
    }
    let by_hand = evidence.requests_by_hand();
    let mut violations = Vec::new();
    for (request, transactions) in by_request {
        let Some(asked) = evidence.history.requests.get(request) else {
            continue;
        };
        if by_hand.contains(request) {
            continue;
        }
        let found = found(&asked.work, evidence.rows.get(request));
        let committed: Vec<_> = transactions
            .iter()
            .filter(|(_, seen)| seen.outcome == Outcome::Committed)
            .collect();
        let wrong = match committed.len() {
            // What one database commits in one phase, the log doesn't know after a restart. All else stands in it.
            0 => found == Found::Whole && asked.work.writes_to_several(),
            1 => found != Found::Whole,
            _ => true,
        };
        if wrong {
            let (id, seen) = committed.first().copied().unwrap_or(&transactions[0]);
            violations.push(Violation::Contradicted {
                transaction: (*id).clone(),
                request: request.to_owned(),
                said: seen.outcome,
                found: format!("{found:?}, of {} transactions", transactions.len()),
            });
        }
    }
    violations
}
