//! Damage that no crash makes: altered bits, cut files, segments that are gone or in another's place. The log must say so, or not need the bytes.

use std::fs;
use std::path::Path;

use anyhow::Result;
use unanimity_wal::{Options, Wal, WalError, dump};

use crate::figures::Figures;
use crate::reopen::{Files, put};

const SEGMENT_BYTES: u64 = 1024;

/// What each byte is changed by: each bit, all bits, and what makes it zero.
fn flips(byte: u8) -> impl Iterator<Item = u8> {
    let bits = (0..8).map(|bit| 1 << bit);
    bits.chain([0xff, byte]).filter(|flip| *flip != 0)
}

/// A sound log, and what damage did to it.
struct Damage<'a> {
    directory: &'a Path,
    sound: Files,
    /// The segments' names, oldest first.
    segments: Vec<String>,
    records: Vec<(u64, Vec<u8>)>,
    /// How many records the last batch has.
    last_batch: usize,
    figures: Figures,
    broken: Vec<String>,
}

/// How a damaged log may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allowed {
    /// It must be refused.
    Refusal,
    /// It must open with all records; a torn end may be cut off that never was a batch.
    All,
    /// What the format says of the last byte of the last batch: it may look like a write that was cut short.
    WithoutLastBatch,
    /// These last records may be missing, as if they had never been; or these first ones.
    Records { first: usize, end: usize },
}

/// Damages a small log in every way, in `directory`.
///
/// # Errors
/// Where the log can't be written.
pub fn run(directory: &Path) -> Result<(Figures, Vec<String>)> {
    let mut damage = Damage::new(directory)?;
    damage.flip_each_bit()?;
    damage.truncate_to_each_length()?;
    damage.rearrange()?;
    damage.figures.violations = damage.broken.len() as u64;
    Ok((damage.figures, damage.broken))
}

impl<'a> Damage<'a> {
    fn new(directory: &'a Path) -> Result<Self> {
        put(directory, &Files::new())?;
        let batches = [
            vec![300, 0, 40],
            vec![250],
            vec![900],
            vec![100, 100],
            vec![20],
            vec![600],
            vec![70, 5],
        ];
        let (mut wal, _) = open(directory)?;
        let mut lsn = 1;
        for sizes in &batches {
            let records = sizes.iter().map(|size| {
                lsn += 1;
                crate::script::record(lsn, 0, *size)
            });
            wal.append(records.collect::<Vec<_>>())?;
        }
        drop(wal);
        let mut records = Vec::new();
        dump(directory, |lsn, _, _, record| {
            records.push((lsn, record.to_vec()));
        })?;
        let sound = files(directory)?;
        let segments = sound.keys().cloned().collect();
        Ok(Self {
            directory,
            sound,
            segments,
            records,
            last_batch: batches.last().map_or(0, Vec::len),
            figures: Figures::default(),
            broken: Vec::new(),
        })
    }

    fn flip_each_bit(&mut self) -> Result<()> {
        let last = self.segments.len() - 1;
        for (index, name) in self.segments.clone().iter().enumerate() {
            let whole = self.sound[name].clone();
            let used = whole.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
            for (position, byte) in whole.iter().enumerate() {
                for flip in flips(*byte) {
                    let allowed = match position {
                        _ if index < last => Allowed::Refusal,
                        _ if position >= used => Allowed::All,
                        _ if position == used - 1 && *byte == flip => Allowed::WithoutLastBatch,
                        _ => Allowed::Refusal,
                    };
                    let mut files = self.sound.clone();
                    let mut bytes = whole.clone();
                    bytes[position] ^= flip;
                    files.insert(name.clone(), bytes);
                    let what = format!("byte {position} of {name} changed by {flip:#04x}");
                    self.check(&what, &files, allowed)?;
                    self.figures.flips += 1;
                }
            }
        }
        Ok(())
    }

    fn truncate_to_each_length(&mut self) -> Result<()> {
        for name in self.segments.clone() {
            for length in 0..self.sound[&name].len() {
                let mut files = self.sound.clone();
                files.entry(name.clone()).or_default().truncate(length);
                let what = format!("{name} cut to {length} bytes");
                self.check(&what, &files, Allowed::Refusal)?;
                self.figures.truncations += 1;
            }
        }
        Ok(())
    }

