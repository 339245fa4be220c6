//! A child process, and what can be done to it.

use std::{
    fs::{self, File},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{patience::eventually_blocking, watchdog};

/// A running process, whose output goes to a file. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it. What it prints is added to the log.
    ///
    /// # Panics
    /// Where there is no such program.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("the directory is ours");
        let errors = output.try_clone().expect("a file can be shared");
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        watchdog::started(child.id());
        Self {
            child,
            log: log.into(),
            ended: None,
        }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All that it printed so far, and those before it with the same log.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How it ended; `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("it is our child");
            if self.ended.is_some() {
                watchdog::ended(self.child.id());
            }
        }
        self.ended
    }

    /// SIGKILL, to what it runs too: a program under strace outlives it. Returns when it is gone.
    pub fn kill(&mut self) {
        self.kill_group();
        self.wait();
    }

    fn kill_group(&mut self) {
        if self.ended().is_none() {
            // It leads a group of its own. Where that is gone, so is all that there was to kill.
            let _ = kill_process_group(self.pid(), Signal::KILL);
        }
    }

    fn pid(&self) -> Pid {
        let id = i32::try_from(self.id()).expect("a process number");
        Pid::from_raw(id).expect("above 0")
    }

    /// SIGTERM.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    /// SIGSTOP: it does nothing, and nobody can tell.
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.id());
        eventually_blocking("a pause", || {
            let stat = fs::read_to_string(&stat).ok()?;
            stat.rsplit_once(')')?
                .1
                .trim_start()
                .starts_with('T')
                .then_some(())
        });
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
    }

    /// Sends a signal, if it still runs.
    ///
    /// # Panics
    /// Where it is not ours.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            kill_process(self.pid(), signal).expect("it is our child");
        }
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// Where it takes too long.
    pub fn wait(&mut self) -> ExitStatus {
        eventually_blocking("the end of a process", || self.ended())
    }

    /// Waits until it ends by itself, however long that takes.
    pub async fn ends(&mut self) {
        while self.ended().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The exit code with which it ends by itself.
    ///
    /// # Panics
    /// Where it takes too long, or is killed.
    pub fn exit_code(&mut self) -> i32 {
        let status = self.wait();
        status
            .code()
            .unwrap_or_else(|| panic!("ended by signal {:?}:\n{}", status.signal(), self.log()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_group();
        if self.ended.is_none() && self.child.wait().is_ok() {
            watchdog::ended(self.child.id());
        }
    }
}
