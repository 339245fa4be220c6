//! Transactions as the coordinator shows them.

use std::{collections::HashSet, time::SystemTime};

use unanimity_proto::v1;

use crate::{
    Aborted, BranchState, Client, Error, StepKind, StepState, TransactionState,
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
    /// How far it has come, where it is a saga. Its branches are then empty.
    pub saga: Option<SagaProgress>,
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

/// How far a saga had come.
#[derive(Clone, Debug, PartialEq)]
pub struct SagaProgress {
    /// Its steps, in the order of their definition.
    pub steps: Vec<StepProgress>,
    /// Keys of its locks.
    pub locks: Vec<String>,
    /// Fencing token of its locks; `None` while it waits for them.
    pub token: Option<u64>,
    /// Locks that it waited for, and that others held.
    pub waiting_for: Vec<String>,
    /// When it turns back unless it is past its pivot; `None` where it had not begun.
    pub deadline: Option<SystemTime>,
}

/// A step as it stood.
#[derive(Clone, Debug, PartialEq)]
pub struct StepProgress {
    /// Its name.
    pub name: String,
    /// What may become of it.
    pub kind: StepKind,
    /// Who does it: one, or all of an atomic group.
    pub participants: Vec<String>,
    /// Steps that come before it.
    pub after: Vec<String>,
    /// Where it stands.
    pub state: StepState,
    /// How often the action was sent.
    pub attempts: u32,
    /// How often the compensation was sent.
    pub compensation_attempts: u32,
    /// When it is tried again, where it waits for that.
    pub next_attempt_time: Option<SystemTime>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Tried so often without success that a human should look. It goes on being tried.
    pub stuck: bool,
    /// What the action gave back, JSON, where that is known. The coordinator keeps it until the saga ends.
    pub result: Option<String>,
    /// Why an operator marked it done, where one did.
    pub resolution_reason: Option<String>,
    /// Of an atomic group: the transaction of the last attempt.
    pub group_transaction_id: Option<String>,
    /// It can be undone.
    pub has_compensation: bool,
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
            saga: transaction.saga.map(saga).transpose()?,
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

fn saga(saga: v1::Saga) -> Result<SagaProgress, String> {
    Ok(SagaProgress {
        steps: saga.steps.into_iter().map(step).collect::<Result<_, _>>()?,
        locks: saga.locks,
        token: (saga.token > 0).then_some(saga.token),
        waiting_for: saga.waiting_for,
        deadline: saga.deadline.and_then(|time| time.try_into().ok()),
    })
}

fn step(step: v1::Step) -> Result<StepProgress, String> {
    let kind = match StepKind::try_from(step.kind) {
        Ok(StepKind::Unspecified) | Err(_) => return Err(format!("step kind {}", step.kind)),
        Ok(kind) => kind,
    };
    let state = match StepState::try_from(step.state) {
        Ok(StepState::Unspecified) | Err(_) => return Err(format!("step state {}", step.state)),
        Ok(state) => state,
    };
    Ok(StepProgress {
        name: step.name,
        kind,
        participants: step.participants,
        after: step.after,
        state,
        attempts: step.attempts,
        compensation_attempts: step.compensation_attempts,
        next_attempt_time: step.next_attempt_time.and_then(|time| time.try_into().ok()),
        last_error: non_empty(step.last_error),
        stuck: step.stuck,
        result: non_empty(step.result),
        resolution_reason: non_empty(step.resolution_reason),
        group_transaction_id: non_empty(step.group_transaction_id),
        has_compensation: step.has_compensation,
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

    /// Only those with a branch, or a step, at this participant.
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
