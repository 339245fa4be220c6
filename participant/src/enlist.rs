//! For a service that does its own SQL under a transaction that reached it with a request.
//!
//! The transaction's id travels in the header [`TRANSACTION_HEADER`], beside `traceparent`. The service enlists, works on the connection that it
//! gets, and finishes; the coordinator prepares and decides. The service must never commit or roll back on that connection itself, and a branch
//! that is dropped unfinished is rolled back, so that an error on the way aborts the transaction instead of committing half of it.
//!
//! ```no_run
//! # async fn handler(service: unanimity_participant::enlist::Service, headers: http::HeaderMap) -> Result<(), Box<dyn std::error::Error>> {
//! use unanimity_participant::enlist::TransactionContext;
//!
//! let context = TransactionContext::from_headers(&headers)?.ok_or("only within a transaction")?;
//! let mut branch = service.enlist(&context.transaction).await?;
//! let connection = branch.postgres().ok_or("a PostgreSQL database")?;
//! sqlx::query("INSERT INTO orders (sku) VALUES ($1)").bind("tea").execute(connection).await?;
//! branch.finish()?;
//! # Ok(())
//! # }
//! ```

mod context;

use std::{sync::Arc, time::Duration};

use sqlx::{MySqlConnection, PgConnection, SqliteConnection};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::context::{TRANSACTION_HEADER, TransactionContext};
use crate::{
    agent::{self, AgentError},
    participant::{BranchId, Refusal},
    resource::{Resource, ResourceOptions, mysql, postgres, sqlite},
    session::{self, Session, SessionHandle, Tls},
};

/// Why a service could not join a transaction.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EnlistError {
    /// The text can't be the id of a transaction: the request is wrong.
    #[error("{0:?} can't be the id of a transaction")]
    Malformed(String),
    /// The coordinator refused: the transaction is unknown or over, or this participant may not join it. Asking again does not help.
    #[error("the coordinator refused: {0}")]
    Refused(String),
    /// The coordinator did not answer in time. The transaction can only abort now: start anew.
    #[error("the coordinator did not answer in time")]
    TimedOut,
    /// The session was lost before the answer came. The transaction can only abort now: start anew.
    #[error("the session with the coordinator was lost")]
    SessionLost,
    /// This service is stopping.
    #[error("the session with the coordinator was stopped")]
    Stopped,
    /// The database did not open the branch, or has ended it meanwhile. The transaction can only abort now: start anew.
    #[error("the database refused: {0}")]
    Branch(#[from] Refusal),
}

/// What a service is started with.
#[derive(Clone)]
pub struct ServiceOptions {
    /// Where the coordinator listens: `http://HOST:PORT`, or `https://…` with [`ServiceOptions::tls`].
    pub coordinator: String,
    /// The service's database, and its name as a participant. The operations of its catalog, if any, are offered as an agent's are.
    pub resource: ResourceOptions,
    /// Certificates, for an `https` address.
    pub tls: Option<Tls>,
    /// How long joining a transaction may take, a wait for the session included.
    pub enlist_timeout: Duration,
    /// How long a statement in a branch may take. How long all of them may take is the transaction's time, which the coordinator keeps.
    pub statement_timeout: Duration,
}

impl ServiceOptions {
    /// With 5 s to join a transaction, and 30 s for each statement in it.
    pub fn new(coordinator: impl Into<String>, resource: ResourceOptions) -> Self {
        Self {
            coordinator: coordinator.into(),
            resource,
            tls: None,
            enlist_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
        }
    }
}

