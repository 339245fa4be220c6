//! The session: one stream to the coordinator, kept up for ever, over which a [`Participant`] is asked and answers.
//!
//! It dials, so that a participant needs no open port; says hello with every branch in doubt; then takes batches. It must never abort work that
//! it has begun, never let two messages of one branch overtake each other, and never obey a coordinator that is older than one it has obeyed.

mod backoff;
mod branches;
mod connection;
mod handle;
mod options;
mod outbox;
mod seen;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use unanimity_proto::{PROTOCOL_VERSION, v1};

pub(crate) use self::backoff::{Backoff, Warnings};
pub(crate) use self::options::check;
use self::{
    branches::Branches,
    connection::{Connection, Failure},
    handle::{Link, Links},
    seen::Seen,
};
pub use self::{
    handle::SessionHandle,
    options::{InvalidOptions, Operations, SessionOptions, Tls, TlsIdentity},
};
use crate::{
    participant::{Participant, Unavailable},
    wire::{self, Incoming},
};

/// How long a stopping session waits for work that it has begun.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

/// A session that lasted this long was healthy: after it, waits start anew.
const HEALTHY: Duration = Duration::from_secs(1);

/// Runs a session for `participant` until `shutdown`. The short form of [`Session`], for a participant that enlists nothing.
///
/// # Errors
/// At once, where the options can't work. A coordinator that is away or refuses is tried again for ever.
pub async fn run<P: Participant>(
    participant: Arc<P>,
    options: SessionOptions,
    shutdown: CancellationToken,
) -> Result<(), InvalidOptions> {
    Session::new(participant, options)?.run(shutdown).await;
    Ok(())
}

/// `HOST:PROCESS`, to tell the agents of a participant apart.
#[must_use]
pub fn agent_label() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok());
    format!(
        "{}:{}",
        host.as_deref().map_or("unknown", str::trim),
        std::process::id()
    )
}

/// A session, not yet running.
pub struct Session<P> {
    participant: Arc<P>,
    options: SessionOptions,
    endpoint: Endpoint,
    branches: Arc<Branches<P>>,
    links: Links,
    handle: SessionHandle,
    seen: Seen,
    retries: Retries,
}

impl<P: Participant> Session<P> {
    /// Checks the options; dials nobody yet.
    ///
    /// # Errors
    /// Where the options can't work.
    pub fn new(participant: Arc<P>, options: SessionOptions) -> Result<Self, InvalidOptions> {
        options::check_participant(&options.participant)?;
        if options.capacity == 0 {
            return Err(InvalidOptions::Capacity);
        }
        let endpoint = connection::endpoint(&options.coordinator, options.tls.as_ref())?;
        let branches = Branches::new(Arc::clone(&participant));
        let (links, handle) = handle::channel();
        Ok(Self {
            participant,
            options,
            endpoint,
            branches,
            links,
            handle,
            seen: Seen::default(),
            retries: Retries::default(),
        })
    }

    /// The way to join transactions once the session runs.
    #[must_use]
    pub fn handle(&self) -> SessionHandle {
        self.handle.clone()
    }

