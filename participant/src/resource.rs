//! The resource managers: [`Participant`] over PostgreSQL, MySQL, MariaDB and SQLite.
//!
//! Each keeps a vote of yes through any crash, and each answers a decision by proof: PostgreSQL by `pg_xact_status` of the transaction id
//! taken at prepare, the others by a marker row written inside the branch. None ever takes "no such branch" for "done".
//!
//! `flow` is the way of a branch, which all go. The three tell what each does in its own way, in one layout: `preflight` (is this database
//! fit to vote at all), `branch` (open, run, prepare), `outcome` (commit, abort, prove), `step` (what a saga's steps need besides) and `values`
//! (ours to theirs and back).

mod branches;
mod connections;
mod flow;
pub(crate) mod identifier;
pub mod mysql;
pub mod postgres;
pub mod sqlite;
mod statement;
mod step_result;

use std::time::Duration;

use unanimity_proto::v1;

use crate::{
    operation::{Catalog, CatalogError},
    participant::{
        BranchId, Compensated, InDoubt, Participant, Prepare, Refusal, Settled, Step, StepOutcome,
        Unavailable, Vote,
    },
};

pub use self::{mysql::MysqlResource, postgres::PostgresResource, sqlite::SqliteResource};

/// The proof of a branch that holds a marker row: where the row is, it committed; where neither row nor branch is, it didn't.
pub const MARKER_PROOF: &str = "marker";

/// The table of fences: the highest token that was seen of each lock. Rows are few and small, and stay for ever: without its row a holder of long
/// ago would get through.
pub(crate) const FENCE_TABLE: &str = "unanimity_fence";

/// The table of marker rows: one row for each branch that committed with one, and a tombstone for each that must never commit.
pub const MARKER_TABLE: &str = "unanimity_marker";

/// `outcome` of a marker row whose branch committed.
pub(crate) const MARKER_COMMITTED: i32 = 1;
/// `outcome` of a tombstone: the branch did not commit, and can't any more.
pub(crate) const MARKER_TOMBSTONE: i32 = 2;

/// How many markers one purge statement deletes.
pub(crate) const PURGE_BATCH: u64 = 500;

/// What a client-side time-out leaves the database's own to speak first.
pub(crate) const GRACE: Duration = Duration::from_millis(250);

/// For statements of our own, which take milliseconds: past this the database is away.
pub(crate) const CONTROL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a proof waits for a local transaction that is writing the same marker.
pub(crate) const PROVE_SECONDS: u64 = 5;

/// What to connect to, and how.
#[derive(Clone)]
pub struct ResourceOptions {
    /// `postgres://`, `mysql://`, `mariadb://` or `sqlite:` and a path. May hold a password; never shown.
    pub url: String,
    /// The participant's name, for the database's list of sessions.
    pub participant: String,
    /// How many connections to hold, at least 1 (MariaDB: 3). On MariaDB each prepared branch keeps one, and two are kept back.
    pub connections: u32,
    /// What may be run.
    pub catalog: Catalog,
    /// How long marker rows stay. A decision that comes later than three quarters of it can't be proved by a marker's absence.
    pub marker_retention: Duration,
}

/// Why a database can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreflightError {
    /// It will never do until somebody changes something.
    #[error("{problem}; {remedy}")]
    Refused {
        /// What is wrong.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// It can't be reached just now; try again.
    #[error("{0}")]
    Unavailable(String),
}

