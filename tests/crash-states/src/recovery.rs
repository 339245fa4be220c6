//! Recovery that is itself cut short: which states to open under strace, and the runs that come of it.
//!
//! After a power loss recovery starts from a state where all is durable. After the kill of a process it starts from what the page cache held, and
//! that still isn't durable while recovery reads it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::disk::Disk;
use crate::event::Event;
use crate::image::Random;
use crate::promise::Promise;
use crate::recording::Recording;
use crate::reopen::Files;

/// How many states of each kind to keep for each recording.
const KEPT: usize = 40;

/// States that a power loss may leave: a random choice of those seen.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    torn: Reservoir,
    clean: Reservoir,
}

impl Candidates {
    /// Shows a state, and what is promised of it.
    pub fn offer(&mut self, torn: bool, files: Files, promise: &Promise) {
        let reservoir = if torn {
            &mut self.torn
        } else {
            &mut self.clean
        };
        reservoir.offer(files, promise);
    }

    /// Up to so many of them, most of them torn.
    pub fn choose(self, count: usize) -> Vec<(Files, Promise)> {
        let torn = count.saturating_sub(count / 4);
        let mut chosen: Vec<_> = self.torn.kept.into_iter().take(torn).collect();
        let clean = self.clean.kept.into_iter();
        chosen.extend(clean.take(count - chosen.len()));
        chosen
    }
}

#[derive(Clone, Debug, Default)]
struct Reservoir {
    seen: usize,
    kept: Vec<(Files, Promise)>,
}

impl Reservoir {
    fn offer(&mut self, files: Files, promise: &Promise) {
        self.seen += 1;
        if self.kept.len() < KEPT {
            self.kept.push((files, promise.clone()));
            return;
        }
        let place = Random(self.seen as u64).below(self.seen);
        if place < KEPT {
            self.kept[place] = (files, promise.clone());
        }
    }
}

/// Something to recover from: what the files hold when recovery starts, and what had happened before.
#[derive(Clone, Debug)]
pub struct Crash {
    /// What it is, in words.
    pub name: String,
    /// What recovery finds.
    pub files: Files,
    /// What happened before.
    pub before: Vec<Event>,
}

impl Crash {
    /// A power loss, which left this state.
    pub fn power_loss(name: &str, files: Files, promise: Promise) -> Self {
        let start = Event::Start {
            files: files.clone(),
            promise,
        };
        Self {
            name: format!("{name}, then a power loss, then recovery"),
            files,
            before: vec![start],
        }
    }

    /// The kills of the process that is recorded: after each event, and in the middle of each write.
    pub fn kills(recording: &Recording) -> Vec<Self> {
        let mut disk = Disk::default();
        let mut kills = Vec::new();
        for (index, event) in recording.events.iter().enumerate() {
            let before = &recording.events[..index];
            if let Event::Write {
                name,
                offset,
                bytes,
            } = event
                && bytes.len() > 1
            {
                let cut = 1 + Random(index as u64).below(bytes.len() - 1);
                let part = Event::Write {
                    name: name.clone(),
                    offset: *offset,
                    bytes: bytes[..cut].to_vec(),
                };
                let mut disk = disk.clone();
                disk.happen(&part);
                let before = before.iter().cloned().chain([part]).collect();
                kills.push(Self::kill(recording, &disk, before));
            }
            disk.happen(event);
            kills.push(Self::kill(
                recording,
                &disk,
                recording.events[..=index].to_vec(),
            ));
        }
        kills
    }

    fn kill(recording: &Recording, disk: &Disk, before: Vec<Event>) -> Self {
        Self {
            name: format!(
                "{}, killed after event {}, then recovery",
                recording.name,
                before.len()
            ),
            files: disk.live(),
            before,
        }
    }

    /// The crash, with what recovery then did.
    pub fn recovered_by(self, recovery: Vec<Event>) -> Recording {
        let from = self.before.len();
        let mut events = self.before;
        events.extend(recovery);
        Recording {
            name: self.name,
            events,
            from,
        }
    }
}

/// A torn batch: recovery may cut it, but not before a copy is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    segment: String,
    offset: usize,
    bytes: Vec<u8>,
}

impl Torn {
    /// The torn batch that the log itself finds at the end of these files, which are in `directory`.
    pub fn find(directory: &Path, files: &Files) -> Option<Self> {
        let torn = unanimity_wal::verify(directory).ok()?.torn_tail?;
        let segment = torn.segment.file_name()?.to_str()?.to_owned();
        let offset = torn.offset as usize;
        let bytes = files.get(&segment)?[offset..offset + torn.bytes as usize].to_vec();
        Some(Self {
            segment,
            offset,
            bytes,
        })
    }

    /// Whether the batch is still in its place, or a copy is beside it.
    pub fn is_kept(&self, files: &Files) -> bool {
        let place = self.offset..self.offset + self.bytes.len();
        let in_place = files.get(&self.segment).and_then(|bytes| bytes.get(place));
        let prefix = format!("{}.torn-", self.segment);
        let mut copies = files.iter().filter(|(name, _)| name.starts_with(&prefix));
        in_place == Some(&self.bytes) || copies.any(|(_, bytes)| *bytes == self.bytes)
    }

    /// What to say where it is not kept.
    pub fn lost(&self) -> String {
        format!(
            "the torn batch of {} bytes at {} in {} was cut, and there is no copy of it",
            self.bytes.len(),
            self.offset,
            self.segment
        )
    }
}

/// The recoveries that strace saw, with the crashes they belong to.
pub fn join(crashes: Vec<Crash>, mut seen: BTreeMap<usize, Vec<Event>>) -> Vec<Recording> {
    let crashes = crashes.into_iter().enumerate();
    crashes
        .filter_map(|(case, crash)| Some(crash.recovered_by(seen.remove(&case)?)))
        .collect()
}
