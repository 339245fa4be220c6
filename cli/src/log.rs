//! `unanimity log`: the coordinator's write-ahead log, read from its directory. Nothing is changed and no lock is taken, so it may be
//! read while a coordinator writes it; what is being written just then may look torn.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use serde::Serialize;
use unanimity_engine::{Record, SagaRecord};
use unanimity_wal::{Report, WalError};

use crate::{
    exit::{Exit, Failure},
    output::{Format, Show, line, pairs, print},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Checks every byte and every record.
    Verify {
        /// The log's directory.
        directory: PathBuf,
    },
    /// Prints the records, one to a line; as JSON, one object to a line.
    Dump {
        /// The log's directory.
        directory: PathBuf,
        /// The first record to print, by its log sequence number.
        #[arg(long, value_name = "LSN", default_value_t = 0)]
        from: u64,
    },
}

impl Command {
    pub(crate) fn run(self, format: Format) -> Result<(), Failure> {
        match self {
            Self::Verify { directory } => verify(&directory, format),
            Self::Dump { directory, from } => dump(&directory, from, format),
        }
    }
}

fn verify(directory: &Path, format: Format) -> Result<(), Failure> {
    let mut undecodable = Vec::new();
    let report = unanimity_wal::dump(directory, |lsn, _, _, bytes| {
        if let Err(error) = Record::decode(bytes) {
            undecodable.push(format!("LSN {lsn}: {error}"));
        }
    })
    .map_err(|error| failure(&error))?;
    print(format, &Verified::new(report, &undecodable))?;
    match undecodable.first() {
        None => Ok(()),
        Some(first) => Err(undecodable_failure(undecodable.len(), first)),
    }
}

fn dump(directory: &Path, from: u64, format: Format) -> Result<(), Failure> {
    let mut printed = Ok(());
    let mut undecodable: Vec<String> = Vec::new();
    let shown = unanimity_wal::dump(directory, |lsn, segment, offset, bytes| {
        if lsn < from || printed.is_err() {
            return;
        }
        let entry = Entry::new(lsn, segment, offset, bytes);
        if let Some(error) = &entry.error {
            undecodable.push(format!("LSN {lsn}: {error}"));
        }
        printed = match format {
            Format::Table => line(&entry.text()),
            Format::Json => serde_json::to_string(&entry)
                .map_err(|error| Failure::new(Exit::Internal, error))
                .and_then(|text| line(&text)),
        };
    });
    printed?;
    shown.map_err(|error| failure(&error))?;
    match undecodable.first() {
        None => Ok(()),
        Some(first) => Err(undecodable_failure(undecodable.len(), first)),
    }
}

fn undecodable_failure(count: usize, first: &str) -> Failure {
    Failure::new(Exit::Problems, format!("{count} records can't be read; the first: {first}"))
        .advise("the bytes are as they were written, so another release wrote them, or they are no coordinator's")
}

fn failure(error: &WalError) -> Failure {
    let exit = match error {
        WalError::Damaged { .. } | WalError::WrongVersion { .. } => Exit::Problems,
        WalError::NotALog { .. } => Exit::NotFound,
        WalError::Io { source, .. } if source.kind() == ErrorKind::NotFound => Exit::NotFound,
        _ => Exit::Internal,
    };
    Failure::new(exit, error)
}

/// The stable shape of a verified log.
#[derive(Debug, Serialize)]
struct Verified {
    log_id: String,
    segments: usize,
    records: u64,
    first_lsn: u64,
    last_lsn: Option<u64>,
    undecodable_records: usize,
    torn_tail: Option<Torn>,
}

/// A batch that was never acknowledged: no damage, it goes when the coordinator starts.
#[derive(Debug, Serialize)]
struct Torn {
    lsn: u64,
    segment: String,
    offset: u64,
    bytes: u64,
}