/// A service that takes part in transactions with its own SQL; cheap to clone. Its session runs until [`Service::stop`].
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    resource: Arc<Resource>,
    session: SessionHandle,
    enlist_timeout: Duration,
    statement_timeout: Duration,
    shutdown: CancellationToken,
    running: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Service {
    /// Connects to the database, waiting while it is away, and starts the session, which does not need the coordinator to be there yet.
    ///
    /// # Errors
    /// Where the database, or the options, can't work before a human changes something.
    pub async fn connect(options: ServiceOptions) -> Result<Self, AgentError> {
        let ServiceOptions {
            coordinator,
            resource,
            tls,
            enlist_timeout,
            statement_timeout,
        } = options;
        session::check(&coordinator, &resource.participant, tls.as_ref())?;
        let participant = resource.participant.clone();
        let resource = Arc::new(agent::connect(resource).await?);
        let session = Session::new(
            Arc::clone(&resource),
            agent::session_options(&resource, participant, coordinator, tls),
        )?;
        let handle = session.handle();
        let shutdown = CancellationToken::new();
        agent::purge_hourly(Arc::clone(&resource), shutdown.clone());
        let running = tokio::sync::Mutex::new(Some(tokio::spawn(session.run(shutdown.clone()))));
        Ok(Self(Arc::new(Inner {
            resource,
            session: handle,
            enlist_timeout,
            statement_timeout,
            shutdown,
            running,
        })))
    }

    /// Joins a transaction, and opens its branch in the database.
    ///
    /// # Errors
    /// The kinds tell what the caller may do; after most, the transaction can only abort.
    pub async fn enlist(&self, transaction: &str) -> Result<EnlistedBranch, EnlistError> {
        let service = &self.0;
        let id = service
            .session
            .enlist(transaction, service.enlist_timeout)
            .await?;
        let open = OpenBranch::open(&service.resource, &id, service.statement_timeout).await?;
        Ok(EnlistedBranch { id, open })
    }

    /// Waits until there is a session with the coordinator; for a readiness probe.
    ///
    /// # Errors
    /// [`EnlistError::Stopped`] after [`Service::stop`].
    pub async fn connected(&self) -> Result<(), EnlistError> {
        self.0.session.connected().await
    }

    /// Ends the session: what the coordinator asked for is ended and answered, open branches are rolled back, prepared ones stay prepared.
    pub async fn stop(&self) {
        self.0.shutdown.cancel();
        if let Some(running) = self.0.running.lock().await.take() {
            // An error would be a panic in the session, which has been reported where it happened.
            _ = running.await;
        }
    }
}

/// The last handle takes the session with it.
impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A branch that the service works in. Dropped unfinished, it is rolled back, and the transaction aborts.
///
/// After a statement that failed, drop it: some databases would prepare what the earlier statements did.
pub struct EnlistedBranch {
    id: BranchId,
    open: OpenBranch,
}

/// A connection inside a branch's transaction, which is not to be ended on it.
pub enum Connection<'a> {
    /// PostgreSQL.
    Postgres(&'a mut PgConnection),
    /// MySQL or MariaDB.
    Mysql(&'a mut MySqlConnection),
    /// SQLite.
    Sqlite(&'a mut SqliteConnection),
}

enum OpenBranch {
    Postgres(postgres::OpenBranch),
    Mysql(mysql::OpenBranch),
    Sqlite(sqlite::OpenBranch),
}

impl OpenBranch {
    async fn open(resource: &Resource, id: &BranchId, timeout: Duration) -> Result<Self, Refusal> {
        match resource {
            Resource::Postgres(resource) => resource.open(id, timeout).await.map(Self::Postgres),
            Resource::Mysql(resource) => resource.open(id, timeout).await.map(Self::Mysql),
            Resource::Sqlite(resource) => resource.open(id, timeout).await.map(Self::Sqlite),
        }
    }
}

impl EnlistedBranch {
    /// Which branch it is.
    #[must_use]
    pub fn id(&self) -> &BranchId {
        &self.id
    }

    /// The connection to work on.
    pub fn connection(&mut self) -> Connection<'_> {
        match &mut self.open {
            OpenBranch::Postgres(open) => Connection::Postgres(open.connection()),
            OpenBranch::Mysql(open) => Connection::Mysql(open.connection()),
            OpenBranch::Sqlite(open) => Connection::Sqlite(open.connection()),
        }
    }

    /// The connection, for a service that knows its database; `None` where the URL named another.
    pub fn postgres(&mut self) -> Option<&mut PgConnection> {
        match self.connection() {
            Connection::Postgres(connection) => Some(connection),
            Connection::Mysql(_) | Connection::Sqlite(_) => None,
        }
    }

    /// As [`Self::postgres`], for MySQL and MariaDB.
    pub fn mysql(&mut self) -> Option<&mut MySqlConnection> {
        match self.connection() {
            Connection::Mysql(connection) => Some(connection),
            Connection::Postgres(_) | Connection::Sqlite(_) => None,
        }
    }

    /// As [`Self::postgres`], for SQLite.
    pub fn sqlite(&mut self) -> Option<&mut SqliteConnection> {
        match self.connection() {
            Connection::Sqlite(connection) => Some(connection),
            Connection::Postgres(_) | Connection::Mysql(_) => None,
        }
    }

    /// The work is done: from now on the coordinator may have the branch prepared. Answer the request only after this.
    ///
    /// # Errors
    /// [`EnlistError::Branch`] where it was rolled back meanwhile, because the transaction aborted or the session was lost.
    pub fn finish(self) -> Result<(), EnlistError> {
        match self.open {
            OpenBranch::Postgres(open) => open.finish(),
            OpenBranch::Mysql(open) => open.finish(),
            OpenBranch::Sqlite(open) => open.finish(),
        }?;
        Ok(())
    }
}
