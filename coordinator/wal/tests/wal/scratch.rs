//! A log in a directory of its own.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use unanimity_wal::{Options, Recovery, Report, Wal, WalError, dump};

pub(crate) const LOG_ID: u32 = 0x2a;
pub(crate) const SALT_SEED: u64 = 1;

pub(crate) type Records = Vec<(u64, Vec<u8>)>;

pub(crate) struct Scratch {
    directory: TempDir,
    segment_bytes: u64,
}

impl Scratch {
    pub(crate) fn new(segment_bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            directory,
            segment_bytes,
        }
    }

    /// A log that holds these batches, and is closed.
    pub(crate) fn with(segment_bytes: u64, batches: &[Vec<Vec<u8>>]) -> Self {
        let scratch = Self::new(segment_bytes);
        let (mut wal, _) = scratch.open().unwrap();
        for batch in batches {
            wal.append(batch).unwrap();
        }
        drop(wal);
        scratch
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    pub(crate) fn open(&self) -> Result<(Wal, Recovery), WalError> {
        let segment_bytes = self.segment_bytes;
        Wal::open(&self.path(), LOG_ID, SALT_SEED, Options { segment_bytes })
    }

    pub(crate) fn dump(&self) -> Result<(Report, Records), WalError> {
        let mut records = Vec::new();
        let report = dump(&self.path(), |lsn, _, _, record| {
            records.push((lsn, record.to_vec()));
        })?;
        Ok((report, records))
    }

    /// The segment files, oldest first.
    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        let mut segments = self.files();
        segments.retain(|path| path.extension().is_some_and(|suffix| suffix == "wal"));
        segments
    }

    pub(crate) fn last_segment(&self) -> PathBuf {
        self.segments().pop().unwrap()
    }

    /// All files, by name.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path()).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

/// The records of these batches, as a log that holds nothing else gives them back.
pub(crate) fn numbered(batches: &[Vec<Vec<u8>>]) -> Records {
    (1..).zip(batches.iter().flatten().cloned()).collect()
}

/// Changes a file by a function of its bytes.
pub(crate) fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// The offset behind the last byte that is not zero.
pub(crate) fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1
}

/// The damage report, or a panic.
#[track_caller]
pub(crate) fn damage<T>(result: Result<T, WalError>) -> String {
    match result {
        Err(error @ WalError::Damaged { .. }) => error.to_string(),
        Err(error) => panic!("not damage: {error}"),
        Ok(_) => panic!("damage went unnoticed"),
    }
}
