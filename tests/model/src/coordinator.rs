//! The coordinator: the real engine, and a log whose un-synced end a crash may take away.

use std::{collections::BTreeSet, sync::Arc};

use unanimity_engine::{
    Engine, LogId, Moment, Record, Replay, SagaRecord, Seq, Settings, Start, TransactionId,
};

pub(crate) const LOG: LogId = LogId(0xfeed);

/// The engine, its log, and what the log has promised.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Coordinator {
    pub(crate) engine: Engine,
    pub(crate) now: Moment,
    /// From record 1 on.
    log: Vec<Arc<[u8]>>,
    pub(crate) synced: usize,
    /// Records below this one may be gone.
    pub(crate) trimmed: Seq,
    /// Where the record of this incarnation's epoch stands: nothing may be asked of the engine before that is on disk.
    epoch_at: usize,
    /// Commits that are durable, or were.
    pub(crate) decided: BTreeSet<TransactionId>,
    /// Sagas whose beginning is durable.
    pub(crate) begun: BTreeSet<TransactionId>,
    /// Sagas whose turn is durable.
    pub(crate) turned: BTreeSet<TransactionId>,
}

impl Coordinator {
    pub(crate) fn new(settings: Settings) -> Self {
        Coordinator {
            engine: Replay::new().start(LOG, settings, start(Seq(1), Moment(0))),
            now: Moment(0),
            log: Vec::new(),
            synced: 0,
            trimmed: Seq(1),
            epoch_at: 1,
            decided: BTreeSet::new(),
            begun: BTreeSet::new(),
            turned: BTreeSet::new(),
        }
    }

    /// # Panics
    /// Where a record does not read back as it was written.
    pub(crate) fn append(&mut self, seq: Seq, record: &Record) {
        let bytes = record.encode();
        assert_eq!(Record::decode(&bytes).as_ref(), Ok(record));
        assert_eq!(seq.0 as usize, self.log.len() + 1, "records have no gaps");
        self.log.push(bytes.into());
    }

    pub(crate) fn appended(&self) -> usize {
        self.log.len()
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.synced >= self.epoch_at
    }

    /// Everything up to there is on disk now.
    pub(crate) fn synced_upto(&mut self, upto: usize) {
        for index in self.synced..upto {
            match self.record(index) {
                Record::Commit(decision) => _ = self.decided.insert(decision.transaction),
                Record::Saga(SagaRecord::Begin(begin)) => {
                    self.begun.insert(begin.transaction);
                }
                Record::Saga(SagaRecord::Turn { transaction, .. }) => {
                    self.turned.insert(transaction);
                }
                _ => {}
            }
        }
        self.synced = self.synced.max(upto);
    }

    fn record(&self, index: usize) -> Record {
        Record::decode(&self.log[index]).expect("it was read back when it was appended")
    }

    /// Commits whose records are not on disk yet.
    pub(crate) fn deciding(&self) -> impl Iterator<Item = TransactionId> {
        let records = (self.synced..self.log.len()).map(|index| self.record(index));
        records.filter_map(|record| match record {
            Record::Commit(decision) => Some(decision.transaction),
            _ => None,
        })
    }

    /// Dies, and starts again from what is on disk: all that was synced, and this many records more. False where the trimmed log does not tell
    /// everything; the real one would not start.
    pub(crate) fn restart(&mut self, kept: usize, settings: Settings) -> bool {
        self.synced_upto(self.synced + kept);
        self.log.truncate(self.synced);
        let mut replay = Replay::new();
        for index in self.trimmed.0 as usize - 1..self.log.len() {
            replay.apply(self.record(index));
        }
        let whole = replay.is_whole(self.trimmed);
        self.epoch_at = self.log.len() + 1;
        let next = Seq(self.epoch_at as u64);
        self.engine = replay.start(LOG, settings, start(next, self.now));
        whole
    }
}

fn start(next_seq: Seq, now: Moment) -> Start {
    Start {
        next_seq,
        now,
        unix_ms: now.0,
        seed: 7,
    }
}
