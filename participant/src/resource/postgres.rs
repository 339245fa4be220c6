//! PostgreSQL 13 and later, by `PREPARE TRANSACTION`.
//!
//! A prepared branch is bound to no session: any agent of the participant finishes it, under the same role. The proof that a vote carries
//! is the transaction's 64-bit id. Only one-phase branches write a marker row.

mod branch;
mod outcome;
mod preflight;
mod values;

use std::{sync::Arc, time::Duration};

use sqlx::{
    PgConnection,
    postgres::{PgConnectOptions, PgPool, PgPoolOptions},
};
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
use branch::PgBranch;

/// A PostgreSQL database as a participant. Clones share everything.
#[derive(Clone)]
pub struct PostgresResource {
    inner: Arc<Inner>,
}

struct Inner {
    pool: PgPool,
    /// For connections beside the pool.
    options: PgConnectOptions,
    application_name: String,
    connections: u32,
    catalog: Catalog,
    branches: Arc<Branches<PgBranch>>,
    identity: String,
    capacity: u32,
    retention: Duration,
}

impl PostgresResource {
    /// Connects, and checks that this database can vote.
    pub async fn connect(options: ResourceOptions) -> Result<Self, PreflightError> {
        options.catalog.check(Dialect::Postgres)?;
        let connections = options.connections.max(1);
        let connect = preflight::parse(&options)?;
        let found = preflight::check(&connect, connections).await?;
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            // A connection that has died is found out at its first use, where nothing is lost yet: a ping each time costs a round trip.
            .test_before_acquire(false)
            .after_connect(|connection, _| Box::pin(preflight::settle(connection)))
            .connect_lazy_with(connect.clone());
        let inner = Inner {
            pool,
            options: connect,
            application_name: preflight::application_name(&options.participant),
            connections,
            catalog: options.catalog,
            branches: Branches::new(),
            identity: found.identity,
            capacity: found.capacity,
            retention: options.marker_retention,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The cluster's system identifier, and the database.
    pub fn identity(&self) -> &str {
        &self.inner.identity
    }

    /// Connections, or prepared transactions, whichever is fewer. The latter are the whole cluster's: leave some to others.
    pub fn capacity(&self) -> u32 {
        self.inner.capacity
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

    /// For a service that does its own SQL: opens the branch, or takes it up again. Each of its statements gets at most `timeout`.
    pub async fn open(&self, branch: &BranchId, timeout: Duration) -> Result<OpenBranch, Refusal> {
        let _call = self.inner.branches.call(branch).await;
        let lease = self.inner.open(branch, deadline_after(timeout)).await?;
        Ok(OpenBranch { lease })
    }
}

/// A branch in the hands of a service. Dropped without [`Self::finish`], it is rolled back, and votes no.
pub struct OpenBranch {
    lease: Lease<PgBranch>,
}

impl OpenBranch {
    /// The connection, inside the transaction, which is not to be ended here.
    pub fn connection(&mut self) -> &mut PgConnection {
        self.lease.connection()
    }

    /// Hands the branch back, to be prepared. Refused where it was ended meanwhile.
    pub fn finish(self) -> Result<(), Refusal> {
        self.lease.finish()
    }
}

impl Participant for PostgresResource {
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
        self.inner.in_doubt().await
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
