//! SQLite, which has no prepared state of its own, by a journal beside the database.
//!
//! A branch runs in `BEGIN IMMEDIATE` while the session extension records what it changes. To prepare, the recorded changes are made durable
//! in the journal, and the transaction stays open: to commit is to commit it, marker row included. After a crash the transaction is gone;
//! the changes are made again from the journal before any other writer is let in. That is sound only while nobody else writes: give the
//! database's file to the agent alone. A change that doesn't fit any more is never forced: the branch is reported as lost.
//!
//! There is one writer, hence one branch at a time.

mod branch;
mod changeset;
mod journal;
mod outcome;
mod preflight;
mod values;
mod writer;

use std::{fs::File, sync::Arc, time::Duration};

use sqlx::{SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::sync::Mutex;
use unanimity_proto::v1;

use crate::{
    operation::{Catalog, Dialect},
    participant::{BranchId, InDoubt, Participant, Prepare, Refusal, Settled, Unavailable, Vote},
};

use super::{
    PreflightError, ResourceOptions,
    branches::{Branches, Lease},
    deadline_after,
};
use branch::LiteBranch;
use journal::Journal;
use writer::{Limit, Writer};

/// A SQLite database as a participant. Clones share everything.
#[derive(Clone)]
pub struct SqliteResource {
    inner: Arc<Inner>,
}

struct Inner {
    writer: Arc<Mutex<Writer>>,
    limit: Limit,
    /// For connections that only read.
    options: SqliteConnectOptions,
    journal: Arc<Journal>,
    catalog: Catalog,
    branches: Arc<Branches<LiteBranch>>,
    identity: String,
    retention: Duration,
    /// Last, so that it is given up last.
    _lock: File,
}

impl SqliteResource {
    /// Opens the database, checks that it can vote, and takes up a branch that was prepared before.
    pub async fn connect(options: ResourceOptions) -> Result<Self, PreflightError> {
        options.catalog.check(Dialect::Sqlite)?;
        let parsed = preflight::parse(&options)?;
        let path = preflight::resolve(parsed.get_filename())?;
        let connect = parsed.filename(&path);
        let lock = preflight::lock(&path)?;
        let limit = Limit::new();
        let mut writer = Writer::new(connect.clone(), limit.clone());
        preflight::check(&mut writer).await?;
        let journal = options
            .journal
            .unwrap_or_else(|| preflight::beside(&path, ".unanimity-prepared"));
        let refused = |error: std::io::Error| {
            PreflightError::refused(
                format!("{}: {error}", journal.display()),
                "let the agent write the prepare journal there",
            )
        };
        let inner = Inner {
            writer: Arc::new(Mutex::new(writer)),
            limit,
            options: connect.create_if_missing(false),
            journal: Arc::new(Journal::open(&journal).map_err(refused)?),
            catalog: options.catalog,
            branches: Branches::new(),
            identity: format!("sqlite:{}", path.display()),
            retention: options.marker_retention,
            _lock: lock,
        };
        inner.recover_at_start().await.map_err(|error| {
            PreflightError::Unavailable(format!("the prepare journal: {error}"))
        })?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The database's path, with links resolved.
    pub fn identity(&self) -> &str {
        &self.inner.identity
    }

    /// One: SQLite has one writer.
    pub fn capacity(&self) -> u32 {
        1
    }

    /// Always: marker rows prove it.
    pub fn one_phase(&self) -> bool {
        true
    }

    /// What may be run.
    pub fn catalog(&self) -> &Catalog {
        &self.inner.catalog
    }

    /// Deletes marker rows older than the retention, in small batches, and says how many.
    pub async fn purge(&self) -> Result<u64, Unavailable> {
        self.inner.purge().await
    }

    /// For a service that does its own SQL: opens the branch, or takes it up again. Waits for the writer, and interrupts statements, after
    /// `timeout` from now.
    pub async fn open(&self, branch: &BranchId, timeout: Duration) -> Result<OpenBranch, Refusal> {
        let _call = self.inner.branches.call(branch).await;
        let lease = self.inner.open(branch, deadline_after(timeout)).await?;
        Ok(OpenBranch {
            lease,
            limit: self.inner.limit.clone(),
        })
    }
}

/// A branch in the hands of a service. Dropped without [`Self::finish`], it is rolled back, and votes no.
pub struct OpenBranch {
    lease: Lease<LiteBranch>,
    limit: Limit,
}

impl OpenBranch {
    /// The connection, inside the transaction, which is not to be ended here. Rows may be changed, not the schema.
    pub fn connection(&mut self) -> &mut SqliteConnection {
        self.lease.connection()
    }

    /// Hands the branch back, to be prepared. Refused where it was ended meanwhile.
    pub fn finish(self) -> Result<(), Refusal> {
        self.lease.finish().inspect(|()| self.limit.lift())
    }
}

impl Participant for SqliteResource {
    async fn prepare(&self, prepare: Prepare) -> Vote {
        self.inner.prepare(&prepare).await
    }

    async fn commit(&self, branch: &BranchId, proof: &str) -> Settled {
        self.inner.commit(branch, proof).await
    }

    async fn abort(&self, branch: &BranchId, proof: &str) -> Settled {
        self.inner.abort(branch, proof).await
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        Ok(self.inner.in_doubt())
    }

    async fn execute(
        &self,
        branch: &BranchId,
        open: bool,
        operation: v1::Operation,
        timeout: Duration,
    ) -> Result<v1::OperationResult, Refusal> {
        self.inner.execute(branch, open, &operation, timeout).await
    }

    async fn prove(&self, branch: &BranchId) -> Settled {
        self.inner.prove(branch).await
    }
}
