//! The log as its one writer holds it.
//!
//! A batch is acknowledged by the return of [`Wal::append`], never before its `fdatasync`. A sync
//! that failed once may lie the next time, so any failure poisons the log for good.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;

use crate::error::is_no_space;
use crate::frame::FrameBuilder;
use crate::header::{HEADER_BYTES, SegmentHeader, salt};
use crate::lock::DirectoryLock;
use crate::log::LastSegment;
use crate::next::NextSegment;
use crate::segment::{SegmentFile, publish};
use crate::{Lsn, Options, WalError, directory};

mod open;

#[cfg(test)]
mod faults;

pub use open::{Recovery, TornTail};

/// An open write-ahead log, locked for this process until it is dropped.
pub struct Wal {
    directory: PathBuf,
    options: Options,
    salt_seed: u64,
    /// The first LSNs of all segments; the last one takes appends.
    segments: VecDeque<Lsn>,
    last: LastSegment,
    file: Box<dyn SegmentFile>,
    next_lsn: Lsn,
    batch: FrameBuilder,
    poisoned: bool,
    rotated: bool,
    /// Before the lock, so that its thread ends before another process may open the log.
    next: NextSegment,
    _lock: DirectoryLock,
}

impl Wal {
    /// Appends a batch of records by one write and one sync, and returns the LSN of its last record
    /// once all of them are durable. They become durable together or, after a crash before this
    /// returns, perhaps not at all. An empty batch does nothing, and returns the newest LSN so far.
    ///
    /// # Errors
    ///
    /// - [`WalError::TooLarge`], [`WalError::NoSpace`]: nothing was written, and the log is as before.
    /// - [`WalError::Io`], and [`WalError::Poisoned`] from then on: the batch may or may not be in
    ///   the log. The process must end; opening the log again decides.
    pub fn append<R>(&mut self, records: R) -> Result<Lsn, WalError>
    where
        R: IntoIterator,
        R::Item: AsRef<[u8]>,
    {
        self.check_poison()?;
        self.collect(records)?;
        if self.batch.record_count() == 0 {
            return Ok(self.next_lsn - 1);
        }
        if self.batch.frame_bytes() > self.room() {
            self.rotate()?;
        } else {
            // Starts a new attempt to prepare the next segment if the last one failed.
            let _ = self.next.is_ready();
        }
        let (salt, crc) = (self.last.header.salt, self.last.last_crc);
        let (frame, crc) = self.batch.finish(salt, self.next_lsn, crc);
        let written = self.file.write_all_at(frame, self.last.end as u64);
        let end = self.last.end + frame.len();
        self.poison_on_error(written.map_err(|error| ("append to", error)))?;
        let synced = if cfg!(unanimity_bug = "append-not-synced") {
            Ok(())
        } else {
            self.file.sync_data()
        };
        self.poison_on_error(synced.map_err(|error| ("sync", error)))?;
        self.last.end = end;
        self.last.last_crc = crc;
        self.next_lsn += u64::from(self.batch.record_count());
        Ok(self.next_lsn - 1)
    }

