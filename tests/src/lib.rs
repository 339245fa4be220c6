//! What whole-system tests stand on: private database servers, our processes as real processes, and ways to hurt both.
//!
//! - [`postgres`], [`mariadb`]: servers on data directories of their own. One of each is shared by the tests of a binary; a test that kills or
//!   configures a server starts its own.
//! - [`system`]: a coordinator and agents, from the built binaries.
//! - [`bank`]: accounts in a database, what agents offer on them, and what is left prepared.
//! - [`deeds`]: what the steps of sagas did, by the databases themselves.
//! - [`process`]: kill, pause, wait. [`strace`]: syncs, counted or made to fail. [`fake`]: a participant that does as it is told.
//!   [`held`]: a transaction between its votes. [`service`]: a service over HTTP that does as it is told; [`payments`]: one that keeps the contract.
//!
//! Whatever is started ends with the test process, however that ends: see [`watchdog`].

pub mod bank;
pub mod binaries;
pub mod deeds;
pub mod fake;
pub mod held;
pub mod mariadb;
pub mod patience;
pub mod payments;
pub mod port;
pub mod postgres;
pub mod process;
pub mod service;
pub mod strace;
pub mod system;
pub mod user;
pub mod watchdog;
