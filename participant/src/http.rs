//! A service in any language as a participant, with no library of ours in it: the agent calls the service's own HTTP endpoints.
//!
//! What the service must do in turn is in `docs/http.md`. An answer is never taken for more than it says: only `200` with JSON, or `204`, is
//! "done"; a page of a proxy, a redirect or half an answer never is.
//!
//! Where a database would keep a prepared branch, here the journal does: before the first try is sent, it durably says which operations a branch
//! may hold at the service, until a confirm or a cancel was answered as done. So a crash of the agent at any moment leaves a branch in doubt, and
//! never a reservation that nobody cancels. Of a saga's step it says that the service may have got it.

pub(crate) mod answer;
mod branch;
mod calls;
mod config;
pub(crate) mod journal;
mod operations;
mod request;
mod service;
mod step;

use std::{collections::HashSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use unanimity_proto::v1;

use self::{calls::Calls, journal::Journal, service::Service};
pub use self::{
    config::{ABOUT, DEFAULT_CAPACITY, EXAMPLE, HttpArguments, HttpConfig, ServiceConfig},
    operations::{Endpoint, HttpOperation, Operations, TwoPhase},
};
use crate::{
    agent::AgentError,
    participant::{
        BranchId, Compensated, InDoubt, Participant, Prepare, Settled, Step, StepOutcome,
        Unavailable, Vote,
    },
    session::{self, Session, SessionOptions},
};

/// How long the service may take over what comes without a time of its own: confirm, cancel, settle.
const DECISION_TIMEOUT: Duration = Duration::from_secs(30);

const PURGE_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// A service behind HTTP endpoints.
pub struct HttpAgent {
    operations: Operations,
    service: Service,
    journal: Journal,
    calls: Arc<Calls>,
    /// Voted yes in this process's life, and not decided yet.
    voted: Mutex<HashSet<BranchId>>,
}

impl HttpAgent {
    /// Opens the journal. Does not call the service.
    ///
    /// # Errors
    /// Where the journal can't be used, or another agent uses it.
    pub async fn open(config: &HttpConfig) -> Result<Self, AgentError> {
        Ok(Self {
            operations: config.operations.clone(),
            service: Service::new(&config.service)?,
            journal: Journal::open(&config.journal, config.journal_retention).await?,
            calls: Calls::new(),
            voted: Mutex::default(),
        })
    }

    /// The journal's identity, minted with it.
    pub fn identity(&self) -> &str {
        self.journal.identity()
    }
}

impl Participant for HttpAgent {
    async fn prepare(&self, prepare: Prepare) -> Vote {
        self.prepare_branch(&prepare).await
    }

    async fn commit(&self, branch: &BranchId, _proof: &str) -> Settled {
        self.commit_branch(branch).await
    }

    async fn abort(&self, branch: &BranchId, _proof: &str) -> Settled {
        self.abort_branch(branch).await
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        self.unsettled_branches().await
    }

    async fn execute(&self, step: Step) -> StepOutcome {
        self.execute_step(&step).await
    }

    async fn compensate(&self, step: Step, compensated: Compensated) -> StepOutcome {
        self.compensate_step(&step, &compensated).await
    }

    async fn settle(&self, branch: &BranchId, age: Duration) -> StepOutcome {
        self.settle_step(branch, age).await
    }
}

/// Runs an agent around a service until `shutdown`. A service or a coordinator that is away is waited for.
///
/// # Errors
/// Where the journal, or the configuration, can't work before a human changes something.
pub async fn serve(config: HttpConfig, shutdown: CancellationToken) -> Result<(), AgentError> {
    let agent = Arc::new(HttpAgent::open(&config).await?);
    let session = Session::new(Arc::clone(&agent), session_options(&config, &agent))?;
    tracing::info!(
        participant = config.name,
        journal = %config.journal.display(),
        resource = agent.identity(),
        settles_steps = config.operations.settle_steps(),
        "the journal is open"
    );
    purge_hourly(agent, shutdown.clone());
    session.run(shutdown).await;
    Ok(())
}

fn session_options(config: &HttpConfig, agent: &HttpAgent) -> SessionOptions {
    SessionOptions {
        coordinator: config.coordinator.clone(),
        participant: config.name.clone(),
        agent: session::agent_label(),
        resource: agent.identity().to_owned(),
        capacity: config.capacity.get(),
        one_phase: false,
        settles_steps: config.operations.settle_steps(),
        operations: session::Operations {
            policy: v1::OperationPolicy::Listed,
            listed: config.operations.signatures(),
        },
        tls: config.tls.clone(),
    }
}

/// Forgets what has ended and is past its time: now, so that an agent which is often restarted does so at all, and then every hour.
fn purge_hourly(agent: Arc<HttpAgent>, shutdown: CancellationToken) {
    tokio::spawn(async move {
        let mut hours = tokio::time::interval(PURGE_INTERVAL);
        while shutdown.run_until_cancelled(hours.tick()).await.is_some() {
            match agent.journal.purge().await {
                Ok(0) => {}
                Ok(records) => tracing::info!(records, "old records of the journal deleted"),
                Err(error) => tracing::warn!(
                    %error,
                    "old records of the journal could not be deleted; trying again in an hour"
                ),
            }
        }
    });
}
