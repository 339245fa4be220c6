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
pub(crate) mod journal;
mod outcome;
mod preflight;
mod step;
mod values;
mod writer;

use std::{fs::File, sync::Arc, time::Duration};

use sqlx::{SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::sync::Mutex;

use crate::{
    operation::Dialect,
    participant::{BranchId, Refusal},
};

use super::{
    MARKER_PROOF, PreflightError, ResourceOptions,
    branches::Lease,
    deadline_after,
    flow::{Flow, yes},
};
use branch::LiteBranch;
use journal::Journal;
use writer::{Limit, Writer};

/// A SQLite database, for [`super::Resource`] to make a participant of. Clones share everything.
#[derive(Clone)]
pub struct SqliteResource {
    pub(super) flow: Arc<Flow<SqliteFile>>,
}

/// One SQLite database, as [`Flow`] works on it.
pub(super) struct SqliteFile {
    writer: Arc<Mutex<Writer>>,
    limit: Limit,
    /// For connections that only read.
    options: SqliteConnectOptions,
    journal: Arc<Journal>,
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
        let journal = preflight::beside(&path, ".unanimity-prepared");
        let refused = |error: std::io::Error| {
            PreflightError::refused(
                format!("{}: {error}", journal.display()),
                "let the agent write the prepare journal there",
            )
        };
        let file = SqliteFile {
            writer: Arc::new(Mutex::new(writer)),
            limit,
            options: connect.create_if_missing(false),
            journal: Arc::new(Journal::open(&journal).map_err(refused)?),
            retention: options.marker_retention,
            _lock: lock,
        };
        let found = file.recover_at_start().await.map_err(|error| {
            PreflightError::Unavailable(format!("the prepare journal: {error}"))
        })?;
        let flow = Flow::new(
            file,
            options.catalog,
            format!("sqlite:{}", path.display()),
            1,
            options.marker_retention,
        );
        if let Some((branch, prepared)) = found {
            let vote = yes(MARKER_PROOF);
            flow.branches.found_prepared(&branch, vote, Some(prepared));
        }
        Ok(Self { flow })
    }

    /// For a service that does its own SQL: opens the branch, or takes it up again. Waits for the writer, and interrupts statements, after
    /// `timeout` from now.
    pub async fn open(&self, branch: &BranchId, timeout: Duration) -> Result<OpenBranch, Refusal> {
        let _call = self.flow.branches.call(branch).await;
        let deadline = deadline_after(timeout);
        let lease = self.flow.open(branch, deadline).await?;
        self.flow.database.limit.set(deadline);
        Ok(OpenBranch { lease })
    }
}

/// A branch in the hands of a service. Dropped without [`Self::finish`], it is rolled back, and votes no.
pub struct OpenBranch {
    lease: Lease<LiteBranch>,
}

impl OpenBranch {
    /// The connection, inside the transaction, which is not to be ended here. Rows may be changed, not the schema.
    pub fn connection(&mut self) -> &mut SqliteConnection {
        self.lease.connection()
    }

    /// Hands the branch back, to be prepared. Refused where it was ended meanwhile.
    pub fn finish(self) -> Result<(), Refusal> {
        self.lease.finish()
    }
}
