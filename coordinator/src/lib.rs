//! The coordinator server: boring drivers around the pure core in `unanimity-engine`.
//!
//! ```text
//!  clients ──▶ services ─┐             ┌──▶ log thread ──▶ unanimity-wal
//!                        ├─▶ driver ◀──┘        │ durable
//!  participants ◀─▶ sessions   │ owns           ▼
//!                            Engine ◀───────────┘
//! ```
//!
//! The driver receives, feeds and drains; every decision about the protocol is the engine's. Nothing here may tell anyone an outcome that
//! the engine has not given out, and nothing may go on after the log has failed.

#[cfg(all(unanimity_bug, not(debug_assertions)))]
compile_error!("a seeded bug would get into a release build: unset UNANIMITY_BUG");
#[macro_use]
mod failpoint;

mod arguments;
mod catalog;
mod clock;
mod config;
mod driver;
mod error;
mod exit;
mod fingerprint;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod log;
mod outlet;
mod request;
mod run;
mod server;
mod services;
mod wire;

pub use arguments::Arguments;
pub use config::{Config, ConfigError, LogFormat, Span, Tls};
pub use error::Refused;
pub use exit::exit_code;
#[cfg(any(test, feature = "failpoints"))]
pub use failpoint::FAILPOINTS;
pub use run::run;
pub use server::serve;
