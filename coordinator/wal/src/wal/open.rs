//! Opening a log: lock it, make durable what is there, check it, replay it, cut a torn end.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::Wal;
use crate::cut::cut;
use crate::error::is_no_space;
use crate::frame::FrameBuilder;
use crate::header::{SegmentHeader, salt};
use crate::lock::DirectoryLock;
use crate::next::NextSegment;
use crate::segment::{fill, publish};
use crate::{Lsn, Options, WalError, directory, log, rewrite};

/// What opening a log found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The identity that the log was created with.
    pub log_id: u32,
    /// The LSN of the oldest record that is still there; of the next one if there is none.
    pub first_lsn: Lsn,
    /// All records with their LSNs, in order. Empty when a callback received them.
    pub records: Vec<(Lsn, Vec<u8>)>,
    /// Whether there was no log, and a new one was made.
    pub created: bool,
    /// A batch that was never acknowledged, and has been cut off.
    pub torn_tail: Option<TornTail>,
}

/// The bytes of a batch whose write was cut short by a crash. Nobody was told that it is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The LSN that its first record had, and that the next append gives anew.
    pub lsn: Lsn,
    /// The segment file.
    pub segment: PathBuf,
    /// Where the batch started, in bytes.
    pub offset: u64,
    /// How many bytes of it there were, up to the last one that is not zero.
    pub bytes: u64,
    /// Where they were saved before they were cut off; none if the log was only inspected.
    pub saved_as: Option<PathBuf>,
}

impl Wal {
    /// Opens the log in `directory` and returns its records; makes a new log if there is none.
    ///
    /// The directory is created for the owner alone if it is missing. A new log takes `new_log_id`;
    /// an existing one keeps its own. `new_salt_seed` should differ at every start: the salts of new
    /// segments are derived from it, which tell their frames from those of any other file.
    ///
    /// # Errors
    ///
    /// See [`Wal::open_with`].
    pub fn open(
        directory: &Path,
        new_log_id: u32,
        new_salt_seed: u64,
        options: Options,
    ) -> Result<(Self, Recovery), WalError> {
        let mut records = Vec::new();
        let keep = |lsn, record: &[u8]| records.push((lsn, record.to_vec()));
        let (wal, recovery) = Self::open_with(directory, new_log_id, new_salt_seed, options, keep)?;
        Ok((
            wal,
            Recovery {
                records,
                ..recovery
            },
        ))
    }

    /// As [`Wal::open`], but hands each record to `replay`, in order, and keeps none.
    ///
    /// Records must not be acted on before this has returned: they are shown while the log is still
    /// being checked, and the last batch is made durable last.
    ///
    /// # Errors
    ///
    /// - [`WalError::InUse`]: another process has the log open.
    /// - [`WalError::Damaged`], [`WalError::NotALog`], [`WalError::WrongVersion`]: the log is not
    ///   what was written. Nothing is changed.
    /// - [`WalError::NoSpace`]: there is no room for the first segment.
    /// - [`WalError::InvalidOptions`], [`WalError::Io`].
    pub fn open_with(
        directory: &Path,
        new_log_id: u32,
        new_salt_seed: u64,
        options: Options,
        mut replay: impl FnMut(Lsn, &[u8]),
    ) -> Result<(Self, Recovery), WalError> {
        options.check()?;
        directory::create(directory)?;
        let lock = DirectoryLock::acquire(directory)?;
        let mut segments = directory::segments(directory)?;
        let created = segments.is_empty();
        if created {
            create_log(directory, new_log_id, new_salt_seed, &options)?;
            segments.push(1);
        }
        directory::sync_segments(directory, &segments)?;
        let log = log::read(directory, &segments, |lsn, _, _, record| {
            replay(lsn, record)
        })?;
        let file = directory::open_segment(&log.last.path)?;
        rewrite::rewrite(&log.last.path, &file, log.last_frame)?;
        let torn_tail = match log.torn {
            Some(extent) => Some(cut_torn(
                directory,
                &log.last.path,
                &file,
                extent,
                log.next_lsn,
            )?),
            None => None,
        };
        let recovery = Recovery {
            log_id: log.last.header.log_id,
            first_lsn: log.first_lsn,
            records: Vec::new(),
            created,
            torn_tail,
        };
        let next_path = directory::next_segment_path(directory);
        let wal = Self {
            directory: directory.to_owned(),
            salt_seed: new_salt_seed,
            segments: segments.into(),
            last: log.last,
            file: Box::new(file),
            next_lsn: log.next_lsn,
            batch: FrameBuilder::default(),
            poisoned: false,
            rotated: false,
            next: NextSegment::start(next_path, options.segment_bytes, fill),
            options,
            _lock: lock,
        };
        Ok((wal, recovery))
    }
}

/// Makes the first segment of a new log.
fn create_log(
    directory: &Path,
    log_id: u32,
    salt_seed: u64,
    options: &Options,
) -> Result<(), WalError> {
    let path = directory::next_segment_path(directory);
    let file = fill(&path, options.segment_bytes, &AtomicBool::new(false)).map_err(|error| {
        if is_no_space(&error) {
            WalError::NoSpace {
                directory: directory.to_owned(),
                needed_bytes: options.segment_bytes,
            }
        } else {
            WalError::io("create the first segment", &path, error)
        }
    })?;
    let header = SegmentHeader {
        log_id,
        salt: salt(salt_seed, 1),
        first_lsn: 1,
        segment_bytes: options.segment_bytes,
        previous_crc: 0,
    };
    publish(directory, &file, &header)
}

fn cut_torn(
    directory: &Path,
    segment: &Path,
    file: &File,
    extent: Range<usize>,
    lsn: Lsn,
) -> Result<TornTail, WalError> {
    let (offset, bytes) = (extent.start as u64, extent.len() as u64);
    let saved_as = cut(directory, segment, file, extent, lsn)?;
    Ok(TornTail {
        lsn,
        segment: segment.to_owned(),
        offset,
        bytes,
        saved_as: Some(saved_as),
    })
}
