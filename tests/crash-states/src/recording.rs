//! A run of the driver under strace, as events.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{PoisonError, RwLock};

use anyhow::{Context as _, Result, bail};

use crate::event::Event;
use crate::trace::{CALLS, read};

/// Held for writing while a process starts, and for reading while a log is open: until its `exec` a child has all open files of this process, so
/// also the lock of a log that another thread closes meanwhile and opens again.
pub(crate) static FORKING: RwLock<()> = RwLock::new(());

/// A run, or several after each other.
#[derive(Clone, Debug)]
pub struct Recording {
    /// What it is of, in words.
    pub name: String,
    /// What happened.
    pub events: Vec<Event>,
    /// The first event after which crashes are looked at; those before it are looked at elsewhere.
    pub from: usize,
}

/// What to record with: strace, and the program that drives.
#[derive(Clone, Debug)]
pub struct Recorder<'a> {
    /// This program, or one that understands `drive` in the same way.
    pub program: &'a Path,
    /// A directory for the logs of the runs.
    pub scratch: &'a Path,
}

/// A fault that strace puts into a run.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The system call that fails.
    pub call: &'static str,
    /// Which of these calls of each thread, from 1.
    pub number: usize,
}

impl Recorder<'_> {
    /// Records one script. With a fault there is none where the run has no such call.
    ///
    /// # Errors
    /// Where it can't be run or understood.
    pub fn script(&self, name: &str, fault: Option<Fault>) -> Result<Option<Recording>> {
        let root = tempfile::tempdir_in(self.scratch)?;
        fs::create_dir(root.path().join("0"))?;
        let text = self.drive(root.path(), &["--script", name], fault)?;
        if fault.is_some() && !text.contains("(INJECTED)") {
            return Ok(None);
        }
        let mut cases = read(&text, root.path())?;
        let events = cases.remove(&0).context("the run did nothing")?;
        let name = match fault {
            None => name.to_owned(),
            Some(Fault { call, number }) => format!("{name}, {call} number {number} fails"),
        };
        Ok(Some(Recording {
            name,
            events,
            from: 0,
        }))
    }

    /// Records the openings of many logs, each given by its files.
    ///
    /// # Errors
    /// Where they can't be run or understood.
    pub fn recoveries<'a>(
        &self,
        logs: impl IntoIterator<Item = &'a BTreeMap<String, Vec<u8>>>,
    ) -> Result<BTreeMap<usize, Vec<Event>>> {
        let root = tempfile::tempdir_in(self.scratch)?;
        let mut count = 0;
        for (case, files) in logs.into_iter().enumerate() {
            let directory = root.path().join(case.to_string()).join("log");
            fs::create_dir_all(&directory)?;
            for (name, bytes) in files {
                fs::write(directory.join(name), bytes)?;
            }
            count = case + 1;
        }
        let text = self.drive(root.path(), &["--recover", &count.to_string()], None)?;
        read(&text, root.path())
    }

    fn drive(&self, root: &Path, words: &[&str], fault: Option<Fault>) -> Result<String> {
        let output = root.join("strace");
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "--seccomp-bpf", "-qq", "-y", "-xx", "-s", "100000000"])
            .args(["-e", "signal=none", "-e"])
            .arg(format!("trace={CALLS}"))
            .arg("-o")
            .arg(&output);
        if let Some(Fault { call, number }) = fault {
            strace.arg("-e");
            strace.arg(format!("inject={call}:error=EIO:when={number}"));
        }
        strace.arg(self.program).arg("drive").args(words).arg(root);
        strace
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let started = {
            let _no_log_is_open = FORKING.write().unwrap_or_else(PoisonError::into_inner);
            strace.spawn()
        };
        let run = started
            .and_then(Child::wait_with_output)
            .context("strace can't be run; it is in the package of that name")?;
        if !run.status.success() {
            bail!(
                "the run under strace failed with {}: {}",
                run.status,
                String::from_utf8_lossy(&run.stderr)
            );
        }
        Ok(fs::read_to_string(&output)?)
    }
}
