//! Sagas: steps that each commit at once, and are undone where the whole can't be done.

mod outcome;
mod running;
mod step;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use unanimity_proto::v1;
use uuid::Uuid;

use self::outcome::Question;
pub use self::{
    outcome::{Compensated, NotCompleted, SagaOutcome, UnknownSaga},
    running::{RunningSaga, Started},
    step::Step,
};
use crate::{
    Client, Error, Reason, Snapshot,
    age::FirstSent,
    error::Verdict,
    retry::{Failure, Patience, persist},
    submit::{attempt, limited, wire_timeout},
};

/// A saga to submit; from [`Client::saga`].
///
/// ```no_run
/// use unanimity_client::{Client, Operation, SagaOutcome, Step, Value};
///
/// # async fn purchase(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let order = Step::new("order")
///     .at("shop")
///     .run(Operation::named("order").with("article", 7))
///     .compensate(Operation::named("cancel").with("order", Value::reference("order.rows.0.id")));
/// let pay = Step::pivot("pay")
///     .at("bank")
///     .run(Operation::named("pay").with("order", Value::reference("order.rows.0.id")));
/// let ship = Step::retriable("ship")
///     .at("store")
///     .run(Operation::named("ship").with("order", Value::reference("order.rows.0.id")));
/// let outcome = client.saga().step(order).step(pay).step(ship).lock("stock:7").submit().await?;
/// match outcome {
///     SagaOutcome::Completed(receipt) => println!("{} is done", receipt.transaction_id),
///     SagaOutcome::Compensated(compensated) => println!("undone again: {compensated}"),
///     SagaOutcome::Aborted(aborted) => println!("it never began: {aborted}"),
///     SagaOutcome::Heuristic(heuristic) => println!("a human must look: {heuristic}"),
///     SagaOutcome::Unknown(unknown) => println!("ask again with request id {:?}", unknown.request_id()),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing happens until submit() or start()"]
pub struct SagaSubmission {
    client: Client,
    request_id: String,
    first_sent: FirstSent,
    steps: Vec<Step>,
    locks: Vec<String>,
    lock_timeout: Option<Duration>,
    timeout: Option<Duration>,
    retry_for: Option<Duration>,
}

