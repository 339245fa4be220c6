//! What a piece of work left in the databases, held against what it may leave.

use std::collections::HashMap;

use crate::{tables::Tables, work::Effect, work::Work};

/// What the rows of one piece of work amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// No row.
    Nothing,
    /// All effects.
    Whole,
    /// Of a saga: nothing, but steps with what undid them.
    Undone,
    /// Neither of these.
    Torn,
}

/// The rows of each piece of work: how often each is there.
pub(crate) type Rows = HashMap<String, HashMap<Effect, usize>>;

/// All rows of the ledgers, by request.
pub(crate) fn rows(tables: &Tables) -> Rows {
    let mut rows = Rows::new();
    for (bank, ledger) in tables.ledgers.iter().enumerate() {
        for entry in ledger {
            let effect = Effect {
                bank,
                part: entry.part.clone(),
                account: entry.account,
                amount: entry.amount,
            };
            let of_request = rows.entry(entry.request.clone()).or_default();
            *of_request.entry(effect).or_default() += 1;
        }
    }
    rows
}

/// Whether rows are there once or more often is another question.
pub(crate) fn found(work: &Work, rows: Option<&HashMap<Effect, usize>>) -> Found {
    let Some(rows) = rows else {
        return Found::Nothing;
    };
    let has = |effect: &Effect| rows.contains_key(effect);
    if work.effects.iter().all(has) && rows.len() == work.effects.len() {
        return Found::Whole;
    }
    let undone = work.undone();
    let pairs = undone
        .iter()
        .filter(|(done, undo)| has(done) && has(undo))
        .count();
    match pairs > 0 && rows.len() == 2 * pairs {
        true => Found::Undone,
        false => Found::Torn,
    }
}
