//! Transactions that stay open while the application works.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};
use unanimity_proto::v1;
use uuid::Uuid;

use crate::{
    Aborted, Client, Error, Operation, Outcome, Reason, Rows, Snapshot, TransactionState, Unknown,
    age::FirstSent,
    client::harmless,
    error::{Doubt, Verdict},
    outcome::Question,
    retry::{Failure, persist},
    submit::{attempt, decided, limited, wire_timeout},
};

/// The header that carries a transaction's id to a service, which then joins the transaction.
pub const TRANSACTION_HEADER: &str = "unanimity-transaction";

/// An interactive transaction to open; from [`Client::begin`].
#[derive(Clone, Debug)]
#[must_use = "nothing happens until start()"]
pub struct Begin {
    client: Client,
    request_id: String,
    first_sent: FirstSent,
    participants: Vec<String>,
    timeout: Option<Duration>,
}

impl Begin {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            request_id: Uuid::new_v4().to_string(),
            first_sent: FirstSent::default(),
            participants: Vec::new(),
            timeout: None,
        }
    }

    /// The idempotency key, 1 to 64 bytes; a fresh UUID by default.
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

    /// A participant that it will use. All that are named get their slots together; another one can join later only where it has a
    /// slot free at once.
    pub fn participant(mut self, name: impl Into<String>) -> Self {
        self.participants.push(name.into());
        self
    }

    /// Time until the coordinator aborts the transaction if it isn't decided. The coordinator's setting by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Opens it.
    ///
    /// # Errors
    /// Where it could not be opened; one that was opened and of which we heard nothing is aborted by its timeout.
    pub async fn start(self) -> Result<Transaction, Error> {
        let request = v1::BeginTransactionRequest {
            request_id: self.request_id,
            participants: self.participants,
            timeout: self.timeout.map(wire_timeout).transpose()?,
            age: None,
        };
        let mut patience = self.client.patience(None);
        patience.attempt = attempt(&self.client, self.timeout);
        let attempt = |limit| {
            let request = v1::BeginTransactionRequest {
                age: self.first_sent.age(),
                ..request.clone()
            };
            self.client.open(request, limit)
        };
        let snapshot = persist(patience, attempt)
            .await
            .map_err(|failure| harmless(failure.last))?;
        match snapshot.state {
            TransactionState::Active => Ok(Transaction {
                call_timeout: patience.attempt,
                client: self.client,
                id: snapshot.transaction_id,
                abort_on_drop: true,
            }),
            state => Err(Error::Refused {
                reason: Reason::TransactionNotOpen,
                message: format!(
                    "transaction {} is not open but {}",
                    snapshot.transaction_id,
                    state.as_str_name()
                ),
            }),
        }
    }
}

impl Client {
    /// One attempt.
    async fn open(
        &self,
        request: v1::BeginTransactionRequest,
        limit: Duration,
    ) -> Result<Snapshot, Verdict> {
        let response = self
            .service()
            .begin_transaction(limited(request, limit))
            .await?
            .into_inner();
        Snapshot::from_wire(response.transaction)
    }

    /// One attempt.
    async fn commit(
        &self,
        request: v1::CommitTransactionRequest,
        limit: Duration,
    ) -> Result<Outcome, Verdict> {
        let response = self
            .service()
            .commit_transaction(limited(request, limit))
            .await?
            .into_inner();
        decided(Snapshot::from_wire(response.transaction)?)
    }
}

/// An open transaction. Dropped without [`Self::commit`], it is aborted in the background, as well as that goes; its timeout aborts it in any
/// case.
#[derive(Debug)]
#[must_use = "dropped, it is aborted"]
pub struct Transaction {
    client: Client,
    id: String,
    call_timeout: Duration,
    abort_on_drop: bool,
}

impl Transaction {
    /// The id that the coordinator minted.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The header, as name and value, that takes the transaction along with a request to a service.
    pub fn header(&self) -> (&'static str, &str) {
        (TRANSACTION_HEADER, &self.id)
    }

    /// Puts [`Self::header`] into a request's headers.
    pub fn inject(&self, headers: &mut HeaderMap) {
        let value = HeaderValue::from_str(&self.id)
            .expect("a transaction id was checked to hold only [0-9a-z.]");
        headers.insert(HeaderName::from_static(TRANSACTION_HEADER), value);
    }

