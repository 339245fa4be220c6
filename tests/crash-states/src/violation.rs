//! A broken promise, as a human gets to see it: what was lost, the files themselves, and the command that makes them again.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::event::Event;
use crate::recording::Recording;
use crate::reopen::{Files, put};

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    /// What was run.
    pub recording: Recording,
    /// The event after which the crash came.
    pub point: usize,
    /// The state of the disk; none where the run itself, without a crash, broke the promise.
    pub fingerprint: Option<u64>,
    /// What is wrong.
    pub why: String,
    /// What the crash took.
    pub lost: Vec<String>,
    /// What it left.
    pub files: Files,
}

impl Violation {
    pub(crate) fn told(recording: &Recording, point: usize, why: String) -> Self {
        Self {
            recording: recording.clone(),
            point,
            fingerprint: None,
            why,
            lost: Vec::new(),
            files: Files::new(),
        }
    }

    /// Keeps the recording and the state in a new directory below `kept`, and returns a report.
    ///
    /// # Errors
    /// Where they can't be written.
    pub fn keep(&self, kept: &Path) -> Result<String> {
        fs::create_dir_all(kept).with_context(|| format!("{} can't be made", kept.display()))?;
        let directory = tempfile::Builder::new()
            .prefix("violation-")
            .tempdir_in(kept)?
            .keep();
        let recording = directory.join("recording");
        write_events(&recording, &self.recording.events)?;
        put(&directory.join("log"), &self.files)?;
        let lost = if self.lost.is_empty() {
            "nothing".to_owned()
        } else {
            self.lost.join("\n        ")
        };
        let event = describe(&self.recording.events[self.point]);
        Ok(format!(
            "BROKEN: {}\n  run   {}\n  crash after event {}: {event}\n  lost  {lost}\n  files {}\n  again {}",
            self.why,
            self.recording.name,
            self.point,
            directory.join("log").display(),
            self.command(&recording),
        ))
    }

    fn command(&self, recording: &Path) -> String {
        let state = self.fingerprint.map_or(String::new(), |fingerprint| {
            format!(" --state {fingerprint:016x}")
        });
        format!(
            "cargo run --release -p unanimity-crash-states -- --replay {} --point {}{state}",
            recording.display(),
            self.point
        )
    }
}

/// An event in a few words.
fn describe(event: &Event) -> String {
    match event {
        Event::Start { .. } => "the crash before".to_owned(),
        Event::Write {
            name,
            offset,
            bytes,
        } => format!("{} bytes written at {offset} of {name}", bytes.len()),
        other => format!("{other:?}"),
    }
}

fn write_events(path: &Path, events: &[Event]) -> Result<()> {
    let lines: Result<Vec<_>, _> = events.iter().map(serde_json::to_string).collect();
    Ok(fs::write(path, lines?.join("\n") + "\n")?)
}

/// The events that a violation kept.
///
/// # Errors
/// Where the file isn't one of those.
pub fn read_events(path: &Path) -> Result<Vec<Event>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))?;
    let events = text.lines().map(serde_json::from_str);
    events.collect::<Result<_, _>>().with_context(|| {
        format!(
            "{} is not a recording that this program kept",
            path.display()
        )
    })
}
