//! The prepare journal: what makes a vote of yes durable on a database that has no prepared state.
//!
//! One file, one record, written over in place, with one fdatasync for each prepare:
//!
//! ```text
//! offset  size
//!      0     8  "UNPREP01"; eight zero bytes where no branch is prepared
//!      8     4  CRC-32C of all that follows, to the end of the body
//!     12     8  length of the body
//!     20     4  body: the branch's number
//!     24     2        length of the transaction's id
//!     26     …        the transaction's id, then the changeset
//! ```
//!
//! Numbers are little endian. A record that is torn was never voted on: the vote comes after the sync. One that is whole is settled by the
//! marker row, which COMMIT makes durable together with the changes: where the row is there the branch has committed; where it isn't, the
//! branch is in doubt, and the changeset is applied again before any other writer is let in.
//!
//! So clearing needs no sync. If it is lost after a commit, the marker tells. If it is lost after an abort, the branch is reported in doubt
//! once more, and once more aborted, for its abort is presumed. Only one branch can be prepared at a time, and the next record is written
//! only after the last branch has ended: what it overwrites is never needed.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::participant::BranchId;

const MAGIC: [u8; 8] = *b"UNPREP01";
const HEADER_BYTES: usize = 20;
const BODY_FIXED_BYTES: usize = 6;

/// A prepared branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) branch: BranchId,
    pub(crate) changeset: Vec<u8>,
}

/// The file.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// A sync failed: what the file holds isn't known any more, and the next sync may lie.
    poisoned: AtomicBool,
}

impl Journal {
    /// Opens the file, or creates it for good.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        file.sync_all()?;
        sync_directory(path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            poisoned: AtomicBool::new(false),
        })
    }

    /// Writes a record over the last, durably.
    pub(super) fn write(&self, record: &Record) -> io::Result<()> {
        if self.poisoned.load(Ordering::Relaxed) {
            return Err(io::Error::other(
                "the prepare journal failed before; restart the agent",
            ));
        }
        let bytes = encode(record);
        self.file
            .write_all_at(&bytes, 0)
            .inspect(|()| failpoint!("participant.sqlite.journal.written"))
            .and_then(|()| match cfg!(unanimity_bug = "journal-not-synced") {
                true => Ok(()),
                false => self.file.sync_data(),
            })
            .inspect_err(|_| {
                self.poisoned.store(true, Ordering::Relaxed);
            })
    }

    /// The record, where a whole one is there.
    pub(super) fn read(&self) -> io::Result<Option<Record>> {
        let length = usize::try_from(self.file.metadata()?.len()).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        match self.file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok(decode(&bytes)),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says that no branch is prepared. The module's documentation says why it needs no sync.
    pub(super) fn clear(&self) -> io::Result<()> {
        if self.file.metadata()?.len() == 0 {
            return Ok(());
        }
        failpoint!("participant.sqlite.journal.clear");
        self.file.write_all_at(&[0; MAGIC.len()], 0)
    }

    /// Puts a copy of the record aside, for people: a branch that was told to commit, and can't be.
    pub(super) fn put_aside(&self, record: &Record) -> io::Result<PathBuf> {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".lost-{}", record.branch));
        let aside = PathBuf::from(name);
        let file = File::create(&aside)?;
        file.write_all_at(&encode(record), 0)?;
        file.sync_all()?;
        sync_directory(&aside)?;
        Ok(aside)
    }
}

/// Makes a file's name durable.
fn sync_directory(file: &Path) -> io::Result<()> {
    let directory = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

pub(crate) fn encode(record: &Record) -> Vec<u8> {
    let transaction = record.branch.transaction.as_bytes();
    let body_length = BODY_FIXED_BYTES + transaction.len() + record.changeset.len();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body_length);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(body_length as u64).to_le_bytes());
    bytes.extend_from_slice(&record.branch.number.to_le_bytes());
    let id_length =
        u16::try_from(transaction.len()).expect("an id was checked to be at most 64 bytes");
    bytes.extend_from_slice(&id_length.to_le_bytes());
    bytes.extend_from_slice(transaction);
    bytes.extend_from_slice(&record.changeset);
    let checksum = crc32c::crc32c(&bytes[12..]);
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

pub(crate) fn decode(bytes: &[u8]) -> Option<Record> {
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
    let length = usize::try_from(u64::from_le_bytes(header[12..20].try_into().ok()?)).ok()?;
    let body = rest.get(..length)?;
    let checksum = u32::from_le_bytes(header[8..12].try_into().ok()?);
    if header[..8] != MAGIC
        || checksum != crc32c::crc32c_append(crc32c::crc32c(&header[12..]), body)
    {
        return None;
    }
    let (fixed, rest) = body.split_at_checked(BODY_FIXED_BYTES)?;
    let number = u32::from_le_bytes(fixed[..4].try_into().ok()?);
    let (transaction, changeset) =
        rest.split_at_checked(u16::from_le_bytes(fixed[4..].try_into().ok()?).into())?;
    let transaction = String::from_utf8(transaction.to_vec()).ok()?;
    Some(Record {
        branch: BranchId {
            transaction,
            number,
        },
        changeset: changeset.to_vec(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
mod tests {
    use super::*;

    fn record(changeset: &[u8]) -> Record {
        Record {
            branch: BranchId {
                transaction: "u1.0.0.0".into(),
                number: 3,
            },
            changeset: changeset.to_vec(),
        }
    }

    #[test]
    fn a_record_reads_back_until_it_is_cleared_or_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.read().unwrap(), None);
        for changeset in [&b"a long changeset"[..], b"short", b""] {
            journal.write(&record(changeset)).unwrap();
            assert_eq!(
                Journal::open(&path).unwrap().read().unwrap(),
                Some(record(changeset))
            );
        }
        journal.clear().unwrap();
        assert_eq!(journal.read().unwrap(), None);
    }

    #[test]
    fn a_record_with_any_byte_torn_is_none() {
        let whole = encode(&record(b"changes"));
        assert_eq!(decode(&whole), Some(record(b"changes")));
        for at in 0..whole.len() {
            let mut torn = whole.clone();
            torn[at] ^= 0x40;
            assert_eq!(decode(&torn), None, "byte {at}");
            assert_eq!(decode(&whole[..at]), None, "cut at {at}");
        }
    }
}
