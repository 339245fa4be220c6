//! Money is neither made nor lost, and each balance is what its ledger says.

use std::collections::HashMap;

use crate::bank::INITIAL_BALANCE;

use super::{Evidence, Violation};

pub(super) fn check(evidence: &Evidence<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let by_bank = evidence
        .tables
        .accounts
        .iter()
        .zip(&evidence.tables.ledgers);
    for (bank, (accounts, ledger)) in evidence.banks.iter().zip(by_bank) {
        let mut moved: HashMap<i64, i64> = HashMap::new();
        for entry in ledger {
            *moved.entry(entry.account).or_default() += entry.amount;
        }
        for account in accounts {
            let expected = INITIAL_BALANCE + moved.get(&account.id).copied().unwrap_or_default();
            if account.balance != expected {
                violations.push(Violation::Balance {
                    bank: bank.name.clone(),
                    account: account.id,
                    balance: account.balance,
                    expected,
                });
            }
        }
    }
    violations.extend(total(evidence));
    violations
}

/// All banks together hold what they held, but for what hands did.
fn total(evidence: &Evidence<'_>) -> Option<Violation> {
    let accounts = || evidence.tables.accounts.iter().flatten();
    let initial: i64 = accounts().map(|_| INITIAL_BALANCE).sum();
    let by_hand: i64 = evidence
        .requests_by_hand()
        .into_iter()
        .filter_map(|request| evidence.rows.get(request))
        .flatten()
        .map(|(effect, times)| effect.amount * i64::try_from(*times).unwrap_or(i64::MAX))
        .sum();
    let total: i64 = accounts().map(|account| account.balance).sum();
    let expected = initial + by_hand;
    (total != expected).then_some(Violation::Total { total, expected })
}
