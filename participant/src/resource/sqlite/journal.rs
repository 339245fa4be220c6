//! The prepare journal: one record, beside the database, that makes a vote of yes survive a crash.
//!
//! ```text
//! magic "UNANJNL1" │ crc32c of what follows, u32 │ length of the body, u64 │ body
//! body: length of the transaction's id, u8 │ transaction's id │ branch number, u32 │ changeset
//! ```
//!
//! Numbers are little-endian. The record is written over the one before, and forced. A write that was cut short leaves a mixture, which the
//! checksum tells from a record: its branch had not voted, and the record under it was settled before, for only the holder of the only
//! writer's slot writes here. Clearing is not forced: a record that comes back after a crash is of a branch that either committed, which its
//! marker row shows, or was aborted, and is reported in doubt and aborted once more.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::participant::BranchId;

const MAGIC: &[u8; 8] = b"UNANJNL1";
const HEADER: usize = 20;
/// A record longer than this is not kept allocated once it is cleared.
const KEPT_BYTES_MAX: u64 = 16 << 20;

/// What a prepared branch needs to be there again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) branch: BranchId,
    pub(super) changes: Vec<u8>,
}

impl Record {
    fn encode(&self) -> Vec<u8> {
        let id = self.branch.transaction.as_bytes();
        let mut bytes = Vec::with_capacity(HEADER + 5 + id.len() + self.changes.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&((5 + id.len() + self.changes.len()) as u64).to_le_bytes());
        // identifier::check has seen to it that ids are short.
        bytes.push(u8::try_from(id.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(id);
        bytes.extend_from_slice(&self.branch.number.to_le_bytes());
        bytes.extend_from_slice(&self.changes);
        let crc = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` for anything but a whole record.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (crc, checked) = rest.split_first_chunk::<4>()?;
        let (length, body) = checked.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let body = body.get(..length)?;
        if crc32c::crc32c(checked.get(..8 + length)?) != u32::from_le_bytes(*crc) {
            return None;
        }
        let (id_length, body) = body.split_first()?;
        let (id, body) = body.split_at_checked(usize::from(*id_length))?;
        let (number, changes) = body.split_first_chunk::<4>()?;
        let transaction = String::from_utf8(id.to_vec()).ok()?;
        Some(Self { branch: BranchId { transaction, number: u32::from_le_bytes(*number) }, changes: changes.to_vec() })
    }
}

/// The file.
pub(super) struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens it, or creates it durably, and locks it: two databases must not share one.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let is_new = !path.exists();
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        file.try_lock()?;
        if is_new {
            file.sync_all()?;
            sync_directory(&path)?;
        }
        Ok(Self { file, path })
    }

    /// The record, if there is a whole one.
    pub(super) fn read(&self) -> io::Result<Option<Record>> {
        let length = usize::try_from(self.file.metadata()?.len()).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(Record::decode(&bytes))
    }

    /// Writes the record and forces it. After an error nothing is known of the file but that a record in it is whole.
    pub(super) async fn write(self: &Arc<Self>, record: Record) -> io::Result<()> {
        let journal = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || {
            journal.file.write_all_at(&record.encode(), 0)?;
            journal.file.sync_data()
        });
        written.await.map_err(io::Error::other)?
    }

    /// Takes the record away, unforced.
    pub(super) fn clear(&self) {
        let cleared = self.file.write_all_at(&[0; MAGIC.len()], 0).and_then(|()| match self.file.metadata()?.len() {
            length if length > KEPT_BYTES_MAX => self.file.set_len(0),
            _ => Ok(()),
        });
        if let Err(error) = cleared {
            // The next record goes over it, or it is settled after the next start.
            tracing::warn!(path = %self.path.display(), %error, "the prepare journal can't be cleared");
        }
    }

    /// Where the changes of a lost branch are kept.
    pub(super) fn lost_path(&self, branch: &BranchId) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".lost-{branch}"));
        name.into()
    }

    /// Puts a record aside, durably, for somebody to look at.
    pub(super) fn keep_lost(&self, record: &Record) -> io::Result<PathBuf> {
        let path = self.lost_path(&record.branch);
        let file = File::create(&path)?;
        file.write_all_at(&record.changes, 0)?;
        file.sync_all()?;
        sync_directory(&path)?;
        Ok(path)
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fill: u8, length: usize) -> Record {
        let branch = BranchId { transaction: "u1.00000000.1.0".into(), number: 7 };
        Record { branch, changes: vec![fill; length] }
    }

    #[test]
    fn a_record_reads_as_it_was_written_whatever_lies_behind_it() {
        let mut bytes = record(1, 100).encode();
        assert_eq!(Record::decode(&bytes), Some(record(1, 100)));
        bytes.extend_from_slice(&[9; 50]);
        assert_eq!(Record::decode(&bytes), Some(record(1, 100)));
    }

    #[test]
    fn a_record_that_was_cut_short_over_another_is_none() {
        let (old, new) = (record(1, 100).encode(), record(2, 100).encode());
        for cut in 1..new.len() {
            let mut mixed = new[..cut].to_vec();
            mixed.extend_from_slice(&old[cut..]);
            let read = Record::decode(&mixed);
            // The headers differ from the checksum on: until then it is the old record still.
            assert!(read.is_none() || (cut <= 8 && read == Some(record(1, 100))), "{cut}");
            assert_eq!(Record::decode(&new[..cut]), None, "{cut}");
        }
    }

    #[tokio::test]
    async fn a_cleared_journal_is_empty_and_a_shared_one_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let journal = Arc::new(Journal::open(path.clone()).unwrap());
        assert_eq!(journal.read().unwrap(), None);
        journal.write(record(3, 10)).await.unwrap();
        assert_eq!(journal.read().unwrap(), Some(record(3, 10)));
        assert!(Journal::open(path).is_err());
        journal.clear();
        assert_eq!(journal.read().unwrap(), None);
    }
}
