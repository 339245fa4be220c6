//! A model of a disk: for each sector, length and name what a crash may leave of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::event::{Event, Sync};

/// The unit that a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// What may be read where a file grew and its data was lost; that it isn't zeros is what matters.
const GARBAGE: u8 = 0xa7;

/// Something of which a crash leaves one of several values. The last one is what a running system sees.
#[derive(Clone, Debug)]
pub struct Uncertain<T> {
    possible: Vec<T>,
    /// When it was last changed, unless a sync was tried since.
    changed_at: Option<usize>,
}

impl<T: Clone + PartialEq> Uncertain<T> {
    fn certain(value: T) -> Self {
        Self {
            possible: vec![value],
            changed_at: None,
        }
    }

    fn set(&mut self, value: T, now: usize) {
        self.possible.retain(|possible| *possible != value);
        self.possible.push(value);
        self.changed_at = Some(now);
    }

    /// A sync of what was changed before `covered`. Where it fails, the value may be on disk or not, and no later sync tries again.
    fn sync(&mut self, succeeded: bool, covered: usize) {
        if self.changed_at.is_none_or(|at| at >= covered) {
            return;
        }
        self.changed_at = None;
        if succeeded {
            self.possible.drain(..self.possible.len() - 1);
        }
    }

    /// All values, the newest last.
    pub fn possible(&self) -> &[T] {
        &self.possible
    }

    /// What a running system sees.
    pub fn live(&self) -> &T {
        let last = self.possible.len() - 1;
        &self.possible[last]
    }
}

/// The bytes of a sector.
pub type Sector = Arc<[u8; SECTOR_BYTES]>;

/// A file, whatever its name.
#[derive(Clone, Debug)]
pub struct File {
    /// Its length in bytes.
    pub length: Uncertain<usize>,
    /// Its sectors.
    pub sectors: Vec<Uncertain<Sector>>,
}

/// The number of a file in [`Disk::files`].
pub type FileNumber = usize;

/// Which names a directory has.
pub type Names = BTreeMap<String, FileNumber>;

/// A change of a directory, which happens whole or not at all.
#[derive(Clone, Debug)]
pub struct Change {
    /// In words.
    pub what: String,
    names: Vec<(String, Option<FileNumber>)>,
    at: usize,
}

/// The log's directory, and what is in it.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// All files that ever were.
    pub files: Vec<File>,
    /// The changes of the directory that aren't durable, in order.
    pub changes: Vec<Change>,
    durable: Names,
    live: Names,
    /// When the directory itself was made, unless that is durable.
    made_at: Option<usize>,
    now: usize,
}

impl Disk {
    /// Takes in the next event.
    ///
    /// # Panics
    /// Where the event names a file that there can't be: the recording is wrong then.
    pub fn happen(&mut self, event: &Event) {
        self.now += 1;
        match event {
            Event::Start { files, .. } => self.start(files),
            Event::MakeDirectory => self.made_at = Some(self.now),
            Event::SyncParent(sync) => {
                let covered = self.covered(*sync);
                self.made_at = self.made_at.filter(|at| !sync.succeeded || *at >= covered);
            }
            Event::Create { name } => {
                let number = self.new_file(Vec::new());
                self.change(
                    format!("{name} created"),
                    vec![(name.clone(), Some(number))],
                );
            }
            Event::Write {
                name,
                offset,
                bytes,
            } => {
                let (number, now) = (self.number(name), self.now);
                self.files[number].write(*offset as usize, bytes, now);
            }
            Event::SyncFile { name, sync } => {
                let (number, covered) = (self.number(name), self.covered(*sync));
                self.files[number].sync(sync.succeeded, covered);
            }
            Event::Rename { from, to } => {
                let moved = vec![(from.clone(), None), (to.clone(), Some(self.number(from)))];
                self.change(format!("{from} renamed to {to}"), moved);
            }
            Event::Unlink { name } => {
                self.change(format!("{name} removed"), vec![(name.clone(), None)]);
            }
            Event::SyncDirectory(sync) => self.sync_directory(*sync),
            Event::Say(_) => {}
        }
    }

    /// Before when an event must have happened, counted as [`Disk::now`], for this sync to cover it.
    fn covered(&self, sync: Sync) -> usize {
        self.now - sync.overlapped
    }

