//! All or nothing, over three databases.

use unanimity_client::AbortCode;
use unanimity_proto::v1::InDoubtKind;
use unanimity_tests::{
    bank::{Bank, INITIAL_BALANCE, aborted, committed, side},
    system::{Agent, Coordinator, Scratch},
};

struct System {
    coordinator: Coordinator,
    banks: [Bank; 3],
    _agents: Vec<Agent>,
    _scratch: Scratch,
}

async fn system() -> System {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let banks = Bank::three(&scratch).await;
    let mut agents = Vec::new();
    for bank in &banks {
        agents.push(Agent::start(&scratch, &coordinator, bank).await);
    }
    System {
        coordinator,
        banks,
        _agents: agents,
        _scratch: scratch,
    }
}

impl System {
    /// Debits the first bank by twice the amount that it credits to the two others.
    fn spread(
        &self,
        client: &unanimity_client::Client,
        order: [usize; 3],
        amount: i64,
    ) -> unanimity_client::Submission {
        let [from, one, other] = order.map(|index| &self.banks[index]);
        client
            .transaction()
            .branch(&from.name, side("debit", "t", 1, 2 * amount, -2 * amount))
            .branch(&one.name, side("credit", "t", 1, amount, amount))
            .branch(&other.name, side("credit", "t", 1, amount, amount))
    }

    async fn balances(&self) -> [i64; 3] {
        let [lite, post, maria] = &self.banks;
        [
            lite.balance(1).await,
            post.balance(1).await,
            maria.balance(1).await,
        ]
    }

    async fn nothing_is_prepared(&self) {
        let prefix = format!("u1.{}.", self.coordinator.log_id().await);
        for bank in &self.banks {
            bank.has_prepared(&prefix, 0).await;
        }
        // On the shared servers other tests' branches are prepared too.
        let mut ours = self.coordinator.in_doubt().await;
        ours.retain(|branch| branch.kind() != InDoubtKind::Foreign);
        assert_eq!(ours, []);
    }
}

const ORDERS: [[usize; 3]; 3] = [[0, 1, 2], [1, 2, 0], [2, 0, 1]];

#[tokio::test]
async fn a_transaction_commits_in_all_three_databases() {
    let system = system().await;
    let client = system.coordinator.client().await;
    let [from, one, other] = &system.banks;
    committed(system.spread(&client, ORDERS[0], 10).submit().await);
    assert_eq!(
        system.balances().await,
        [
            INITIAL_BALANCE - 20,
            INITIAL_BALANCE + 10,
            INITIAL_BALANCE + 10
        ]
    );
    for bank in [from, one, other] {
        assert_eq!(bank.entries("t").await, 1, "{}", bank.name);
    }
    system.nothing_is_prepared().await;
}

#[tokio::test]
async fn an_overdrawn_account_in_any_database_undoes_all_of_them_and_the_client_hears_why() {
    let system = system().await;
    let client = system.coordinator.client().await;
    for order in ORDERS {
        let outcome = system
            .spread(&client, order, INITIAL_BALANCE)
            .submit()
            .await;
        let aborted = aborted(outcome);
        assert_eq!(aborted.code, AbortCode::Refused, "{aborted:?}");
        assert_eq!(
            aborted.participant.as_ref(),
            Some(&system.banks[order[0]].name),
            "{aborted:?}"
        );
        assert!(
            aborted.message.contains("account_not_overdrawn"),
            "{aborted:?}"
        );
        assert!(!aborted.is_transient());
        assert_eq!(system.balances().await, [INITIAL_BALANCE; 3]);
        for bank in &system.banks {
            assert_eq!(bank.entries("t").await, 0, "{}", bank.name);
        }
    }
    system.nothing_is_prepared().await;
}

#[tokio::test]
async fn an_account_that_is_not_there_refuses_by_the_number_of_rows() {
    let system = system().await;
    let client = system.coordinator.client().await;
    for [from, to, _] in ORDERS {
        let [from, to] = [from, to].map(|index| &system.banks[index]);
        let transaction = client
            .transaction()
            .branch(&from.name, side("debit", "t", 1, 5, -5))
            .branch(&to.name, side("credit", "t", 999, 5, 5));
        let aborted = aborted(transaction.submit().await);
        assert_eq!(
            (aborted.code, aborted.participant.as_ref()),
            (AbortCode::Refused, Some(&to.name)),
            "{aborted:?}"
        );
    }
    assert_eq!(system.balances().await, [INITIAL_BALANCE; 3]);
    system.nothing_is_prepared().await;
}

#[tokio::test]
async fn an_interactive_transaction_reads_its_own_writes_and_commits_everywhere() {
    let system = system().await;
    let client = system.coordinator.client().await;
    let names = system.banks.each_ref().map(|bank| bank.name.as_str());
    for commits in [false, true] {
        let begin = names
            .into_iter()
            .fold(client.begin(), |begin, name| begin.participant(name));
        let transaction = begin.start().await.expect("it starts");
        for (bank, operation) in names.into_iter().zip(["debit", "debit", "credit"]) {
            let [change, _] = side(operation, "i", 2, 7, 0);
            transaction.execute(bank, change).await.expect("it works");
            let read = unanimity_client::Operation::named("balance").with("account", 2);
            let rows = transaction.execute(bank, read).await.expect("it reads");
            let expected = if operation == "debit" {
                INITIAL_BALANCE - 7
            } else {
                INITIAL_BALANCE + 7
            };
            let balance: i64 = rows
                .first()
                .expect("a row")
                .get("balance")
                .expect("a number");
            assert_eq!(balance, expected);
        }
        if commits {
            committed(transaction.commit().await);
        } else {
            transaction.abort("no more").await.expect("it aborts");
        }
    }
    let [lite, post, maria] = &system.banks;
    let balances = [
        lite.balance(2).await,
        post.balance(2).await,
        maria.balance(2).await,
    ];
    assert_eq!(
        balances,
        [
            INITIAL_BALANCE - 7,
            INITIAL_BALANCE - 7,
            INITIAL_BALANCE + 7
        ]
    );
    system.nothing_is_prepared().await;
}
