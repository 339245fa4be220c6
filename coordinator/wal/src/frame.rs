//! A frame: one batch of records, as one write puts it on disk. Little endian, aligned to 8 bytes.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | payload length in bytes, a multiple of 8 |
//! | 4 | 4 | number of records, at least 1 |
//! | 8 | 8 | LSN of the first record |
//! | 16 | 4 | CRC of the previous frame, or of the segment's header for its first frame |
//! | 20 | 4 | CRC32C over the segment's salt, the 20 bytes before, and the payload |
//! | 24 | payload | each record as length u32 and bytes; then zeros to a multiple of 8 |
//! | 24 + payload | 4 | payload length again |
//! | 28 + payload | 4 | end magic `UEND` |
//!
//! The CRC needs nothing but the segment's salt, so a frame can be recognised without those before
//! it; the previous CRC ties the frames into a chain. The last byte of a frame is not zero, so in a
//! segment of zeros the last byte which is not zero ends the last frame.

use crate::Lsn;
use crate::header::{u32_at, u64_at};

/// The alignment of frames.
pub(crate) const ALIGNMENT: usize = 8;
/// The length of what comes before a payload.
pub(crate) const FRAME_HEADER_BYTES: usize = 24;
/// The length of what comes after a payload.
pub(crate) const TRAILER_BYTES: usize = 8;

const CRC_OFFSET: usize = 20;
const END_MAGIC: &[u8; 4] = b"UEND";

/// A sound frame inside the bytes of a segment.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) first_lsn: Lsn,
    pub(crate) record_count: u32,
    pub(crate) previous_crc: u32,
    pub(crate) crc: u32,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame at the start of `bytes`, if it is whole and its CRC is right.
    pub(crate) fn parse(bytes: &'a [u8], salt: u64) -> Option<Self> {
        let frame = Self::read(bytes)?;
        let payload_bytes = frame.payload.len();
        let trailer = &bytes[FRAME_HEADER_BYTES + payload_bytes..];
        let whole = is_trailer(&trailer[..TRAILER_BYTES], payload_bytes)
            && (crc(salt, &bytes[..CRC_OFFSET], frame.payload) == frame.crc
                || cfg!(unanimity_bug = "checksum-ignored"))
            && frame.is_well_formed();
        whole.then_some(frame)
    }

    /// What the frame header at the start of `bytes` claims, where a frame of that length fits.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let payload_bytes = claimed_payload_bytes(bytes)?;
        if payload_bytes == 0 || !payload_bytes.is_multiple_of(ALIGNMENT) {
            return None;
        }
        let payload = bytes[FRAME_HEADER_BYTES..].get(..payload_bytes)?;
        if bytes.len() < frame_bytes(payload_bytes) {
            return None;
        }
        Some(Self {
            first_lsn: u64_at(bytes, 8),
            record_count: u32_at(bytes, 4),
            previous_crc: u32_at(bytes, 16),
            crc: u32_at(bytes, CRC_OFFSET),
            payload,
        })
    }

    /// The records, each with its offset in the frame.
    pub(crate) fn records(&self) -> impl Iterator<Item = (usize, &'a [u8])> + use<'a> {
        let payload = self.payload;
        let mut at = 0;
        (0..self.record_count).map_while(move |_| {
            let length = u32_at(payload.get(at..at + 4)?, 0) as usize;
            let record = payload.get(at + 4..)?.get(..length)?;
            let offset = FRAME_HEADER_BYTES + at;
            at += 4 + length;
            Some((offset, record))
        })
    }

    /// The length of the whole frame.
    pub(crate) fn bytes(&self) -> usize {
        frame_bytes(self.payload.len())
    }

    /// Whether the payload is exactly the promised records and less than 8 zeros.
    fn is_well_formed(&self) -> bool {
        let (count, end) = self.records().fold((0_u32, 0), |(count, _), (at, record)| {
            (count + 1, at - FRAME_HEADER_BYTES + 4 + record.len())
        });
        let padding = &self.payload[end..];
        count > 0
            && count == self.record_count
            && padding.len() < ALIGNMENT
            && padding.iter().all(|byte| *byte == 0)
    }
}

/// The payload length that a frame header claims.
fn claimed_payload_bytes(bytes: &[u8]) -> Option<usize> {
    (bytes.len() >= FRAME_HEADER_BYTES).then(|| u32_at(bytes, 0) as usize)
}

/// The length of the frame whose header starts `bytes`, if the header belongs where it stands.
pub(crate) fn claimed_frame_bytes(bytes: &[u8], lsn: Lsn, previous_crc: u32) -> Option<usize> {
    let payload_bytes = claimed_payload_bytes(bytes)?;
    let belongs = u64_at(bytes, 8) == lsn && u32_at(bytes, 16) == previous_crc;
    belongs.then(|| frame_bytes(payload_bytes))
}

/// Whether `bytes` ends with the trailer of a frame which fills it.
pub(crate) fn ends_with_own_trailer(bytes: &[u8]) -> bool {
    let Some(payload_bytes) = bytes.len().checked_sub(frame_bytes(0)) else {
        return false;
    };
    is_trailer(&bytes[bytes.len() - TRAILER_BYTES..], payload_bytes)
}

