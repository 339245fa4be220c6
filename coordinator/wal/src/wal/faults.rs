//! What a disk that fails does to the log.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Wal;
use crate::next::NextSegment;
use crate::segment::{SegmentFile, fill};
use crate::{Options, WalError, directory};

const OPTIONS: Options = Options { segment_bytes: 512 };

enum Fault {
    Write,
    ShortWrite,
    Sync,
}

struct FaultyFile {
    file: File,
    fault: Fault,
}

impl SegmentFile for FaultyFile {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self.fault {
            Fault::Write => Err(io_error()),
            Fault::ShortWrite => {
                SegmentFile::write_all_at(&self.file, &bytes[..bytes.len() / 2], offset)?;
                Err(io_error())
            }
            Fault::Sync => SegmentFile::write_all_at(&self.file, bytes, offset),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(io_error())
    }
}

fn io_error() -> io::Error {
    io::Error::from_raw_os_error(5)
}

fn open(directory: &Path) -> (Wal, Vec<(u64, Vec<u8>)>) {
    let (wal, recovery) = Wal::open(directory, 7, 1, OPTIONS).expect("opens");
    (wal, recovery.records)
}

/// A failing append poisons the log; the next process finds `survivors` records.
fn check(fault: Fault, survivors: usize) {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut wal, _) = open(directory.path());
    wal.append([b"kept"]).expect("appends");
    let file = directory::open_segment(&wal.last.path).expect("opens");
    wal.file = Box::new(FaultyFile { file, fault });
    let error = wal.append([b"fails"]).expect_err("must fail");
    assert!(matches!(error, WalError::Io { .. }), "{error}");

    assert!(matches!(wal.append([b"more"]), Err(WalError::Poisoned)));
    assert!(matches!(wal.append([b""; 0]), Err(WalError::Poisoned)));
    assert!(matches!(wal.trim(1), Err(WalError::Poisoned)));
    assert!(matches!(wal.free_space(), Err(WalError::Poisoned)));
    assert!(!wal.can_rotate());
    drop(wal);
    assert_eq!(open(directory.path()).1.len(), survivors);
}

#[test]
fn a_failed_write_poisons_the_log() {
    check(Fault::Write, 1);
}

#[test]
fn a_write_cut_short_poisons_the_log_and_is_cut_on_opening() {
    check(Fault::ShortWrite, 1);
}

#[test]
fn a_failed_sync_poisons_the_log_and_opening_decides() {
    check(Fault::Sync, 2);
}

#[test]
fn a_rotation_that_fails_midway_poisons_the_log() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut wal, _) = open(directory.path());
    wal.append([[1; 300]]).expect("appends");
    wal.next.take().expect("prepared");
    wal.next.retry();
    while !wal.can_rotate() {
        std::thread::yield_now();
    }
    std::fs::remove_file(directory::next_segment_path(directory.path())).expect("removes");
    let error = wal.append([[2; 300]]).expect_err("nothing to rename");
    assert!(matches!(error, WalError::Io { .. }), "{error}");
    assert!(matches!(wal.append([b"more"]), Err(WalError::Poisoned)));
    drop(wal);
    assert_eq!(open(directory.path()).1.len(), 1);
}

#[test]
fn a_full_disk_refuses_the_rotation_and_nothing_else() {
    static FULL: AtomicBool = AtomicBool::new(true);
    fn fill_unless_full(path: &Path, bytes: u64, cancelled: &AtomicBool) -> io::Result<File> {
        if FULL.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        fill(path, bytes, cancelled)
    }

    let directory = tempfile::tempdir().expect("a directory");
    let (mut wal, _) = open(directory.path());
    let path = directory::next_segment_path(directory.path());
    wal.next = NextSegment::start(path, OPTIONS.segment_bytes, fill_unless_full);
    wal.append([[1; 300]]).expect("fits in the first segment");
    for _ in 0..2 {
        let error = wal.append([[2; 300]]).expect_err("needs a segment");
        assert!(matches!(error, WalError::NoSpace { .. }), "{error}");
        assert!(!wal.can_rotate());
    }
    assert_eq!(wal.append([b"small"]).expect("still fits"), 2);
    assert_eq!((wal.next_lsn(), wal.segments()), (3, 1));

    FULL.store(false, Ordering::SeqCst);
    wal.next.retry();
    assert_eq!(wal.append([[2; 300]]).expect("there is room again"), 3);
    assert_eq!(wal.segments(), 2);
    drop(wal);
    assert_eq!(open(directory.path()).1.len(), 3);
}
