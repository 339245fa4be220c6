//! A disk that fails, hangs, lags, or is full, under one running process.
//!
//! ```text
//! let landing = disk::strike(Victim::log(pid), Fault::SyncFails { nth: 3 }, &report, Duration::from_secs(5)).await;
//! let mut small = SmallDisk::mount(&scratch, 8 << 20)?;       // give the process small.path() for its files
//! small.fill()?;  …  small.free()?;
//! ```
//!
//! [`strike`] attaches strace to the process, waits until the fault has landed or time is up, and lets go again: so it is over by itself, and says
//! what came of it. A coordinator is hit in the one thread that appends to its log: another one makes the next segment, and may fail without
//! harm. Other processes are hit in every thread, which makes each of their system calls slow. Calls are counted from the moment it attaches,
//! by thread.
//!
//! What is promised then: a coordinator whose sync or write fails ends with code 74, and says nothing more to anybody. One whose sync hangs for
//! 5 s is no longer serving, and ends after 20 s. One without room refuses what is new, and decides what is in flight.

mod small;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tokio::time::{Instant, sleep};
use unanimity_tests::process::Process;

pub use small::SmallDisk;

/// To attach may take so long.
const ATTACH: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);
/// A call that has not returned for so long is one that hangs by our doing.
const HANGING: Duration = Duration::from_secs(1);

/// Whose disk it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victim {
    process: u32,
    thread: Option<&'static str>,
}

impl Victim {
    /// A process, whichever of its threads comes first.
    pub fn process(id: u32) -> Self {
        Self {
            process: id,
            thread: None,
        }
    }

    /// A coordinator's log.
    pub fn log(coordinator: u32) -> Self {
        Self {
            process: coordinator,
            thread: Some("log"),
        }
    }

    /// The threads to watch that run now.
    fn threads(self) -> io::Result<Vec<u32>> {
        let mut threads = Vec::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.process))? {
            let path = task?.path();
            // A thread that ends meanwhile has no name any more.
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            let number: Option<u32> = path
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok());
            if self.thread.is_none_or(|wanted| name.trim_end() == wanted) {
                threads.extend(number);
            }
        }
        Ok(threads)
    }
}

/// What the disk does to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The nth sync fails with EIO; those after it seem to work.
    SyncFails {
        /// From 1.
        nth: u32,
    },
    /// The nth sync does not return for a while.
    SyncHangs {
        /// From 1.
        nth: u32,
        /// That long.
        hang: Duration,
    },
    /// Each sync takes longer.
    SyncSlow {
        /// By so much.
        by: Duration,
    },
    /// Writes at a position, as logs and databases do them, fail with ENOSPC from the nth on.
    NoSpace {
        /// From 1.
        nth: u32,
    },
}

impl Fault {
    fn call(self) -> &'static str {
        match self {
            Self::SyncFails { .. } | Self::SyncHangs { .. } | Self::SyncSlow { .. } => "fdatasync",
            Self::NoSpace { .. } => "pwrite64",
        }
    }

    fn inject(self) -> String {
        let call = self.call();
        let what = match self {
            Self::SyncFails { nth } => format!("error=EIO:when={nth}"),
            Self::SyncHangs { nth, hang } => {
                format!("delay_enter={}:when={nth}", hang.as_micros())
            }
            Self::SyncSlow { by } => format!("delay_enter={}", by.as_micros()),
            Self::NoSpace { nth } => format!("error=ENOSPC:when={nth}+"),
        };
        format!("inject={call}:{what}")
    }

    /// It goes on until time is up, instead of once.
    fn lasts(self) -> bool {
        matches!(self, Self::SyncSlow { .. })
    }
}

/// What came of a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Landing {
    /// It hit so many system calls.
    Landed(usize),
    /// It was in place, and the process made no call for it to hit.
    Missed,
    /// It could not be put in place: why.
    NotInstalled(String),
}

