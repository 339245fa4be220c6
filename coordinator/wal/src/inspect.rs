//! Looking at a log without changing it: `unanimity log verify` and `unanimity log dump`.
//!
//! No lock is taken, so that it never keeps a coordinator from starting. On a log which is in use,
//! a batch that is being written may look torn or damaged, and a segment may vanish while it is
//! read; look again, or at a copy.

use std::path::Path;

use crate::wal::TornTail;
use crate::{Lsn, WalError, directory, log};

/// What a sound log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The identity that the log was created with.
    pub log_id: u32,
    /// The number of segment files.
    pub segments: usize,
    /// The number of records.
    pub records: u64,
    /// The LSN of the oldest record that is still there; of the next one if there is none.
    pub first_lsn: Lsn,
    /// The LSN of the newest record, if there is any.
    pub last_lsn: Option<Lsn>,
    /// A batch that was never acknowledged, which opening the log would cut off.
    pub torn_tail: Option<TornTail>,
}

/// Checks every byte of the log in `directory`.
///
/// # Errors
///
/// As [`Wal::open`](crate::Wal::open), except that a torn last batch is reported and left alone,
/// and a directory without segments is [`WalError::NotALog`].
pub fn verify(directory: &Path) -> Result<Report, WalError> {
    dump(directory, |_, _, _, _| {})
}

/// Checks the log in `directory` and shows every record in order: its LSN, its segment file, the
/// offset of its length prefix there, and its bytes.
///
/// # Errors
///
/// As [`verify`]. Records before the fault have been shown then.
pub fn dump(
    directory: &Path,
    show: impl FnMut(Lsn, &Path, u64, &[u8]),
) -> Result<Report, WalError> {
    let segments = directory::segments(directory)?;
    let log = log::read(directory, &segments, show)?;
    let records = log.next_lsn - log.first_lsn;
    Ok(Report {
        log_id: log.last.header.log_id,
        segments: segments.len(),
        records,
        first_lsn: log.first_lsn,
        last_lsn: (records > 0).then(|| log.next_lsn - 1),
        torn_tail: log.torn.map(|extent| TornTail {
            lsn: log.next_lsn,
            segment: log.last.path.clone(),
            offset: extent.start as u64,
            bytes: extent.len() as u64,
            saved_as: None,
        }),
    })
}
