//! The promises, each in a file by its name. They are asked at rest: all faults are over, and nothing is in flight.

mod agreement;
mod conservation;
mod exactly_once;
mod settled;
mod stable;
mod told;

use std::{collections::BTreeSet, fmt};

use crate::{
    bank::Bank,
    expected::{self, Found, Rows, found},
    history::{Outcome, View},
    tables::Tables,
};

/// What all checks look at.
pub(crate) struct Evidence<'a> {
    pub(crate) banks: &'a [Bank],
    pub(crate) tables: &'a Tables,
    pub(crate) rows: Rows,
    pub(crate) history: &'a View,
    /// Transactions of which a branch was ended by hand.
    pub(crate) by_hand: &'a BTreeSet<String>,
    /// Transactions that the coordinator shows as heuristic.
    pub(crate) shown: &'a BTreeSet<String>,
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// A balance isn't what the ledger says.
    Balance {
        bank: String,
        account: i64,
        balance: i64,
        expected: i64,
    },
    /// Money came out of nothing, or went there.
    Total { total: i64, expected: i64 },
    /// Work is done in part.
    Torn { request: String, rows: String },
    /// A row that nobody asked for.
    Unasked { request: String },
    /// A row is there more than once.
    Doubled { request: String, row: String },
    /// An account changed more or less often than its ledger says.
    Version {
        bank: String,
        account: i64,
        version: i64,
        entries: i64,
    },
    /// A client was told that it is done, and it isn't.
    Lost { request: String, told: String },
    /// A client was told that nothing happens, and it did.
    Undead { request: String, told: String },
    /// The outcome of a transaction was another one later.
    OutcomeChanged {
        transaction: String,
        before: Outcome,
        after: Outcome,
    },
    /// The coordinator doesn't know a transaction any more whose outcome it told.
    Forgotten {
        transaction: String,
        before: Outcome,
    },
    /// The coordinator says another thing than the databases.
    Contradicted {
        transaction: String,
        request: String,
        said: Outcome,
        found: String,
    },
    /// A branch that was ended by hand against the decision isn't shown.
    Hidden { transaction: String },
    /// The coordinator shows a heuristic outcome, and nobody ended a branch by hand.
    Heuristic { transaction: String },
    /// A branch is prepared still.
    LeftPrepared { bank: String, branch: String },
    /// The coordinator has something in flight still.
    InFlight { what: String },
    /// It took too long until nothing was in doubt.
    InDoubtTooLong { milliseconds: u64 },
    /// A process ended as it never should.
    Ended { process: String, how: String },
    /// A branch of another log, or of a newer epoch, was touched.
    Touched { what: String },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Asks all of them.
pub(crate) fn all(evidence: &Evidence<'_>) -> Vec<Violation> {
    [
        conservation::check(evidence),
        agreement::check(evidence),
        exactly_once::check(evidence),
        told::check(evidence),
        stable::check(evidence),
        settled::check(evidence),
    ]
    .concat()
}

impl<'a> Evidence<'a> {
    pub(crate) fn new(
        banks: &'a [Bank],
        tables: &'a Tables,
        history: &'a View,
        by_hand: &'a BTreeSet<String>,
        shown: &'a BTreeSet<String>,
    ) -> Self {
        Self {
            banks,
            tables,
            rows: expected::rows(tables),
            history,
            by_hand,
            shown,
        }
    }

    /// Transactions with a branch that was ended by hand against the decision.
    pub(crate) fn torn_by_hand(&self) -> BTreeSet<String> {
        let torn = |id: &&String| {
            let seen = self.history.seen.get(*id);
            let request = seen.and_then(|seen| seen.request.as_ref());
            let asked = request.and_then(|request| self.history.requests.get(request));
            asked.is_some_and(|asked| {
                found(&asked.work, self.rows.get(&asked.work.request)) == Found::Torn
            })
        };
        self.by_hand.iter().filter(torn).cloned().collect()
    }

    /// Requests of which a transaction was ended by hand: these answer for themselves.
    pub(crate) fn requests_by_hand(&self) -> BTreeSet<&str> {
        let seen = self
            .by_hand
            .iter()
            .filter_map(|id| self.history.seen.get(id));
        seen.filter_map(|seen| seen.request.as_deref()).collect()
    }
}
