//! Writing the last batch once more when a log is opened.
//!
//! A sync that failed ends the process, but not the page cache: Linux may keep the pages of the
//! failed batch, marked clean, and the next process would read a batch from memory which is not on
//! disk, and whose sync then succeeds because there is nothing to do. Only the last batch can be such
//! a one, since no write follows a failed sync. Writing it again makes its pages dirty, so that the
//! sync has to reach the disk or fail. The bytes are the same, so a crash meanwhile harms nothing.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::WalError;

/// Writes the bytes of a frame over themselves and syncs them.
pub(crate) fn rewrite(segment: &Path, file: &File, frame: Range<usize>) -> Result<(), WalError> {
    let mut bytes = vec![0; frame.len()];
    let offset = frame.start as u64;
    FileExt::read_exact_at(file, &mut bytes, offset)
        .and_then(|()| FileExt::write_all_at(file, &bytes, offset))
        .and_then(|()| file.sync_all())
        .map_err(|error| WalError::io("write again the last batch of", segment, error))
}
