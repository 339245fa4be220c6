//! Nothing is left prepared in any database.

use super::{Evidence, Violation};

pub(super) fn check(evidence: &Evidence<'_>) -> Vec<Violation> {
    let prepared = evidence.tables.prepared.iter();
    prepared
        .map(|(bank, branch)| Violation::LeftPrepared {
            bank: evidence.banks[*bank].name.clone(),
            branch: branch.clone(),
        })
        .collect()
}