impl PreflightError {
    pub(crate) fn refused(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Refused {
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

impl From<CatalogError> for PreflightError {
    fn from(error: CatalogError) -> Self {
        Self::refused(error.0, "correct the operation in the configuration")
    }
}

/// The resource manager for whatever database the URL names.
#[derive(Clone)]
pub enum Resource {
    /// PostgreSQL.
    Postgres(PostgresResource),
    /// MySQL or MariaDB.
    Mysql(MysqlResource),
    /// SQLite.
    Sqlite(SqliteResource),
}

/// Runs one expression over the branches of whichever database it is.
macro_rules! dispatch {
    ($resource:expr, $flow:ident => $body:expr) => {
        match $resource {
            Resource::Postgres(PostgresResource { flow: $flow }) => $body,
            Resource::Mysql(MysqlResource { flow: $flow }) => $body,
            Resource::Sqlite(SqliteResource { flow: $flow }) => $body,
        }
    };
}

impl Resource {
    /// Connects to the database that the URL names, and checks that it is fit to vote.
    pub async fn connect(options: ResourceOptions) -> Result<Self, PreflightError> {
        let scheme = options.url.split(':').next().unwrap_or_default();
        match scheme {
            "postgres" | "postgresql" => {
                PostgresResource::connect(options).await.map(Self::Postgres)
            }
            "mysql" | "mariadb" => MysqlResource::connect(options).await.map(Self::Mysql),
            "sqlite" => SqliteResource::connect(options).await.map(Self::Sqlite),
            // What stands before the colon may be anything, a password included: it isn't shown.
            _ => Err(PreflightError::refused(
                "the database's URL begins with no scheme that is known",
                "use postgres://, mysql://, mariadb:// or sqlite:<path>",
            )),
        }
    }

    /// The database's identity, the same from every agent: its own, not the way to it.
    pub fn identity(&self) -> &str {
        dispatch!(self, flow => flow.identity())
    }

    /// How many branches it can hold at once. PostgreSQL: connections, or prepared transactions, whichever is fewer; the latter are the whole
    /// cluster's: leave some to others. MySQL: connections. MariaDB: two fewer, for each prepared branch keeps one. SQLite: one, its writer.
    pub fn capacity(&self) -> u32 {
        dispatch!(self, flow => flow.capacity())
    }

    /// Whether it writes marker rows, so that a one-phase commit can be proved: all of them do.
    pub fn one_phase(&self) -> bool {
        true
    }

    /// What may be run.
    pub fn catalog(&self) -> &Catalog {
        dispatch!(self, flow => flow.catalog())
    }

    /// Deletes marker rows older than the retention, in small batches, and says how many.
    pub async fn purge(&self) -> Result<u64, Unavailable> {
        dispatch!(self, flow => flow.purge().await)
    }
}

impl Participant for Resource {
    async fn prepare(&self, prepare: Prepare) -> Vote {
        dispatch!(self, flow => flow.prepare(&prepare).await)
    }

    async fn commit(&self, branch: &BranchId, proof: &str) -> Settled {
        dispatch!(self, flow => flow.commit(branch, proof).await)
    }

    async fn abort(&self, branch: &BranchId, proof: &str) -> Settled {
        dispatch!(self, flow => flow.abort(branch, proof).await)
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        dispatch!(self, flow => flow.in_doubt().await)
    }

    async fn operate(
        &self,
        branch: &BranchId,
        open: bool,
        operation: v1::Operation,
        timeout: Duration,
    ) -> Result<v1::OperationResult, Refusal> {
        dispatch!(self, flow => flow.operate(branch, open, &operation, timeout).await)
    }

    async fn execute(&self, step: Step) -> StepOutcome {
        dispatch!(self, flow => flow.execute(&step).await)
    }

    async fn compensate(&self, step: Step, compensated: Compensated) -> StepOutcome {
        dispatch!(self, flow => flow.compensate(&step, &compensated).await)
    }

    async fn settle(&self, branch: &BranchId, age: Duration) -> StepOutcome {
        dispatch!(self, flow => flow.settle(branch, age).await)
    }

    async fn prove(&self, branch: &BranchId) -> Settled {
        dispatch!(self, flow => flow.prove(branch).await)
    }
}

/// A failure inside a branch. Any failure dooms the branch.
#[derive(Debug)]
pub(crate) struct Failure {
    /// For the vote.
    pub(crate) refusal: Refusal,
    /// The connection is in no known state: nothing can be sent on it any more, and the server may be at work on it still.
    pub(crate) broken: bool,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            broken: false,
        }
    }
}

/// Waits at most until the deadline and the grace; past that the statement is abandoned with its connection.
pub(crate) async fn within<T>(
    deadline: tokio::time::Instant,
    what: &str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::time::timeout_at(deadline + GRACE, work)
        .await
        .unwrap_or_else(|_| {
            Err(Failure {
                refusal: refusal(v1::AbortCode::Timeout, format!("{what}: no time was left")),
                broken: true,
            })
        })
}

pub(crate) fn refusal(code: v1::AbortCode, message: impl Into<String>) -> Refusal {
    Refusal {
        code,
        message: message.into(),
    }
}

/// What to tell of an error that is no database's answer: the connection is gone, or useless.
pub(crate) fn is_broken(error: &sqlx::Error) -> bool {
    !matches!(
        error,
        sqlx::Error::Database(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed
    )
}

/// When a time-out is up. A day is for ever: the clock can't count to the end of the longest durations.
pub(crate) fn deadline_after(timeout: Duration) -> tokio::time::Instant {
    tokio::time::Instant::now() + timeout.min(Duration::from_secs(86_400))
}

/// A limit in milliseconds, at least 1: nought would switch it off.
pub(crate) fn milliseconds(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis())
        .unwrap_or(u64::MAX)
        .clamp(1, i32::MAX as u64)
}

pub(crate) fn kind(kind: v1::value::Kind) -> v1::Value {
    v1::Value { kind: Some(kind) }
}