    /// Runs one operation. Different participants may work at the same time; one participant does one operation after the other.
    ///
    /// # Errors
    /// [`ExecuteError`] says whether the transaction can go on. It is never retried here: the operation may have run.
    pub async fn execute(
        &self,
        participant: impl Into<String>,
        operation: Operation,
    ) -> Result<Rows, ExecuteError> {
        let request = v1::ExecuteOperationRequest {
            transaction_id: self.id.clone(),
            participant: participant.into(),
            operation: Some(operation.into()),
        };
        let mut service = self.client.service();
        let call = service.execute_operation(limited(request, self.call_timeout));
        let response = match tokio::time::timeout(self.call_timeout, call).await {
            Ok(response) => response
                .map_err(|status| self.execute_error(status.into()))?
                .into_inner(),
            Err(_) => {
                return Err(ExecuteError::Unknown(format!(
                    "no answer within {:?}",
                    self.call_timeout
                )));
            }
        };
        Rows::from_wire(response.result.unwrap_or_default())
            .ok_or_else(|| ExecuteError::Unknown("the rows can't be understood".into()))
    }

    fn execute_error(&self, verdict: Verdict) -> ExecuteError {
        match verdict {
            Verdict::NotTaken(error) => ExecuteError::NotRun(error),
            Verdict::Aborted(notice) => {
                ExecuteError::Aborted(Aborted::from_notice(self.id.clone(), notice))
            }
            Verdict::MaybeTaken(Doubt { message, .. }) => ExecuteError::Unknown(message),
        }
    }

    /// Commits; answered when every branch has committed.
    ///
    /// # Errors
    /// Where the commit was not, and will not be, taken; the transaction is then aborted in the background.
    pub async fn commit(self) -> Result<Outcome, Error> {
        self.commit_at(v1::AnswerTime::Completed).await
    }

    /// Commits; answered when the decision is durable.
    ///
    /// # Errors
    /// As for [`Self::commit`].
    pub async fn commit_when_decided(self) -> Result<Outcome, Error> {
        self.commit_at(v1::AnswerTime::Decided).await
    }

    async fn commit_at(mut self, answer_time: v1::AnswerTime) -> Result<Outcome, Error> {
        // From here on an abort of ours could cross the commit, whether we get an answer or the caller drops this future.
        self.abort_on_drop = false;
        let request = v1::CommitTransactionRequest {
            transaction_id: self.id.clone(),
            answer_time: answer_time.into(),
        };
        let mut patience = self.client.patience(None);
        patience.attempt = self.call_timeout;
        let failure =
            match persist(patience, |limit| self.client.commit(request.clone(), limit)).await {
                Ok(outcome) => return Ok(outcome),
                Err(failure) => failure,
            };
        self.judge_commit(failure).await
    }

    async fn judge_commit(mut self, failure: Failure) -> Result<Outcome, Error> {
        match failure {
            Failure {
                last: Verdict::Aborted(notice),
                ..
            } => Ok(Outcome::Aborted(Aborted::from_notice(
                self.id.clone(),
                notice,
            ))),
            // Somebody ended it before us, or an attempt of ours did: what became of it can be read.
            failure if ended(&failure.last) => {
                let looked = persist(self.client.patience(None), |limit| {
                    self.client.outcome_of(&self.id, limit)
                })
                .await;
                Ok(looked.unwrap_or_else(|failure| self.unknown(failure)))
            }
            Failure {
                last: Verdict::NotTaken(error),
                doubted: false,
            } => {
                self.abort_on_drop = true;
                Err(error)
            }
            failure => Ok(self.unknown(failure)),
        }
    }

    fn unknown(&self, failure: Failure) -> Outcome {
        Outcome::Unknown(Unknown::new(
            self.client.clone(),
            Question::Transaction(self.id.clone()),
            failure,
        ))
    }

    /// Aborts, and waits for the coordinator's word.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where no answer came; its timeout then aborts the transaction.
    pub async fn abort(mut self, reason: impl Into<String>) -> Result<(), Error> {
        self.client.abort(self.id.clone(), reason).await?;
        self.abort_on_drop = false;
        Ok(())
    }
}

fn ended(verdict: &Verdict) -> bool {
    let Verdict::NotTaken(Error::Refused { reason, .. }) = verdict else {
        return false;
    };
    *reason == Reason::TransactionDecided
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.abort_on_drop {
            return;
        }
        let mut service = self.client.service();
        let request = v1::AbortTransactionRequest {
            transaction_id: std::mem::take(&mut self.id),
            reason: "the client dropped the transaction".into(),
        };
        let limit = self.call_timeout;
        // Best effort: where it fails, the transaction's timeout does the same later.
        self.client
            .runtime()
            .spawn(async move { service.abort_transaction(limited(request, limit)).await });
    }
}

/// Why an operation gave no rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecuteError {
    /// The operation failed, and with it the whole transaction: start anew.
    #[error("the transaction was aborted: {0}")]
    Aborted(Aborted),
    /// The operation was not run. The transaction goes on, unless the error says that it isn't open any more.
    #[error("{0}")]
    NotRun(Error),
    /// Nobody can say whether the operation ran. Abort: the work can't be told complete any more.
    #[error("whether the operation ran is unknown: {0}")]
    Unknown(String),
}
