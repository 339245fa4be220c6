//! What became of a saga.

use std::{fmt, sync::Arc, time::Instant};

use unanimity_proto::v1;

use crate::{
    AbortCode, Aborted, Client, Heuristic, Receipt, Snapshot, TransactionState,
    age::FirstSent,
    error::{Doubt, Verdict},
    outcome::cause,
    retry::{Failure, Patience, persist},
};

/// What became of a saga.
#[derive(Clone, Debug)]
#[must_use = "a saga may have been undone, or its outcome be unknown"]
pub enum SagaOutcome {
    /// Every step is done.
    Completed(Receipt),
    /// It could not be done, and what had taken effect is undone.
    Compensated(Compensated),
    /// It never began: no step was sent, and none will be.
    Aborted(Aborted),
    /// It ended, but not as it should have; its steps, and their groups, tell how. A human must look.
    Heuristic(Heuristic),
    /// Nobody can say yet; it may be on its way, or done. Doing the same work under another request id may do it twice.
    Unknown(UnknownSaga),
}

impl SagaOutcome {
    /// The receipt, or everything else as an error that tells which it was.
    ///
    /// # Errors
    /// The outcome, where it isn't [`SagaOutcome::Completed`].
    pub fn completed(self) -> Result<Receipt, NotCompleted> {
        match self {
            Self::Completed(receipt) => Ok(receipt),
            Self::Compensated(compensated) => Err(NotCompleted::Compensated(compensated)),
            Self::Aborted(aborted) => Err(NotCompleted::Aborted(aborted)),
            Self::Heuristic(heuristic) => Err(NotCompleted::Heuristic(heuristic)),
            Self::Unknown(unknown) => Err(NotCompleted::Unknown(unknown)),
        }
    }

    /// `Err` gives the snapshot back where it has not ended.
    pub(super) fn from_snapshot(snapshot: Snapshot) -> Result<Self, Box<Snapshot>> {
        Ok(match snapshot.state {
            TransactionState::Committed => Self::Completed(Receipt {
                transaction_id: snapshot.transaction_id,
                request_id: snapshot.request_id,
                delivered: true,
            }),
            TransactionState::Compensated => Self::Compensated(Compensated {
                reason: reason(&snapshot),
                transaction: Box::new(snapshot),
            }),
            TransactionState::Aborted => Self::Aborted(reason(&snapshot)),
            TransactionState::Heuristic => Self::Heuristic(Heuristic {
                transaction: Box::new(snapshot),
            }),
            TransactionState::Unspecified
            | TransactionState::Active
            | TransactionState::Waiting
            | TransactionState::Preparing
            | TransactionState::Committing
            | TransactionState::Aborting
            | TransactionState::Running
            | TransactionState::Compensating => return Err(Box::new(snapshot)),
        })
    }
}

fn reason(snapshot: &Snapshot) -> Aborted {
    snapshot.aborted.clone().unwrap_or_else(|| Aborted {
        transaction_id: snapshot.transaction_id.clone(),
        code: AbortCode::Unspecified,
        participant: None,
        message: "no reason was kept".into(),
    })
}

/// A saga that has not ended is no answer yet.
pub(super) fn ended(snapshot: Snapshot) -> Result<SagaOutcome, Verdict> {
    SagaOutcome::from_snapshot(snapshot).map_err(|snapshot| {
        let message = format!("saga {} has not ended yet", snapshot.transaction_id);
        Verdict::MaybeTaken(Doubt::no_answer(message))
    })
}

/// An outcome other than completed, for `?`.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotCompleted {
    /// [`SagaOutcome::Compensated`].
    #[error("compensated: {0}")]
    Compensated(Compensated),
    /// [`SagaOutcome::Aborted`].
    #[error("aborted: {0}")]
    Aborted(Aborted),
    /// [`SagaOutcome::Heuristic`].
    #[error("{0}")]
    Heuristic(Heuristic),
    /// [`SagaOutcome::Unknown`].
    #[error("{0}")]
    Unknown(UnknownSaga),
}

/// A saga of which nothing is left.
#[derive(Clone, Debug, PartialEq)]
pub struct Compensated {
    /// Why it turned back. [`Aborted::is_transient`] tells whether the same saga may well be done under a new request id.
    pub reason: Aborted,
    /// Its steps tell how far it had come.
    pub transaction: Box<Snapshot>,
}

impl fmt::Display for Compensated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

/// A saga of which nobody can say yet what became of it. [`Self::settle`] asks on.
#[derive(Clone)]
pub struct UnknownSaga(Box<Asking>);

#[derive(Clone)]
struct Asking {
    client: Client,
    question: Question,
    cause: String,
}

/// How to ask again.
#[derive(Clone)]
pub(super) enum Question {
    /// By the same request, which carries its request id.
    Submit(Arc<v1::SubmitSagaRequest>, FirstSent),
    /// By its id.
    Transaction(String),
}

impl UnknownSaga {
    pub(super) fn new(client: Client, question: Question, failure: Failure) -> Self {
        Self(Box::new(Asking {
            client,
            question,
            cause: cause(failure.last),
        }))
    }

    /// Nothing went wrong: it has not been asked for its end yet.
    pub(super) fn asked(client: Client, question: Question) -> Self {
        Self(Box::new(Asking {
            client,
            question,
            cause: "it was not asked for yet".into(),
        }))
    }

    /// The request id, where it was submitted here. The same request under this id, even from another process, settles the outcome.
    pub fn request_id(&self) -> Option<&str> {
        match &self.0.question {
            Question::Submit(request, _) => Some(&request.request_id),
            Question::Transaction(_) => None,
        }
    }

    /// The id of one that is known to have begun, for [`Client::running_saga`].
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

    /// Asks on until the saga has ended or the deadline passes: by the same request under the same request id, so that it is done at most
    /// once; or by looking it up. Gives [`SagaOutcome::Unknown`] again at the deadline, or at once where asking on can't help.
    pub async fn settle(&self, deadline: Instant) -> SagaOutcome {
        let client = &self.0.client;
        let deadline = tokio::time::Instant::from_std(deadline);
        let patience = Patience {
            start_until: deadline,
            end_by: Some(deadline),
            attempt: client.call_timeout(),
        };
        let settled = match &self.0.question {
            Question::Submit(request, first_sent) => {
                // Its end is what is asked for, even where it was started first.
                let request = v1::SubmitSagaRequest {
                    answer_time: v1::AnswerTime::Completed.into(),
                    ..v1::SubmitSagaRequest::clone(request)
                };
                let attempt = |limit| client.saga_outcome(&request, first_sent, limit);
                persist(patience, attempt).await
            }
            Question::Transaction(id) => {
                let attempt = |limit| async move { ended(client.snapshot_of(id, limit).await?) };
                persist(patience, attempt).await
            }
        };
        settled.unwrap_or_else(|failure| {
            SagaOutcome::Unknown(Self::new(client.clone(), self.0.question.clone(), failure))
        })
    }
}

impl fmt::Display for UnknownSaga {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = &self.0.cause;
        match &self.0.question {
            Question::Submit(request, _) => write!(
                f,
                "the outcome of request {} is unknown: {cause}",
                request.request_id
            ),
            Question::Transaction(id) => write!(f, "the outcome of saga {id} is unknown: {cause}"),
        }
    }
}

/// Without the request's payload.
impl fmt::Debug for UnknownSaga {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnknownSaga")
            .field("request_id", &self.request_id())
            .field("transaction_id", &self.transaction_id())
            .field("cause", &self.0.cause)
            .finish_non_exhaustive()
    }
}
