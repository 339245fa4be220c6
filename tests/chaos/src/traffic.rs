//! The clients: each does one piece of work after the other, and writes down what it is told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinSet};
use unanimity_client::{
    Client, Error, ExecuteError, Outcome, Reason, SagaOutcome, Unknown, UnknownSaga,
};

use crate::{
    history::Told,
    trial::Trial,
    work::{Plan, Shape, TIMEOUT, Work},
};

/// Connections that the clients share.
const CONNECTIONS: usize = 4;

/// The clients, and the gate before them.
pub(crate) struct Traffic {
    trial: Arc<Trial>,
    plan: Plan,
    open: watch::Sender<bool>,
    next: AtomicU64,
    doubts: Mutex<Vec<Doubt>>,
}

/// An answer that was none, and how to ask again.
pub(crate) struct Doubt {
    request: String,
    how: How,
}

enum How {
    Transaction(Unknown),
    Saga(UnknownSaga),
}

/// What an answer came to, in a word and in the answerer's own.
type Answer = (Told, String, Option<How>);

impl Traffic {
    pub(crate) fn new(trial: Arc<Trial>, seed: u64) -> Self {
        Self {
            plan: Plan {
                seed,
                banks: trial.system.names(),
            },
            trial,
            open: watch::Sender::new(false),
            next: AtomicU64::new(1),
            doubts: Mutex::default(),
        }
    }

    /// Starts so many clients. They end with what is returned.
    ///
    /// # Errors
    /// Where a client can't be made.
    pub(crate) fn start(self: &Arc<Self>, clients: u16) -> Result<JoinSet<()>> {
        let mut tasks = JoinSet::new();
        let connections: Vec<_> = (0..CONNECTIONS)
            .map(|_| self.trial.system.client())
            .collect::<Result<_>>()?;
        for number in 0..usize::from(clients) {
            let traffic = Arc::clone(self);
            let client = connections[number % CONNECTIONS].clone();
            tasks.spawn(async move { traffic.work_off(&client).await });
        }
        Ok(tasks)
    }

    /// Lets clients begin, or not.
    pub(crate) fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }

    async fn work_off(&self, client: &Client) {
        let mut gate = self.open.subscribe();
        loop {
            if gate.wait_for(|open| *open).await.is_err() {
                return;
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let work = self.plan.work(number);
            if self.do_once(client, &work).await == Told::NotTaken {
                // Nobody is there to take it: a moment for them to come back.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    async fn do_once(&self, client: &Client, work: &Work) -> Told {
        let flying = self.trial.in_flight.begin();
        self.trial.history.asked(work);
        let started = Instant::now();
        let (told, why, how) = self.ask(client, work).await;
        if let Told::Committed { .. } = told {
            self.trial.recovery.succeeded(started, work.banks());
        }
        self.trial.history.told(&work.request, told.clone(), &why);
        if let Some(how) = how {
            let request = work.request.clone();
            self.doubts.lock().push(Doubt { request, how });
        }
        drop(flying);
        told
    }

    async fn ask(&self, client: &Client, work: &Work) -> Answer {
        match work.shape {
            Shape::Submitted { when_decided } => {
                let submission = work.submission(client, &self.plan, when_decided);
                transaction(submission.submit().await)
            }
            Shape::Interactive { abandoned } => self.interact(client, work, abandoned).await,
            Shape::Saga { doomed } => saga(work.saga(client, &self.plan, doomed).submit().await),
        }
    }

    /// What is never asked to commit never commits.
    async fn interact(&self, client: &Client, work: &Work, abandoned: bool) -> Answer {
        let mut begin = client.begin().request_id(&work.request).timeout(TIMEOUT);
        let branches = work.operations();
        for (bank, _) in &branches {
            begin = begin.participant(&self.plan.banks[*bank]);
        }
        let transaction = match begin.start().await {
            Ok(transaction) => transaction,
            Err(error) => return (Told::NotTaken, error.to_string(), None),
        };
        for (bank, operations) in branches {
            for operation in operations {
                let done = transaction.execute(&self.plan.banks[bank], operation).await;
                if let Err(error) = done {
                    let why = error.to_string();
                    if !matches!(error, ExecuteError::Aborted(_)) {
                        // Dropped it is aborted too, only later.
                        let _ = transaction.abort("the client gives up").await;
                    }
                    return (Told::Aborted, why, None);
                }
            }
        }
        if abandoned {
            return (Told::Aborted, "abandoned".into(), None);
        }
        self::transaction(transaction.commit().await)
    }

    /// Asks again about half of what is unknown, for this long at most. The other half is left to the databases.
    pub(crate) async fn settle(&self, limit: Duration) {
        let doubts = std::mem::take(&mut *self.doubts.lock());
        let deadline = Instant::now() + limit;
        let mut asking = JoinSet::new();
        for doubt in doubts.into_iter().step_by(2) {
            let trial = Arc::clone(&self.trial);
            asking.spawn(async move {
                let (told, why, _) = match &doubt.how {
                    How::Transaction(unknown) => transaction(Ok(unknown.settle(deadline).await)),
                    How::Saga(unknown) => saga(Ok(unknown.settle(deadline).await)),
                };
                trial
                    .history
                    .told(&doubt.request, told, &format!("asked again: {why}"));
            });
        }
        asking.join_all().await;
    }
}

fn transaction(answer: Result<Outcome, Error>) -> Answer {
    match answer {
        Ok(Outcome::Committed(receipt)) => {
            let why = receipt.transaction_id.clone();
            let transaction = receipt.transaction_id;
            (Told::Committed { transaction }, why, None)
        }
        Ok(Outcome::Aborted(aborted)) => (Told::Aborted, aborted.to_string(), None),
        Ok(Outcome::Heuristic(heuristic)) => {
            let transaction = heuristic.transaction.transaction_id.clone();
            (Told::Heuristic { transaction }, heuristic.to_string(), None)
        }
        Ok(Outcome::Unknown(unknown)) => {
            let why = unknown.to_string();
            (Told::Unknown, why, Some(How::Transaction(unknown)))
        }
        Err(error) => not_taken(&error),
    }
}

fn saga(answer: Result<SagaOutcome, Error>) -> Answer {
    match answer {
        Ok(SagaOutcome::Completed(receipt)) => {
            let why = receipt.transaction_id.clone();
            let transaction = receipt.transaction_id;
            (Told::Committed { transaction }, why, None)
        }
        Ok(SagaOutcome::Compensated(compensated)) => {
            (Told::Compensated, compensated.to_string(), None)
        }
        Ok(SagaOutcome::Aborted(aborted)) => (Told::Aborted, aborted.to_string(), None),
        Ok(SagaOutcome::Heuristic(heuristic)) => {
            let transaction = heuristic.transaction.transaction_id.clone();
            (Told::Heuristic { transaction }, heuristic.to_string(), None)
        }
        Ok(SagaOutcome::Unknown(unknown)) => {
            let why = unknown.to_string();
            (Told::Unknown, why, Some(How::Saga(unknown)))
        }
        Err(error) => not_taken(&error),
    }
}

/// A request that is refused for its age says nothing of its earlier attempts.
fn not_taken(error: &Error) -> Answer {
    let told = match error.reason() {
        Reason::RequestIdForgotten => Told::Unknown,
        _ => Told::NotTaken,
    };
    (told, error.to_string(), None)
}
