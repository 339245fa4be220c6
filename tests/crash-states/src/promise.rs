//! What the log owes at a moment: the records whose append has returned, and of the batch that is being appended all or nothing.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde::{Deserialize, Serialize};

use crate::event::Word;
use crate::reopen::Outcome;
use crate::script::record;

/// What has been acknowledged so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// The fingerprints of all acknowledged records, from LSN 1 on.
    acknowledged: Vec<u64>,
    /// Those of a batch whose append has begun and not returned.
    in_flight: Vec<u64>,
    /// The oldest record that must still be there.
    keep_from: u64,
    /// The log's identity, once it has been told to anyone.
    log_id: Option<u32>,
}

/// A record as it is compared.
pub fn fingerprint(record: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    record.hash(&mut hasher);
    hasher.finish()
}

impl Promise {
    /// Takes in what the run said.
    ///
    /// # Errors
    /// Where that itself breaks a promise.
    pub fn hear(&mut self, word: &Word) -> Result<(), String> {
        match word {
            Word::Opening | Word::NotOpened => {}
            Word::Refused { why } => return Err(format!("the log was refused: {why}")),
            Word::Opened { last_lsn, log_id } => self.opened(*last_lsn, *log_id)?,
            Word::Appending {
                first_lsn,
                sizes,
                attempt,
            } => {
                let expected = self.acknowledged.len() as u64 + 1;
                if *first_lsn != expected {
                    return Err(format!("LSN {first_lsn} is given out, not {expected}"));
                }
                let fingerprints = (*first_lsn..).zip(sizes);
                self.in_flight = fingerprints
                    .map(|(lsn, size)| fingerprint(&record(lsn, *attempt, *size)))
                    .collect();
            }
            Word::Appended { last_lsn } => {
                self.acknowledged.append(&mut self.in_flight);
                if *last_lsn != self.acknowledged.len() as u64 {
                    return Err(format!(
                        "LSN {last_lsn} is acknowledged, not {}",
                        self.acknowledged.len()
                    ));
                }
            }
            Word::Trimming { keep_from } => self.keep_from = self.keep_from.max(*keep_from),
        }
        Ok(())
    }

    /// What an opening gave back may be acted upon, so it is as good as acknowledged.
    fn opened(&mut self, last_lsn: u64, log_id: u32) -> Result<(), String> {
        self.check_last(last_lsn)?;
        self.check_log_id(log_id)?;
        self.log_id = Some(log_id);
        let in_flight = std::mem::take(&mut self.in_flight);
        if last_lsn > self.acknowledged.len() as u64 {
            self.acknowledged.extend(in_flight);
        }
        Ok(())
    }

    /// Compares what opening a state of the disk gave with what was promised.
    ///
    /// # Errors
    /// What is broken.
    pub fn check(&self, outcome: &Outcome) -> Result<(), String> {
        let sound = match outcome {
            Outcome::Broken { why } => return Err(why.clone()),
            Outcome::Sound(sound) => sound,
        };
        self.check_log_id(sound.log_id)?;
        let oldest = self.keep_from.max(1);
        if sound.first_lsn > oldest {
            return Err(format!(
                "the log starts with LSN {}, and {oldest} was to be kept",
                sound.first_lsn
            ));
        }
        self.check_last(sound.first_lsn - 1 + sound.records.len() as u64)?;
        let expected = self.acknowledged.iter().chain(&self.in_flight);
        let expected = expected.skip(sound.first_lsn as usize - 1);
        for (lsn, (found, expected)) in (sound.first_lsn..).zip(sound.records.iter().zip(expected))
        {
            if found != expected {
                return Err(format!("the record with LSN {lsn} is another one"));
            }
        }
        Ok(())
    }

    fn check_last(&self, last_lsn: u64) -> Result<(), String> {
        let acknowledged = self.acknowledged.len() as u64;
        let whole = acknowledged + self.in_flight.len() as u64;
        if last_lsn == acknowledged || last_lsn == whole {
            return Ok(());
        }
        let or = if whole > acknowledged {
            format!(", or {whole} with the batch that was being appended")
        } else {
            String::new()
        };
        Err(format!(
            "the log ends with LSN {last_lsn}; {acknowledged} was acknowledged{or}"
        ))
    }

    fn check_log_id(&self, found: u32) -> Result<(), String> {
        match self.log_id {
            Some(expected) if expected != found => Err(format!(
                "the log had the id {expected}, and now has {found}"
            )),
            _ => Ok(()),
        }
    }

    /// How many records have been acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }
}
