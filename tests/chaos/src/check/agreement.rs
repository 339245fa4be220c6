//! Each piece of work is in all of its databases or in none, and nothing is there that nobody asked for. Work with a branch that was ended by hand
//! may be torn, but then the coordinator shows it; and it shows nothing else.

use crate::expected::{Found, found};

use super::{Evidence, Violation};

pub(super) fn check(evidence: &Evidence<'_>) -> Vec<Violation> {
    let by_hand = evidence.requests_by_hand();
    let mut violations = Vec::new();
    for (request, rows) in &evidence.rows {
        let Some(asked) = evidence.history.requests.get(request) else {
            violations.push(Violation::Unasked {
                request: request.clone(),
            });
            continue;
        };
        let torn = found(&asked.work, Some(rows)) == Found::Torn;
        if torn && !by_hand.contains(request.as_str()) {
            violations.push(Violation::Torn {
                request: request.clone(),
                rows: format!("{rows:?} of {:?}", asked.work.effects),
            });
        }
    }
    violations.extend(hidden(evidence));
    violations.extend(made_up(evidence));
    violations
}

/// Torn by hand, and not shown.
fn hidden(evidence: &Evidence<'_>) -> Vec<Violation> {
    let torn = evidence.torn_by_hand();
    torn.difference(evidence.shown)
        .map(|id| Violation::Hidden {
            transaction: id.clone(),
        })
        .collect()
}

/// Shown, and nobody's hand was there.
fn made_up(evidence: &Evidence<'_>) -> Vec<Violation> {
    let made_up = evidence.shown.difference(evidence.by_hand);
    made_up
        .map(|id| Violation::Heuristic {
            transaction: id.clone(),
        })
        .collect()
}
