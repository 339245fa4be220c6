//! Shrinks the plan of a failing life: leaves entries out, in ever smaller parts, for as long as the same promise is still broken.

use std::collections::BTreeSet;

use crate::life::Life;

/// Lives that may be lived for it.
const ATTEMPTS: usize = 600;

/// The smallest that was found.
pub(crate) fn shrink(life: &Life, invariant: &'static str) -> Life {
    let mut kept: Vec<usize> = life.plan().entries.iter().map(|e| e.number).collect();
    let mut attempts = 0;
    let mut part = kept.len().div_ceil(2);
    while part > 0 && attempts < ATTEMPTS {
        let mut at = 0;
        while at < kept.len() && attempts < ATTEMPTS {
            let end = kept.len().min(at + part);
            let rest: Vec<usize> = [&kept[..at], &kept[end..]].concat();
            attempts += 1;
            if breaks(life, &rest, invariant) {
                kept = rest;
            } else {
                at = end;
            }
        }
        part = if part == 1 { 0 } else { part.div_ceil(2) };
    }
    only(life, &kept)
}

fn only(life: &Life, kept: &[usize]) -> Life {
    Life {
        only: Some(BTreeSet::from_iter(kept.iter().copied())),
        ..life.clone()
    }
}

fn breaks(life: &Life, kept: &[usize], invariant: &'static str) -> bool {
    let lived = only(life, kept).live(false);
    lived
        .violation
        .is_some_and(|found| found.invariant == invariant)
}
