//! The process that is recorded: it works through a script, and says what it does and what the log answered.

use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use unanimity_wal::{Options, Wal, WalError};

use crate::event::Word;
use crate::script::{Step, record};

/// The identity that a driver gives to a new log.
pub const LOG_ID: u32 = 0x2a;

/// A word with the case it belongs to, since one process may work through many.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Said {
    pub(crate) case: usize,
    pub(crate) word: Word,
}

/// Works through the steps with the log in `directory`.
///
/// # Errors
/// Where the script itself can't be followed.
pub fn drive(case: usize, directory: &Path, steps: &[Step], first_attempt: u64) -> Result<()> {
    let mut driver = Driver {
        case,
        directory,
        attempt: first_attempt,
        segment_bytes: 0,
        wal: None,
    };
    steps.iter().try_for_each(|step| driver.take(step))
}

struct Driver<'a> {
    case: usize,
    directory: &'a Path,
    attempt: u64,
    segment_bytes: u64,
    wal: Option<Wal>,
}

impl Driver<'_> {
    fn take(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Open(segment_bytes) => {
                self.segment_bytes = *segment_bytes;
                self.open()
            }
            Step::Append(sizes) => self.append(sizes),
            Step::TrimTo(keep) => self.trim(*keep),
            Step::Prepare => {
                while self.wal()?.is_some_and(|wal| !wal.can_rotate()) {
                    std::thread::yield_now();
                }
                Ok(())
            }
            Step::Close => {
                self.wal = None;
                Ok(())
            }
        }
    }

    /// Opens the log, once more where the disk failed meanwhile.
    fn open(&mut self) -> Result<()> {
        for _ in 0..2 {
            self.say(Word::Opening)?;
            let options = Options {
                segment_bytes: self.segment_bytes,
            };
            match Wal::open(self.directory, LOG_ID, 1, options) {
                Ok((wal, recovery)) => {
                    self.say(Word::Opened {
                        last_lsn: wal.next_lsn() - 1,
                        log_id: recovery.log_id,
                    })?;
                    self.wal = Some(wal);
                    return Ok(());
                }
                Err(WalError::Io { .. }) => self.say(Word::NotOpened)?,
                Err(error) => {
                    let why = error.to_string();
                    return self.say(Word::Refused { why });
                }
            }
        }
        Ok(())
    }

    fn append(&mut self, sizes: &[usize]) -> Result<()> {
        let Some(first_lsn) = self.wal()?.map(|wal| wal.next_lsn()) else {
            return Ok(());
        };
        self.attempt += 1;
        let appending = self.appending(first_lsn, sizes);
        self.say(appending)?;
        let records = self.records(first_lsn, sizes);
        match self.wal()?.map(|wal| wal.append(&records)) {
            Some(Ok(last_lsn)) => self.say(Word::Appended { last_lsn }),
            Some(Err(WalError::Io { .. })) => self.start_anew(sizes),
            Some(Err(error)) => bail!("a batch of the script was refused: {error}"),
            None => Ok(()),
        }
    }

    /// After a failure the log must take nothing more. A caller who tries nevertheless must be told so; if it is answered, the answer counts.
    fn start_anew(&mut self, sizes: &[usize]) -> Result<()> {
        let first_lsn = self.wal()?.map_or(1, |wal| wal.next_lsn());
        self.attempt += 1;
        let records = self.records(first_lsn, sizes);
        if let Some(Ok(last_lsn)) = self.wal()?.map(|wal| wal.append(&records)) {
            let appending = self.appending(first_lsn, sizes);
            self.say(appending)?;
            self.say(Word::Appended { last_lsn })?;
        }
        self.wal = None;
        self.open()
    }

    fn trim(&mut self, keep: u64) -> Result<()> {
        let Some(next_lsn) = self.wal()?.map(|wal| wal.next_lsn()) else {
            return Ok(());
        };
        let keep_from = next_lsn - keep;
        self.say(Word::Trimming { keep_from })?;
        match self.wal()?.map(|wal| wal.trim(keep_from)) {
            Some(Err(WalError::Io { .. })) => {
                self.wal = None;
                self.open()
            }
            Some(Err(error)) => bail!("the log could not be trimmed: {error}"),
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// The log, unless it could not be opened.
    fn wal(&mut self) -> Result<Option<&mut Wal>> {
        if self.segment_bytes == 0 {
            bail!("the script opens its log too late");
        }
        Ok(self.wal.as_mut())
    }

    fn appending(&self, first_lsn: u64, sizes: &[usize]) -> Word {
        Word::Appending {
            first_lsn,
            sizes: sizes.to_vec(),
            attempt: self.attempt,
        }
    }

    fn records(&self, first_lsn: u64, sizes: &[usize]) -> Vec<Vec<u8>> {
        let records = (first_lsn..).zip(sizes);
        records
            .map(|(lsn, size)| record(lsn, self.attempt, *size))
            .collect()
    }

    fn say(&self, word: Word) -> Result<()> {
        let case = self.case;
        let mut line = serde_json::to_vec(&Said { case, word })?;
        line.push(b'\n');
        io::stdout().lock().write_all(&line)?;
        Ok(io::stdout().lock().flush()?)
    }
}
