//! Cutting off a torn batch: its bytes are kept aside, then its place becomes zeros again.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::directory::{create_file, sync};
use crate::{Lsn, WalError};

/// Cuts the bytes in `extent` from a segment; returns where they were saved. The copy is durable
/// before the first zero is written. A crash between leaves a torn batch, which is cut again.
pub(crate) fn cut(
    directory: &Path,
    segment: &Path,
    file: &File,
    extent: Range<usize>,
    lsn: Lsn,
) -> Result<PathBuf, WalError> {
    let mut bytes = vec![0; extent.len()];
    let offset = extent.start as u64;
    FileExt::read_exact_at(file, &mut bytes, offset)
        .map_err(|error| WalError::io("read the torn end of", segment, error))?;
    let saved_as = save(segment, lsn, &bytes)?;
    sync(directory)?;
    bytes.fill(0);
    FileExt::write_all_at(file, &bytes, offset)
        .and_then(|()| file.sync_all())
        .map_err(|error| WalError::io("cut the torn end of", segment, error))?;
    Ok(saved_as)
}

/// Writes the bytes beside the segment, under a name that no earlier copy has.
fn save(segment: &Path, lsn: Lsn, bytes: &[u8]) -> Result<PathBuf, WalError> {
    let mut attempt = 1;
    loop {
        let mut name = segment.as_os_str().to_owned();
        name.push(format!(".torn-{lsn}"));
        if attempt > 1 {
            name.push(format!(".{attempt}"));
        }
        let path = PathBuf::from(name);
        let saved = create_file(&path).and_then(|file| {
            FileExt::write_all_at(&file, bytes, 0)?;
            file.sync_all()
        });
        match saved {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
            Err(error) => return Err(WalError::io("save the torn batch as", &path, error)),
        }
    }
}
