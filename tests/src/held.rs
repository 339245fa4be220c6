//! A transaction that waits between its votes.

use tokio::task::JoinHandle;
use unanimity_client::{Client, Error, Operation, Outcome};
use unanimity_proto::v1::{self, BranchState, CompletionKind, VoteKind};

use crate::{
    bank::{Bank, side},
    fake::Fake,
    patience::becomes,
    system::Coordinator,
};

/// A transaction that is prepared in a bank, and waits for a fake's vote.
#[derive(Debug)]
pub struct Held {
    /// Its id.
    pub id: String,
    fake: Fake,
    prepare: v1::Prepare,
    /// What its client will hear.
    pub submitted: JoinHandle<Result<Outcome, Error>>,
}

impl Held {
    /// Starts one, and waits for the bank's vote.
    ///
    /// # Panics
    /// Where it doesn't come to that.
    pub async fn new(coordinator: &Coordinator, client: &Client, bank: &Bank) -> Self {
        let mut fake = Fake::open(&coordinator.address(), "fake").await;
        let transaction = client
            .transaction()
            .branch(&bank.name, side("debit", "held", 1, 5, -5))
            .branch("fake", [Operation::named("anything")]);
        let submitted = tokio::spawn(transaction.submit());
        let prepare = fake.prepare().await;
        let id = prepare
            .key
            .as_ref()
            .expect("a branch is named")
            .transaction_id
            .clone();
        becomes("the bank's vote", BranchState::Prepared, || async {
            state_at(coordinator, &id, &bank.name).await
        })
        .await;
        Self {
            id,
            fake,
            prepare,
            submitted,
        }
    }

    /// The fake votes yes and commits, which decides it.
    pub async fn decide(&mut self) {
        self.fake.vote_yes(self.prepare.key.clone());
        let commit = self.fake.commit().await;
        self.fake.complete(commit.key, CompletionKind::Committed);
    }

    /// The fake votes no.
    pub fn refuse(&self) {
        self.fake.vote(self.prepare.key.clone(), VoteKind::No);
    }

    /// The one prepared branch, as the database shows it.
    ///
    /// # Panics
    /// Where there is another number of them.
    pub async fn gid(&self, bank: &Bank) -> String {
        let prepared = bank.prepared(&self.id).await;
        assert_eq!(prepared.len(), 1, "{prepared:?}");
        prepared[0].clone()
    }
}

/// A transaction's branch at a participant.
///
/// # Panics
/// Where it has none.
pub async fn branch_at(coordinator: &Coordinator, id: &str, participant: &str) -> v1::Branch {
    let transaction = coordinator.transaction(id).await;
    let mut branches = transaction.branches.into_iter();
    branches
        .find(|branch| branch.participant == participant)
        .expect("it has a branch")
}

/// Where a transaction's branch at a participant stands.
pub async fn state_at(coordinator: &Coordinator, id: &str, participant: &str) -> BranchState {
    branch_at(coordinator, id, participant).await.state()
}
