//! What a run did to its directory, and what it said, in order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::promise::Promise;

/// One thing that happened. Names are those of files in the log's directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// Before the run the directory held this, all of it durable.
    Start {
        /// The files with their bytes.
        files: BTreeMap<String, Vec<u8>>,
        /// What had been promised.
        promise: Promise,
    },
    /// The log's directory was created.
    MakeDirectory,
    /// The directory around the log's was synced.
    SyncParent(Sync),
    /// A file was created.
    Create {
        /// Its name.
        name: String,
    },
    /// Bytes were written.
    Write {
        /// The file.
        name: String,
        /// Where they start.
        offset: u64,
        /// What was written.
        bytes: Vec<u8>,
    },
    /// A file was synced.
    SyncFile {
        /// The file.
        name: String,
        /// How it went.
        sync: Sync,
    },
    /// A file got another name, in place of the file that had it.
    Rename {
        /// The old name.
        from: String,
        /// The new name.
        to: String,
    },
    /// A name was removed.
    Unlink {
        /// The name.
        name: String,
    },
    /// The log's directory was synced.
    SyncDirectory(Sync),
    /// The run said something.
    Say(Word),
}

/// How a sync went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sync {
    /// Whether it succeeded.
    pub succeeded: bool,
    /// How many of the events before it happened after it had begun; it doesn't cover those.
    pub overlapped: usize,
}

/// What a run says, by one write to its standard output, so that it has a place among the writes to the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// It is going to open the log.
    Opening,
    /// The log is open.
    Opened {
        /// The newest record.
        last_lsn: u64,
        /// The log's identity.
        log_id: u32,
    },
    /// The log could not be opened because the disk failed; it may be tried again.
    NotOpened,
    /// The log was refused.
    Refused {
        /// What the log said.
        why: String,
    },
    /// A batch is going to be appended.
    Appending {
        /// The LSN of its first record.
        first_lsn: u64,
        /// How many bytes each record has.
        sizes: Vec<usize>,
        /// What tells this attempt from any other.
        attempt: u64,
    },
    /// The append has returned: all records up to this one are durable.
    Appended {
        /// The newest record.
        last_lsn: u64,
    },
    /// Records below this one are no longer needed.
    Trimming {
        /// The oldest record to keep.
        keep_from: u64,
    },
}
