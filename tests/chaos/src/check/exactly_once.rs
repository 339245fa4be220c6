//! Every effect is there once, and every account changed as often as its ledger has rows.

use std::collections::HashMap;

use super::{Evidence, Violation};

pub(super) fn check(evidence: &Evidence<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (request, rows) in &evidence.rows {
        for (effect, _) in rows.iter().filter(|(_, times)| **times > 1) {
            violations.push(Violation::Doubled {
                request: request.clone(),
                row: format!("{effect:?}"),
            });
        }
    }
    let by_bank = evidence
        .tables
        .accounts
        .iter()
        .zip(&evidence.tables.ledgers);
    for (bank, (accounts, ledger)) in evidence.banks.iter().zip(by_bank) {
        let mut entries: HashMap<i64, i64> = HashMap::new();
        for entry in ledger {
            *entries.entry(entry.account).or_default() += 1;
        }
        for account in accounts {
            let entries = entries.get(&account.id).copied().unwrap_or_default();
            if account.version != entries {
                violations.push(Violation::Version {
                    bank: bank.name.clone(),
                    account: account.id,
                    version: account.version,
                    entries,
                });
            }
        }
    }
    violations
}
