//! What stands behind the last sound frame of a segment: nothing, a torn write, or damage.
//!
//! The log must boot after a crash in the middle of a write, and must never boot without a batch
//! whose append had returned. Both look like a frame with a wrong CRC, so the rule is an argument
//! about what a crash can leave. Before a frame is written its place holds zeros, on disk (the
//! segment was filled and synced before its header was) and in the page cache. It is written once,
//! by one write, and nothing is written behind it before its sync has returned. Hence:
//!
//! - **kill -9** during the write leaves a *prefix* of the frame; zeros follow. A frame ends with a
//!   byte that is not zero, so a strict prefix lacks that end.
//! - **Power loss** before the sync returned leaves *any subset of sectors*: a sector of 512 bytes
//!   holds either the frame's bytes or zeros. Each chunk of a frame between two sector borders holds
//!   something other than zero, except where a record itself has a run of zeros: the first chunk has
//!   the payload length (never 0), the last one the end magic. So a frame that misses a sector
//!   shows a chunk of zeros, or its end is missing.
//! - Both at once leave a subset of the sectors of a prefix, which shows one sign or the other.
//!
//! So, at the first place where the next frame is not found:
//!
//! ```text
//! only zeros to the end of the segment               → clean end
//! a sound frame here that is not the next one        → damage: nothing writes that
//! a sound frame further on                           → damage: this one had been synced before
//! the end is missing, or a chunk is all zeros        → torn: never acknowledged, may be cut
//! complete, every sector present, CRC wrong          → damage: it was written whole, then altered
//! ```
//!
//! "The end is missing" asks two witnesses, so that one altered byte does not make an acknowledged
//! frame look torn: the trailer, and the length in the frame's header. If either says that the bytes
//! reach the end of the frame, they do.
//!
//! What the rule cannot see: damage to the very last frame which turns its last bytes or a whole
//! sector into zeros is the same bytes as a torn write; so is any damage to a last frame in which a
//! record fills a sector with zeros. It takes the side of safety where a device tears *inside* a
//! sector: that is reported as damage. Cutting may itself be interrupted: zeroing more of a torn
//! extent leaves it torn.

use crate::Lsn;
use crate::frame::{ALIGNMENT, Frame, claimed_frame_bytes, ends_with_own_trailer};

/// The unit that a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

const ZEROS: [u8; 4096] = [0; 4096];

/// What stands behind the last sound frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Only zeros.
    Clean,
    /// A batch that was never acknowledged; its bytes end at this offset.
    Torn { end: usize },
    /// Something that no crash can leave.
    Damaged { reason: String },
}

/// What the next frame has to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) lsn: Lsn,
    pub(crate) previous_crc: u32,
    pub(crate) salt: u64,
}

/// Judges what `segment` holds from `start`, where the next frame was expected and not found.
pub(crate) fn judge(segment: &[u8], start: usize, expected: Expected) -> Tail {
    let Some(end) = end_of_content(segment, start) else {
        return Tail::Clean;
    };
    if let Some(frame) = Frame::parse(&segment[start..], expected.salt) {
        return Tail::Damaged {
            reason: misplaced(&frame, expected),
        };
    }
    if cfg!(unanimity_bug = "cut-past-valid") {
        return Tail::Torn { end };
    }
    if let Some((offset, lsn)) = later_frame(segment, start, end, expected.salt) {
        let reason = format!(
            "the batch cannot be read, but a sound batch with LSN {lsn} follows at byte {offset}, so \
             this one had been acknowledged"
        );
        return Tail::Damaged { reason };
    }
    if has_zero_chunk(segment, start, end) || !is_complete(segment, start, end, expected) {
        return Tail::Torn { end };
    }
    Tail::Damaged {
        reason: "the last batch was written completely and has been altered since".to_owned(),
    }
}

fn misplaced(frame: &Frame<'_>, expected: Expected) -> String {
    if frame.first_lsn == expected.lsn {
        "a sound batch stands here which does not continue the one before it".to_owned()
    } else {
        let lsn = frame.first_lsn;
        format!("a sound batch stands here, but it has LSN {lsn}")
    }
}

/// The first sound frame behind the one that starts at `start`.
fn later_frame(segment: &[u8], start: usize, end: usize, salt: u64) -> Option<(usize, Lsn)> {
    (start + ALIGNMENT..end)
        .step_by(ALIGNMENT)
        .find_map(|offset| {
            Frame::parse(&segment[offset..], salt).map(|frame| (offset, frame.first_lsn))
        })
}

fn has_zero_chunk(segment: &[u8], start: usize, end: usize) -> bool {
    let mut at = start;
    while at < end {
        let border = (at + 1).next_multiple_of(SECTOR_BYTES).min(end);
        if is_zero(&segment[at..border]) {
            return true;
        }
        at = border;
    }
    false
}

