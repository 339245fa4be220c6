//! What a caller may choose about a log.

use crate::WalError;
use crate::header::HEADER_BYTES;

const SEGMENT_BYTES_UNIT: u64 = 512;
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// How a log is written. A log may be opened with other options than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The length of a new segment file: a multiple of 512, at most 1 GiB; 64 MiB by default. No
    /// batch can be larger.
    pub segment_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<(), WalError> {
        let bytes = self.segment_bytes;
        let sound = (SEGMENT_BYTES_UNIT..=SEGMENT_BYTES_MAX).contains(&bytes)
            && bytes.is_multiple_of(SEGMENT_BYTES_UNIT);
        if !sound {
            let reason = format!(
                "a segment of {bytes} bytes; it must be a multiple of {SEGMENT_BYTES_UNIT}, and at \
                 most {SEGMENT_BYTES_MAX}"
            );
            return Err(WalError::InvalidOptions { reason });
        }
        Ok(())
    }

    /// The longest frame that a new segment takes.
    pub(crate) fn capacity(&self) -> usize {
        self.segment_bytes as usize - HEADER_BYTES
    }
}
