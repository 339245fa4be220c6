//! The checks bite: each is shown a history and tables that are in order, and then the same with one thing forged.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use crate::{
    bank::{ACCOUNTS, Account, Bank, Engine, Entry, INITIAL_BALANCE},
    history::{Outcome, Request, Seen, Told, View},
    tables::Tables,
    work::{Effect, Shape, Work},
};

use super::{Evidence, Violation, all};

/// A world of two banks and one transfer that is done.
struct World {
    banks: Vec<Bank>,
    tables: Tables,
    history: View,
    by_hand: BTreeSet<String>,
    shown: BTreeSet<String>,
}

const REQUEST: &str = "s1-1";
const TRANSACTION: &str = "u1.0.1.1";

fn effect(bank: usize, part: &str, amount: i64) -> Effect {
    Effect {
        bank,
        part: part.into(),
        account: 7,
        amount,
    }
}

fn entry(part: &str, amount: i64) -> Entry {
    Entry {
        request: REQUEST.into(),
        part: part.into(),
        account: 7,
        amount,
    }
}

fn accounts() -> Vec<Account> {
    let account = |id| Account {
        id,
        balance: INITIAL_BALANCE,
        version: 0,
    };
    (1..=ACCOUNTS).map(account).collect()
}

impl World {
    fn new() -> Self {
        let bank = |name: &str| Bank {
            name: name.into(),
            engine: Engine::Sqlite,
            url: String::new(),
            agents_url: String::new(),
        };
        let work = Work {
            request: REQUEST.into(),
            shape: Shape::Submitted {
                when_decided: false,
            },
            effects: vec![effect(0, "debit", -5), effect(1, "credit", 5)],
            reads: None,
            patience: Duration::ZERO,
        };
        let mut world = Self {
            banks: vec![bank("a"), bank("b")],
            tables: Tables {
                ledgers: vec![vec![], vec![]],
                accounts: vec![accounts(), accounts()],
                prepared: vec![],
            },
            history: View {
                requests: HashMap::from([(
                    REQUEST.into(),
                    Request {
                        work,
                        told: None,
                        was_unknown: false,
                    },
                )]),
                ..View::default()
            },
            by_hand: BTreeSet::new(),
            shown: BTreeSet::new(),
        };
        world.put(0, entry("debit", -5));
        world.put(1, entry("credit", 5));
        world.tell(Told::Committed {
            transaction: TRANSACTION.into(),
        });
        world.see(Outcome::Committed);
        world
    }

    /// As a database would: the row, and the account with it.
    fn put(&mut self, bank: usize, entry: Entry) {
        let account = &mut self.tables.accounts[bank][6];
        account.balance += entry.amount;
        account.version += 1;
        self.tables.ledgers[bank].push(entry);
    }

    /// As if it had never been.
    fn take(&mut self, bank: usize) {
        let entry = self.tables.ledgers[bank].remove(0);
        let account = &mut self.tables.accounts[bank][6];
        account.balance -= entry.amount;
        account.version -= 1;
    }

    fn tell(&mut self, told: Told) {
        let request = self.history.requests.get_mut(REQUEST);
        request.expect("it is there").told = Some(told);
    }

    fn see(&mut self, outcome: Outcome) {
        let request = Some(REQUEST.to_owned());
        let seen = Seen { outcome, request };
        self.history.seen.insert(TRANSACTION.into(), seen);
    }

    fn violations(&self) -> Vec<Violation> {
        all(&Evidence::new(
            &self.banks,
            &self.tables,
            &self.history,
            &self.by_hand,
            &self.shown,
        ))
    }
}

/// That something is reported, and that this is among it.
#[track_caller]
fn check(forge: impl FnOnce(&mut World), reported: impl Fn(&Violation) -> bool) {
    let mut world = World::new();
    forge(&mut world);
    let violations = world.violations();
    assert!(violations.iter().any(reported), "{violations:?}");
}

#[test]
fn what_is_in_order_passes() {
    assert_eq!(World::new().violations(), []);
}

#[test]
fn a_lost_twin_is_seen() {
    let torn = |violation: &Violation| matches!(violation, Violation::Torn { .. });
    check(|world| world.take(1), torn);
    check(
        |world| world.take(1),
        |violation| matches!(violation, Violation::Total { .. }),
    );
}

#[test]
fn an_effect_that_happened_twice_is_seen() {
    check(
        |world| world.put(1, entry("credit", 5)),
        |violation| matches!(violation, Violation::Doubled { .. }),
    );
}

#[test]
fn a_change_without_a_row_is_seen() {
    check(
        |world| world.tables.accounts[0][3].version += 1,
        |violation| matches!(violation, Violation::Version { .. }),
    );
    check(
        |world| world.tables.accounts[0][3].balance += 1,
        |violation| matches!(violation, Violation::Balance { .. }),
    );
}

#[test]
fn what_failed_and_is_there_is_seen() {
    for told in [Told::Aborted, Told::NotTaken, Told::Compensated] {
        check(
            |world| world.tell(told),
            |violation| matches!(violation, Violation::Undead { .. }),
        );
    }
}

#[test]
fn what_was_done_and_is_not_there_is_seen() {
    let gone = |world: &mut World| {
        world.take(0);
        world.take(1);
    };
    check(gone, |violation| {
        matches!(violation, Violation::Lost { .. })
    });
    check(gone, |violation| {
        matches!(violation, Violation::Contradicted { .. })
    });
}

#[test]
fn an_outcome_that_the_databases_contradict_is_seen() {
    check(
        |world| world.see(Outcome::Aborted),
        |violation| matches!(violation, Violation::Contradicted { .. }),
    );
}

#[test]
fn a_row_that_nobody_asked_for_is_seen() {
    let stranger = Entry {
        request: "s1-2".into(),
        ..entry("debit", -5)
    };
    check(
        |world| world.put(0, stranger),
        |violation| matches!(violation, Violation::Unasked { .. }),
    );
}

#[test]
fn a_branch_that_is_left_prepared_is_seen() {
    check(
        |world| world.tables.prepared.push((0, "u1.0.1.1.1".into())),
        |violation| matches!(violation, Violation::LeftPrepared { .. }),
    );
}

#[test]
fn what_was_torn_by_hand_has_to_be_shown_and_nothing_else() {
    let mut world = World::new();
    world.take(1);
    world.by_hand.insert(TRANSACTION.into());
    let hidden = Violation::Hidden {
        transaction: TRANSACTION.into(),
    };
    assert_eq!(world.violations(), [hidden]);
    world.shown.insert(TRANSACTION.into());
    assert_eq!(world.violations(), []);
    world.by_hand.clear();
    let violations = world.violations();
    let made_up = |violation: &Violation| matches!(violation, Violation::Heuristic { .. });
    assert!(violations.iter().any(made_up), "{violations:?}");
}