fn is_complete(segment: &[u8], start: usize, end: usize, expected: Expected) -> bool {
    let by_trailer = ends_with_own_trailer(&segment[start..end]);
    let claimed = claimed_frame_bytes(&segment[start..], expected.lsn, expected.previous_crc);
    by_trailer || claimed.is_some_and(|bytes| start + bytes <= end)
}

/// The offset behind the last byte that is not zero, looking no further back than `start`.
fn end_of_content(segment: &[u8], start: usize) -> Option<usize> {
    let mut end = segment.len();
    while end > start {
        let from = start.max(end.saturating_sub(ZEROS.len()));
        if !is_zero(&segment[from..end]) {
            let last = segment[from..end].iter().rposition(|byte| *byte != 0)?;
            return Some(from + last + 1);
        }
        end = from;
    }
    None
}

/// Whether `bytes`, which are no more than a page, are all zero; by one `memcmp`.
fn is_zero(bytes: &[u8]) -> bool {
    bytes == &ZEROS[..bytes.len()]
}

#[cfg(test)]
mod tests {
    use super::{Expected, Tail, judge};
    use crate::frame::FrameBuilder;

    const EXPECTED: Expected = Expected {
        lsn: 9,
        previous_crc: 4,
        salt: 3,
    };
    const START: usize = 400;

    fn frame(lsn: u64, previous_crc: u32, record: &[u8]) -> Vec<u8> {
        let mut builder = FrameBuilder::default();
        builder.start();
        builder.push(record, 1 << 20).expect("fits");
        builder.finish(EXPECTED.salt, lsn, previous_crc).0.to_vec()
    }

    fn segment(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; START];
        bytes.extend(frames.concat());
        bytes.resize(16 * 512, 0);
        bytes
    }

    #[test]
    fn zeros_are_a_clean_end() {
        assert_eq!(judge(&segment(&[]), START, EXPECTED), Tail::Clean);
        let full = vec![1; 4096];
        assert_eq!(judge(&full, full.len(), EXPECTED), Tail::Clean);
    }

    #[test]
    fn every_strict_prefix_is_torn() {
        let frame = frame(9, 4, &[7; 2000]);
        for kept in 1..frame.len() {
            let bytes = segment(&[frame[..kept].to_vec()]);
            let tail = judge(&bytes, START, EXPECTED);
            assert!(matches!(tail, Tail::Torn { .. }), "{kept}: {tail:?}");
        }
    }

    #[test]
    fn every_lost_sector_is_torn() {
        let whole = segment(&[frame(9, 4, &[7; 2000])]);
        for lost in 1_u32..1 << 5 {
            let mut bytes = whole.clone();
            for sector in (0..5).filter(|sector| lost & (1 << sector) != 0) {
                bytes[sector * 512..(sector + 1) * 512].fill(0);
            }
            match judge(&bytes, START, EXPECTED) {
                Tail::Torn { .. } => {}
                Tail::Clean => assert_eq!(lost, 0b1_1111, "only if nothing is left"),
                Tail::Damaged { reason } => panic!("lost {lost:b}: {reason}"),
            }
        }
    }

    #[test]
    fn an_altered_complete_frame_is_damage_unless_its_last_byte_becomes_zero() {
        let whole = segment(&[frame(9, 4, &[7; 2000])]);
        let end = START + 24 + 2008 + 8;
        for position in START..end {
            for flip in [0x01, 0x80, 0xff, whole[position]] {
                let mut bytes = whole.clone();
                bytes[position] ^= flip;
                if bytes == whole {
                    continue;
                }
                let tail = judge(&bytes, START, EXPECTED);
                let torn = position == end - 1 && bytes[position] == 0;
                assert_eq!(
                    matches!(tail, Tail::Torn { .. }),
                    torn,
                    "{position}: {tail:?}"
                );
                assert_ne!(tail, Tail::Clean);
            }
        }
    }

    #[test]
    fn a_sound_frame_further_on_is_damage() {
        let first = frame(9, 4, b"first");
        let second = frame(10, 5, b"second");
        for kept in 0..first.len() {
            let mut cut = first.clone();
            cut[kept..].fill(0);
            let tail = judge(&segment(&[cut, second.clone()]), START, EXPECTED);
            assert!(matches!(tail, Tail::Damaged { .. }), "{kept}: {tail:?}");
        }
    }

    #[test]
    fn a_sound_frame_in_the_wrong_place_is_damage() {
        for (lsn, previous_crc) in [(8, 4), (10, 4), (9, 5)] {
            for record in [vec![7; 20], vec![0; 2000]] {
                let bytes = segment(&[frame(lsn, previous_crc, &record)]);
                let tail = judge(&bytes, START, EXPECTED);
                assert!(matches!(tail, Tail::Damaged { .. }), "{tail:?}");
            }
        }
    }

    #[test]
    fn a_stray_byte_in_the_zeros_is_cut_off() {
        for position in START..16 * 512 {
            let mut bytes = segment(&[]);
            bytes[position] = 1;
            let end = position + 1;
            assert_eq!(judge(&bytes, START, EXPECTED), Tail::Torn { end });
        }
    }
}
