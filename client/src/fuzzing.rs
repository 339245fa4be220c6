//! Doors for the fuzz targets: what reads the coordinator's answers here and is private. No part of the API.

use unanimity_proto::v1;

use crate::{Outcome, Rows, Snapshot};

/// Reads what an operation gave back.
pub fn rows(result: v1::OperationResult) -> Option<Rows> {
    Rows::from_wire(result)
}

/// Reads a transaction.
pub fn snapshot(transaction: v1::Transaction) -> Option<Snapshot> {
    Snapshot::from_wire(Some(transaction)).ok()
}

/// Tells what became of it; `None` where it is not decided.
pub fn outcome(snapshot: Snapshot) -> Option<Outcome> {
    Outcome::from_snapshot(snapshot).ok()
}