/// Hurts the disk of a process, until that was felt or `limit` is over. `report` is a file for strace's report, which is written over.
pub async fn strike(victim: Victim, fault: Fault, report: &Path, limit: Duration) -> Landing {
    let mut attached = match Attached::to(victim, fault, report).await {
        Ok(attached) => attached,
        Err(why) => return Landing::NotInstalled(why),
    };
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline && !attached.has_ended() {
        if !fault.lasts() && attached.hits() > 0 {
            break;
        }
        attached.look();
        sleep(LOOK).await;
    }
    let hangs = attached.hangs();
    attached.detach();
    match attached.hits() {
        // The process was killed before it returned, by its own watch over the disk or by somebody else.
        0 if hangs && matches!(fault, Fault::SyncHangs { .. }) => Landing::Landed(1),
        0 => Landing::Missed,
        hits => Landing::Landed(hits),
    }
}

/// strace on a process.
struct Attached {
    strace: Process,
    fault: Fault,
    report: PathBuf,
    /// Since when a call has not returned.
    pending: Option<Instant>,
    hanged: bool,
}

impl Attached {
    async fn to(victim: Victim, fault: Fault, report: &Path) -> Result<Self, String> {
        let threads = victim.threads().map_err(|error| error.to_string())?;
        let (follow, target) = match (victim.thread, threads.first()) {
            (None, _) => (Some("-f"), victim.process),
            (Some(_), Some(&thread)) => (None, thread),
            (Some(name), None) => return Err(format!("it has no thread {name:?}")),
        };
        if !has_strace() {
            return Err("there is no strace in the path".into());
        }
        // The report of an earlier fault would be taken for this one's.
        let _ = fs::remove_file(report);
        let trace = format!("trace={}", fault.call());
        let mut command = Command::new("strace");
        command
            .args(follow)
            .args(["-qq", "-e", "signal=none", "-e", &trace, "-e"])
            .arg(fault.inject())
            .arg("-o")
            .arg(report)
            .arg(format!("-p{target}"));
        let said = report.with_added_extension("log");
        let mut strace = Process::start(&mut command, &said);
        let deadline = Instant::now() + ATTACH;
        while !is_traced(victim) {
            if strace.ended().is_some() {
                return Err(format!("strace ended: {}", strace.log().trim_end()));
            }
            if Instant::now() >= deadline {
                return Err(format!("strace is not attached after {ATTACH:?}"));
            }
            sleep(LOOK).await;
        }
        Ok(Self {
            strace,
            fault,
            report: report.into(),
            pending: None,
            hanged: false,
        })
    }

    /// strace ends with the process.
    fn has_ended(&mut self) -> bool {
        self.strace.ended().is_some()
    }

    fn hits(&self) -> usize {
        let report = fs::read_to_string(&self.report).unwrap_or_default();
        let hit = |line: &&str| line.ends_with("(INJECTED)") || line.ends_with("(DELAYED)");
        report.lines().filter(hit).count()
    }

    /// Watches for a call that does not return: strace says that it was hit only when it does.
    fn look(&mut self) {
        let report = fs::read_to_string(&self.report).unwrap_or_default();
        let begun = report.matches(&format!("{}(", self.fault.call())).count();
        let returned = report.lines().filter(|line| line.contains(" = ")).count();
        if begun <= returned {
            self.pending = None;
            return;
        }
        let since = *self.pending.get_or_insert_with(Instant::now);
        self.hanged = since.elapsed() >= HANGING;
    }

    fn hangs(&self) -> bool {
        self.hanged
    }

    /// Lets go of the process, which goes on.
    fn detach(&mut self) {
        self.strace.terminate();
        self.strace.wait();
    }
}

fn has_strace() -> bool {
    env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .any(|directory| directory.join("strace").exists())
}

/// Whether every thread that is to be is watched.
fn is_traced(victim: Victim) -> bool {
    let is_watched = |thread: u32| {
        let status = format!("/proc/{}/task/{thread}/status", victim.process);
        let status = fs::read_to_string(status).unwrap_or_default();
        let tracer = status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"));
        tracer.is_some_and(|tracer| tracer.trim() != "0")
    };
    let threads = victim.threads().unwrap_or_default();
    !threads.is_empty() && threads.into_iter().all(is_watched)
}
