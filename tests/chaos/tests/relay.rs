//! Money moves through sessions whose messages come twice, late and out of turn, and over a crash of the coordinator: all or nothing, and once.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use unanimity_chaos::relay::{Mischief, Relay};
use unanimity_client::{Client, Error, Outcome};
use unanimity_tests::{
    bank::{ACCOUNTS, Bank, INITIAL_BALANCE, side, transfer},
    patience::becomes,
    system::{Agent, Coordinator, Scratch},
};

const CLIENTS: usize = 4;
const EACH: usize = 40;
const SEED: u64 = 11;

/// A transfer, operation by operation.
async fn by_hand(client: &Client, id: &str, from: &Bank, to: &Bank) -> Known {
    let begin = client.begin().request_id(id);
    let begin = begin.participant(&from.name).participant(&to.name);
    let Ok(open) = begin.timeout(Duration::from_secs(5)).start().await else {
        return Known::Nothing;
    };
    for (bank, operations) in [
        (from, side("debit", id, 1, 1, -1)),
        (to, side("credit", id, 1, 1, 1)),
    ] {
        // The money last: an entry that is made twice is refused, a debit is not.
        for operation in operations.into_iter().rev() {
            if open.execute(&bank.name, operation).await.is_err() {
                return Known::Nothing;
            }
        }
    }
    known(open.commit().await)
}

/// What the client knows of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Committed,
    Aborted,
    Nothing,
}

fn known(outcome: Result<Outcome, Error>) -> Known {
    match outcome {
        Ok(Outcome::Committed(_)) => Known::Committed,
        Ok(Outcome::Aborted(_)) => Known::Aborted,
        _ => Known::Nothing,
    }
}

/// Transfers between the banks in turn, every third by hand.
async fn traffic(
    client: Client,
    number: usize,
    banks: Arc<Vec<Bank>>,
    done: Arc<AtomicUsize>,
) -> Vec<(String, [usize; 2], Known)> {
    let mut heard = Vec::new();
    for turn in 0..EACH {
        let (from, to) = (turn % banks.len(), (turn + 1 + number % 2) % banks.len());
        let id = format!("{number}.{turn}");
        let (first, second) = (&banks[from], &banks[to]);
        let known = if turn % 3 == 0 {
            by_hand(&client, &id, first, second).await
        } else {
            let account = i64::try_from(turn).unwrap() % ACCOUNTS + 1;
            // Some want more than there is.
            let amount = if turn % 7 == 0 {
                INITIAL_BALANCE * 2
            } else {
                1
            };
            let transfer = transfer(&client, &id, first, second, account, amount);
            let transfer = transfer.request_id(&id).timeout(Duration::from_secs(5));
            known(transfer.submit().await)
        };
        heard.push((id, [from, to], known));
        done.fetch_add(1, Ordering::Relaxed);
    }
    heard
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_come_twice_late_or_out_of_turn_change_no_outcome() {
    let scratch = Scratch::new();
    let banks = Arc::new(Vec::from(Bank::three(&scratch).await));
    let mut coordinator = Coordinator::start(&scratch).await;
    let relay = Relay::start(coordinator.address(), SEED).await.unwrap();
    let mut agents = Vec::new();
    for bank in banks.iter() {
        let agent = Agent::launch(&scratch, &relay.address(), bank, &[]);
        agent.connects(&coordinator).await;
        agents.push(agent);
    }
    relay.set(Mischief::HEAVY);
    let done = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let client = coordinator.client().await;
        clients.push(tokio::spawn(traffic(
            client,
            number,
            Arc::clone(&banks),
            Arc::clone(&done),
        )));
    }
    becomes("half of the work", true, || async {
        done.load(Ordering::Relaxed) * 2 >= CLIENTS * EACH
    })
    .await;
    coordinator.kill_and_restart().await;
    let mut heard = Vec::new();
    for client in clients {
        heard.extend(client.await.unwrap());
    }
    relay.set(Mischief::NONE);
    settled(&coordinator, &banks, &heard).await;
    happened(&relay);
}

/// Nothing is left open, the money is all there, and each transfer is whole, once, and as its client heard.
async fn settled(coordinator: &Coordinator, banks: &[Bank], heard: &[(String, [usize; 2], Known)]) {
    for bank in banks {
        bank.has_prepared("u1.", 0).await;
    }
    becomes("branches in doubt", 0, || async {
        coordinator.in_doubt().await.len()
    })
    .await;
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (id, sides, known) in heard {
        let [from, to] = sides.map(|side| &banks[side]);
        let entries = (from.entries(id).await, to.entries(id).await);
        let whole = match known {
            Known::Committed => entries == (1, 1),
            Known::Aborted => entries == (0, 0),
            Known::Nothing => entries == (1, 1) || entries == (0, 0),
        };
        assert!(whole, "{id}: heard {known:?}, entries {entries:?}");
        *counts.entry(format!("{known:?}")).or_default() += 1;
    }
    let mut total = 0;
    for bank in banks {
        total += bank.total().await;
        let query = "SELECT count(*) FROM account WHERE balance <> 100 + \
             (SELECT COALESCE(SUM(amount), 0) FROM entry WHERE entry.account = account.id)";
        assert_eq!(
            bank.numbers(query).await,
            [0],
            "{}: by its entries",
            bank.name
        );
    }
    let everything = i64::try_from(banks.len()).unwrap() * ACCOUNTS * INITIAL_BALANCE;
    assert_eq!(total, everything);
    eprintln!("heard: {counts:?}");
    assert!(
        counts["Committed"] > 60 && counts["Aborted"] > 0,
        "{counts:?}"
    );
}

/// A relay that did nothing has proved nothing.
fn happened(relay: &Relay) {
    let counts = relay.counts();
    eprintln!("{counts:?}");
    for kind in [
        "prepare",
        "commit",
        "abort",
        "execute",
        "vote",
        "completion",
        "execute_result",
    ] {
        for done in [&counts.duplicated, &counts.delayed, &counts.replayed] {
            assert!(done.contains_key(kind), "no {kind} in {done:?}");
        }
    }
    assert!(!counts.of_old_epochs.is_empty());
}
