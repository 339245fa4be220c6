//! A disk: what was synced stays; of the batch that was being synced a prefix may; all else is lost with the process.

use std::hash::{DefaultHasher, Hash, Hasher};

use unanimity_engine::Seq;

type Entry = (Seq, Vec<u8>);

/// An entry on its way, and whether it counts.
type Waiting = (Entry, bool);

/// The log's bytes.
#[derive(Debug)]
pub(super) struct Disk {
    /// On the disk, in segments; the last one takes what comes.
    segments: Vec<Vec<Entry>>,
    /// On its way there.
    batch: Vec<Waiting>,
    /// Not written yet.
    queue: Vec<Waiting>,
    forced: bool,
    syncing: bool,
    lazily: bool,
    /// Records of a segment. Those of checkpoints don't count: a real segment is far larger than what one carries.
    segment: usize,
    counted: usize,
}

/// What a write is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A batch is on its way: it takes some time.
    Sync,
    /// Something waits that nobody needs soon.
    Later,
    Nothing,
}

impl Disk {
    pub(super) fn new(segment: usize) -> Self {
        Disk {
            segments: vec![Vec::new()],
            batch: Vec::new(),
            queue: Vec::new(),
            forced: false,
            syncing: false,
            lazily: false,
            segment,
            counted: 0,
        }
    }

    pub(super) fn append(&mut self, seq: Seq, bytes: Vec<u8>, forced: bool, counts: bool) {
        self.queue.push(((seq, bytes), counts));
        self.forced |= forced;
    }

    /// Takes all that waits as one batch, where something needs it and no other is on its way.
    pub(super) fn write(&mut self, all: bool) -> Next {
        if self.syncing || self.queue.is_empty() {
            return Next::Nothing;
        }
        if !(self.forced || all) {
            return match std::mem::replace(&mut self.lazily, true) {
                false => Next::Later,
                true => Next::Nothing,
            };
        }
        self.batch = std::mem::take(&mut self.queue);
        (self.forced, self.lazily, self.syncing) = (false, false, true);
        Next::Sync
    }

    /// The batch is on the disk. Says its last record, and whether a new segment has begun.
    pub(super) fn synced(&mut self) -> Option<(Seq, bool)> {
        self.syncing = false;
        let last = self.batch.last()?.0.0;
        let batch = std::mem::take(&mut self.batch);
        Some((last, self.put(batch)))
    }

    fn put(&mut self, batch: Vec<Waiting>) -> bool {
        let mut rotated = false;
        for (entry, counts) in batch {
            if self.counted >= self.segment && counts {
                self.segments.push(Vec::new());
                self.counted = 0;
                rotated = true;
            }
            self.counted += usize::from(counts);
            if let Some(last) = self.segments.last_mut() {
                last.push(entry);
            }
        }
        rotated
    }

    /// The process is gone. So many sixteenths of the batch had reached the disk. Says the last record that did, and whether the batch was torn.
    pub(super) fn crash(&mut self, keeps: u64) -> (Seq, bool) {
        let whole = self.batch.len();
        let kept = whole * keeps as usize / 16;
        let mut batch = std::mem::take(&mut self.batch);
        batch.truncate(kept);
        self.put(batch);
        self.queue.clear();
        (self.forced, self.lazily, self.syncing) = (false, false, false);
        (self.last(), kept > 0 && kept < whole)
    }

    /// Only whole segments go.
    pub(super) fn trim(&mut self, keep: Seq) {
        while let [first, second, ..] = self.segments.as_slice() {
            let gone = second.first().is_some_and(|(seq, _)| *seq <= keep) && !first.is_empty();
            if !gone {
                return;
            }
            self.segments.remove(0);
        }
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &Entry> {
        self.segments.iter().flatten()
    }

    pub(super) fn is_syncing(&self) -> bool {
        self.syncing
    }

    /// Nothing waits to be written.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.syncing
    }

    /// The last record that is on the disk.
    pub(super) fn last(&self) -> Seq {
        let mut newest = self.segments.iter().rev();
        newest
            .find_map(|s| s.last())
            .map_or(Seq(0), |(seq, _)| *seq)
    }

    pub(super) fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.segments.hash(&mut hasher);
        hasher.finish()
    }
}