fn is_trailer(trailer: &[u8], payload_bytes: usize) -> bool {
    u32_at(trailer, 0) as usize == payload_bytes && trailer[4..] == END_MAGIC[..]
}

fn frame_bytes(payload_bytes: usize) -> usize {
    FRAME_HEADER_BYTES + payload_bytes + TRAILER_BYTES
}

fn crc(salt: u64, header: &[u8], payload: &[u8]) -> u32 {
    let salted = crc32c::crc32c(&salt.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(salted, header), payload)
}

/// Collects a batch into the bytes of one frame. It is kept and used again for every batch.
#[derive(Debug, Default)]
pub(crate) struct FrameBuilder {
    bytes: Vec<u8>,
    record_count: u32,
}

/// The batch outgrew the limit that the builder was given.
#[derive(Debug)]
pub(crate) struct Overflow;

impl FrameBuilder {
    /// Starts a new batch.
    pub(crate) fn start(&mut self) {
        self.bytes.clear();
        self.bytes.resize(FRAME_HEADER_BYTES, 0);
        self.record_count = 0;
    }

    /// Adds a record, unless the frame would become longer than `limit_bytes`.
    pub(crate) fn push(&mut self, record: &[u8], limit_bytes: usize) -> Result<(), Overflow> {
        let end = (self.bytes.len() + 4 + record.len()).next_multiple_of(ALIGNMENT);
        let length = u32::try_from(record.len()).map_err(|_| Overflow)?;
        if end + TRAILER_BYTES > limit_bytes {
            return Err(Overflow);
        }
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(record);
        self.record_count += 1;
        Ok(())
    }

    pub(crate) fn record_count(&self) -> u32 {
        self.record_count
    }

    /// The length that the finished frame will have.
    pub(crate) fn frame_bytes(&self) -> usize {
        self.bytes.len().next_multiple_of(ALIGNMENT) + TRAILER_BYTES
    }

    /// Completes the frame; returns its bytes and its CRC.
    pub(crate) fn finish(&mut self, salt: u64, first_lsn: Lsn, previous_crc: u32) -> (&[u8], u32) {
        let padded = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(padded, 0);
        // A segment is at most 1 GiB (`Options`), so a payload's length fits.
        let payload_bytes = ((padded - FRAME_HEADER_BYTES) as u32).to_le_bytes();
        self.bytes[..4].copy_from_slice(&payload_bytes);
        self.bytes[4..8].copy_from_slice(&self.record_count.to_le_bytes());
        self.bytes[8..16].copy_from_slice(&first_lsn.to_le_bytes());
        self.bytes[16..20].copy_from_slice(&previous_crc.to_le_bytes());
        let (header, payload) = self.bytes.split_at(FRAME_HEADER_BYTES);
        let crc = crc(salt, &header[..CRC_OFFSET], payload);
        self.bytes[CRC_OFFSET..FRAME_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        self.bytes.extend_from_slice(&payload_bytes);
        self.bytes.extend_from_slice(END_MAGIC);
        (&self.bytes, crc)
    }
}

#[cfg(test)]
mod tests {
    use super::{Frame, FrameBuilder};

    fn build(records: &[&[u8]]) -> Vec<u8> {
        let mut builder = FrameBuilder::default();
        builder.start();
        for record in records {
            builder.push(record, 4096).expect("fits");
        }
        let promised = builder.frame_bytes();
        let (bytes, _) = builder.finish(99, 5, 77);
        assert_eq!(bytes.len(), promised);
        assert_eq!(bytes.len() % 8, 0);
        bytes.to_vec()
    }

    #[test]
    fn a_frame_gives_back_its_records() {
        let records: [&[u8]; 4] = [b"", b"a", b"twelve bytes", &[0; 100]];
        let bytes = build(&records);
        let frame = Frame::parse(&bytes, 99).expect("sound");
        assert_eq!((frame.first_lsn, frame.previous_crc), (5, 77));
        assert_eq!(frame.bytes(), bytes.len());
        let found: Vec<_> = frame.records().map(|(_, record)| record).collect();
        assert_eq!(found, records);
    }

    #[test]
    fn any_changed_byte_or_salt_makes_a_frame_unsound() {
        let bytes = build(&[b"first", b"second"]);
        assert!(Frame::parse(&bytes, 98).is_none());
        for position in 0..bytes.len() {
            for flip in 1..=255 {
                let mut bytes = bytes.clone();
                bytes[position] ^= flip;
                assert!(Frame::parse(&bytes, 99).is_none(), "byte {position}");
            }
        }
        for length in 0..bytes.len() {
            assert!(Frame::parse(&bytes[..length], 99).is_none());
        }
    }

    #[test]
    fn a_batch_which_outgrows_its_limit_is_refused() {
        let mut builder = FrameBuilder::default();
        builder.start();
        assert!(builder.push(&[1; 20], 56).is_ok());
        assert!(builder.push(&[], 56).is_err());
        assert!(builder.push(&[], 64).is_ok());
    }
}