    fn rearrange(&mut self) -> Result<()> {
        let segments = self.segments.clone();
        for (index, name) in segments.iter().enumerate() {
            let mut files = self.sound.clone();
            files.remove(name);
            let allowed = self.without(index);
            self.check(&format!("{name} removed"), &files, allowed)?;
            self.figures.rearrangements += 1;
            for other in segments.iter().filter(|other| *other != name) {
                let mut swapped = self.sound.clone();
                swapped.insert(name.clone(), self.sound[other].clone());
                self.check(
                    &format!("{other} copied over {name}"),
                    &swapped,
                    Allowed::Refusal,
                )?;
                swapped.insert(other.clone(), self.sound[name].clone());
                self.check(
                    &format!("{other} and {name} swapped"),
                    &swapped,
                    Allowed::Refusal,
                )?;
                self.figures.rearrangements += 2;
            }
        }
        Ok(())
    }

    /// What is promised where a segment is missing: nothing of the first and the last, as the format says.
    fn without(&self, index: usize) -> Allowed {
        let first_lsn = |index: usize| -> usize {
            let digits = self.segments[index].split('.').next().unwrap_or_default();
            usize::from_str_radix(digits, 16).unwrap_or(0)
        };
        let last = self.segments.len() - 1;
        match index {
            0 => Allowed::Records {
                first: first_lsn(1) - 1,
                end: self.records.len(),
            },
            _ if index == last => Allowed::Records {
                first: 0,
                end: first_lsn(last) - 1,
            },
            _ => Allowed::Refusal,
        }
    }

    fn check(&mut self, what: &str, files: &Files, allowed: Allowed) -> Result<()> {
        put(self.directory, files)?;
        let found = self.found(files, allowed)?;
        if let Err(why) = found {
            self.broken.push(format!("{what}: {why}"));
        }
        Ok(())
    }

    fn found(&self, given: &Files, allowed: Allowed) -> Result<Result<(), String>> {
        let inspected = dump(self.directory, |_, _, _, _| {});
        let opened = match open(self.directory) {
            Ok(opened) => opened,
            Err(refusal) => return self.check_refusal(&refusal, &inspected, given, allowed),
        };
        let records = opened.1.records;
        let torn = opened.1.torn_tail.is_some();
        let (first, end) = match allowed {
            Allowed::Refusal => return Ok(Err("it was not noticed".to_owned())),
            Allowed::All => (0, self.records.len()),
            Allowed::WithoutLastBatch => (0, self.records.len() - self.last_batch),
            Allowed::Records { first, end } => (first, end),
        };
        if records != self.records[first..end] {
            return Ok(Err(format!(
                "it opened with {} records, which are not the ones that are there",
                records.len()
            )));
        }
        let reported = matches!(inspected, Ok(report) if report.torn_tail.is_some() == torn);
        Ok(if reported {
            Ok(())
        } else {
            Err("verify and opening do not agree".to_owned())
        })
    }

    /// A refusal names the file and what to do, comes from verify too, and leaves all as it was.
    fn check_refusal(
        &self,
        refusal: &WalError,
        inspected: &Result<unanimity_wal::Report, WalError>,
        given: &Files,
        allowed: Allowed,
    ) -> Result<Result<(), String>> {
        let text = refusal.to_string();
        if allowed != Allowed::Refusal {
            return Ok(Err(format!("it is refused: {text}")));
        }
        let kind = matches!(
            refusal,
            WalError::Damaged { .. } | WalError::NotALog { .. } | WalError::WrongVersion { .. }
        );
        let names_file = self.segments.iter().any(|name| text.contains(name));
        let helps = text.contains("docs/wal-format.md") || text.contains("Check the configured");
        if !(kind && names_file && helps) {
            return Ok(Err(format!("the refusal does not help: {text}")));
        }
        if !matches!(inspected, Err(error) if error.to_string() == text) {
            return Ok(Err("verify does not say the same as opening".to_owned()));
        }
        if files(self.directory)? != *given {
            return Ok(Err("it was refused, but changed".to_owned()));
        }
        Ok(Ok(()))
    }
}

fn open(directory: &Path) -> Result<(Wal, unanimity_wal::Recovery), WalError> {
    let options = Options {
        segment_bytes: SEGMENT_BYTES,
    };
    Wal::open(directory, 7, 1, options)
}

/// The segments in a directory.
fn files(directory: &Path) -> Result<Files> {
    let mut files = Files::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".wal") {
            files.insert(name.into_owned(), fs::read(&path)?);
        }
    }
    Ok(files)
}
