//! The log as its callers see it: real files in a scratch directory, and what may happen to them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod alteration;
mod golden;
mod lock;
mod options;
mod round_trip;
mod scratch;
mod segments;
mod torn_write;
