//! The gRPC services: each call is checked here, put to the engine, and its answer told.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;
use tonic::Status;
use unanimity_engine::Answer;
use unanimity_proto::v1;

use crate::{
    catalog::Catalog, driver::Handle, error::Refused, log::Gauge, request::Timeouts, wire,
};

pub(crate) mod admin;
pub(crate) mod participant;
pub(crate) mod transaction;

/// What the services share. They are there from the first moment, and refuse until the engine is ready.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    pub(crate) timeouts: Timeouts,
    pub(crate) catalog: Catalog,
    /// Ends every stream.
    pub(crate) closing: CancellationToken,
    ready: Arc<OnceLock<Ready>>,
}

/// What there is once replay is done and the epoch is durable.
#[derive(Clone)]
pub(crate) struct Ready {
    pub(crate) handle: Handle,
    pub(crate) log: Gauge,
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready")
            .field("incarnation", &self.handle.incarnation)
            .finish_non_exhaustive()
    }
}

impl Front {
    pub(crate) fn new(timeouts: Timeouts) -> Self {
        Front {
            timeouts,
            catalog: Catalog::default(),
            closing: CancellationToken::new(),
            ready: Arc::default(),
        }
    }

    /// From now on calls are taken.
    pub(crate) fn open(&self, ready: Ready) {
        assert!(
            self.ready.set(ready).is_ok(),
            "a coordinator becomes ready once"
        );
    }

    /// The way to the engine.
    pub(crate) fn handle(&self) -> Result<&Handle, Refused> {
        self.ready
            .get()
            .map(|ready| &ready.handle)
            .ok_or(Refused::Starting)
    }

    /// The way to the engine for a new transaction, which must find room in the log.
    pub(crate) fn handle_for_new(&self) -> Result<&Handle, Refused> {
        let ready = self.ready.get().ok_or(Refused::Starting)?;
        if ready.log.is_space_low() {
            return Err(Refused::LogSpaceLow);
        }
        Ok(&ready.handle)
    }
}

/// A transaction that came as answer to a call.
fn transaction(handle: &Handle, answer: Answer) -> Result<v1::Transaction, Status> {
    match answer {
        Answer::Transaction(view) => Ok(wire::transaction(&view, handle.now())),
        Answer::Executed(_) => Err(Status::internal(
            "an operation's result came as answer to a call about a transaction",
        )),
    }
}