impl Verified {
    fn new(report: Report, undecodable: &[String]) -> Self {
        Self {
            log_id: format!("{:08x}", report.log_id),
            segments: report.segments,
            records: report.records,
            first_lsn: report.first_lsn,
            last_lsn: report.last_lsn,
            undecodable_records: undecodable.len(),
            torn_tail: report.torn_tail.map(|torn| Torn {
                lsn: torn.lsn,
                segment: torn.segment.display().to_string(),
                offset: torn.offset,
                bytes: torn.bytes,
            }),
        }
    }
}

impl Show for Verified {
    fn text(&self) -> String {
        let torn = self.torn_tail.as_ref().map(|torn| {
            let Torn { lsn, segment, offset, bytes } = torn;
            format!("{bytes} bytes of LSN {lsn}, never acknowledged, in {segment} at byte {offset}; the next start cuts them off")
        });
        let last = self.last_lsn.map(|lsn| lsn.to_string()).unwrap_or_default();
        pairs([
            ("log id", self.log_id.clone()),
            ("segments", self.segments.to_string()),
            ("records", self.records.to_string()),
            ("first LSN", self.first_lsn.to_string()),
            ("last LSN", last),
            ("undecodable", self.undecodable_records.to_string()),
            ("torn tail", torn.unwrap_or_else(|| "none".into())),
        ])
    }
}

/// The stable shape of a record.
#[derive(Debug, Serialize)]
struct Entry {
    lsn: u64,
    segment: String,
    offset: u64,
    bytes: usize,
    /// `commit`, `end` and so on; null where it can't be read.
    kind: Option<&'static str>,
    transaction_id: Option<String>,
    /// For people; its form may change.
    text: Option<String>,
    error: Option<String>,
}

impl Entry {
    fn new(lsn: u64, segment: &Path, offset: u64, bytes: &[u8]) -> Self {
        let record = Record::decode(bytes);
        let known = record.as_ref().ok();
        Self {
            lsn,
            segment: segment
                .file_name()
                .unwrap_or(segment.as_os_str())
                .display()
                .to_string(),
            offset,
            bytes: bytes.len(),
            kind: known.map(kind),
            transaction_id: known.and_then(transaction),
            text: known.map(ToString::to_string),
            error: record.err().map(|error| error.to_string()),
        }
    }

    fn text(&self) -> String {
        let Self {
            lsn,
            segment,
            offset,
            ..
        } = self;
        let what = match (&self.text, &self.error) {
            (Some(text), _) => text.clone(),
            (None, error) => format!("can't be read: {}", error.as_deref().unwrap_or("no reason")),
        };
        format!("{lsn} {segment}:{offset} {what}")
    }
}

fn kind(record: &Record) -> &'static str {
    match record {
        Record::Epoch(_) => "epoch",
        Record::Participant { .. } => "participant",
        Record::Commit(_) => "commit",
        Record::End { .. } => "end",
        Record::Resolve { .. } => "resolve",
        Record::CheckpointBegin { .. } => "checkpoint_begin",
        Record::CheckpointTransaction { .. } => "checkpoint_transaction",
        Record::CheckpointEnd => "checkpoint_end",
        Record::Saga(record) => match record {
            SagaRecord::Begin(_) => "saga_begin",
            SagaRecord::Step { .. } => "saga_step",
            SagaRecord::Turn { .. } => "saga_turn",
            SagaRecord::Resolve { .. } => "saga_resolve",
            SagaRecord::End { .. } => "saga_end",
            SagaRecord::Checkpoint { .. } => "checkpoint_saga",
        },
    }
}

fn transaction(record: &Record) -> Option<String> {
    match record {
        Record::Commit(decision) | Record::CheckpointTransaction { decision, .. } => {
            Some(decision.transaction.to_string())
        }
        Record::End { transaction, .. } => Some(transaction.to_string()),
        Record::Resolve { branch, .. } => Some(branch.transaction.to_string()),
        Record::Saga(record) => Some(record.transaction().to_string()),
        Record::Epoch(_)
        | Record::Participant { .. }
        | Record::CheckpointBegin { .. }
        | Record::CheckpointEnd => None,
    }
}
