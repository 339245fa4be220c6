//! Syncs of a process, counted or made to fail.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{patience::eventually_blocking, process::Process};

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

    /// Attaches to a running process, with further options, and returns once it watches. It ends with the process.
    ///
    /// # Panics
    /// Where there is no strace, or it may not attach.
    pub fn attach(&self, process: u32, options: &[&str]) -> Process {
        let words = self.wrapper(options);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(format!("-p{process}"));
        let mut said = self.output.clone().into_os_string();
        said.push(".log");
        let mut strace = Process::start(&mut command, Path::new(&said));
        let tasks = format!("/proc/{process}/task");
        eventually_blocking("strace watches", || {
            assert!(strace.ended().is_none(), "strace ended:\n{}", strace.log());
            let mut tasks = fs::read_dir(&tasks).ok()?.flatten();
            let watched = |task: fs::DirEntry| {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                status.lines().any(|line| {
                    line.strip_prefix("TracerPid:")
                        .is_some_and(|tracer| tracer.trim() != "0")
                })
            };
            tasks.all(watched).then_some(())
        });
        strace
    }

    /// The syncs that have begun so far.
    pub fn syncs(&self) -> usize {
        let report = fs::read_to_string(&self.output).unwrap_or_default();
        let begun = |line: &&str| line.contains("fdatasync(") || line.contains("fsync(");
        report.lines().filter(begun).count()
    }
}
