//! What became of a transaction.

use std::{fmt, sync::Arc, time::Instant};

use unanimity_proto::v1;

use crate::{
    AbortCode, Client, Snapshot, TransactionState,
    age::FirstSent,
    error::{AbortNotice, Verdict},
    retry::{Failure, Patience, persist},
};

/// What became of a transaction.
#[derive(Clone, Debug)]
#[must_use = "a transaction may have been aborted, or its outcome be unknown"]
pub enum Outcome {
    /// It is decided that every branch commits, and nothing can change that.
    Committed(Receipt),
    /// No branch has committed, or ever will.
    Aborted(Aborted),
    /// It ended, but a branch went against the decision. A human must look.
    Heuristic(Heuristic),
    /// Nobody can say yet; it may commit, or have committed. Doing the same work under another request id may do it twice.
    Unknown(Unknown),
}

impl Outcome {
    /// The receipt, or everything else as an error that tells which it was.
    ///
    /// # Errors
    /// The outcome, where it isn't [`Outcome::Committed`].
    pub fn committed(self) -> Result<Receipt, NotCommitted> {
        match self {
            Self::Committed(receipt) => Ok(receipt),
            Self::Aborted(aborted) => Err(NotCommitted::Aborted(aborted)),
            Self::Heuristic(heuristic) => Err(NotCommitted::Heuristic(heuristic)),
            Self::Unknown(unknown) => Err(NotCommitted::Unknown(unknown)),
        }
    }

    /// `Err` gives the snapshot back where it is not decided.
    pub(crate) fn from_snapshot(snapshot: Snapshot) -> Result<Self, Box<Snapshot>> {
        let receipt = |delivered, snapshot: Snapshot| {
            Self::Committed(Receipt {
                transaction_id: snapshot.transaction_id,
                request_id: snapshot.request_id,
                delivered,
            })
        };
        Ok(match snapshot.state {
            TransactionState::Committed => receipt(true, snapshot),
            TransactionState::Committing => receipt(false, snapshot),
            TransactionState::Aborting | TransactionState::Aborted => {
                let transaction_id = snapshot.transaction_id;
                Self::Aborted(snapshot.aborted.unwrap_or_else(|| Aborted {
                    transaction_id,
                    code: AbortCode::Unspecified,
                    participant: None,
                    message: "no reason was kept".into(),
                }))
            }
            TransactionState::Heuristic => Self::Heuristic(Heuristic {
                transaction: Box::new(snapshot),
            }),
            TransactionState::Unspecified
            | TransactionState::Active
            | TransactionState::Waiting
            | TransactionState::Preparing
            | TransactionState::Running
            | TransactionState::Compensating
            | TransactionState::Compensated => return Err(Box::new(snapshot)),
        })
    }
}

/// An outcome other than committed, for `?`.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotCommitted {
    /// [`Outcome::Aborted`].
    #[error("aborted: {0}")]
    Aborted(Aborted),
    /// [`Outcome::Heuristic`].
    #[error("{0}")]
    Heuristic(Heuristic),
    /// [`Outcome::Unknown`].
    #[error("{0}")]
    Unknown(Unknown),
}

/// Proof that a transaction is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The transaction.
    pub transaction_id: String,
    /// The idempotency key under which it was sent.
    pub request_id: Option<String>,
    /// True: every branch has committed. False: it is durably decided, and the branches commit soon after.
    pub delivered: bool,
}

/// Why a transaction was aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aborted {
    /// The transaction.
    pub transaction_id: String,
    /// The kind of reason; `Unspecified` where the coordinator is newer than this library, or kept none.
    pub code: AbortCode,
    /// The participant that said no, where one did.
    pub participant: Option<String>,
    /// For people.
    pub message: String,
}

impl Aborted {
    /// Whether the same work, as a new transaction under a new request id, may well commit.
    pub fn is_transient(&self) -> bool {
        match self.code {
            AbortCode::Timeout
            | AbortCode::ParticipantUnavailable
            | AbortCode::Conflict
            | AbortCode::BranchLost
            | AbortCode::CoordinatorRestart => true,
            AbortCode::Unspecified
            | AbortCode::Refused
            | AbortCode::Client
            | AbortCode::InvalidOperation
            | AbortCode::ParticipantFailure => false,
        }
    }

