//! Transactions as the coordinator shows them.

use std::{collections::HashSet, time::SystemTime};

use unanimity_proto::v1;

use crate::{
    Aborted, BranchState, Client, Error, TransactionState,
    error::{Doubt, Verdict},
};

/// A transaction as it stood when the coordinator answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// `u1.<log id>.<epoch>.<uuid>`.
    pub transaction_id: String,
    /// The client's idempotency key, where it gave one.
    pub request_id: Option<String>,
    /// Where it stands.
    pub state: TransactionState,
    /// Its branches.
    pub branches: Vec<Branch>,
    /// Why it was aborted, where it was.
    pub aborted: Option<Aborted>,
    /// When the coordinator took it on.
    pub start_time: Option<SystemTime>,
}

/// A branch as it stood.
#[derive(Clone, Debug, PartialEq)]
pub struct Branch {
    /// Its number within the transaction, from 1.
    pub number: u32,
    /// The participant that does it.
    pub participant: String,
    /// Where it stands.
    pub state: BranchState,
    /// How often the decision was sent to it.
    pub delivery_attempts: u32,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Why an operator settled it, where one did.
    pub resolution_reason: Option<String>,
}

impl Snapshot {
    /// A transaction that is missing, or of a form that we don't know, is no answer.
    pub(crate) fn from_wire(transaction: Option<v1::Transaction>) -> Result<Self, Verdict> {
        Self::parse(transaction).map_err(|what| {
            Verdict::MaybeTaken(Doubt::no_answer(format!(
                "the coordinator's answer can't be understood: {what}"
            )))
        })
    }

    fn parse(transaction: Option<v1::Transaction>) -> Result<Self, String> {
        let transaction = transaction.ok_or("it holds no transaction")?;
        let id = transaction.transaction_id;
        let legal = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase() || byte == b'.';
        if id.is_empty() || id.len() > 64 || !id.bytes().all(legal) {
            return Err(format!("{id:?} is no transaction id"));
        }
        let state = match TransactionState::try_from(transaction.state) {
            Ok(TransactionState::Unspecified) | Err(_) => {
                return Err(format!("state {}", transaction.state));
            }
            Ok(state) => state,
        };
        let aborted = transaction.abort_reason.map(|reason| Aborted {
            transaction_id: id.clone(),
            // A code of tomorrow doesn't make the abort any less certain.
            code: reason.code(),
            participant: non_empty(reason.participant),
            message: reason.message,
        });
        Ok(Self {
            request_id: non_empty(transaction.request_id),
            state,
            branches: transaction
                .branches
                .into_iter()
                .map(branch)
                .collect::<Result<_, _>>()?,
            aborted,
            start_time: transaction.start_time.and_then(|time| time.try_into().ok()),
            transaction_id: id,
        })
    }
}

fn branch(branch: v1::Branch) -> Result<Branch, String> {
    let state = match BranchState::try_from(branch.state) {
        Ok(BranchState::Unspecified) | Err(_) => {
            return Err(format!("branch state {}", branch.state));
        }
        Ok(state) => state,
    };
    Ok(Branch {
        number: branch.number,
        participant: branch.participant,
        state,
        delivery_attempts: branch.delivery_attempts,
        last_error: non_empty(branch.last_error),
        resolution_reason: non_empty(branch.resolution_reason),
    })
}

pub(crate) fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Which transactions to list; from [`Client::list`].
#[derive(Clone, Debug)]
#[must_use = "nothing is asked until page()"]
pub struct Listing {
    client: Client,
    states: HashSet<TransactionState>,
    participant: String,
    page_size: u32,
    page_token: String,
}

/// A page of transactions, newest first.
#[derive(Clone, Debug)]
pub struct Page {
    /// The transactions.
    pub transactions: Vec<Snapshot>,
    /// For [`Listing::after`]; `None` on the last page.
    pub next: Option<String>,
}

impl Listing {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            states: HashSet::new(),
            participant: String::new(),
            page_size: 100,
            page_token: String::new(),
        }
    }

    /// Only those in this state, or in another one so named.
    pub fn state(mut self, state: TransactionState) -> Self {
        self.states.insert(state);
        self
    }

    /// Only those with a branch at this participant.
    pub fn participant(mut self, name: impl Into<String>) -> Self {
        self.participant = name.into();
        self
    }

    /// At most this many on a page: 100 by default, 1000 at most.
    pub fn page_size(mut self, size: u32) -> Self {
        self.page_size = size;
        self
    }

    /// Goes on where a page ended.
    pub fn after(mut self, next: impl Into<String>) -> Self {
        self.page_token = next.into();
        self
    }

    /// Asks for the page.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Unavailable`].
    pub async fn page(self) -> Result<Page, Error> {
        let request = v1::ListTransactionsRequest {
            page_size: self.page_size.try_into().unwrap_or(i32::MAX),
            page_token: self.page_token,
            states: self.states.into_iter().map(Into::into).collect(),
            participant: self.participant,
        };
        let response = self
            .client
            .read(
                |mut service, request| async move { service.list_transactions(request).await },
                request,
            )
            .await?;
        let transactions = response
            .transactions
            .into_iter()
            .map(|transaction| Snapshot::parse(Some(transaction)));
        Ok(Page {
            transactions: transactions
                .collect::<Result<_, _>>()
                .map_err(|what| Error::from(Doubt::no_answer(what)))?,
            next: non_empty(response.next_page_token),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_of_tomorrow_is_not_understood() {
        let transaction = |state, id: &str| v1::Transaction {
            transaction_id: id.into(),
            state,
            ..Default::default()
        };
        assert!(Snapshot::parse(Some(transaction(6, "u1.0a.1.2"))).is_ok());
        assert!(Snapshot::parse(Some(transaction(99, "u1.0a.1.2"))).is_err());
        assert!(Snapshot::parse(Some(transaction(0, "u1.0a.1.2"))).is_err());
        assert!(Snapshot::parse(Some(transaction(6, "U1\n"))).is_err());
        assert!(Snapshot::parse(None).is_err());
    }
}