    /// The LSN that the next appended record gets.
    pub fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }

    /// The identity that the log was created with.
    pub fn log_id(&self) -> u32 {
        self.last.header.log_id
    }

    /// The number of segment files.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// True once after the log went on to a new segment: the time to write a checkpoint and trim.
    pub fn take_rotated(&mut self) -> bool {
        std::mem::take(&mut self.rotated)
    }

    /// Deletes the segments which hold nothing but records below `keep_from`, never the last one.
    ///
    /// # Errors
    ///
    /// [`WalError::Io`]; after a failed sync of the directory, [`WalError::Poisoned`] from then on.
    pub fn trim(&mut self, keep_from: Lsn) -> Result<(), WalError> {
        self.check_poison()?;
        while let [Some(&first), Some(&second)] = [self.segments.front(), self.segments.get(1)]
            && (second <= keep_from || cfg!(unanimity_bug = "trim-too-far"))
        {
            let path = directory::segment_path(&self.directory, first);
            directory::remove(&path).map_err(|error| WalError::io("delete", &path, error))?;
            // One by one: a crash must not bring back the older of two deleted segments alone.
            self.poison_unless(|wal| directory::sync(&wal.directory))?;
            self.segments.pop_front();
            self.next.retry();
        }
        Ok(())
    }

    /// The bytes that can still be written to the log's filesystem.
    ///
    /// # Errors
    ///
    /// [`WalError::Io`], [`WalError::Poisoned`].
    pub fn free_space(&self) -> Result<u64, WalError> {
        self.check_poison()?;
        directory::free_bytes(&self.directory)
    }

    /// Whether the next segment is on disk, so that a rotation needs no space. False while it is
    /// being prepared, too. Asking makes a new attempt, once a second, where the last one failed.
    pub fn can_rotate(&self) -> bool {
        !self.poisoned && self.next.is_ready()
    }

    /// Puts the records into `self.batch`.
    fn collect<R>(&mut self, records: R) -> Result<(), WalError>
    where
        R: IntoIterator,
        R::Item: AsRef<[u8]>,
    {
        let limit = self.room().max(self.options.capacity());
        self.batch.start();
        for record in records {
            let pushed = self.batch.push(record.as_ref(), limit);
            pushed.map_err(|_| WalError::TooLarge {
                limit_bytes: limit as u64,
            })?;
        }
        Ok(())
    }

    /// The bytes that are left in the last segment.
    fn room(&self) -> usize {
        self.last.header.segment_bytes as usize - self.last.end
    }

    /// Goes on to the prepared segment. It takes the place of a last segment which is still empty,
    /// as one is that was made with a smaller size than the options have now.
    fn rotate(&mut self) -> Result<(), WalError> {
        let file = match self.next.take() {
            Ok(file) => file,
            Err(error) if is_no_space(&error) => return Err(self.no_space()),
            Err(error) => return self.poison_on_error(Err(("prepare the segment after", error))),
        };
        let header = SegmentHeader {
            log_id: self.last.header.log_id,
            salt: salt(self.salt_seed, self.next_lsn),
            first_lsn: self.next_lsn,
            segment_bytes: self.options.segment_bytes,
            previous_crc: self.last.last_frame_crc(),
        };
        self.poison_unless(|wal| publish(&wal.directory, &file, &header))?;
        if !self.last.is_empty() {
            self.segments.push_back(self.next_lsn);
        }
        self.last = LastSegment {
            path: directory::segment_path(&self.directory, self.next_lsn),
            header,
            end: HEADER_BYTES,
            last_crc: header.crc(),
        };
        self.file = Box::new(file);
        self.rotated = true;
        self.next.retry();
        Ok(())
    }

    fn no_space(&self) -> WalError {
        WalError::NoSpace {
            directory: self.directory.clone(),
            needed_bytes: self.options.segment_bytes,
        }
    }

    fn check_poison(&self) -> Result<(), WalError> {
        if self.poisoned {
            return Err(WalError::Poisoned);
        }
        Ok(())
    }

    fn poison_on_error(
        &mut self,
        result: Result<(), (&'static str, io::Error)>,
    ) -> Result<(), WalError> {
        self.poison_unless(|wal| {
            result.map_err(|(operation, error)| WalError::io(operation, &wal.last.path, error))
        })
    }

    fn poison_unless(
        &mut self,
        operation: impl FnOnce(&Self) -> Result<(), WalError>,
    ) -> Result<(), WalError> {
        let result = operation(self);
        self.poisoned |= result.is_err() && !cfg!(unanimity_bug = "goes-on-after-failure");
        result
    }
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Wal")
            .field("directory", &self.directory)
            .field("log_id", &self.log_id())
            .field("next_lsn", &self.next_lsn)
            .field("poisoned", &self.poisoned)
            .finish_non_exhaustive()
    }
}
