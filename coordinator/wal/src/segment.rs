//! One segment file: filling it ahead, putting it into service, and reading it.

use std::fs::{File, rename};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::directory::{create_file, next_segment_path, remove, segment_path, sync};
use crate::error::REMEDY_SEGMENTS;
use crate::frame::Frame;
use crate::header::{FORMAT_VERSION, HEADER_BYTES, HeaderFault, SegmentHeader};
use crate::tail::{self, Expected, Tail};
use crate::{Lsn, WalError};

/// The zeros are written and synced in steps, so that they never keep the disk from the log for long.
const FILL_STEP: usize = 4 << 20;

/// What appending needs of a segment file; tests put one that fails in its place.
pub(crate) trait SegmentFile: Send + Sync {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn sync_data(&self) -> io::Result<()>;
}

impl SegmentFile for File {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }
}

/// Creates a file of zeros, durably; leaves nothing behind if that fails or is cancelled. Zeros that
/// are written, rather than `fallocate`, spare the later syncs any change of metadata.
pub(crate) fn fill(path: &Path, bytes: u64, cancelled: &AtomicBool) -> io::Result<File> {
    remove(path)?;
    let file = create_file(path)?;
    let filled = write_zeros(&file, bytes, cancelled).and_then(|()| file.sync_all());
    if let Err(error) = filled {
        // The first error is the one to tell; what remains is removed on the next attempt.
        let _ = remove(path);
        return Err(error);
    }
    Ok(file)
}

fn write_zeros(file: &File, bytes: u64, cancelled: &AtomicBool) -> io::Result<()> {
    let zeros = vec![0; FILL_STEP.min(bytes as usize)];
    let mut at = 0;
    while at < bytes {
        if cancelled.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let step = zeros.len().min((bytes - at) as usize);
        FileExt::write_all_at(file, &zeros[..step], at)?;
        file.sync_data()?;
        at += step as u64;
    }
    Ok(())
}

/// Puts the prepared segment into service. The header is durable before the name is, and the name
/// before any frame is written: a crash between leaves the log as it was.
pub(crate) fn publish(
    directory: &Path,
    file: &File,
    header: &SegmentHeader,
) -> Result<(), WalError> {
    let prepared = next_segment_path(directory);
    let path = segment_path(directory, header.first_lsn);
    FileExt::write_all_at(file, &header.encode(), 0)
        .map_err(|error| WalError::io("write the header of", &prepared, error))?;
    if !cfg!(unanimity_bug = "header-not-synced") {
        file.sync_all()
            .map_err(|error| WalError::io("sync", &prepared, error))?;
    }
    rename(&prepared, &path)
        .map_err(|error| WalError::io("put into service the segment", &path, error))?;
    sync(directory)
}

/// The header of the segment file named for `first_lsn`, checked against its name and length.
pub(crate) fn check_header(
    path: &Path,
    first_lsn: Lsn,
    bytes: &[u8],
) -> Result<SegmentHeader, WalError> {
    let damaged = |offset, reason: &str| {
        Err(WalError::damaged(
            path,
            offset,
            first_lsn,
            reason.to_owned(),
        ))
    };
    let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
        return damaged(bytes.len(), "the file ends before its header does");
    };
    let header = match SegmentHeader::decode(head) {
        Ok(header) => header,
        Err(HeaderFault::AllZero) => {
            return damaged(0, "the header is missing, there are only zeros");
        }
        Err(HeaderFault::Crc) => return damaged(0, "the header does not match its checksum"),
        Err(HeaderFault::Magic) => {
            return Err(WalError::NotALog {
                path: path.to_owned(),
                reason: "it does not start with UNANWAL1".to_owned(),
            });
        }
        Err(HeaderFault::Version(found)) => {
            return Err(WalError::WrongVersion {
                segment: path.to_owned(),
                found,
                supported: FORMAT_VERSION,
            });
        }
    };
    if header.first_lsn != first_lsn {
        return Err(WalError::Damaged {
            segment: path.to_owned(),
            offset: 0,
            lsn: first_lsn,
            reason: format!("this is the segment of LSN {}", header.first_lsn),
            remedy: REMEDY_SEGMENTS,
        });
    }
    // A record takes more than a byte, so no LSN in the segment is past this.
    let is_possible = first_lsn > 0 && first_lsn.checked_add(bytes.len() as u64).is_some();
    if !is_possible {
        return damaged(0, "no log has a record with that LSN");
    }
    if header.segment_bytes != bytes.len() as u64 {
        let (expected, found) = (header.segment_bytes, bytes.len());
        let reason = format!("the file has {found} bytes, but was made with {expected}");
        return damaged(found, &reason);
    }
    Ok(header)
}

/// What a segment holds.
#[derive(Debug)]
pub(crate) struct Contents {
    /// The LSN of the record after the last one.
    pub(crate) next_lsn: Lsn,
    /// The offset of the last sound frame; `end` if there is none.
    pub(crate) last_frame: usize,
    /// The offset behind the last sound frame.
    pub(crate) end: usize,
    /// The CRC of the last frame, or of the header.
    pub(crate) last_crc: u32,
    /// What stands at `end`.
    pub(crate) tail: Tail,
}

/// Goes through the frames of a segment, and shows every record with its LSN and offset.
pub(crate) fn scan(
    bytes: &[u8],
    header: &SegmentHeader,
    mut visit: impl FnMut(Lsn, u64, &[u8]),
) -> Contents {
    let mut expected = Expected {
        lsn: header.first_lsn,
        previous_crc: header.crc(),
        salt: header.salt,
    };
    let (mut last_frame, mut end) = (HEADER_BYTES, HEADER_BYTES);
    while let Some(frame) = Frame::parse(&bytes[end..], expected.salt)
        && frame.first_lsn == expected.lsn
        && frame.previous_crc == expected.previous_crc
    {
        for (lsn, (offset, record)) in (expected.lsn..).zip(frame.records()) {
            visit(lsn, (end + offset) as u64, record);
        }
        expected.lsn += u64::from(frame.record_count);
        expected.previous_crc = frame.crc;
        last_frame = end;
        end += frame.bytes();
    }
    Contents {
        next_lsn: expected.lsn,
        last_frame,
        end,
        last_crc: expected.previous_crc,
        tail: tail::judge(bytes, end, expected),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::check_header;
    use crate::WalError;
    use crate::header::SegmentHeader;

    #[test]
    fn a_segment_of_an_lsn_that_no_log_reaches_is_damage() {
        let check = |first_lsn| {
            let header = SegmentHeader {
                log_id: 7,
                salt: 9,
                first_lsn,
                segment_bytes: 512,
                previous_crc: 0,
            };
            let mut bytes = header.encode().to_vec();
            bytes.resize(512, 0);
            check_header(Path::new("segment"), first_lsn, &bytes)
        };
        for first_lsn in [0, u64::MAX - 511, u64::MAX] {
            let refused = check(first_lsn);
            assert!(
                matches!(refused, Err(WalError::Damaged { .. })),
                "{first_lsn}: {refused:?}"
            );
        }
        for first_lsn in [1, u64::MAX - 512] {
            assert!(check(first_lsn).is_ok(), "{first_lsn}");
        }
    }
}
