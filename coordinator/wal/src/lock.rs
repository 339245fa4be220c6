//! The lock of a log directory: two processes that append to one log would destroy it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::WalError;

const LOCK_FILE: &str = "lock";

/// An exclusive `flock` on the file `lock`, which holds the owner's process id for error messages.
/// The kernel releases it with the process, however that ends; the file stays.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    pub(crate) fn acquire(directory: &Path) -> Result<Self, WalError> {
        let path = directory.join(LOCK_FILE);
        let failed = |error| WalError::io("lock", &path, error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(WalError::InUse {
                    directory: directory.to_owned(),
                    holder: recorded_holder(&mut file),
                });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        record_holder(&mut file).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

fn record_holder(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}

fn recorded_holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
