//! A write-ahead log: bytes in, log sequence number out.
//!
//! It exists so that a decision, once told to anyone, survives kill -9 and power loss. It knows
//! nothing of transactions: a record is bytes. It must never forget or alter a record whose
//! [`Wal::append`] has returned, never skip over damage, and never answer after a failed write or
//! sync, since what the disk holds is then unknown.
//!
//! A log is a directory of segment files. Each is filled with zeros before it is used, and holds
//! frames; a frame is one batch of records, written by one write and one `fdatasync`.
//!
//! ```text
//! directory/
//!   lock                    held by the one process that may append
//!   0000000000000001.wal    header | frame | frame | … | zeros
//!   00000000000003e9.wal    header | frame | zeros              the last one takes appends
//!   next.wal.tmp            zeros, prepared ahead of the next rotation
//! ```
//!
//! `docs/wal-format.md` has the bytes, and what is and is not promised. The rule which tells a torn
//! write from damage is argued in the module `tail`.
//!
//! The API is synchronous and meant to live on its own thread.

#[cfg(all(unanimity_bug, not(debug_assertions)))]
compile_error!("a seeded bug would get into a release build: unset UNANIMITY_BUG");

mod cut;
mod directory;
mod error;
mod frame;
mod header;
mod inspect;
mod lock;
mod log;
mod next;
mod options;
mod rewrite;
mod segment;
mod tail;
mod wal;

pub use error::WalError;
pub use inspect::{Report, dump, verify};
pub use options::Options;
pub use wal::{Recovery, TornTail, Wal};

/// The sequence number of a record. The first record of a log is 1, and none is ever left out.
pub type Lsn = u64;
