//! The first 64 bytes of a segment, little endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `UNANWAL1` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | log id |
//! | 16 | 8 | salt of this segment |
//! | 24 | 8 | LSN of the segment's first record, as in the file's name |
//! | 32 | 8 | length of the segment file in bytes |
//! | 40 | 4 | CRC of the last frame of the previous segment, 0 in the first segment of a log |
//! | 44 | 16 | zeros |
//! | 60 | 4 | CRC32C of the 60 bytes before |
//!
//! Magic, version and CRC keep their places in every version, so that another version's header is
//! told from a damaged one.

use crate::Lsn;

/// The length of a header, and thus the offset of the first frame.
pub(crate) const HEADER_BYTES: usize = 64;

/// The version of the format that this crate reads and writes.
pub(crate) const FORMAT_VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"UNANWAL1";
const CRC_OFFSET: usize = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) log_id: u32,
    pub(crate) salt: u64,
    pub(crate) first_lsn: Lsn,
    pub(crate) segment_bytes: u64,
    pub(crate) previous_crc: u32,
}

/// Why 64 bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    AllZero,
    Magic,
    Crc,
    Version(u32),
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.log_id.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.salt.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first_lsn.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.segment_bytes.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.previous_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
        bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderFault> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(HeaderFault::AllZero);
        }
        if &bytes[..8] != MAGIC {
            return Err(HeaderFault::Magic);
        }
        if crc32c::crc32c(&bytes[..CRC_OFFSET]) != u32_at(bytes, CRC_OFFSET) {
            return Err(HeaderFault::Crc);
        }
        match u32_at(bytes, 8) {
            FORMAT_VERSION => {}
            other => return Err(HeaderFault::Version(other)),
        }
        Ok(Self {
            log_id: u32_at(bytes, 12),
            salt: u64_at(bytes, 16),
            first_lsn: u64_at(bytes, 24),
            segment_bytes: u64_at(bytes, 32),
            previous_crc: u32_at(bytes, 40),
        })
    }

    /// The CRC that the first frame of the segment is chained to.
    pub(crate) fn crc(&self) -> u32 {
        u32_at(&self.encode(), CRC_OFFSET)
    }
}

/// The salt of the segment that starts at `first_lsn`: one step of splitmix64, so that no two
/// segments of a log share a salt by accident of a plain seed.
pub(crate) fn salt(seed: u64, first_lsn: Lsn) -> u64 {
    let mut mixed = seed.wrapping_add(first_lsn.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The little-endian number at `offset`, which the caller knows to lie inside.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(number)
}

/// The little-endian number at `offset`, which the caller knows to lie inside.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::{FORMAT_VERSION, HeaderFault, SegmentHeader, salt};

    const HEADER: SegmentHeader = SegmentHeader {
        log_id: 7,
        salt: 0x0123_4567_89ab_cdef,
        first_lsn: 1001,
        segment_bytes: 4096,
        previous_crc: 0xdead_beef,
    };

    #[test]
    fn a_header_survives_encoding() {
        assert_eq!(SegmentHeader::decode(&HEADER.encode()), Ok(HEADER));
    }

    #[test]
    fn any_flipped_byte_is_a_fault() {
        for position in 0..64 {
            let mut bytes = HEADER.encode();
            bytes[position] ^= 0x10;
            let fault = SegmentHeader::decode(&bytes).expect_err("must be refused");
            let expected = if position < 8 {
                HeaderFault::Magic
            } else {
                HeaderFault::Crc
            };
            assert_eq!(fault, expected, "byte {position}");
        }
    }

    #[test]
    fn a_sound_header_of_another_version_is_told_from_damage() {
        let mut bytes = HEADER.encode();
        bytes[8] = FORMAT_VERSION as u8 + 1;
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(
            SegmentHeader::decode(&bytes),
            Err(HeaderFault::Version(FORMAT_VERSION + 1))
        );
    }

    #[test]
    fn segments_get_different_salts() {
        assert_ne!(salt(0, 1), salt(0, 2));
        assert_ne!(salt(1, 1), salt(2, 1));
    }
}
