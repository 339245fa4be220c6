//! Reading a whole log: every segment, and how each joins the one before it.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::directory::{segment_name, segment_path};
use crate::error::REMEDY_SEGMENTS;
use crate::header::{HEADER_BYTES, SegmentHeader};
use crate::segment::{Contents, check_header, scan};
use crate::tail::Tail;
use crate::{Lsn, WalError};

/// What a log holds, and where its next frame goes.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) first_lsn: Lsn,
    pub(crate) next_lsn: Lsn,
    pub(crate) last: LastSegment,
    /// The place of the last sound frame, in the last segment; empty if that has none.
    pub(crate) last_frame: Range<usize>,
    /// The bytes of a batch that was torn, in the last segment.
    pub(crate) torn: Option<Range<usize>>,
}

/// The segment that takes appends.
#[derive(Debug)]
pub(crate) struct LastSegment {
    pub(crate) path: PathBuf,
    pub(crate) header: SegmentHeader,
    /// The offset of the next frame.
    pub(crate) end: usize,
    /// The CRC that the next frame is chained to: of the last frame, or of the header.
    pub(crate) last_crc: u32,
}

impl LastSegment {
    /// The CRC that the next segment is chained to: of the last frame in the whole log.
    pub(crate) fn last_frame_crc(&self) -> u32 {
        if self.is_empty() {
            self.header.previous_crc
        } else {
            self.last_crc
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.end == HEADER_BYTES
    }
}

/// Reads and checks the segments, of which there is at least one, in order, and shows every record
/// with its LSN, its segment and its offset. Records before a fault have been shown when it is found.
pub(crate) fn read(
    directory: &Path,
    segments: &[Lsn],
    mut visit: impl FnMut(Lsn, &Path, u64, &[u8]),
) -> Result<Log, WalError> {
    let Some((last, older)) = segments.split_last() else {
        return Err(WalError::NotALog {
            path: directory.to_owned(),
            reason: "the directory has no segment files".to_owned(),
        });
    };
    let mut previous = None;
    for first_lsn in older {
        let (segment, contents) = read_segment(directory, *first_lsn, &previous, &mut visit)?;
        refuse_unclean(&segment, &contents)?;
        previous = Some((segment, contents.next_lsn));
    }
    let (last, contents) = read_segment(directory, *last, &previous, &mut visit)?;
    let torn = match contents.tail {
        Tail::Torn { end } => Some(contents.end..end),
        Tail::Clean | Tail::Damaged { .. } => {
            refuse_unclean(&last, &contents)?;
            None
        }
    };
    Ok(Log {
        first_lsn: segments[0],
        next_lsn: contents.next_lsn,
        last,
        last_frame: contents.last_frame..contents.end,
        torn,
    })
}

/// The segment before, with the LSN that has to follow it.
type Previous = Option<(LastSegment, Lsn)>;

fn read_segment(
    directory: &Path,
    first_lsn: Lsn,
    previous: &Previous,
    visit: &mut impl FnMut(Lsn, &Path, u64, &[u8]),
) -> Result<(LastSegment, Contents), WalError> {
    let path = segment_path(directory, first_lsn);
    if let Some((_, expected_lsn)) = previous {
        check_name(&path, first_lsn, *expected_lsn)?;
    }
    let bytes = fs::read(&path).map_err(|error| WalError::io("read", &path, error))?;
    let header = check_header(&path, first_lsn, &bytes)?;
    if let Some((previous, _)) = previous {
        check_link(&path, &header, previous)?;
    }
    let contents = scan(&bytes, &header, |lsn, offset, record| {
        visit(lsn, &path, offset, record);
    });
    let segment = LastSegment {
        path,
        header,
        end: contents.end,
        last_crc: contents.last_crc,
    };
    Ok((segment, contents))
}

/// The names alone show a segment that is missing.
fn check_name(path: &Path, first_lsn: Lsn, expected_lsn: Lsn) -> Result<(), WalError> {
    let reason = if first_lsn > expected_lsn {
        let (last, name) = (first_lsn - 1, segment_name(expected_lsn));
        format!("records {expected_lsn} to {last} are missing; they started in {name}")
    } else if first_lsn < expected_lsn {
        format!(
            "the segment before it already reaches LSN {}",
            expected_lsn - 1
        )
    } else {
        return Ok(());
    };
    Err(unjoined(path, expected_lsn, reason))
}

fn check_link(path: &Path, header: &SegmentHeader, previous: &LastSegment) -> Result<(), WalError> {
    let reason = if header.log_id != previous.header.log_id {
        let (found, expected) = (header.log_id, previous.header.log_id);
        format!("the segment belongs to log {found}, the one before it to log {expected}")
    } else if header.previous_crc != previous.last_frame_crc() {
        "the segment does not continue the one before it: one of the two was replaced".to_owned()
    } else {
        return Ok(());
    };
    Err(unjoined(path, header.first_lsn, reason))
}

fn unjoined(path: &Path, lsn: Lsn, reason: String) -> WalError {
    WalError::Damaged {
        segment: path.to_owned(),
        offset: 0,
        lsn,
        reason,
        remedy: REMEDY_SEGMENTS,
    }
}

/// An older segment ends in zeros: rotation follows a synced batch, and opening cuts a torn one first.
fn refuse_unclean(segment: &LastSegment, contents: &Contents) -> Result<(), WalError> {
    let reason = match &contents.tail {
        Tail::Clean => return Ok(()),
        Tail::Damaged { reason } => reason.clone(),
        Tail::Torn { .. } => {
            "the batch cannot be read, but a later segment exists, so this one had \
             been acknowledged"
                .to_owned()
        }
    };
    let (path, end, lsn) = (&segment.path, contents.end, contents.next_lsn);
    Err(WalError::damaged(path, end, lsn, reason))
}