impl SagaSubmission {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            request_id: Uuid::new_v4().to_string(),
            first_sent: FirstSent::default(),
            steps: Vec::new(),
            locks: Vec::new(),
            lock_timeout: None,
            timeout: None,
            retry_for: None,
        }
    }

    /// The idempotency key, 1 to 64 bytes: one request id is done at most once, across processes and restarts. A fresh UUID by default,
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

    /// One step more. Compensatable steps run first, then the pivot, then the retriable ones; within these stages steps run in parallel, but
    /// for what [`Step::after`] says.
    pub fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// A key, 1 to 128 bytes, that no other saga may hold until this one has ended. All that are named are granted together.
    pub fn lock(mut self, key: impl Into<String>) -> Self {
        self.locks.push(key.into());
        self
    }

    /// Time to wait for the locks, after which the saga is aborted. The coordinator's setting by default.
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = Some(timeout);
        self
    }

    /// Time, from its beginning, until it turns back unless it is past its pivot. The coordinator's setting by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long to retry a request that got no answer, or found the coordinator busy or away; the client's setting by default.
    pub fn retry_for(mut self, time: Duration) -> Self {
        self.retry_for = Some(time);
        self
    }

    /// Runs it to its end: always under the same request id, as often as it takes. A saga can outlast any wait, for what must be done or
    /// undone is tried without end; then the outcome is unknown for now. [`Self::start`] is for those that take long.
    ///
    /// # Errors
    /// Where no attempt was, or will be, taken. Where one may have been, the answer is [`SagaOutcome::Unknown`].
    pub async fn submit(self) -> Result<SagaOutcome, Error> {
        let (asked, patience) = self.ask(v1::AnswerTime::Completed)?;
        let attempt = |limit| {
            asked
                .client
                .saga_outcome(&asked.request, &asked.first_sent, limit)
        };
        match persist(patience, attempt).await {
            Ok(outcome) => Ok(outcome),
            Err(failure) => asked.unknown(failure),
        }
    }

    /// Begins it, and returns once that is durable: it will be completed or compensated, whatever happens.
    ///
    /// # Errors
    /// As for [`Self::submit`].
    pub async fn start(self) -> Result<Started, Error> {
        let (asked, patience) = self.ask(v1::AnswerTime::Accepted)?;
        let attempt = |limit| {
            asked
                .client
                .submit_saga(&asked.request, &asked.first_sent, limit)
        };
        match persist(patience, attempt).await {
            Ok(snapshot) => Ok(match SagaOutcome::from_snapshot(snapshot) {
                Ok(outcome) => Started::Ended(outcome),
                Err(running) => Started::Running(asked.client.running_saga(running.transaction_id)),
            }),
            Err(failure) => asked.unknown(failure).map(Started::Ended),
        }
    }

    fn ask(self, answer_time: v1::AnswerTime) -> Result<(Asked, Patience), Error> {
        if !(1..=64).contains(&self.request_id.len()) {
            return Err(Error::invalid(
                "request_id",
                "a request id has 1 to 64 bytes",
            ));
        }
        let mut patience = self.client.patience(self.retry_for);
        let longest = self
            .timeout
            .map(|timeout| timeout.saturating_add(self.lock_timeout.unwrap_or_default()));
        patience.attempt = attempt(&self.client, longest.or(self.lock_timeout));
        let steps = self.steps.into_iter().enumerate();
        let request = v1::SubmitSagaRequest {
            request_id: self.request_id,
            steps: steps
                .map(|(at, step)| step.into_wire(at))
                .collect::<Result<_, _>>()?,
            locks: self.locks,
            lock_timeout: self.lock_timeout.map(wire_timeout).transpose()?,
            timeout: self.timeout.map(wire_timeout).transpose()?,
            answer_time: answer_time.into(),
            age: None,
        };
        let asked = Asked {
            client: self.client,
            request: Arc::new(request),
            first_sent: self.first_sent,
        };
        Ok((asked, patience))
    }
}

/// A request as it is sent, again and again.
struct Asked {
    client: Client,
    request: Arc<v1::SubmitSagaRequest>,
    first_sent: FirstSent,
}

impl Asked {
    fn unknown(self, failure: Failure) -> Result<SagaOutcome, Error> {
        match failure {
            // Forgotten is what became of an earlier attempt, perhaps of a clone of this submission.
            Failure {
                last: Verdict::NotTaken(error),
                doubted: false,
            } if *error.reason() != Reason::RequestIdForgotten => Err(error),
            failure => Ok(SagaOutcome::Unknown(UnknownSaga::new(
                self.client,
                Question::Submit(self.request, self.first_sent),
                failure,
            ))),
        }
    }
}

impl Client {
    /// One attempt.
    async fn submit_saga(
        &self,
        request: &v1::SubmitSagaRequest,
        first_sent: &FirstSent,
        limit: Duration,
    ) -> Result<Snapshot, Verdict> {
        let request = v1::SubmitSagaRequest {
            age: first_sent.age(),
            ..request.clone()
        };
        let response = self
            .service()
            .submit_saga(limited(request, limit))
            .await?
            .into_inner();
        Snapshot::from_wire(response.transaction)
    }

    /// One attempt, for its end.
    async fn saga_outcome(
        &self,
        request: &v1::SubmitSagaRequest,
        first_sent: &FirstSent,
        limit: Duration,
    ) -> Result<SagaOutcome, Verdict> {
        let snapshot = self.submit_saga(request, first_sent, limit).await?;
        outcome::ended(snapshot)
    }
}
