//! Syncs of a process, counted or made to fail.

use std::{fs, path::PathBuf};

/// strace around a coordinator, writing down each sync.
#[derive(Clone, Debug)]
pub struct Strace {
    output: PathBuf,
}

impl Strace {
    /// With its report in this file.
    pub fn new(output: PathBuf) -> Self {
        Self { output }
    }

    /// What to put before the program to watch it.
    pub fn wrapper(&self, options: &[&str]) -> Vec<String> {
        let mut words: Vec<String> = [
            "strace",
            "-f",
            "-qq",
            "-e",
            "signal=none",
            "-e",
            "trace=fdatasync,fsync",
        ]
        .map(str::to_owned)
        .into();
        words.extend(options.iter().map(ToString::to_string));
        words.extend(["-o".to_owned(), self.output.display().to_string()]);
        words
    }

    /// The syncs that have begun so far.
    pub fn syncs(&self) -> usize {
        let report = fs::read_to_string(&self.output).unwrap_or_default();
        let begun = |line: &&str| line.contains("fdatasync(") || line.contains("fsync(");
        report.lines().filter(begun).count()
    }
}
