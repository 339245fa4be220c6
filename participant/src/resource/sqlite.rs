//! SQLite, which knows no prepare: the agent keeps the transaction open, and a journal of what it changed.
//!
//! There is one writer, hence one branch at a time. A branch is a transaction on the only writing connection. To prepare it, what it changed is
//! recorded with SQLite's session extension, undone, and made once more from the recording, so that a vote of yes stands for changes that
//! are known to be repeatable. Then the recording is forced into the prepare journal. The transaction stays open until the decision. After a
//! crash the recording is applied anew before any other writer is let in. The marker row is among the changes: where it is, the branch
//! committed.
//!
//! This holds for as long as nobody else writes to the file while the agent is down. Where somebody did, and the recording no longer fits, the
//! branch stays in doubt, and is reported lost when it is told to commit. Nothing is ever overwritten.

mod branch;
mod changeset;
mod journal;
mod outcome;
mod preflight;
mod values;

use std::{sync::Arc, time::Duration};

use sqlx::{SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::time::Instant;
use unanimity_proto::v1;

use crate::{
    operation::{Catalog, Dialect},
    participant::{BranchId, InDoubt, Participant, Prepare, Refusal, Settled, Unavailable, Vote},
};

use super::{
    PreflightError, ResourceOptions,
    branches::{Branches, Lease},
};
use branch::{SqliteBranch, Writer};
use journal::Journal;

/// A SQLite database as a participant. Clones share everything.
#[derive(Clone)]
pub struct SqliteResource {
    inner: Arc<Inner>,
}

struct Inner {
    /// The only writer. Whoever holds it may write to the journal, too.
    writer: Arc<tokio::sync::Mutex<Writer>>,
    /// Reads markers while the writer is held.
    reader: tokio::sync::Mutex<Option<SqliteConnection>>,
    options: SqliteConnectOptions,
    journal: Arc<Journal>,
    catalog: Catalog,
    branches: Arc<Branches<SqliteBranch>>,
    identity: String,
    retention: Duration,
}

impl SqliteResource {
    /// Opens the database, checks that it can vote, and takes up the branch that was prepared before a crash.
    pub async fn connect(options: ResourceOptions) -> Result<Self, PreflightError> {
        options.catalog.check(Dialect::Sqlite)?;
        let found = preflight::find(&options)?;
        let journal = Arc::new(found.journal);
        let mut writer = Writer::new(found.options.clone(), Arc::clone(&journal), found.lock);
        preflight::check(writer.begin_own().await.map_err(preflight::query_error)?).await?;
        writer.end_own();
        let inner = Inner {
            writer: Arc::new(tokio::sync::Mutex::new(writer)),
            reader: tokio::sync::Mutex::new(None),
            options: found.options,
            journal,
            catalog: options.catalog,
            branches: Branches::new(),
            identity: found.path.display().to_string(),
            retention: options.marker_retention,
        };
        inner.take_up().await?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The file's canonical path.
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

    /// Deletes marker rows older than the retention, in small batches, and says how many. Where a branch holds the only writer for long, none.
    pub async fn purge(&self) -> Result<u64, Unavailable> {
        self.inner.purge().await
    }

    /// For a service that does its own SQL: opens the branch, or takes it up again. `timeout` is for the wait for the only writer; how long
    /// statements may take is up to the transaction, whose end interrupts them.
    pub async fn open(&self, branch: &BranchId, timeout: Duration) -> Result<OpenBranch, Refusal> {
        let _call = self.inner.branches.call(branch).await;
        let lease = self.inner.open(branch, Instant::now() + timeout).await?;
        lease.without_limit();
        Ok(OpenBranch { lease })
    }
}

/// A branch in the hands of a service. Dropped without [`Self::finish`], it is rolled back, and votes no. While it is in hand no other branch
/// can begin, even when this one was aborted meanwhile.
pub struct OpenBranch {
    lease: Lease<SqliteBranch>,
}

impl OpenBranch {
    /// The connection, inside the transaction, which is not to be ended here: a COMMIT fails and rolls back, and so dooms the branch.
    pub fn connection(&mut self) -> &mut SqliteConnection {
        self.lease.connection()
    }

    /// Hands the branch back, to be prepared. Refused where it was ended meanwhile.
    pub fn finish(self) -> Result<(), Refusal> {
        self.lease.finish()
    }
}

impl Participant for SqliteResource {
    async fn prepare(&self, prepare: Prepare) -> Vote {
        self.inner.prepare(&prepare).await
    }

    async fn commit(&self, branch: &BranchId, _proof: &str) -> Settled {
        self.inner.commit(branch).await
    }

    async fn abort(&self, branch: &BranchId, _proof: &str) -> Settled {
        self.inner.abort(branch).await
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        let in_doubt = |branch: BranchId| InDoubt { identifier: branch.to_string(), branch: Some(branch) };
        Ok(self.inner.branches.prepared().into_iter().map(in_doubt).collect())
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
