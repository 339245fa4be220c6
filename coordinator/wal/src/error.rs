//! What can go wrong, grouped by what the caller may do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::Lsn;

/// Why the log could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    // Start differently: nothing was changed on disk.
    /// Another process holds the directory's lock.
    #[error(
        "the log directory {} is in use by {}; stop that process, or give this one a directory of its own",
        directory.display(), holder_words(*holder)
    )]
    InUse {
        /// The directory of the log.
        directory: PathBuf,
        /// The process that recorded itself in the lock file.
        holder: Option<u32>,
    },
    /// The options cannot be used.
    #[error("the log's options are refused: {reason}")]
    InvalidOptions {
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// The path holds something else than a log.
    #[error(
        "{} is not a write-ahead log: {reason}; nothing was changed. Check the configured directory, \
         or move the foreign file out of it",
        path.display()
    )]
    NotALog {
        /// The file, or the directory.
        path: PathBuf,
        /// Why it cannot be a log.
        reason: String,
    },
    /// The segment was written by another version of the format.
    #[error(
        "{} has format version {found}, and this program reads version {supported}; nothing was \
         changed. Run the version of unanimity which wrote it",
        segment.display()
    )]
    WrongVersion {
        /// The segment file.
        segment: PathBuf,
        /// The version in its header.
        found: u32,
        /// The version that this crate reads and writes.
        supported: u32,
    },

    // Stop: a human must look.
    /// The log does not hold what was once written to it. It is never repaired or skipped.
    #[error(
        "the log is damaged: {} at byte {offset}, where LSN {lsn} was expected: {reason}. {remedy}",
        segment.display()
    )]
    Damaged {
        /// The segment file.
        segment: PathBuf,
        /// The byte offset in the segment where the fault starts.
        offset: u64,
        /// The sequence number that was expected there.
        lsn: Lsn,
        /// What was found.
        reason: String,
        /// What an operator should do.
        remedy: &'static str,
    },

    // Retry when there is room, or with less: nothing was written, the log stays usable.
    /// There is no room for the next segment; nothing was written.
    #[error(
        "no space for the next log segment of {needed_bytes} bytes in {}; nothing was written. Free \
         space on that filesystem, or let a checkpoint trim the log",
        directory.display()
    )]
    NoSpace {
        /// The directory of the log.
        directory: PathBuf,
        /// The size of a segment.
        needed_bytes: u64,
    },
    /// A batch does not fit into a segment; nothing was written.
    #[error(
        "a batch needs more than the {limit_bytes} bytes that one log segment can take; nothing was \
         written. Split the batch, or raise the segment size"
    )]
    TooLarge {
        /// The largest frame a segment takes, with its framing.
        limit_bytes: u64,
    },

    // End the process: what reached the disk is unknown until the log is opened again.
    /// The operating system refused an operation. If it was a write or a sync, the log is poisoned.
    #[error("could not {operation} {}: {source}", path.display())]
    Io {
        /// What was tried: a verb, as in "sync".
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// An earlier write or sync failed; only opening the log anew can tell what it holds.
    #[error(
        "the log is poisoned: an earlier write or sync failed, so what reached the disk is unknown. \
         End this process; opening the log again decides"
    )]
    Poisoned,
}

/// What to do about damage inside a segment.
pub(crate) const REMEDY_INSPECT: &str = "Nothing was changed and nothing was skipped. Copy the \
    directory away, look with `unanimity log verify` and `unanimity log dump`, and follow \"When the \
    log is damaged\" in docs/wal-format.md";

/// What to do about segments which do not join.
pub(crate) const REMEDY_SEGMENTS: &str = "Nothing was changed. Put back the segment file that was \
    removed, renamed or replaced; if it is lost, follow \"When the log is damaged\" in \
    docs/wal-format.md";

impl WalError {
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self::Io {
            operation,
            path,
            source,
        }
    }

    pub(crate) fn damaged(segment: &Path, offset: usize, lsn: Lsn, reason: String) -> Self {
        Self::Damaged {
            segment: segment.to_owned(),
            offset: offset as u64,
            lsn,
            reason,
            remedy: REMEDY_INSPECT,
        }
    }
}

/// Whether an operation failed for want of space, which may pass.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn holder_words(holder: Option<u32>) -> String {
    match holder {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}
