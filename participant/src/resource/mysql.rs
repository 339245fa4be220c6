//! MySQL 8.0.29 and later, and MariaDB 10.5.2 and later, by XA.
//!
//! The two differ after XA PREPARE: MySQL lets the session go, MariaDB binds it to the branch until its end. So on MariaDB a prepared branch
//! keeps its connection, and is finished on it; when the connection is lost the branch is free, and any other finishes it. Every branch that
//! changes anything writes a marker row: XA itself tells nobody what became of a branch.

mod branch;
mod outcome;
mod preflight;
mod values;

use std::{sync::Arc, time::Duration};

use sqlx::{
    MySqlConnection,
    mysql::{MySqlConnectOptions, MySqlPool, MySqlPoolOptions},
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
use branch::MyBranch;
use preflight::Flavour;

/// Connections of a MariaDB pool that no branch gets: decisions and questions must never wait for the branches that wait for them.
const RESERVED: u32 = 2;

/// A MySQL or MariaDB database as a participant. Clones share everything.
#[derive(Clone)]
pub struct MysqlResource {
    inner: Arc<Inner>,
}

struct Inner {
    pool: MySqlPool,
    /// For connections beside the pool.
    options: MySqlConnectOptions,
    connections: u32,
    flavour: Flavour,
    catalog: Catalog,
    branches: Arc<Branches<MyBranch>>,
    identity: String,
    capacity: u32,
    retention: Duration,
}

impl MysqlResource {
    /// Connects, and checks that this database can vote.
    pub async fn connect(options: ResourceOptions) -> Result<Self, PreflightError> {
        options.catalog.check(Dialect::Mysql)?;
        let connect = preflight::parse(&options)?;
        let found = preflight::check(&connect).await?;
        let (least, reserved) = if found.flavour == Flavour::Mariadb {
            (RESERVED + 1, RESERVED)
        } else {
            (1, 0)
        };
        let connections = options.connections.max(least);
        let flavour = found.flavour;
        let pool = MySqlPoolOptions::new()
            .max_connections(connections)
            // A connection that has died is found out at its first use, where nothing is lost yet: a ping each time costs a round trip.
            .test_before_acquire(false)
            .after_connect(move |connection, _| Box::pin(preflight::settle(connection, flavour)))
            .connect_lazy_with(connect.clone());
        let inner = Inner {
            pool,
            options: connect,
            connections,
            flavour,
            catalog: options.catalog,
            branches: Branches::new(),
            identity: found.identity,
            capacity: connections - reserved,
            retention: options.marker_retention,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The server's own identity, and the schema.
    pub fn identity(&self) -> &str {
        &self.inner.identity
    }

    /// Connections; on MariaDB two fewer, for each prepared branch keeps one.
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

    /// For a service that does its own SQL: opens the branch, or takes it up again. Lock waits get at most `timeout`. A statement that fails
    /// leaves what it did before: the service must then drop the branch.
    pub async fn open(&self, branch: &BranchId, timeout: Duration) -> Result<OpenBranch, Refusal> {
        let _call = self.inner.branches.call(branch).await;
        let lease = self.inner.open(branch, deadline_after(timeout)).await?;
        Ok(OpenBranch { lease })
    }
}

/// A branch in the hands of a service. Dropped without [`Self::finish`], it is rolled back, and votes no.
pub struct OpenBranch {
    lease: Lease<MyBranch>,
}

impl OpenBranch {
    /// The connection, inside the branch, which is not to be ended here.
    pub fn connection(&mut self) -> &mut MySqlConnection {
        self.lease.connection()
    }

    /// Hands the branch back, to be prepared. Refused where it was ended meanwhile.
    pub fn finish(self) -> Result<(), Refusal> {
        self.lease.finish()
    }
}

impl Participant for MysqlResource {
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
