//! What takes part in Unanimity's transactions: a library for services, and the agent around a database or a service.
//!
//! - [`participant`]: the one trait, for a service with its own logic. Implement it and hand it to [`session::run`].
//! - [`resource`]: that trait over PostgreSQL, MySQL, MariaDB and SQLite.
//! - [`enlist`]: for a service that does its own SQL under a transaction that reached it with a request.
//! - [`http`]: that trait over the HTTP endpoints of a service in any language.
//! - [`agent`]: the process around a database or such a service, whose work is the named operations of its configuration; a binary too.
//!
//! Nothing here decides the outcome of a transaction. A participant votes, then waits for the decision, for as long as it takes.

#[cfg(all(unanimity_bug, not(debug_assertions)))]
compile_error!("a seeded bug would get into a release build: unset UNANIMITY_BUG");
#[macro_use]
mod failpoint;

pub mod agent;
pub mod config;
pub mod enlist;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod http;
pub mod operation;
pub mod participant;
pub mod resource;
pub mod session;
mod wire;

#[cfg(any(test, feature = "failpoints"))]
pub use failpoint::FAILPOINTS;