    pub(crate) fn from_notice(transaction_id: String, notice: AbortNotice) -> Self {
        Self {
            transaction_id,
            code: notice.code,
            participant: notice.participant,
            message: notice.message,
        }
    }
}

impl fmt::Display for Aborted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.participant {
            Some(participant) => write!(f, "{participant}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// A transaction with a branch that went against the decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Heuristic {
    /// Its branches tell which did what; of a saga, its steps and their groups.
    pub transaction: Box<Snapshot>,
}

impl fmt::Display for Heuristic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = &self.transaction.transaction_id;
        write!(
            f,
            "a branch of {id} went against the decision; a human must look"
        )
    }
}

/// A transaction of which nobody can say yet what became of it. [`Self::settle`] asks on.
#[derive(Clone)]
pub struct Unknown(Box<Asking>);

#[derive(Clone)]
struct Asking {
    client: Client,
    question: Question,
    cause: String,
}

/// How to ask again.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    /// By the same request, which carries its request id.
    Submit(Arc<v1::SubmitTransactionRequest>, FirstSent),
    /// By the transaction's id.
    Transaction(String),
}

/// What went wrong, for people.
pub(crate) fn cause(verdict: Verdict) -> String {
    match verdict {
        Verdict::NotTaken(error) => error.to_string(),
        Verdict::Aborted(notice) => notice.message,
        Verdict::MaybeTaken(doubt) => doubt.message,
    }
}

impl Unknown {
    pub(crate) fn new(client: Client, question: Question, failure: Failure) -> Self {
        Self(Box::new(Asking {
            client,
            question,
            cause: cause(failure.last),
        }))
    }

    /// The request id of a submitted transaction. The same request under this id, even from another process, settles the outcome.
    pub fn request_id(&self) -> Option<&str> {
        match &self.0.question {
            Question::Submit(request, _) => Some(&request.request_id),
            Question::Transaction(_) => None,
        }
    }

    /// The id of an interactive transaction, for [`Client::lookup`].
    pub fn transaction_id(&self) -> Option<&str> {
        match &self.0.question {
            Question::Submit(..) => None,
            Question::Transaction(id) => Some(id),
        }
    }

    /// What went wrong last, for people.
    pub fn cause(&self) -> &str {
        &self.0.cause
    }

    /// Asks on until the outcome is known or the deadline passes: a submitted transaction by the same request under the same request
    /// id, so that it commits at most once; an interactive one by looking it up. Gives [`Outcome::Unknown`] again at the deadline,
    /// or at once where asking on can't help.
    pub async fn settle(&self, deadline: Instant) -> Outcome {
        let deadline = tokio::time::Instant::from_std(deadline);
        let patience = Patience {
            start_until: deadline,
            end_by: Some(deadline),
            attempt: self.0.client.call_timeout(),
        };
        let settled = match &self.0.question {
            Question::Submit(request, first_sent) => {
                let attempt = |limit| self.0.client.submit(request, first_sent, limit);
                persist(patience, attempt).await
            }
            Question::Transaction(id) => {
                persist(patience, |limit| self.0.client.outcome_of(id, limit)).await
            }
        };
        settled.unwrap_or_else(|failure| {
            Outcome::Unknown(Self::new(
                self.0.client.clone(),
                self.0.question.clone(),
                failure,
            ))
        })
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = &self.0.cause;
        match &self.0.question {
            Question::Submit(request, _) => {
                write!(
                    f,
                    "the outcome of request {} is unknown: {cause}",
                    request.request_id
                )
            }
            Question::Transaction(id) => {
                write!(f, "the outcome of transaction {id} is unknown: {cause}")
            }
        }
    }
}

/// Without the request's payload.
impl fmt::Debug for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unknown")
            .field("request_id", &self.request_id())
            .field("transaction_id", &self.transaction_id())
            .field("cause", &self.0.cause)
            .finish_non_exhaustive()
    }
}
