//! MySQL 8.0.29 and later, and MariaDB 10.5.2 and later, by XA.
//!
//! The two differ after XA PREPARE: MySQL lets the session go, MariaDB binds it to the branch until its end. So on MariaDB a prepared branch
//! keeps its connection, and is finished on it; when the connection is lost the branch is free, and any other finishes it. Every branch that
//! changes anything writes a marker row: XA itself tells nobody what became of a branch.

mod branch;
mod outcome;
mod preflight;
mod step;
mod values;

use std::{sync::Arc, time::Duration};

use sqlx::{
    MySql, MySqlConnection,
    mysql::{MySqlConnectOptions, MySqlPoolOptions},
};

use crate::{
    operation::Dialect,
    participant::{BranchId, Refusal},
};

use super::{
    PreflightError, ResourceOptions, branches::Lease, connections::Connections, deadline_after,
    flow::Flow,
};
use branch::MyBranch;
use preflight::Flavour;

/// Connections of a MariaDB pool that no branch gets: decisions and questions must never wait for the branches that wait for them.
const RESERVED: u32 = 2;

/// A MySQL or MariaDB database, for [`super::Resource`] to make a participant of. Clones share everything.
#[derive(Clone)]
pub struct MysqlResource {
    pub(super) flow: Arc<Flow<MysqlServer>>,
}

/// One MySQL or MariaDB database, as [`Flow`] works on it.
pub(super) struct MysqlServer {
    connections: Connections<MySql>,
    /// For connections beside the pool.
    options: MySqlConnectOptions,
    flavour: Flavour,
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
            .after_connect(move |connection, _| Box::pin(preflight::settle(connection, flavour)));
        let server = MysqlServer {
            connections: Connections::new(pool, connect.clone(), "the database", values::is_dead),
            options: connect,
            flavour,
            retention: options.marker_retention,
        };
        let capacity = connections - reserved;
        Ok(Self {
            flow: Flow::new(
                server,
                options.catalog,
                found.identity,
                capacity,
                options.marker_retention,
            ),
        })
    }

    /// For a service that does its own SQL: opens the branch, or takes it up again. Lock waits get at most `timeout`. A statement that fails
    /// leaves what it did before: the service must then drop the branch.
    pub async fn open(&self, branch: &BranchId, timeout: Duration) -> Result<OpenBranch, Refusal> {
        let _call = self.flow.branches.call(branch).await;
        let lease = self.flow.open(branch, deadline_after(timeout)).await?;
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
        self.lease.connection.connection()
    }

    /// Hands the branch back, to be prepared. Refused where it was ended meanwhile.
    pub fn finish(self) -> Result<(), Refusal> {
        self.lease.finish()
    }
}
