//! What a client was told is so: done means that every row is there, not done means that none is.

use crate::{
    expected::{Found, found},
    history::Told,
};

use super::{Evidence, Violation};

pub(super) fn check(evidence: &Evidence<'_>) -> Vec<Violation> {
    let by_hand = evidence.requests_by_hand();
    let mut violations = Vec::new();
    for (request, asked) in &evidence.history.requests {
        if by_hand.contains(request.as_str()) {
            continue;
        }
        let found = found(&asked.work, evidence.rows.get(request));
        let Some(told) = &asked.told else { continue };
        let report = || (request.clone(), format!("{told:?}"));
        match told {
            Told::Committed { .. } if found != Found::Whole => {
                let (request, told) = report();
                violations.push(Violation::Lost { request, told });
            }
            Told::Aborted | Told::NotTaken if found != Found::Nothing => {
                let (request, told) = report();
                violations.push(Violation::Undead { request, told });
            }
            Told::Compensated if !matches!(found, Found::Undone | Found::Nothing) => {
                let (request, told) = report();
                violations.push(Violation::Undead { request, told });
            }
            Told::Committed { .. }
            | Told::Aborted
            | Told::NotTaken
            | Told::Compensated
            | Told::Heuristic { .. }
            | Told::Unknown => {}
        }
    }
    violations
}
