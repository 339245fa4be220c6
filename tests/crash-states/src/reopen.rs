//! Opening a state of the log's files with the real log, as a process does after the crash.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use anyhow::Result;
use unanimity_wal::{Options, Recovery, Wal, WalError, dump};

use crate::promise::fingerprint;
use crate::recording::FORKING;
use crate::recovery::Torn;

/// The files of a log, by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What came of opening a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The log opened, and behaved.
    Sound(Sound),
    /// It did not.
    Broken {
        /// How.
        why: String,
    },
}

/// What a log gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sound {
    /// The identity that it said it has.
    pub log_id: u32,
    /// The LSN of the first record, or of the next one.
    pub first_lsn: u64,
    /// The fingerprints of its records.
    pub records: Vec<u64>,
    /// Whether a torn batch was cut.
    pub torn: bool,
}

/// Another id than any log that is recorded has, so that a log which was made anew shows.
const NEW_LOG_ID: u32 = 0x0bad;

/// Segments of another size than some runs have: options may change between runs.
const SEGMENT_BYTES: u64 = 1024;

/// Puts states into a directory and opens them.
#[derive(Debug)]
pub struct Reopener {
    directory: PathBuf,
}

impl Reopener {
    /// With a directory of its own, which need not exist.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Writes the files into the directory, in place of all that is there; and a lock file as no process leaves it.
    ///
    /// # Errors
    /// Where the directory can't be written.
    pub fn put(&self, files: &Files) -> Result<()> {
        put(&self.directory, files)
    }

    /// The torn batch that opening these files would cut.
    ///
    /// # Errors
    /// Where the files can't be set up.
    pub fn torn(&self, files: &Files) -> Result<Option<Torn>> {
        self.put(files)?;
        Ok(Torn::find(&self.directory, files))
    }

    /// Opens the state thrice, and appends in between. Everything must go well, and no opening may give back other records than the first.
    ///
    /// # Errors
    /// Where the state can't be set up.
    pub fn outcome(&self, files: &Files) -> Result<Outcome> {
        self.put(files)?;
        let _nothing_forks = FORKING.read().unwrap_or_else(PoisonError::into_inner);
        let opened = catch_unwind(AssertUnwindSafe(|| self.open_thrice()));
        Ok(match opened {
            Ok(Ok(sound)) => Outcome::Sound(sound),
            Ok(Err(why)) => Outcome::Broken { why },
            Err(_) => Outcome::Broken {
                why: "the log panicked".to_owned(),
            },
        })
    }

    fn open_thrice(&self) -> Result<Sound, String> {
        let inspected = self.inspect()?;
        let (wal, first) = self.open("opening")?;
        drop(wal);
        let sound = sound(&first);
        if inspected
            .as_ref()
            .is_some_and(|inspected| *inspected != sound)
        {
            return Err(format!(
                "verify found {inspected:?}, and opening found {sound:?}"
            ));
        }
        let (mut wal, second) = self.open("opening again")?;
        if second.records != first.records || second.torn_tail.is_some() {
            return Err("a second opening found something else than the first".to_owned());
        }
        let mut expected = first.records;
        for record in [vec![0x51; 40], vec![0x52; 900]] {
            let lsn = wal
                .append([&record])
                .map_err(|error| format!("appending failed: {error}"))?;
            expected.push((lsn, record));
        }
        drop(wal);
        let (_, third) = self.open("opening after appending")?;
        let lsns = third.records.iter().map(|(lsn, _)| *lsn);
        if third.records != expected || !lsns.eq((sound.first_lsn..).take(expected.len())) {
            return Err("what was appended after the crash is not what is there".to_owned());
        }
        Ok(sound)
    }

    fn open(&self, what: &str) -> Result<(Wal, Recovery), String> {
        let options = Options {
            segment_bytes: SEGMENT_BYTES,
        };
        Wal::open(&self.directory, NEW_LOG_ID, 9, options)
            .map_err(|error| format!("{what} failed: {error}"))
    }

    /// What a look without opening finds; none where there is no log yet.
    fn inspect(&self) -> Result<Option<Sound>, String> {
        let mut records = Vec::new();
        let report = dump(&self.directory, |_, _, _, record| {
            records.push(fingerprint(record));
        });
        match report {
            Ok(report) => Ok(Some(Sound {
                log_id: report.log_id,
                first_lsn: report.first_lsn,
                records,
                torn: report.torn_tail.is_some(),
            })),
            Err(WalError::NotALog { path, .. }) if path == self.directory => Ok(None),
            Err(error) => Err(format!("verify refuses: {error}")),
        }
    }
}

fn sound(recovery: &Recovery) -> Sound {
    let records = recovery.records.iter();
    Sound {
        log_id: recovery.log_id,
        first_lsn: recovery.first_lsn,
        records: records.map(|(_, record)| fingerprint(record)).collect(),
        torn: recovery.torn_tail.is_some(),
    }
}

/// Makes `directory` hold these files and a broken lock file, and nothing else.
///
/// # Errors
/// Where it can't be written.
pub fn put(directory: &Path, files: &Files) -> Result<()> {
    fs::create_dir_all(directory)?;
    for entry in fs::read_dir(directory)? {
        fs::remove_file(entry?.path())?;
    }
    for (name, bytes) in files {
        fs::write(directory.join(name), bytes)?;
    }
    fs::write(directory.join("lock"), [0xff, 0, b'1'])?;
    Ok(())
}
