//! PostgreSQL 13 and later, by `PREPARE TRANSACTION`.
//!
//! A prepared branch is bound to no session: any agent of the participant finishes it, under the same role. The proof that a vote carries
//! is the transaction's 64-bit id. Only one-phase branches write a marker row.

mod branch;
mod outcome;
mod preflight;
mod step;
mod values;

use std::{sync::Arc, time::Duration};

use sqlx::{
    PgConnection, Postgres,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::{
    operation::Dialect,
    participant::{BranchId, Refusal},
};

use super::{
    PreflightError, ResourceOptions, branches::Lease, connections::Connections, deadline_after,
    flow::Flow,
};
use branch::PgBranch;

/// A PostgreSQL database, for [`super::Resource`] to make a participant of. Clones share everything.
#[derive(Clone)]
pub struct PostgresResource {
    pub(super) flow: Arc<Flow<PostgresServer>>,
}

/// One PostgreSQL database, as [`Flow`] works on it.
pub(super) struct PostgresServer {
    connections: Connections<Postgres>,
    /// For connections beside the pool.
    options: PgConnectOptions,
    application_name: String,
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
            .after_connect(|connection, _| Box::pin(preflight::settle(connection)));
        let server = PostgresServer {
            connections: Connections::new(pool, connect.clone(), "PostgreSQL", values::is_dead),
            options: connect,
            application_name: preflight::application_name(&options.participant),
            retention: options.marker_retention,
        };
        Ok(Self {
            flow: Flow::new(
                server,
                options.catalog,
                found.identity,
                found.capacity,
                options.marker_retention,
            ),
        })
    }

    /// For a service that does its own SQL: opens the branch, or takes it up again. Each of its statements gets at most `timeout`.
    pub async fn open(&self, branch: &BranchId, timeout: Duration) -> Result<OpenBranch, Refusal> {
        let _call = self.flow.branches.call(branch).await;
        let lease = self.flow.open(branch, deadline_after(timeout)).await?;
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
        self.lease.connection.connection()
    }

    /// Hands the branch back, to be prepared. Refused where it was ended meanwhile.
    pub fn finish(self) -> Result<(), Refusal> {
        self.lease.finish()
    }
}