    /// Keeps the session up until `shutdown`, then lets what was begun end, sends the answers, and closes. Prepared branches stay prepared.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while let Some(opened) = shutdown.run_until_cancelled(self.open()).await {
            let failure = match opened {
                Ok(connection) => {
                    let began = Instant::now();
                    let Some(failure) = self.serve(connection, &shutdown).await else {
                        return;
                    };
                    if began.elapsed() >= HEALTHY {
                        self.retries = Retries::default();
                    }
                    failure
                }
                Err(failure) => failure,
            };
            let wait = self.retries.after(&failure, &self.options);
            if shutdown
                .run_until_cancelled(tokio::time::sleep(wait))
                .await
                .is_none()
            {
                break;
            }
        }
        self.settle().await;
    }

    async fn open(&mut self) -> Result<Connection, Failure> {
        let (connection, welcome) = Connection::open(&self.endpoint, self.hello()).await?;
        self.seen.obey(&welcome)?;
        tracing::info!(
            participant = self.options.participant,
            coordinator = self.options.coordinator,
            log = welcome.log_id,
            epoch = welcome.epoch,
            "session open"
        );
        Ok(connection)
    }

    async fn hello(&self) -> Result<v1::Hello, Unavailable> {
        let participant = Arc::clone(&self.participant);
        // A task of its own: a dial that is given up must not cancel a call to the participant.
        let scan = tokio::spawn(async move { participant.in_doubt().await });
        let in_doubt = scan
            .await
            .map_err(|error| Unavailable(error.to_string()))??;
        let SessionOptions {
            participant,
            agent,
            resource,
            capacity,
            one_phase,
            settles_steps,
            operations,
            ..
        } = self.options.clone();
        Ok(v1::Hello {
            protocol_version: PROTOCOL_VERSION,
            participant,
            agent,
            resource,
            capacity,
            one_phase,
            settles_steps,
            operation_policy: operations.policy.into(),
            operations: operations.listed,
            in_doubt: wire::in_doubt(in_doubt),
            seen_logs: self.seen.positions(),
        })
    }

    /// Works off a connection until it fails; `None` once it was closed because of `shutdown`.
    async fn serve(
        &mut self,
        mut connection: Connection,
        shutdown: &CancellationToken,
    ) -> Option<Failure> {
        let link = self.links.open(connection.outbox.clone());
        let failure = loop {
            match shutdown.run_until_cancelled(connection.next_batch()).await {
                Some(Ok(batch)) => {
                    self.seen
                        .advance(&connection.log_id, batch.durable_sequence);
                    let messages = batch.messages.into_iter();
                    messages.for_each(|message| self.accept(message, &connection, &link));
                }
                Some(Err(failure)) => break Some(failure),
                None => break None,
            }
        };
        self.links.close(&link);
        self.branches.abandon_open();
        if failure.is_none() {
            self.settle().await;
            connection.finish().await;
        }
        failure
    }

    fn accept(&self, message: v1::CoordinatorMessage, connection: &Connection, link: &Link) {
        match wire::parse(message) {
            Ok(Incoming::Branch(branch, work)) => {
                self.branches
                    .submit(branch, work, connection.outbox.clone())
            }
            Ok(Incoming::EnlistResult {
                correlation,
                result,
            }) => {
                let Some(waiting) = link.waiting(correlation) else {
                    tracing::debug!(correlation, "nobody waits for the answer to an enlist");
                    return;
                };
                // Before the caller knows of it, and no second time: it may be prepared by then.
                let branch = result.iter().cloned();
                branch.for_each(|branch| self.branches.opened(branch));
                // The caller may have gone.
                _ = waiting.send(result);
            }
            Ok(Incoming::ListInDoubt) => self.branches.report_in_doubt(connection.outbox.clone()),
            Ok(Incoming::Welcome(_)) => {
                tracing::warn!("the coordinator sent a second welcome, which is ignored")
            }
            Err(malformed) => {
                tracing::warn!(%malformed, "a message from the coordinator can't be acted on");
                if let Some(answer) = malformed.answer {
                    connection.outbox.send(*answer);
                }
            }
        }
    }

    async fn settle(&self) {
        self.links.stop();
        if !self.branches.settle(SETTLE_LIMIT).await {
            tracing::warn!(
                "work is still going on after {SETTLE_LIMIT:?}; the coordinator will settle its branches"
            );
        }
    }
}

/// When to dial again, and how loud to be about it.
struct Retries {
    fast: Backoff,
    slow: Backoff,
    warnings: Warnings,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            fast: Backoff::new(Duration::from_millis(50), Duration::from_millis(500)),
            slow: Backoff::new(Duration::from_secs(2), Duration::from_secs(30)),
            warnings: Warnings::default(),
        }
    }
}

impl Retries {
    /// Logs the failure, and says how long to wait.
    fn after(&mut self, failure: &Failure, options: &SessionOptions) -> Duration {
        let SessionOptions {
            participant,
            coordinator,
            ..
        } = options;
        match failure {
            Failure::Refused { message, remedy } => {
                tracing::error!(
                    participant,
                    coordinator,
                    remedy,
                    "the coordinator refuses this participant: {message}"
                );
                self.slow.next_slow()
            }
            Failure::StaleEpoch { .. } if self.warnings.due() => {
                let remedy = "stop the coordinator that runs on an old copy of the log";
                tracing::error!(participant, coordinator, remedy, "no session: {failure}");
                self.fast.next()
            }
            Failure::Lost(_) | Failure::StaleEpoch { .. } | Failure::Resource(_) => {
                if self.warnings.due() {
                    tracing::warn!(participant, coordinator, %failure, "no session; trying again");
                } else {
                    tracing::debug!(participant, coordinator, %failure, "no session; trying again");
                }
                self.fast.next()
            }
        }
    }
}