    fn start(&mut self, files: &BTreeMap<String, Vec<u8>>) {
        *self = Self {
            now: self.now,
            ..Self::default()
        };
        for (name, bytes) in files {
            let number = self.new_file(bytes.clone());
            self.durable.insert(name.clone(), number);
        }
        self.live.clone_from(&self.durable);
    }

    fn new_file(&mut self, bytes: Vec<u8>) -> FileNumber {
        let sectors = bytes.chunks(SECTOR_BYTES).map(|chunk| {
            let mut sector = [0; SECTOR_BYTES];
            sector[..chunk.len()].copy_from_slice(chunk);
            Uncertain::certain(Arc::new(sector))
        });
        self.files.push(File {
            length: Uncertain::certain(bytes.len()),
            sectors: sectors.collect(),
        });
        self.files.len() - 1
    }

    fn number(&self, name: &str) -> FileNumber {
        let number = self.live.get(name);
        *number.unwrap_or_else(|| panic!("the recording names {name}, and there is no such file"))
    }

    fn change(&mut self, what: String, names: Vec<(String, Option<FileNumber>)>) {
        let change = Change {
            what,
            names,
            at: self.now,
        };
        change.apply(&mut self.live);
        self.changes.push(change);
    }

    fn sync_directory(&mut self, sync: Sync) {
        let covered = self.covered(sync);
        if !sync.succeeded {
            return;
        }
        let changes = std::mem::take(&mut self.changes);
        let (covered, later) = changes.into_iter().partition(|change| change.at < covered);
        self.changes = later;
        let covered: Vec<Change> = covered;
        covered
            .iter()
            .for_each(|change| change.apply(&mut self.durable));
    }

    /// Whether the directory itself may be missing.
    pub fn may_be_missing(&self) -> bool {
        self.made_at.is_some()
    }

    /// The names after a crash that kept these of the changes.
    pub fn names(&self, kept: &BTreeSet<usize>) -> Names {
        let mut names = self.durable.clone();
        for index in kept {
            self.changes[*index].apply(&mut names);
        }
        names
    }

    /// What a running system sees: what the kill of a process leaves.
    pub fn live(&self) -> BTreeMap<String, Vec<u8>> {
        let live = self.live.iter();
        live.map(|(name, number)| (name.clone(), self.files[*number].live()))
            .collect()
    }
}

impl Change {
    fn apply(&self, names: &mut Names) {
        for (name, number) in &self.names {
            match number {
                Some(number) => names.insert(name.clone(), *number),
                None => names.remove(name),
            };
        }
    }
}

impl File {
    fn write(&mut self, offset: usize, bytes: &[u8], now: usize) {
        let end = offset + bytes.len();
        let first = offset / SECTOR_BYTES;
        for index in first..end.div_ceil(SECTOR_BYTES) {
            self.grow_to(index, now);
            let start = index * SECTOR_BYTES;
            let (from, to) = (offset.max(start), end.min(start + SECTOR_BYTES));
            let mut sector = **self.sectors[index].live();
            sector[from - start..to - start].copy_from_slice(&bytes[from - offset..to - offset]);
            self.sectors[index].set(Arc::new(sector), now);
        }
        if end > *self.length.live() {
            self.length.set(end, now);
        }
    }

    /// Adds sectors of which nothing is known but that the file grew over them.
    fn grow_to(&mut self, index: usize, now: usize) {
        while self.sectors.len() <= index {
            self.sectors.push(Uncertain {
                possible: vec![
                    Arc::new([GARBAGE; SECTOR_BYTES]),
                    Arc::new([0; SECTOR_BYTES]),
                ],
                changed_at: Some(now),
            });
        }
    }

    fn sync(&mut self, succeeded: bool, covered: usize) {
        self.length.sync(succeeded, covered);
        for sector in &mut self.sectors {
            sector.sync(succeeded, covered);
        }
    }

    fn live(&self) -> Vec<u8> {
        let sectors = self.sectors.iter();
        let mut bytes: Vec<u8> = sectors.flat_map(|sector| **sector.live()).collect();
        bytes.truncate(*self.length.live());
        bytes
    }
}
