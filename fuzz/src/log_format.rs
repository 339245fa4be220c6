//! The log's format once more, written from `docs/wal-format.md` alone: a second opinion on what a segment says.
//!
//! It only writes, and its segments hold no more than a few small batches.

use std::{fs, io, ops::Range, path::Path};

pub(crate) const HEADER_BYTES: usize = 64;
pub(crate) const SECTOR_BYTES: usize = 512;

const FRAME_HEADER_BYTES: usize = 24;

/// A segment file, and what was written into it.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) bytes: Vec<u8>,
    pub(crate) first_lsn: u64,
    /// Where each batch stands, and its records.
    pub(crate) frames: Vec<(Range<usize>, Vec<Vec<u8>>)>,
    salt: u64,
    log_id: u32,
    last_crc: u32,
    /// Of the last frame in the whole log.
    chain_crc: u32,
}

impl Segment {
    /// The first segment of a log.
    pub(crate) fn first(log_id: u32, salt: u64, length: usize) -> Self {
        Self::new(log_id, salt, length, 1, 0)
    }

    /// One that is left of a log whose older segments were trimmed.
    pub(crate) fn first_at(lsn: u64, salt: u64, length: usize) -> Self {
        Self::new(0x2a, salt, length, lsn, 0)
    }

    /// The segment that follows this one.
    pub(crate) fn next(&self) -> Self {
        let salt = self.salt.rotate_left(7) ^ 0x5bd1_e995;
        let (lsn, crc) = (self.next_lsn(), self.chain_crc);
        Self::new(self.log_id, salt, self.bytes.len(), lsn, crc)
    }

    fn new(log_id: u32, salt: u64, length: usize, first_lsn: u64, chain_crc: u32) -> Self {
        let mut bytes = vec![0; length];
        bytes[..8].copy_from_slice(b"UNANWAL1");
        bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&log_id.to_le_bytes());
        bytes[16..24].copy_from_slice(&salt.to_le_bytes());
        bytes[24..32].copy_from_slice(&first_lsn.to_le_bytes());
        bytes[32..40].copy_from_slice(&(length as u64).to_le_bytes());
        bytes[40..44].copy_from_slice(&chain_crc.to_le_bytes());
        let mut segment = Self {
            bytes,
            first_lsn,
            frames: Vec::new(),
            salt,
            log_id,
            last_crc: 0,
            chain_crc,
        };
        segment.seal_header();
        segment
    }

    /// Gives the header a right checksum, whatever it says.
    pub(crate) fn seal_header(&mut self) {
        let crc = crc32c::crc32c(&self.bytes[..60]);
        self.bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        self.last_crc = crc;
    }

    /// Adds a batch; false where it doesn't fit.
    pub(crate) fn append(&mut self, records: Vec<Vec<u8>>) -> bool {
        let mut payload = Vec::new();
        for record in &records {
            payload.extend((record.len() as u32).to_le_bytes());
            payload.extend(record);
        }
        payload.resize(payload.len().next_multiple_of(8), 0);
        let start = self.end();
        let length = FRAME_HEADER_BYTES + payload.len() + 8;
        if records.is_empty() || start + length > self.bytes.len() {
            return false;
        }
        let mut frame = Vec::with_capacity(length);
        frame.extend((payload.len() as u32).to_le_bytes());
        frame.extend((records.len() as u32).to_le_bytes());
        frame.extend(self.next_lsn().to_le_bytes());
        frame.extend(self.last_crc.to_le_bytes());
        let summed = [&self.salt.to_le_bytes()[..], &frame, &payload].concat();
        self.last_crc = crc32c::crc32c(&summed);
        self.chain_crc = self.last_crc;
        frame.extend(self.last_crc.to_le_bytes());
        frame.extend(&payload);
        frame.extend((payload.len() as u32).to_le_bytes());
        frame.extend(b"UEND");
        self.bytes[start..start + length].copy_from_slice(&frame);
        self.frames.push((start..start + length, records));
        true
    }

    /// Where the next batch would stand.
    pub(crate) fn end(&self) -> usize {
        self.frames
            .last()
            .map_or(HEADER_BYTES, |(place, _)| place.end)
    }

    /// The records, in order.
    pub(crate) fn records(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.frames.iter().flat_map(|(_, records)| records)
    }

    fn next_lsn(&self) -> u64 {
        self.first_lsn + self.records().count() as u64
    }

    /// Puts the file where a log has it.
    pub(crate) fn store(&self, directory: &Path) -> io::Result<()> {
        let name = format!("{:016x}.wal", self.first_lsn);
        fs::write(directory.join(name), &self.bytes)
    }
}
