//! A whole transaction in one request.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use unanimity_proto::v1;
use uuid::Uuid;

use crate::{
    Client, Error, Operation, Outcome, Reason, Snapshot, Unknown,
    age::FirstSent,
    error::{Doubt, Verdict},
    outcome::Question,
    retry::{Failure, LONGEST_WAIT, persist},
};

/// How much longer than the transaction's own timeout an attempt waits for the answer.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

/// A transaction to submit; from [`Client::transaction`].
#[derive(Clone, Debug)]
#[must_use = "nothing happens until submit()"]
pub struct Submission {
    client: Client,
    request_id: String,
    first_sent: FirstSent,
    branches: Vec<v1::BranchRequest>,
    timeout: Option<Duration>,
    retry_for: Option<Duration>,
    answer_time: v1::AnswerTime,
}

impl Submission {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            request_id: Uuid::new_v4().to_string(),
            first_sent: FirstSent::default(),
            branches: Vec::new(),
            timeout: None,
            retry_for: None,
            answer_time: v1::AnswerTime::Completed,
        }
    }

    /// The idempotency key, 1 to 64 bytes: one request id commits at most once, across processes and restarts. A fresh UUID by default,
    /// which covers the retries of this call; give your own where the caller itself may die and come back.
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request_id = id.into();
        self.first_sent = FirstSent::default();
        self
    }

    /// When this request id was first sent, where that was by a process that died since. Name it after [`Self::request_id`]. Where the
    /// coordinator may have forgotten the outcome, it then refuses rather than do the work again.
    pub fn first_sent(mut self, time: SystemTime) -> Self {
        self.first_sent = FirstSent::at(time);
        self
    }

    /// Time until the coordinator aborts the transaction if it isn't decided. The coordinator's setting by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long to retry a request that got no answer, or found the coordinator busy or away; the client's setting by default.
    pub fn retry_for(mut self, time: Duration) -> Self {
        self.retry_for = Some(time);
        self
    }

    /// To be answered when the decision is durable, rather than when every branch has committed.
    pub fn answer_when_decided(mut self) -> Self {
        self.answer_time = v1::AnswerTime::Decided;
        self
    }

    /// The work of one participant, in order; no participant twice.
    pub fn branch(
        mut self,
        participant: impl Into<String>,
        operations: impl IntoIterator<Item = Operation>,
    ) -> Self {
        self.branches.push(v1::BranchRequest {
            participant: participant.into(),
            operations: operations.into_iter().map(Into::into).collect(),
        });
        self
    }

    /// Runs it: always under the same request id, as often as it takes.
    ///
    /// # Errors
    /// Where no attempt was, or will be, taken. Where one may have been, the answer is [`Outcome::Unknown`].
    pub async fn submit(self) -> Result<Outcome, Error> {
        if !(1..=64).contains(&self.request_id.len()) {
            return Err(Error::invalid(
                "request_id",
                "a request id has 1 to 64 bytes",
            ));
        }
        let request = Arc::new(v1::SubmitTransactionRequest {
            request_id: self.request_id,
            branches: self.branches,
            timeout: self.timeout.map(wire_timeout).transpose()?,
            answer_time: self.answer_time.into(),
            age: None,
        });
        let first_sent = self.first_sent;
        let mut patience = self.client.patience(self.retry_for);
        patience.attempt = attempt(&self.client, self.timeout);
        let attempt = |limit| self.client.submit(&request, &first_sent, limit);
        match persist(patience, attempt).await {
            Ok(outcome) => Ok(outcome),
            // Forgotten is what became of an earlier attempt, perhaps of a clone of this submission.
            Err(Failure {
                last: Verdict::NotTaken(error),
                doubted: false,
            }) if *error.reason() != Reason::RequestIdForgotten => Err(error),
            Err(failure) => Ok(Outcome::Unknown(Unknown::new(
                self.client,
                Question::Submit(request, first_sent),
                failure,
            ))),
        }
    }
}

/// The longest wait for one answer: long enough for the transaction's own timeout to strike first.
pub(crate) fn attempt(client: &Client, timeout: Option<Duration>) -> Duration {
    let needed = timeout.map_or(Duration::ZERO, |timeout| {
        timeout.saturating_add(ANSWER_MARGIN)
    });
    client.call_timeout().max(needed)
}

pub(crate) fn wire_timeout(timeout: Duration) -> Result<prost_types::Duration, Error> {
    timeout
        .try_into()
        .map_err(|_| Error::invalid("timeout", "the timeout is too long to be sent"))
}

impl Client {
    /// One attempt.
    pub(crate) async fn submit(
        &self,
        request: &v1::SubmitTransactionRequest,
        first_sent: &FirstSent,
        limit: Duration,
    ) -> Result<Outcome, Verdict> {
        let request = v1::SubmitTransactionRequest {
            age: first_sent.age(),
            ..request.clone()
        };
        let response = self
            .service()
            .submit_transaction(limited(request, limit))
            .await?
            .into_inner();
        decided(Snapshot::from_wire(response.transaction)?)
    }

    /// One look, for the outcome.
    pub(crate) async fn outcome_of(
        &self,
        transaction_id: &str,
        limit: Duration,
    ) -> Result<Outcome, Verdict> {
        decided(self.snapshot_of(transaction_id, limit).await?)
    }

    /// One look.
    pub(crate) async fn snapshot_of(
        &self,
        transaction_id: &str,
        limit: Duration,
    ) -> Result<Snapshot, Verdict> {
        let request = v1::GetTransactionRequest {
            transaction_id: transaction_id.to_owned(),
        };
        let response = self
            .service()
            .get_transaction(limited(request, limit))
            .await?
            .into_inner();
        Snapshot::from_wire(response.transaction)
    }
}

/// A transaction that isn't decided is no answer yet.
pub(crate) fn decided(snapshot: Snapshot) -> Result<Outcome, Verdict> {
    Outcome::from_snapshot(snapshot).map_err(|snapshot| {
        let message = format!("transaction {} is not decided yet", snapshot.transaction_id);
        Verdict::MaybeTaken(Doubt::no_answer(message))
    })
}

/// The coordinator learns how long we wait.
pub(crate) fn limited<T>(message: T, limit: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(limit.min(LONGEST_WAIT));
    request
}
